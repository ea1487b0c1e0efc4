//! The objective from scratch: plain loops over the problem, sharing nothing
//! with the incremental state but the constants. What the state is tested
//! against, and what reports are made of.

use super::assignment::Assignment;
use super::ids::{Host, Item, Resource, Rule};
use super::objective::{
    DEVIATION_MAX, HARD_OVERLOAD_MAX, HARD_UNIT, HARD_UNPLACED, Objective, Score, Term,
};
use super::problem::{Problem, RuleKind, Strength};

/// Something an assignment breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// The item has no host.
    Unplaced(Item),
    /// More is used of a hard resource than the host has.
    OverCapacity {
        /// On which host.
        host: Host,
        /// Of what.
        resource: Resource,
        /// How much more, in the unit of the resource.
        by: i64,
    },
    /// The item is on a host that must be emptied.
    OnDrained(Item),
    /// The item is on a host outside the set it may use.
    NotAllowed(Item),
    /// The item must stay at home and is not there.
    PinnedAway(Item),
    /// A rule over groups is broken by so much.
    Rule {
        /// Which rule.
        rule: Rule,
        /// In items or domains.
        by: u32,
    },
}

/// Usage of every host, and what is held of transient resources beyond it.
fn usage(problem: &Problem, assignment: &Assignment) -> (Vec<i64>, Vec<i64>) {
    let resources = problem.resources();
    let mut used = vec![0_i64; problem.hosts * resources];
    let mut held = used.clone();
    for (item, place) in assignment.iter() {
        let Some(place) = place else { continue };
        for (r, need) in problem.need(item, place.shape).iter().enumerate() {
            used[place.host.ix() * resources + r] += need;
        }
    }
    for (item, place) in assignment.iter() {
        let Some(home) = problem.home(item).filter(|home| place != Some(*home)) else { continue };
        for (r, need) in problem.need(item, home.shape).iter().enumerate() {
            if problem.resources[r].transient {
                held[home.host.ix() * resources + r] += need;
            }
        }
    }
    (used, held)
}

/// See [`Problem::evaluate`].
pub(super) fn evaluate(problem: &Problem, assignment: &Assignment) -> Objective {
    let mut all = Objective {
        score: Score::ZERO,
        terms: [0; Term::ALL.len()],
        unplaced: 0,
        moved: 0,
        moved_bytes: 0,
    };
    for violation in all_violations(problem, assignment, true) {
        all.score.hard += match violation {
            Violation::Unplaced(_) => {
                all.unplaced += 1;
                HARD_UNPLACED
            }
            Violation::OverCapacity { host, resource, by } => {
                overload(by, problem.capacity(host)[resource.ix()])
            }
            Violation::OnDrained(_) | Violation::NotAllowed(_) | Violation::PinnedAway(_) => {
                HARD_UNIT
            }
            Violation::Rule { by, .. } => i64::from(by) * HARD_UNIT,
        };
    }
    let (used, _) = usage(problem, assignment);
    for host in 0..problem.hosts {
        add_host(problem, &mut all, host, &used);
    }
    add_hosts_in_use(problem, &mut all, assignment);
    add_moves(problem, &mut all, assignment);
    add_soft_rules(problem, &mut all, assignment);
    all
}

/// What a host over capacity counts: relative to its capacity, at least a little, and cut off.
pub(super) fn overload(by: i64, capacity: i64) -> i64 {
    if by < 1 << 50 {
        return 1 + (by * HARD_UNIT / capacity.max(1)).min(HARD_OVERLOAD_MAX);
    }
    let relative = i128::from(by) * i128::from(HARD_UNIT) / i128::from(capacity.max(1));
    1 + i64::try_from(relative).unwrap_or(HARD_OVERLOAD_MAX).min(HARD_OVERLOAD_MAX)
}

fn add_host(problem: &Problem, all: &mut Objective, host: usize, used: &[i64]) {
    let resources = problem.resources();
    let levels = &problem.levels;
    let of = |values: &[i64], r: usize| values[host * resources + r];
    for (r, weight) in problem.safety_weight.iter().enumerate() {
        let excess = (of(used, r) - of(&problem.safety, r)).max(0);
        all.add(Term::Safety, levels.safety, weight * excess);
    }
    for entry in &problem.unmet {
        let r = entry.resource as usize;
        let excess = (of(used, r) - of(&problem.capacity, r)).max(0);
        all.add(Term::Unmet, levels.unmet, entry.weight * excess);
    }
    for balance in &problem.balances {
        let free = |r: u32| of(&problem.capacity, r as usize) - of(used, r as usize);
        let missing = balance.target * free(balance.first) - free(balance.second);
        all.add(Term::Balance, levels.balance, balance.weight * missing.max(0));
    }
    for (n, entry) in problem.imbalance.iter().enumerate() {
        let reciprocal = problem.reciprocal[host * problem.imbalance.len() + n];
        if reciprocal > 0 {
            let used = i128::from(of(used, entry.resource as usize));
            let utilisation = (used * i128::from(reciprocal)) >> 32;
            let deviation = utilisation - i128::from(problem.mean_utilisation[n]);
            let deviation =
                deviation.clamp(i128::from(-DEVIATION_MAX), i128::from(DEVIATION_MAX)) as i64;
            all.add(Term::Imbalance, levels.imbalance, entry.weight * deviation * deviation);
        }
    }
    for entry in &problem.fragments {
        let r = entry.resource as usize;
        let free = of(&problem.capacity, r) - of(used, r);
        all.add(Term::Fragments, levels.fragments, entry.weight * free.rem_euclid(entry.unit));
    }
}

