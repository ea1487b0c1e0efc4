//! When to stop copying: decisions on numbers, without IO and without a clock.
//!
//! After every round the source knows how much is dirty now and how fast the
//! round went. Switching over now would take `fixed + remaining / rate`, the
//! *estimate*.
//!
//! - It fits the downtime limit: switch over. But a limit is not an aim: while a
//!   further round is short and makes the estimate much smaller, there is one.
//! - It does not, and gets smaller: another round.
//! - It does not get smaller, round after round: the next step of the [`Policy`].
//!   Steps only ever go forward and the last one is to give up, so every
//!   migration ends.

use std::time::Duration;

use ballast_model::{Bytes, BytesPerSec};

/// Rounds a source tries when it is not told how many.
pub(crate) const ROUNDS_DEFAULT: u32 = 60;
/// The most rounds it can be told to try.
pub(crate) const ROUNDS_MAX: u32 = 1000;
/// What a switchover takes apart from sending pages: pause, state, load, two
/// messages. Measured at 2–6 ms; it is subtracted from the limit, but never
/// takes more than half of it.
const FIXED: Duration = Duration::from_millis(8);
/// Below this much a round is too short to measure a rate by.
const RATE_SAMPLE_BYTES_MIN: Bytes = Bytes(1 << 20);
/// An estimate that needs no further round to become smaller.
const GOOD_ENOUGH: Duration = Duration::from_millis(4);
/// A further round for a smaller estimate takes at most this long, and there are so many of them.
const FURTHER_ROUND_MAX: Duration = Duration::from_millis(500);
const FURTHER_ROUNDS_MAX: u32 = 4;
/// A round is stalled when it leaves more than this share of the estimate before, in percent.
const STALLED_PERCENT: u32 = 80;
/// A throttled guest is to write at most this share of what the link carries, in percent.
const WANTED_PERCENT: u64 = 40;
/// The most a guest is kept from running, in percent.
const THROTTLE_MAX: u8 = 99;

/// What the source has to keep to.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// The longest switchover to plan for.
    pub(crate) downtime: Duration,
    /// How far a step may raise that.
    pub(crate) downtime_max: Duration,
    /// Rounds after which it gives up.
    pub(crate) rounds: u32,
    /// What is done about a guest that writes faster than the link carries, in this order.
    pub(crate) policy: Policy,
}

/// What is done, and after how many stalled rounds since the step before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy(pub(crate) Vec<Step>);

/// One step of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Stalled rounds before it is taken.
    pub(crate) stalled_rounds: u32,
    /// What it is.
    pub(crate) action: Action,
}

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Double the downtime limit, up to its bound.
    RaiseLimit,
    /// Keep the vCPUs that run from running, for at least this share of the time in percent:
    /// more when the rates say that it takes more, and at most the other.
    Throttle { least: u8, most: u8 },
    /// Let the guest run on the destination before all of its memory is there, once the disks that
    /// go along fit the limit.
    PostCopy,
    /// End the migration. The guest runs on.
    GiveUp,
}

impl Default for Policy {
    fn default() -> Self {
        let step = |stalled_rounds, action| Step { stalled_rounds, action };
        let throttle = |stalled_rounds, least| {
            step(stalled_rounds, Action::Throttle { least, most: THROTTLE_MAX })
        };
        Self(vec![
            step(2, Action::RaiseLimit),
            throttle(0, 30),
            throttle(1, 60),
            throttle(1, 80),
            throttle(1, 95),
            throttle(2, 99),
            step(3, Action::GiveUp),
        ])
    }
}

impl Policy {
    /// That of a guest whose memory may come after it: it is slowed down a little, once, and only when that could be
    /// enough.
    pub(crate) fn with_post_copy() -> Self {
        let step = |stalled_rounds, action| Step { stalled_rounds, action };
        Self(vec![
            step(1, Action::RaiseLimit),
            step(0, Action::Throttle { least: 30, most: 50 }),
            step(1, Action::PostCopy),
            // Where disks were not small enough at first.
            step(2, Action::PostCopy),
            step(3, Action::GiveUp),
        ])
    }

