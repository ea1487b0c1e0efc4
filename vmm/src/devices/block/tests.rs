//! The disk driven as a guest would drive it: registers, rings, requests.

#![allow(clippy::cast_possible_truncation)] // patterns of a byte by intent

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use ballast_model::BytesPerSec;
use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::mmio::Transport;
use crate::devices::virtio::slots::slot;
use crate::devices::virtio::testing::{
    INDIRECT, NEXT, Ring, WRITE, drive, memory, notify, read, wait_for, write,
};
use crate::memory::GuestRam;

const SECTORS: u64 = 128;
const RING: u64 = 0x1000;
const HEADER: u64 = 0x10000;
const STATUS: u64 = 0x11000;
const DATA: u64 = 0x20000;

/// A guest with one disk.
struct Guest {
    _dir: TempDir,
    path: PathBuf,
    memory: GuestRam,
    disk: Arc<Block>,
    transport: Transport,
    ring: Ring,
}

fn vm() -> VmId {
    "web-1".parse().unwrap()
}

fn spec(path: PathBuf) -> DiskSpec {
    DiskSpec { path, readonly: false, shared: true, limit: RateLimit::default() }
}

fn open(spec: &DiskSpec) -> Result<Block, Refusal> {
    Block::open(&vm(), 0, spec, Path::new("/"), Origin::Here)
}

fn guest_with(change: impl FnOnce(&mut DiskSpec), without: u64) -> Guest {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let bytes: Vec<u8> = (0..SECTORS * 512).map(|at| (at / 512) as u8).collect();
    std::fs::write(&path, bytes).unwrap();
    let mut spec = spec(path.clone());
    change(&mut spec);
    let memory = memory(0x100000);
    let disk = Arc::new(open(&spec).unwrap());
    let transport = Transport::new(Arc::clone(&disk) as _, slot(0), memory.clone()).unwrap();
    let ring = Ring::new(&memory, RING, 64);
    drive(&transport, without, &[&ring]);
    Guest { _dir: dir, path, memory, disk, transport, ring }
}

fn guest() -> Guest {
    guest_with(|_| {}, 0)
}

impl Guest {
    fn header(&self, at: u64, kind: u32, sector: u64) {
        self.memory.write_obj(kind, GuestAddress(at)).unwrap();
        self.memory.write_obj(0u32, GuestAddress(at + 4)).unwrap();
        self.memory.write_obj(sector, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(0xeeu8, GuestAddress(STATUS)).unwrap();
    }

    /// One request, start to end: status and how many bytes were written.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32)]) -> (u8, u32) {
        self.header(HEADER, kind, sector);
        let to_guest = kind == 0 || kind == 8;
        let mut parts = vec![(HEADER, 16, false)];
        parts.extend(data.iter().map(|&(address, bytes)| (address, bytes, to_guest)));
        parts.push((STATUS, 1, true));
        self.ring.chain(0, &parts);
        notify(&self.transport, 0);
        let (head, written) = self.ring.wait_used();
        assert_eq!(head, 0);
        (self.memory.read_obj(GuestAddress(STATUS)).unwrap(), written)
    }

