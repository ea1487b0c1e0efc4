//! Rules over groups: what moves make of them, and which one is in the way.

use crate::core::evaluate::Violation;
use crate::core::ids::{Item, NONE, Place, Rule};
use crate::core::problem::{RuleKind, Strength};
use crate::core::tally::{Change, Shift};

use super::State;

impl<const L: usize> State<'_, L> {
    #[inline]
    pub(super) fn domain(&self, partition: u32, place: Place) -> u32 {
        if place.is_somewhere() {
            self.problem.partitions[partition as usize][place.host.ix()]
        } else {
            NONE
        }
    }

    #[inline]
    pub(super) fn shift_of(&self, tally: u32, from: Place, to: Place) -> Shift {
        let partition = self.problem.tallies[tally as usize].partition;
        Shift { tally, from: self.domain(partition, from), to: self.domain(partition, to) }
    }

    /// What the rules of an item make of its move, after `shifted`.
    #[inline]
    pub(super) fn rules_change(
        &self,
        item: Item,
        from: Place,
        to: Place,
        shifted: &[Shift],
    ) -> Change {
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
    pub(super) fn entangled_change(
        &self,
        class: usize,
        from: Place,
        to: Place,
        shifted: &[Shift],
    ) -> Change {
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
    pub(super) fn swap_rules_change(
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
    pub(super) fn unshared_change(
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

    pub(super) fn entangled_unshared(
        &self,
        class: usize,
        other: usize,
        from: Place,
        to: Place,
    ) -> Change {
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

    pub(super) fn linked_swap_change(
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
    pub(super) fn blocking_rule(&self, item: Item, from: Place, to: Place) -> Option<Rule> {
        if !self.rules_change(item, from, to, &[]).worse {
            return None;
        }
        let mut after = self.assignment();
        let before = self.problem.violations(&after);
        after.set(item, Some(to));
        let broken = |all: &[Violation], rule: Rule| {
            all.iter()
                .find_map(|violation| match violation {
                    Violation::Rule { rule: broken, by } if *broken == rule => Some(*by),
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
}
