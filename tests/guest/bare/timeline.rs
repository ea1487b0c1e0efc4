//! From a counter's value to time that never goes backwards.

/// Nanoseconds since the guest began.
pub type Nanos = u64;

/// Time by a counter of a known frequency.
pub struct Timeline {
    khz: u64,
    /// The counter's value at time 0.
    start: u64,
    last: Nanos,
    reversals: u64,
}

impl Timeline {
    /// Time 0 is now.
    pub const fn new(khz: u64, counter: u64) -> Self {
        Self { khz, start: counter, last: 0, reversals: 0 }
    }

    /// The time at a counter's value. A counter that shows less than before is
    /// counted, and taken to have stood still meanwhile.
    pub fn at(&mut self, counter: u64) -> Nanos {
        let ticks = counter.wrapping_sub(self.start);
        let now = self.nanos(ticks);
        if ticks > u64::MAX / 2 || now < self.last {
            self.reversals += 1;
            self.start = counter.wrapping_sub(self.ticks(self.last));
            return self.last;
        }
        self.last = now;
        now
    }

    /// The time last asked for.
    pub const fn last(&self) -> Nanos {
        self.last
    }

    /// How often the counter went backwards.
    pub const fn reversals(&self) -> u64 {
        self.reversals
    }

    /// In kHz.
    pub const fn frequency(&self) -> u64 {
        self.khz
    }

    // Both ways round 584 years fit, which is more than counters live.
    #[allow(clippy::cast_possible_truncation)]
    fn nanos(&self, ticks: u64) -> Nanos {
        (u128::from(ticks) * 1_000_000 / u128::from(self.khz)) as Nanos
    }

    /// Rounded up, so that `at` gives back what was put in or more.
    #[allow(clippy::cast_possible_truncation)]
    fn ticks(&self, nanos: Nanos) -> u64 {
        (u128::from(nanos) * u128::from(self.khz)).div_ceil(1_000_000) as u64
    }
}