    /// The same for a guest that must not be slowed down.
    #[must_use]
    pub(crate) fn without_throttling(self) -> Self {
        let all = self.0.into_iter();
        Self(all.filter(|step| !matches!(step.action, Action::Throttle { .. })).collect())
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Another round.
    Continue,
    /// Another round, with vCPUs kept from running for this share of the time in percent.
    Throttle(u8),
    /// Pause the guest and send the rest.
    Stop,
    /// Pause the guest, let it run on the destination, and send the rest then.
    PostCopy,
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

    /// Bytes per second, once known.
    pub(crate) fn get(self) -> Option<BytesPerSec> {
        self.0
    }
}

/// A round that is over, as the decision sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RoundDone {
    /// 1, 2, 3, …
    pub(crate) number: u32,
    /// How long it took.
    pub(crate) time: Duration,
    /// What was written meanwhile.
    pub(crate) remaining: Bytes,
    /// What of that is on disks.
    pub(crate) disks: Bytes,
    /// What the link carries.
    pub(crate) rate: Rate,
}

/// Decides after every round, and remembers how the rounds before went.
#[derive(Debug)]
pub(crate) struct Convergence {
    limits: Limits,
    /// The limit, as raised so far.
    downtime: Duration,
    last: Option<Duration>,
    /// Stalled rounds since the last step.
    stalled: u32,
    /// Rounds beyond the one after which the limit was kept.
    further: u32,
    /// The next step of the policy.
    next: usize,
    throttle: u8,
}

impl Convergence {
    pub(crate) fn new(limits: Limits) -> Self {
        let downtime = limits.downtime;
        Self { limits, downtime, last: None, stalled: 0, further: 0, next: 0, throttle: 0 }
    }

    /// The limit in force.
    pub(crate) fn downtime(&self) -> Duration {
        self.downtime
    }

    /// What the switchover would take now, all of it.
    pub(crate) fn estimate(done: &RoundDone) -> Option<Duration> {
        done.rate.time_for(done.remaining).map(|time| time + FIXED)
    }

    /// Decides after a round.
    pub(crate) fn decide(&mut self, done: &RoundDone) -> Decision {
        let estimate = done.rate.time_for(done.remaining);
        let before = std::mem::replace(&mut self.last, estimate);
        let shrinks_to = |percent: u32| match (estimate, before) {
            (Some(now), Some(before)) => now * 100 <= before * percent,
            _ => true,
        };
        if done.number >= self.limits.rounds {
            if self.fits(estimate) {
                return Decision::Stop;
            }
            let post_copy = |step: &Step| step.action == Action::PostCopy;
            let may = self.limits.policy.0.iter().any(post_copy) && self.disks_fit(done);
            return if may { Decision::PostCopy } else { self.give_up(estimate) };
        }
        if let Some(estimate) = estimate.filter(|_| self.fits(estimate)) {
            let worth = estimate > GOOD_ENOUGH
                && estimate <= FURTHER_ROUND_MAX
                && self.further < FURTHER_ROUNDS_MAX
                && (self.further == 0 || shrinks_to(50));
            self.further += 1;
            return if worth { Decision::Continue } else { Decision::Stop };
        }
        if shrinks_to(STALLED_PERCENT) {
            return Decision::Continue;
        }
        self.stalled += 1;
        self.step(done, estimate)
    }

    /// As many steps of the policy as are due.
    fn step(&mut self, done: &RoundDone, estimate: Option<Duration>) -> Decision {
        let mut decision = Decision::Continue;
        loop {
            let Some(step) = self.limits.policy.0.get(self.next).copied() else {
                return self.give_up(estimate);
            };
            if self.stalled < step.stalled_rounds {
                return decision;
            }
            self.next += 1;
            self.stalled = 0;
            match step.action {
                Action::RaiseLimit => {
                    self.downtime = (self.downtime * 2).min(self.limits.downtime_max);
                    if self.fits(estimate) {
                        return Decision::Stop;
                    }
                }
                Action::Throttle { least, most } => {
                    let needed = self.throttle_for(done);
                    let after = self.limits.policy.0.get(self.next);
                    if let Some(after) = after.filter(|after| after.action == Action::PostCopy)
                        && needed > most
                    {
                        // It would be slowed down in vain.
                        self.stalled = after.stalled_rounds;
                        continue;
                    }
                    let wanted = least.max(needed).min(most);
                    // A step that the rates have overtaken already is passed over.
                    if wanted > self.throttle {
                        self.throttle = wanted;
                        decision = Decision::Throttle(wanted);
                        return decision;
                    }
                }
                Action::PostCopy if self.disks_fit(done) => return Decision::PostCopy,
                // Disks are not sent after the guest: they have to get small enough by themselves.
                Action::PostCopy => {}
                Action::GiveUp => return self.give_up(estimate),
            }
        }
    }

