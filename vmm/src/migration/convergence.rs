//! When to stop copying: a decision on numbers, without IO and without a clock.
//!
//! After every round the source knows how much is dirty now and how fast the
//! round went. Switching over now would take `fixed + remaining / rate`. If that
//! fits the downtime limit, it is time; if the rounds are used up, it will never
//! be; else another round makes `remaining` smaller as long as the guest dirties
//! memory more slowly than the link carries it.

use std::time::Duration;

use ballast_model::{Bytes, BytesPerSec};

/// Rounds a source tries when it is not told how many.
pub(crate) const ROUNDS_DEFAULT: u32 = 30;
/// The most rounds it can be told to try.
pub(crate) const ROUNDS_MAX: u32 = 1000;
/// What a switchover takes apart from sending pages: pause, state, load, two
/// messages. Measured at 2–6 ms; it is subtracted from the limit, but never
/// takes more than half of it.
const FIXED: Duration = Duration::from_millis(8);
/// Below this much a round is too short to measure a rate by.
const RATE_SAMPLE_BYTES_MIN: Bytes = Bytes(1 << 20);

/// What the source has to keep to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The longest switchover to plan for.
    pub(crate) downtime: Duration,
    /// Rounds after which it gives up.
    pub(crate) rounds: u32,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Another round.
    Continue,
    /// Pause the guest and send the rest.
    Stop,
    /// It does not converge; the switchover would take this long.
    GiveUp {
        /// The last estimate; none when no rate is known.
        estimate: Option<Duration>,
    },
}

/// The speed of the link, as learned from the rounds so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rate(Option<BytesPerSec>);

impl Rate {
    /// Learns from a round: `sent` bytes in `time`, pauses to keep to a
    /// bandwidth limit left out. A round that is too small to tell is not counted.
    pub(crate) fn learn(&mut self, sent: Bytes, time: Duration) {
        if !time.is_zero() && (sent >= RATE_SAMPLE_BYTES_MIN || self.0.is_none()) {
            self.0 = Some(BytesPerSec::from_amount(sent, time));
        }
    }

    /// How long `remaining` takes; none when nothing is known.
    pub(crate) fn time_for(self, remaining: Bytes) -> Option<Duration> {
        if remaining == Bytes::ZERO { Some(Duration::ZERO) } else { remaining.time_at(self.0?) }
    }
}

/// Decides after round `round` (1, 2, 3, …).
pub(crate) fn decide(round: u32, remaining: Bytes, rate: Rate, limits: &Limits) -> Decision {
    let for_pages = limits.downtime.saturating_sub(FIXED).max(limits.downtime / 2);
    let estimate = rate.time_for(remaining);
    if estimate.is_some_and(|time| time <= for_pages) {
        Decision::Stop
    } else if round >= limits.rounds {
        Decision::GiveUp { estimate: estimate.map(|time| time + FIXED) }
    } else {
        Decision::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { downtime: Duration::from_millis(108), rounds: 5 };

    fn rate(mib_per_sec: u64) -> Rate {
        let mut rate = Rate::default();
        rate.learn(Bytes::mib(mib_per_sec), Duration::from_secs(1));
        rate
    }

    fn check(round: u32, remaining_mib: u64, expected: Decision) {
        assert_eq!(decide(round, Bytes::mib(remaining_mib), rate(100), &LIMITS), expected);
    }

    #[test]
    fn it_stops_when_the_rest_fits_the_limit() {
        check(1, 10, Decision::Stop);
        check(1, 11, Decision::Continue);
        check(5, 10, Decision::Stop);
        check(5, 11, Decision::GiveUp { estimate: Some(Duration::from_millis(118)) });
        check(99, 0, Decision::Stop);
    }

    #[test]
    fn a_tight_limit_keeps_half_for_pages() {
        let limits = Limits { downtime: Duration::from_millis(4), rounds: 3 };
        assert_eq!(decide(1, Bytes(204_800), rate(100), &limits), Decision::Stop);
        assert_eq!(decide(1, Bytes(409_600), rate(100), &limits), Decision::Continue);
    }

    #[test]
    fn without_a_rate_only_an_empty_rest_fits() {
        let none = Rate::default();
        assert_eq!(decide(1, Bytes::ZERO, none, &LIMITS), Decision::Stop);
        assert_eq!(decide(1, Bytes(1), none, &LIMITS), Decision::Continue);
        assert_eq!(decide(5, Bytes(1), none, &LIMITS), Decision::GiveUp { estimate: None });
    }

    #[test]
    fn a_tiny_round_does_not_spoil_the_rate() {
        let mut learned = rate(100);
        learned.learn(Bytes(4096), Duration::from_secs(1));
        assert_eq!(learned.time_for(Bytes::mib(100)), Some(Duration::from_secs(1)));
    }

    #[test]
    fn every_run_of_rounds_ends() {
        for remaining in [0, 1, 50, 10_000] {
            let ends = (1..=LIMITS.rounds).any(|round| {
                decide(round, Bytes::mib(remaining), rate(100), &LIMITS) != Decision::Continue
            });
            assert!(ends);
        }
    }
}
