//! The moves of a walk: which are weighed, and which are made.
//!
//! Where what moved is still held at home (transient resources), the room to move at all is what is
//! scarce. Moves that bring an item home are therefore a kind of their own: alone, or as the end of a
//! chain, its place taken by another. Without those, walks on such problems freeze early.
//!
//! Where load costs much there is most to gain. With many hosts, every other item that is to go somewhere is
//! therefore one whose host costs more than those of a few others drawn with it; the rest are any, because what
//! costs nothing has to make room.

use std::hint::select_unpredictable;

use super::{Climate, Walk};
use crate::core::ids::{Host, Item, Place};
use crate::core::objective::Score;
use crate::core::state::Limit;

/// Hosts drawn for a shift until one is among those the walk is on.
const DRAWS_MAX: usize = 16;

/// A loss this many temperatures high is never accepted.
const STEEPEST: f64 = 20.0;

/// The kinds of moves.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// One item goes to some host.
    Shift,
    /// Two items change places.
    Swap,
    /// One item goes home.
    Home,
    /// One item takes the place of another, which goes home.
    Chain,
}

impl Kind {
    /// One of them, by random bits. Hosts that matter are full, so that a shift is rarely accepted and most is done by
    /// swaps; without any shifts nothing new is tried.
    #[inline]
    fn of(bits: u64) -> Self {
        match bits >> 60 {
            0 => Self::Shift,
            1..=9 => Self::Swap,
            10..=12 => Self::Home,
            _ => Self::Chain,
        }
    }
}

