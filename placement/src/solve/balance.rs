//! Levelling: best-improvement local search over single moves, then swaps.
//!
//! The best move of all VMs is made as long as it is worth it, then those are taken back that do not pay any
//! more. When a sweep moves nothing, swaps with the least loaded hosts are tried, and when those do not pay either, what
//! is better with as many moves ([`polish`]), and last what VMs that go only together gain ([`group_moves`]).
//! A sweep costs one O(1) evaluation for each VM and target at most.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::door::groups::is_held;
use crate::door::losses::Survey;
use crate::door::problem::{HostIx, VmIx};
use crate::door::state::{Cause, State};
use crate::solve::scan::Scan;
use crate::solve::{Solver, group_moves, polish};

/// The most sweeps in one run.
const SWEEPS_MAX: usize = 64;
/// How often the moves found are polished.
const POLISHES_MAX: usize = 4;
/// How many of the least loaded hosts are swap partners.
pub(super) const SWAP_PARTNERS_MAX: usize = 16;
/// How many of the best swaps of a host are tried before it is left alone.
pub(super) const SWAP_TRIES_MAX: usize = 16;
/// Differences of the spread below this are rounding.
pub(super) const NOISE: f64 = 1e-9;

/// A move and what it is worth.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Best {
    /// By how much the spread falls.
    pub(crate) gain: f64,
    pub(crate) to: HostIx,
}

/// Moves and swaps VMs until no move is worth it.
pub(super) fn level(solver: &mut Solver<'_, '_, '_>) {
    let floor = solver.options.gain_floor();
    let home = solver.home();
    let mut polishes = 0;
    for _ in 0..SWEEPS_MAX {
        // No move lowers the spread by more than all of it.
        if solver.state.sums().spread() < floor {
            return;
        }
        let mut moved = give_away(solver, floor);
        moved |= take_back(solver, &home, floor);
        if !moved {
            let order = from_most_loaded(solver.state);
            for host in &order {
                moved |= swap(solver, *host, &order, floor);
            }
        }
        if !moved && polishes < POLISHES_MAX {
            polishes += 1;
            moved = polish::polish(solver, floor);
        }
        if !moved {
            moved = group_moves::move_groups(solver, &home, floor);
        }
        if !moved {
            return;
        }
    }
}

/// The hosts that count, the most loaded first.
pub(super) fn from_most_loaded(state: &State<'_, '_>) -> Vec<HostIx> {
    let problem = state.problem;
    let weighted = |host: HostIx| -> f64 {
        state.loads(host).iter().zip(problem.weights).map(|(load, weight)| load * weight).sum()
    };
    let mut order: Vec<(f64, HostIx)> = problem
        .host_ixs()
        .filter(|host| problem.host(*host).counts())
        .map(|host| (weighted(host), host))
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    order.into_iter().map(|(_, host)| host).collect()
}

/// A move in the queue: the larger gain less what it costs more than an ordinary one first, then less memory, then the
/// smaller number. What is left of the gain is positive, so its bits are in its order.
type Queued = (u64, Reverse<u64>, Reverse<VmIx>, HostIx, u64);

/// Makes the best of all moves as long as one is worth it. Each VM's best is weighed once; only what comes to the
/// top of the queue is weighed again, when one of its hosts has changed since.
fn give_away(solver: &mut Solver<'_, '_, '_>, floor: f64) -> bool {
    let problem = solver.state.problem;
    let mut scan = Scan::new(solver.state);
    let mut changes = vec![0_u64; problem.hosts.len()];
    let weigh = |solver: &Solver<'_, '_, '_>, scan: &Scan, changes: &[u64], vm: VmIx| {
        let counts = problem.host(solver.state.at(vm)).counts();
        if !counts || !may_go_alone(solver.state, vm) {
            return None;
        }
        let info = problem.vm(vm);
        let price = floor * info.price;
        let best = scan.best(solver.state, vm, price, |to| allowed(solver, vm, to))?;
        let stamp = changes[solver.state.at(vm).0] + changes[best.to.0];
        let net = best.gain - (price - floor);
        Some((net.to_bits(), Reverse(info.memory), Reverse(vm), best.to, stamp))
    };
    let mut queue: BinaryHeap<Queued> =
        problem.vm_ixs().filter_map(|vm| weigh(solver, &scan, &changes, vm)).collect();
    let mut moved = false;
    while let Some((_, _, Reverse(vm), to, stamp)) = queue.pop() {
        let from = solver.state.at(vm);
        if stamp != changes[from.0] + changes[to.0] {
            queue.extend(weigh(solver, &scan, &changes, vm));
            continue;
        }
        solver.make(vm, to, Cause::Balance);
        scan.note(solver.state, [from, to]);
        changes[from.0] += 1;
        changes[to.0] += 1;
        moved = true;
    }
    moved
}

