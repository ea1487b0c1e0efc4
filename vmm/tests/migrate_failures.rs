//! Migrations that come to nothing: the guest goes on where it was.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;

use std::io::{Read, Write};
use std::net::TcpStream;

use ballast_model::RefusalCode;
use ballast_proto::v1::{MigrationState, MigrationVerdict, VmState};
use process::{Lab, MIGRATION, PATIENCE, TOKEN, VM, Vmm, busy, check_refused, have_kvm, refusal};

/// A guest that runs, and a destination that listens for it.
async fn pair(lab: &Lab) -> (Vmm, Vmm, String) {
    let (mut source, mut destination) = (lab.vmm("a").await, lab.vmm("b").await);
    source.boot(lab.spec(48, &busy())).await.unwrap();
    source.beats(3).await;
    let address = destination.listen(lab.spec(48, &busy())).await.unwrap();
    (source, destination, address)
}

/// The same, in the middle of the first round: so slow that it stays there.
async fn in_flight(lab: &Lab) -> (Vmm, Vmm) {
    let (mut source, mut destination, address) = pair(lab).await;
    source.send(&address, |send| send.bandwidth_bytes_per_sec = 1 << 20).await.unwrap();
    destination.watch_state(MigrationState::Transferring).await;
    source.watch(|status| status.progress.is_some_and(|p| p.bytes_sent > 1 << 19)).await;
    (source, destination)
}

async fn check_goes_on(source: &mut Vmm, code: RefusalCode) {
    let status = source.watch_state(MigrationState::Aborted).await;
    let why: ballast_model::Refusal = status.refusal.unwrap().into();
    assert_eq!(why.code, code, "{why}");
    assert_eq!(source.state().await, VmState::Running);
    let report = source.beats(10).await;
    assert_eq!((report.boots, report.heartbeats_lost), (1, 0));
}

/// The guest can still move after what it went through.
async fn check_still_moves(lab: &Lab, mut source: Vmm) {
    let mut third = lab.vmm("c").await;
    let address = third.listen(lab.spec(48, &busy())).await.unwrap();
    source.send(&address, |_| {}).await.unwrap();
    third.watch_state(MigrationState::Ready).await;
    source.read_console().await;
    std::mem::swap(&mut source.console, &mut third.console);
    third.resolve(MigrationVerdict::Commit, 2).await.unwrap();
    let report = third.beats(10).await;
    assert_eq!((report.boots, report.heartbeats_lost, report.memory_errors), (1, 0, 0));
}

#[tokio::test]
async fn a_cancelled_migration_leaves_the_guest_where_it_was() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut source, mut destination) = in_flight(&lab).await;
    let early = destination.resolve(MigrationVerdict::Commit, 2).await;
    check_refused(early, RefusalCode::WrongState, "READY");
    for _ in 0..2 {
        let state = source.resolve(MigrationVerdict::Abort, 0).await.unwrap();
        assert_eq!(state, VmState::Running);
    }
    check_goes_on(&mut source, RefusalCode::Cancelled).await;
    destination.ended().await;
    check_still_moves(&lab, source).await;
}

#[tokio::test]
async fn a_destination_killed_in_flight_is_no_loss() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut source, mut destination) = in_flight(&lab).await;
    destination.kill();
    check_goes_on(&mut source, RefusalCode::Unavailable).await;
    check_still_moves(&lab, source).await;
}

#[tokio::test]
async fn a_destination_killed_after_ready_leaves_the_decision_to_the_record() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut source, mut destination, address) = pair(&lab).await;
    source.send(&address, |_| {}).await.unwrap();
    source.watch_state(MigrationState::Ready).await;
    destination.kill();
    assert_eq!(source.state().await, VmState::Paused, "it does not guess");
    assert_eq!(source.migration().await.state, MigrationState::Ready as i32);
    let state = source.resolve(MigrationVerdict::Abort, 0).await.unwrap();
    assert_eq!(state, VmState::Running);
    check_goes_on(&mut source, RefusalCode::Cancelled).await;
    check_still_moves(&lab, source).await;
}

#[tokio::test]
async fn an_abort_ends_a_destination_that_is_ready() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut source, mut destination, address) = pair(&lab).await;
    source.send(&address, |_| {}).await.unwrap();
    destination.watch_state(MigrationState::Ready).await;
    destination.resolve(MigrationVerdict::Abort, 0).await.unwrap();
    destination.ended().await;
    source.watch_state(MigrationState::Ready).await;
    source.resolve(MigrationVerdict::Abort, 0).await.unwrap();
    source.beats(5).await;
}

#[tokio::test]
async fn a_source_killed_in_flight_ends_the_destination() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut source, mut destination) = in_flight(&lab).await;
    source.kill();
    destination.ended().await;
}

