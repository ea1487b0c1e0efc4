//! The probe guest on the least machine: it boots, it goes on, and it finds
//! memory that is not as it should be.

#![allow(clippy::unwrap_used)] // a test ends where its machine does

#[path = "support/mini.rs"]
mod mini;

use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use ballast_guest::{Console, ConsoleReport, IMAGE, PAGE_BYTES, Params};
use ballast_vmm::{GuestRam, boot};
use mini::{Mini, Running};
use vm_memory::{Bytes, GuestAddress};

/// Far more than anything here takes, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
const MEMORY_MIB: usize = 32;

/// Small, and checked all over several times a second.
fn quick() -> Params {
    Params {
        heartbeat_ms: 20,
        working_set_mib: 2,
        static_mib: 2,
        zero_mib: 2,
        check_mib_per_sec: 64,
        ..Params::default()
    }
}

fn order<'a>(kernel: &'a std::path::Path, cmdline: &'a str, tsc_khz: u32) -> boot::Order<'a> {
    boot::Order { kernel, initrd: None, cmdline, vcpus: 1, tsc_khz, devices: &[] }
}

/// A machine about to run the probe guest; `None`, said aloud, where there is no KVM.
fn machine(cmdline: &str) -> Option<Mini> {
    if !std::path::Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED: this machine has no /dev/kvm");
        return None;
    }
    let machine = Mini::new(MEMORY_MIB).unwrap();
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), IMAGE).unwrap();
    let khz = machine.vcpu().get_tsc_khz().unwrap();
    let state = boot::load(machine.memory(), &order(image.path(), cmdline, khz)).unwrap();
    state.apply(machine.vcpu(), 0).unwrap();
    Some(machine)
}

/// A running guest and what it has said.
struct Guest {
    running: Running,
    console: Console,
}

impl Guest {
    fn boot(params: &Params) -> Option<Self> {
        Some(Self::start(machine(&params.to_cmdline())?, Console::new()))
    }

    fn start(machine: Mini, console: Console) -> Self {
        Self { running: machine.start().unwrap(), console }
    }

    fn listen_until(&mut self, what: &str, done: impl Fn(&ConsoleReport) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self.console.report()) {
            let patience = deadline.saturating_duration_since(Instant::now());
            match self.running.console.recv_timeout(patience) {
                Ok(bytes) => self.console.push(self.console.next_offset(), &bytes),
                Err(RecvTimeoutError::Timeout) => panic!("{what}: {:#?}", self.console.report()),
                Err(RecvTimeoutError::Disconnected) => panic!("{what}: the vCPU ended"),
            }
        }
    }

    fn listen_for_passes(&mut self, passes: u64) {
        let goal = self.console.report().check_passes + passes;
        self.listen_until("check passes", |report| report.check_passes >= goal);
    }

    fn stop(mut self) -> (Mini, Console) {
        let (machine, unread) = self.running.stop().unwrap();
        for bytes in unread.try_iter() {
            self.console.push(self.console.next_offset(), &bytes);
        }
        (machine, self.console)
    }
}

#[test]
fn the_guest_boots_and_checks_its_memory() {
    for params in [
        quick(),
        Params { dirty_mib_per_sec: 8, ..quick() },
        Params { duty_percent: 50, dirty_mib_per_sec: 1, ..quick() },
    ] {
        let Some(mut guest) = Guest::boot(&params) else { return };
        guest.listen_until("heartbeats", |report| report.heartbeats >= 5);
        guest.listen_for_passes(2);
        let (_, console) = guest.stop();
        let report = console.report();
        assert_eq!(report.faults(), Vec::<String>::new(), "{params:?}");
        assert_eq!(report.boots, 1);
        assert!(report.guest_time >= Duration::from_millis(80));
    }
}

#[test]
fn the_working_set_is_rewritten_at_the_rate_asked_for() {
    let params = Params { dirty_mib_per_sec: 4, ..quick() };
    let Some(mut guest) = Guest::boot(&params) else { return };
    guest.listen_until("a second", |report| report.guest_time >= Duration::from_secs(1));
    let (machine, console) = guest.stop();
    let table = params.layout().generations;
    let mut rewrites = 0u64;
    for entry in table.step_by(4) {
        rewrites += u64::from(machine.memory().read_obj::<u32>(GuestAddress(entry)).unwrap());
    }
    // A guest that gets no CPU rewrites less, and none rewrites more than it was told.
    let most = 4 * 256 * (console.report().guest_time.as_secs() + 1);
    assert!((1..=most).contains(&rewrites), "{rewrites} pages rewritten");
}

