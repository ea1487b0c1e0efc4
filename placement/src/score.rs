//! How level a cluster is: one table of weighted metrics, one number.
//!
//! Over the hosts that count (active, telemetry known) and for each metric of
//! [`METRICS`], a host's load is what it uses as a share of its capacity. With
//! `n` such hosts, weights `w` (of the cluster's policy, the largest taken as 1) and mean loads `m`:
//!
//! ```text
//! spread    = Σ_metric w · Σ_host (load − m)²
//! imbalance = sqrt(spread / (n · Σ_metric w))
//! ```
//!
//! that is, the weighted standard deviation of the hosts' loads: 0 when every
//! host is equally loaded, 0.1 when they are typically 10 % of a host off the
//! mean. The idea of one table of weighted spreads is Ganeti's (hbal). Here
//! variances are added before the root is taken, so that the change a move
//! makes depends on its two hosts and two sums only and costs O(1).

use ballast_model::Ratio;
use ballast_model::snapshot::Policy;

/// CPU: demand of the VMs and overhead against capacity.
pub const CPU: usize = 0;
/// Memory: size (not demand) of the VMs and overhead against capacity, because size is what a host must have room for.
pub const MEMORY: usize = 1;

/// The names of everything that is levelled.
pub const METRICS: [&str; 2] = ["cpu", "memory"];

/// What VMs use of a host by metric: millicores, and bytes.
pub(crate) type Load = [u64; METRICS.len()];

/// How much each metric counts.
pub(crate) type Weights = [f64; METRICS.len()];

/// As the policy has it, the largest as 1, so that the least gain of a move means the same whatever the weights are.
pub(crate) fn weights(policy: &Policy) -> Weights {
    let weights = [policy.balance.cpu, policy.balance.memory].map(f64::from);
    let most = weights.into_iter().fold(1.0, f64::max);
    weights.map(|weight| weight / most)
}

/// A host's loads before and after.
pub(crate) type Change = ([f64; METRICS.len()], [f64; METRICS.len()]);

/// Sums over the hosts that count, from which the spread follows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sums {
    weights: Weights,
    hosts: usize,
    sum: [f64; METRICS.len()],
    squares: [f64; METRICS.len()],
}

impl Sums {
    /// Always computed afresh from whole loads, in host order, so that equal
    /// states have bit-equal sums however they were reached.
    pub(crate) fn new(weights: Weights, loads: impl Iterator<Item = [f64; METRICS.len()]>) -> Self {
        let mut sums = Self { weights, ..Self::default() };
        for load in loads {
            sums.hosts += 1;
            for (metric, share) in load.into_iter().enumerate() {
                sums.sum[metric] += share;
                sums.squares[metric] += share * share;
            }
        }
        sums
    }

    /// The weighted sum of squared deviations.
    pub(crate) fn spread(&self) -> f64 {
        if self.hosts == 0 {
            return 0.0;
        }
        let n = self.hosts as f64;
        (0..METRICS.len())
            .map(|m| self.weights[m] * (self.squares[m] - self.sum[m] * self.sum[m] / n).max(0.0))
            .sum()
    }

    /// By how much the spread falls when some hosts' loads change.
    pub(crate) fn fall(&self, changes: &[Change]) -> f64 {
        let n = self.hosts.max(1) as f64;
        let mut fall = 0.0;
        for m in 0..METRICS.len() {
            let (mut sum, mut squares) = (0.0, 0.0);
            for (before, after) in changes {
                sum += after[m] - before[m];
                squares += after[m] * after[m] - before[m] * before[m];
            }
            fall -= self.weights[m] * (squares - (2.0 * self.sum[m] * sum + sum * sum) / n);
        }
        fall
    }

    /// The sum of the loads of one metric.
    pub(crate) fn sum(&self, metric: usize) -> f64 {
        self.sum[metric]
    }

    /// The standard deviation of the loads of one metric.
    pub(crate) fn deviation(&self, metric: usize) -> Ratio {
        let n = self.hosts.max(1) as f64;
        let squares = self.squares[metric] - self.sum[metric] * self.sum[metric] / n;
        Ratio::new((squares.max(0.0) / n).sqrt())
    }

    /// The imbalance.
    pub(crate) fn imbalance(&self) -> Ratio {
        self.imbalance_of(self.spread())
    }

    /// What the imbalance of the same hosts is with that spread.
    pub(crate) fn imbalance_of(&self, spread: f64) -> Ratio {
        let weights: f64 = self.weights.iter().sum();
        Ratio::new((spread / (self.hosts.max(1) as f64 * weights)).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_model::snapshot::BalanceWeights;

    const CPU_MOST: Weights = [1.0, 0.5];

    #[test]
    fn the_largest_weight_is_one() {
        assert_eq!(weights(&Policy::default()), CPU_MOST);
        let of = |cpu, memory| {
            weights(&Policy { balance: BalanceWeights { cpu, memory }, ..Policy::default() })
        };
        assert_eq!(of(10, 40), [0.25, 1.0]);
        assert_eq!(of(0, 3), [0.0, 1.0]);
    }

    #[test]
    fn equal_loads_are_level() {
        assert!(Sums::new(CPU_MOST, [[0.3, 0.6]; 5].into_iter()).imbalance().get() < 1e-6);
        assert_eq!(Sums::new(CPU_MOST, std::iter::empty()).imbalance(), Ratio::ZERO);
    }

    #[test]
    fn equal_deviation_in_every_metric_is_the_standard_deviation() {
        let sums = Sums::new(CPU_MOST, [[0.2, 0.2], [0.4, 0.4]].into_iter());
        assert!((sums.imbalance().get() - 0.1).abs() < 1e-12);
    }

    #[test]
    fn the_fall_of_a_change_is_the_difference_of_the_spreads() {
        let loads = [[0.9, 0.5], [0.1, 0.3], [0.4, 0.2]];
        let after = [[0.7, 0.4], [0.3, 0.35], [0.4, 0.2]];
        let sums = Sums::new(CPU_MOST, loads.into_iter());
        let fall = sums.fall(&[(loads[0], after[0]), (loads[1], after[1])]);
        let expected = sums.spread() - Sums::new(CPU_MOST, after.into_iter()).spread();
        assert!((fall - expected).abs() < 1e-12, "{fall} {expected}");
        assert!(fall > 0.0);
    }
}
