//! Waiting longer after each failure, up to a bound, never in step with others.

use std::time::Duration;

use rand::Rng;

/// See the module.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits about `first`, then about twice as long each time, and never longer than `most`.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, next: first }
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next wait: between half and all of the present step.
    pub fn step(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.most);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Waits it.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.step()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_double_up_to_the_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(250));
        for most in [100, 200, 250, 250] {
            let step = backoff.step();
            assert!(step <= Duration::from_millis(most) && step * 2 >= Duration::from_millis(most));
        }
        backoff.reset();
        assert!(backoff.step() <= Duration::from_millis(100));
    }
}
