//! The best target of a VM among all hosts, quickly.
//!
//! What a move is worth depends on the load of its two hosts and on two sums, and
//! falls with the load of the target. Hosts of like load stand together in blocks
//! under a binary tree that knows the least load below each node: a part of it
//! where no host could be better than the best so far is not looked at. Most VMs
//! of a level cluster are told at the root.
//!
//! A scan is a copy: whoever moves a VM tells it of both hosts ([`Scan::note`]).

use crate::door::problem::{HostIx, VmIx};
use crate::door::state::State;
use crate::score::{Load, METRICS, Weights};
use crate::solve::Best;

const M: usize = METRICS.len();
/// Hosts in a block, about.
const BLOCK: usize = 8;
/// What rounding may make of a gain.
const ROUNDING: f64 = 1e-12;

pub(crate) struct Scan {
    /// The hosts that count, those of like load together.
    hosts: Vec<HostIx>,
    /// Index in `hosts`, by host.
    slot: Vec<Option<usize>>,
    load: Vec<[f64; M]>,
    /// One by the capacity.
    per_unit: Vec<[f64; M]>,
    /// A power of two.
    blocks: usize,
    /// The root is 1, the children of `n` are `2n` and `2n + 1`, block `b` is `blocks + b`.
    least: Vec<Least>,
    sum: [f64; M],
    /// Hosts noted since the hosts were put in order.
    noted: usize,
}

/// What is least, and most, of the hosts below a node.
#[derive(Debug, Clone, Copy)]
struct Least {
    load: [f64; M],
    per_unit: [f64; M],
    per_unit_most: [f64; M],
}

impl Least {
    const OF_NONE: Self =
        Self { load: [f64::INFINITY; M], per_unit: [f64::INFINITY; M], per_unit_most: [0.0; M] };

    fn with(self, other: &Self) -> Self {
        let of = |f: fn(f64, f64) -> f64, a: [f64; M], b: [f64; M]| {
            std::array::from_fn(|m| f(a[m], b[m]))
        };
        Self {
            load: of(f64::min, self.load, other.load),
            per_unit: of(f64::min, self.per_unit, other.per_unit),
            per_unit_most: of(f64::max, self.per_unit_most, other.per_unit_most),
        }
    }
}

/// What leaves a host: what a target's load makes of it.
struct Leaving {
    size: [f64; M],
    change: [f64; M],
    squares: [f64; M],
    sum: [f64; M],
    per_host: f64,
    weights: Weights,
}

impl Leaving {
    /// By how much the spread falls with a target of that load.
    fn worth(&self, load: [f64; M], per_unit: [f64; M], per_unit_most: [f64; M]) -> f64 {
        let mut gain = 0.0;
        for m in 0..M {
            let share = self.size[m] * per_unit[m];
            let sum = self.change[m] + self.size[m] * per_unit_most[m];
            let rise = self.squares[m] + share * (2.0 * load[m] + share);
            gain -= self.weights[m] * (rise - sum * (2.0 * self.sum[m] + sum) * self.per_host);
        }
        gain
    }

    /// No host below the node is worth more.
    fn bound(&self, least: &Least) -> f64 {
        self.worth(least.load, least.per_unit, least.per_unit_most) + ROUNDING
    }
}

impl Scan {
    pub(crate) fn new(state: &State<'_, '_>) -> Self {
        let problem = state.problem;
        let hosts = problem.counted.clone();
        let blocks = hosts.len().div_ceil(BLOCK).next_power_of_two();
        let mut scan = Self {
            hosts,
            slot: vec![None; problem.hosts.len()],
            load: Vec::new(),
            per_unit: Vec::new(),
            blocks,
            least: vec![Least::OF_NONE; 2 * blocks],
            sum: [0.0; M],
            noted: 0,
        };
        scan.arrange(state);
        scan
    }

    /// Puts hosts of like load together and works out the tree.
    fn arrange(&mut self, state: &State<'_, '_>) {
        let blocks = self.blocks;
        divide(&mut self.hosts, blocks, 0, state);
        for (n, host) in self.hosts.iter().enumerate() {
            self.slot[host.0] = Some(n);
        }
        self.load = self.hosts.iter().map(|host| state.loads(*host)).collect();
        let per_unit = |host: &HostIx| {
            let info = state.problem.host(*host);
            [info.cpu, info.memory].map(|capacity| 1.0 / capacity.max(1) as f64)
        };
        self.per_unit = self.hosts.iter().map(per_unit).collect();
        for block in 0..blocks {
            self.least[blocks + block] = self.least_of(block);
        }
        for node in (1..blocks).rev() {
            self.least[node] = self.least[2 * node].with(&self.least[2 * node + 1]);
        }
        self.sum = std::array::from_fn(|m| state.sums().sum(m));
        self.noted = 0;
    }

    fn slots(&self, block: usize) -> std::ops::Range<usize> {
        let hosts = self.hosts.len();
        block * hosts / self.blocks..(block + 1) * hosts / self.blocks
    }

    fn least_of(&self, block: usize) -> Least {
        self.slots(block).fold(Least::OF_NONE, |least, n| {
            let per_unit = self.per_unit[n];
            least.with(&Least { load: self.load[n], per_unit, per_unit_most: per_unit })
        })
    }

