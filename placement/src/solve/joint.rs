//! The joint search: all VMs at once, where the step-by-step descent stops.
//!
//! ```text
//!  snapshot ──▶ search ──▶ prune ──▶ descend ──▶ order ──▶ candidate
//!               a target   moves     to where    steps,    taken only when it is better than
//!               for all    that do   no step     parking   the descent alone, legal and complete
//!               VMs        not pay   pays
//! ```
//!
//! It is asked only when the descent found something to do or something is
//! wrong that is not a matter of balance, and what it returns is a state where
//! the descent finds nothing. Whether another search would mend more from there
//! is for the planner to try: that belongs into the same plan.

use std::cmp::Ordering;

use ballast_model::Refusal;

use crate::core::{Assignment, Problem as Dense};
use crate::door::dense;
use crate::door::ground::Floor;
use crate::door::losses::is_kept;
use crate::door::problem::{HostIx, Problem, VmIx};
use crate::door::state::{Cause, Move, State};
use crate::objective::Quality;
use crate::options::{Causes, PlanOptions};
use crate::order::{Transition, order};
use crate::solve::{self, anneal, exact};
use crate::{rank, schedule};

/// Moves weighed for each VM and host, and the least and most in all: the search's only measure of time.
const WEIGHED_PER_PAIR: u64 = 16;
const WEIGHED: std::ops::RangeInclusive<u64> = 2_000..=3_000_000;
/// Pairs of VM and host beyond which the search is asked only to mend: level load is the descent's business there.
const PAIRS_MAX: u64 = 500_000;
/// Pairs up to which the hot search from the start is worth its time though nothing is wrong.
const HOT_PAIRS_MAX: u64 = 2_000;
/// Moves weighed for each pair near a good state.
const REFINED_PER_PAIR: u64 = 128;
/// Orders given of the placements of a very small cluster, and of how many placements also those that take third hosts
/// are looked for.
const ORDERED_MAX: usize = 16;
const PARKED_MAX: usize = 16;
/// Rounds of pruning; each makes at least one move fewer.
const PRUNINGS_MAX: usize = 8;

/// Steps in an order that is legal whatever takes how long, each with the earlier ones it waits for.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) moves: Vec<Move>,
    pub(crate) after: Vec<Vec<usize>>,
}

/// Plans that lead to a better state than `descended`, if the search finds one: the same steps in one order or another,
/// the first that is legal being the best. They may have more steps than a plan can hold.
///
/// # Errors
/// `InvalidArgument` when the snapshot's amounts are too large for the solver.
pub(crate) fn improve<'p, 'a>(
    problem: &'p Problem<'a>,
    descended: &State<'p, 'a>,
    options: &PlanOptions,
) -> Result<Vec<Candidate>, Refusal> {
    // A search for everything cannot leave one cause out.
    if options.causes != Causes::ALL {
        return Ok(Vec::new());
    }
    let start = State::new(problem);
    // What has more steps than a plan may hold is not taken, and the search does not halve their number.
    if moved(&start, descended).len() / 2 > options.steps_max {
        return Ok(Vec::new());
    }
    let pairs = problem.vms.len() as u64 * problem.hosts.len() as u64;
    if pairs > PAIRS_MAX && !Quality::of(&start, descended, options).is_wrong() {
        return Ok(Vec::new());
    }
    let is_better = |one: &State<'_, '_>, other: &State<'_, '_>| {
        Quality::of(&start, one, options).is_better_than(&Quality::of(&start, other, options))
    };
    let dense = dense::problem(problem, options)?;
    if exact::is_small(problem.hosts.len(), problem.vms.len()) {
        return Ok(looked_at(&start, descended, options));
    }
    let mut target = descended.clone();
    // The walk from the start is for what is wrong; level load is best looked for near where the descent ends.
    if Quality::of(&start, &start, options).is_wrong() || pairs <= HOT_PAIRS_MAX {
        let found = search_from(&start, &dense, options);
        if is_better(&found, &target) && is_kept(&start, &found) {
            target = found;
        }
    }
    if pairs <= PAIRS_MAX {
        let found = refined(&start, &target, &dense, options);
        if is_better(&found, &target) && is_kept(&start, &found) {
            target = found;
        }
    }
    // Where the descent rests, only a mended wrong is worth a plan.
    let rests = moved(&start, descended).is_empty();
    let (reached, without) =
        (Quality::of(&start, &target, options), Quality::of(&start, descended, options));
    if !reached.is_better_than(&without) || rests && !reached.is_less_wrong_than(&without) {
        return Ok(Vec::new());
    }
    let mut candidates: Vec<_> = ranked(&start, &target, options).into_iter().collect();
    candidates.extend(sequence(&start, &target));
    Ok(candidates)
}

