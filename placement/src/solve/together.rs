//! Moves of several VMs as one, for those that a hard rule does not let move alone.
//!
//! A rule that has to hold in the end may be broken between the moves of a group, never after the last of them: either
//! all of the group have a place where every hard rule is as whole as before, or none moves.

use std::cmp::Reverse;

use crate::door::groups::{hard_faults, is_as_whole};
use crate::door::losses::Survey;
use crate::door::problem::{HostIx, VmIx};
use crate::door::state::{Cause, State};
use crate::solve::Solver;
use crate::solve::target::{Fit, best, fits};

/// VMs that are placed on trial for one group: large groups have fewer tries.
pub(super) const PLACED_MAX: usize = 64;

/// Moves those of `group` that may move for this cause, if all of them find a host that `suits` and it ends well; whether
/// they did. The first decides where, the others go where they break least.
pub(super) fn move_all(
    solver: &mut Solver<'_, '_, '_>,
    group: &[VmIx],
    cause: Cause,
    suits: impl Fn(&State<'_, '_>, VmIx, HostIx) -> bool,
    ends_well: impl Fn(&State<'_, '_>) -> bool,
) -> bool {
    let problem = solver.state.problem;
    let group: Vec<VmIx> =
        group.iter().copied().filter(|vm| problem.may_move(*vm, cause)).collect();
    let [first, others @ ..] = group.as_slice() else { return false };
    if others.is_empty() {
        return false;
    }
    let faults = hard_faults(solver.state, &group);
    let made = solver.moves.len();
    for to in starts(solver, &group, cause, &suits) {
        solver.make(*first, to, cause);
        let all = follow(solver, others, cause, &suits);
        if all && is_as_whole(solver.state, &faults) && ends_well(solver.state) {
            return true;
        }
        solver.take_back_to(made);
    }
    false
}

/// Where the first of the group may go: hosts with room for all of them before others.
fn starts(
    solver: &Solver<'_, '_, '_>,
    group: &[VmIx],
    cause: Cause,
    suits: impl Fn(&State<'_, '_>, VmIx, HostIx) -> bool,
) -> Vec<HostIx> {
    let state = &*solver.state;
    let memory = state.problem.memory_of(group);
    let mut open: Vec<(Reverse<bool>, Fit)> = fits(state, group[0], cause, solver.options)
        .filter(|fit| suits(state, group[0], fit.host))
        .map(|fit| (Reverse(state.memory_free(fit.host).get() >= memory), fit))
        .collect();
    open.sort_by(|(room, fit), (other_room, other)| {
        room.cmp(other_room).then_with(|| fit.order(other))
    });
    let tries = (PLACED_MAX / group.len()).max(1);
    let mut survey = Survey::new(state, group[0]);
    let kept = open.into_iter().map(|(_, fit)| fit.host).filter(|host| survey.keeps(*host));
    kept.take(tries).collect()
}

/// Moves the others, each to where it breaks least; whether all found a place.
fn follow(
    solver: &mut Solver<'_, '_, '_>,
    others: &[VmIx],
    cause: Cause,
    suits: impl Fn(&State<'_, '_>, VmIx, HostIx) -> bool,
) -> bool {
    others.iter().all(|vm| {
        let state = &*solver.state;
        let fits =
            fits(state, *vm, cause, solver.options).filter(|fit| suits(state, *vm, fit.host));
        let best = best(state, *vm, fits);
        if let Some(fit) = &best {
            solver.make(*vm, fit.host, cause);
        }
        best.is_some()
    })
}
