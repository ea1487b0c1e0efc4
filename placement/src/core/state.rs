//! An assignment under change, with its score kept up to date.
//!
//! A move costs O(resources + rules of the item) to weigh ([`State::delta`])
//! and about twice that to make ([`State::apply`]). Whatever sequence of moves
//! was made, [`State::score`] equals [`Problem::evaluate`] from scratch.
//!
//! `L` is the number of levels kept: [`LEVELS_MAX`] for everybody, and
//! `State<1>` for problems whose objective is one sum, where it is faster.

use super::assignment::Assignment;
use super::evaluate::overload;
use super::ids::{Host, Item, NONE, Place, Resource, Rule};
use super::objective::{DEVIATION_MAX, HARD_UNIT, HARD_UNPLACED, LEVELS_MAX, Score};
use super::problem::{Problem, RuleKind, Strength, UNLIMITED};
use super::sieve::{Sieve, Threshold};
use super::tally::{Change, Shift, TallyCounts};

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
pub(super) struct Limit {
    /// The largest loss of interest.
    pub(super) most: f64,
    /// What use above capacity counts in a relaxed walk, see [`State::relaxed_delta`].
    pub(super) price: f64,
}

impl Limit {
    /// Every move is weighed to the end.
    pub(super) const NONE: Self = Self { most: f64::INFINITY, price: 0.0 };
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

    /// What moving (or first placing) an item would change, or `None` if it may not go there: it is
    /// pinned, the host is closed or not allowed, there is no room, or a hard rule would be broken
    /// further. An item may go home to a closed host, not to a drained one.
    #[inline]
    pub fn delta(&self, item: Item, to: Place) -> Option<Score<L>> {
        self.weigh::<false>(item, to, Limit::NONE).map(|(delta, _)| delta)
    }

    /// As [`delta`](Self::delta), but `None` also for a move that is over the limit: that is found out
    /// early, mostly without a look at the rules.
    #[inline]
    pub(super) fn delta_within(&self, item: Item, to: Place, limit: Limit) -> Option<Score<L>> {
        self.weigh::<false>(item, to, limit).map(|(delta, _)| delta)
    }

    /// As [`delta_within`](Self::delta_within) for moves between hosts, but capacities may be exceeded, except those
    /// [`keep_transient`](Self::keep_transient) speaks of. The second number is by how much more that happens, relative to the mean capacity of
    /// a host; the hard part of the first then leaves capacities out.
    #[inline]
    pub(super) fn relaxed_delta(
        &self,
        item: Item,
        to: Place,
        limit: Limit,
    ) -> Option<(Score<L>, f64)> {
        let from = self.places[item.ix()];
        if !from.is_somewhere() || from.host == to.host {
            return None;
        }
        self.weigh::<true>(item, to, limit)
    }

    /// How much more is used above capacity after a move between hosts.
    #[inline]
    fn excess_delta(&self, item: Item, from: Place, to: Place) -> f64 {
        let (left, need) = (self.problem.claim(item, from), self.problem.claim(item, to));
        let arrival = self.excess(to.host.ix(), |r, room| room - need[r]);
        let departure = self.excess(from.host.ix(), |r, room| room + left[r]);
        let before = self.host_excess[to.host.ix()] + self.host_excess[from.host.ix()];
        arrival + departure - before
    }

    /// Whether what is known of a move without its rules is over the limit for good.
    #[inline]
    fn over<const RELAXED: bool>(&self, delta: Score<L>, excess: f64, limit: Limit) -> bool {
        L == 1
            && self.rules_never_pay
            && (RELAXED || self.score.hard == 0)
            && delta.soft[0] as f64 + limit.price * excess > limit.most
    }

