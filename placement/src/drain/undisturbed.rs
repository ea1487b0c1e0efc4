//! Hosts are emptied, and no VM moves that could stay.
//!
//! What can leave goes by the descent, and no other VM with it. When one is left behind, way has to be made for it, at
//! first by those that leave anyway and go elsewhere, then by others: one VM steps aside for each that is left
//! ([`mend`]), or what the search for everything finds at the highest price of a move. What of that is not needed is taken
//! back, and the way that disturbs least is taken.

use std::time::Duration;

use ballast_model::{Ratio, Refusal};

use crate::cost;
use crate::door::dense;
use crate::door::problem::{HostIx, Problem, VmIx};
use crate::door::state::{Cause, State};
use crate::mend::mend;
use crate::objective::{Quality, Wrongs};
use crate::options::PlanOptions;
use crate::planner::{self, Leg};
use crate::route::{self, Join};
use crate::solve::joint::{self, Candidate};

/// Rounds in which VMs are sent home that need not have moved.
const ROUNDS_MAX: usize = 8;

/// The plan that disturbs least; `urgent` is asked of each leg, `usual` of the search for everything.
pub(super) fn plan(
    problem: &Problem<'_>,
    usual: &PlanOptions,
    urgent: &PlanOptions,
) -> Result<Leg, Refusal> {
    let next = |there: &Problem<'_>| leg(there, usual, urgent);
    route::go_on(problem, next(problem)?, urgent, Join::Merged, next)
}

/// One run: all that can leave, and others as far as they have to make way.
pub(super) fn leg(
    problem: &Problem<'_>,
    usual: &PlanOptions,
    urgent: &PlanOptions,
) -> Result<Leg, Refusal> {
    let alone = planner::leg(problem, urgent)?;
    let start = State::new(problem);
    let reached = start.after(&alone.moves);
    if alone.is_cut || !is_left_behind(&reached) {
        return Ok(alone);
    }
    let made = making_way(&start, &reached, usual, urgent)?;
    let better = made.into_iter().find_map(|end| way(&start, &end, urgent));
    Ok(better.unwrap_or(alone))
}

/// Whether a VM is on a draining host that may leave it.
pub(super) fn is_left_behind(state: &State<'_, '_>) -> bool {
    let problem = state.problem;
    let is_on_draining = |vm: &VmIx| problem.host(state.at(*vm)).draining();
    problem.vm_ixs().filter(is_on_draining).any(|vm| problem.may_move(vm, Cause::Drain))
}

/// Where it could end with less wrong than when all that could leave has left, the least disturbing first.
fn making_way<'p, 'a>(
    start: &State<'p, 'a>,
    reached: &State<'p, 'a>,
    usual: &PlanOptions,
    urgent: &PlanOptions,
) -> Result<Vec<State<'p, 'a>>, Refusal> {
    let problem = start.problem;
    // With the drain of `urgent` the solver lets nobody move but those that leave.
    let dearest = |drain| PlanOptions { drain, gain_min: Ratio::ONE, ..*usual };
    let (among_themselves, with_others) = (dearest(urgent.drain), dearest(usual.drain));
    let to_other_targets = PlanOptions { drain: usual.drain, ..*urgent };
    let mut ends = Vec::new();
    for options in [&among_themselves, &with_others] {
        let dense = dense::problem(problem, options)?;
        let mended = mend(&dense, &dense::assignment(reached));
        ends.push(joint::moved_to(start, &mended));
    }
    for options in [&to_other_targets, &among_themselves, &with_others] {
        ends.push(start.after(&planner::leg(problem, options)?.moves));
    }
    let least = Quality::of(start, reached, urgent).wrongs();
    let mut ranked: Vec<(Disturbance, State<'p, 'a>)> = ends
        .into_iter()
        .map(|mut end| {
            send_home(start, &mut end, urgent);
            (Disturbance::of(start, &end, urgent), end)
        })
        .filter(|(disturbance, _)| disturbance.wrongs < least)
        .collect();
    ranked.sort_by_key(|(disturbance, _)| *disturbance);
    Ok(ranked.into_iter().map(|(_, end)| end).collect())
}

/// What a drain does to those who live in the cluster. Less is better; field order is priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Disturbance {
    wrongs: Wrongs,
    /// VMs that move and were not on a host that drains.
    others: usize,
    /// Of all transfers, one after the other.
    duration: Duration,
}

impl Disturbance {
    fn of(start: &State<'_, '_>, end: &State<'_, '_>, options: &PlanOptions) -> Self {
        let problem = start.problem;
        let moved = joint::moved(start, end);
        let duration = |(vm, from): &(VmIx, HostIx)| {
            let hosts = [*from, end.at(*vm)].map(|host| problem.host(host).host);
            cost::of_move(problem.vm(*vm).vm, hosts[0], hosts[1]).duration
        };
        Self {
            wrongs: Quality::of(start, end, options).wrongs(),
            others: moved.iter().filter(|(_, from)| !problem.host(*from).draining()).count(),
            duration: moved.iter().map(duration).fold(Duration::ZERO, Duration::saturating_add),
        }
    }
}

/// Takes back the moves of VMs that were not on draining hosts, where that leaves nothing wrong that is not now.
fn send_home(start: &State<'_, '_>, end: &mut State<'_, '_>, options: &PlanOptions) {
    for _ in 0..ROUNDS_MAX {
        let mut is_better = false;
        for (vm, home) in joint::moved(start, end) {
            if start.problem.host(home).draining() || end.obstacle(vm, home).is_some() {
                continue;
            }
            let (away, before) = (end.at(vm), Quality::of(start, end, options).wrongs());
            end.shift(vm, home);
            if Quality::of(start, end, options).wrongs() > before {
                end.shift(vm, away);
            } else {
                is_better = true;
            }
        }
        if !is_better {
            return;
        }
    }
}

/// Steps that lead there, if an order and the budget of a plan allow them.
fn way(start: &State<'_, '_>, end: &State<'_, '_>, options: &PlanOptions) -> Option<Leg> {
    let problem = start.problem;
    let orders = [joint::ranked(start, end, options), joint::sequence(start, end)];
    let Candidate { moves, after } = orders.into_iter().flatten().find(|order| {
        planner::is_afforded(problem, &order.moves, options)
            && planner::is_legal(problem, order, options)
    })?;
    Some(Leg { found: moves.clone(), moves, after, is_cut: false })
}