/// Boots the guest, has something done to its memory while it stands still, and waits for its verdict.
fn check_found(params: &Params, damage: impl Fn(&GuestRam), errors: u64, expected: &str) {
    let Some(mut guest) = Guest::boot(params) else { return };
    guest.listen_for_passes(1);
    let (machine, console) = guest.stop();
    assert_eq!(console.report().faults(), Vec::<String>::new());
    damage(machine.memory());
    let mut guest = Guest::start(machine, console);
    guest.listen_until(expected, |report| report.memory_errors >= errors);
    guest.listen_for_passes(2);
    let report = guest.console.report();
    assert_eq!(report.memory_errors, errors, "counted once each: {report:#?}");
    assert_eq!(report.error_lines.len() as u64, errors);
    assert!(report.error_lines.iter().any(|line| line == expected), "{report:#?}");
    guest.stop();
}

fn read(memory: &GuestRam, address: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn write(memory: &GuestRam, address: u64, bytes: &[u8]) {
    memory.write_slice(bytes, GuestAddress(address)).unwrap();
}

#[test]
fn a_changed_byte_is_found_in_every_kind_of_page() {
    let layout = quick().layout();
    let check = |page_start: u64, expected: &str| {
        let at = page_start + PAGE_BYTES - 1;
        let flip = |memory: &GuestRam| write(memory, at, &[read(memory, at, 1)[0] ^ 1]);
        check_found(&quick(), flip, 1, expected);
    };
    let pages = (layout.working_set.end - layout.working_set.start) / PAGE_BYTES;
    check(layout.working_set.start, "page 0 gen 0 is torn");
    check(layout.unchanging.start, &format!("page {pages} gen 0 is torn"));
    check(layout.zero.start, &format!("page {} zero holds data", 2 * pages));
}

#[test]
fn pages_that_took_each_others_place_are_found() {
    let first = quick().layout().working_set.start;
    let (second, third) = (first + PAGE_BYTES, first + 2 * PAGE_BYTES);
    let swap = |memory: &GuestRam| {
        let (one, other) = (read(memory, first, 4096), read(memory, third, 4096));
        write(memory, first, &other);
        write(memory, third, &one);
    };
    check_found(&quick(), swap, 2, "page 2 gen 0 holds page 0 gen 0");
    let lose = |memory: &GuestRam| write(memory, second, &[0; 4096]);
    check_found(&quick(), lose, 1, "page 1 gen 0 holds zeroes");
}

#[test]
fn a_write_that_was_lost_is_found() {
    // The page as it was one generation ago, in a guest that rewrites it all the time.
    let params = Params { dirty_mib_per_sec: 16, check_mib_per_sec: 0, ..quick() };
    let Some(mut guest) = Guest::boot(&params) else { return };
    guest.listen_until("heartbeats", |report| report.heartbeats >= 3);
    let (machine, console) = guest.stop();
    let (page, generation) = (params.layout().working_set.start, params.layout().generations.start);
    let old = (read(machine.memory(), page, 4096), read(machine.memory(), generation, 4));
    let (mut machine, mut console) = (machine, console);
    // One round over 2 MiB takes an eighth of a second, and longer on a busy host.
    while read(machine.memory(), generation, 4) == old.1 {
        let mut guest = Guest::start(machine, console);
        let later = guest.console.report().heartbeats + 5;
        guest.listen_until("rewrites", |report| report.heartbeats >= later);
        (machine, console) = guest.stop();
        assert!(console.report().guest_time < PATIENCE, "the page is not rewritten");
    }
    write(machine.memory(), page, &old.0);
    let mut guest = Guest::start(machine, console);
    guest.listen_until("the verdict", |report| report.memory_errors > 0);
    let old = u32::from_le_bytes(old.1.try_into().unwrap());
    let line = &guest.console.report().error_lines[0];
    assert!(
        line.starts_with("page 0 gen ") && line.ends_with(&format!(" holds gen {old}")),
        "{line}"
    );
    guest.stop();
}

#[test]
fn changed_code_is_found() {
    let name = b"Xen\0"; // in a note: read at boot only, and part of the program's image
    let change = |memory: &GuestRam| {
        let image = read(memory, 1 << 20, 1 << 19);
        let at = image.windows(name.len()).position(|window| window == name).unwrap();
        write(memory, (1 << 20) + at as u64, b"Zen\0");
    };
    check_found(&quick(), change, 1, "code changed");
}

#[test]
fn further_vcpus_start_with_the_first_where_the_image_has_room_for_them() {
    let Some(machine) = machine("") else { return };
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), IMAGE).unwrap();
    let state = boot::load(machine.memory(), &order(image.path(), "", 2_600_000)).unwrap();
    for (index, expected) in [
        (1, kvm_bindings::KVM_MP_STATE_RUNNABLE),
        (31, kvm_bindings::KVM_MP_STATE_RUNNABLE),
        (32, kvm_bindings::KVM_MP_STATE_UNINITIALIZED),
    ] {
        let vcpu = machine.add_vcpu(index.into()).unwrap();
        state.apply(&vcpu, index).unwrap();
        assert_eq!(vcpu.get_mp_state().unwrap().mp_state, expected, "vCPU {index}");
    }
}

