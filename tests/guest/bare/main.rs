//! The probe guest: a program that owns a whole machine and shows whether what
//! moves it keeps it whole. See docs/probe-guest.md.
//!
//! | file | what it does |
//! | --- | --- |
//! | `entry.s` | entry from the VMM or from PVH, descriptor tables, ring 0 |
//! | `hypercall` | asks ring 0 for a timer and for sleep |
//! | `boot_info` | reads the command line and the size of memory |
//! | `params` | the command line as a value, with its `defaults` |
//! | `timeline` | a counter's value as time |
//! | `clock` | time by the TSC, sleep, and the time that went missing |
//! | `console` | lines on COM1 |
//! | `layout` | where the memory is that it checks |
//! | `pattern` | what a page holds |
//! | `memory` | writes and checks the pages |
//! | `virtio` | drivers for network cards and disks |
//! | `net` | TCP: an echo service and a request counter |
//! | `log` | an append-only log on the disk, made of `record`s |
//! | `devices` | the network and the log as one, and what they have to say |
//! | `bench` | measures the devices instead of all that |
//! | `others` | what vCPUs other than the first do |
//! | `work` | heartbeats, load and sleep |
//! | `rt` | memory routines and the panic handler |
//!
//! The first vCPU does everything but `others`. No interrupts but the timer that ends a sleep.

#![no_std]
#![no_main]

mod bench;
mod boot_info;
mod clock;
mod console;
mod defaults;
mod devices;
mod hypercall;
mod layout;
mod log;
mod memory;
mod net;
mod others;
mod params;
mod pattern;
mod record;
mod rt;
mod timeline;
mod virtio;
mod work;

use core::arch::global_asm;
use core::arch::x86_64::__cpuid;
use core::fmt::Write;

use clock::Clock;
use console::Line;
use devices::Devices;
use layout::Layout;
use memory::Memory;
use params::Params;
use pattern::Pattern;
use work::Worker;

/// Above it, guest memory may have a hole for devices.
const MEMORY_END_MAX: u64 = 3 << 30;

const CPUID_X2APIC: u32 = 1 << 21;

global_asm!(include_str!("entry.s"), options(att_syntax));

/// The program, in ring 3, with the physical address of a `hvm_start_info`.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) -> ! {
    console::init();
    // In every KVM's own interrupt controller, whatever the CPU.
    if __cpuid(1).ecx & CPUID_X2APIC == 0 {
        fatal(format_args!("no x2APIC: use KVM with the in-kernel interrupt controller"));
    }
    hypercall::start_timer();
    let info = boot_info::read(start_info).unwrap_or_else(|why| fatal(format_args!("{why}")));
    let params = Params::parse(info.cmdline()).unwrap_or_else(|why| fatal(format_args!("{why}")));
    let Some(mut clock) = Clock::start(params.tsc_khz) else {
        fatal(format_args!("TSC frequency unknown or not plausible: give tsc_khz="))
    };
    let layout =
        Layout::new(params.working_set_mib, params.static_mib, params.zero_mib, params.high_mib);
    let room = info.memory_end.min(MEMORY_END_MAX);
    if layout.end() > room {
        let (needs, has) = (layout.end().div_ceil(1 << 20), room >> 20);
        fatal(format_args!("memory parameters need {needs} MiB, the VM has {has} MiB"));
    }
    if params.high_mib > 0 && layout.high.end > info.high_end {
        let (needs, has) = (params.high_mib, info.high_end.saturating_sub(layout.high.start) >> 20);
        fatal(format_args!("high_mib needs {needs} MiB at 4 GiB, the VM has {has} MiB there"));
    }
    greet(&params, &mut clock);
    if let Some(task) = params.bench {
        let why = bench::run(task, &params, &layout, &mut clock);
        fatal(format_args!("benchmark: {why}"));
    }
    let devices = Devices::start(&params, &mut clock)
        .unwrap_or_else(|(device, why)| fatal(format_args!("{device} {why}")));
    let pattern = Pattern { seed: params.seed, repeat: params.repeat as usize };
    Worker::new(clock, Memory::new(&layout, pattern), devices, &params).run()
}

/// The first line: the protocol's version, and what the guest was told to do.
fn greet(params: &Params<'_>, clock: &mut Clock) {
    let mut line = Line::new();
    // A line takes what fits and never fails.
    let _ = write!(
        line,
        "B 1 {} hb={} duty={} ws={} high={} static={} zero={} dirty={} check={} khz={}",
        params.name,
        params.heartbeat_ms,
        params.duty_percent,
        params.working_set_mib,
        params.high_mib,
        params.static_mib,
        params.zero_mib,
        params.dirty_mib_per_sec,
        params.check_mib_per_sec,
        clock.frequency()
    );
    line.send(clock);
}

/// An exception that was no request, from ring 0 by way of `entry.s`.
#[unsafe(no_mangle)]
extern "C" fn guest_exception(vector: u64, error: u64, instruction: u64, address: u64) -> ! {
    fatal(format_args!(
        "exception {vector} error {error:#x} at {instruction:#x} address {address:#x}"
    ))
}

/// Says why the guest cannot go on, and stays idle.
fn fatal(why: core::fmt::Arguments<'_>) -> ! {
    let mut clock = Clock::unknown();
    let mut line = Line::new();
    let _ = write!(line, "FATAL {why}");
    line.send(&mut clock);
    loop {
        hypercall::sleep(u32::MAX);
    }
}
