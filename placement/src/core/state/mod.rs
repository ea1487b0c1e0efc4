//! An assignment under change, with its score kept up to date.
//!
//! A move costs O(resources + rules of the item) to weigh ([`State::delta`])
//! and about twice that to make ([`State::apply`]). Whatever sequence of moves
//! was made, [`State::score`] equals [`Problem::evaluate`] from scratch.
//!
//! `L` is the number of levels kept: [`LEVELS_MAX`] for everybody, and
//! `State<1>` for problems whose objective is one sum, where it is faster.

mod groups;
mod look;
mod rules;
mod weigh;

use super::assignment::Assignment;
use super::ids::{Host, Item, NONE, Place, Resource, Rule};
use super::objective::{HARD_UNPLACED, LEVELS_MAX, Score};
use super::problem::{Problem, Strength, UNLIMITED};
use super::sieve::Sieve;
use super::tally::{Change, TallyCounts};

/// Why an item may not go somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocker {
    /// The item must stay where it is.
    Pinned,
    /// Nothing may arrive on the host.
    Closed,
    /// The host is outside the set the item may use.
    NotAllowed,
    /// The host has too little left of the resource.
    Capacity {
        /// Of what.
        resource: Resource,
        /// How much is missing, in the unit of the resource.
        missing: i64,
    },
    /// A hard rule over groups would be broken, or broken further.
    Rule(Rule),
}

/// From where on a move need not be weighed to the end, in an objective of one sum.
#[derive(Debug, Clone, Copy)]
pub(in crate::core) struct Limit {
    /// The largest loss of interest.
    pub(in crate::core) most: f64,
    /// What use above capacity counts in a relaxed walk, see [`State::relaxed_delta`].
    pub(in crate::core) price: f64,
}

impl Limit {
    /// Every move is weighed to the end.
    pub(in crate::core) const NONE: Self = Self { most: f64::INFINITY, price: 0.0 };
}

/// An assignment with everything needed to weigh changes of it.
#[derive(Debug, Clone)]
pub struct State<'p, const L: usize = LEVELS_MAX> {
    problem: &'p Problem,
    places: Vec<Place>,
    /// Hosts × resources: what is used.
    usage: Vec<i64>,
    /// Hosts × resources: what arrivals may still take; negative when over capacity.
    room: Vec<i64>,
    on_host: Vec<Vec<u32>>,
    /// Index of each item in the list of its host.
    slot: Vec<u32>,
    host_score: Vec<Score<L>>,
    /// What is used above capacity, see [`excess`](Self::excess).
    host_excess: Vec<f64>,
    /// What use above capacity counts in a relaxed walk, per resource.
    overload_weight: Vec<f64>,
    /// Resources whose capacity a relaxed walk keeps.
    kept: Vec<u32>,
    /// A first look at moves, for objectives of one sum that it can tell.
    sieve: Option<Sieve>,
    /// Whether no rule and no preference can make a move cheaper than its load and its way are.
    rules_never_pay: bool,
    tallies: TallyCounts,
    group_moved: Vec<u32>,
    /// How many move groups have so many moved items.
    group_histogram: Vec<u32>,
    group_most: u32,
    moved: u32,
    moved_bytes: u64,
    score: Score<L>,
}

impl<'p, const L: usize> State<'p, L> {
    /// The state of an assignment.
    ///
    /// # Panics
    /// When `L` is less than the levels in use, or the assignment is of another problem.
    pub fn new(problem: &'p Problem, assignment: &Assignment) -> Self {
        assert!(problem.levels_used() <= L, "more levels in use than kept");
        assert_eq!(problem.items(), assignment.len(), "an assignment of another problem");
        let mut state = Self::empty(problem);
        for (item, place) in assignment.iter() {
            if let Some(place) = place {
                state.enter(item, place);
            }
        }
        state.sift();
        for host in 0..problem.hosts() {
            state.rescore_host(host);
        }
        state
    }

    /// Begins anew with the sieve; every host is to be rescored after that.
    fn sift(&mut self) {
        let applies = L == 1 && self.rules_never_pay;
        self.sieve = if applies { Sieve::new(self.problem, &self.overload_weight) } else { None };
    }

