//! Simulated annealing with shifts and swaps: one thread's search.
//!
//! The temperature falls geometrically with the share of the budget used. In
//! an objective of several levels, the first level in which a move makes a
//! difference decides, with a temperature of its own; a hard violation is never added.
//!
//! With one level, the first part of the walk may exceed capacities, at a price
//! that rises; the last part repairs what is left and is lawful throughout.
//! Every other walk of a portfolio keeps the capacities of transient resources. Only lawful assignments are kept as the best.

use crate::core::assignment::Assignment;
use crate::core::ids::{Host, Item, Place};
use crate::core::objective::Score;
use crate::core::rng::Rng;
use crate::core::state::{Limit, State};

use super::Meter;
use super::keeper::Keeper;

/// Moves weighed between two looks at the budget.
const CHUNK: u64 = 1024;

/// Moves weighed to find out how large differences are.
const PROBES: usize = 4096;

/// How a walk cools. Temperatures are shares of the mean loss of a random move; the penalty is for
/// use above capacity, as a multiple of what safety costs for a whole host.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    temperature: (f64, f64),
    penalty: (f64, f64),
    /// Share of the budget after which capacities are kept to the letter.
    relaxed_until: f64,
}

impl Schedule {
    /// The schedule for so many weighed moves an item. A short walk must not be hot: it would never
    /// cool down to where it started. A long one mixes far better on tight instances when
    /// it may pass through overloaded states, which needs an objective of one sum to put a price on them.
    fn for_length(per_item: f64, one_sum: bool) -> Self {
        let between =
            |low: f64, high: f64, share: f64| low * (high / low).powf(share.clamp(0.0, 1.0));
        let length = (per_item.max(1.0) / SHORT).ln() / (LONG / SHORT).ln();
        let hottest = if one_sum { HOT } else { WARM };
        let first = between(COOL, hottest, length);
        let relaxed_until = if one_sum && per_item >= RELAXED_FROM { 0.75 } else { 0.0 };
        Self { temperature: (first, first * COOLING), penalty: (3.0, 60.0), relaxed_until }
    }
}

/// Weighed moves an item that make a walk short or long.
const SHORT: f64 = 1_000.0;
const LONG: f64 = 15_000.0;

/// Weighed moves an item from which on a walk may be relaxed.
const RELAXED_FROM: f64 = 4_000.0;

/// First temperatures of a short walk, of a long one over one sum, and over several levels.
const COOL: f64 = 0.003;
const HOT: f64 = 3.0;
const WARM: f64 = 0.3;

/// The last temperature as a share of the first.
const COOLING: f64 = 0.004;

/// Share of the budget used to descend, and to find out how many moves the budget is.
const DESCENT: f64 = 0.01;

/// When a walk that keeping to the letter has not made lawful is relaxed again, the price of use
/// above capacity rising fast; after that it goes back to the best lawful assignment.
const HURRY_WITHIN: std::ops::Range<f64> = 0.85..0.95;

/// By how much that price rises from one look at the budget to the next.
const HURRY: f64 = 1.01;

/// Anneals until the budget is used up. Returns the best seen and the moves weighed.
pub(super) fn anneal<const L: usize>(
    state: State<'_, L>,
    seed: u64,
    meter: &Meter<'_>,
) -> (Score<L>, Assignment, u64) {
    let movable: Vec<u32> = movable(&state);
    let mut walk = Walk {
        keeper: Keeper::new(&state),
        state,
        rng: Rng::new(seed),
        movable,
        temperature: [0.0; L],
        evaluations: 0,
        penalty: 0.0,
    };
    if walk.movable.is_empty() {
        let (score, best) = walk.keeper.into_best();
        return (score, best, 0);
    }
    let scale = walk.probe();
    walk.descend(scale, meter);
    walk.run(scale, meter);
    walk.trim();
    let evaluations = walk.evaluations;
    let (score, best) = walk.keeper.into_best();
    (score, best, evaluations)
}

fn movable<const L: usize>(state: &State<'_, L>) -> Vec<u32> {
    let problem = state.problem();
    (0..problem.items() as u32)
        .filter(|ix| !problem.pinned(Item(*ix)) && !problem.open_hosts(Item(*ix)).is_empty())
        .collect()
}

/// One thread's way through the assignments.
struct Walk<'p, const L: usize> {
    state: State<'p, L>,
    keeper: Keeper<L>,
    rng: Rng,
    movable: Vec<u32>,
    temperature: [f64; L],
    evaluations: u64,
    /// Price of use above capacity; 0: it is not allowed.
    penalty: f64,
}

