//! A bounded window of samples and the demand it stands for.
//!
//! # Formula
//!
//! With the samples of a window in the order of time and `R` = [`RECENT`]:
//!
//! ```text
//! level    = median of the last R samples
//! before   = median of the R samples before those (level, where there are fewer than 2R)
//! upper    = upper quartile of the whole window
//! weight   = 0.3 · min(1, samples / 4R)
//! forecast = ½ · (level − before), at most +25 % and −10 % of level
//! demand   = (1 − weight) · level + weight · upper + forecast
//! ```
//!
//! Why: a median of the recent past ignores a burst shorter than half of it and
//! follows a real step after `R/2` samples. The upper quartile of the longer past
//! keeps room for load that comes and goes; it counts in full only once the
//! window is long enough for a burst that the median ignores not to reach the
//! quartile either. A median lags a ramp by `R/2` samples, which half the
//! difference of two medians `R` apart makes up for; growth is followed further
//! than decline, because room given too early is worse than room given late.
//!
//! For a steady load the demand is that load. In a window of at least `4R`
//! samples a burst of fewer than `R/2` changes nothing; in a shorter one it adds
//! at most `weight` of its height once `R` samples are there.

use std::collections::VecDeque;
use std::time::Duration;

use ballast_model::Timestamp;

/// How many samples are the recent past. Odd, so that a median is a sample.
pub const RECENT: usize = 9;
/// The most samples of one window; more frequent reports shorten its span.
pub const SAMPLES_MAX: usize = 512;
const UPPER_WEIGHT: f64 = 0.3;
const FORECAST_SHARE: f64 = 0.5;
const FORECAST_UP_MAX: f64 = 0.25;
const FORECAST_DOWN_MAX: f64 = 0.10;

/// Samples of one kind, newest last.
#[derive(Debug, Clone)]
pub struct Window<T> {
    samples: VecDeque<(Timestamp, T)>,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self { samples: VecDeque::new() }
    }
}

