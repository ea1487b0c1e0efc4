//! The best target of a VM among all hosts, quickly.
//!
//! What a move is worth depends on the load of its two hosts and on two sums, so
//! a scan over flat arrays of loads takes a few nanoseconds a host. Where all
//! hosts are equal, a host as little loaded in everything as any is in something
//! says what a VM could gain at best: most VMs of a level cluster need no scan.
//!
//! A scan is a copy: whoever moves a VM tells it of both hosts ([`Scan::note`]).

use crate::door::problem::{HostIx, VmIx};
use crate::door::state::State;
use crate::score::METRICS;
use crate::solve::Best;

const M: usize = METRICS.len();

pub(crate) struct Scan {
    /// The hosts that count.
    hosts: Vec<HostIx>,
    /// Index in `hosts`, by host.
    slot: Vec<Option<usize>>,
    load: [Vec<f64>; M],
    /// One by the capacity.
    per_unit: [Vec<f64>; M],
    is_uniform: bool,
    /// The least load of any host, by metric; may be too small, never too large.
    least: [f64; M],
    sum: [f64; M],
}

impl Scan {
    pub(crate) fn new(state: &State<'_, '_>) -> Self {
        let problem = state.problem;
        let hosts: Vec<HostIx> =
            problem.host_ixs().filter(|host| problem.host(*host).counts()).collect();
        let mut slot = vec![None; problem.hosts.len()];
        hosts.iter().enumerate().for_each(|(n, host)| slot[host.0] = Some(n));
        let load = std::array::from_fn(|m| hosts.iter().map(|h| state.loads(*h)[m]).collect());
        let capacity = |host: &HostIx| {
            let info = problem.host(*host);
            [info.cpu, info.memory]
        };
        let per_unit = std::array::from_fn(|m| {
            hosts.iter().map(|host| 1.0 / capacity(host)[m].max(1) as f64).collect()
        });
        let is_uniform = hosts.windows(2).all(|two| capacity(&two[0]) == capacity(&two[1]));
        let mut scan =
            Self { hosts, slot, load, per_unit, is_uniform, least: [0.0; M], sum: [0.0; M] };
        scan.sum_up(state);
        scan.least =
            std::array::from_fn(|m| scan.load[m].iter().copied().fold(f64::INFINITY, f64::min));
        scan
    }

    fn sum_up(&mut self, state: &State<'_, '_>) {
        self.sum = std::array::from_fn(|m| state.sums().sum(m));
    }

    /// After a VM has left or reached these hosts.
    pub(crate) fn note(&mut self, state: &State<'_, '_>, changed: [HostIx; 2]) {
        for host in changed {
            let Some(n) = self.slot[host.0] else { continue };
            for (m, load) in state.loads(host).into_iter().enumerate() {
                self.load[m][n] = load;
                self.least[m] = self.least[m].min(load);
            }
        }
        self.sum_up(state);
    }

    /// The best target of those `suits` lets through and that is worth at least `floor`; of equals the first.
    pub(crate) fn best(
        &self,
        state: &State<'_, '_>,
        vm: VmIx,
        floor: f64,
        mut suits: impl FnMut(HostIx) -> bool,
    ) -> Option<Best> {
        let info = state.problem.vm(vm);
        let departure = state.departure(vm);
        let (before, after) = departure;
        let size = [info.cpu as f64, info.memory as f64];
        let per_host = 1.0 / self.hosts.len().max(1) as f64;
        let change: [f64; M] = std::array::from_fn(|m| after[m] - before[m]);
        let squares: [f64; M] =
            std::array::from_fn(|m| after[m] * after[m] - before[m] * before[m]);
        let worth = |load: [f64; M], share: [f64; M]| {
            let mut gain = 0.0;
            for m in 0..M {
                let sum = change[m] + share[m];
                let rise = squares[m] + share[m] * (2.0 * load[m] + share[m]);
                gain -= METRICS[m].weight * (rise - sum * (2.0 * self.sum[m] + sum) * per_host);
            }
            gain
        };
        let share = |n: usize| std::array::from_fn(|m| size[m] * self.per_unit[m][n]);
        // What rounding may make of a gain.
        let (noise, at) = (1e-12, state.at(vm));
        if self.hosts.is_empty() || self.is_uniform && worth(self.least, share(0)) + noise < floor {
            return None;
        }
        let mut most = floor - noise;
        let mut best = None;
        for n in 0..self.hosts.len() {
            let gain = worth(std::array::from_fn(|m| self.load[m][n]), share(n));
            if gain > most && self.hosts[n] != at && suits(self.hosts[n]) {
                most = gain;
                best = Some(self.hosts[n]);
            }
        }
        let found = best.map(|to| Best { gain: state.gain_after(departure, vm, to), to });
        found.filter(|best| best.gain >= floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::problem::Problem;
    use crate::yardstick;

    #[test]
    fn a_scan_agrees_with_weighing_every_host() {
        let mut snapshot = yardstick::cluster(12, 120, 5);
        for unequal in [false, true] {
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