    /// Nothing placed, and host scores not yet computed.
    fn empty(problem: &'p Problem) -> Self {
        let cells = problem.hosts * problem.resources.len();
        let mut room = problem.capacity.clone();
        for (cell, room) in room.iter_mut().enumerate() {
            if !problem.resources[cell % problem.resources.len()].hard {
                *room = UNLIMITED;
            }
        }
        let largest = (0..problem.groups.len()).map(|ix| problem.groups.row(ix).len()).max();
        let mut group_histogram = vec![0; largest.unwrap_or(0) + 1];
        group_histogram[0] = problem.move_groups as u32;
        let mut state = Self {
            problem,
            places: vec![Place::NOWHERE; problem.items],
            usage: vec![0; cells],
            room,
            on_host: vec![Vec::new(); problem.hosts],
            slot: vec![NONE; problem.items],
            host_score: vec![Score::ZERO; problem.hosts],
            host_excess: vec![0.0; problem.hosts],
            overload_weight: problem.overload_weight.clone(),
            kept: Vec::new(),
            sieve: None,
            rules_never_pay: problem.rules.iter().all(|rule| rule.strength == Strength::Hard)
                && (0..problem.items).all(|ix| problem.preferred.row(ix).is_empty()),
            tallies: TallyCounts::new(problem),
            group_moved: vec![0; problem.move_groups],
            group_histogram,
            group_most: 0,
            moved: 0,
            moved_bytes: 0,
            score: Score::ZERO,
        };
        state.score.hard = HARD_UNPLACED * problem.items as i64;
        state.add_change(TallyCounts::cost_of_nothing(problem));
        state.hold_transient();
        state
    }

    /// Transient resources of every item are held at its home from the start.
    fn hold_transient(&mut self) {
        let problem = self.problem;
        if !problem.has_transient {
            return;
        }
        for ix in 0..problem.items {
            let item = Item::from(ix);
            let Some(home) = problem.home(item) else { continue };
            let base = home.host.ix() * problem.resources.len();
            for (r, need) in problem.need(item, home.shape).iter().enumerate() {
                if problem.resources[r].transient {
                    self.room[base + r] -= need;
                }
            }
        }
    }

