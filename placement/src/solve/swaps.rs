//! Swaps: two VMs change hosts, one of a more loaded host with one of a less loaded one.
//!
//! Each host, the most loaded first, exchanges VMs with those that are least loaded just then, as long as that pays. What
//! has been weighed and not changed since is left out.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::door::problem::{HostIx, VmIx};
use crate::door::state::{Cause, State};
use crate::solve::Solver;
use crate::solve::balance::{allowed, may_go_alone};

/// How many of the least loaded hosts are swap partners.
pub(super) const SWAP_PARTNERS_MAX: usize = 16;
/// How many of the best swaps of a host are tried before it is left alone.
pub(super) const SWAP_TRIES_MAX: usize = 16;

/// Passes over all hosts.
pub(super) struct Swaps {
    /// By host, when no swap with a partner was worth it.
    seen: Vec<Option<u64>>,
    /// The partners, and since when they are.
    partners: Vec<(HostIx, u64)>,
}

impl Swaps {
    pub(super) fn new(solver: &Solver<'_, '_, '_>) -> Self {
        Self { seen: vec![None; solver.state.problem.hosts.len()], partners: Vec::new() }
    }

    /// Makes swaps as long as one is worth it; whether any was.
    pub(super) fn pass(&mut self, solver: &mut Solver<'_, '_, '_>, floor: f64) -> bool {
        let mut ranks = Ranks::new(solver.state);
        self.choose_partners(&ranks, solver.now);
        let mut moved = false;
        for host in ranks.most_loaded_first() {
            while let Some(partner) = self.swap(solver, host, floor) {
                ranks.note(solver.state, [host, partner]);
                self.choose_partners(&ranks, solver.now);
                moved = true;
            }
            self.seen[host.0] = Some(solver.now);
        }
        moved
    }

    fn choose_partners(&mut self, ranks: &Ranks, now: u64) {
        let since = |host: HostIx| {
            let before = self.partners.iter().find(|(partner, _)| *partner == host);
            before.map_or((host, now), |before| *before)
        };
        self.partners = ranks.least_loaded().take(SWAP_PARTNERS_MAX).map(since).collect();
    }

    /// Makes the best swap of a VM on `host` with one of a partner, if any is worth it; with which partner.
    fn swap(&self, solver: &mut Solver<'_, '_, '_>, host: HostIx, floor: f64) -> Option<HostIx> {
        let (state, problem) = (&*solver.state, solver.state.problem);
        let mut swaps = Vec::new();
        let is_hopeful = |(partner, since): &&(HostIx, u64)| {
            let changed = solver.changed[host.0].max(solver.changed[partner.0]).max(*since);
            *partner != host
                && self.seen[host.0].is_none_or(|seen| seen < changed)
                && swap_bound(state, host, *partner) >= 2.0 * floor
        };
        for (partner, _) in self.partners.iter().filter(is_hopeful) {
            for &one in state.vms_on(host) {
                if !may_go_alone(state, one) {
                    continue;
                }
                for &other in state.vms_on(*partner) {
                    let gain = state.swap_gain(one, other);
                    let price = floor * (problem.vm(one).price + problem.vm(other).price);
                    if gain >= price && may_go_alone(state, other) {
                        swaps.push((gain, one, other));
                    }
                }
            }
        }
        swaps.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        swaps.into_iter().take(SWAP_TRIES_MAX).find_map(|(_, one, other)| {
            let partner = solver.state.at(other);
            let made = exchange(solver, one, other) || exchange(solver, other, one);
            made.then_some(partner)
        })
    }
}

/// The hosts that count by their load, as it changes.
struct Ranks {
    /// The load is not negative, so its bits are in its order.
    by_load: BTreeSet<(u64, Reverse<HostIx>)>,
    /// By host, as it stands there.
    load: Vec<u64>,
}

impl Ranks {
    fn new(state: &State<'_, '_>) -> Self {
        let load: Vec<u64> =
            state.problem.host_ixs().map(|host| weighted(state, host).to_bits()).collect();
        let rank = |host: &HostIx| (load[host.0], Reverse(*host));
        Self { by_load: state.problem.counted.iter().map(rank).collect(), load }
    }

    fn note(&mut self, state: &State<'_, '_>, changed: [HostIx; 2]) {
        for host in changed {
            self.by_load.remove(&(self.load[host.0], Reverse(host)));
            self.load[host.0] = weighted(state, host).to_bits();
            self.by_load.insert((self.load[host.0], Reverse(host)));
        }
    }

    fn most_loaded_first(&self) -> Vec<HostIx> {
        self.by_load.iter().rev().map(|(_, Reverse(host))| *host).collect()
    }

    fn least_loaded(&self) -> impl Iterator<Item = HostIx> {
        self.by_load.iter().map(|(_, Reverse(host))| *host)
    }
}

/// The load of a host in one figure.
fn weighted(state: &State<'_, '_>, host: HostIx) -> f64 {
    state.loads(host).iter().zip(state.problem.weights).map(|(load, weight)| load * weight).sum()
}

/// The hosts that count, the most loaded first.
pub(super) fn from_most_loaded(state: &State<'_, '_>) -> Vec<HostIx> {
    Ranks::new(state).most_loaded_first()
}

/// No swap between the hosts lowers the spread by more: at best both are at the mean afterwards, and the mean where the
/// others are.
pub(super) fn swap_bound(state: &State<'_, '_>, one: HostIx, other: HostIx) -> f64 {
    levelling_bound(state, off(state, one) + off(state, other))
}

/// The same for two hosts that are [`off`] by so much together, for whatever goes from one to the other.
pub(super) fn levelling_bound(state: &State<'_, '_>, off: f64) -> f64 {
    match state.problem.counted.len() {
        0..=2 => f64::INFINITY,
        hosts => off * (1.0 + 2.0 / (hosts - 2) as f64),
    }
}

/// How far the host is from the mean, squared and weighted: its part of the spread.
pub(super) fn off(state: &State<'_, '_>, host: HostIx) -> f64 {
    let hosts = state.problem.counted.len().max(1) as f64;
    let loads = state.loads(host);
    let squared = |m: usize| (loads[m] - state.sums().sum(m) / hosts).powi(2);
    state.problem.weights.iter().enumerate().map(|(m, weight)| weight * squared(m)).sum()
}

/// Moves `first`, then `second` to where `first` was; nothing if either is not allowed.
pub(super) fn exchange(solver: &mut Solver<'_, '_, '_>, first: VmIx, second: VmIx) -> bool {
    let (a, b) = (solver.state.at(first), solver.state.at(second));
    if !allowed(solver, first, b) {
        return false;
    }
    solver.make(first, b, Cause::Balance);
    if allowed(solver, second, a) {
        solver.make(second, a, Cause::Balance);
        return true;
    }
    solver.unmake();
    false
}
