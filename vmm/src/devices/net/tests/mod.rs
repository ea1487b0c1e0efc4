//! The queues against a driver in memory and a pair of sockets in place of a tap.

mod device;
mod driver;
mod taps;

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use ballast_model::BytesPerSec;
use ballast_model::hardware::RateLimit;
use proptest::prelude::*;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestRam;

use self::driver::{Driver, MEMORY_BYTES};
use super::rx::Rx;
use super::tap::HEADER_BYTES;
use super::tx::Tx;
use super::{FRAME_BYTES_MAX, Turn};
use crate::devices::rate_limit::RateLimiter;

const BUFFERS: u64 = 0x10_0000;

fn memory() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap()
}

/// Two ends that keep frames apart and never block, as a tap does.
pub(super) fn cable() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

fn unlimited() -> RateLimiter {
    RateLimiter::new(&RateLimit::default(), Instant::now())
}

pub(super) fn frame(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| if at < HEADER_BYTES { 0 } else { at.to_le_bytes()[0] }).collect()
}

fn receive(end: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; FRAME_BYTES_MAX + 1];
    let (count, _) = recv(end, &mut bytes[..], RecvFlags::empty()).ok()?;
    bytes.truncate(count);
    Some(bytes)
}

#[test]
fn a_chain_is_sent_as_one_frame() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0, 16);
    let sent = frame(HEADER_BYTES + 2000);
    memory.write_slice(&sent, GuestAddress(BUFFERS)).unwrap();
    let head = driver.offer(&[
        (BUFFERS, 12, false),
        (BUFFERS + 12, 1000, false),
        (BUFFERS + 1012, 1000, false),
    ]);
    let (tap, host) = cable();
    let mut tx = Tx::new(driver.ring(), unlimited());
    let turned = tx.turn(&memory, Some(tap.as_fd()), Instant::now()).unwrap();
    assert_eq!((turned.turn, turned.interrupt), (Turn::Idle, true));
    assert_eq!(receive(&host).unwrap(), sent);
    assert_eq!(driver.used(), [(u32::from(head), 0)]);
    assert_eq!(tx.finish().1, 0);
}

#[test]
fn frames_that_are_none_are_dropped_and_given_back() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0, 16);
    let long = u32::try_from(FRAME_BYTES_MAX).unwrap() + 1;
    let heads = [
        driver.offer(&[(BUFFERS, 20, false)]),
        driver.offer(&[(BUFFERS, long, false)]),
        driver.offer(&[(BUFFERS, 100, true)]),
    ];
    let (tap, host) = cable();
    let mut tx = Tx::new(driver.ring(), unlimited());
    tx.turn(&memory, Some(tap.as_fd()), Instant::now()).unwrap();
    assert_eq!(driver.used(), heads.map(|head| (u32::from(head), 0)));
    assert!(receive(&host).is_none());
    let (ring, dropped) = tx.finish();
    assert_eq!((dropped, ring.state().next_avail, ring.state().next_used), (3, 3, 3));
}

#[test]
fn without_a_cable_frames_are_taken_and_lost() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0, 16);
    driver.offer(&[(BUFFERS, 100, false)]);
    let mut tx = Tx::new(driver.ring(), unlimited());
    assert_eq!(tx.turn(&memory, None, Instant::now()).unwrap().turn, Turn::Idle);
    assert_eq!(driver.used().len(), 1);
    assert_eq!(tx.finish().1, 1);
}

#[test]
fn a_limit_puts_the_rest_off() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0, 16);
    for _ in 0..10 {
        driver.offer(&[(BUFFERS, 112, false)]);
    }
    let (tap, host) = cable();
    let now = Instant::now();
    let limit = RateLimit { bytes: BytesPerSec(2500), ops_per_sec: 0 };
    let mut tx = Tx::new(driver.ring(), RateLimiter::new(&limit, now));
    let turned = tx.turn(&memory, Some(tap.as_fd()), now).unwrap();
    // 250 bytes were saved up: two frames of 100, and a third into debt.
    let Turn::NotBefore(later) = turned.turn else { panic!("{turned:?}") };
    assert_eq!(later - now, Duration::from_millis(20) + Duration::from_nanos(1));
    assert_eq!(driver.used().len(), 3);
    tx.turn(&memory, Some(tap.as_fd()), later).unwrap();
    assert_eq!(driver.used().len(), 1);
    assert_eq!(std::iter::from_fn(|| receive(&host)).count(), 4);
}