#[tokio::test]
async fn strangers_are_dropped_and_the_source_is_still_heard() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut source, mut destination, address) = pair(&lab).await;
    let silent: Vec<_> = (0..3).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let wrong = source.send(&address, |send| send.token = vec![7; 32]).await;
    check_refused(wrong, RefusalCode::Unavailable, &address);
    assert_eq!(destination.state().await, VmState::Incoming);
    source.send(&address, |_| {}).await.unwrap();
    destination.watch_state(MigrationState::Ready).await;
    destination.resolve(MigrationVerdict::Commit, 2).await.unwrap();
    drop(silent);
}

#[tokio::test]
async fn hosts_that_do_not_fit_say_what_differs() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut source, mut destination) = (lab.vmm("a").await, lab.vmm("b").await);
    source.boot(lab.spec(48, &busy())).await.unwrap();
    let address = destination.listen(lab.spec(64, &busy())).await.unwrap();
    let sent = source.send(&address, |_| {}).await;
    check_refused(sent, RefusalCode::Incompatible, "12288 pages at 0x0 on the source and 16384");
    check_goes_on(&mut source, RefusalCode::Incompatible).await;
    destination.ended().await;
}

#[tokio::test]
async fn a_guest_that_writes_faster_than_the_link_is_given_up() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut source, mut destination, address) = pair(&lab).await;
    let limits = |send: &mut ballast_proto::v1::SendMigrationRequest| {
        (send.downtime_limit_ms, send.rounds_max) = (1, 2);
        send.bandwidth_bytes_per_sec = 32 << 20;
    };
    source.send(&address, limits).await.unwrap();
    check_goes_on(&mut source, RefusalCode::Timeout).await;
    let why = source.migration().await.refusal.unwrap();
    assert!(why.reason.contains("does not converge: after 2 rounds"), "{}", why.reason);
    destination.ended().await;
}

/// The greeting as the wire has it, so that a change of it is noticed here.
fn greeting() -> Vec<u8> {
    let mut bytes = b"BLSTMIGR".to_vec();
    bytes.extend([1, 0, 1, 0]);
    let id = MIGRATION.replace('-', "");
    bytes.extend((0..16).map(|at| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap()));
    bytes.extend(TOKEN);
    bytes.push(u8::try_from(VM.len()).unwrap());
    bytes.extend(VM.as_bytes());
    bytes.resize(124, 0);
    bytes
}

#[tokio::test]
async fn a_hostile_source_ends_the_migration_and_nothing_else() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let frames: [&[u8]; 4] = [
        b"\x63\x00\x00\x00\x00\x00\x00\x00", // no such kind
        b"\x04\x00\x00\x00\xff\xff\xff\xff", // longer than any frame
        b"\x02\x00\x00\x00\x04\x00\x00\x00\xff\xff\xff\xff", // a proposal of 2^32 ranges
        b"\x0a\x00\x00\x00\x10\x00\x00\x00\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", // the end, too early
    ];
    for (place, frame) in frames.into_iter().enumerate() {
        let mut destination = lab.vmm(&format!("d{place}")).await;
        let address = destination.listen(lab.spec(32, &busy())).await.unwrap();
        let answer = tokio::task::spawn_blocking(move || {
            let mut peer = TcpStream::connect(address).unwrap();
            peer.set_read_timeout(Some(PATIENCE)).unwrap();
            peer.write_all(&greeting()).unwrap();
            peer.write_all(frame).unwrap();
            let mut answer = Vec::new();
            let _ = peer.read_to_end(&mut answer);
            answer
        });
        let answer = answer.await.unwrap();
        assert_eq!(answer[..8], *b"\x01\x00\x00\x00\x02\x00\x00\x00", "Welcome");
        assert_eq!(answer[10], 12, "Failed");
        destination.ended().await;
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut source, _destination, address) = pair(&lab).await;
    let short = source.send(&address, |send| send.token = vec![1; 31]).await;
    check_refused(short, RefusalCode::InvalidArgument, "31 bytes");
    let limit = source.send(&address, |send| send.downtime_limit_ms = 0).await;
    check_refused(limit, RefusalCode::InvalidArgument, "downtime limit");
    let slow = source.send(&address, |send| send.bandwidth_bytes_per_sec = 1).await;
    check_refused(slow, RefusalCode::InvalidArgument, "too low");
    let place = source.send("nowhere", |_| {}).await;
    check_refused(place, RefusalCode::InvalidArgument, "nowhere");
    let unknown = source.resolve(MigrationVerdict::Abort, 0).await;
    check_refused(unknown, RefusalCode::NotFound, MIGRATION);
    let mut idle = lab.vmm("c").await;
    check_refused(idle.send(&address, |_| {}).await, RefusalCode::WrongState, "one migration");
    let pause = idle.client.pause(ballast_proto::v1::PauseRequest {}).await.map_err(refusal);
    check_refused(pause, RefusalCode::WrongState, "boot the VM");
}