    /// The share of time to take from the guest so that it writes little enough, by what it wrote
    /// in the last round: at least that, for a page written twice counts once.
    fn throttle_for(&self, done: &RoundDone) -> u8 {
        let written = BytesPerSec::from_amount(done.remaining, done.time).get();
        let wanted = done.rate.get().map_or(0, |rate| rate.get() / 100 * WANTED_PERCENT);
        let running = 100 - u64::from(self.throttle);
        let share = (running * wanted).checked_div(written).unwrap_or(running);
        u8::try_from(100 - share.min(100)).unwrap_or(99).min(99)
    }

    fn fits(&self, estimate: Option<Duration>) -> bool {
        let for_pages = self.downtime.saturating_sub(FIXED).max(self.downtime / 2);
        estimate.is_some_and(|time| time <= for_pages)
    }

    /// Whether what is left of the disks alone fits the limit.
    fn disks_fit(&self, done: &RoundDone) -> bool {
        self.fits(done.rate.time_for(done.disks))
    }

    fn give_up(&self, estimate: Option<Duration>) -> Decision {
        Decision::GiveUp { estimate: estimate.map(|time| time + FIXED) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(rounds: u32) -> Limits {
        let downtime = Duration::from_millis(108);
        Limits { downtime, downtime_max: downtime, rounds, policy: Policy::default() }
    }

    fn rate(mib_per_sec: u64) -> Rate {
        let mut rate = Rate::default();
        rate.learn(Bytes::mib(mib_per_sec), Duration::from_secs(1));
        rate
    }

    /// After a round of a second over a link of 100 MiB/s.
    fn done(number: u32, remaining: Bytes) -> RoundDone {
        let (time, disks) = (Duration::from_secs(1), Bytes::ZERO);
        RoundDone { number, time, remaining, disks, rate: rate(100) }
    }

    fn check(rounds: &[u64], expected: Decision) {
        let mut convergence = Convergence::new(limits(5));
        let decisions =
            (1..).zip(rounds).map(|(n, kib)| convergence.decide(&done(n, Bytes(*kib << 10))));
        assert_eq!(decisions.last(), Some(expected), "{rounds:?}");
    }

    #[test]
    fn it_stops_when_nothing_is_left_to_gain() {
        check(&[400], Decision::Stop);
        check(&[11_000], Decision::Continue);
        check(&[10_000], Decision::Continue);
        check(&[10_000, 400], Decision::Stop);
        check(&[10_000, 4000], Decision::Continue);
        check(&[10_000, 9000], Decision::Stop);
    }

    #[test]
    fn the_number_of_rounds_is_a_bound() {
        check(&[90_000, 50_000, 30_000, 20_000, 10_000], Decision::Stop);
        let estimate = Some(Duration::from_millis(118));
        check(&[90_000, 50_000, 30_000, 20_000, 11 << 10], Decision::GiveUp { estimate });
    }

    #[test]
    fn a_guest_that_writes_as_fast_as_the_link_is_slowed_down_as_far_as_it_takes() {
        check(&[90_000, 90_000], Decision::Continue);
        // 40 MiB/s are wanted of it, so 55 % of its time go.
        check(&[90_000, 90_000, 90_000], Decision::Throttle(55));
    }

    #[test]
    fn a_limit_that_may_be_raised_is_raised_first() {
        let downtime_max = Duration::from_secs(2);
        let mut convergence = Convergence::new(Limits { downtime_max, ..limits(9) });
        let mut decide = |number| convergence.decide(&done(number, Bytes::mib(18)));
        assert_eq!(
            [decide(1), decide(2), decide(3)],
            [Decision::Continue, Decision::Continue, Decision::Stop]
        );
        assert_eq!(convergence.downtime(), Duration::from_millis(216));
    }

    #[test]
    fn a_guest_that_must_not_be_slowed_down_stays_where_it_is() {
        let policy = Policy::default().without_throttling();
        let mut convergence = Convergence::new(Limits { policy, ..limits(100) });
        let decisions: Vec<_> =
            (1..=6).map(|n| convergence.decide(&done(n, Bytes::mib(90)))).collect();
        assert!(decisions[..5].iter().all(|one| *one == Decision::Continue), "{decisions:?}");
        assert!(matches!(decisions[5], Decision::GiveUp { .. }), "{decisions:?}");
    }

    #[test]
    fn a_guest_whose_memory_may_come_later_is_hardly_slowed_down() {
        let decide = |policy: Policy, disks, remaining| {
            let mut convergence = Convergence::new(Limits { policy, ..limits(8) });
            let done = |number| RoundDone { disks, ..done(number, remaining) };
            (1..=8).map(|number| convergence.decide(&done(number))).collect::<Vec<_>>()
        };
        let (fast, slow) = (Bytes::mib(300), Bytes::mib(75));
        let all = decide(Policy::with_post_copy(), Bytes::mib(1), slow);
        assert_eq!(all[1..3], [Decision::Throttle(47), Decision::PostCopy], "{all:?}");
        let all = decide(Policy::with_post_copy(), Bytes::mib(1), fast);
        assert_eq!(all[1], Decision::PostCopy, "half of its speed is still too much: {all:?}");
        let all = decide(Policy::with_post_copy().without_throttling(), Bytes::ZERO, fast);
        assert_eq!(all[1..3], [Decision::Continue, Decision::PostCopy], "{all:?}");
        let all = decide(Policy::with_post_copy(), Bytes::mib(200), fast);
        assert!(!all.contains(&Decision::PostCopy), "the disks are too far behind: {all:?}");
        assert!(matches!(all[6], Decision::GiveUp { .. }), "{all:?}");
        // The last round is none to give up after, either.
        let few = Limits { policy: Policy::with_post_copy(), ..limits(1) };
        let decision = Convergence::new(few).decide(&done(1, Bytes::mib(300)));
        assert_eq!(decision, Decision::PostCopy);
    }

    #[test]
    fn a_tight_limit_keeps_half_for_pages() {
        let downtime = Duration::from_millis(4);
        let limits = Limits { downtime, downtime_max: downtime, ..limits(3) };
        let decide = |bytes| Convergence::new(limits.clone()).decide(&done(1, Bytes(bytes)));
        assert_eq!(decide(204_800), Decision::Stop);
        assert_eq!(decide(409_600), Decision::Continue);
    }

    #[test]
    fn without_a_rate_only_an_empty_rest_fits() {
        let decide = |number, remaining| {
            let done = RoundDone { rate: Rate::default(), ..done(number, remaining) };
            Convergence::new(limits(5)).decide(&done)
        };
        assert_eq!(decide(1, Bytes::ZERO), Decision::Stop);
        assert_eq!(decide(1, Bytes(1)), Decision::Continue);
        assert_eq!(decide(5, Bytes(1)), Decision::GiveUp { estimate: None });
    }

    #[test]
    fn a_tiny_round_does_not_spoil_the_rate() {
        let mut learned = rate(100);
        learned.learn(Bytes(4096), Duration::from_secs(1));
        assert_eq!(learned.time_for(Bytes::mib(100)), Some(Duration::from_secs(1)));
    }

    proptest! {
        #[test]
        fn every_run_of_rounds_ends_and_throttling_only_grows(
            rounds in 1u32..200,
            remaining in prop::collection::vec(0u64..100_000, 200),
            times in prop::collection::vec(1u64..10_000, 200),
        ) {
            let mut convergence = Convergence::new(limits(rounds));
            let mut throttle = 0;
            for ((number, kib), ms) in (1..=rounds).zip(remaining).zip(times) {
                let time = Duration::from_millis(ms);
                match convergence.decide(&RoundDone { time, ..done(number, Bytes(kib << 10)) }) {
                    Decision::Continue => {}
                    Decision::Throttle(percent) => {
                        prop_assert!(percent > throttle && percent <= 99);
                        throttle = percent;
                    }
                    Decision::Stop | Decision::PostCopy | Decision::GiveUp { .. } => {
                        return Ok(());
                    }
                }
            }
            prop_assert!(false, "it did not end in {} rounds", rounds);
        }
    }
}
