//! A link that changes a byte on the way: nothing of it comes to run, and the source goes on.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};

use ballast_guest::Params;
use ballast_model::{Refusal, RefusalCode};
use ballast_proto::v1::{MigrationState, MigrationVerdict, VmState};
use process::{Lab, busy, have_kvm};

const GREETING_BYTES: u64 = 124;

/// Which byte is changed.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// Towards the destination.
    There(u64),
    /// Towards the source.
    Back(u64),
}

/// Carries one connection to `to`, with that damage.
fn damaged_link(to: SocketAddr, damage: Damage) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Its threads end with the connection.
    std::thread::spawn(move || {
        let (source, destination) = (listener.accept().unwrap().0, TcpStream::connect(to).unwrap());
        let back = (destination.try_clone().unwrap(), source.try_clone().unwrap());
        let (there, here) = match damage {
            Damage::There(at) => (Some(at), None),
            Damage::Back(at) => (None, Some(at)),
        };
        std::thread::spawn(move || carry(back.0, back.1, here));
        carry(source, destination, there);
    });
    address
}

fn carry(mut from: TcpStream, mut to: TcpStream, damaged: Option<u64>) {
    let (mut chunk, mut done) = (vec![0; 64 << 10], 0);
    while let Ok(bytes @ 1..) = from.read(&mut chunk) {
        let here = damaged.and_then(|at| usize::try_from(at.checked_sub(done)?).ok());
        if let Some(byte) = here.and_then(|at| chunk[..bytes].get_mut(at)) {
            *byte ^= 0x10;
        }
        done += bytes as u64;
        if to.write_all(&chunk[..bytes]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Read);
    let _ = to.shutdown(Shutdown::Write);
}

/// A guest that leaves most of its memory alone: a damaged page is not written again.
fn quiet() -> Params {
    Params { duty_percent: 5, dirty_mib_per_sec: 0, ..busy() }
}

async fn check(damage: Damage, expected: &str) {
    let lab = Lab::new();
    let spec = lab.spec(48, &quiet());
    let (mut source, mut destination) = (lab.vmm("a").await, lab.vmm("b").await);
    source.boot(spec.clone()).await.unwrap();
    source.beats(3).await;
    let address = destination.listen(spec.clone()).await.unwrap().parse().unwrap();
    let link = damaged_link(address, damage);
    // Without hashes of all pages: what is noticed is noticed on the way.
    let sent = source.send(&link.to_string(), |send| send.verify = false).await;
    let why = match sent {
        Err(why) => why,
        Ok(()) => {
            let end = source.watch_state(MigrationState::Aborted).await;
            end.refusal.map(Refusal::from).unwrap()
        }
    };
    assert!(why.reason.contains(expected), "{damage:?}: {why}");
    assert_eq!(why.code, RefusalCode::HostFailure, "{damage:?}: {why}");
    assert!(why.reason.contains("checksum"), "{damage:?}: {why}");
    assert_eq!(source.state().await, VmState::Running);
    source.beats(5).await;
    destination.ended().await;

    let mut third = lab.vmm("c").await;
    let address = third.listen(spec).await.unwrap();
    source.send(&address, |_| {}).await.unwrap();
    third.watch_state(MigrationState::Ready).await;
    source.read_console().await;
    std::mem::swap(&mut source.console, &mut third.console);
    third.resolve(MigrationVerdict::Commit, 2).await.unwrap();
    let report = third.beats(5).await;
    assert_eq!((report.boots, report.heartbeats_lost, report.memory_errors), (1, 0, 0));
}

#[tokio::test]
async fn a_changed_page_keeps_the_destination_from_being_ready() {
    if have_kvm() {
        check(Damage::There(9_000_000), "of guest memory did not arrive as it was sent").await;
    }
}

#[tokio::test]
async fn a_changed_header_or_frame_ends_it_at_once() {
    if have_kvm() {
        check(Damage::There(GREETING_BYTES + 4), "a frame's header did not arrive").await;
        check(Damage::There(GREETING_BYTES + 40), "a frame did not arrive").await;
    }
}

#[tokio::test]
async fn a_changed_answer_makes_the_source_go_on() {
    if have_kvm() {
        // Within the answer to the proposal, and to the first round.
        check(Damage::Back(10 + 20), "a frame did not arrive").await;
        check(Damage::Back(10 + 50 + 14), "a frame did not arrive").await;
    }
}
