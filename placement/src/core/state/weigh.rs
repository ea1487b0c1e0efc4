//! What a move or an exchange would change: the exact numbers.

use crate::core::evaluate::overload;
use crate::core::ids::{Item, Place};
use crate::core::objective::{DEVIATION_MAX, HARD_UNIT, HARD_UNPLACED, Score};
use crate::core::problem::UNLIMITED;

use super::{Limit, State};

impl<const L: usize> State<'_, L> {
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
    pub(in crate::core) fn delta_within(
        &self,
        item: Item,
        to: Place,
        limit: Limit,
    ) -> Option<Score<L>> {
        self.weigh::<false>(item, to, limit).map(|(delta, _)| delta)
    }

    /// As [`delta_within`](Self::delta_within) for moves between hosts, but capacities may be exceeded, except those
    /// [`keep_transient`](Self::keep_transient) speaks of. The second number is by how much more that happens, relative to the mean capacity of
    /// a host; the hard part of the first then leaves capacities out.
    #[inline]
    pub(in crate::core) fn relaxed_delta(
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
    pub(super) fn excess_delta(&self, item: Item, from: Place, to: Place) -> f64 {
        let (left, need) = (self.problem.claim(item, from), self.problem.claim(item, to));
        let arrival = self.excess(to.host.ix(), |r, room| room - need[r]);
        let departure = self.excess(from.host.ix(), |r, room| room + left[r]);
        let before = self.host_excess[to.host.ix()] + self.host_excess[from.host.ix()];
        arrival + departure - before
    }

    /// Whether what is known of a move without its rules is over the limit for good.
    #[inline]
    pub(super) fn over<const RELAXED: bool>(
        &self,
        delta: Score<L>,
        excess: f64,
        limit: Limit,
    ) -> bool {
        L == 1
            && self.rules_never_pay
            && (RELAXED || self.score.hard == 0)
            && delta.soft[0] as f64 + limit.price * excess > limit.most
    }

    /// What is used above capacity on a host, its room seen through `room`, relative to the mean
    /// capacity of a host.
    #[inline(always)]
    pub(super) fn excess(&self, host: usize, room: impl Fn(usize, i64) -> i64) -> f64 {
        let weights = &self.overload_weight;
        let rooms = &self.room[host * weights.len()..][..weights.len()];
        let mut sum = 0.0;
        for (r, weight) in weights.iter().enumerate() {
            sum += weight * (-room(r, rooms[r])).max(0) as f64;
        }
        sum
    }

    #[inline]
    pub(super) fn weigh<const RELAXED: bool>(
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

    /// What exchanging two items would change: `a` goes to `to_a`, on the host `b` is on, and `b` to
    /// `to_b`, on the host `a` is on. `None` if one may not go there after the other left.
    #[inline]
    pub fn swap_delta(&self, a: Item, to_a: Place, b: Item, to_b: Place) -> Option<Score<L>> {
        self.weigh_swap::<false>((a, to_a), (b, to_b), Limit::NONE).map(|(delta, _)| delta)
    }

    /// As [`swap_delta`](Self::swap_delta), within a limit as [`delta_within`](Self::delta_within).
    #[inline]
    pub(in crate::core) fn swap_delta_within(
        &self,
        a: (Item, Place),
        b: (Item, Place),
        limit: Limit,
    ) -> Option<Score<L>> {
        self.weigh_swap::<false>(a, b, limit).map(|(delta, _)| delta)
    }

    /// As [`swap_delta_within`](Self::swap_delta_within), relaxed as [`relaxed_delta`](Self::relaxed_delta).
    #[inline]
    pub(in crate::core) fn relaxed_swap_delta(
        &self,
        a: (Item, Place),
        b: (Item, Place),
        limit: Limit,
    ) -> Option<(Score<L>, f64)> {
        self.weigh_swap::<true>(a, b, limit)
    }

    /// How much more is used above capacity after an exchange.
    #[inline]
    pub(super) fn swap_excess_delta(
        &self,
        (a, to_a): (Item, Place),
        (b, to_b): (Item, Place),
    ) -> f64 {
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
    pub(super) fn weigh_swap<const RELAXED: bool>(
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

    #[inline]
    pub(super) fn open(&self, item: Item, to: Place) -> bool {
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
    pub(super) fn fits<const RELAXED: bool>(&self, item: Item, to: Place) -> bool {
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
    pub(super) fn missing(&self, item: Item, from: Place, to: Place, r: usize) -> i64 {
        let room = self.room(to.host)[r];
        let freed = if from.host == to.host { self.problem.claim(item, from)[r] } else { 0 };
        room.min(0) - (room + freed - self.problem.claim(item, to)[r])
    }

    /// What the load of the target host changes when the item arrives (or changes its shape).
    #[inline]
    pub(super) fn arrival(&self, item: Item, from: Place, to: Place) -> Score<L> {
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
    pub(super) fn departure<const RELAXED: bool>(&self, item: Item, from: Place) -> Score<L> {
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
    pub(super) fn exchange<const RELAXED: bool>(
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
    pub(super) fn load_score(&self, host: usize, used: impl Fn(usize, i64) -> i64) -> Score<L> {
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
    pub(super) fn add_cluster_terms(
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
    pub(super) fn overload_after(&self, host: usize, room: impl Fn(usize, i64) -> i64) -> i64 {
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
    pub(super) fn placement_score(&self, item: Item, place: Place) -> Score<L> {
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
    pub(super) fn placement_delta(&self, item: Item, from: Place, to: Place) -> Score<L> {
        self.placement_score(item, to) - self.placement_score(item, from)
    }
}
