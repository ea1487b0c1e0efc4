//! What a device may use at most: one token bucket for bytes and one for operations.
//!
//! A bucket fills at its rate up to a tenth of a second's worth. An operation
//! is let through while both buckets hold anything at all and is charged
//! afterwards, into debt if need be: so an operation larger than a whole
//! bucket passes too, is paid back before the next one, and a device need not
//! know an operation's size before it may begin it. Over any stretch of time
//! no more than rate × time + one bucket + one operation gets through.
//!
//! The time is the caller's to tell, as a monotonic [`Instant`]; a bucket never
//! looks at a clock. Buckets are not carried by a migration: on the new host
//! they begin full.

use std::time::{Duration, Instant};

use ballast_model::hardware::RateLimit;

/// A bucket holds this part of a second's worth.
const BURSTS_PER_SEC: u64 = 10;
/// Levels are kept in billionths, so that no refill is lost to rounding.
const NANO: i128 = 1_000_000_000;

/// The limits of one device, or of one direction of it.
#[derive(Debug, Clone)]
pub(crate) struct RateLimiter {
    bytes: Option<Bucket>,
    ops: Option<Bucket>,
}

impl RateLimiter {
    /// Both buckets are full at `now`; a limit of zero is none.
    pub(crate) fn new(limit: &RateLimit, now: Instant) -> Self {
        let bucket = |per_sec: u64| (per_sec > 0).then(|| Bucket::new(per_sec, now));
        Self { bytes: bucket(limit.bytes.get()), ops: bucket(u64::from(limit.ops_per_sec)) }
    }

    /// Whether an operation may begin at `now`; if not, how much later one may.
    ///
    /// # Errors
    /// The time to wait, never zero.
    pub(crate) fn ready(&mut self, now: Instant) -> Result<(), Duration> {
        let wait =
            |bucket: &mut Option<Bucket>| bucket.as_mut().and_then(|bucket| bucket.wait(now));
        match wait(&mut self.bytes).max(wait(&mut self.ops)) {
            None => Ok(()),
            Some(wait) => Err(wait),
        }
    }

    /// Charges one operation of this many bytes that was let through.
    pub(crate) fn charge(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.charge(bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.charge(1);
        }
    }
}

#[derive(Debug, Clone)]
struct Bucket {
    per_sec: u64,
    /// In billionths of a token; below zero it is in debt.
    level: i128,
    /// When `level` was right.
    at: Instant,
}

impl Bucket {
    fn new(per_sec: u64, now: Instant) -> Self {
        Self { per_sec, level: Self::full(per_sec), at: now }
    }

    fn full(per_sec: u64) -> i128 {
        i128::from(per_sec.div_ceil(BURSTS_PER_SEC)) * NANO
    }

    /// How long until the bucket holds anything; none when it does.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let nanos = now.saturating_duration_since(self.at).as_nanos();
        let nanos = i128::try_from(nanos).unwrap_or(i128::MAX);
        let refill = nanos.saturating_mul(i128::from(self.per_sec));
        self.level = self.level.saturating_add(refill).min(Self::full(self.per_sec));
        self.at = self.at.max(now);
        if self.level > 0 {
            return None;
        }
        // The first nanosecond at which the level is above zero.
        let nanos = -self.level / i128::from(self.per_sec) + 1;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn charge(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens) * NANO);
    }
}

#[cfg(test)]
mod tests {
    use ballast_model::BytesPerSec;
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn limiter(bytes_per_sec: u64, ops_per_sec: u32, now: Instant) -> RateLimiter {
        RateLimiter::new(&RateLimit { bytes: BytesPerSec(bytes_per_sec), ops_per_sec }, now)
    }

    #[test]
    fn no_limit_lets_everything_through() {
        let now = Instant::now();
        let mut limiter = limiter(0, 0, now);
        for _ in 0..1000 {
            assert_eq!(limiter.ready(now), Ok(()));
            limiter.charge(u64::MAX);
        }
    }

    #[test]
    fn a_burst_is_a_tenth_of_a_second() {
        let now = Instant::now();
        let mut limiter = limiter(0, 100, now);
        let burst = (0..100)
            .take_while(|_| {
                let ready = limiter.ready(now).is_ok();
                limiter.charge(0);
                ready
            })
            .count();
        assert_eq!(burst, 10);
    }

    #[test]
    fn the_wait_told_is_exactly_long_enough() {
        let now = Instant::now();
        let mut limiter = limiter(1000, 0, now);
        assert_eq!(limiter.ready(now), Ok(()));
        limiter.charge(600); // 100 were there: 500 of debt, half a second
        let wait = limiter.ready(now).unwrap_err();
        assert_eq!(wait, 500 * MS + Duration::from_nanos(1));
        assert!(limiter.ready(now + wait - Duration::from_nanos(1)).is_err());
        assert_eq!(limiter.ready(now + wait), Ok(()));
    }

    #[test]
    fn the_slower_of_both_limits_counts() {
        let now = Instant::now();
        let mut limiter = limiter(1_000_000, 10, now);
        limiter.charge(10);
        assert_eq!(limiter.ready(now), Err(Duration::from_nanos(1)), "one operation was there");
        limiter.charge(200_010);
        let wait = limiter.ready(now).unwrap_err();
        assert!(wait > 100 * MS, "{wait:?}");
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let begin = Instant::now();
        let mut limiter = limiter(1000, 0, begin);
        let now = begin + 3600 * 1000 * MS;
        assert_eq!(limiter.ready(now), Ok(()));
        limiter.charge(100);
        assert!(limiter.ready(now).is_err());
    }

    #[test]
    fn time_that_goes_back_fills_nothing() {
        let now = Instant::now();
        let mut limiter = limiter(1000, 0, now + 1000 * MS);
        limiter.charge(100);
        assert!(limiter.ready(now).is_err());
        assert!(limiter.ready(now + 1000 * MS).is_err());
    }

    proptest! {
        /// However operations and waits are mixed, the limit holds and is used up.
        #[test]
        fn the_rate_holds_over_any_stretch(
            per_sec in 1_000u64..1_000_000_000,
            operations in prop::collection::vec((1u64..70_000, 0u64..20_000_000), 1..200),
        ) {
            let begin = Instant::now();
            let mut limiter = limiter(per_sec, 0, begin);
            let (mut now, mut through, mut largest) = (begin, 0u128, 0u128);
            for (bytes, idle_nanos) in operations {
                now += Duration::from_nanos(idle_nanos);
                if let Err(wait) = limiter.ready(now) {
                    now += wait;
                    prop_assert_eq!(limiter.ready(now), Ok(()));
                }
                limiter.charge(bytes);
                through += u128::from(bytes);
                largest = largest.max(u128::from(bytes));
                let earned = now.duration_since(begin).as_nanos() * u128::from(per_sec) / 1_000_000_000;
                let burst = u128::from(per_sec.div_ceil(BURSTS_PER_SEC));
                prop_assert!(through <= earned + burst + largest);
            }
        }
    }
}
