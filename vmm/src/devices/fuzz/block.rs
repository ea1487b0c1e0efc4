//! A disk under a hostile driver.

use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use ballast_model::DiskSpec;
use ballast_model::hardware::RateLimit;
use vm_memory::{Bytes, GuestAddress};

use super::engine::Input;
use crate::devices::block::testing::ServedHere;
use crate::devices::virtio::testing::{Ring, memory};
use crate::memory::GuestRam;

const MEMORY_BYTES: usize = 256 << 10;
const RING: u64 = 0x1000;
const SIZE: u16 = 16;
const TABLE: u64 = 0x4000;
const HEADERS: u64 = 0x8000;
const DATA: u64 = 0x1_0000;
const DISK_BYTES: u64 = 64 << 10;
/// The most serving one input asks for.
const TURNS_MAX: usize = 32;

/// One disk for all inputs, in memory: what it holds is of no importance.
fn disk() -> &'static std::fs::File {
    static DISK: OnceLock<std::fs::File> = OnceLock::new();
    DISK.get_or_init(|| {
        let file = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = std::fs::File::from(file);
        file.set_len(DISK_BYTES).unwrap();
        file
    })
}

fn spec(readonly: bool) -> DiskSpec {
    let path = format!("/proc/self/fd/{}", disk().as_raw_fd()).into();
    DiskSpec { path, readonly, shared: true, limit: RateLimit::default() }
}

/// The input is a program: what a driver puts where, and when the disk looks.
pub(super) fn fuzz_block(data: &[u8]) {
    let mut input = Input(data);
    let memory = memory(MEMORY_BYTES);
    let mut ring = Ring::new(&memory, RING, SIZE);
    let mode = input.u8();
    let served =
        ServedHere::new(&spec(mode & 1 != 0), &memory, ring.queue(mode & 2 != 0), mode & 4 == 0);
    let (mut offered, mut turns) = (0, 0);
    while !input.is_empty() && turns < TURNS_MAX {
        match input.u8() % 8 {
            0 => describe(&mut input, &ring, RING, SIZE),
            1 => describe(&mut input, &ring, TABLE, 64),
            2 => header(&mut input, &memory),
            3 => {
                ring.offer(head(&mut input));
                offered += 1;
            }
            4 => {
                served.serve();
                turns += 1;
            }
            5 => {
                ring.set_avail_index(input.u16());
                // As many as the ring has places, each time it is looked at.
                offered += usize::from(SIZE);
            }
            6 => {
                let (at, value) = (input.u16(), input.u64());
                memory.write_obj(value, GuestAddress(at.into())).unwrap();
            }
            _ => {
                request(&mut input, &mut ring);
                offered += 1;
            }
        }
    }
    served.serve();
    let answers = usize::from(served.queue().next_used);
    assert!(answers <= offered, "{answers} answers to {offered} requests");
    assert_eq!(disk().metadata().unwrap().len(), DISK_BYTES, "a disk keeps its size");
}

/// Mostly where something is, sometimes anywhere.
fn address(input: &mut Input<'_>) -> u64 {
    let offset = u64::from(input.u16());
    match input.u8() % 8 {
        0 => HEADERS + offset % 0x100,
        1..=3 => DATA + offset,
        4 => RING + offset % 0x400,
        5 => TABLE + offset % 0x400,
        6 => MEMORY_BYTES as u64 - offset % 64,
        _ => input.u64(),
    }
}

fn length(input: &mut Input<'_>) -> u32 {
    let length = u32::from(input.u16());
    match input.u8() % 8 {
        0 => 1,
        1 => 16,
        2 => length % 64,
        3 => length % 64 * 16,
        4..=5 => length % 16 * 512,
        6 => length,
        _ => input.u32(),
    }
}

fn head(input: &mut Input<'_>) -> u16 {
    let head = input.u16();
    if head < 0xff00 { head % SIZE } else { head }
}

fn describe(input: &mut Input<'_>, ring: &Ring, table: u64, entries: u16) {
    let index = input.u16() % entries;
    let (address, length) = (address(input), length(input));
    let flags = u16::from(input.u8() % 8);
    let next = if input.u8() < 0xf0 { input.u16() % entries } else { input.u16() };
    ring.describe(table, index, (address, length, flags, next));
}

fn kind(input: &mut Input<'_>) -> u32 {
    const KINDS: [u32; 7] = [0, 1, 4, 8, 11, 13, 2];
    let kind = input.u8();
    KINDS.get(usize::from(kind % 8)).copied().unwrap_or(kind.into())
}

fn header(input: &mut Input<'_>, memory: &GuestRam) {
    let at = GuestAddress(HEADERS + 16 * u64::from(input.u8() % 16));
    let sector = if input.u8() < 0xe0 { u64::from(input.u8()) } else { input.u64() };
    memory.write_obj(u64::from(kind(input)), at).unwrap();
    memory.write_obj(sector, GuestAddress(at.0 + 8)).unwrap();
}

/// A request as drivers make them, but for a part or two.
fn request(input: &mut Input<'_>, ring: &mut Ring) {
    let first = input.u16() % SIZE;
    let at = HEADERS + 16 * u64::from(first);
    let kind = kind(input);
    ring.memory.write_obj(u64::from(kind), GuestAddress(at)).unwrap();
    ring.memory.write_obj(u64::from(input.u8()), GuestAddress(at + 8)).unwrap();
    let mut parts = vec![(at, 16, false)];
    for _ in 0..input.u8() % 6 {
        parts.push((address(input), length(input), kind == 0 || kind == 8));
    }
    parts.push((HEADERS + 0x200 + u64::from(first), 1, true));
    ring.chain(first.min(SIZE - 8), &parts);
}