fn add_hosts_in_use(problem: &Problem, all: &mut Objective, assignment: &Assignment) {
    let mut in_use = vec![false; problem.hosts];
    for place in assignment.iter().filter_map(|(_, place)| place) {
        in_use[place.host.ix()] = true;
    }
    for (host, _) in in_use.iter().enumerate().filter(|(_, in_use)| **in_use) {
        all.add(Term::HostsInUse, problem.levels.hosts_in_use, problem.activation[host]);
    }
}

fn add_moves(problem: &Problem, all: &mut Objective, assignment: &Assignment) {
    let mut of_group = vec![0_i64; problem.move_groups];
    for (item, place) in assignment.iter() {
        let (Some(home), Some(place)) = (problem.home(item), place) else { continue };
        if home == place {
            continue;
        }
        all.moved += 1;
        all.moved_bytes += problem.move_bytes[item.ix()];
        all.add(Term::ItemMoves, problem.levels.item_moves, problem.move_cost[item.ix()]);
        if !problem.way_cost.is_empty() {
            let cost = problem.way_cost[home.host.ix() * problem.hosts + place.host.ix()];
            all.add(
                Term::HostMoves,
                problem.levels.host_moves,
                problem.way_weight * i64::from(cost),
            );
        }
        if let Some(count) = of_group.get_mut(problem.move_group[item.ix()] as usize) {
            *count += 1;
        }
    }
    let most = of_group.into_iter().max().unwrap_or(0);
    all.add(Term::GroupMoves, problem.levels.group_moves, most * problem.move_group_weight);
}

fn add_soft_rules(problem: &Problem, all: &mut Objective, assignment: &Assignment) {
    let term_weight = problem.table.weight(Term::SoftRules);
    let mut add = |amount| all.add(Term::SoftRules, problem.levels.soft_rules, amount);
    for rule in &problem.rules {
        if let Strength::Soft(weight) = rule.strength {
            add(weight * term_weight * i64::from(broken_by(problem, assignment, rule)));
        }
    }
    for (item, place) in assignment.iter() {
        for (set, weight) in problem.preferred.row(item.ix()) {
            let inside =
                place.is_none_or(|place| problem.sets[*set as usize].contains(place.host.ix()));
            if !inside {
                add(*weight);
            }
        }
    }
}

/// How far a rule is broken, in items or domains.
fn broken_by(problem: &Problem, assignment: &Assignment, rule: &super::RuleSpec) -> u32 {
    let count = |group: super::Group| {
        let mut counts = vec![0_u32; problem.domains[rule.partition.ix()] as usize];
        for item in problem.members(group) {
            let domain =
                assignment.host(item).and_then(|host| problem.domain(rule.partition, host));
            if let Some(domain) = domain {
                counts[domain as usize] += 1;
            }
        }
        counts
    };
    let mine = count(rule.group);
    let in_use = mine.iter().filter(|count| **count > 0).count() as u32;
    let with = |other| {
        mine.iter().zip(count(other)).filter(|(mine, _)| **mine > 0).map(|(_, theirs)| theirs)
    };
    match rule.kind {
        RuleKind::AtMostPerDomain(most) => {
            mine.iter().map(|count| count.saturating_sub(most)).sum()
        }
        RuleKind::MinDomains(least) => least.saturating_sub(in_use),
        RuleKind::MaxDomains(most) => in_use.saturating_sub(most),
        RuleKind::Requires(other) if other == rule.group => 0,
        RuleKind::Requires(other) => with(other).filter(|theirs| *theirs == 0).count() as u32,
        RuleKind::Excludes(other) if other == rule.group => 0,
        RuleKind::Excludes(other) => with(other).filter(|theirs| *theirs > 0).count() as u32,
    }
}

/// See [`Problem::violations`].
pub(super) fn violations(problem: &Problem, assignment: &Assignment) -> Vec<Violation> {
    all_violations(problem, assignment, false)
}

fn all_violations(problem: &Problem, assignment: &Assignment, hard_only: bool) -> Vec<Violation> {
    let mut all = Vec::new();
    for (item, place) in assignment.iter() {
        let Some(place) = place else {
            all.push(Violation::Unplaced(item));
            continue;
        };
        if problem.drained(place.host) {
            all.push(Violation::OnDrained(item));
        }
        if !problem.allowed(item, place.host) {
            all.push(Violation::NotAllowed(item));
        }
        if problem.pinned(item) && problem.home(item) != Some(place) {
            all.push(Violation::PinnedAway(item));
        }
    }
    let (used, held) = usage(problem, assignment);
    let resources = problem.resources();
    for (cell, (used, held)) in used.iter().zip(held).enumerate() {
        let by = used + held - problem.capacity[cell];
        if problem.resources[cell % resources].hard && by > 0 {
            let (host, resource) = (Host::from(cell / resources), Resource::from(cell % resources));
            all.push(Violation::OverCapacity { host, resource, by });
        }
    }
    for (ix, rule) in problem.rules.iter().enumerate() {
        if !hard_only || rule.strength == Strength::Hard {
            let by = broken_by(problem, assignment, rule);
            if by > 0 {
                all.push(Violation::Rule { rule: Rule::from(ix), by });
            }
        }
    }
    all
}