/// Offers `count` buffers of `bytes` each, side by side.
fn offer_buffers(driver: &mut Driver<'_>, count: u64, bytes: u32) {
    for number in 0..count {
        driver.offer(&[(BUFFERS + number * u64::from(bytes), bytes, true)]);
    }
}

fn num_buffers(memory: &GuestRam) -> u16 {
    memory.read_obj(GuestAddress(BUFFERS + 10)).unwrap()
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_needs() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0, 128);
    offer_buffers(&mut driver, 100, 1000);
    let (tap, host) = cable();
    let mut rx = Rx::new(driver.ring(), unlimited(), true);
    let sent = frame(2500);
    send(&host, &sent, SendFlags::empty()).unwrap();
    send(&host, &frame(60), SendFlags::empty()).unwrap();
    let turned = rx.turn(&memory, Some(tap.as_fd()), Instant::now()).unwrap().unwrap();
    assert_eq!((turned.turn, turned.interrupt), (Turn::Idle, true));
    assert_eq!(driver.used(), [(0, 1000), (1, 1000), (2, 500), (3, 60)]);
    assert_eq!(num_buffers(&memory), 3);
    let mut got = vec![0; 2500];
    memory.read_slice(&mut got, GuestAddress(BUFFERS)).unwrap();
    assert_eq!(got[12..], sent[12..]);
    let (ring, dropped) = rx.finish();
    assert_eq!((dropped, ring.state().next_avail), (0, 4), "buffers not filled are given back");
}

#[test]
fn a_frame_waits_for_buffers_and_is_whole_then() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0, 16);
    driver.offer(&[(BUFFERS, 1000, true)]);
    let (tap, host) = cable();
    let mut rx = Rx::new(driver.ring(), unlimited(), true);
    let sent = frame(1800);
    send(&host, &sent, SendFlags::empty()).unwrap();
    rx.turn(&memory, Some(tap.as_fd()), Instant::now()).unwrap().unwrap();
    assert_eq!(driver.used(), []);
    driver.offer(&[(BUFFERS + 1000, 1000, true)]);
    rx.turn(&memory, Some(tap.as_fd()), Instant::now()).unwrap().unwrap();
    assert_eq!(driver.used(), [(0, 1000), (1, 800)]);
    assert_eq!(num_buffers(&memory), 2);
    let mut got = vec![0; 1800];
    memory.read_slice(&mut got, GuestAddress(BUFFERS)).unwrap();
    assert_eq!(got[12..], sent[12..]);
}

#[test]
fn a_frame_that_will_never_fit_is_dropped() {
    let memory = memory();
    for mergeable in [false, true] {
        let size = if mergeable { 1 } else { 16 };
        let mut driver = Driver::new(&memory, 0, size);
        driver.show(0);
        driver.offer(&[(BUFFERS, 500, true)]);
        let (tap, host) = cable();
        let mut rx = Rx::new(driver.ring(), unlimited(), mergeable);
        rx.expect(1500);
        send(&host, &frame(501), SendFlags::empty()).unwrap();
        send(&host, &frame(500), SendFlags::empty()).unwrap();
        rx.turn(&memory, Some(tap.as_fd()), Instant::now()).unwrap().unwrap();
        assert_eq!(driver.used(), [(0, 500)]);
        assert_eq!(num_buffers(&memory), 1);
        assert_eq!(rx.finish().1, 1);
        memory.write_slice(&[0; 0x1000], GuestAddress(0x3000)).unwrap();
    }
}

#[test]
fn a_frame_longer_than_the_link_allows_is_not_cut_off_but_dropped() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0, 16);
    driver.offer(&[(BUFFERS, 1530, true)]);
    let (tap, host) = cable();
    let mut rx = Rx::new(driver.ring(), unlimited(), false);
    rx.expect(1530);
    send(&host, &frame(1531), SendFlags::empty()).unwrap();
    send(&host, &frame(1530), SendFlags::empty()).unwrap();
    rx.turn(&memory, Some(tap.as_fd()), Instant::now()).unwrap().unwrap();
    assert_eq!(driver.used(), [(0, 1530)]);
    assert_eq!(rx.finish().1, 1);
}

