//! Counters of the rules: how many items of a group are in each domain, kept
//! up to date, and what a shift from one domain to another breaks or mends.

use super::ids::{NONE, Place};
use super::objective::HARD_UNIT;
use super::problem::{Problem, TallySpec};

/// One item of a tally's group going from one domain to another (`NONE`: outside).
#[derive(Debug, Clone, Copy)]
pub(super) struct Shift {
    pub(super) tally: u32,
    pub(super) from: u32,
    pub(super) to: u32,
}

/// What shifts change.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Change {
    /// In [`HARD_UNIT`] each.
    pub(super) hard: i64,
    pub(super) soft: i64,
    /// Whether any one hard rule is broken further, even if others are mended.
    pub(super) worse: bool,
}

impl Change {
    #[inline]
    fn add(&mut self, weight: i64, by: i64) {
        if weight == 0 {
            self.hard += by * HARD_UNIT;
            self.worse |= by > 0;
        } else {
            self.soft += by * weight;
        }
    }

    #[inline]
    pub(super) fn merge(&mut self, other: Self) {
        self.hard += other.hard;
        self.soft += other.soft;
        self.worse |= other.worse;
    }
}

/// The counters of all tallies.
#[derive(Debug, Clone)]
pub(super) struct TallyCounts {
    cells: Vec<u32>,
    /// Domains with at least one item, per tally that has a row.
    in_use: Vec<u32>,
}

impl TallyCounts {
    /// Counters of no items at all.
    pub(super) fn new(problem: &Problem) -> Self {
        Self { cells: vec![0; problem.tally_cells], in_use: vec![0; problem.tallies.len()] }
    }

    /// What the rules cost while nothing is placed.
    pub(super) fn cost_of_nothing(problem: &Problem) -> Change {
        let mut change = Change::default();
        for limit in problem.tallies.iter().filter_map(|spec| spec.min_domains) {
            change.add(limit.weight, i64::from(limit.value));
        }
        change
    }

    #[inline]
    fn count(&self, problem: &Problem, places: &[Place], spec: &TallySpec, domain: u32) -> u32 {
        if spec.row != NONE {
            return self.cells[(spec.row + domain) as usize];
        }
        let domains = &problem.partitions[spec.partition as usize];
        let members = problem.groups.row(spec.group as usize);
        let inside = |item: &&u32| {
            let host = places[**item as usize].host;
            host.0 != NONE && domains[host.ix()] == domain
        };
        members.iter().filter(inside).count() as u32
    }

    /// The count of another tally as if `shifted` had happened.
    #[inline]
    fn linked_count(&self, problem: &Problem, tally: u32, domain: u32, shifted: &[Shift]) -> u32 {
        let mut count = self.cells[(problem.tallies[tally as usize].row + domain) as usize];
        for shift in shifted.iter().filter(|shift| shift.tally == tally) {
            count += u32::from(shift.to == domain);
            count -= u32::from(shift.from == domain);
        }
        count
    }

    /// What a shift changes, after `shifted`, none of which is of the same tally.
    #[inline]
    pub(super) fn change(
        &self,
        problem: &Problem,
        places: &[Place],
        shift: Shift,
        shifted: &[Shift],
    ) -> Change {
        let mut change = Change::default();
        if shift.from == shift.to {
            return change;
        }
        let spec = &problem.tallies[shift.tally as usize];
        let there = if shift.to == NONE { 0 } else { self.count(problem, places, spec, shift.to) };
        let only_at_most = !spec.counts_domains() && !spec.linked();
        if only_at_most {
            if let Some(limit) = spec.at_most {
                let arrives = shift.to != NONE && there >= limit.value;
                // Counting where the item is may be a scan: only when it can matter.
                let leaves = shift.from != NONE
                    && self.count(problem, places, spec, shift.from) > limit.value;
                change.add(limit.weight, i64::from(arrives) - i64::from(leaves));
            }
            return change;
        }
        let here =
            if shift.from == NONE { 0 } else { self.count(problem, places, spec, shift.from) };
        let opens = shift.to != NONE && there == 0;
        let closes = shift.from != NONE && here == 1;
        if let Some(limit) = spec.at_most {
            let by = i64::from(shift.to != NONE && there >= limit.value)
                - i64::from(shift.from != NONE && here > limit.value);
            change.add(limit.weight, by);
        }
        let before = i64::from(self.in_use[shift.tally as usize]);
        let after = before + i64::from(opens) - i64::from(closes);
        if let Some(limit) = spec.min_domains {
            let least = i64::from(limit.value);
            change.add(limit.weight, (least - after).max(0) - (least - before).max(0));
        }
        if let Some(limit) = spec.max_domains {
            let most = i64::from(limit.value);
            change.add(limit.weight, (after - most).max(0) - (before - most).max(0));
        }
        if (opens || closes) && spec.linked() {
            change.merge(self.linked_change(problem, spec, shift, (opens, closes), shifted));
        }
        change
    }

    fn linked_change(
        &self,
        problem: &Problem,
        spec: &TallySpec,
        shift: Shift,
        (opens, closes): (bool, bool),
        shifted: &[Shift],
    ) -> Change {
        let mut change = Change::default();
        let has = |tally, domain| self.linked_count(problem, tally, domain, shifted) > 0;
        for (domain, sign, happens) in [(shift.to, 1, opens), (shift.from, -1, closes)] {
            if !happens {
                continue;
            }
            for (other, weight) in &spec.requires {
                change.add(*weight, if has(*other, domain) { 0 } else { sign });
            }
            for (other, weight) in &spec.required_by {
                change.add(*weight, if has(*other, domain) { -sign } else { 0 });
            }
            for (other, weight) in &spec.excludes {
                change.add(*weight, if has(*other, domain) { sign } else { 0 });
            }
        }
        change
    }

    /// Makes a shift happen.
    #[inline]
    pub(super) fn shift(&mut self, problem: &Problem, shift: Shift) {
        let row = problem.tallies[shift.tally as usize].row;
        if row == NONE || shift.from == shift.to {
            return;
        }
        let in_use = &mut self.in_use[shift.tally as usize];
        if shift.to != NONE {
            let cell = &mut self.cells[(row + shift.to) as usize];
            *cell += 1;
            *in_use += u32::from(*cell == 1);
        }
        if shift.from != NONE {
            let cell = &mut self.cells[(row + shift.from) as usize];
            *cell -= 1;
            *in_use -= u32::from(*cell == 0);
        }
    }
}
