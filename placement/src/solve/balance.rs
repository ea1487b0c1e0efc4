//! Levelling: best-improvement local search over single moves, then swaps.
//!
//! The best move of all VMs is made as long as it is worth it, then those are taken back that do not pay any
//! more. When a sweep moves nothing, swaps with the least loaded hosts are tried, and when those do not pay either, what
//! is better with as many moves ([`polish`]), and last what VMs that go only together gain ([`group_moves`]).
//! A sweep weighs what can have changed since the one before ([`Singles`], [`Swaps`]): the first, and the last, each VM.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::door::groups::is_held;
use crate::door::losses::Survey;
use crate::door::problem::{HostIx, VmIx};
use crate::door::state::{Cause, State};
use crate::solve::scan::Scan;
use crate::solve::swaps::{Swaps, levelling_bound, off};
use crate::solve::{Solver, group_moves, polish};

/// The most sweeps in one run.
const SWEEPS_MAX: usize = 256;
/// How often the moves found are polished.
const POLISHES_MAX: usize = 4;
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
    let (mut singles, mut swaps) = (Singles::new(solver), Swaps::new(solver));
    for _ in 0..SWEEPS_MAX {
        // No move lowers the spread by more than all of it.
        if solver.state.sums().spread() < floor {
            return;
        }
        let is_whole = singles.seen.is_none();
        let mut moved = singles.give_away(solver, floor);
        moved |= take_back(solver, &home, floor);
        if !moved {
            moved = swaps.pass(solver, floor);
        }
        if !moved && !is_whole {
            singles.seen = None;
            swaps = Swaps::new(solver);
            continue;
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

/// A move in the queue: the larger gain less what it costs more than an ordinary one first, then less memory, then the
/// smaller number. What is left of the gain is positive, so its bits are in its order.
type Queued = (u64, Reverse<u64>, Reverse<VmIx>, HostIx, u64);

/// Sweeps over single moves.
///
/// The first weighs all. Those after it weigh what can be worth more than it was: what has to do with hosts that have
/// changed. That is almost all; the mean load and rules over several hosts may change the rest, so where a sweep finds
/// nothing the next one weighs all again.
struct Singles {
    scan: Scan,
    /// The time that the scan is of.
    noted: u64,
    /// When the last sweep began; none: the next one weighs all.
    seen: Option<u64>,
}

impl Singles {
    fn new(solver: &Solver<'_, '_, '_>) -> Self {
        Self { scan: Scan::new(solver.state), noted: solver.now, seen: None }
    }

    /// Makes the best of all moves as long as one is worth it. Each VM's best is weighed once; only what comes to the
    /// top of the queue is weighed again, when one of its hosts has changed since.
    fn give_away(&mut self, solver: &mut Solver<'_, '_, '_>, floor: f64) -> bool {
        let problem = solver.state.problem;
        let may = may_give(solver, floor, self.seen);
        self.seen = Some(solver.now);
        if !may.contains(&true) {
            return false;
        }
        self.scan.note(solver.state, solver.changed_since(self.noted));
        let weigh = |solver: &Solver<'_, '_, '_>, scan: &Scan, vm: VmIx| {
            let at = solver.state.at(vm);
            if !problem.host(at).counts() || !may_go_alone(solver.state, vm) {
                return None;
            }
            let info = problem.vm(vm);
            let price = floor * info.price;
            let best = scan.best(solver.state, vm, price, |to| allowed(solver, vm, to))?;
            let net = best.gain - (price - floor);
            let weighed = solver.now;
            Some((net.to_bits(), Reverse(info.memory), Reverse(vm), best.to, weighed))
        };
        let mut queue: BinaryHeap<Queued> = problem
            .vm_ixs()
            .filter(|vm| may[solver.state.at(*vm).0])
            .filter_map(|vm| weigh(solver, &self.scan, vm))
            .collect();
        let mut moved = false;
        while let Some((_, _, Reverse(vm), to, weighed)) = queue.pop() {
            let from = solver.state.at(vm);
            if solver.changed[from.0].max(solver.changed[to.0]) > weighed {
                queue.extend(weigh(solver, &self.scan, vm));
                continue;
            }
            solver.make(vm, to, Cause::Balance);
            self.scan.note(solver.state, [from, to]);
            moved = true;
        }
        self.noted = solver.now;
        moved
    }
}

/// By host, whether a move from there can be worth it that was not at that time: the host has changed, or another one that
/// is as far from the mean as that takes.
fn may_give(solver: &Solver<'_, '_, '_>, floor: f64, since: Option<u64>) -> Vec<bool> {
    let (state, problem) = (&*solver.state, solver.state.problem);
    let mut may = vec![since.is_none(); problem.hosts.len()];
    let Some(since) = since else { return may };
    let is_new = |host: &HostIx| solver.changed[host.0] > since;
    let new = problem.counted.iter().filter(|host| is_new(host));
    let Some(farthest) = new.map(|host| off(state, *host)).reduce(f64::max) else { return may };
    for host in &problem.counted {
        may[host.0] = is_new(host) || levelling_bound(state, off(state, *host) + farthest) >= floor;
    }
    may
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

/// The best target of a VM for balance if it is worth `floor`, obstacles or not.
pub(super) fn best_unhindered(
    state: &State<'_, '_>,
    scan: &Scan,
    vm: VmIx,
    floor: f64,
) -> Option<Best> {
    scan.best(state, vm, floor, |_| true)
}