impl<const L: usize> Walk<'_, L> {
    /// Goes downhill for the first share of the budget.
    fn descend(&mut self, scale: [f64; L], meter: &Meter<'_>) {
        self.temperature = scale.map(|scale| scale * COOL * COOLING);
        while meter.progress(self.evaluations) < DESCENT {
            self.chunk();
        }
    }

    fn run(&mut self, scale: [f64; L], meter: &Meter<'_>) {
        let expected = self.evaluations as f64 / meter.progress(self.evaluations).max(1e-9);
        let schedule = Schedule::for_length(expected / self.movable.len() as f64, L == 1);
        let unit = self.penalty_unit();
        let mut was_relaxed = false;
        let mut urgency = 1.0;
        loop {
            let progress = meter.progress(self.evaluations);
            if progress >= 1.0 {
                break;
            }
            let between = |(first, last): (f64, f64)| first * (last / first).powf(progress);
            let share = between(schedule.temperature);
            self.temperature = scale.map(|scale| scale * share);
            let unlawful = self.state.score().hard > self.keeper.score().hard;
            let hurries = was_relaxed && unlawful && HURRY_WITHIN.contains(&progress);
            let relaxed = progress < schedule.relaxed_until || hurries;
            urgency *= if hurries { HURRY } else { 1.0 };
            self.penalty = if relaxed { unit * between(schedule.penalty) * urgency } else { 0.0 };
            was_relaxed |= relaxed;
            if was_relaxed && progress >= HURRY_WITHIN.end {
                was_relaxed = false;
                if unlawful {
                    self.keeper.restore(&mut self.state);
                }
            }
            self.chunk();
        }
    }

    fn chunk(&mut self) {
        let until = self.evaluations + CHUNK;
        while self.evaluations < until {
            if self.rng.bits() >> 63 == 0 {
                self.try_shift();
            } else {
                self.try_swap();
            }
        }
    }

    /// Takes back, from the best assignment, moves that do not pay.
    fn trim(&mut self) {
        self.keeper.restore(&mut self.state);
        for ix in 0..self.movable.len() {
            let item = Item(self.movable[ix]);
            let Some(home) = self.state.problem().home(item) else { continue };
            self.evaluations += 1;
            if let Some(delta) = self.state.delta(item, home)
                && delta <= Score::ZERO
            {
                self.state.apply(item, Some(home));
                self.keeper.touched(item);
            }
        }
        self.keeper.settle(&self.state);
    }

    /// What load above safety costs for the mean capacity of a host.
    fn penalty_unit(&self) -> f64 {
        let problem = self.state.problem();
        let cells = problem.capacity.iter().zip(problem.safety_weight.iter().cycle());
        let sum: f64 = cells.map(|(capacity, weight)| *capacity as f64 * *weight as f64).sum();
        sum / problem.capacity.len().max(1) as f64
    }

    /// The mean loss of random lawful moves, for each level where it is the first to differ.
    fn probe(&mut self) -> [f64; L] {
        let mut sums = [(0.0_f64, 0_u32); L];
        for _ in 0..PROBES {
            let (item, place) = self.random_shift();
            self.evaluations += 1;
            if let Some(delta) = self.state.delta(item, place)
                && let (Some(level), amount) = delta.leading()
                && amount != 0
            {
                sums[level].0 += amount.unsigned_abs() as f64;
                sums[level].1 += 1;
            }
        }
        sums.map(|(sum, count)| if count == 0 { 1.0 } else { sum / f64::from(count) })
    }

    #[inline]
    fn random_item(&mut self) -> Item {
        Item(self.movable[self.rng.below(self.movable.len())])
    }

    #[inline]
    fn random_shift(&mut self) -> (Item, Place) {
        let problem = self.state.problem();
        let item = self.random_item();
        let hosts = problem.open_hosts(item);
        let host = Host(hosts[self.rng.below(hosts.len())]);
        (item, Place { host, shape: self.shape(item) })
    }

    #[inline]
    fn shape(&mut self, item: Item) -> u8 {
        match self.state.problem().shapes(item) {
            1 => 0,
            shapes => self.rng.below(usize::from(shapes)) as u8,
        }
    }

    /// How large a loss is accepted this time: drawn before a move is weighed, so that what is
    /// hopeless is found out early.
    #[inline]
    fn limit(&mut self) -> Limit {
        if L > 1 {
            return Limit::NONE;
        }
        let draw = -self.rng.unit().ln();
        let most =
            if draw < 20.0 { draw * self.temperature[0] } else { 20.0 * self.temperature[0] };
        Limit { most, price: self.penalty }
    }

    #[inline]
    fn try_shift(&mut self) {
        let (item, place) = self.random_shift();
        let limit = self.limit();
        self.evaluations += 1;
        let weighed = if self.penalty > 0.0 {
            self.state.relaxed_delta(item, place, limit)
        } else {
            self.state.delta_within(item, place, limit).map(|delta| (delta, 0.0))
        };
        if let Some((delta, excess)) = weighed
            && self.accepts(delta, excess, limit)
        {
            self.state.apply(item, Some(place));
            self.keeper.touched(item);
            self.keeper.look(&self.state);
        }
    }

    #[inline]
    fn try_swap(&mut self) {
        let (a, b) = (self.random_item(), self.random_item());
        let limit = self.limit();
        self.evaluations += 1;
        let (Some(at_a), Some(at_b)) = (self.state.place(a), self.state.place(b)) else { return };
        let to_a = Place { host: at_b.host, shape: self.shape(a) };
        let to_b = Place { host: at_a.host, shape: self.shape(b) };
        let weighed = if self.penalty > 0.0 {
            self.state.relaxed_swap_delta((a, to_a), (b, to_b), limit)
        } else {
            self.state.swap_delta_within((a, to_a), (b, to_b), limit).map(|delta| (delta, 0.0))
        };
        if let Some((delta, excess)) = weighed
            && self.accepts(delta, excess, limit)
        {
            self.state.apply(a, Some(to_a));
            self.state.apply(b, Some(to_b));
            self.keeper.touched(a);
            self.keeper.touched(b);
            self.keeper.look(&self.state);
        }
    }

    #[inline]
    fn accepts(&mut self, delta: Score<L>, excess: f64, limit: Limit) -> bool {
        if self.penalty > 0.0 {
            return delta.hard <= 0 && delta.soft[0] as f64 + self.penalty * excess <= limit.most;
        }
        let (level, amount) = delta.leading();
        if amount <= 0 {
            return true;
        }
        let Some(level) = level else { return false };
        if L == 1 {
            return amount as f64 <= limit.most;
        }
        let loss = amount as f64 / self.temperature[level];
        loss < 20.0 && self.rng.unit() < (-loss).exp()
    }
}
