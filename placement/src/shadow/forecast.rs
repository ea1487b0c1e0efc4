//! What a VM will ask for in the next interval, from what it asked for so far.
//!
//! Exponential smoothing of the level and of the absolute error, as in robust
//! control of retransmission timers (Jacobson 1988): the forecast is the level and
//! a share of the error on top, within what the last hour has seen. One spike
//! moves it a little and is forgotten; a step is followed within a quarter of an
//! hour; it never promises what was not asked for lately.

use std::collections::VecDeque;

/// The weight of the newest sample in the level.
const LEVEL: f64 = 0.25;
/// The weight of the newest error.
const ERROR: f64 = 0.125;
/// How much of the error is added to the level.
const MARGIN: f64 = 0.5;
/// Samples that bound the forecast: an hour of five minutes each.
const WINDOW: usize = 12;

/// Of one VM.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    is_robust: bool,
    level: f64,
    error: f64,
    recent: VecDeque<u8>,
}

impl Forecast {
    /// What was is what will be.
    pub fn last_sample() -> Self {
        Self { is_robust: false, level: 0.0, error: 0.0, recent: VecDeque::new() }
    }

    /// The level with a margin, within what the last hour has seen.
    pub fn robust() -> Self {
        Self { is_robust: true, ..Self::last_sample() }
    }

    /// The newest sample, in percent.
    pub fn see(&mut self, sample: u8) {
        let value = f64::from(sample);
        if self.recent.is_empty() {
            self.level = value;
        }
        self.error += ERROR * ((value - self.level).abs() - self.error);
        self.level += LEVEL * (value - self.level);
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(sample);
    }

    /// What to expect in the next interval, in percent; zero before anything was seen.
    pub fn next(&self) -> u8 {
        let Some(last) = self.recent.back() else { return 0 };
        if !self.is_robust {
            return *last;
        }
        let least = self.recent.iter().min().unwrap_or(last);
        let most = self.recent.iter().max().unwrap_or(last);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within two u8
        let expected = (self.level + MARGIN * self.error).round() as u8;
        expected.clamp(*least, *most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(samples: &[u8]) -> u8 {
        let mut forecast = Forecast::robust();
        samples.iter().for_each(|sample| forecast.see(*sample));
        forecast.next()
    }

    #[test]
    fn what_is_steady_stays_and_nothing_is_expected_of_nothing() {
        assert_eq!(Forecast::robust().next(), 0);
        assert_eq!(after(&[40; 20]), 40);
        assert_eq!(after(&[100]), 100);
    }

    #[test]
    fn a_spike_counts_little_and_a_step_is_followed() {
        let mut spike = vec![10; 12];
        spike.push(100);
        assert!((20..50).contains(&after(&spike)), "{}", after(&spike));
        spike.extend([10; 8]);
        assert!(after(&spike) < 20, "{}", after(&spike));
        let mut step = vec![10; 12];
        step.extend([80; 4]);
        assert!(after(&step) > 60, "{}", after(&step));
    }

    #[test]
    fn the_forecast_is_within_the_last_hour() {
        let mut samples = vec![90; 12];
        samples.extend([5; 12]);
        assert_eq!(after(&samples), 5);
    }

    #[test]
    fn without_a_forecast_the_last_sample_is_the_future() {
        let mut last = Forecast::last_sample();
        [10, 90].iter().for_each(|sample| last.see(*sample));
        assert_eq!(last.next(), 90);
    }
}
