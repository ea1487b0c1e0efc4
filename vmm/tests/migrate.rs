//! Migrations between two processes, of a guest that checks its own memory.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;

use ballast_model::RefusalCode;
use ballast_proto::v1::{self, MigrationState, MigrationVerdict, VmState};
use process::{Lab, busy, check_refused, have_kvm};

#[tokio::test]
async fn a_guest_under_load_moves_and_loses_nothing() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut source, mut destination) = (lab.vmm("a").await, lab.vmm("b").await);
    let spec = lab.spec(64, &busy());
    source.boot(spec.clone()).await.unwrap();
    source.beats(10).await;

    let address = destination.listen(spec).await.unwrap();
    assert_eq!(destination.state().await, VmState::Incoming);
    source.send(&address, |_| {}).await.unwrap();
    let ready = destination.watch_state(MigrationState::Ready).await;
    assert!(ready.progress.unwrap().downtime.unwrap().load_micros > 0);
    let sent = source.watch_state(MigrationState::Ready).await.progress.unwrap();
    assert_eq!(source.state().await, VmState::Paused);
    assert_eq!(sent.bytes_total, 64 << 20);
    assert!(sent.pages_zero > 0 && sent.bytes_sent > 20 << 20, "{sent:?}");
    // A tester's agent reads the console of either; here the destination's goes on.
    source.read_console().await;
    std::mem::swap(&mut source.console, &mut destination.console);

    let running = destination.resolve(MigrationVerdict::Commit, 2).await.unwrap();
    assert_eq!(running, VmState::Running);
    let again = destination.resolve(MigrationVerdict::Commit, 2).await.unwrap();
    assert_eq!(again, VmState::Running);
    let late = destination.resolve(MigrationVerdict::Abort, 0).await;
    check_refused(late, RefusalCode::WrongState, "decided");
    assert_eq!(destination.status().await.epoch, 2);
    source.resolve(MigrationVerdict::Superseded, 2).await.unwrap();
    assert!(source.ended().await.success());

    let report = destination.beats(40).await;
    assert_eq!((report.boots, report.heartbeats_lost, report.memory_errors), (1, 0, 0));
    let done = destination.migration().await.progress.unwrap().downtime.unwrap();
    assert!(done.resume_micros > 0 && done.commit_micros > 0, "{done:?}");
    eprintln!("source {sent:?}\ndestination {done:?}\nguest stall {:?}", report.stall_max);
}

/// Several hosts in a row, with a size that is no multiple of anything but a
/// page, more than one vCPU, and over one, a few and many connections, the
/// first of them limited.
#[tokio::test]
async fn a_guest_moves_again_and_again() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let mut spec = lab.spec(40, &busy());
    spec.memory_bytes += 3 * 4096;
    spec.vcpus = 2;
    let mut source = lab.vmm("host0").await;
    source.boot(spec.clone()).await.unwrap();
    source.beats(3).await;
    for (hop, streams) in [(1, 1), (2, 3), (3, 40)] {
        let mut next = lab.vmm(&format!("host{hop}")).await;
        let address = next.listen(spec.clone()).await.unwrap();
        let change = |send: &mut v1::SendMigrationRequest| {
            send.streams = streams;
            send.bandwidth_bytes_per_sec = if hop == 1 { 256 << 20 } else { 0 };
        };
        source.send(&address, change).await.unwrap();
        next.watch_state(MigrationState::Ready).await;
        source.watch_state(MigrationState::Ready).await;
        source.read_console().await;
        std::mem::swap(&mut source.console, &mut next.console);
        next.resolve(MigrationVerdict::Commit, hop + 1).await.unwrap();
        source.resolve(MigrationVerdict::Superseded, hop + 1).await.unwrap();
        assert!(source.ended().await.success());
        let report = next.beats(5).await;
        assert_eq!((report.boots, report.heartbeats_lost, report.memory_errors), (1, 0, 0));
        source = next;
    }
    assert_eq!(source.status().await.epoch, 4);
}

/// Encrypted, over one and several connections; nobody else than the destination is talked to.
#[tokio::test]
async fn a_guest_moves_over_encrypted_connections() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let spec = lab.spec(48, &busy());
    let mut source = lab.vmm("host0").await;
    source.boot(spec.clone()).await.unwrap();
    source.beats(3).await;
    let mut other = lab.vmm("other").await;
    let stranger = other.listen_with(spec.clone(), "127.0.0.1:0", true).await.unwrap();
    for (hop, streams) in [(1, 1), (2, 4)] {
        let mut next = lab.vmm(&format!("host{hop}")).await;
        let there = next.listen_with(spec.clone(), "127.0.0.1:0", true).await.unwrap();
        let to = |public_key: &[u8]| {
            let public_key = public_key.to_vec();
            move |send: &mut v1::SendMigrationRequest| {
                (send.public_key, send.streams) = (public_key, streams);
            }
        };
        let wrong = source.send(&there.address, to(&stranger.public_key)).await;
        check_refused(wrong, RefusalCode::Unavailable, "did not agree");
        source.send(&there.address, to(&there.public_key)).await.unwrap();
        next.watch_state(MigrationState::Ready).await;
        source.watch_state(MigrationState::Ready).await;
        source.read_console().await;
        std::mem::swap(&mut source.console, &mut next.console);
        next.resolve(MigrationVerdict::Commit, hop + 1).await.unwrap();
        source.resolve(MigrationVerdict::Superseded, hop + 1).await.unwrap();
        assert!(source.ended().await.success());
        let report = next.beats(5).await;
        assert_eq!((report.boots, report.heartbeats_lost, report.memory_errors), (1, 0, 0));
        source = next;
    }
}
