//! Levelling: best-improvement local search over single moves, then swaps.
//!
//! Hosts are taken from the most loaded down; each gives away its best VM as
//! long as that is worth it. When a sweep over all hosts moves nothing, swaps
//! with the least loaded hosts are tried. A sweep costs one O(1) evaluation for
//! each VM and target.

use crate::door::problem::{HostIx, VmIx};
use crate::door::state::{Cause, State};
use crate::score::{METRICS, spread_bound};
use crate::solve::Solver;

/// The most sweeps in one run.
const SWEEPS_MAX: usize = 64;
/// How many of the least loaded hosts are swap partners.
const SWAP_PARTNERS_MAX: usize = 16;
/// How many of the best swaps of a host are tried before it is left alone.
const SWAP_TRIES_MAX: usize = 16;

/// A move and what it is worth.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Best {
    /// By how much the spread falls.
    pub(crate) gain: f64,
    pub(crate) vm: VmIx,
    pub(crate) to: HostIx,
}

impl Best {
    /// Larger gain, then less memory to move, then smaller numbers.
    fn is_better_than(&self, other: &Self, state: &State<'_, '_>) -> bool {
        let memory = |best: &Self| state.problem.vm(best.vm).memory;
        other
            .gain
            .total_cmp(&self.gain)
            .then(memory(self).cmp(&memory(other)))
            .then((self.vm, self.to).cmp(&(other.vm, other.to)))
            .is_lt()
    }
}

/// Moves and swaps VMs until no move is worth it.
pub(super) fn level(solver: &mut Solver<'_, '_, '_>) {
    let floor = solver.options.gain_floor();
    for _ in 0..SWEEPS_MAX {
        // No move lowers the spread by more than what is above its bound.
        if solver.state.sums().spread() - spread_bound() < floor {
            return;
        }
        let order = from_most_loaded(solver.state);
        let mut moved = false;
        for host in &order {
            moved |= give_away(solver, *host, floor);
        }
        if !moved && !order.iter().any(|host| swap(solver, *host, &order, 2.0 * floor)) {
            return;
        }
    }
}

fn from_most_loaded(state: &State<'_, '_>) -> Vec<HostIx> {
    let weighted = |host: HostIx| -> f64 {
        state.loads(host).iter().zip(METRICS).map(|(load, metric)| load * metric.weight).sum()
    };
    let problem = state.problem;
    let mut order: Vec<(f64, HostIx)> = problem
        .host_ixs()
        .filter(|host| problem.host(*host).counts())
        .map(|host| (weighted(host), host))
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    order.into_iter().map(|(_, host)| host).collect()
}

fn give_away(solver: &mut Solver<'_, '_, '_>, host: HostIx, floor: f64) -> bool {
    let mut moved = false;
    for _ in 0..solver.state.vms_on(host).len() {
        let Some(best) = best_from(solver, host, floor) else { break };
        solver.make(best.vm, best.to, Cause::Balance);
        moved = true;
    }
    moved
}

fn best_from(solver: &Solver<'_, '_, '_>, host: HostIx, floor: f64) -> Option<Best> {
    let (state, problem) = (&*solver.state, solver.state.problem);
    let mut best: Option<Best> = None;
    for &vm in state.vms_on(host) {
        if !problem.may_move(vm, Cause::Balance) {
            continue;
        }
        let departure = state.departure(vm);
        for to in problem.host_ixs() {
            if !problem.host(to).counts() || to == host {
                continue;
            }
            let found = Best { gain: state.gain_after(departure, vm, to), vm, to };
            if found.gain >= floor
                && best.as_ref().is_none_or(|best| found.is_better_than(best, state))
                && allowed(solver, vm, to)
            {
                best = Some(found);
            }
        }
    }
    best
}

/// Whether a balance move breaks nothing and gives up no preference.
fn allowed(solver: &Solver<'_, '_, '_>, vm: VmIx, to: HostIx) -> bool {
    let state = &*solver.state;
    state.obstacle(vm, to).is_none()
        && state.cpu_allows(vm, to, Cause::Balance, solver.options)
        && state.preference_change(vm, to) <= 0
        && state.discrete_broken(vm, to).is_none()
}

/// Makes the best swap of a VM on `host` with one on a less loaded host, if any is worth it.
fn swap(solver: &mut Solver<'_, '_, '_>, host: HostIx, order: &[HostIx], floor: f64) -> bool {
    let (state, problem) = (&*solver.state, solver.state.problem);
    let mut swaps = Vec::new();
    for partner in order.iter().rev().take(SWAP_PARTNERS_MAX).filter(|other| **other != host) {
        for &one in state.vms_on(host) {
            if !problem.may_move(one, Cause::Balance) {
                continue;
            }
            for &other in state.vms_on(*partner) {
                let gain = state.swap_gain(one, other);
                if gain >= floor && problem.may_move(other, Cause::Balance) {
                    swaps.push((gain, one, other));
                }
            }
        }
    }
    swaps.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    swaps
        .into_iter()
        .take(SWAP_TRIES_MAX)
        .any(|(_, one, other)| exchange(solver, one, other) || exchange(solver, other, one))
}

/// Moves `first`, then `second` to where `first` was; nothing if either is not allowed.
fn exchange(solver: &mut Solver<'_, '_, '_>, first: VmIx, second: VmIx) -> bool {
    let (a, b) = (solver.state.at(first), solver.state.at(second));
    if !allowed(solver, first, b) {
        return false;
    }
    solver.make(first, b, Cause::Balance);
    if allowed(solver, second, a) {
        if let Some(half) = solver.moves.last_mut() {
            half.opens_swap = true;
        }
        solver.make(second, a, Cause::Balance);
        return true;
    }
    solver.unmake();
    false
}

/// The best target of a VM for balance, obstacles or not.
pub(super) fn best_unhindered(state: &State<'_, '_>, vm: VmIx) -> Option<Best> {
    let departure = state.departure(vm);
    let mut best: Option<Best> = None;
    for to in state.problem.host_ixs() {
        if !state.problem.host(to).counts() || to == state.at(vm) {
            continue;
        }
        let found = Best { gain: state.gain_after(departure, vm, to), vm, to };
        if best.as_ref().is_none_or(|best| found.is_better_than(best, state)) {
            best = Some(found);
        }
    }
    best
}