impl<T: Copy> Window<T> {
    /// Adds a sample and drops what is older than `span` or too many.
    pub fn push(&mut self, at: Timestamp, sample: T, span: Duration) {
        self.samples.push_back((at, sample));
        while self.samples.len() > SAMPLES_MAX
            || self.samples.front().is_some_and(|(first, _)| at.since(*first) > span)
        {
            self.samples.pop_front();
        }
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// When the newest sample was added.
    pub fn newest(&self) -> Option<Timestamp> {
        self.samples.back().map(|(at, _)| *at)
    }

    /// The demand that `of` the samples stands for; see the formula above. Zero without samples.
    pub fn demand(&self, of: impl Fn(&T) -> u64) -> u64 {
        let values: Vec<u64> = self.samples.iter().map(|(_, sample)| of(sample)).collect();
        demand(&values)
    }

    /// The median of the last [`RECENT`] samples. Zero without samples.
    pub fn level(&self, of: impl Fn(&T) -> u64) -> u64 {
        let recent = self.samples.len().saturating_sub(RECENT);
        quantile(self.samples.range(recent..).map(|(_, sample)| of(sample)).collect(), 0.5)
    }
}

/// The formula, over samples in the order of time.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // float-to-int casts saturate
fn demand(samples: &[u64]) -> u64 {
    let (earlier, recent) = samples.split_at(samples.len().saturating_sub(RECENT));
    let before = &earlier[earlier.len().saturating_sub(RECENT)..];
    let level = quantile(recent.to_vec(), 0.5) as f64;
    let change = match before.len() {
        RECENT => level - quantile(before.to_vec(), 0.5) as f64,
        _ => 0.0,
    };
    let forecast =
        (FORECAST_SHARE * change).clamp(-FORECAST_DOWN_MAX * level, FORECAST_UP_MAX * level);
    let upper = quantile(samples.to_vec(), 0.75) as f64;
    let filled = samples.len() as f64 / (4 * RECENT) as f64;
    let weight = UPPER_WEIGHT * filled.min(1.0);
    (level + weight * (upper - level) + forecast).round() as u64
}

/// The sample below which `share` of them lie; zero without samples.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 0 and the length
fn quantile(mut values: Vec<u64>, share: f64) -> u64 {
    if values.is_empty() {
        return 0;
    }
    let index = ((values.len() - 1) as f64 * share).floor() as usize;
    *values.select_nth_unstable(index).1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPAN: Duration = Duration::from_secs(3600);

    fn window(samples: &[u64]) -> Window<u64> {
        let mut window = Window::default();
        for (second, &sample) in samples.iter().enumerate() {
            window.push(Timestamp(second as u64 * 1000), sample, SPAN);
        }
        window
    }

    fn check(samples: &[u64], expected: u64) {
        assert_eq!(window(samples).demand(|&sample| sample), expected, "{samples:?}");
    }

    #[test]
    fn a_window_is_bounded_in_time_and_number() {
        let mut samples = Window::default();
        for n in 0..2 * SAMPLES_MAX as u64 {
            samples.push(Timestamp(n), n, SPAN);
        }
        assert_eq!(samples.len(), SAMPLES_MAX);
        samples.push(Timestamp(10_000_000), 7, SPAN);
        assert_eq!((samples.len(), samples.demand(|&s| s)), (1, 7));
    }

    #[test]
    fn few_samples_give_their_median() {
        check(&[], 0);
        check(&[500], 500);
        check(&[500, 500, 900], 500);
    }

    #[test]
    fn a_step_is_followed_after_half_the_recent_past() {
        let mut samples = vec![100; 36];
        samples.extend([1000; 4]);
        check(&samples, 100);
        samples.push(1000);
        assert!(window(&samples).demand(|&s| s) >= 700);
        samples.extend([1000; 40]);
        check(&samples, 1000);
    }

    #[test]
    fn a_ramp_is_not_lagged_behind() {
        let ramp: Vec<u64> = (0..60).map(|second| 1000 + 10 * second).collect();
        let (now, demand) = (1590, window(&ramp).demand(|&s| s));
        assert!((now - 60..now + 60).contains(&demand), "{demand}");
    }

    #[test]
    fn decline_is_followed_carefully() {
        let mut samples = vec![1000; 40];
        samples.extend([500; 9]);
        let demand = window(&samples).demand(|&s| s);
        assert!((500..=750).contains(&demand), "{demand}");
    }

    proptest! {
        #[test]
        fn a_steady_load_is_its_own_demand(load in 0..1u64 << 40, samples in 1..200usize) {
            prop_assert_eq!(window(&vec![load; samples]).demand(|&s| s), load);
        }

        #[test]
        fn demand_stays_near_what_was_seen(samples in prop::collection::vec(0..1u64 << 40, 1..200)) {
            let demand = window(&samples).demand(|&s| s) as f64;
            let (least, most) = (samples.iter().min().unwrap(), samples.iter().max().unwrap());
            prop_assert!(demand <= *most as f64 * (1.0 + FORECAST_UP_MAX) + 1.0);
            prop_assert!(demand >= *least as f64 * (1.0 - FORECAST_DOWN_MAX) - 1.0);
        }

        #[test]
        fn a_short_burst_moves_nothing(
            load in 0..1u64 << 40,
            spike in 0..1u64 << 40,
            at in 0..40usize,
            length in 1..=RECENT / 2,
        ) {
            let mut samples = vec![load; 40];
            for sample in samples.iter_mut().skip(at).take(length) {
                *sample = spike;
            }
            prop_assert_eq!(window(&samples).demand(|&s| s), load);
        }

        #[test]
        fn a_short_burst_in_a_short_window_moves_little(
            load in 0..1u64 << 40,
            height in 0..1u64 << 40,
            count in RECENT..4 * RECENT,
            at in 0..4 * RECENT,
            length in 1..=RECENT / 2,
        ) {
            let mut samples = vec![load; count];
            for sample in samples.iter_mut().skip(at % count).take(length) {
                *sample = load + height;
            }
            let demand = window(&samples).demand(|&s| s);
            prop_assert!(demand >= load);
            prop_assert!((demand - load) as f64 <= UPPER_WEIGHT * height as f64 + 1.0);
        }

        #[test]
        fn more_load_never_means_less_demand(
            samples in prop::collection::vec(0..1u64 << 20, 1..60),
            more in 1..1u64 << 20,
        ) {
            let higher: Vec<u64> = samples.iter().map(|sample| sample + more).collect();
            prop_assert!(window(&higher).demand(|&s| s) >= window(&samples).demand(|&s| s));
        }
    }
}
