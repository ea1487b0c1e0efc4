//! A migration over a link that takes long: what it waits for, and how often.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ballast_guest::Params;
use ballast_proto::v1::{MigrationState, MigrationVerdict};
use process::{Lab, busy, have_kvm};

/// One way.
const DELAY: Duration = Duration::from_millis(75);
const STREAMS: u32 = 4;
const CHUNK_BYTES: usize = 64 << 10;
/// What may be under way in one direction of one connection: 64 MiB.
const CHUNKS_MAX: usize = 1024;
/// On the wire: a header, and the longest answer that is not a Failed; from the proposal on two
/// checksums.
const WELCOME_BYTES: u64 = 8 + 2;
const ACCEPT_BYTES: u64 = 8 + 2 + 32 + 8;
const ROUND_DONE_BYTES: u64 = 8 + 4 + 8;
const READY_BYTES: u64 = 8 + 8 + 8;

/// A link: connections to its address come out elsewhere, everything late or slowly.
struct Link {
    address: SocketAddr,
    /// What went back to the source, for each connection.
    back: &'static Mutex<Vec<u64>>,
}

impl Link {
    /// Delivers after `delay`, and no more than this many bytes a second for each connection.
    fn to(to: SocketAddr, delay: Duration, rate: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let back: &'static Mutex<Vec<u64>> = Box::leak(Box::default());
        // Its threads end with the connections, the first one with the test.
        std::thread::spawn(move || {
            for (place, source) in listener.incoming().enumerate() {
                let (source, destination) = (source.unwrap(), TcpStream::connect(to).unwrap());
                source.set_nodelay(true).unwrap();
                destination.set_nodelay(true).unwrap();
                back.lock().unwrap().push(0);
                let ends = (source.try_clone().unwrap(), destination.try_clone().unwrap());
                carry(source, destination, (delay, rate), |_| {});
                let count = move |bytes| back.lock().unwrap()[place] += bytes;
                carry(ends.1, ends.0, (delay, rate), count);
            }
        });
        Self { address, back }
    }
}

/// Carries one direction, late.
fn carry(
    mut from: TcpStream,
    to: TcpStream,
    (delay, rate): (Duration, u32),
    mut count: impl FnMut(u64) + Send + 'static,
) {
    let (late, due) = sync_channel(queue(delay, rate));
    std::thread::spawn(move || deliver(&due, to, rate));
    let mut take = move |late: SyncSender<(Instant, Vec<u8>)>| {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(bytes @ 1..) = from.read(&mut chunk) {
            count(bytes as u64);
            if late.send((Instant::now() + delay, chunk[..bytes].to_vec())).is_err() {
                return;
            }
        }
    };
    std::thread::spawn(move || take(late));
}

/// Chunks on the way at once: as many as the rate fills in the delay and a tenth of a second. A link
/// that takes much more than it carries looks fast to who begins to send.
fn queue(delay: Duration, rate: u32) -> usize {
    let millis = delay.as_millis() + 100;
    let chunks = u128::from(rate) * millis / 1000 / CHUNK_BYTES as u128;
    usize::try_from(chunks).unwrap_or(CHUNKS_MAX).clamp(1, CHUNKS_MAX)
}

