//! The probe guest: a program that owns a whole machine and shows whether what
//! moves it keeps it whole. See docs/probe-guest.md.
//!
//! | file | what it does |
//! | --- | --- |
//! | `entry.s` | entry from the VMM or from PVH, descriptor tables, ring 0 |
//! | `hypercall` | asks ring 0 for a timer and for sleep |
//! | `boot_info` | reads the command line and the size of memory |
//! | `params` | the command line as a value |
//! | `clock` | time by the TSC, and the time that went missing |
//! | `console` | lines on COM1 |
//! | `rt` | memory routines and the panic handler |
//!
//! One thread, no interrupts but the timer that ends a sleep.

#![no_std]
#![no_main]

mod boot_info;
mod clock;
mod console;
mod hypercall;
mod params;
mod rt;

use core::arch::global_asm;
use core::fmt::Write;

use clock::Clock;
use console::Line;
use params::Params;

global_asm!(include_str!("entry.s"), options(att_syntax));

/// The program, in ring 3, with the physical address of a `hvm_start_info`.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) -> ! {
    console::init();
    hypercall::start_timer();
    let info = match boot_info::read(start_info) {
        Ok(info) => info,
        Err(why) => fatal(format_args!("{why}")),
    };
    let params = match Params::parse(info.cmdline()) {
        Ok(params) => params,
        Err(why) => fatal(format_args!("{why}")),
    };
    let Some(mut clock) = Clock::start(params.tsc_khz) else {
        fatal(format_args!("TSC frequency unknown: give tsc_khz="))
    };
    let mut next = 0;
    let mut number = 0u64;
    loop {
        clock.sleep_until(next);
        let now = clock.tick();
        let mut line = Line::new();
        let _ = write!(line, "H {number} {} p0 e0", now / 1_000_000);
        line.send(&mut clock);
        number += 1;
        next += params.heartbeat_nanos;
    }
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
