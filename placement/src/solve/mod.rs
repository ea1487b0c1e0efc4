//! Solving: a few named steps, repeated until none finds anything more to do.
//!
//! Every step only makes moves that are allowed in the state they are made in,
//! so the list of moves is executable one after the other. Each kind of move
//! lowers something and raises nothing of greater weight:
//!
//! 1. [`forced::mend`]: broken hard rules, memory over capacity
//! 2. [`forced::drain`]: VMs on hosts being emptied
//! 3. [`forced::prefer`]: preferences not met
//! 4. [`balance::level`]: the spread
//!
//! VMs that a hard rule holds together move as one where none of them may move
//! alone ([`together`], and [`group_moves`] for the spread). So the repetition ends, and where it ends no step of a new run finds
//! anything: the plan is settled.

mod aim;
mod anneal;
mod balance;
pub(crate) mod exact;
mod forced;
pub(crate) mod group_moves;
pub(crate) mod joint;
mod movers;
mod polish;
pub(crate) mod scan;
mod swaps;
mod target;
mod together;

pub(crate) use balance::Best;
pub(crate) use target::best_target;

use crate::door::problem::{HostIx, VmIx};
use crate::door::state::{Cause, Move, State};
use crate::options::PlanOptions;

/// The most repetitions; more than a handful has not been seen.
const PASSES_MAX: usize = 16;

/// A state and the moves that led to it.
pub(crate) struct Solver<'s, 'p, 'a> {
    pub(crate) state: &'s mut State<'p, 'a>,
    pub(crate) options: &'s PlanOptions,
    pub(crate) moves: Vec<Move>,
    /// Counts the moves made and taken back.
    now: u64,
    /// By host, when a move last left or reached it; 0: never.
    changed: Vec<u64>,
}

impl<'s, 'p, 'a> Solver<'s, 'p, 'a> {
    fn new(state: &'s mut State<'p, 'a>, options: &'s PlanOptions) -> Self {
        let changed = vec![0; state.problem.hosts.len()];
        Self { state, options, moves: Vec::new(), now: 0, changed }
    }

    fn make(&mut self, vm: VmIx, to: HostIx, cause: Cause) {
        let from = self.state.at(vm);
        self.moves.push(Move { vm, from, to, cause });
        self.shift(vm, to);
    }

    fn shift(&mut self, vm: VmIx, to: HostIx) {
        self.now += 1;
        self.changed[self.state.at(vm).0] = self.now;
        self.changed[to.0] = self.now;
        self.state.shift(vm, to);
    }

    /// The hosts that a move has left or reached after that time.
    fn changed_since(&self, then: u64) -> Vec<HostIx> {
        self.state.problem.host_ixs().filter(|host| self.changed[host.0] > then).collect()
    }

    /// Where each VM is before the plan.
    fn home(&self) -> Vec<HostIx> {
        self.state.problem.vms.iter().map(|vm| vm.bound_for.unwrap_or(vm.host)).collect()
    }

    /// Takes moves back until so many are left.
    fn take_back_to(&mut self, left: usize) {
        while self.moves.len() > left {
            self.unmake();
        }
    }

    /// Takes the last move back.
    fn unmake(&mut self) {
        if let Some(last) = self.moves.pop() {
            self.shift(last.vm, last.from);
        }
    }
}

/// Improves the state until nothing improves it any more; returns the moves in order.
pub(crate) fn solve(state: &mut State<'_, '_>, options: &PlanOptions) -> Vec<Move> {
    let mut solver = Solver::new(state, options);
    for _ in 0..PASSES_MAX {
        let before = solver.moves.len();
        forced::mend(&mut solver);
        if options.causes.drain {
            forced::drain(&mut solver);
            forced::leave_quarantine(&mut solver);
        }
        if options.causes.preferences {
            forced::prefer(&mut solver);
        }
        if options.causes.balance {
            balance::level(&mut solver);
        }
        if solver.moves.len() == before {
            break;
        }
    }
    solver.moves
}

/// Brings a state down to the moves for balance that the plan's budget allows, as good as those can make it.
pub(crate) fn fit(state: &mut State<'_, '_>, options: &PlanOptions) {
    let mut solver = Solver::new(state, options);
    polish::fit(&mut solver, options.gain_floor());
}

/// The best move of the VM for balance if nothing but rules of thumb stood in its way and it is worth `floor`: what a
/// verdict explains.
pub(crate) fn best_unhindered(
    state: &State<'_, '_>,
    scan: &scan::Scan,
    vm: VmIx,
    floor: f64,
) -> Option<Best> {
    balance::best_unhindered(state, scan, vm, floor)
}
