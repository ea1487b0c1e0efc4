//! How level the load can be at best: a bound that no placement of the same VMs goes below.
//!
//! Rules, capacities and the cost of moves are left aside; that VMs do not divide and that some do not move is not. Per
//! metric, what cannot move is one *lump* on its host, every other VM a lump of its own. Of `n` hosts:
//!
//! - the `k` largest lumps are on `k` hosts at most, so the `k` fullest hosts carry at least as much as these lumps;
//! - of any `j` lumps, some `k` hosts have `⌈jk/n⌉`, so the `k` fullest carry at least so many of the least of them.
//!
//! Whatever placement keeps to these sums is no more level than the one whose sums are the least concave curve above
//! them (majorisation: Marshall, Olkin, Arnold, *Inequalities*, ch. 3). That gives the least squared deviation for a
//! given mean. Where hosts differ in capacity the mean of the shares depends on the placement, but stays within
//! `κ · √spread` of the load of all hosts taken as one (Cauchy-Schwarz): the bound is the least spread that agrees
//! with its own mean.

use ballast_model::Ratio;

use crate::door::problem::VmIx;
use crate::door::state::{Cause, State};
use crate::score::METRICS;

/// For how many lumps a host, at most, the second sum is worked out.
const LUMPS_PER_HOST_MAX: usize = 16;
/// Halvings of the interval the spread is in; what is left of it counts against the bound.
const HALVINGS: usize = 50;
/// What rounding may make of the bound.
const ROUNDING: f64 = 1e-9;

/// The least imbalance of the VMs that `end` has on the hosts that count; those that may not move from where they are at
/// `start` stay there.
pub(crate) fn imbalance_bound(start: &State<'_, '_>, end: &State<'_, '_>) -> Ratio {
    let problem = end.problem;
    let spread: f64 =
        (0..METRICS.len()).map(|m| problem.weights[m] * metric(start, end, m).spread_min()).sum();
    end.sums().imbalance_of(spread)
}

/// The loads of one metric, in its own unit.
struct Loads {
    capacity: Vec<f64>,
    /// Per host, what stays on it.
    fixed: Vec<f64>,
    /// The VMs that may be on any of the hosts.
    movable: Vec<f64>,
}

fn metric(start: &State<'_, '_>, end: &State<'_, '_>, metric: usize) -> Loads {
    let problem = end.problem;
    let stays = |vm: VmIx| {
        problem.host(start.at(vm)).counts() && !problem.may_move(vm, Cause::Balance)
            || !problem.can_leave(vm)
    };
    let size = |vm: VmIx| [problem.vm(vm).cpu, problem.vm(vm).memory][metric] as f64;
    let mut loads = Loads { capacity: Vec::new(), fixed: Vec::new(), movable: Vec::new() };
    for host in &problem.counted {
        let info = problem.host(*host);
        let (staying, movable): (Vec<VmIx>, Vec<VmIx>) =
            end.vms_on(*host).iter().partition(|vm| stays(**vm));
        loads.capacity.push([info.cpu, info.memory][metric].max(1) as f64);
        let fixed: f64 = staying.into_iter().map(size).sum();
        loads.fixed.push(info.overhead[metric] as f64 + fixed);
        loads.movable.extend(movable.into_iter().map(size));
    }
    loads
}

impl Loads {
    /// The least sum of squared deviations of the hosts' shares from their mean.
    fn spread_min(&self) -> f64 {
        let hosts = self.capacity.len();
        if hosts < 2 {
            return 0.0;
        }
        let sums = self.least_sums();
        let capacity: f64 = self.capacity.iter().sum();
        let load = self.fixed.iter().chain(&self.movable).sum::<f64>() / capacity;
        let unequal: f64 =
            self.capacity.iter().map(|c| (c / capacity - 1.0 / hosts as f64).powi(2)).sum();
        let kappa = unequal.sqrt();
        let least = |deviation: f64| spread_of(&sums, load + kappa * deviation);
        // The least deviation whose square is not below the spread that it allows.
        let (mut low, mut high) = (0.0, least(0.0).sqrt());
        if kappa > 0.0 {
            for _ in 0..HALVINGS {
                let middle = (low + high) / 2.0;
                if middle * middle < least(middle) {
                    low = middle;
                } else {
                    high = middle;
                }
            }
        } else {
            low = high;
        }
        low * low * (1.0 - ROUNDING)
    }