    /// After VMs have left or reached these hosts.
    pub(crate) fn note(&mut self, state: &State<'_, '_>, changed: impl AsRef<[HostIx]>) {
        let changed = changed.as_ref();
        self.noted += changed.len();
        if self.noted > self.hosts.len().max(BLOCK) {
            return self.arrange(state);
        }
        for host in changed {
            let Some(n) = self.slot[host.0] else { continue };
            self.load[n] = state.loads(*host);
            // The block that holds slot n; integer division may be one off either way.
            let mut block = n * self.blocks / self.hosts.len();
            while self.slots(block).end <= n {
                block += 1;
            }
            let mut node = self.blocks + block;
            self.least[node] = self.least_of(block);
            while node > 1 {
                node /= 2;
                self.least[node] = self.least[2 * node].with(&self.least[2 * node + 1]);
            }
        }
        self.sum = std::array::from_fn(|m| state.sums().sum(m));
    }

    /// The best target of those `suits` lets through and that is worth at least `floor`; of equals the first.
    pub(crate) fn best(
        &self,
        state: &State<'_, '_>,
        vm: VmIx,
        floor: f64,
        suits: impl FnMut(HostIx) -> bool,
    ) -> Option<Best> {
        self.best_of(state, (state.at(vm), state.problem.vm(vm).load()), floor, suits)
    }

    /// The same of VMs of that load, which leave their host as one.
    pub(crate) fn best_of(
        &self,
        state: &State<'_, '_>,
        (at, load): (HostIx, Load),
        floor: f64,
        mut suits: impl FnMut(HostIx) -> bool,
    ) -> Option<Best> {
        let departure = state.departure(at, load);
        let (before, after) = departure;
        let leaving = Leaving {
            size: load.map(|amount| amount as f64),
            change: std::array::from_fn(|m| after[m] - before[m]),
            squares: std::array::from_fn(|m| after[m] * after[m] - before[m] * before[m]),
            sum: self.sum,
            per_host: 1.0 / self.hosts.len().max(1) as f64,
            weights: state.problem.weights,
        };
        let mut most = floor - ROUNDING;
        let mut best: Option<HostIx> = None;
        // Nodes to be looked at; the better of two children is on top.
        let mut open = vec![(leaving.bound(&self.least[1]), 1)];
        while let Some((bound, node)) = open.pop() {
            if bound < most {
                continue;
            }
            if node < self.blocks {
                let [left, right] = [2 * node, 2 * node + 1]
                    .map(|child| (leaving.bound(&self.least[child]), child));
                open.extend(if left.0 < right.0 { [left, right] } else { [right, left] });
                continue;
            }
            for n in self.slots(node - self.blocks) {
                let (host, per_unit) = (self.hosts[n], self.per_unit[n]);
                let gain = leaving.worth(self.load[n], per_unit, per_unit);
                let is_first = best.is_some_and(|best| host < best);
                let is_more = gain > most || gain == most && is_first;
                if is_more && host != at && suits(host) {
                    most = gain;
                    best = Some(host);
                }
            }
        }
        let found = best.map(|to| Best { gain: state.gain_after(departure, load, to), to });
        found.filter(|best| best.gain >= floor)
    }
}

/// Divides the hosts among so many blocks, by one metric and the other in turn.
fn divide(hosts: &mut [HostIx], blocks: usize, metric: usize, state: &State<'_, '_>) {
    let middle = hosts.len() / 2;
    if blocks < 2 || middle == 0 {
        return;
    }
    let load = |host: &HostIx| state.loads(*host)[metric];
    hosts.select_nth_unstable_by(middle, |a, b| load(a).total_cmp(&load(b)).then(a.cmp(b)));
    let (low, high) = hosts.split_at_mut(middle);
    for half in [low, high] {
        divide(half, blocks / 2, (metric + 1) % M, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::problem::Problem;
    use crate::yardstick;

    #[test]
    fn a_scan_agrees_with_weighing_every_host() {
        for (hosts, unequal) in [(12, false), (12, true), (150, false), (151, true)] {
            let mut snapshot = yardstick::cluster(hosts, hosts * 10, 5);
            if unequal && let Some(host) = snapshot.hosts.values_mut().next() {
                host.capacity.cpu = ballast_model::Millicores::cores(48);
            }
            let problem = Problem::new(&snapshot).unwrap();
            let mut state = State::new(&problem);
            let mut scan = Scan::new(&state);
            for vm in problem.vm_ixs() {
                let gains = problem.host_ixs().filter(|host| *host != state.at(vm));
                let most = gains.map(|to| state.gain(vm, to)).fold(f64::MIN, f64::max);
                let found = scan.best(&state, vm, 1e-4, |_| true);
                assert_eq!(found.is_some(), most >= 1e-4, "{most}");
                let Some(best) = found else { continue };
                assert!((best.gain - most).abs() < 1e-9);
                let from = state.at(vm);
                state.shift(vm, best.to);
                scan.note(&state, [from, best.to]);
            }
        }
    }
}
