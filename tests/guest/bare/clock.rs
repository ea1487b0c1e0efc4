//! Time, by the time stamp counter, and the longest time that went missing.
//!
//! Everything the guest does is cut into pieces of a few microseconds with a
//! [`Clock::tick`] between them. A tick that comes late means that the guest
//! did not run: a switchover, or a host without CPU time to spare.

use core::arch::x86_64::{__cpuid, _rdtsc};

use crate::hypercall;
use crate::timeline::{Nanos, Timeline};

/// The APIC timer under every KVM: 1 GHz, divided by 1, and 32 bits wide.
const SLEEP_MAX: Nanos = 3_000_000_000;
const SLEEP_MIN: Nanos = 50_000;
/// A frequency outside of this is a typing error.
const PLAUSIBLE_KHZ: core::ops::RangeInclusive<u64> = 100_000..=20_000_000;
/// A tick later than this was not late because of what the guest did.
const RUNNING_GAP_MAX: Nanos = 250_000;

pub struct Clock {
    timeline: Timeline,
    stall_max: Nanos,
    ran: Nanos,
}

impl Clock {
    /// `None` when the frequency is neither given nor in CPUID, or not plausible.
    pub fn start(given_khz: Option<u64>) -> Option<Self> {
        let khz = given_khz.or_else(khz_from_cpuid)?;
        PLAUSIBLE_KHZ.contains(&khz).then(|| Self::with_frequency(khz))
    }

    /// A clock that shows no real time, for before the frequency is known.
    pub fn unknown() -> Self {
        Self::with_frequency(1_000_000)
    }

    fn with_frequency(khz: u64) -> Self {
        Self { timeline: Timeline::new(khz, counter()), stall_max: 0, ran: 0 }
    }

    /// In kHz.
    pub fn frequency(&self) -> u64 {
        self.timeline.frequency()
    }

    /// Now, and the end of a piece of work.
    pub fn tick(&mut self) -> Nanos {
        let before = self.timeline.last();
        let now = self.timeline.at(counter());
        let gap = now - before;
        if gap > RUNNING_GAP_MAX {
            self.stall_max = self.stall_max.max(gap);
        } else {
            self.ran += gap;
        }
        now
    }

    /// Time the guest was seen running, which leaves out stalls and sleep.
    pub fn ran(&self) -> Nanos {
        self.ran
    }

    /// The longest stall since the previous call.
    pub fn take_stall_max(&mut self) -> Nanos {
        core::mem::take(&mut self.stall_max)
    }

    /// How often the counter went backwards (a move to a host that did not set it).
    pub fn reversals(&self) -> u64 {
        self.timeline.reversals()
    }

    /// Sleeps until `wake`. Waking late is a stall; a timer that fires early or
    /// at another rate is set again.
    pub fn sleep_until(&mut self, wake: Nanos) {
        let mut now = self.tick();
        while now < wake {
            let nanos = (wake - now).clamp(SLEEP_MIN, SLEEP_MAX);
            hypercall::sleep(nanos as u32);
            let asked = now + nanos;
            now = self.timeline.at(counter());
            self.stall_max = self.stall_max.max(now.saturating_sub(asked));
        }
    }
}

fn counter() -> u64 {
    // SAFETY: CR4.TSD is clear, so ring 3 may read the counter.
    unsafe { _rdtsc() }
}

/// Leaf 0x15 (crystal and ratio), else the hypervisors' leaf 0x40000010.
fn khz_from_cpuid() -> Option<u64> {
    if __cpuid(0).eax >= 0x15 {
        let leaf = __cpuid(0x15);
        if leaf.eax > 0 && leaf.ebx > 0 && leaf.ecx > 0 {
            return Some(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax) / 1000);
        }
    }
    let hypervisor = __cpuid(1).ecx & (1 << 31) != 0;
    if hypervisor && __cpuid(0x4000_0000).eax >= 0x4000_0010 {
        let khz = u64::from(__cpuid(0x4000_0010).eax);
        return (khz > 0).then_some(khz);
    }
    None
}
