//! What the guest does all day: heartbeats, rewriting, checking, burning, sleep.
//!
//! Time is cut into periods. Each period has so many pages to rewrite, so many
//! to check, and so much running time to use up; what is over, the guest
//! sleeps. A period that could not do its work (no CPU to be had, a switchover)
//! passes at most one period's work on to the next.

use core::fmt::Write;

use crate::clock::Clock;
use crate::console::Line;
use crate::devices::Devices;
use crate::memory::Memory;
use crate::others::Others;
use crate::params::Params;
use crate::timeline::Nanos;

const NANOS_PER_MS: Nanos = 1_000_000;
const PAGES_PER_MIB: u64 = 256;
/// Rounds of arithmetic between two looks at the clock: some 2 µs.
const BURN_ROUNDS: u32 = 2_000;

pub struct Worker {
    clock: Clock,
    memory: Memory,
    devices: Devices,
    heartbeat: Heartbeat,
    period: Period,
}

impl Worker {
    pub fn new(clock: Clock, memory: Memory, devices: Devices, params: &Params<'_>) -> Self {
        let (heartbeat, period) = (Heartbeat::new(params), Period::new(params));
        Self { clock, memory, devices, heartbeat, period }
    }

    pub fn run(mut self) -> ! {
        loop {
            let now = self.clock.tick();
            self.heartbeat.beat_if_due(now, &mut self.clock, &self.memory, &self.devices);
            if self.devices.step(&mut self.clock) {
                continue;
            }
            if self.memory.fill_next() {
                continue;
            }
            self.period.begin_if_due(now, self.clock.ran());
            if self.work_a_piece() {
                continue;
            }
            if self.clock.ran() < self.period.run_until {
                burn();
            } else {
                let wake = self.period.end.min(self.heartbeat.due).min(self.devices.wake(now));
                self.clock.sleep_until(wake);
            }
        }
    }

    /// One page of each kind of work. False when there is none left in this period.
    fn work_a_piece(&mut self) -> bool {
        let mut worked = false;
        if self.period.rewrites.take() {
            self.memory.rewrite_next(&mut self.clock);
            worked = true;
        }
        if self.period.checks.take() {
            self.memory.check_next(&mut self.clock);
            worked = true;
        }
        worked
    }
}

/// A number, a time and the verdict on memory, in regular intervals.
struct Heartbeat {
    others: Others,
    number: u64,
    interval: Nanos,
    due: Nanos,
}

impl Heartbeat {
    fn new(params: &Params<'_>) -> Self {
        let others = Others::start();
        Self { others, number: 0, interval: params.heartbeat_ms * NANOS_PER_MS, due: 0 }
    }

    /// `H <number> <ms> p<passes> e<errors>`, and ` s<ms>` after a stall of at least 1 ms,
    /// ` t<count>` once time went backwards, ` v<count>` when there are other vCPUs, and what the
    /// devices add.
    /// Heartbeats that were missed are not made up for: the next one has the next number.
    fn beat_if_due(&mut self, now: Nanos, clock: &mut Clock, memory: &Memory, devices: &Devices) {
        if now < self.due {
            return;
        }
        let mut line = Line::new();
        let (number, ms) = (self.number, now / NANOS_PER_MS);
        let others = self.others.look();
        let (passes, errors) = (memory.passes, memory.errors + others.errors);
        // A line takes what fits and never fails.
        let _ = write!(line, "H {number} {ms} p{passes} e{errors}");
        let stall_ms = clock.take_stall_max() / NANOS_PER_MS;
        if stall_ms > 0 {
            let _ = write!(line, " s{stall_ms}");
        }
        let reversals = clock.reversals() + others.reversals;
        if reversals > 0 {
            let _ = write!(line, " t{reversals}");
        }
        if let Some(working) = others.working {
            let _ = write!(line, " v{working}");
        }
        devices.add_to_heartbeat(&mut line);
        line.send(clock);
        self.number += 1;
        self.due = next_end(self.due, self.interval, now);
    }
}

struct Period {
    length: Nanos,
    end: Nanos,
    duty_percent: u64,
    /// The running time at which this period's duty is done.
    run_until: Nanos,
    rewrites: Quota,
    checks: Quota,
}

impl Period {
    fn new(params: &Params<'_>) -> Self {
        // A guest without load wakes for its heartbeats only, and checks then.
        let rewritten = params.working_set_mib > 0 || params.high_mib > 0;
        let idle = params.duty_percent == 0 && (params.dirty_mib_per_sec == 0 || !rewritten);
        let length = if idle { params.heartbeat_ms } else { params.period_ms } * NANOS_PER_MS;
        let rewrites = if rewritten { params.dirty_mib_per_sec } else { 0 };
        Self {
            length,
            end: 0,
            duty_percent: params.duty_percent,
            run_until: 0,
            rewrites: Quota::new(rewrites * PAGES_PER_MIB, length),
            checks: Quota::new(params.check_mib_per_sec * PAGES_PER_MIB, length),
        }
    }

    fn begin_if_due(&mut self, now: Nanos, ran: Nanos) {
        if now < self.end {
            return;
        }
        self.end = next_end(self.end, self.length, now);
        self.run_until = ran + self.length / 100 * self.duty_percent;
        self.rewrites.refill();
        self.checks.refill();
    }
}

/// Pages to work on in a period, exact in the long run for any rate.
struct Quota {
    left: u64,
    /// Per period, in billionths of a page.
    billionths: u64,
    carried: u64,
}

impl Quota {
    const BILLION: u64 = 1_000_000_000;

    fn new(pages_per_sec: u64, period: Nanos) -> Self {
        Self { left: 0, billionths: pages_per_sec * period, carried: 0 }
    }

    fn refill(&mut self) {
        self.carried += self.billionths;
        let pages = self.carried / Self::BILLION;
        self.carried %= Self::BILLION;
        self.left = pages + self.left.min(pages);
    }

    fn take(&mut self) -> bool {
        let some = self.left > 0;
        self.left -= u64::from(some);
        some
    }
}

/// The end of the interval that follows `end`; counted from now when that is over, too.
fn next_end(end: Nanos, length: Nanos, now: Nanos) -> Nanos {
    let next = end + length;
    if next > now { next } else { now + length }
}

fn burn() {
    for round in 0..BURN_ROUNDS {
        core::hint::black_box(round);
    }
}
