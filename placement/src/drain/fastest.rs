//! Empty as soon as can be: several plans side by side, by the estimate of when their steps run.
//!
//! ```text
//!  drain by time                   ─▶ the rest, when that has ended
//!  drain with least disturbance    ─▶ the rest
//!  what must be of the usual plan  ─▶ its rest
//!  the usual plan as it is
//! ```
//!
//! Each is weighed with VMs leaving a host side by side, as many as it sends at a time, and one after the other: a VM that
//! writes much takes far longer on half a link.
//!
//! All end where neither the usual leg nor making room finds anything, so that the choice among them does not unsettle a
//! plan.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use ballast_model::{DrainGoal, Refusal};

use super::undisturbed;
use crate::door::problem::{HostIx, Problem};
use crate::door::state::{Move, State};
use crate::objective::{Quality, Wrongs};
use crate::options::PlanOptions;
use crate::planner::{self, Leg};
use crate::report;
use crate::route::{self, Join};
use crate::solve::joint::Candidate;

/// What is not shorter than this share of the other time is no reason to let VMs wait for each other.
const SOONER: f64 = 0.99;

/// The plan that empties most, of those the one that does so soonest, of those the best.
pub(super) fn plan(
    problem: &Problem<'_>,
    usual: &PlanOptions,
    urgent: &PlanOptions,
) -> Result<Leg, Refusal> {
    let quiet = PlanOptions { drain: DrainGoal::LeastDisturbing, ..*urgent };
    let rest = |there: &Problem<'_>| rest(there, usual, &quiet);
    let mut plans = Vec::new();
    for first in first_legs(problem, usual, urgent, &quiet)? {
        plans.push(route::go_on(problem, first, usual, Join::Appended, rest)?);
    }
    let mut level = route::usual(problem, usual)?;
    if undisturbed::is_left_behind(&end(problem, &level)) {
        level = route::go_on(problem, level, usual, Join::Merged, rest)?;
    }
    if plans.is_empty() {
        return Ok(level);
    }
    plans.extend(must_first(problem, &level, usual));
    let emptied = report::emptied(&State::new(problem), &level.moves, &level.after, usual);
    let best = plans
        .into_iter()
        .map(|leg| paced(problem, leg, usual))
        .chain([(level, emptied)])
        .map(|(leg, emptied)| (Outcome::of(problem, &leg, emptied, usual), leg))
        .min_by(|(one, _), (other, _)| one.partial_cmp(other).unwrap_or(Ordering::Equal));
    Ok(best.map_or_else(Leg::default, |(_, leg)| leg))
}

/// Legs that empty hosts and do nothing else.
fn first_legs(
    problem: &Problem<'_>,
    usual: &PlanOptions,
    urgent: &PlanOptions,
    quiet: &PlanOptions,
) -> Result<Vec<Leg>, Refusal> {
    let by_time = planner::leg(problem, urgent)?;
    let least = undisturbed::leg(problem, usual, quiet)?;
    let mut legs = vec![by_time];
    if least.moves != legs[0].moves {
        legs.push(least);
    }
    legs.retain(|leg| !leg.moves.is_empty());
    Ok(legs)
}

/// What is done when the first leg has ended.
fn rest(there: &Problem<'_>, usual: &PlanOptions, quiet: &PlanOptions) -> Result<Leg, Refusal> {
    let leg = planner::leg(there, usual)?;
    if !leg.moves.is_empty() || !undisturbed::is_left_behind(&State::new(there)) {
        return Ok(leg);
    }
    undisturbed::leg(there, usual, quiet)
}

/// The same steps, those that can wait after all that must be, if that is a legal plan.
fn must_first(problem: &Problem<'_>, leg: &Leg, options: &PlanOptions) -> Option<Leg> {
    let (must, can_wait): (Vec<usize>, Vec<usize>) =
        (0..leg.moves.len()).partition(|n| leg.moves[*n].cause.is_forced());
    let order: Vec<usize> = must.iter().chain(&can_wait).copied().collect();
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(new, old)| place[*old] = new);
    let waits = |(new, old): (usize, &usize)| {
        let before = if new < must.len() { 0 } else { must.len() };
        let mut waits: Vec<usize> =
            leg.after[*old].iter().map(|earlier| place[*earlier]).chain(0..before).collect();
        waits.sort_unstable();
        waits.dedup();
        waits
    };
    let after = order.iter().enumerate().map(waits).collect();
    let candidate = Candidate { moves: order.iter().map(|n| leg.moves[*n]).collect(), after };
    planner::is_legal(problem, &candidate, options).then(|| {
        let Candidate { moves, after } = candidate;
        Leg { moves, after, found: leg.found.clone(), is_cut: leg.is_cut }
    })
}

/// The same steps, those that leave a draining host one after the other, if that empties the hosts clearly sooner; and when
/// the last VM has left.
fn paced(problem: &Problem<'_>, leg: Leg, options: &PlanOptions) -> (Leg, Option<Duration>) {
    let mut last: BTreeMap<HostIx, usize> = BTreeMap::new();
    let waits = |(n, (step, waits)): (usize, (&Move, &Vec<usize>))| {
        let mut waits = waits.clone();
        let is_drain = problem.host(step.from).draining();
        let before = if is_drain { last.insert(step.from, n) } else { None };
        waits.extend(before);
        waits.sort_unstable();
        waits.dedup();
        waits
    };
    let after = leg.moves.iter().zip(&leg.after).enumerate().map(waits).collect();
    let alone = Candidate { moves: leg.moves.clone(), after };
    let start = State::new(problem);
    let emptied = |after: &[Vec<usize>]| report::emptied(&start, &leg.moves, after, options);
    let (together, one_by_one) = (emptied(&leg.after), emptied(&alone.after));
    let seconds = |emptied: Option<Duration>| emptied.unwrap_or_default().as_secs_f64();
    let is_sooner = seconds(one_by_one) < SOONER * seconds(together);
    match is_sooner && planner::is_legal(problem, &alone, options) {
        true => (Leg { after: alone.after, ..leg }, one_by_one),
        false => (leg, together),
    }
}

fn end<'p, 'a>(problem: &'p Problem<'a>, leg: &Leg) -> State<'p, 'a> {
    State::new(problem).after(&leg.moves)
}

/// What a plan comes to. Less is better; field order is priority.
#[derive(Debug, PartialEq, PartialOrd)]
struct Outcome {
    /// VMs left on hosts that drain are among them.
    wrongs: Wrongs,
    /// When the last VM has left.
    emptied: Option<Duration>,
    quality: Quality,
}

impl Outcome {
    fn of(
        problem: &Problem<'_>,
        leg: &Leg,
        emptied: Option<Duration>,
        options: &PlanOptions,
    ) -> Self {
        let start = State::new(problem);
        let quality = Quality::after_steps(&start, &end(problem, leg), &leg.moves, options);
        Self { wrongs: quality.wrongs(), emptied, quality }
    }
}