impl<const L: usize> Walk<'_, L> {
    /// Weighs a random move, and makes it if it is accepted.
    #[inline]
    pub(super) fn try_one(&mut self) {
        match Kind::of(self.rng.bits()) {
            Kind::Shift => self.try_shift(),
            Kind::Swap => self.try_swap(),
            Kind::Home => self.try_home(),
            Kind::Chain => self.try_chain(),
        }
    }

    #[inline]
    fn random_item(&mut self) -> Item {
        Item(self.items[self.rng.below(self.items.len())])
    }

    /// One that is to go somewhere: with many hosts, every other time of a costly one.
    #[inline]
    fn item_to_go(&mut self) -> Item {
        let first = self.random_item();
        if self.field == 1 || self.rng.bits() >> 63 == 0 {
            return first;
        }
        let (mut costliest, mut most) = (first, self.cost_where(first));
        for _ in 1..self.field {
            let item = self.random_item();
            let cost = self.cost_where(item);
            // A branch would be guessed wrong about twice.
            costliest = select_unpredictable(cost > most, item, costliest);
            most = most.max(cost);
        }
        costliest
    }

    /// What the load of an item's host costs. One that is nowhere has a cost beyond all.
    #[inline]
    fn cost_where(&self, item: Item) -> i64 {
        self.state.place(item).map_or(i64::MAX, |at| self.state.host_score(at.host).soft[0])
    }

    #[inline]
    pub(super) fn random_shift(&mut self) -> (Item, Place) {
        let problem = self.state.problem();
        let item = self.item_to_go();
        let hosts = problem.open_hosts(item);
        let mut host = Host(hosts[self.rng.below(hosts.len())]);
        if let Some(part) = &self.part {
            for _ in 0..DRAWS_MAX {
                if part.has(host) {
                    break;
                }
                host = Host(hosts[self.rng.below(hosts.len())]);
            }
            if !part.has(host) {
                // Nowhere to go; where it is, it costs nothing to weigh.
                let stay = self.state.place(item).unwrap_or(Place { host, shape: 0 });
                return (item, stay);
            }
        }
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
        let draw = self.draws.draw(&mut self.rng).min(STEEPEST);
        Limit { most: draw * self.climate.temperature[0], price: self.climate.penalty }
    }

    #[inline]
    fn try_shift(&mut self) {
        let (item, place) = self.random_shift();
        self.weigh_shift(item, place);
    }

    #[inline]
    fn try_home(&mut self) {
        let item = self.random_item();
        if let Some((_, home)) = self.way_home(item) {
            self.weigh_shift(item, home);
        }
    }

    /// Where an item is that is away from home, and its home, if it may be moved there now.
    #[inline]
    fn way_home(&self, item: Item) -> Option<(Place, Place)> {
        let home = self.state.problem().home(item)?;
        let at = self.state.place(item)?;
        let mine = self.part.as_ref().is_none_or(|part| part.has(home.host));
        (at.host != home.host && mine).then_some((at, home))
    }

    #[inline]
    fn weigh_shift(&mut self, item: Item, place: Place) {
        let limit = self.limit();
        self.evaluations += 1;
        if let Some((delta, excess)) = self.shift_delta(item, place, limit)
            && self.accepts(delta, excess, limit)
        {
            self.make(&[(item, place)]);
        }
    }

    #[inline]
    fn shift_delta(&self, item: Item, place: Place, limit: Limit) -> Option<(Score<L>, f64)> {
        if self.climate.penalty > 0.0 {
            self.state.relaxed_delta(item, place, limit)
        } else {
            self.state.delta_within(item, place, limit).map(|delta| (delta, 0.0))
        }
    }

    #[inline]
    fn try_swap(&mut self) {
        let (a, b) = (self.item_to_go(), self.random_item());
        self.evaluations += 1;
        let (Some(at_a), Some(at_b)) = (self.state.place(a), self.state.place(b)) else { return };
        let to_a = Place { host: at_b.host, shape: self.shape(a) };
        let to_b = Place { host: at_a.host, shape: self.shape(b) };
        self.weigh_swap((a, to_a), (b, to_b));
    }

    #[inline]
    fn weigh_swap(&mut self, a: (Item, Place), b: (Item, Place)) {
        let limit = self.limit();
        let weighed = if self.climate.penalty > 0.0 {
            self.state.relaxed_swap_delta(a, b, limit)
        } else {
            self.state.swap_delta_within(a, b, limit).map(|delta| (delta, 0.0))
        };
        if let Some((delta, excess)) = weighed
            && self.accepts(delta, excess, limit)
        {
            self.make(&[a, b]);
        }
    }

    #[inline]
    fn try_chain(&mut self) {
        if L > 1 {
            return self.try_shift(); // without the first look chains take too long to weigh
        }
        let (first, second) = (self.item_to_go(), self.random_item());
        let Some((at, home)) = self.way_home(second) else { return };
        let Some(from) = self.state.place(first).filter(|from| from.host != at.host) else {
            return;
        };
        self.evaluations += 1;
        let place = Place { host: at.host, shape: self.shape(first) };
        if from.host == home.host {
            self.weigh_swap((first, place), (second, home));
        } else {
            self.weigh_chain((first, place), (second, at, home));
        }
    }

    /// By making the second move first, which the first look lets happen rarely.
    fn weigh_chain(
        &mut self,
        (first, place): (Item, Place),
        (second, at, home): (Item, Place, Place),
    ) {
        let limit = self.limit();
        let hopeless = if self.climate.penalty > 0.0 {
            self.state.hopeless_chain::<true>(first, (second, home), limit)
        } else {
            self.state.hopeless_chain::<false>(first, (second, home), limit)
        };
        if hopeless {
            return;
        }
        let any = Limit { most: f64::INFINITY, ..limit };
        let Some((one, excess)) = self.shift_delta(second, home, any) else { return };
        self.state.apply(second, Some(home));
        if let Some((two, more)) = self.shift_delta(first, place, any)
            && self.accepts(one + two, excess + more, limit)
        {
            self.keeper.touched(second);
            self.make(&[(first, place)]);
        } else {
            self.state.apply(second, Some(at));
        }
    }

    #[inline]
    fn make(&mut self, moves: &[(Item, Place)]) {
        for (item, place) in moves {
            self.state.apply(*item, Some(*place));
            self.keeper.touched(*item);
        }
        self.keeper.look(&self.state);
    }

    #[inline]
    fn accepts(&mut self, delta: Score<L>, excess: f64, limit: Limit) -> bool {
        let Climate { temperature, penalty } = self.climate;
        if penalty > 0.0 {
            return delta.hard <= 0 && delta.soft[0] as f64 + penalty * excess <= limit.most;
        }
        let (level, amount) = delta.leading();
        if amount <= 0 {
            return true;
        }
        let Some(level) = level else { return false };
        if L == 1 {
            return amount as f64 <= limit.most;
        }
        let loss = amount as f64 / temperature[level];
        loss < STEEPEST && self.rng.unit() < (-loss).exp()
    }
}
