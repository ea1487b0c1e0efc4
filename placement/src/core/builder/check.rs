//! What a problem may not be: malformed, or so large that numbers could wrap.

use ballast_model::{Refusal, RefusalCode};

use super::{AMOUNT_MAX, CELLS_MAX, COUNT_MAX, ProblemBuilder};
use crate::core::bound;
use crate::core::ids::NONE;
use crate::core::objective::{LEVELS_MAX, Term};
use crate::core::problem::{Problem, RuleKind, Strength};

/// The most any level may come to, so that sums and differences stay in `i64`.
const LEVEL_MAX: i128 = 1 << 61;

impl ProblemBuilder {
    /// Checks all that can be checked before anything is computed.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.check_counts()?;
        self.check_hosts()?;
        self.check_items()?;
        self.check_groups()?;
        self.check_weights()
    }

    fn check_counts(&self) -> Result<(), Refusal> {
        for (what, count, max) in [
            ("hosts", self.hosts.len(), COUNT_MAX),
            ("items", self.items.len(), COUNT_MAX),
            ("groups", self.groups.len(), COUNT_MAX),
            ("rules", self.rules.len(), COUNT_MAX),
            ("host sets", self.sets.len(), COUNT_MAX),
            ("resources", self.resources.len(), 1024),
            ("partitions", self.partitions.len(), 1024),
            ("cells of hosts and resources", self.hosts.len() * self.resources.len(), CELLS_MAX),
        ] {
            if count > max {
                return refuse(format!("there are {count} {what}, at most {max} are possible"));
            }
        }
        let ways = self.hosts.len() * self.hosts.len();
        if !self.way_cost.is_empty() && (self.way_cost.len() != ways || ways > CELLS_MAX) {
            return refuse(format!(
                "the matrix of way costs has {} entries for {} hosts",
                self.way_cost.len(),
                self.hosts.len()
            ));
        }
        Ok(())
    }

    fn check_hosts(&self) -> Result<(), Refusal> {
        for (ix, host) in self.hosts.iter().enumerate() {
            let what = || format!("host {ix}");
            self.check_amounts(&host.capacity, what)?;
            if !host.safety.is_empty() {
                self.check_amounts(&host.safety, || format!("safety of host {ix}"))?;
            }
            check_weight(host.activation, || format!("activation of host {ix}"))?;
        }
        for (ix, set) in self.sets.iter().enumerate() {
            check_ids(set.iter().map(|host| host.0), self.hosts.len(), || {
                format!("host set {ix}")
            })?;
        }
        for (ix, domains) in self.partitions.iter().enumerate() {
            if domains.len() != self.hosts.len() {
                return refuse(format!(
                    "partition {ix} names {} domains for {} hosts",
                    domains.len(),
                    self.hosts.len()
                ));
            }
            check_ids(domains.iter().flatten().copied(), self.hosts.len().max(1), || {
                format!("domains of partition {ix}")
            })?;
        }
        Ok(())
    }

    fn check_items(&self) -> Result<(), Refusal> {
        let mut rows = 0_usize;
        for (ix, item) in self.items.iter().enumerate() {
            let what = || format!("item {ix}");
            if item.shapes.is_empty() || item.shapes.len() > usize::from(u8::MAX) {
                return refuse(format!(
                    "item {ix} has {} shapes, 1 to 255 are possible",
                    item.shapes.len()
                ));
            }
            rows += item.shapes.len();
            for shape in &item.shapes {
                self.check_amounts(shape, what)?;
            }
            if let Some(home) = item.home {
                check_ids([home.host.0], self.hosts.len(), || format!("home of item {ix}"))?;
                check_ids([u32::from(home.shape)], item.shapes.len(), || {
                    format!("home shape of item {ix}")
                })?;
            }
            check_weight(item.move_cost, || format!("move cost of item {ix}"))?;
            if item.move_bytes > AMOUNT_MAX.unsigned_abs() {
                return refuse(format!("item {ix} carries {} bytes", item.move_bytes));
            }
            check_ids(item.allowed.map(|set| set.0), self.sets.len(), what)?;
        }
        if rows * self.resources.len() > CELLS_MAX {
            return refuse(format!("{rows} shapes of items are too many"));
        }
        for (item, set, weight) in &self.preferences {
            check_ids([item.0], self.items.len(), || "preference".into())?;
            check_ids([set.0], self.sets.len(), || "preference".into())?;
            check_weight(*weight, || "preference".into())?;
        }
        Ok(())
    }

    fn check_groups(&self) -> Result<(), Refusal> {
        let mut seen = vec![NONE; self.items.len()];
        for (ix, group) in self.groups.iter().enumerate() {
            check_ids(group.iter().map(|item| item.0), self.items.len(), || format!("group {ix}"))?;
            for item in group {
                if std::mem::replace(&mut seen[item.ix()], ix as u32) == ix as u32 {
                    return refuse(format!("group {ix} names item {} twice", item.0));
                }
            }
        }
        let mut moved = vec![false; self.items.len()];
        check_ids(self.move_groups.iter().map(|group| group.0), self.groups.len(), || {
            "move group".into()
        })?;
        for group in &self.move_groups {
            for item in &self.groups[group.ix()] {
                if std::mem::replace(&mut moved[item.ix()], true) {
                    return refuse(format!("item {} is in two move groups", item.0));
                }
            }
        }
        for (ix, rule) in self.rules.iter().enumerate() {
            let what = || format!("rule {ix}");
            check_ids([rule.group.0], self.groups.len(), what)?;
            check_ids([rule.partition.0], self.partitions.len(), what)?;
            if let RuleKind::Requires(other) | RuleKind::Excludes(other) = rule.kind {
                check_ids([other.0], self.groups.len(), what)?;
            }
            if let Strength::Soft(weight) = rule.strength {
                if weight == 0 {
                    return refuse(format!("rule {ix} is soft and weighs nothing"));
                }
                check_weight(weight, what)?;
            }
        }
        Ok(())
    }

    fn check_weights(&self) -> Result<(), Refusal> {
        for (ix, resource) in self.resources.iter().enumerate() {
            let what = || format!("resource {ix}");
            for weight in [resource.safety_weight, resource.unmet_weight, resource.imbalance_weight]
            {
                check_weight(weight, what)?;
            }
            if let Some((unit, weight)) = resource.fragment {
                check_weight(weight, what)?;
                if !(1..=AMOUNT_MAX).contains(&unit) {
                    return refuse(format!("the unit {unit} of resource {ix} is not positive"));
                }
            }
        }
        for (first, second, target, weight) in &self.balances {
            check_ids([first.0, second.0], self.resources.len(), || "balance".into())?;
            check_weight(*weight, || "balance".into())?;
            check_weight(*target, || "target of a balance".into())?;
        }
        for term in Term::ALL {
            check_weight(self.table.weight(term), || format!("term {}", term.name()))?;
        }
        Ok(())
    }

    fn check_amounts(&self, amounts: &[i64], what: impl Fn() -> String) -> Result<(), Refusal> {
        if amounts.len() != self.resources.len() {
            return refuse(format!(
                "{} has {} amounts for {} resources",
                what(),
                amounts.len(),
                self.resources.len()
            ));
        }
        match amounts.iter().find(|amount| !(0..=AMOUNT_MAX).contains(*amount)) {
            Some(amount) => refuse(format!("{} has the amount {amount}", what())),
            None => Ok(()),
        }
    }
}

