//! Search for better assignments, anytime and in parallel.
//!
//! ```text
//!  initial ──▶ construct ──▶ anneal (teams of threads) ──▶ best ──▶ trim ──▶ Found
//!              what has no      shift · swap · home · chain         moves that
//!              lawful place     State<1> where the objective        don't pay
//!                               is one sum, State<6> otherwise
//! ```
//!
//! [`walk`] makes random moves, [`anneal`] says how readily losses are accepted,
//! [`team`] has several threads walk together, [`keeper`] remembers the best.
//!
//! With a limit on moves or bytes, a greedy search by gain takes the place of
//! annealing ([`few`]); moves forced by repair count against the limit and are made first.
//!
//! Time comes from outside: a [`Budget`] asks the caller's clock, or counts
//! evaluations. With a count the result follows from problem, seed and number of threads alone.

mod anneal;
mod construct;
mod few;
mod keeper;
mod team;
#[cfg(test)]
mod tests;
mod walk;

use super::assignment::{Assignment, Move};
use super::ids::Item;
use super::objective::{LEVELS_MAX, Objective, Score};
use super::problem::Problem;
use super::state::State;

use team::Crew;
use walk::Walk;

/// Threads a search may use.
pub const THREADS_MAX: usize = 64;

/// How a search is done.
#[derive(Debug, Clone)]
pub struct SearchOptions {
    /// Everything random follows from it.
    pub seed: u64,
    /// How many threads, 1 to [`THREADS_MAX`].
    pub threads: usize,
    /// At most so many items away from home.
    pub moves_max: Option<u32>,
    /// At most so many bytes moved.
    pub bytes_max: Option<u64>,
}

impl Default for SearchOptions {
    fn default() -> Self {
        Self { seed: 0, threads: 1, moves_max: None, bytes_max: None }
    }
}

impl SearchOptions {
    /// Whether a move of the item is within the limits. One that is away from home, or has none, counts already.
    fn within<const L: usize>(&self, state: &State<'_, L>, item: Item) -> bool {
        let problem = state.problem();
        let counted = problem.home(item).is_none() || state.place(item) != problem.home(item);
        let bytes = state.moved_bytes().saturating_add(problem.move_bytes(item));
        counted
            || (self.moves_max.is_none_or(|most| state.moved() < most)
                && self.bytes_max.is_none_or(|most| bytes <= most))
    }
}

/// When a search ends.
#[derive(Clone, Copy)]
pub struct Budget<'a> {
    clock: Option<(&'a (dyn Fn() -> f64 + Sync), f64)>,
    evaluations: u64,
}

impl<'a> Budget<'a> {
    /// After so many weighed moves, by all threads together: the same result every time.
    pub fn evaluations(count: u64) -> Self {
        Self { clock: None, evaluations: count.max(1) }
    }

    /// When `clock`, in seconds, reaches `end`.
    pub fn until(clock: &'a (dyn Fn() -> f64 + Sync), end: f64) -> Self {
        Self { clock: Some((clock, end)), evaluations: u64::MAX }
    }

    /// Also after so many weighed moves.
    #[must_use]
    pub fn or_evaluations(mut self, count: u64) -> Self {
        self.evaluations = count.max(1);
        self
    }

    /// The share of one of `threads` that starts now.
    fn meter(&self, threads: usize) -> Meter<'a> {
        let start = self.clock.map_or(0.0, |(clock, _)| clock());
        Meter { budget: *self, start, evaluations: (self.evaluations / threads as u64).max(1) }
    }
}

/// How far one thread is in its share of a budget.
#[derive(Clone, Copy)]
struct Meter<'a> {
    budget: Budget<'a>,
    start: f64,
    evaluations: u64,
}

impl Meter<'_> {
    /// 0 at the start, 1 or more at the end.
    fn progress(&self, evaluations: u64) -> f64 {
        let counted = evaluations as f64 / self.evaluations as f64;
        match self.budget.clock {
            Some((clock, end)) => {
                let length = end - self.start;
                let timed = if length > 0.0 { (clock() - self.start) / length } else { 1.0 };
                timed.max(counted)
            }
            None => counted,
        }
    }
}

/// One point of the trade-off between moves and score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CurvePoint {
    /// Items not at home.
    pub moves: u32,
    /// Bytes they carry.
    pub bytes: u64,
    /// The score with them.
    pub score: Score,
}