    /// The problem it is a state of.
    pub fn problem(&self) -> &'p Problem {
        self.problem
    }

    /// How good it is.
    #[inline]
    pub fn score(&self) -> Score<L> {
        self.score
    }

    /// Where an item is.
    #[inline]
    pub fn place(&self, item: Item) -> Option<Place> {
        let place = self.places[item.ix()];
        place.is_somewhere().then_some(place)
    }

    /// The items on a host, in no order that means anything.
    #[inline]
    pub fn items_on(&self, host: Host) -> &[u32] {
        &self.on_host[host.ix()]
    }

    /// What is used of each resource on a host.
    #[inline]
    pub fn usage(&self, host: Host) -> &[i64] {
        let r = self.problem.resources.len();
        &self.usage[host.ix() * r..][..r]
    }

    /// What arrivals may still take of each resource; negative when over capacity. Meaningless (very
    /// large) for resources without hard capacity.
    #[inline]
    pub fn room(&self, host: Host) -> &[i64] {
        let r = self.problem.resources.len();
        &self.room[host.ix() * r..][..r]
    }

    /// What a host adds to the score by its load alone.
    #[inline]
    pub fn host_score(&self, host: Host) -> Score<L> {
        self.host_score[host.ix()]
    }

    /// How many items are not at home. New items that were placed do not count.
    #[inline]
    pub fn moved(&self) -> u32 {
        self.moved
    }

    /// Bytes carried by the items that are not at home.
    #[inline]
    pub fn moved_bytes(&self) -> u64 {
        self.moved_bytes
    }

    /// The assignment as a value.
    pub fn assignment(&self) -> Assignment {
        Assignment::from_places(
            self.places.iter().map(|place| place.is_somewhere().then_some(*place)),
        )
    }

    /// Makes the state that of another assignment, by moves.
    pub fn become_like(&mut self, assignment: &Assignment) {
        for (item, place) in assignment.iter() {
            if self.place(item) != place {
                self.apply(item, place);
            }
        }
    }

    /// Makes relaxed walks keep the capacities of transient resources: what is held at home all the
    /// time leaves arrivals so little that some problems are better walked without passing it.
    pub(in crate::core) fn keep_transient(&mut self) {
        for (r, spec) in self.problem.resources.iter().enumerate() {
            if spec.transient && spec.hard {
                self.overload_weight[r] = 0.0;
                self.kept.push(r as u32);
            }
        }
        self.sift();
        for host in 0..self.problem.hosts {
            self.rescore_host(host);
        }
    }

    /// Moves, places or removes an item, whether that is feasible or not. Returns what it changed.
    pub fn apply(&mut self, item: Item, to: Option<Place>) -> Score<L> {
        let before = self.score;
        let from = self.places[item.ix()];
        let to = to.unwrap_or(Place::NOWHERE);
        if from == to {
            return Score::ZERO;
        }
        if from.is_somewhere() {
            self.leave(item, from);
            self.rescore_host(from.host.ix());
        }
        if to.is_somewhere() {
            self.enter(item, to);
            self.rescore_host(to.host.ix());
        }
        self.score - before
    }

    /// Whether an item may go somewhere, by every hard rule.
    pub fn feasible_move(&self, item: Item, to: Place) -> bool {
        let from = self.places[item.ix()];
        from == to
            || (self.open(item, to)
                && self.fits::<false>(item, to)
                && !self.rules_change(item, from, to, &[]).worse)
    }

    /// Why an item may not go somewhere, or `None` if it may. Takes longer than
    /// [`feasible_move`](Self::feasible_move), and agrees with it.
    pub fn blocker(&self, item: Item, to: Place) -> Option<Blocker> {
        let problem = self.problem;
        let from = self.places[item.ix()];
        if from == to {
            return None;
        }
        let home = problem.home(item) == Some(to);
        if problem.pinned(item) && !home {
            return Some(Blocker::Pinned);
        }
        if problem.closed(to.host) && (!home || problem.drained(to.host)) {
            return Some(Blocker::Closed);
        }
        if !problem.allowed(item, to.host) {
            return Some(Blocker::NotAllowed);
        }
        for r in 0..problem.resources.len() {
            let missing = self.missing(item, from, to, r);
            if missing > 0 {
                return Some(Blocker::Capacity { resource: Resource::from(r), missing });
            }
        }
        self.blocking_rule(item, from, to).map(Blocker::Rule)
    }

    fn add_change(&mut self, change: Change) {
        self.score.hard += change.hard;
        self.score.add(self.problem.levels.soft_rules, change.soft);
    }

    fn enter(&mut self, item: Item, to: Place) {
        let problem = self.problem;
        debug_assert!(!self.places[item.ix()].is_somewhere());
        self.shift_rules(item, Place::NOWHERE, to);
        self.score += self.placement_delta(item, Place::NOWHERE, to);
        let groups = self.group_delta(item, Place::NOWHERE, to);
        self.score.add(problem.levels.group_moves, groups);
        self.count_moved(item, Place::NOWHERE, to);
        self.add_load(item, to, 1);
        let list = &mut self.on_host[to.host.ix()];
        self.slot[item.ix()] = list.len() as u32;
        list.push(item.0);
        if list.len() == 1 {
            self.score.add(problem.levels.hosts_in_use, problem.activation[to.host.ix()]);
        }
        self.places[item.ix()] = to;
    }

    fn leave(&mut self, item: Item, from: Place) {
        let problem = self.problem;
        self.shift_rules(item, from, Place::NOWHERE);
        self.score += self.placement_delta(item, from, Place::NOWHERE);
        let groups = self.group_delta(item, from, Place::NOWHERE);
        self.score.add(problem.levels.group_moves, groups);
        self.count_moved(item, from, Place::NOWHERE);
        self.add_load(item, from, -1);
        let list = &mut self.on_host[from.host.ix()];
        let slot = self.slot[item.ix()] as usize;
        list.swap_remove(slot);
        if let Some(other) = list.get(slot) {
            self.slot[*other as usize] = slot as u32;
        }
        if list.is_empty() {
            self.score.add(problem.levels.hosts_in_use, -problem.activation[from.host.ix()]);
        }
        self.slot[item.ix()] = NONE;
        self.places[item.ix()] = Place::NOWHERE;
    }

    fn shift_rules(&mut self, item: Item, from: Place, to: Place) {
        let class = self.problem.class[item.ix()] as usize;
        for tally in self.problem.class_tallies.row(class) {
            let shift = self.shift_of(*tally, from, to);
            let change = self.tallies.change(self.problem, &self.places, shift, &[]);
            self.add_change(change);
            self.tallies.shift(self.problem, shift);
        }
    }

    fn add_load(&mut self, item: Item, place: Place, sign: i64) {
        let problem = self.problem;
        let base = place.host.ix() * problem.resources.len();
        let (need, claim) = (problem.need(item, place.shape), problem.claim(item, place));
        for r in 0..need.len() {
            self.usage[base + r] += sign * need[r];
            self.room[base + r] -= sign * claim[r];
        }
    }

    fn rescore_host(&mut self, host: usize) {
        let mut score = self.load_score(host, |_, used| used);
        score.hard = self.overload_after(host, |_, room| room);
        self.score += score - self.host_score[host];
        self.host_score[host] = score;
        self.host_excess[host] = self.excess(host, |_, room| room);
        if let Some(sieve) = &mut self.sieve {
            let row = host * self.problem.resources.len();
            let cells = row..row + self.problem.resources.len();
            sieve.update(host, &self.usage[cells.clone()], &self.room[cells]);
        }
    }
}