#[test]
fn wrong_parameters_end_in_a_clear_line() {
    for (cmdline, expected) in [
        ("duty=101", "duty=101: use 0 to 100"),
        ("quiet", "quiet: unknown parameter, see docs/probe-guest.md"),
        ("ws_mib=100", "memory parameters need 111 MiB, the VM has 32 MiB"),
    ] {
        let Some(machine) = machine(cmdline) else { return };
        let mut guest = Guest::start(machine, Console::new());
        guest.listen_until(expected, |report| !report.fatal_lines.is_empty());
        assert_eq!(guest.console.report().fatal_lines, [expected]);
        guest.stop();
    }
}

#[test]
fn an_exception_of_the_program_itself_ends_in_a_clear_line() {
    let params = Params { duty_percent: 100, ..quick() };
    let Some(mut guest) = Guest::boot(&params) else { return };
    guest.listen_until("a heartbeat", |report| report.heartbeats >= 1);
    let (machine, console) = guest.stop();
    let next = machine.vcpu().get_regs().unwrap().rip;
    let undefined = [0x0f, 0x0b];
    machine.memory().write_slice(&undefined, GuestAddress(next)).unwrap();
    let mut guest = Guest::start(machine, console);
    guest.listen_until("its end", |report| !report.fatal_lines.is_empty());
    let line = &guest.console.report().fatal_lines[0];
    assert!(line.starts_with(&format!("exception 6 error 0x0 at {next:#x}")), "{line}");
    guest.stop();
}

/// Moves the guest to another machine after a pause. `lose` may spoil the APIC's state.
fn check_moved(
    params: &Params,
    pause: Duration,
    lose: impl Fn(&mut kvm_bindings::kvm_lapic_state),
) {
    let Some(mut guest) = Guest::boot(params) else { return };
    guest.listen_for_passes(1);
    for _ in 0..3 {
        let (old, console) = guest.stop();
        std::thread::sleep(pause);
        let mut state = old.save().unwrap();
        lose(&mut state.lapic);
        let new = Mini::new(MEMORY_MIB).unwrap();
        let mut memory = vec![0; MEMORY_MIB << 20];
        old.memory().read_slice(&mut memory, GuestAddress(0)).unwrap();
        new.memory().write_slice(&memory, GuestAddress(0)).unwrap();
        drop(old);
        new.restore(&state).unwrap();
        guest = Guest::start(new, console);
        let heartbeats = guest.console.report().heartbeats + 3;
        guest.listen_until("heartbeats", |report| report.heartbeats >= heartbeats);
        guest.listen_for_passes(1);
    }
    let (_, console) = guest.stop();
    assert_eq!(console.report().faults(), Vec::<String>::new());
    assert_eq!(console.report().boots, 1);
}

#[test]
fn the_guest_goes_on_in_another_machine() {
    let busy = Params { duty_percent: 30, dirty_mib_per_sec: 8, ..quick() };
    check_moved(&quick(), Duration::ZERO, |_| ());
    check_moved(&busy, Duration::ZERO, |_| ());
}

#[test]
fn the_guest_survives_the_loss_of_a_timer_interrupt() {
    const REQUESTED: std::ops::Range<usize> = 0x200..0x280;
    // The timer runs out while the guest stands still, and its interrupt goes nowhere.
    let pause = Duration::from_millis(3 * u64::from(quick().heartbeat_ms));
    check_moved(&quick(), pause, |lapic| lapic.regs[REQUESTED].fill(0));
}