    /// For 0, 1, … hosts but not all, the least that so many of the fullest carry, as shares of a host.
    fn least_sums(&self) -> Vec<f64> {
        let hosts = self.capacity.len();
        let largest = self.capacity.iter().copied().fold(1.0, f64::max);
        let own = self.fixed.iter().zip(&self.capacity).map(|(load, capacity)| load / capacity);
        let mut lumps: Vec<f64> =
            own.chain(self.movable.iter().map(|size| size / largest)).collect();
        lumps.sort_by(|a, b| b.total_cmp(a));
        let mut of_first = vec![0.0; lumps.len() + 1];
        for (n, lump) in lumps.iter().enumerate() {
            of_first[n + 1] = of_first[n] + lump;
        }
        let crowded = |k: usize| {
            let counts = (1..=LUMPS_PER_HOST_MAX).map(|each| each * hosts + 1);
            let sums = counts
                .take_while(|j| *j <= lumps.len())
                .map(|j| of_first[j] - of_first[j - (j * k).div_ceil(hosts)]);
            sums.fold(0.0, f64::max)
        };
        (0..hosts).map(|k| of_first[k].max(crowded(k))).collect()
    }
}

/// The least sum of squared deviations of as many shares as there are sums, with that mean, when the largest `k` come
/// to `sums[k]` at least.
fn spread_of(sums: &[f64], mean: f64) -> f64 {
    let hosts = sums.len();
    let all = (hosts, hosts as f64 * mean);
    let slope = |a: (usize, f64), b: (usize, f64)| (b.1 - a.1) / (b.0 - a.0) as f64;
    let mut hull: Vec<(usize, f64)> = Vec::with_capacity(hosts + 1);
    for point in sums.iter().copied().enumerate().chain([all]) {
        while let [.., before, last] = hull[..]
            && slope(before, last) <= slope(last, point)
        {
            hull.pop();
        }
        hull.push(point);
    }
    hull.windows(2)
        .map(|ends| (ends[1].0 - ends[0].0) as f64 * (slope(ends[0], ends[1]) - mean).powi(2))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn loads(capacity: &[u32], fixed: &[u32], movable: &[u32]) -> Loads {
        let floats = |all: &[u32]| all.iter().map(|one| f64::from(*one)).collect();
        Loads { capacity: floats(capacity), fixed: floats(fixed), movable: floats(movable) }
    }

    /// The least spread of all placements.
    fn best(of: &Loads) -> f64 {
        let hosts = of.capacity.len();
        let placements = hosts.pow(u32::try_from(of.movable.len()).unwrap());
        let spread = |mut placement: usize| {
            let mut load = of.fixed.clone();
            for size in &of.movable {
                load[placement % hosts] += size;
                placement /= hosts;
            }
            let shares: Vec<f64> = load.iter().zip(&of.capacity).map(|(l, c)| l / c).collect();
            let mean = shares.iter().sum::<f64>() / hosts as f64;
            shares.iter().map(|share| (share - mean).powi(2)).sum()
        };
        (0..placements).map(spread).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn lumps_are_what_keeps_equal_hosts_from_being_level() {
        let cases: [(&[u32], &[u32]); 5] = [
            // Fewer VMs than hosts; one more than hosts; one that is too large; what cannot move; all of it.
            (&[0; 4], &[10, 10, 10]),
            (&[0; 4], &[10; 5]),
            (&[0; 3], &[50, 10, 10, 10]),
            (&[40, 0, 0], &[10, 10]),
            (&[30, 5, 5, 5], &[20, 7, 7]),
        ];
        for (fixed, movable) in cases {
            let of = loads(&vec![100; fixed.len()], fixed, movable);
            let (bound, best) = (of.spread_min(), best(&of));
            assert!(bound <= best && bound > 0.6 * best, "{fixed:?} {movable:?}: {bound} {best}");
        }
    }

    #[test]
    fn what_can_be_level_has_no_bound() {
        assert!(loads(&[100, 100], &[5, 5], &[10, 20, 30]).spread_min() < 1e-12);
        assert!(loads(&[100, 200], &[0, 0], &[10, 20]).spread_min() < 1e-12);
        assert_eq!(loads(&[100], &[5], &[10]).spread_min(), 0.0);
    }

    proptest! {
        #[test]
        fn no_placement_is_more_level_than_the_bound(
            hosts in proptest::collection::vec((1_u32..6, 0_u32..80), 2..5),
            movable in proptest::collection::vec(0_u32..100, 0..7),
        ) {
            let (capacity, fixed): (Vec<u32>, Vec<u32>) =
                hosts.into_iter().map(|(hundreds, fixed)| (100 * hundreds, fixed)).unzip();
            let of = loads(&capacity, &fixed, &movable);
            let (bound, best) = (of.spread_min(), best(&of));
            prop_assert!(bound <= best + 1e-12, "{bound} is no bound: {best} is possible");
        }
    }
}