#[test]
fn a_stopped_device_has_left_no_frame_half_done() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0, 16);
    offer_buffers(&mut driver, 2, 100);
    let (tap, host) = cable();
    let mut rx = Rx::new(driver.ring(), unlimited(), true);
    send(&host, &frame(1800), SendFlags::empty()).unwrap();
    rx.turn(&memory, Some(tap.as_fd()), Instant::now()).unwrap().unwrap();
    let (ring, dropped) = rx.finish();
    assert_eq!((ring.state().next_avail, ring.state().next_used, dropped), (0, 0, 1));
    let mut untouched = [1; 200];
    memory.read_slice(&mut untouched, GuestAddress(BUFFERS)).unwrap();
    assert_eq!(untouched, [0; 200]);
}

#[test]
fn what_makes_no_sense_breaks_the_device_and_nothing_else() {
    let beyond = MEMORY_BYTES as u64;
    let parts: [&[_]; 3] = [&[(beyond, 100, true)], &[(beyond - 1, 2, true)], &[(0x8000, 4, true)]];
    for parts in parts {
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 16);
        driver.offer(parts);
        let (tap, host) = cable();
        send(&host, &frame(100), SendFlags::empty()).unwrap();
        let mut rx = Rx::new(driver.ring(), unlimited(), true);
        rx.turn(&memory, Some(tap.as_fd()), Instant::now()).unwrap_err();
        assert_eq!(driver.used(), []);
    }
    let memory = memory();
    let driver = Driver::new(&memory, 0, 16);
    driver.show(17);
    let (tap, _host) = cable();
    let mut tx = Tx::new(driver.ring(), unlimited());
    tx.turn(&memory, Some(tap.as_fd()), Instant::now()).unwrap_err();
}

#[test]
fn a_peer_that_is_gone_is_told_apart_from_one_that_is_quiet() {
    let memory = memory();
    let mut driver = Driver::new(&memory, 0, 16);
    driver.offer(&[(BUFFERS, 1530, true)]);
    let (tap, host) = cable();
    drop(host);
    let mut rx = Rx::new(driver.ring(), unlimited(), false);
    assert!(rx.turn(&memory, Some(tap.as_fd()), Instant::now()).unwrap().is_err());
}

/// Descriptors, rings and frames of any content: the queues end, in order or as broken.
///
/// The first byte says how many chains there are; then come, for each of two
/// queues, 16 descriptors and 16 entries of the available ring. Most addresses
/// and lengths are made to lie in or near memory, so that the deeper parts are reached.
pub(crate) fn fuzz_net(data: &[u8]) {
    const SIZE: u16 = 16;
    const QUEUE_BYTES: usize = 16 * (16 + 2);
    let memory = memory();
    let (first, data) = data.split_first().unwrap_or((&0, &[]));
    let (tables, frames) = data.split_at(data.len().min(2 * QUEUE_BYTES));
    let drivers = [0, 0x1_0000].map(|base| Driver::new(&memory, base, SIZE));
    for (driver, table) in drivers.iter().zip(tables.chunks(QUEUE_BYTES)) {
        driver.fill(table);
        driver.show(u16::from(first % 32));
    }
    let (tap, host) = cable();
    for (number, bytes) in frames.chunks(256).take(8).enumerate() {
        let _ = send(&host, &bytes.repeat(1 + number * 37), SendFlags::empty());
    }
    let [transmit, receive] = &drivers;
    let mut tx = Tx::new(transmit.ring(), unlimited());
    let mut rx = Rx::new(receive.ring(), unlimited(), first & 0x80 == 0);
    if first & 0x40 == 0 {
        rx.expect(1530);
    }
    let mut control = super::control::Control::new(transmit.ring());
    let announce = std::sync::atomic::AtomicBool::new(true);
    for _ in 0..2 {
        let now = Instant::now();
        let _ = tx.turn(&memory, Some(tap.as_fd()), now);
        let _ = rx.turn(&memory, Some(tap.as_fd()), now);
        let _ = control.turn(&memory, &announce);
    }
    for state in [rx.finish().0.state(), tx.finish().0.state(), control.finish().state()] {
        assert!(state.next_used <= state.next_avail, "more given back than taken: {state:?}");
        assert!(state.next_avail <= 32, "more taken than shown: {state:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_content_of_a_queue_does_harm(data in prop::collection::vec(any::<u8>(), 0..4_000)) {
        fuzz_net(&data);
    }
}
