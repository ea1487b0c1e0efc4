//! Simulated annealing with shifts and swaps, by one thread or a team.
//!
//! The temperature falls geometrically with the share of the budget used, and in the last part of a walk
//! that ends warm faster still: what moves cost is small next to load, and settles only in the cold. In
//! an objective of several levels, the first level in which a move makes a
//! difference decides, with a temperature of its own; a hard violation is never added.
//!
//! With one level, the first part of the walk may exceed capacities, at a price
//! that rises; the last part repairs what is left and is lawful throughout.
//! Every other walk of a portfolio keeps the capacities of transient resources. Only lawful assignments are kept as the best.

use std::ops::Range;

use crate::core::assignment::Assignment;
use crate::core::objective::Score;
use crate::core::problem::Problem;

use super::Meter;
use super::team::{Crew, Lines};
use super::walk::{CHUNK, Climate, Walk};

/// How a walk cools. Temperatures are shares of the mean loss of a random move; the penalty is for
/// use above capacity, as a multiple of what safety costs for a whole host.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    temperature: (f64, f64),
    /// Share of the budget after which what is left is cooled down to [`COLD`].
    settles_from: f64,
    penalty: (f64, f64),
    /// Share of the budget after which capacities are kept to the letter.
    relaxed_until: f64,
}

impl Schedule {
    /// The schedule for so many weighed moves an item. A short walk must not be hot: it would never
    /// cool down to where it started. A long one mixes far better on tight instances when
    /// it may pass through overloaded states, which needs an objective of one sum to put a price on them.
    fn for_length(per_item: f64, items: usize, one_sum: bool) -> Self {
        let length = (per_item.max(1.0) / SHORT).ln() / (LONG / SHORT).ln();
        let hottest = if one_sum { HOT } else { WARM };
        let first =
            if items <= FEW { hottest } else { geometric((COOL, hottest), length.clamp(0.0, 1.0)) };
        let relaxed = one_sum && per_item >= RELAXED_FROM;
        let relaxed_until = if relaxed { HURRY_WITHIN.start } else { 0.0 };
        let last = first * COOLING;
        let settles_from = if last > COLD { SETTLES_FROM } else { 1.0 };
        Self { temperature: (first, last), settles_from, penalty: (3.0, 60.0), relaxed_until }
    }

    fn temperature_at(&self, progress: f64) -> f64 {
        let (first, last) = self.temperature;
        if progress < self.settles_from {
            return geometric((first, last), progress / self.settles_from);
        }
        geometric((last, COLD), (progress - self.settles_from) / (1.0 - self.settles_from))
    }
}

/// Weighed moves an item that make a walk short or long.
const SHORT: f64 = 1_000.0;
const LONG: f64 = 15_000.0;

/// So few items cool down in any walk.
const FEW: usize = 32;

/// Weighed moves an item from which on a walk may be relaxed.
const RELAXED_FROM: f64 = 4_000.0;

/// First temperatures of a short walk, of a long one over one sum, and over several levels.
const COOL: f64 = 0.003;
const HOT: f64 = 3.0;
const WARM: f64 = 0.3;

/// The last temperature as a share of the first.
const COOLING: f64 = 0.004;

/// When a walk that ends warmer than cold begins to settle, and where it ends then.
const SETTLES_FROM: f64 = 0.9;
const COLD: f64 = HOT * COOLING / 100.0;

/// Weighed moves an item and thread from which on each thread of a team walks alone: longer walks
/// differ more by luck than they would gain by being longer still.
const ALONE_FROM: f64 = 30_000.0;

/// With fewer hosts for each thread a team's parts would leave too few moves.
const PART_MIN: usize = 8;

/// Share of the budget used to descend, and to find out how many moves the budget is.
const DESCENT: f64 = 0.01;

/// When a walk that keeping to the letter has not made lawful is relaxed again, the price of use
/// above capacity rising fast; after that it goes back to the best lawful assignment.
const HURRY_WITHIN: Range<f64> = 0.88..0.96;

/// By how much that price rises from the start of that time to its end.
const HURRY: f64 = 1e6;

/// Rounds of a team in a walk, and moves weighed in one.
const ROUNDS: u64 = 512;
const ROUND_MAX: u64 = 64 * CHUNK;