    fn at(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    fn on_disk(&self, sector: u64) -> u8 {
        let mut data = [0; 512];
        std::fs::File::open(&self.path).unwrap().read_exact_at(&mut data, sector * 512).unwrap();
        assert!(data.iter().all(|byte| *byte == data[0]));
        data[0]
    }

    fn ranges(&self, ranges: &[(u64, u32, u32)]) -> u32 {
        let mut at = DATA;
        for &(sector, sectors, flags) in ranges {
            self.memory.write_obj(sector, GuestAddress(at)).unwrap();
            self.memory.write_obj(sectors, GuestAddress(at + 8)).unwrap();
            self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
            at += 16;
        }
        u32::try_from(at - DATA).unwrap()
    }

    fn status(&self) -> u32 {
        read(&self.transport, 0x70)
    }
}

#[test]
fn the_configuration_tells_the_truth() {
    let guest = guest();
    let mut capacity = [0; 8];
    guest.transport.read(0x100, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
    assert_eq!(read(&guest.transport, 0x100 + 12), SEGMENTS_MAX);
    assert_eq!(read(&guest.transport, 0x100 + 20), 512);
    assert_eq!(read(&guest.transport, 0x100 + 36), DISCARD_SECTORS_MAX);
    assert_eq!(read(&guest.transport, 0x100 + 58), 0, "beyond its end");
}

#[test]
fn sectors_are_read_into_many_pieces() {
    let mut guest = guest();
    let pieces = [(DATA, 100), (DATA + 0x1000, 412), (DATA + 0x2000, 1024)];
    assert_eq!(guest.request(0, 5, &pieces), (0, 1537));
    assert_eq!(guest.at(DATA, 100), [5; 100]);
    assert_eq!(guest.at(DATA + 0x1000, 412), [5; 412]);
    assert_eq!(guest.at(DATA + 0x2000, 512), [6; 512]);
    assert_eq!(guest.at(DATA + 0x2200, 512), [7; 512]);
}

#[test]
fn what_is_written_is_on_the_disk() {
    let mut guest = guest();
    guest.memory.write_slice(&[0xaa; 1024], GuestAddress(DATA)).unwrap();
    assert_eq!(guest.request(1, 126, &[(DATA, 512), (DATA + 512, 512)]), (0, 1));
    assert_eq!((guest.on_disk(125), guest.on_disk(126), guest.on_disk(127)), (125, 0xaa, 0xaa));
    assert_eq!(guest.request(4, 0, &[]), (0, 1), "flushed");
}

#[test]
fn a_flush_that_failed_is_not_forgotten() {
    for (without, write_status) in [(0, 0), (1 << 9, 1)] {
        let mut guest = guest_with(|_| {}, without);
        guest.disk.acquire().unwrap();
        assert_eq!(guest.request(4, 0, &[]), (0, 1));
        guest.disk.disk.fail_flush();
        assert_eq!(guest.request(4, 0, &[]), (1, 1));
        assert_eq!(guest.request(4, 0, &[]), (1, 1), "the host would say that all is well");
        // Reads go on; a write is refused where its success would mean that it is on the disk.
        assert_eq!(guest.request(0, 7, &[(DATA, 512)]), (0, 513));
        assert_eq!(guest.request(1, 7, &[(DATA, 512)]), (write_status, 1));
        let refusal = guest.disk.release().unwrap_err();
        assert_eq!(refusal.code, RefusalCode::HostFailure, "{refusal}");
        assert_eq!(guest.status() & 0x40, 0, "the device works");
    }
}

#[test]
fn header_and_status_may_be_cut_anywhere() {
    let mut guest = guest();
    guest.header(HEADER, 0, 9);
    let parts = [
        (HEADER, 3, false),
        (HEADER + 3, 0, false),
        (HEADER + 3, 13, false),
        (DATA, 500, true),
        (DATA + 500, 13, true),
    ];
    guest.ring.chain(0, &parts);
    notify(&guest.transport, 0);
    assert_eq!(guest.ring.wait_used(), (0, 513));
    assert_eq!(guest.at(DATA, 512), [9; 512]);
    assert_eq!(guest.at(DATA + 512, 1), [0], "the status is the last byte");
}

#[test]
fn indirect_tables_are_followed() {
    let mut guest = guest();
    guest.header(HEADER, 0, 3);
    let table = 0x30000;
    guest.ring.describe(table, 0, (HEADER, 16, NEXT, 2));
    guest.ring.describe(table, 2, (DATA, 512, NEXT | WRITE, 1));
    guest.ring.describe(table, 1, (STATUS, 1, WRITE, 0));
    guest.ring.describe(RING, 7, (table, 48, INDIRECT, 0));
    guest.ring.offer(7);
    notify(&guest.transport, 0);
    assert_eq!(guest.ring.wait_used(), (7, 513));
    assert_eq!(guest.at(DATA, 512), [3; 512]);
}

#[test]
fn what_cannot_be_done_is_answered_with_an_error() {
    let mut guest = guest();
    assert_eq!(guest.request(0, SECTORS, &[(DATA, 512)]), (1, 1), "beyond the end");
    assert_eq!(guest.request(1, SECTORS - 1, &[(DATA, 1024)]), (1, 1), "over the end");
    assert_eq!(guest.request(0, u64::MAX, &[(DATA, 512)]), (1, 1), "beyond all");
    assert_eq!(guest.request(0, 1 << 60, &[(DATA, 512)]), (1, 1), "beyond all bytes");
    assert_eq!(guest.request(0, 0, &[(DATA, 511)]), (1, 1), "no whole sector");
    assert_eq!(guest.request(99, 0, &[]), (2, 1), "unknown");
    assert_eq!(guest.status(), 15, "the device works on");
}

#[test]
fn the_disk_has_a_name() {
    let mut guest = guest();
    assert_eq!(guest.request(8, 0, &[(DATA, 20)]), (0, 21));
    let id = guest.at(DATA, 20);
    assert!(id.starts_with(b"BLST") && id.is_ascii(), "{id:?}");
    assert_eq!(guest.request(8, 0, &[(DATA + 0x100, 7)]), (0, 8));
    assert_eq!(guest.at(DATA + 0x100, 8), [&id[..7], &[0]].concat());
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let mut guest = guest();
    let blocks = std::fs::metadata(&guest.path).unwrap().blocks();
    let bytes = guest.ranges(&[(8, 8, 0), (64, 32, 0)]);
    assert_eq!(guest.request(11, 0, &[(DATA, bytes)]), (0, 1));
    assert!(std::fs::metadata(&guest.path).unwrap().blocks() < blocks, "room was given back");
    assert_eq!((guest.on_disk(7), guest.on_disk(8), guest.on_disk(16)), (7, 0, 16));
    for (sector, flags) in [(1, 0), (33, 1)] {
        let bytes = guest.ranges(&[(sector, 3, flags)]);
        assert_eq!(guest.request(13, 0, &[(DATA, bytes)]), (0, 1));
        assert_eq!((guest.on_disk(sector), guest.on_disk(sector + 2)), (0, 0));
        assert_eq!(guest.on_disk(sector + 3), (sector + 3) as u8);
    }
    assert_eq!(std::fs::metadata(&guest.path).unwrap().len(), SECTORS * 512);
}

#[test]
fn ranges_out_of_bounds_erase_nothing() {
    let mut guest = guest();
    let mut check = |kind, ranges: &[(u64, u32, u32)], cut, status| {
        let bytes = guest.ranges(ranges) - cut;
        assert_eq!(guest.request(kind, 0, &[(DATA, bytes)]), (status, 1), "{kind} {ranges:?}");
        assert_eq!(guest.on_disk(1), 1);
    };
    for kind in [11, 13] {
        check(kind, &[(1, 1, 0), (SECTORS, 1, 0)], 0, 1);
        check(kind, &[(1, 1, 0), (u64::MAX, 2, 0)], 0, 1);
        check(kind, &[(1, u32::MAX, 0)], 0, 1);
        check(kind, &[(1, 1, 0)], 1, 1);
        check(kind, &[(1, 1, 0)], 16, 1);
        check(kind, &[(1, 1, 2)], 0, 2);
        check(kind, &[(1, 1, 0); 17], 0, 1);
    }
    check(11, &[(1, 1, 1)], 0, 2);
}

#[test]
fn a_readonly_disk_stays_as_it_is() {
    let mut guest = guest_with(|spec| spec.readonly = true, 0);
    assert_eq!(guest.request(0, 5, &[(DATA, 512)]), (0, 513));
    for kind in [1, 11, 13] {
        let bytes = guest.ranges(&[(5, 1, 0)]).next_multiple_of(512);
        assert_eq!(guest.request(kind, 5, &[(DATA, bytes)]), (1, 1));
    }
    assert_eq!(guest.request(4, 0, &[]), (0, 1));
    assert_eq!(guest.on_disk(5), 5);
    write(&guest.transport, 0x14, 0);
    assert_eq!(read(&guest.transport, 0x10) & 1 << 5, 1 << 5, "and says so");
}

#[test]
fn drivers_without_flush_are_served_too() {
    let mut guest = guest_with(|_| {}, 1 << 9);
    guest.memory.write_slice(&[0xbb; 512], GuestAddress(DATA)).unwrap();
    assert_eq!(guest.request(1, 2, &[(DATA, 512)]), (0, 1));
    assert_eq!(guest.on_disk(2), 0xbb);
}

/// Offers a chain; the device must say that it needs a reset, answer nothing, and work after one.
fn check_malformed(offer: impl FnOnce(&mut Guest)) {
    let mut guest = guest();
    guest.header(HEADER, 0, 0);
    offer(&mut guest);
    notify(&guest.transport, 0);
    wait_for("DEVICE_NEEDS_RESET", || (guest.status() == 0x4f).then_some(()));
    assert_eq!(guest.ring.take_used(), None);
    write(&guest.transport, 0x70, 0);
    guest.memory.write_slice(&[0; 0x1000], GuestAddress(RING)).unwrap();
    guest.ring = Ring::new(&guest.memory, RING, 64);
    drive(&guest.transport, 0, &[&guest.ring]);
    assert_eq!(guest.request(0, 1, &[(DATA, 512)]), (0, 513));
}

#[test]
fn malformed_chains_break_the_device_and_nothing_else() {
    check_malformed(|guest| guest.ring.chain(0, &[(HEADER, 16, false)]));
    check_malformed(|guest| guest.ring.chain(0, &[(STATUS, 1, true)]));
    check_malformed(|guest| guest.ring.chain(0, &[(HEADER, 15, false), (STATUS, 1, true)]));
    check_malformed(|guest| guest.ring.chain(0, &[(STATUS, 1, true), (HEADER, 16, false)]));
    check_malformed(|guest| {
        guest.ring.chain(0, &[(HEADER, 16, false), (u64::MAX - 511, 512, true), (STATUS, 1, true)]);
    });
    check_malformed(|guest| {
        guest.ring.chain(0, &[(HEADER, 16, false), (0xfff00, 512, true), (STATUS, 1, true)]);
    });
    // A chain that never ends, one that leaves the table, one that is not there.
    check_malformed(|guest| {
        guest.ring.describe(RING, 0, (HEADER, 16, NEXT, 0));
        guest.ring.offer(0);
    });
    check_malformed(|guest| {
        guest.ring.describe(RING, 0, (HEADER, 16, NEXT, 64));
        guest.ring.offer(0);
    });
    check_malformed(|guest| guest.ring.offer(0xffff));
    // Tables within tables, of odd length, nowhere.
    for (address, bytes, flags) in [
        (0x30000, 16, INDIRECT | NEXT),
        (0x30000, 17, INDIRECT),
        (0x30000, 0, INDIRECT),
        (u64::MAX, 32, INDIRECT),
    ] {
        check_malformed(|guest| {
            guest.ring.describe(0x30000, 0, (0x30000, 16, INDIRECT, 0));
            guest.ring.describe(RING, 0, (address, bytes, flags, 0));
            guest.ring.offer(0);
        });
    }
    // More available than the queue is long.
    check_malformed(|guest| guest.ring.set_avail_index(65));
}

#[test]
fn requests_too_large_are_malformed() {
    check_malformed(|guest| {
        let table = 0x30000;
        for index in 0..200 {
            guest.ring.describe(table, index, (DATA, 16, NEXT, index + 1));
        }
        guest.ring.describe(table, 200, (STATUS, 1, WRITE, 0));
        guest.ring.describe(RING, 0, (table, 201 * 16, INDIRECT, 0));
        guest.ring.offer(0);
    });
    check_malformed(|guest| {
        let table = 0x30000;
        guest.ring.describe(table, 0, (HEADER, 16, NEXT, 1));
        for index in 1..120 {
            guest.ring.describe(table, index, (0, 0x100000, NEXT | WRITE, index + 1));
        }
        guest.ring.describe(table, 120, (STATUS, 1, WRITE, 0));
        guest.ring.describe(RING, 0, (table, 121 * 16, INDIRECT, 0));
        guest.ring.offer(0);
    });
}

/// A request with header and status of its own.
fn offer_write(guest: &mut Guest, number: u16, sector: u64) {
    let at = 0x40000 + u64::from(number) * 0x1000;
    guest.header(at, 1, sector);
    guest.memory.write_slice(&[number as u8 + 1; 512], GuestAddress(at + 0x200)).unwrap();
    guest.memory.write_obj(0xeeu8, GuestAddress(at + 0x100)).unwrap();
    let parts = [(at, 16, false), (at + 0x200, 512, false), (at + 0x100, 1, true)];
    guest.ring.chain(3 * number, &parts);
}

#[test]
fn many_requests_at_a_time_are_each_answered_once() {
    let mut guest = guest();
    for round in 0..8u64 {
        for number in 0..16 {
            offer_write(&mut guest, number, round * 16 + u64::from(number));
            notify(&guest.transport, 0);
        }
        let mut heads: Vec<u16> = (0..16).map(|_| guest.ring.wait_used().0).collect();
        heads.sort_unstable();
        assert_eq!(heads, (0..16).map(|number| 3 * number).collect::<Vec<_>>());
    }
    assert_eq!(guest.ring.take_used(), None);
    for sector in 0..SECTORS {
        assert_eq!(guest.on_disk(sector), (sector % 16) as u8 + 1);
    }
}

#[test]
fn the_rate_limit_holds_and_stops_nobody_from_stopping() {
    let limit = RateLimit { bytes: BytesPerSec::ZERO, ops_per_sec: 10 };
    let mut guest = guest_with(|spec| spec.limit = limit, 0);
    offer_write(&mut guest, 0, 0);
    offer_write(&mut guest, 1, 1);
    offer_write(&mut guest, 2, 2);
    offer_write(&mut guest, 4, 4);
    let begin = std::time::Instant::now();
    notify(&guest.transport, 0);
    // Two are let through at once, the second on credit, each further one after a tenth of a second.
    for _ in 0..4 {
        guest.ring.wait_used();
    }
    assert!(begin.elapsed().as_millis() >= 199, "{:?}", begin.elapsed());
    offer_write(&mut guest, 3, 3);
    notify(&guest.transport, 0);
    guest.transport.pause();
    guest.transport.resume();
    guest.ring.wait_used();
    assert_eq!(guest.on_disk(3), 4);
}

/// What is in the queue when the machine pauses is done before or after, and once.
#[test]
fn nothing_is_lost_or_done_twice_over_a_pause() {
    let mut guest = guest();
    for round in 0..200u64 {
        for number in 0..8 {
            offer_write(&mut guest, number, (round * 8 + u64::from(number)) % SECTORS);
            notify(&guest.transport, 0);
        }
        guest.transport.pause();
        let state = guest.transport.save();
        let mut heads: Vec<u16> =
            std::iter::from_fn(|| guest.ring.take_used()).map(|u| u.0).collect();
        assert_eq!(guest.ring.take_used(), None, "nothing moves while it rests");
        guest.transport.load(&state).unwrap();
        guest.transport.resume();
        while heads.len() < 8 {
            heads.push(guest.ring.wait_used().0);
        }
        heads.sort_unstable();
        assert_eq!(heads, (0..8).map(|number| 3 * number).collect::<Vec<_>>());
    }
    assert_eq!(guest.ring.take_used(), None);
    assert_eq!(guest.status(), 15);
}

#[test]
fn a_truncated_file_is_an_error_for_the_guest() {
    let mut guest = guest();
    std::fs::File::options().write(true).open(&guest.path).unwrap().set_len(512).unwrap();
    assert_eq!(guest.request(0, 0, &[(DATA, 512)]), (0, 513));
    assert_eq!(guest.request(0, 1, &[(DATA, 512)]), (1, 1));
}

#[test]
fn another_disk_at_the_same_path_is_refused() {
    let guest = guest();
    guest.transport.pause();
    let state = guest.transport.save();
    let check = |sectors, readonly, expected: &str| {
        std::fs::File::options()
            .write(true)
            .open(&guest.path)
            .unwrap()
            .set_len(sectors * 512)
            .unwrap();
        let spec = DiskSpec { readonly, ..spec(guest.path.clone()) };
        let disk = Arc::new(open(&spec).unwrap());
        let other = Transport::new(disk, slot(0), guest.memory.clone()).unwrap();
        let refusal = other.load(&state).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Incompatible);
        assert!(refusal.reason.contains(expected), "{refusal}");
    };
    check(SECTORS + 1, false, "129 sectors here");
    check(SECTORS, true, "features");
}

fn check_refused(path: PathBuf, readonly: bool, code: RefusalCode, expected: &str) {
    let refusal = open(&DiskSpec { readonly, ..spec(path) }).unwrap_err();
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(refusal.reason.contains(expected), "{refusal}");
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: usize| {
        let path = dir.path().join(name);
        std::fs::write(&path, vec![0; bytes]).unwrap();
        path
    };
    check_refused(dir.path().join("none"), false, RefusalCode::NotFound, "none");
    check_refused(dir.path().into(), false, RefusalCode::InvalidArgument, "directory");
    check_refused(dir.path().into(), true, RefusalCode::InvalidArgument, "directory");
    check_refused(file("empty", 0), false, RefusalCode::InvalidArgument, "0 bytes");
    check_refused(file("odd", 1000), false, RefusalCode::InvalidArgument, "1000 bytes");
    check_refused("/dev/null".into(), false, RefusalCode::InvalidArgument, "no file");
}

proptest! {
    /// Pieces of any sizes read what is there, and write nothing but them.
    #[test]
    fn any_cut_reads_the_same(cuts in prop::collection::vec(1u32..3000, 1..40)) {
        let mut guest = guest();
        let bytes = cuts.iter().sum::<u32>().next_multiple_of(512).min(SECTORS as u32 * 512);
        let (mut pieces, mut rest, mut at) = (Vec::new(), bytes, DATA);
        for cut in cuts.iter().chain(std::iter::repeat(&bytes)) {
            let now = rest.min(*cut);
            pieces.push((at, now));
            (rest, at) = (rest - now, at + u64::from(now) + 64);
            if rest == 0 {
                break;
            }
        }
        prop_assume!(pieces.len() < 60);
        prop_assert_eq!(guest.request(0, 0, &pieces), (0, bytes + 1));
        let mut expected = (0..SECTORS * 512).map(|at| (at / 512) as u8);
        for (address, bytes) in pieces {
            let read = guest.at(address, bytes as usize + 64);
            let (inside, behind) = read.split_at(bytes as usize);
            prop_assert!(inside.iter().copied().eq(expected.by_ref().take(bytes as usize)));
            prop_assert_eq!(behind, [0; 64]);
        }
    }
}
