//! Devices of a whole machine on the real /dev/kvm, driven where a guest would drive them.

use std::sync::Arc;

use ballast_model::hardware::RateLimit;
use ballast_model::{Bytes as Size, DiskSpec, VmSpec};
use vm_memory::{Bytes, GuestAddress};

use super::virtio::testing::{Ring, drive, notify};
use super::*;
use crate::machine::{Machine, Surroundings};
use crate::memory::PAGE_BYTES;
use crate::migration::dirty::DirtyLog;
use crate::state::MachineState;

const RING: u64 = 0x1000;
const HEADER: u64 = 0x10000;
const DATA: u64 = 0x20000;

fn have_kvm() -> bool {
    let have = Path::new("/dev/kvm").exists();
    if !have {
        eprintln!("SKIPPED: this machine has no /dev/kvm, so no VM was started");
    }
    have
}

/// A VM with a disk whose sectors hold their number.
fn spec(dir: &Path) -> VmSpec {
    let path = dir.join("disk");
    let sectors: Vec<u8> = (0..64u8).flat_map(|sector| [sector; 512]).collect();
    std::fs::write(&path, sectors).unwrap();
    let mut spec = VmSpec::new("probe".parse().unwrap(), 1, Size::mib(16), dir.join("kernel"));
    let limit = RateLimit::default();
    spec.disks.push(DiskSpec { path, readonly: false, shared: true, limit });
    spec
}

fn machine(spec: &VmSpec) -> Machine {
    let around =
        Surroundings { disk_root: "/".into(), on_end: Arc::new(|_: &_| {}), taken: Arc::default() };
    Machine::empty(spec, Beginning::Arrival, &around).unwrap()
}

fn disk(machine: &Machine) -> &Transport {
    &machine.devices.virtio[0]
}

/// Offers a read of eight sectors to page `number` of the data, at descriptor 3 × number.
fn offer_read(memory: &GuestRam, ring: &mut Ring, number: u16) {
    let header = HEADER + 0x100 * u64::from(number);
    memory.write_obj(0u64, GuestAddress(header)).unwrap();
    memory.write_obj(u64::from(number), GuestAddress(header + 8)).unwrap();
    let page = DATA + PAGE_BYTES as u64 * u64::from(number);
    let status = header + 16;
    ring.chain(3 * number, &[(header, 16, false), (page, 4096, true), (status, 1, true)]);
}

fn check_read(memory: &GuestRam, number: u16) {
    let page = DATA + PAGE_BYTES as u64 * u64::from(number);
    let first: u8 = memory.read_obj(GuestAddress(page)).unwrap();
    let last: u8 = memory.read_obj(GuestAddress(page + 4095)).unwrap();
    assert_eq!((u16::from(first), u16::from(last)), (number, number + 7));
}

/// What a device writes while a migration copies memory is in the next round, whenever it comes.
#[test]
fn pages_a_disk_fills_are_sent_again() {
    if !have_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let machine = machine(&spec(dir.path()));
    let memory = machine.memory.mmap();
    let mut ring = Ring::new(memory, RING, 64);
    drive(disk(&machine), 0, &[&ring]);
    let log = DirtyLog::start(&machine).unwrap();
    let all = log.collect().unwrap();
    log.protect(&all, 0..machine.memory.layout().pages()).unwrap();
    let page = |address: u64| address / PAGE_BYTES as u64;
    for number in 0..8 {
        offer_read(memory, &mut ring, number);
        log.collect().unwrap();
        notify(disk(&machine), 0);
        ring.wait_used();
        check_read(memory, number);
        let mut dirty = log.collect().unwrap();
        assert!(dirty.remove(page(DATA) + u64::from(number)), "its data");
        assert!(dirty.remove(page(HEADER)), "its status");
        assert!(dirty.remove(page(RING)), "the used ring");
        assert_eq!(dirty.count(), 0, "and nothing else");
    }
}

/// Requests that are in the queue when a machine is saved are carried out by the machine it is
/// loaded into, each once.
#[test]
fn requests_on_their_way_are_carried_out_at_the_destination() {
    if !have_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let spec = spec(dir.path());
    let source = machine(&spec);
    source.devices.acquire_disks().unwrap();
    let memory = source.memory.mmap();
    let mut ring = Ring::new(memory, RING, 64);
    drive(disk(&source), 0, &[&ring]);
    offer_read(memory, &mut ring, 0);
    notify(disk(&source), 0);
    ring.wait_used();
    for number in 1..8 {
        offer_read(memory, &mut ring, number);
    }
    // Some may be taken before it rests, none while it does.
    notify(disk(&source), 0);
    source.pause().unwrap();
    let state = source.save().unwrap().encode();
    let answered = std::iter::from_fn(|| ring.take_used()).count();
    source.devices.release_disks().unwrap();

    let destination = machine(&spec);
    for page in 0..source.memory.layout().pages() {
        let mut bytes = [0; PAGE_BYTES];
        source.memory.read_page(page, &mut bytes);
        let address = GuestAddress(page * PAGE_BYTES as u64);
        destination.memory.mmap().write_slice(&bytes, address).unwrap();
    }
    destination.load(&MachineState::decode(&state).unwrap()).unwrap();
    destination.devices.acquire_disks().unwrap();
    destination.devices.resume();
    ring.memory = destination.memory.mmap().clone();
    for _ in answered..7 {
        ring.wait_used();
    }
    (0..8).for_each(|number| check_read(&ring.memory, number));
    destination.devices.pause();
    assert_eq!(ring.take_used(), None, "none twice");
    drop(source);
}

#[test]
fn states_of_before_there_were_virtio_devices_still_load() {
    if !have_kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let machine = machine(&spec(dir.path()));
    let state = machine.devices.save();
    let mut encoder = Encoder::default();
    state.com1.encode(&mut encoder);
    let bytes = encoder.finish();
    let mut decoder = Decoder::new(&bytes);
    let decoded = DevicesState::decode(&mut decoder, 1).unwrap();
    decoder.finish("the end").unwrap();
    assert_eq!(decoded, DevicesState { com1: state.com1.clone(), virtio: vec![] });
    machine.devices.load(&decoded).unwrap();
    assert_eq!(machine.devices.save(), state, "virtio devices are in reset");
}