    /// Makes relaxed walks keep the capacities of transient resources: what is held at home all the
    /// time leaves arrivals so little that some problems are better walked without passing it.
    pub(super) fn keep_transient(&mut self) {
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

    /// What is used above capacity on a host, its room seen through `room`, relative to the mean
    /// capacity of a host.
    #[inline(always)]
    fn excess(&self, host: usize, room: impl Fn(usize, i64) -> i64) -> f64 {
        let weights = &self.overload_weight;
        let rooms = &self.room[host * weights.len()..][..weights.len()];
        let mut sum = 0.0;
        for (r, weight) in weights.iter().enumerate() {
            sum += weight * (-room(r, rooms[r])).max(0) as f64;
        }
        sum
    }

    #[inline]
    fn weigh<const RELAXED: bool>(
        &self,
        item: Item,
        to: Place,
        limit: Limit,
    ) -> Option<(Score<L>, f64)> {
        let problem = self.problem;
        let from = self.places[item.ix()];
        if self.hopeless::<RELAXED>(item, from, to, limit) {
            return None;
        }
        if from == to || !self.open(item, to) || !self.fits::<RELAXED>(item, to) {
            return None;
        }
        let mut delta = self.arrival(item, from, to);
        if from.is_somewhere() && from.host != to.host {
            delta += self.departure::<RELAXED>(item, from);
        }
        let excess = if RELAXED { self.excess_delta(item, from, to) } else { 0.0 };
        // Leaving home never makes a move cheaper.
        if from == problem.home[item.ix()] && self.over::<RELAXED>(delta, excess, limit) {
            return None;
        }
        delta += self.placement_delta(item, from, to);
        delta.add(problem.levels.group_moves, self.group_delta(item, from, to));
        if self.over::<RELAXED>(delta, excess, limit) {
            return None;
        }
        let change = self.rules_change(item, from, to, &[]);
        if change.worse {
            return None;
        }
        delta.hard += change.hard;
        delta.add(problem.levels.soft_rules, change.soft);
        Some((delta, excess))
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

    /// What exchanging two items would change: `a` goes to `to_a`, on the host `b` is on, and `b` to
    /// `to_b`, on the host `a` is on. `None` if one may not go there after the other left.
    #[inline]
    pub fn swap_delta(&self, a: Item, to_a: Place, b: Item, to_b: Place) -> Option<Score<L>> {
        self.weigh_swap::<false>((a, to_a), (b, to_b), Limit::NONE).map(|(delta, _)| delta)
    }

    /// As [`swap_delta`](Self::swap_delta), within a limit as [`delta_within`](Self::delta_within).
    #[inline]
    pub(super) fn swap_delta_within(
        &self,
        a: (Item, Place),
        b: (Item, Place),
        limit: Limit,
    ) -> Option<Score<L>> {
        self.weigh_swap::<false>(a, b, limit).map(|(delta, _)| delta)
    }

    /// As [`swap_delta_within`](Self::swap_delta_within), relaxed as [`relaxed_delta`](Self::relaxed_delta).
    #[inline]
    pub(super) fn relaxed_swap_delta(
        &self,
        a: (Item, Place),
        b: (Item, Place),
        limit: Limit,
    ) -> Option<(Score<L>, f64)> {
        self.weigh_swap::<true>(a, b, limit)
    }

    /// How much more is used above capacity after an exchange.
    #[inline]
    fn swap_excess_delta(&self, (a, to_a): (Item, Place), (b, to_b): (Item, Place)) -> f64 {
        let (from_a, from_b) = (self.places[a.ix()], self.places[b.ix()]);
        let claim = |item, place| self.problem.claim(item, place);
        let (come, go) = (claim(a, to_a), claim(b, from_b));
        let at_b = self.excess(to_a.host.ix(), |r, room| room + go[r] - come[r]);
        let (come, go) = (claim(b, to_b), claim(a, from_a));
        let at_a = self.excess(to_b.host.ix(), |r, room| room + go[r] - come[r]);
        let before = self.host_excess[to_a.host.ix()] + self.host_excess[to_b.host.ix()];
        at_a + at_b - before
    }

    #[inline]
    fn weigh_swap<const RELAXED: bool>(
        &self,
        (a, to_a): (Item, Place),
        (b, to_b): (Item, Place),
        limit: Limit,
    ) -> Option<(Score<L>, f64)> {
        let (from_a, from_b) = (self.places[a.ix()], self.places[b.ix()]);
        debug_assert!(to_a.host == from_b.host && to_b.host == from_a.host);
        if from_a.host == from_b.host
            || self.hopeless_swap::<RELAXED>((a, from_a, to_a), (b, from_b, to_b), limit)
            || !self.open(a, to_a)
            || !self.open(b, to_b)
        {
            return None;
        }
        let mut delta = self.exchange::<RELAXED>(a, to_a, b, from_b)?;
        delta += self.exchange::<RELAXED>(b, to_b, a, from_a)?;
        let excess = if RELAXED { self.swap_excess_delta((a, to_a), (b, to_b)) } else { 0.0 };
        let home = &self.problem.home;
        let leave = from_a == home[a.ix()] && from_b == home[b.ix()];
        if leave && self.over::<RELAXED>(delta, excess, limit) {
            return None;
        }
        delta += self.placement_delta(a, from_a, to_a);
        delta += self.placement_delta(b, from_b, to_b);
        delta.add(
            self.problem.levels.group_moves,
            self.swap_group_delta(a, (from_a, to_a), b, (from_b, to_b)),
        );
        if self.over::<RELAXED>(delta, excess, limit) {
            return None;
        }
        let change = self.swap_rules_change(a, (from_a, to_a), b, (from_b, to_b))?;
        delta.hard += change.hard;
        delta.add(self.problem.levels.soft_rules, change.soft);
        Some((delta, excess))
    }

    // ---- a first look ----

    /// Whether a move is over the limit by what the sieve knows.
    #[inline]
    fn hopeless<const RELAXED: bool>(
        &self,
        item: Item,
        from: Place,
        to: Place,
        limit: Limit,
    ) -> bool {
        let Some(sieve) = self.sieve_for::<RELAXED>(limit) else { return false };
        let between_hosts = from.is_somewhere() && from.host != to.host;
        let threshold = self.threshold::<RELAXED>(limit, self.way_gain(item, from));
        between_hosts && sieve.rejects(self.problem, item, (from, to), threshold)
    }

    #[inline]
    fn hopeless_swap<const RELAXED: bool>(
        &self,
        (a, from_a, to_a): (Item, Place, Place),
        (b, from_b, to_b): (Item, Place, Place),
        limit: Limit,
    ) -> bool {
        let Some(sieve) = self.sieve_for::<RELAXED>(limit) else { return false };
        let gain = self.way_gain(a, from_a) + self.way_gain(b, from_b);
        let threshold = self.threshold::<RELAXED>(limit, gain);
        sieve.rejects_swap(self.problem, (a, from_a), (b, from_b), (to_a, to_b), threshold)
    }

    /// The sieve, where it may be asked: what mends hard violations is not to be rejected by its cost.
    #[inline]
    fn sieve_for<const RELAXED: bool>(&self, limit: Limit) -> Option<&Sieve> {
        let applies = limit.most.is_finite() && (RELAXED || self.score.hard == 0);
        self.sieve.as_ref().filter(|_| applies)
    }

    #[inline]
    fn threshold<const RELAXED: bool>(&self, limit: Limit, gain: i64) -> Threshold {
        let most = ((limit.most + gain as f64) * (1.0 + f64::from(f32::EPSILON))) as f32;
        Threshold { most, price: RELAXED.then_some(limit.price as f32) }
    }

    /// The most that leaving a place can gain besides load: what having left home costs.
    #[inline]
    fn way_gain(&self, item: Item, from: Place) -> i64 {
        let problem = self.problem;
        let home = problem.home[item.ix()];
        if from == home || !home.is_somewhere() {
            return 0;
        }
        let way = if problem.way_cost.is_empty() {
            0
        } else {
            i64::from(problem.way_cost[home.host.ix() * problem.hosts + from.host.ix()])
        };
        problem.move_cost[item.ix()] + problem.way_weight * way + problem.move_group_weight
    }

    // ---- parts of a delta ----

    #[inline]
    fn open(&self, item: Item, to: Place) -> bool {
        let problem = self.problem;
        let (ix, host) = (item.ix(), to.host.ix());
        let open = if problem.home[ix] == to {
            !problem.drained[host]
        } else {
            !problem.closed[host] && !problem.pinned[ix]
        };
        open && problem.allowed(item, to.host)
    }

    #[inline]
    fn fits<const RELAXED: bool>(&self, item: Item, to: Place) -> bool {
        let from = self.places[item.ix()];
        if from.host == to.host {
            return (0..self.problem.resources.len()).all(|r| self.missing(item, from, to, r) <= 0);
        }
        let claim = self.problem.claim(item, to);
        let room = &self.room(to.host)[..claim.len()];
        if RELAXED {
            return self.kept.iter().all(|r| claim[*r as usize] <= room[*r as usize].max(0));
        }
        claim.iter().zip(room).all(|(claim, room)| *claim <= (*room).max(0))
    }

    /// How much of a resource is missing for an item to go to a place, leaving where it is.
    fn missing(&self, item: Item, from: Place, to: Place, r: usize) -> i64 {
        let room = self.room(to.host)[r];
        let freed = if from.host == to.host { self.problem.claim(item, from)[r] } else { 0 };
        room.min(0) - (room + freed - self.problem.claim(item, to)[r])
    }

    /// What the load of the target host changes when the item arrives (or changes its shape).
    #[inline]
    fn arrival(&self, item: Item, from: Place, to: Place) -> Score<L> {
        let need = self.problem.need(item, to.shape);
        let host = to.host.ix();
        if from.host == to.host {
            let left = self.problem.need(item, from.shape);
            let mut delta = self.load_score(host, |r, used| used + need[r] - left[r]);
            let (come, go) = (self.problem.claim(item, to), self.problem.claim(item, from));
            delta.hard = self.overload_after(host, |r, room| room + go[r] - come[r]);
            return delta - self.host_score[host];
        }
        let mut delta = self.load_score(host, |r, used| used + need[r]);
        if self.on_host[host].is_empty() {
            delta.add(self.problem.levels.hosts_in_use, self.problem.activation[host]);
        }
        let before = self.host_score[host];
        delta.hard = before.hard; // what fits makes no host more overloaded
        delta - before
    }

    /// What the load of the source host changes when the item leaves.
    #[inline]
    fn departure<const RELAXED: bool>(&self, item: Item, from: Place) -> Score<L> {
        let need = self.problem.need(item, from.shape);
        let host = from.host.ix();
        let mut delta = self.load_score(host, |r, used| used - need[r]);
        if self.on_host[host].len() == 1 {
            delta.add(self.problem.levels.hosts_in_use, -self.problem.activation[host]);
        }
        let before = self.host_score[host];
        if !RELAXED && before.hard != 0 {
            let freed = self.problem.claim(item, from);
            delta.hard = self.overload_after(host, |r, room| room + freed[r]);
        }
        if RELAXED {
            delta.hard = before.hard;
        }
        delta - before
    }

    /// What one host of a swap changes: `coming` arrives at `to`, `going` leaves `place`.
    #[inline]
    fn exchange<const RELAXED: bool>(
        &self,
        coming: Item,
        to: Place,
        going: Item,
        place: Place,
    ) -> Option<Score<L>> {
        let problem = self.problem;
        let host = to.host.ix();
        let need = problem.need(coming, to.shape);
        let freed = &problem.need(going, place.shape)[..need.len()];
        let room = &self.room(to.host)[..need.len()];
        let (come, go) = (problem.claim(coming, to), problem.claim(going, place));
        let fits = |r: usize| room[r] + go[r] - come[r] >= room[r].min(0);
        let fit = if RELAXED {
            self.kept.iter().all(|r| fits(*r as usize))
        } else {
            (0..room.len()).all(fits)
        };
        if !fit {
            return None;
        }
        let before = self.host_score[host];
        let mut delta = self.load_score(host, |r, used| used + need[r] - freed[r]);
        if !RELAXED && before.hard != 0 {
            delta.hard = self.overload_after(host, |r, room| room + go[r] - come[r]);
        } else {
            delta.hard = before.hard;
        }
        Some(delta - before)
    }

    /// The score of a host's load, its usage seen through `used`; hard part left out.
    #[inline(always)]
    fn load_score(&self, host: usize, used: impl Fn(usize, i64) -> i64) -> Score<L> {
        let problem = self.problem;
        let resources = problem.resources.len();
        let usage = &self.usage[host * resources..][..resources];
        let safety = &problem.safety[host * resources..][..resources];
        let weights = &problem.safety_weight[..resources];
        let mut sum = 0;
        for r in 0..resources {
            sum += weights[r] * (used(r, usage[r]) - safety[r]).max(0);
        }
        let mut score = Score::ZERO;
        score.add(problem.levels.safety, sum);
        if !problem.balances.is_empty() {
            let capacity = &problem.capacity[host * resources..][..resources];
            for balance in &problem.balances {
                let (a, b) = (balance.first as usize, balance.second as usize);
                let free_a = capacity[a] - used(a, usage[a]);
                let free_b = capacity[b] - used(b, usage[b]);
                let missing = (balance.target * free_a - free_b).max(0);
                score.add(problem.levels.balance, balance.weight * missing);
            }
        }
        if !(problem.imbalance.is_empty()
            && problem.unmet.is_empty()
            && problem.fragments.is_empty())
        {
            self.add_cluster_terms(host, &mut score, used);
        }
        score
    }

    /// The terms of load that the machine reassignment problem does not have.
    #[inline]
    fn add_cluster_terms(
        &self,
        host: usize,
        score: &mut Score<L>,
        used: impl Fn(usize, i64) -> i64,
    ) {
        let problem = self.problem;
        let resources = problem.resources.len();
        let usage = &self.usage[host * resources..][..resources];
        let capacity = &problem.capacity[host * resources..][..resources];
        for entry in &problem.unmet {
            let r = entry.resource as usize;
            let excess = (used(r, usage[r]) - capacity[r]).max(0);
            score.add(problem.levels.unmet, entry.weight * excess);
        }
        let reciprocals = &problem.reciprocal[host * problem.imbalance.len()..];
        for (n, entry) in problem.imbalance.iter().enumerate() {
            if reciprocals[n] > 0 {
                let r = entry.resource as usize;
                let wide = i128::from(used(r, usage[r])) * i128::from(reciprocals[n]);
                let utilisation = i64::try_from(wide >> 32).unwrap_or(UNLIMITED);
                let deviation = utilisation - problem.mean_utilisation[n];
                let deviation = deviation.clamp(-DEVIATION_MAX, DEVIATION_MAX);
                score.add(problem.levels.imbalance, entry.weight * deviation * deviation);
            }
        }
        for entry in &problem.fragments {
            let r = entry.resource as usize;
            let free = capacity[r] - used(r, usage[r]);
            score.add(problem.levels.fragments, entry.weight * free.rem_euclid(entry.unit));
        }
    }

    /// What a host over capacity counts, its room seen through `room`.
    fn overload_after(&self, host: usize, room: impl Fn(usize, i64) -> i64) -> i64 {
        let problem = self.problem;
        let resources = problem.resources.len();
        let base = host * resources;
        (0..resources)
            .filter(|r| problem.resources[*r].hard)
            .map(|r| (r, room(r, self.room[base + r])))
            .filter(|(_, room)| *room < 0)
            .map(|(r, room)| overload(-room, problem.capacity[base + r]))
            .sum()
    }

    /// What an item adds to the score by being at a place, whatever else is there.
    #[inline]
    fn placement_score(&self, item: Item, place: Place) -> Score<L> {
        let problem = self.problem;
        let ix = item.ix();
        let mut score = Score::ZERO;
        if !place.is_somewhere() {
            score.hard = HARD_UNPLACED;
            return score;
        }
        let host = place.host.ix();
        score.hard = HARD_UNIT
            * (i64::from(problem.drained[host]) + i64::from(!problem.allowed(item, place.host)));
        let home = problem.home[ix];
        if home != place && home.is_somewhere() {
            score.hard += HARD_UNIT * i64::from(problem.pinned[ix]);
            score.add(problem.levels.item_moves, problem.move_cost[ix]);
            if !problem.way_cost.is_empty() {
                let cost = problem.way_cost[home.host.ix() * problem.hosts + host];
                score.add(problem.levels.host_moves, problem.way_weight * i64::from(cost));
            }
        }
        for (set, weight) in problem.preferred.row(ix) {
            if !problem.sets[*set as usize].contains(host) {
                score.add(problem.levels.soft_rules, *weight);
            }
        }
        score
    }

    #[inline]
    fn placement_delta(&self, item: Item, from: Place, to: Place) -> Score<L> {
        self.placement_score(item, to) - self.placement_score(item, from)
    }

    // ---- move groups ----

    /// +1 when the item starts to count as moved, -1 when it stops.
    #[inline]
    fn moved_by(&self, item: Item, from: Place, to: Place) -> i32 {
        let home = self.problem.home[item.ix()];
        let moved =
            |place: Place| i32::from(home.is_somewhere() && place.is_somewhere() && place != home);
        moved(to) - moved(from)
    }

    #[inline]
    fn group_delta(&self, item: Item, from: Place, to: Place) -> i64 {
        let group = self.problem.move_group[item.ix()];
        let by = self.moved_by(item, from, to);
        if group == NONE || by == 0 || self.problem.move_group_weight == 0 {
            return 0;
        }
        let most = i64::from(self.most_after(self.group_moved[group as usize], by));
        (most - i64::from(self.group_most)) * self.problem.move_group_weight
    }

    /// The largest count after one group's count changed by `by`.
    #[inline]
    fn most_after(&self, count: u32, by: i32) -> u32 {
        if by > 0 {
            return self.group_most.max(count + 1);
        }
        let alone = count == self.group_most && self.group_histogram[count as usize] == 1;
        self.group_most - u32::from(alone)
    }

    fn swap_group_delta(
        &self,
        a: Item,
        way_a: (Place, Place),
        b: Item,
        way_b: (Place, Place),
    ) -> i64 {
        if self.problem.move_group_weight == 0 {
            return 0;
        }
        let group = |item: Item| self.problem.move_group[item.ix()];
        let (by_a, by_b) = (self.moved_by(a, way_a.0, way_a.1), self.moved_by(b, way_b.0, way_b.1));
        match (by_a != 0 && group(a) != NONE, by_b != 0 && group(b) != NONE) {
            (false, false) => 0,
            (true, false) => self.group_delta(a, way_a.0, way_a.1),
            (false, true) => self.group_delta(b, way_b.0, way_b.1),
            (true, true) => {
                let most = self.most_after_both((group(a), by_a), (group(b), by_b));
                (i64::from(most) - i64::from(self.group_most)) * self.problem.move_group_weight
            }
        }
    }

    fn most_after_both(&self, (a, by_a): (u32, i32), (b, by_b): (u32, i32)) -> u32 {
        let count = |group: u32| self.group_moved[group as usize];
        let after = |count: u32, by: i32| count.saturating_add_signed(by);
        if a == b {
            let sum = by_a + by_b;
            return match sum {
                0 => self.group_most,
                1.. => self.group_most.max(after(count(a), sum)),
                // A fall by two: the others decide, and they are at most as many as before.
                _ => self.highest(|level| {
                    self.group_histogram[level as usize] - u32::from(level == count(a))
                        + u32::from(level == after(count(a), sum))
                }),
            };
        }
        let (new_a, new_b) = (after(count(a), by_a), after(count(b), by_b));
        if by_a > 0 || by_b > 0 {
            let top = new_a.max(new_b);
            if top >= self.group_most {
                return top;
            }
        }
        self.highest(|level| {
            self.group_histogram[level as usize]
                + u32::from(level == new_a)
                + u32::from(level == new_b)
                - u32::from(level == count(a))
                - u32::from(level == count(b))
        })
    }

    /// The highest level at or below the present one with a group in it: at most two steps down.
    fn highest(&self, groups_at: impl Fn(u32) -> u32) -> u32 {
        (0..=self.group_most).rev().find(|level| groups_at(*level) > 0).unwrap_or(0)
    }

    fn count_moved(&mut self, item: Item, from: Place, to: Place) {
        let by = self.moved_by(item, from, to);
        if by == 0 {
            return;
        }
        self.moved = self.moved.saturating_add_signed(by);
        let bytes = self.problem.move_bytes[item.ix()];
        self.moved_bytes = if by > 0 { self.moved_bytes + bytes } else { self.moved_bytes - bytes };
        let group = self.problem.move_group[item.ix()];
        if group != NONE {
            let count = self.group_moved[group as usize];
            self.group_most = self.most_after(count, by);
            let after = count.saturating_add_signed(by);
            self.group_moved[group as usize] = after;
            self.group_histogram[count as usize] -= 1;
            self.group_histogram[after as usize] += 1;
        }
    }

    // ---- rules over groups ----

    #[inline]
    fn domain(&self, partition: u32, place: Place) -> u32 {
        if place.is_somewhere() {
            self.problem.partitions[partition as usize][place.host.ix()]
        } else {
            NONE
        }
    }

    #[inline]
    fn shift_of(&self, tally: u32, from: Place, to: Place) -> Shift {
        let partition = self.problem.tallies[tally as usize].partition;
        Shift { tally, from: self.domain(partition, from), to: self.domain(partition, to) }
    }

    /// What the rules of an item make of its move, after `shifted`.
    #[inline]
    fn rules_change(&self, item: Item, from: Place, to: Place, shifted: &[Shift]) -> Change {
        let class = self.problem.class[item.ix()] as usize;
        if from.host == to.host {
            return Change::default();
        }
        if self.problem.class_entangled[class] {
            return self.entangled_change(class, from, to, shifted);
        }
        let mut change = Change::default();
        for tally in self.problem.class_tallies.row(class) {
            let shift = self.shift_of(*tally, from, to);
            change.merge(self.tallies.change(self.problem, &self.places, shift, shifted));
            if change.worse && shifted.is_empty() {
                return change; // enough to refuse it
            }
        }
        change
    }

    /// The same for an item whose own rules speak of each other: one shift after the other.
    fn entangled_change(&self, class: usize, from: Place, to: Place, shifted: &[Shift]) -> Change {
        let mut shifted = shifted.to_vec();
        let mut change = Change::default();
        for tally in self.problem.class_tallies.row(class) {
            let shift = self.shift_of(*tally, from, to);
            change.merge(self.tallies.change(self.problem, &self.places, shift, &shifted));
            shifted.push(shift);
        }
        // One rule may mend what another broke on the way: the sum decides.
        change.worse = change.hard > 0;
        change
    }

    /// `None` when a hard rule would be broken further.
    #[inline]
    fn swap_rules_change(
        &self,
        a: Item,
        (from_a, to_a): (Place, Place),
        b: Item,
        (from_b, to_b): (Place, Place),
    ) -> Option<Change> {
        let problem = self.problem;
        let (class_a, class_b) = (problem.class[a.ix()] as usize, problem.class[b.ix()] as usize);
        if class_a == class_b {
            return Some(Change::default()); // every count stays as it is
        }
        if problem.class_linked[class_a] && problem.class_linked[class_b] {
            return self.linked_swap_change(class_a, (from_a, to_a), class_b, (from_b, to_b));
        }
        let mut change = self.unshared_change(class_a, class_b, from_a, to_a)?;
        change.merge(self.unshared_change(class_b, class_a, from_b, to_b)?);
        Some(change)
    }

    /// The change of the tallies of one class that the other class does not have.
    #[inline]
    fn unshared_change(
        &self,
        class: usize,
        other: usize,
        from: Place,
        to: Place,
    ) -> Option<Change> {
        if self.problem.class_entangled[class] {
            let change = self.entangled_unshared(class, other, from, to);
            return (change.hard <= 0).then_some(change);
        }
        let theirs = self.problem.class_tallies.row(other);
        let mut change = Change::default();
        for tally in self.problem.class_tallies.row(class) {
            if theirs.contains(tally) {
                continue;
            }
            let shift = self.shift_of(*tally, from, to);
            change.merge(self.tallies.change(self.problem, &self.places, shift, &[]));
            if change.worse {
                return None;
            }
        }
        Some(change)
    }

    fn entangled_unshared(&self, class: usize, other: usize, from: Place, to: Place) -> Change {
        let theirs = self.problem.class_tallies.row(other);
        let mut shifted = Vec::new();
        let mut change = Change::default();
        for tally in self.problem.class_tallies.row(class).iter().filter(|t| !theirs.contains(t)) {
            let shift = self.shift_of(*tally, from, to);
            change.merge(self.tallies.change(self.problem, &self.places, shift, &shifted));
            shifted.push(shift);
        }
        change
    }

    fn linked_swap_change(
        &self,
        class_a: usize,
        (from_a, to_a): (Place, Place),
        class_b: usize,
        (from_b, to_b): (Place, Place),
    ) -> Option<Change> {
        let problem = self.problem;
        let (row_a, row_b) =
            (problem.class_tallies.row(class_a), problem.class_tallies.row(class_b));
        let shifts = row_a
            .iter()
            .filter(|t| !row_b.contains(t))
            .map(|t| self.shift_of(*t, from_a, to_a))
            .chain(
                row_b
                    .iter()
                    .filter(|t| !row_a.contains(t))
                    .map(|t| self.shift_of(*t, from_b, to_b)),
            );
        let mut shifted: Vec<Shift> = Vec::with_capacity(row_a.len() + row_b.len());
        let mut change = Change::default();
        for shift in shifts {
            let each = self.tallies.change(problem, &self.places, shift, &shifted);
            if each.worse && !problem.tallies[shift.tally as usize].linked() {
                return None;
            }
            change.merge(each);
            shifted.push(shift);
        }
        (change.hard <= 0).then_some(change)
    }

    /// The first hard rule that a move would break further.
    fn blocking_rule(&self, item: Item, from: Place, to: Place) -> Option<Rule> {
        if !self.rules_change(item, from, to, &[]).worse {
            return None;
        }
        let mut after = self.assignment();
        let before = self.problem.violations(&after);
        after.set(item, Some(to));
        let broken = |all: &[super::Violation], rule: Rule| {
            all.iter()
                .find_map(|violation| match violation {
                    super::Violation::Rule { rule: broken, by } if *broken == rule => Some(*by),
                    _ => None,
                })
                .unwrap_or(0)
        };
        let violations = self.problem.violations(&after);
        let hard = |rule: &Rule| self.problem.rule(*rule).strength == Strength::Hard;
        let mut rules = (0..self.problem.rules.len()).map(Rule::from).filter(hard);
        let worse = |rule: &Rule| broken(&violations, *rule) > broken(&before, *rule);
        // A rule between groups may be broken in one domain and mended in another by the same move.
        let between = |rule: &Rule| {
            let spec = self.problem.rule(*rule);
            match spec.kind {
                RuleKind::Requires(other) | RuleKind::Excludes(other) => [spec.group, other]
                    .iter()
                    .any(|group| self.problem.groups.row(group.ix()).contains(&item.0)),
                _ => false,
            }
        };
        rules.clone().find(worse).or_else(|| rules.find(between))
    }

    /// Items that rules of the kind tie to this one: the other members of its hard affinity groups.
    pub fn tied_to(&self, item: Item) -> Vec<Item> {
        let problem = self.problem;
        let mut tied: Vec<Item> = problem
            .rules
            .iter()
            .filter(|rule| matches!(rule.kind, RuleKind::MaxDomains(1)))
            .filter(|rule| problem.groups.row(rule.group.ix()).contains(&item.0))
            .flat_map(|rule| problem.members(rule.group))
            .filter(|other| *other != item)
            .collect();
        tied.sort_unstable();
        tied.dedup();
        tied
    }

    // ---- making it so ----

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