/// Sends VMs home whose move does not pay any more, now that others have moved.
fn take_back(solver: &mut Solver<'_, '_, '_>, home: &[HostIx], floor: f64) -> bool {
    let problem = solver.state.problem;
    let mut moved = false;
    for vm in problem.vm_ixs() {
        let (at, back) = (solver.state.at(vm), home[vm.0]);
        let counts = problem.host(back).counts() && problem.may_move(vm, Cause::Balance);
        if at != back
            && counts
            && solver.state.gain(vm, back) > NOISE - floor * problem.vm(vm).price
            && allowed(solver, vm, back)
        {
            solver.make(vm, back, Cause::Balance);
            moved = true;
        }
    }
    moved
}

/// Whether the VM may move for balance, and no rule holds it where it is.
pub(super) fn may_go_alone(state: &State<'_, '_>, vm: VmIx) -> bool {
    state.problem.may_move(vm, Cause::Balance) && !is_held(state, vm)
}

/// Whether a balance move breaks nothing and gives up no preference.
pub(super) fn allowed(solver: &Solver<'_, '_, '_>, vm: VmIx, to: HostIx) -> bool {
    let state = &*solver.state;
    state.obstacle_but_losses(vm, to).is_none()
        && state.cpu_allows(vm, to, Cause::Balance, solver.options)
        && state.preference_change(vm, to) <= 0
        && state.discrete_broken(vm, to).is_none()
        && Survey::new(state, vm).keeps(to)
}

/// Makes the best swap of a VM on `host` with one on a less loaded host, if any is worth it.
fn swap(solver: &mut Solver<'_, '_, '_>, host: HostIx, order: &[HostIx], floor: f64) -> bool {
    let (state, problem) = (&*solver.state, solver.state.problem);
    let mut swaps = Vec::new();
    let hopeful =
        |other: &&HostIx| **other != host && swap_bound(state, host, **other) >= 2.0 * floor;
    for partner in order.iter().rev().take(SWAP_PARTNERS_MAX).filter(hopeful) {
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
    swaps
        .into_iter()
        .take(SWAP_TRIES_MAX)
        .any(|(_, one, other)| exchange(solver, one, other) || exchange(solver, other, one))
}

/// No swap between the hosts lowers the spread by more: at best both are at the mean afterwards, and the mean where the
/// others are.
pub(super) fn swap_bound(state: &State<'_, '_>, one: HostIx, other: HostIx) -> f64 {
    let hosts = state.problem.counted.len();
    if hosts <= 2 {
        return f64::INFINITY;
    }
    let mut bound = 0.0;
    for (m, weight) in state.problem.weights.iter().enumerate() {
        let mean = state.sums().sum(m) / hosts as f64;
        let off = |host: HostIx| (state.loads(host)[m] - mean).powi(2);
        bound += weight * (off(one) + off(other));
    }
    bound * (1.0 + 2.0 / (hosts - 2) as f64)
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

/// The best target of a VM for balance if it is worth `floor`, obstacles or not.
pub(super) fn best_unhindered(
    state: &State<'_, '_>,
    scan: &Scan,
    vm: VmIx,
    floor: f64,
) -> Option<Best> {
    scan.best(state, vm, floor, |_| true)
}
