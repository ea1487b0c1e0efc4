//! From leg to leg: a plan is made of runs of descent and search, each from where the one before leads, until one finds
//! nothing. So it is settled.

use ballast_model::{ClusterSnapshot, Refusal};

use crate::door::problem::Problem;
use crate::door::state::{Move, State};
use crate::options::PlanOptions;
use crate::planner::{Leg, is_afforded, is_legal, leg, within};
use crate::solve::joint::{self, Candidate};

/// Runs of descent and search that one plan is made of at most: what a run leaves to the next is
/// rare, and each leaves less.
const LEGS_MAX: usize = 8;

/// The usual plan: every leg does what it can for everything.
pub(crate) fn usual(problem: &Problem<'_>, options: &PlanOptions) -> Result<Leg, Refusal> {
    let first = within(problem, options)?;
    go_on(problem, first, options, Join::Merged, |there| leg(there, options))
}

/// How a further leg is joined to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Join {
    /// Where that is possible a VM moves once, from the beginning to where the last leg has it.
    Merged,
    /// The further leg begins when those before have ended.
    Appended,
}

/// The first leg and what further ones find, until one finds nothing: the plan is settled then.
pub(crate) fn go_on(
    problem: &Problem<'_>,
    first: Leg,
    options: &PlanOptions,
    join: Join,
    further: impl Fn(&Problem<'_>) -> Result<Leg, Refusal>,
) -> Result<Leg, Refusal> {
    if first.is_cut {
        return Ok(first);
    }
    let mut route = Candidate { moves: first.moves.clone(), after: first.after };
    let mut there = problem.snapshot.clone();
    let mut last = first.moves;
    for _ in 1..LEGS_MAX {
        if last.is_empty() {
            break;
        }
        advance(&mut there, problem, &last);
        let next = further(&Problem::new(&there)?)?;
        if next.moves.is_empty() || next.is_cut {
            break;
        }
        last = next.moves;
        let merged = match join {
            Join::Merged => direct(problem, &route.moves, &last, options),
            Join::Appended => Vec::new(),
        };
        let fits = |joined: &Candidate| {
            is_afforded(problem, &joined.moves, options) && is_legal(problem, joined, options)
        };
        let joined = merged
            .into_iter()
            .find(fits)
            .or_else(|| Some(append(&route, &last, next.after)).filter(fits));
        // What cannot be joined is left to the next plan.
        let Some(joined) = joined else { break };
        route = joined;
    }
    let Candidate { moves, after } = route;
    Ok(Leg { found: moves.clone(), moves, after, is_cut: false })
}

/// The cluster after the moves.
fn advance(snapshot: &mut ClusterSnapshot, problem: &Problem<'_>, moves: &[Move]) {
    for step in moves {
        snapshot.relocate(problem.vm(step.vm).id, problem.host(step.to).id);
    }
}

/// Orders from the beginning to where two legs lead, each VM moving once.
fn direct(
    problem: &Problem<'_>,
    moves: &[Move],
    further: &[Move],
    options: &PlanOptions,
) -> Vec<Candidate> {
    let start = State::new(problem);
    let end = start.after(moves).after(further);
    let orders = [joint::ranked(&start, &end, options), joint::sequence(&start, &end)];
    orders.into_iter().flatten().collect()
}

/// The second leg begins when the first has ended.
fn append(first: &Candidate, further: &[Move], further_after: Vec<Vec<usize>>) -> Candidate {
    let Candidate { mut moves, mut after } = first.clone();
    let ended = moves.len();
    moves.extend_from_slice(further);
    after.extend(further_after.into_iter().map(|waits| {
        let within = waits.into_iter().map(|n| ended + n);
        (0..ended).chain(within).collect()
    }));
    Candidate { moves, after }
}
