//! The largest number of moved items of any move group, kept up to date.

use crate::core::ids::{Item, NONE, Place};

use super::State;

impl<const L: usize> State<'_, L> {
    /// +1 when the item starts to count as moved, -1 when it stops.
    #[inline]
    pub(super) fn moved_by(&self, item: Item, from: Place, to: Place) -> i32 {
        let home = self.problem.home[item.ix()];
        let moved =
            |place: Place| i32::from(home.is_somewhere() && place.is_somewhere() && place != home);
        moved(to) - moved(from)
    }

    #[inline]
    pub(super) fn group_delta(&self, item: Item, from: Place, to: Place) -> i64 {
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
    pub(super) fn most_after(&self, count: u32, by: i32) -> u32 {
        if by > 0 {
            return self.group_most.max(count + 1);
        }
        let alone = count == self.group_most && self.group_histogram[count as usize] == 1;
        self.group_most - u32::from(alone)
    }

    pub(super) fn swap_group_delta(
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

    pub(super) fn most_after_both(&self, (a, by_a): (u32, i32), (b, by_b): (u32, i32)) -> u32 {
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
    pub(super) fn highest(&self, groups_at: impl Fn(u32) -> u32) -> u32 {
        (0..=self.group_most).rev().find(|level| groups_at(*level) > 0).unwrap_or(0)
    }

    pub(super) fn count_moved(&mut self, item: Item, from: Place, to: Place) {
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
}