fn deliver(due: &Receiver<(Instant, Vec<u8>)>, mut to: TcpStream, rate: u32) {
    let mut free = Instant::now();
    while let Ok((at, bytes)) = due.recv() {
        free = free.max(at) + Duration::from_secs(bytes.len() as u64) / rate;
        std::thread::sleep(free.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[tokio::test]
async fn a_round_trip_is_spent_on_a_round_and_none_on_a_page() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut source, mut destination) = (lab.vmm("a").await, lab.vmm("b").await);
    let spec = lab.spec(64, &busy());
    source.boot(spec.clone()).await.unwrap();
    source.beats(10).await;
    let listening = destination.listen(spec).await.unwrap().parse().unwrap();
    let link = Link::to(listening, DELAY, u32::MAX);
    source.send(&link.address.to_string(), |send| send.streams = STREAMS).await.unwrap();
    destination.watch_state(MigrationState::Ready).await;
    let sent = source.watch_state(MigrationState::Ready).await.progress.unwrap();
    source.read_console().await;
    std::mem::swap(&mut source.console, &mut destination.console);
    destination.resolve(MigrationVerdict::Commit, 2).await.unwrap();
    let report = destination.beats(10).await;
    assert_eq!((report.heartbeats_lost, report.memory_errors), (0, 0));

    let back = link.back.lock().unwrap().clone();
    assert_eq!(back.len(), STREAMS as usize);
    assert!(back[1..].iter().all(|&bytes| bytes == 0), "{back:?}");
    // The last pass is counted as a round; its end is told only when all connections took part.
    let rounds = u64::from(sent.rounds);
    let all = |dones: u64| WELCOME_BYTES + ACCEPT_BYTES + dones * ROUND_DONE_BYTES + READY_BYTES;
    assert!([all(rounds - 1), all(rounds)].contains(&back[0]), "{back:?} after {rounds} rounds");
    let downtime = sent.downtime.unwrap();
    // One round trip lies between the last page and READY.
    assert!(Duration::from_micros(downtime.send_micros) >= 2 * DELAY, "{downtime:?}");
    eprintln!("{rounds} rounds, {downtime:?}, guest stall {:?}", report.stall_max);
}

/// Pages that compress, over a thin link. That it is not done on a fast one is a matter of
/// measuring, which the decision's own tests and the benchmark look at.
#[tokio::test]
async fn memory_goes_compressed_where_the_link_is_the_limit() {
    if !have_kvm() {
        return;
    }
    for allowed in [true, false] {
        let lab = Lab::new();
        let (mut source, mut destination) = (lab.vmm("a").await, lab.vmm("b").await);
        // It writes far less than the link carries: whether it converges is not the question here.
        let params = Params { static_mib: 36, repeat: 3, dirty_mib_per_sec: 2, ..busy() };
        let spec = lab.spec(64, &params);
        source.boot(spec.clone()).await.unwrap();
        source.beats(10).await;
        let listening = destination.listen(spec).await.unwrap().parse().unwrap();
        let link = Link::to(listening, Duration::ZERO, 16 << 20);
        let change = |send: &mut ballast_proto::v1::SendMigrationRequest| {
            send.never_compress = !allowed;
            send.streams = 1;
        };
        source.send(&link.address.to_string(), change).await.unwrap();
        destination.watch_state(MigrationState::Ready).await;
        let sent = source.watch_state(MigrationState::Ready).await.progress.unwrap();
        source.read_console().await;
        std::mem::swap(&mut source.console, &mut destination.console);
        destination.resolve(MigrationVerdict::Commit, 2).await.unwrap();
        let report = destination.beats(10).await;
        assert_eq!((report.heartbeats_lost, report.memory_errors), (0, 0));
        eprintln!("{allowed}: {sent:?}");
        assert_eq!(sent.bytes_saved > 0, allowed, "{sent:?}");
    }
}

/// It would write nearly four times what the link carries.
#[tokio::test]
async fn a_guest_that_writes_faster_than_the_link_is_slowed_down_until_it_moves() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut source, mut destination) = (lab.vmm("a").await, lab.vmm("b").await);
    let params = Params { working_set_mib: 32, dirty_mib_per_sec: 60, duty_percent: 50, ..busy() };
    let spec = lab.spec(64, &params);
    source.boot(spec.clone()).await.unwrap();
    source.beats(10).await;
    let listening = destination.listen(spec).await.unwrap().parse().unwrap();
    let link = Link::to(listening, Duration::ZERO, 16 << 20);
    source.send(&link.address.to_string(), |send| send.downtime_limit_ms = 1000).await.unwrap();
    destination.watch_state(MigrationState::Ready).await;
    let sent = source.watch_state(MigrationState::Ready).await.progress.unwrap();
    assert!((30..100).contains(&sent.throttle_percent), "{sent:?}");
    source.read_console().await;
    std::mem::swap(&mut source.console, &mut destination.console);
    destination.resolve(MigrationVerdict::Commit, 2).await.unwrap();
    let report = destination.beats(10).await;
    assert_eq!((report.heartbeats_lost, report.memory_errors), (0, 0));
    eprintln!("{sent:?}");
}
