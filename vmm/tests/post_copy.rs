//! Guests that run on the destination before all of their memory is there.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;
#[path = "support/relay.rs"]
mod relay;

use std::time::Duration;

use ballast_guest::Params;
use ballast_model::RefusalCode;
use ballast_proto::v1::{self, MigrationState as State, MigrationVerdict as Verdict, VmState};
use process::{Lab, check_refused, have_kvm};
use relay::Relay;

/// A guest that writes much faster than the link below carries.
fn hot() -> Params {
    Params {
        heartbeat_ms: 50,
        duty_percent: 50,
        working_set_mib: 12,
        dirty_mib_per_sec: 60,
        ..Params::default()
    }
}

/// After one round over a slow link the rest goes after the guest.
fn soon(send: &mut v1::SendMigrationRequest) {
    send.post_copy = true;
    (send.rounds_max, send.downtime_limit_ms) = (1, 1);
    send.bandwidth_bytes_per_sec = 8 << 20;
}

struct Pair {
    _lab: Lab,
    source: process::Vmm,
    destination: process::Vmm,
    relay: Relay,
}

/// Both sides READY, a part of memory still at the source.
async fn switched(tls: bool, patience_ms: u32) -> Pair {
    let lab = Lab::new();
    let (mut source, mut destination) = (lab.vmm("a").await, lab.vmm("b").await);
    let mut spec = lab.spec(48, &hot());
    spec.vcpus = 2;
    source.boot(spec.clone()).await.unwrap();
    source.beats(5).await;
    let request = v1::ReceiveMigrationRequest {
        migration: process::MIGRATION.to_owned(),
        listen: "127.0.0.1:0".to_owned(),
        token: process::TOKEN.to_vec(),
        spec: Some(spec),
        source_epoch: 1,
        tls,
        post_copy_patience_ms: patience_ms,
    };
    let there = destination.client.receive_migration(request).await.unwrap().into_inner();
    let relay = Relay::to(there.address.parse().unwrap());
    let change = |send: &mut v1::SendMigrationRequest| {
        soon(send);
        send.public_key = there.public_key;
        send.streams = 2;
    };
    source.send(&relay.address().to_string(), change).await.unwrap();
    destination.watch_state(State::Ready).await;
    source.watch_state(State::Ready).await;
    source.read_console().await;
    std::mem::swap(&mut source.console, &mut destination.console);
    Pair { _lab: lab, source, destination, relay }
}

impl Pair {
    async fn commit(&mut self) {
        let running = self.destination.resolve(Verdict::Commit, 2).await.unwrap();
        assert_eq!(running, VmState::Running);
    }

    /// The guest goes on here with all of its memory, and the source is no longer needed.
    async fn check_arrived(mut self) -> v1::MigrationProgress {
        let done = self.destination.watch_state(State::Finished).await;
        assert_eq!(done.refusal, None);
        self.source.resolve(Verdict::Superseded, 2).await.unwrap();
        assert!(self.source.ended().await.success());
        let report = self.destination.beats(20).await;
        assert_eq!((report.boots, report.heartbeats_lost, report.memory_errors), (1, 0, 0));
        let progress = done.progress.unwrap();
        assert_eq!(progress.bytes_remaining, 0);
        progress
    }
}

#[tokio::test]
async fn a_guest_that_writes_faster_than_the_link_runs_before_its_memory_is_there() {
    if !have_kvm() {
        return;
    }
    let mut pair = switched(false, 0).await;
    assert_eq!(pair.source.state().await, VmState::Paused);
    pair.commit().await;
    let fetching = pair.destination.watch(|status| status.state != State::Ready as i32).await;
    let progress = fetching.progress.unwrap();
    assert!(progress.post_copy_bytes > 4 << 20, "{progress:?}");
    if fetching.state == State::Fetching as i32 {
        let paused = pair.destination.client.pause(v1::PauseRequest {}).await;
        check_refused(paused.map_err(process::refusal), RefusalCode::WrongState, "migrated");
    }
    let done = pair.check_arrived().await;
    assert!(done.faults > 0, "nobody waited: {done:?}");
    eprintln!("{done:?}");
}

#[tokio::test]
async fn a_link_that_is_cut_is_waited_for_by_both_sides() {
    if !have_kvm() {
        return;
    }
    for tls in [false, true] {
        let mut pair = switched(tls, 0).await;
        pair.relay.cut();
        pair.commit().await;
        let lost = |status: &v1::MigrationStatus| status.refusal.is_some();
        let there = pair.destination.watch(lost).await;
        assert_eq!(there.state, State::Fetching as i32);
        let why = there.refusal.unwrap().reason;
        assert!(why.contains("are missing and the connection to the source is broken"), "{why}");
        pair.source.watch(lost).await;
        let detail = pair.destination.status().await.detail;
        assert!(detail.contains("are missing"), "{detail}");
        pair.relay.mend();
        pair.destination.watch(|status| status.refusal.is_none()).await;
        // And once more, under way.
        if pair.destination.migration().await.state == State::Fetching as i32 {
            pair.relay.cut();
            pair.relay.mend();
        }
        pair.check_arrived().await;
    }
}

#[tokio::test]
async fn a_guest_whose_source_dies_ends_and_says_why() {
    if !have_kvm() {
        return;
    }
    let mut pair = switched(false, 1500).await;
    pair.commit().await;
    pair.source.kill();
    let lost = pair.destination.watch(|status| status.refusal.is_some()).await;
    let why = lost.refusal.unwrap().reason;
    assert!(why.contains("of the VM's memory are missing"), "{why}");
    assert!(!pair.destination.ended().await.success());
}

#[tokio::test]
async fn a_source_that_has_promised_pages_goes_on_when_it_comes_to_nothing() {
    if !have_kvm() {
        return;
    }
    let mut pair = switched(false, 0).await;
    pair.destination.resolve(Verdict::Abort, 0).await.unwrap();
    pair.destination.ended().await;
    std::mem::swap(&mut pair.source.console, &mut pair.destination.console);
    pair.source.resolve(Verdict::Abort, 0).await.unwrap();
    let report = pair.source.beats(10).await;
    assert_eq!((report.boots, report.heartbeats_lost, report.memory_errors), (1, 0, 0));
}

#[tokio::test]
async fn a_guest_that_fetches_can_be_ended() {
    if !have_kvm() {
        return;
    }
    let mut pair = switched(false, 0).await;
    pair.relay.cut();
    pair.commit().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    pair.destination.client.shutdown(v1::ShutdownRequest {}).await.unwrap();
    pair.destination.ended().await;
}
