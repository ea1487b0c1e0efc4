//! How good an assignment can be at best, and how bad at worst.

use super::ids::Host;
use super::objective::{DEVIATION_MAX, HARD_OVERLOAD_MAX, HARD_UNIT, HARD_UNPLACED, Score};
use super::problem::Problem;

/// A score no assignment of all items beats. Every term is bounded alone, each
/// resource as if the hosts were one: the bound is valid, not always reached.
///
/// Items with several shapes count with the least they need of each resource. The number of hosts
/// in use is that of assignments within the hard capacities: what breaks these scores worse anyway.
pub(super) fn lower_bound(problem: &Problem) -> Score {
    let mut bound = Score::ZERO;
    let levels = &problem.levels;
    let least = totals(problem, |rows| rows.min().unwrap_or(0));
    let most = totals(problem, |rows| rows.max().unwrap_or(0));
    let level_sum = |levels: &[i64], r: usize| -> i128 {
        levels.iter().skip(r).step_by(problem.resources().max(1)).map(|v| i128::from(*v)).sum()
    };
    for (r, weight) in problem.safety_weight.iter().enumerate().filter(|(_, w)| **w > 0) {
        let excess = (least[r] - level_sum(&problem.safety, r)).max(0);
        bound.add(levels.safety, to_i64(excess * i128::from(*weight)));
    }
    for entry in &problem.unmet {
        let r = entry.resource as usize;
        let excess = (least[r] - level_sum(&problem.capacity, r)).max(0);
        bound.add(levels.unmet, to_i64(excess * i128::from(entry.weight)));
    }
    for balance in &problem.balances {
        let (a, b) = (balance.first as usize, balance.second as usize);
        let free_first = level_sum(&problem.capacity, a) - most[a];
        let free_second = level_sum(&problem.capacity, b) - least[b];
        let missing = (i128::from(balance.target) * free_first - free_second).max(0);
        bound.add(levels.balance, to_i64(missing * i128::from(balance.weight)));
    }
    for entry in &problem.fragments {
        let r = entry.resource as usize;
        if least[r] == most[r] {
            let free = level_sum(&problem.capacity, r) - least[r];
            let rest = free.rem_euclid(i128::from(entry.unit));
            bound.add(levels.fragments, to_i64(rest * i128::from(entry.weight)));
        }
    }
    bound.add(levels.hosts_in_use, hosts_needed(problem, &least));
    bound
}

/// The cheapest activation times the number of largest hosts everything needs.
fn hosts_needed(problem: &Problem, least: &[i128]) -> i64 {
    let Some(cheapest) = problem.activation.iter().copied().min().filter(|cost| *cost > 0) else {
        return 0;
    };
    let needed = (0..problem.resources()).filter(|r| problem.resources[*r].hard).map(|r| {
        let mut sizes: Vec<i64> =
            (0..problem.hosts).map(|h| problem.capacity(Host::from(h))[r]).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let mut left = least[r];
        sizes
            .iter()
            .take_while(|size| {
                let needed = left > 0;
                left -= i128::from(**size);
                needed
            })
            .count()
    });
    to_i64(needed.max().unwrap_or(0) as i128 * i128::from(cheapest))
}

fn totals(problem: &Problem, pick: impl Fn(&mut dyn Iterator<Item = i64>) -> i64) -> Vec<i128> {
    let resources = problem.resources();
    (0..resources)
        .map(|r| {
            (0..problem.items)
                .map(|ix| {
                    let rows = problem.first_row[ix] as usize..problem.first_row[ix + 1] as usize;
                    i128::from(pick(&mut rows.map(|row| problem.need[row * resources + r])))
                })
                .sum()
        })
        .collect()
}

fn to_i64(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The most each term can come to, with its level. The builder refuses what could overflow.
pub(super) fn worst_case(problem: &Problem) -> Vec<(u8, i128)> {
    let levels = &problem.levels;
    let most = totals(problem, |rows| rows.max().unwrap_or(0));
    let hosts = problem.hosts as i128;
    let capacity = |r: usize| -> i128 {
        problem.capacity.iter().skip(r).step_by(problem.resources()).map(|v| i128::from(*v)).sum()
    };
    let mut all = Vec::new();
    for (r, weight) in problem.safety_weight.iter().enumerate() {
        all.push((levels.safety, most[r] * i128::from(*weight)));
        // Sums of use must fit as well, whatever they weigh.
        all.push((levels.safety, most[r]));
    }
    for entry in &problem.unmet {
        all.push((levels.unmet, most[entry.resource as usize] * i128::from(entry.weight)));
    }
    for balance in &problem.balances {
        let free = capacity(balance.first as usize).saturating_mul(i128::from(balance.target));
        let sum = free + most[balance.second as usize];
        all.push((levels.balance, sum.saturating_mul(i128::from(balance.weight))));
    }
    for entry in &problem.imbalance {
        let squared = i128::from(DEVIATION_MAX) * i128::from(DEVIATION_MAX);
        all.push((levels.imbalance, (squared * hosts).saturating_mul(i128::from(entry.weight))));
    }
    for entry in &problem.fragments {
        let each = i128::from(entry.unit) * i128::from(entry.weight);
        all.push((levels.fragments, each.saturating_mul(hosts)));
    }
    all.push((levels.hosts_in_use, sum(&problem.activation)));
    all.push((levels.item_moves, sum(&problem.move_cost)));
    let items = problem.items as i128;
    all.push((levels.group_moves, items * i128::from(problem.move_group_weight)));
    let way = i128::from(problem.way_cost.iter().copied().max().unwrap_or(0));
    all.push((levels.host_moves, items * way * i128::from(problem.way_weight)));
    all.push((levels.soft_rules, worst_rules(problem, false)));
    all
}

/// The most the hard violations can come to.
pub(super) fn worst_hard(problem: &Problem) -> i128 {
    let overload = problem.hosts as i128 * problem.resources() as i128;
    let items = problem.items as i128;
    overload * i128::from(HARD_OVERLOAD_MAX + HARD_UNIT)
        + items * i128::from(HARD_UNPLACED + 3 * HARD_UNIT)
        + worst_rules(problem, true) * i128::from(HARD_UNIT)
}

fn worst_rules(problem: &Problem, hard: bool) -> i128 {
    let mut total = 0_i128;
    for tally in &problem.tallies {
        let members = problem.groups.row(tally.group as usize).len() as i128;
        let domains = i128::from(problem.domains[tally.partition as usize]);
        let mut add = |weight: i64, times: i128| {
            if (weight == 0) == hard {
                total = total.saturating_add(i128::from(weight.max(1)).saturating_mul(times));
            }
        };
        for limit in tally.at_most.iter().chain(&tally.max_domains) {
            add(limit.weight, members);
        }
        if let Some(limit) = tally.min_domains {
            add(limit.weight, i128::from(limit.value));
        }
        for (_, weight) in tally.requires.iter().chain(&tally.excludes) {
            add(*weight, domains);
        }
    }
    let preferred: i128 = (0..problem.items)
        .flat_map(|ix| problem.preferred.row(ix))
        .map(|(_, weight)| i128::from(*weight))
        .sum();
    if hard { total } else { total.saturating_add(preferred) }
}

fn sum(values: &[i64]) -> i128 {
    values.iter().map(|value| i128::from(*value)).sum()
}
