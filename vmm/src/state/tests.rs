//! Saving and loading on the real /dev/kvm, with the probe guest.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballast_guest::{Console, Params};
use ballast_model::{Bytes, VmSpec};

use super::*;
use crate::devices::Beginning;
use crate::machine::Surroundings;
use crate::memory::PAGE_BYTES;

const PATIENCE: Duration = Duration::from_secs(60);

fn have_kvm() -> bool {
    let have = Path::new("/dev/kvm").exists();
    if !have {
        eprintln!("SKIPPED: this machine has no /dev/kvm, so no VM was started");
    }
    have
}

fn quiet() -> Surroundings {
    Surroundings {
        disk_root: "/".into(),
        on_end: Arc::new(|why: &crate::power::GuestEnd| eprintln!("the guest ended: {why}")),
        taken: Arc::default(),
    }
}

/// A guest that has run for a while and is paused, and what is needed to build its like.
fn paused_guest(vcpus: u32) -> (tempfile::TempDir, VmSpec, Machine) {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("guest");
    std::fs::write(&kernel, ballast_guest::IMAGE).unwrap();
    let params = Params { heartbeat_ms: 10, duty_percent: 50, ..Params::default() };
    let spec = VmSpec {
        cmdline: params.to_cmdline(),
        ..VmSpec::new("probe".parse().unwrap(), vcpus, Bytes::mib(32), kernel)
    };
    let machine = Machine::boot(&spec, &quiet()).unwrap();
    machine.resume().unwrap();
    heartbeats(&machine, 5);
    machine.pause().unwrap();
    (dir, spec, machine)
}

/// Waits until the guest has said `count` heartbeats in all, without a fault.
fn heartbeats(machine: &Machine, count: u64) {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut console = Console::new();
        console.push(0, &machine.devices.console.read(0).1);
        if console.report().heartbeats >= count {
            assert_eq!(console.report().faults(), Vec::<String>::new());
            return;
        }
        assert!(Instant::now() < end, "{:?}", console.report());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn copy_memory(from: &Machine, to: &Machine) {
    for page in 0..from.memory.layout().pages() {
        let (from, to) = (from.memory.page(page).unwrap(), to.memory.page(page).unwrap());
        // SAFETY: both pages are mapped, and neither machine runs.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), PAGE_BYTES) };
    }
}

/// What stays the same as long as the machine does not run.
fn still(mut state: MachineState) -> MachineState {
    state.vcpus = state.vcpus.into_iter().map(VcpuState::without_time).collect();
    state.board = state.board.without_time();
    state.time = TimeState::none();
    state
}

fn check_exact(vcpus: u32) {
    let (_dir, spec, source) = paused_guest(vcpus);
    let saved = source.save().unwrap();
    assert_eq!(still(source.save().unwrap()), still(saved.clone()), "saving changes nothing");
    let bytes = saved.encode();
    let decoded = MachineState::decode(&bytes).unwrap();
    assert_eq!(decoded, saved);

    let destination = Machine::empty(&spec, Beginning::Arrival, &quiet()).unwrap();
    copy_memory(&source, &destination);
    drop(source);
    destination.load(&decoded).unwrap();
    let again = destination.save().unwrap();
    assert_eq!(still(again), still(saved));

    let beats = {
        let mut console = Console::new();
        console.push(0, &destination.devices.console.read(0).1);
        console.report().heartbeats
    };
    decoded.start_time(&destination).unwrap();
    destination.resume().unwrap();
    heartbeats(&destination, beats + 20);
}

#[test]
fn what_is_loaded_is_what_was_saved_and_goes_on() {
    if have_kvm() {
        check_exact(1);
    }
}

#[test]
fn vcpus_that_wait_for_their_start_are_saved_too() {
    if have_kvm() {
        check_exact(3);
    }
}

#[test]
fn damaged_states_are_refused_and_never_panic() {
    if !have_kvm() {
        return;
    }
    let (_dir, _spec, machine) = paused_guest(1);
    let bytes = machine.save().unwrap().encode();
    for end in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        assert!(MachineState::decode(&bytes[..end]).is_err(), "cut at {end}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(MachineState::decode(&longer).is_err(), "longer");
    for at in (0..bytes.len()).step_by(13) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0xff;
        let _ = MachineState::decode(&flipped);
    }
    let mut newer = bytes;
    newer[4] = 9;
    let refused = MachineState::decode(&newer).unwrap_err();
    assert_eq!(refused, Malformed("the version of the saved state"));
}
