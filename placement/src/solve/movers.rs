//! What it is worth that VMs that move go elsewhere, or exchange their targets.
//!
//! Most of that is worth nothing and there is very much of it, so it is weighed from
//! flat tables. Whoever makes a move tells the tables ([`Movers::note`]).

use crate::door::problem::{HostInfo, HostIx, VmIx};
use crate::door::state::State;
use crate::score::{METRICS, Weights};

pub(super) struct Movers {
    vms: Vec<VmIx>,
    /// Where each was at the beginning.
    home: Vec<HostIx>,
    /// What the move of each must be worth.
    price: Vec<f64>,
    at: Vec<HostIx>,
    /// In millicores and bytes.
    size: Vec<[f64; METRICS.len()]>,
    /// By host.
    load: Vec<[f64; METRICS.len()]>,
    /// By host, one by the capacity.
    per_unit: Vec<[f64; METRICS.len()]>,
    /// Twice the mean loads.
    means: [f64; METRICS.len()],
    per_host: f64,
    weights: Weights,
}

impl Movers {
    pub(super) fn new(home: &[HostIx], floor: f64, state: &State<'_, '_>, moved: &[VmIx]) -> Self {
        let problem = state.problem;
        let size = |vm: &VmIx| [problem.vm(*vm).cpu as f64, problem.vm(*vm).memory as f64];
        let per_unit = |host: &HostInfo<'_>| {
            [host.cpu, host.memory].map(|capacity| 1.0 / capacity.max(1) as f64)
        };
        let per_host = 1.0 / problem.counted.len().max(1) as f64;
        Self {
            vms: moved.to_vec(),
            home: moved.iter().map(|vm| home[vm.0]).collect(),
            price: moved.iter().map(|vm| floor * problem.vm(*vm).price).collect(),
            at: moved.iter().map(|vm| state.at(*vm)).collect(),
            size: moved.iter().map(size).collect(),
            load: problem.host_ixs().map(|host| state.loads(host)).collect(),
            per_unit: problem.hosts.iter().map(per_unit).collect(),
            means: std::array::from_fn(|m| 2.0 * state.sums().sum(m) * per_host),
            per_host,
            weights: problem.weights,
        }
    }

    /// By how much the spread falls when the VM with that number in the list goes to a host, and what it saves that it is home
    /// then.
    pub(super) fn shift_worth(&self, one: usize, to: HostIx) -> f64 {
        let at = self.at[one];
        let mut worth = 0.0;
        for (m, weight) in self.weights.iter().enumerate() {
            let size = self.size[one][m];
            let (here, there) = (-size * self.per_unit[at.0][m], size * self.per_unit[to.0][m]);
            worth -= weight * self.rise(m, [(at, here), (to, there)]);
        }
        worth + self.saved(one, to)
    }

    /// The VM for which it is worth most to go to that host, and more than `least`, of those that are not at home.
    pub(super) fn best_for(&self, to: HostIx, least: f64) -> Option<usize> {
        let mut best = (least, None);
        for n in 0..self.vms.len() {
            if self.at[n] != to && self.at[n] != self.home[n] {
                let worth = self.shift_worth(n, to);
                if worth > best.0 {
                    best = (worth, Some(n));
                }
            }
        }
        best.1
    }

    /// Those of a host that are not at home.
    pub(super) fn away_from(&self, host: HostIx) -> impl Iterator<Item = usize> {
        (0..self.vms.len()).filter(move |n| self.home[*n] == host && self.at[*n] != host)
    }

    /// What [`Movers::shift_worth`] is of one VM, of two that change places.
    pub(super) fn trade_worth(&self, one: usize, other: usize) -> f64 {
        let (a, b) = (self.at[one], self.at[other]);
        if a == b {
            return 0.0;
        }
        let mut worth = 0.0;
        for (m, weight) in self.weights.iter().enumerate() {
            let more = self.size[other][m] - self.size[one][m];
            let (here, there) = (more * self.per_unit[a.0][m], -more * self.per_unit[b.0][m]);
            worth -= weight * self.rise(m, [(a, here), (b, there)]);
        }
        worth + self.saved(one, b) + self.saved(other, a)
    }

    /// By how much the spread of a metric rises with that much more, or less, on two hosts.
    fn rise(&self, metric: usize, [(a, here), (b, there)]: [(HostIx, f64); 2]) -> f64 {
        let square = |host: HostIx, more: f64| more * (2.0 * self.load[host.0][metric] + more);
        let sum = here + there;
        square(a, here) + square(b, there) - sum * (self.means[metric] + sum * self.per_host)
    }

    /// What a VM's move must be worth, if it would be home there.
    fn saved(&self, vm: usize, to: HostIx) -> f64 {
        if self.home[vm] == to { self.price[vm] } else { 0.0 }
    }

    /// After moves from or to these hosts, by VMs that may be among those with these numbers.
    pub(super) fn note(
        &mut self,
        state: &State<'_, '_>,
        hosts: [HostIx; 2],
        vms: impl IntoIterator<Item = usize>,
    ) {
        for host in hosts {
            self.load[host.0] = state.loads(host);
        }
        for vm in vms {
            self.at[vm] = state.at(self.vms[vm]);
        }
        self.means = std::array::from_fn(|m| 2.0 * state.sums().sum(m) * self.per_host);
    }
}