pub(super) fn refuse<T>(reason: String) -> Result<T, Refusal> {
    Err(Refusal::new(
        RefusalCode::InvalidArgument,
        reason,
        "correct the input; amounts and weights lie between 0 and 2^52",
    ))
}

fn check_weight(weight: i64, what: impl Fn() -> String) -> Result<(), Refusal> {
    if (0..=AMOUNT_MAX).contains(&weight) {
        return Ok(());
    }
    refuse(format!("{} has the weight {weight}", what()))
}

fn check_ids(
    ids: impl IntoIterator<Item = u32>,
    count: usize,
    what: impl Fn() -> String,
) -> Result<(), Refusal> {
    match ids.into_iter().find(|id| *id as usize >= count) {
        Some(id) => refuse(format!("{} names number {id} of {count}", what())),
        None => Ok(()),
    }
}

/// Refuses when a level could leave 64 bits, whatever the assignment.
pub(super) fn levels(problem: &Problem) -> Result<(), Refusal> {
    let mut sums = [0_i128; LEVELS_MAX];
    for (level, most) in bound::worst_case(problem) {
        sums[usize::from(level)] = sums[usize::from(level)].saturating_add(most);
    }
    let hard = bound::worst_hard(problem);
    if hard > LEVEL_MAX || sums.iter().any(|sum| *sum > LEVEL_MAX) {
        return refuse("the objective could leave 64 bits".into());
    }
    Ok(())
}