/// What a search found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The best assignment.
    pub assignment: Assignment,
    /// Its objective, from scratch.
    pub objective: Objective,
    /// What no assignment of all items is better than.
    pub bound: Score,
    /// What differs from the initial assignment.
    pub moves: Vec<Move>,
    /// Score by number of moves, from the initial assignment on.
    pub curve: Vec<CurvePoint>,
    /// Moves weighed by all threads.
    pub evaluations: u64,
}

/// Looks for the best assignment, starting from the problem's initial one.
///
/// Never worse than the initial one, never breaks a hard rule that is kept
/// there, and ends with its budget. Placing what has no lawful place comes
/// first and is not cut short by the budget; it is bounded by itself.
pub fn search(problem: &Problem, options: &SearchOptions, budget: &Budget<'_>) -> Found {
    if problem.levels_used() == 1 {
        search_levels::<1>(problem, options, budget)
    } else {
        search_levels::<LEVELS_MAX>(problem, options, budget)
    }
}

fn search_levels<const L: usize>(
    problem: &Problem,
    options: &SearchOptions,
    budget: &Budget<'_>,
) -> Found {
    let mut state = State::<L>::new(problem, &problem.initial());
    let initial = point(&state);
    let repaired = construct::repair(&mut state, options);
    if options.moves_max.is_some() || options.bytes_max.is_some() {
        let found = few::few(state, options, &budget.meter(1));
        let mut curve = vec![initial];
        curve.extend(found.curve);
        return finish(problem, found.assignment, curve, repaired + found.evaluations);
    }
    let (assignment, evaluations) = portfolio(state, options, budget);
    let last = point(&State::<L>::new(problem, &assignment));
    finish(problem, assignment, vec![initial, last], repaired + evaluations)
}

fn finish(
    problem: &Problem,
    assignment: Assignment,
    mut curve: Vec<CurvePoint>,
    evaluations: u64,
) -> Found {
    let objective = problem.evaluate(&assignment);
    let moves = assignment.moves_from(&problem.initial());
    // Of several points with as many moves, the best; and only points better than those with fewer.
    curve.sort_by_key(|point| (point.moves, point.score));
    let mut least: Option<Score> = None;
    curve.retain(|point| {
        let better = least.is_none_or(|least| point.score < least);
        if better {
            least = Some(point.score);
        }
        better
    });
    Found { assignment, objective, bound: problem.lower_bound(), moves, curve, evaluations }
}

fn point<const L: usize>(state: &State<'_, L>) -> CurvePoint {
    CurvePoint { moves: state.moved(), bytes: state.moved_bytes(), score: state.score().widen() }
}

/// Threads that walk together; more are several teams.
const TEAM_MAX: usize = 4;

/// Teams of threads, each with a walk of its own, and the best of what they find.
fn portfolio<const L: usize>(
    state: State<'_, L>,
    options: &SearchOptions,
    budget: &Budget<'_>,
) -> (Assignment, u64) {
    let start = state.assignment();
    let threads = options.threads.clamp(1, THREADS_MAX);
    let meter = budget.meter(threads);
    let teams = threads.div_ceil(TEAM_MAX);
    let crews: Vec<Crew<'_>> = (0..teams)
        .map(|n| {
            let size = threads / teams + usize::from(n < threads % teams);
            Crew::new(state.problem(), size, budget.clock.is_some())
        })
        .collect();
    let results: Vec<(Score<L>, Assignment, u64)> = std::thread::scope(|scope| {
        let mut workers = Vec::new();
        let mut seeds = (0..).map(|n| options.seed.wrapping_add(n * 0x1000_0001));
        let mut walk = |keeps_transient: bool| {
            let mut state = state.clone();
            if keeps_transient {
                state.keep_transient();
            }
            Walk::new(state, seeds.next().unwrap_or_default())
        };
        for (n, crew) in crews.iter().enumerate() {
            // What is held at home all the time leaves arrivals so little room that most problems
            // are better walked without passing it; not all.
            let keeps_transient = n % 2 == 0;
            let (lines, members) = crew.lines();
            let leader = walk(keeps_transient);
            workers.push(scope.spawn(move || anneal::anneal(leader, crew, lines, &meter)));
            for line in members {
                let member = walk(keeps_transient);
                workers.push(scope.spawn(move || crew.serve(member, &line, &meter)));
            }
        }
        let results = workers.into_iter().map(|worker| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        results.collect()
    });
    let evaluations = results.iter().map(|(_, _, evaluations)| evaluations).sum();
    // The first of equals: the result must not depend on which thread was faster.
    let best = results.into_iter().min_by_key(|(score, _, _)| *score);
    (best.map_or(start, |(_, assignment, _)| assignment), evaluations)
}