/// Plans to the best of all placements that are better than `descended`, the best first; one that goes by way of third
/// hosts pays for each of its steps.
fn looked_at(
    start: &State<'_, '_>,
    descended: &State<'_, '_>,
    options: &PlanOptions,
) -> Vec<Candidate> {
    let mut effort = exact::EFFORT;
    let ordered = |(n, places): (usize, Vec<HostIx>)| {
        let mut target = start.clone();
        start.problem.vm_ixs().zip(places).for_each(|(vm, host)| target.shift(vm, host));
        if !is_kept(start, &target) {
            return None;
        }
        let mut any = || exact::order(start, &steps(start, &target), options, &mut effort);
        let straight = ranked(start, &target, options)
            .or_else(|| any().map(|moves| waiting(start, moves, options)));
        // Third hosts are dearer to look for: for the best few.
        let by_parking = || {
            let found = if n < PARKED_MAX { sequence(start, &target) } else { None };
            let moves = found?.moves;
            // That order does not know of the CPU ceiling.
            can_be_made(start, &moves, options).then(|| waiting(start, moves, options))
        };
        let candidate = straight.or_else(by_parking)?;
        Some((Quality::after_steps(start, &target, &candidate.moves, options), candidate))
    };
    let least = Quality::of(start, descended, options);
    let better = exact::better(start, &least, options).into_iter().enumerate();
    let mut candidates: Vec<_> = better.filter_map(ordered).take(ORDERED_MAX).collect();
    candidates.sort_by(|(one, _), (other, _)| one.partial_cmp(other).unwrap_or(Ordering::Equal));
    candidates.into_iter().map(|(_, candidate)| candidate).collect()
}

/// Whether the steps can be made one after the other.
fn can_be_made(start: &State<'_, '_>, moves: &[Move], options: &PlanOptions) -> bool {
    let mut state = start.clone();
    moves.iter().all(|step| {
        let can = rank::is_possible(&state, step, options);
        state.shift(step.vm, step.to);
        can
    })
}

/// The steps from one state to the other, the most useful first; `None` when they cannot be made one after the other.
pub(crate) fn ranked(
    start: &State<'_, '_>,
    target: &State<'_, '_>,
    options: &PlanOptions,
) -> Option<Candidate> {
    let moves = rank::best_first(start.problem, &steps(start, target), options)?;
    Some(waiting(start, moves, options))
}

/// One step for each VM that is elsewhere.
fn steps(start: &State<'_, '_>, target: &State<'_, '_>) -> Vec<Move> {
    let step = |(vm, from): (VmIx, HostIx)| {
        let to = target.at(vm);
        Move { vm, from, to, cause: start.cause_of(vm, to) }
    };
    moved(start, target).into_iter().map(step).collect()
}

/// The steps in this order, each with those it waits for.
fn waiting(start: &State<'_, '_>, mut moves: Vec<Move>, options: &PlanOptions) -> Candidate {
    let after = schedule::dependencies(start.problem, &moves, options);
    inherit(&mut moves, &after);
    Candidate { moves, after }
}

/// Where the search leads from `start`, at rest: no single step of the descent pays.
fn search_from<'p, 'a>(
    start: &State<'p, 'a>,
    dense: &Dense,
    options: &PlanOptions,
) -> State<'p, 'a> {
    let found = anneal::search(
        dense,
        options.seed,
        weighed(start, WEIGHED_PER_PAIR),
        dense::spread_unit(start.problem),
    );
    at_rest(start, &found, options)
}

