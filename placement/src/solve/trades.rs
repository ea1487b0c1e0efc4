//! What it is worth that two VMs that move exchange their targets.
//!
//! Most trades are worth nothing and there are very many, so they are weighed from
//! flat tables. Whoever makes one tells the tables ([`Trades::note`]).

use crate::door::problem::{HostInfo, HostIx, VmIx};
use crate::door::state::State;
use crate::score::{METRICS, Weights};

pub(super) struct Trades<'h> {
    /// Where each VM was at the beginning.
    home: &'h [HostIx],
    vms: Vec<VmIx>,
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

impl<'h> Trades<'h> {
    pub(super) fn new(
        home: &'h [HostIx],
        floor: f64,
        state: &State<'_, '_>,
        moved: &[VmIx],
    ) -> Self {
        let problem = state.problem;
        let size = |vm: &VmIx| [problem.vm(*vm).cpu as f64, problem.vm(*vm).memory as f64];
        let per_unit = |host: &HostInfo<'_>| {
            [host.cpu, host.memory].map(|capacity| 1.0 / capacity.max(1) as f64)
        };
        let per_host = 1.0 / problem.counted.len().max(1) as f64;
        Self {
            home,
            vms: moved.to_vec(),
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

    /// Of the VMs with these numbers in the list.
    pub(super) fn worth(&self, one: usize, other: usize) -> f64 {
        let (a, b) = (self.at[one], self.at[other]);
        if a == b {
            return 0.0;
        }
        let mut worth = 0.0;
        for (m, weight) in self.weights.iter().enumerate() {
            let more = self.size[other][m] - self.size[one][m];
            let (here, there) = (more * self.per_unit[a.0][m], -more * self.per_unit[b.0][m]);
            let sum = here + there;
            let rise =
                here * (2.0 * self.load[a.0][m] + here) + there * (2.0 * self.load[b.0][m] + there);
            worth -= weight * (rise - sum * (self.means[m] + sum * self.per_host));
        }
        for (vm, to) in [(one, b), (other, a)] {
            if self.home[self.vms[vm].0] == to {
                worth += self.price[vm];
            }
        }
        worth
    }

    /// After VMs on these hosts have changed places.
    pub(super) fn note(&mut self, state: &State<'_, '_>, changed: [HostIx; 2]) {
        for host in changed {
            self.load[host.0] = state.loads(host);
        }
        for (at, vm) in self.at.iter_mut().zip(&self.vms) {
            *at = state.at(*vm);
        }
        self.means = std::array::from_fn(|m| 2.0 * state.sums().sum(m) * self.per_host);
    }
}
