//! One thread's way through the assignments: random moves of items on a part of the
//! hosts, or on all.

mod moves;

use crate::core::assignment::Assignment;
use crate::core::ids::{Host, Item, Place};
use crate::core::objective::Score;
use crate::core::rng::Rng;
use crate::core::state::State;

use super::keeper::Keeper;

/// Moves weighed between two looks at the budget.
pub(super) const CHUNK: u64 = 1024;

/// Moves weighed to find out how large differences are.
const PROBES: usize = 4096;

/// Hosts for each item drawn to find one of a costly host, and the most that are drawn. Among few hosts all
/// matter all the time; among many what load costs is a matter of some.
const HOSTS_PER_DRAW: usize = 64;
const FIELD_MAX: usize = 16;

/// How readily a walk accepts losses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Climate<const L: usize> {
    /// For each level.
    pub(super) temperature: [f64; L],
    /// Price of use above capacity; 0: it is not allowed.
    pub(super) penalty: f64,
}

/// An assignment under way, and the best it passed.
pub(super) struct Walk<'p, const L: usize> {
    pub(super) state: State<'p, L>,
    pub(super) keeper: Keeper<L>,
    pub(super) climate: Climate<L>,
    pub(super) evaluations: u64,
    rng: Rng,
    movable: Vec<u32>,
    /// The items moved now: those on the hosts of the part.
    items: Vec<u32>,
    part: Option<Part>,
    draws: Draws,
    /// Items drawn to find one of a costly host.
    field: usize,
}

/// Exponentially distributed numbers of mean 1, without a logarithm for each.
struct Draws([f32; Self::STEPS]);

impl Draws {
    const STEPS: usize = 1024;

    fn new() -> Self {
        let steps = Self::STEPS as f32;
        Self(std::array::from_fn(|step| -((step as f32 + 0.5) / steps).ln()))
    }

    #[inline]
    fn draw(&self, rng: &mut Rng) -> f64 {
        match rng.below(Self::STEPS) {
            // The tail beyond the steps is as the whole.
            0 => (Self::STEPS as f64).ln() - rng.unit().ln(),
            step => f64::from(self.0[step]),
        }
    }
}

/// Some of the hosts.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// The part of each host.
    pub(super) of_host: Vec<u8>,
    /// Which of them is meant.
    pub(super) mine: u8,
}

impl Part {
    fn has(&self, host: Host) -> bool {
        self.of_host[host.ix()] == self.mine
    }
}

/// An item that went from one place to another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moved {
    pub(super) item: Item,
    pub(super) from: Option<Place>,
    pub(super) to: Option<Place>,
}

impl<'p, const L: usize> Walk<'p, L> {
    /// At a state, on all hosts; nothing is accepted that makes it worse.
    pub(super) fn new(state: State<'p, L>, seed: u64) -> Self {
        let problem = state.problem();
        let movable: Vec<u32> = (0..problem.items() as u32)
            .filter(|ix| !problem.pinned(Item(*ix)) && !problem.open_hosts(Item(*ix)).is_empty())
            .collect();
        Self {
            keeper: Keeper::new(&state),
            state,
            climate: Climate { temperature: [0.0; L], penalty: 0.0 },
            evaluations: 0,
            rng: Rng::new(seed),
            items: movable.clone(),
            movable,
            part: None,
            draws: Draws::new(),
            // What load costs is one number where the objective is one sum.
            field: if L > 1 { 1 } else { (problem.hosts() / HOSTS_PER_DRAW).clamp(1, FIELD_MAX) },
        }
    }

    /// Items that may move at all.
    pub(super) fn movable(&self) -> usize {
        self.movable.len()
    }

    /// A seed of its own for something else.
    pub(super) fn seed(&mut self) -> u64 {
        self.rng.bits()
    }

    /// From now on only on a part of the hosts, with the items that are there. Items that are
    /// nowhere are dealt out.
    pub(super) fn keep_to(&mut self, part: Part, parts: usize) {
        self.items.clear();
        for ix in &self.movable {
            let mine = match self.state.place(Item(*ix)) {
                Some(place) => part.has(place.host),
                None => *ix as usize % parts == usize::from(part.mine),
            };
            if mine {
                self.items.push(*ix);
            }
        }
        self.part = Some(part);
    }

    /// From now on on all hosts.
    pub(super) fn keep_to_nothing(&mut self) {
        self.items.clone_from(&self.movable);
        self.part = None;
    }

    /// Walks until `ends` says so, asked after each chunk. Returns what moved.
    pub(super) fn stroll(&mut self, mut ends: impl FnMut(u64) -> bool) -> Vec<Moved> {
        let before: Vec<Option<Place>> =
            self.items.iter().map(|ix| self.state.place(Item(*ix))).collect();
        let start = self.evaluations;
        loop {
            self.chunk();
            if ends(self.evaluations - start) {
                break;
            }
        }
        let after = self.items.iter().map(|ix| (Item(*ix), self.state.place(Item(*ix))));
        after
            .zip(before)
            .filter(|((_, to), from)| to != from)
            .map(|((item, to), from)| Moved { item, from, to })
            .collect()
    }

    /// Puts items where others found them, or had them before.
    pub(super) fn follow(&mut self, news: impl Iterator<Item = (Item, Option<Place>)>) {
        for (item, place) in news {
            if self.state.place(item) != place {
                self.state.apply(item, place);
                self.keeper.touched(item);
            }
        }
    }

    /// A number of random moves.
    pub(super) fn chunk(&mut self) {
        let until = self.evaluations + CHUNK;
        if self.items.is_empty() {
            self.evaluations = until;
        }
        while self.evaluations < until {
            self.try_one();
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

    /// The best it passed, less what does not pay, and the moves weighed.
    pub(super) fn end(mut self) -> (Score<L>, Assignment, u64) {
        self.trim();
        let evaluations = self.evaluations;
        let (score, best) = self.keeper.into_best();
        (score, best, evaluations)
    }

    /// The mean loss of random lawful moves, for each level where it is the first to differ.
    pub(super) fn probe(&mut self) -> [f64; L] {
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
}