/// Where the search leads from a good state, at rest.
fn refined<'p, 'a>(
    start: &State<'p, 'a>,
    good: &State<'p, 'a>,
    dense: &Dense,
    options: &PlanOptions,
) -> State<'p, 'a> {
    let from = dense::assignment(good);
    let weighed = weighed(start, REFINED_PER_PAIR);
    let move_cost = dense::move_cost(start.problem, options);
    let found = anneal::refine(dense, from, options.seed, weighed, move_cost);
    at_rest(start, &found, options)
}

fn weighed(start: &State<'_, '_>, per_pair: u64) -> u64 {
    let problem = start.problem;
    let pairs = (problem.vms.len() as u64).saturating_mul(problem.hosts.len() as u64);
    pairs.saturating_mul(per_pair).clamp(*WEIGHED.start(), *WEIGHED.end())
}

fn at_rest<'p, 'a>(
    start: &State<'p, 'a>,
    found: &Assignment,
    options: &PlanOptions,
) -> State<'p, 'a> {
    let mut target = moved_to(start, found);
    prune(start, &mut target, options);
    solve::solve(&mut target, options);
    target
}

/// The state in which every VM is where `found` has it.
pub(crate) fn moved_to<'p, 'a>(start: &State<'p, 'a>, found: &Assignment) -> State<'p, 'a> {
    let mut target = start.clone();
    for (vm, to) in dense::changes(start, found) {
        target.shift(vm, to);
    }
    target
}

/// Takes back moves that do not pay.
fn prune(start: &State<'_, '_>, target: &mut State<'_, '_>, options: &PlanOptions) {
    for _ in 0..PRUNINGS_MAX {
        let mut fewer = false;
        for (vm, home) in moved(start, target) {
            if target.obstacle(vm, home).is_some() {
                continue;
            }
            let (away, before) = (target.at(vm), Quality::of(start, target, options));
            target.shift(vm, home);
            if before.is_better_than(&Quality::of(start, target, options)) {
                target.shift(vm, away);
            } else {
                fewer = true;
            }
        }
        if !fewer {
            return;
        }
    }
}

/// The VMs that are elsewhere, with where they were.
pub(crate) fn moved(start: &State<'_, '_>, target: &State<'_, '_>) -> Vec<(VmIx, HostIx)> {
    let home = |vm: VmIx| (vm, start.at(vm));
    start.problem.vm_ixs().filter(|vm| start.at(*vm) != target.at(*vm)).map(home).collect()
}

/// The steps from one state to the other; `None` when no order reaches all of it.
pub(crate) fn sequence(start: &State<'_, '_>, target: &State<'_, '_>) -> Option<Candidate> {
    let moved = moved(start, target);
    let causes: std::collections::HashMap<VmIx, Cause> =
        moved.iter().map(|(vm, _)| (*vm, start.cause_of(*vm, target.at(*vm)))).collect();
    let transitions: Vec<Transition> = moved
        .iter()
        .map(|(vm, home)| Transition {
            vm: vm.number(),
            from: Some(home.number()),
            to: target.at(*vm).number(),
            weight: if causes[vm].is_forced() { 100 } else { 1 },
        })
        .collect();
    let found = order(&Floor::new(start), &transitions);
    if !found.dropped.is_empty() {
        return None;
    }
    let mut moves = Vec::with_capacity(found.steps.len());
    let mut after: Vec<Vec<usize>> = Vec::with_capacity(found.steps.len());
    for step in &found.steps {
        let vm = VmIx(step.vm as usize);
        let (from, to) = (HostIx(step.from? as usize), HostIx(step.to as usize));
        // A step that reroutes a VM leads to another state than the one that is settled.
        if step.role == crate::order::Role::Rerouted {
            return None;
        }
        moves.push(Move { vm, from, to, cause: *causes.get(&vm)? });
        after.push(step.after.iter().map(|n| *n as usize).collect());
    }
    inherit(&mut moves, &after);
    Some(Candidate { moves, after })
}

/// A step that makes room for one that must be made must be made as well.
fn inherit(moves: &mut [Move], after: &[Vec<usize>]) {
    for n in (0..moves.len()).rev() {
        for earlier in &after[n] {
            if moves[n].cause.is_forced() {
                moves[*earlier].cause = moves[*earlier].cause.min(moves[n].cause);
            }
        }
    }
}