/// Leads an annealing until the budget is used up. Returns the best seen and the moves weighed.
pub(super) fn anneal<const L: usize>(
    mut walk: Walk<'_, L>,
    crew: &Crew<'_>,
    mut lines: Lines<L>,
    meter: &Meter<'_>,
) -> (Score<L>, Assignment, u64) {
    if walk.movable() > 0 {
        let scale = walk.probe();
        descend(&mut walk, crew, &mut lines, scale, meter);
        let expected = walk.evaluations as f64 / meter.progress(walk.evaluations).max(1e-9);
        let is_small = walk.state.problem().hosts() < PART_MIN * crew.size();
        if is_small || expected >= ALONE_FROM * walk.movable() as f64 {
            lines.part(&walk, scale);
            cool_alone(&mut walk, scale, meter);
        } else {
            cool(&mut walk, crew, &mut lines, scale, meter);
        }
    }
    drop(lines);
    walk.end()
}

/// The rest of an annealing by one thread.
pub(super) fn cool_alone<const L: usize>(
    walk: &mut Walk<'_, L>,
    scale: [f64; L],
    meter: &Meter<'_>,
) {
    let crew = Crew::new(walk.state.problem(), 1, false);
    let (mut lines, _) = crew.lines();
    walk.keep_to_nothing();
    cool(walk, &crew, &mut lines, scale, meter);
}

/// Goes downhill for the first share of the budget.
fn descend<const L: usize>(
    walk: &mut Walk<'_, L>,
    crew: &Crew<'_>,
    lines: &mut Lines<L>,
    scale: [f64; L],
    meter: &Meter<'_>,
) {
    walk.climate.temperature = scale.map(|scale| scale * COOL * COOLING);
    // Dealing out takes time for every item: shorter rounds would look slower than the walk will be.
    let chunks = (walk.movable() as u64 / CHUNK).clamp(1, ROUND_MAX / CHUNK);
    while meter.progress(walk.evaluations) < DESCENT {
        crew.round(walk, lines, chunks);
    }
}

fn cool<const L: usize>(
    walk: &mut Walk<'_, L>,
    crew: &Crew<'_>,
    lines: &mut Lines<L>,
    scale: [f64; L],
    meter: &Meter<'_>,
) {
    let expected = walk.evaluations as f64 / meter.progress(walk.evaluations).max(1e-9);
    let per_item = crew.size() as f64 * expected / walk.movable() as f64;
    let schedule = Schedule::for_length(per_item, walk.movable(), L == 1);
    let chunks = (expected as u64 / ROUNDS).clamp(CHUNK, ROUND_MAX) / CHUNK;
    let unit = penalty_unit(walk.state.problem());
    let mut was_relaxed = false;
    loop {
        let progress = meter.progress(walk.evaluations);
        if progress >= 1.0 {
            break;
        }
        let share = schedule.temperature_at(progress);
        let unlawful = walk.state.score().hard > walk.keeper.score().hard;
        let hurries = was_relaxed && unlawful && HURRY_WITHIN.contains(&progress);
        let relaxed = progress < schedule.relaxed_until || hurries;
        let urgency = if hurries { hurry(progress) } else { 1.0 };
        walk.climate = Climate {
            temperature: scale.map(|scale| scale * share),
            penalty: if relaxed {
                unit * geometric(schedule.penalty, progress) * urgency
            } else {
                0.0
            },
        };
        was_relaxed |= relaxed;
        if was_relaxed && progress >= HURRY_WITHIN.end {
            was_relaxed = false;
            if unlawful {
                lines.go_back(walk);
            }
        }
        crew.round(walk, lines, chunks);
    }
}

/// What has changed from one to the other geometrically by a share.
fn geometric((first, last): (f64, f64), share: f64) -> f64 {
    first * (last / first).powf(share)
}

/// How much higher the price of use above capacity is at a time within [`HURRY_WITHIN`].
fn hurry(progress: f64) -> f64 {
    let Range { start, end } = HURRY_WITHIN;
    HURRY.powf((progress - start) / (end - start))
}

/// What load above safety costs for the mean capacity of a host.
fn penalty_unit(problem: &Problem) -> f64 {
    let cells = problem.capacity.iter().zip(problem.safety_weight.iter().cycle());
    let sum: f64 = cells.map(|(capacity, weight)| *capacity as f64 * *weight as f64).sum();
    sum / problem.capacity.len().max(1) as f64
}
