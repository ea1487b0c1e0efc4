//! The first look at moves: which are over the limit whatever the exact numbers are.

use crate::core::ids::{Item, Place};
use crate::core::sieve::{Sieve, Threshold};

use super::{Limit, State};

impl<const L: usize> State<'_, L> {
    /// Whether a move is over the limit by what the sieve knows.
    #[inline]
    pub(super) fn hopeless<const RELAXED: bool>(
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
    pub(super) fn hopeless_swap<const RELAXED: bool>(
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

    /// Whether it is hopeless that `first` takes the place of `second`, which goes to `to`, on a third
    /// host. Without a sieve nothing is.
    #[inline]
    pub(in crate::core) fn hopeless_chain<const RELAXED: bool>(
        &self,
        first: Item,
        (second, to): (Item, Place),
        limit: Limit,
    ) -> bool {
        let Some(sieve) = self.sieve_for::<RELAXED>(limit) else { return false };
        let (from, at) = (self.places[first.ix()], self.places[second.ix()]);
        let gain = self.way_gain(first, from) + self.way_gain(second, at);
        let threshold = self.threshold::<RELAXED>(limit, gain);
        sieve.rejects_chain(self.problem, (first, from), (second, at), to, threshold)
    }

    /// The sieve, where it may be asked: what mends hard violations is not to be rejected by its cost.
    #[inline]
    pub(super) fn sieve_for<const RELAXED: bool>(&self, limit: Limit) -> Option<&Sieve> {
        let applies = limit.most.is_finite() && (RELAXED || self.score.hard == 0);
        self.sieve.as_ref().filter(|_| applies)
    }

    #[inline]
    pub(super) fn threshold<const RELAXED: bool>(&self, limit: Limit, gain: i64) -> Threshold {
        let most = ((limit.most + gain as f64) * (1.0 + f64::from(f32::EPSILON))) as f32;
        Threshold { most, price: RELAXED.then_some(limit.price as f32) }
    }

    /// The most that leaving a place can gain besides load: what having left home costs.
    #[inline]
    pub(super) fn way_gain(&self, item: Item, from: Place) -> i64 {
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
}
