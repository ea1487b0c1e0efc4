//! What must move, and nothing else: an assignment in which as little as
//! possible is broken, a few moves from where things are.
//!
//! Each round asks the problem what is broken, picks the fewest items whose
//! leaving mends it, and finds each a host; if every host is full or forbidden,
//! one that another item can make room on. It ends when nothing is broken, or
//! when a round mends nothing.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::core::{
    Assignment, Host, Item, Place, Problem, Resource, RuleKind, RuleSpec, State, Violation,
};

/// Rounds, at most.
const ROUNDS_MAX: usize = 16;
/// How many hosts are tried for making room, and items on each, at most.
const EJECTION_HOSTS_MAX: usize = 256;

/// Mends what is broken in `from`. What cannot be mended is left as it is.
pub fn mend(problem: &Problem, from: &Assignment) -> Assignment {
    let mut state: State<'_> = State::new(problem, from);
    for _ in 0..ROUNDS_MAX {
        let broken = problem.violations(&state.assignment());
        if broken.is_empty() {
            break;
        }
        let before = state.score().hard;
        let mut items: Vec<Item> = culprits(&state, &broken).into_iter().collect();
        // What is hard to place comes first; the number makes the order total.
        items.sort_by_key(|item| (Reverse(weight(problem, *item)), *item));
        for item in items {
            if !resettle(&mut state, item) {
                make_room(&mut state, item);
            }
        }
        if state.score().hard >= before {
            break;
        }
    }
    state.assignment()
}

/// The largest share that an item takes of an average host, in millionths.
fn weight(problem: &Problem, item: Item) -> i64 {
    let open = problem.open_hosts(item);
    let Some(host) = open.first() else { return i64::MAX };
    let capacity = problem.capacity(Host(*host));
    let share =
        |(need, capacity): (&i64, &i64)| need.saturating_mul(1_000_000) / (*capacity).max(1);
    problem.need(item, 0).iter().zip(capacity).map(share).max().unwrap_or(0)
}

/// Items whose leaving mends what is broken.
fn culprits(state: &State<'_>, broken: &[Violation]) -> BTreeSet<Item> {
    let problem = state.problem();
    let mut items = BTreeSet::new();
    for violation in broken {
        match *violation {
            Violation::Unplaced(item)
            | Violation::OnDrained(item)
            | Violation::NotAllowed(item)
            | Violation::PinnedAway(item) => {
                items.insert(item);
            }
            Violation::OverCapacity { host, resource, by } => {
                relieve(state, host, resource, by, &mut items);
            }
            Violation::Rule { rule, .. } => {
                let spec = problem.rule(rule);
                items.extend(in_the_way(state, spec));
            }
        }
    }
    items
}

/// Adds the fewest items of a host that take at least `by` of a resource, the smallest that suffice.
fn relieve(state: &State<'_>, host: Host, resource: Resource, by: i64, items: &mut BTreeSet<Item>) {
    let problem = state.problem();
    let need = |item: Item| {
        let shape = state.place(item).map_or(0, |place| place.shape);
        problem.need(item, shape)[resource.ix()]
    };
    let here = || state.items_on(host).iter().map(|item| Item(*item));
    let mut missing = by - here().filter(|item| items.contains(item)).map(need).sum::<i64>();
    let mut others: Vec<Item> =
        here().filter(|item| !items.contains(item) && !problem.pinned(*item)).collect();
    others.sort_by_key(|item| (need(*item), problem.move_bytes(*item), *item));
    while missing > 0 {
        let enough = others.partition_point(|item| need(*item) < missing);
        let Some(item) = others.get(enough).or(others.last()).copied() else { break };
        others.retain(|other| *other != item);
        missing -= need(item);
        items.insert(item);
    }
}

/// Items of a broken rule that are where it has too many, or anywhere if it wants something else.
fn in_the_way(state: &State<'_>, rule: &RuleSpec) -> Vec<Item> {
    let problem = state.problem();
    let movable = |item: &Item| !problem.pinned(*item) && state.place(*item).is_some();
    let domain = |item: &Item| {
        state.place(*item).and_then(|place| problem.domain(rule.partition, place.host))
    };
    let mut members: Vec<Item> = problem.members(rule.group).filter(movable).collect();
    let RuleKind::AtMostPerDomain(most) = rule.kind else { return members };
    members.retain(|item| domain(item).is_some());
    members.sort_by_key(|item| (domain(item), Reverse(problem.move_bytes(*item)), *item));
    let crowds = members.chunk_by(|a, b| domain(a) == domain(b));
    crowds.flat_map(|crowd| crowd.iter().skip(most as usize).copied()).collect()
}

/// Moves an item where it breaks least and most is left; false if nowhere is better than here.
fn resettle(state: &mut State<'_>, item: Item) -> bool {
    let problem = state.problem();
    if !still_wrong(state, item) {
        return true;
    }
    let mut best: Option<((i64, Reverse<i64>), Place)> = None;
    for host in problem.open_hosts(item) {
        let host = Host(*host);
        let room = room(state, host);
        // Most places are full or equal: what cannot be better is not weighed.
        if best.as_ref().is_some_and(|((hard, most), _)| *hard < 0 && most.0 >= room) {
            continue;
        }
        for shape in 0..problem.shapes(item) {
            let place = Place { host, shape };
            let Some(delta) = state.delta(item, place) else { continue };
            let rank = (delta.hard, Reverse(room));
            if delta.hard < 0 && best.as_ref().is_none_or(|(least, _)| rank < *least) {
                best = Some((rank, place));
            }
        }
    }
    let Some((_, place)) = best else { return false };
    state.apply(item, Some(place));
    true
}

/// Whether the item has still to leave: another one that left may have mended it.
fn still_wrong(state: &mut State<'_>, item: Item) -> bool {
    let place = state.place(item);
    let Some(here) = place else { return true };
    let before = state.score().hard;
    state.apply(item, None);
    let unplaced = crate::core::HARD_UNPLACED;
    // Without the item it counts as unplaced; whatever else went away was its fault.
    let wrong = state.score().hard - unplaced < before;
    state.apply(item, Some(here));
    wrong
}

/// The smallest share of any resource that is left, in millionths.
fn room(state: &State<'_>, host: Host) -> i64 {
    let capacity = state.problem().capacity(host);
    let share =
        |(room, capacity): (&i64, &i64)| room.saturating_mul(1_000_000) / (*capacity).max(1);
    state.room(host).iter().zip(capacity).map(share).min().unwrap_or(0)
}

/// Sends one item of another host elsewhere so that `item` can take its place.
fn make_room(state: &mut State<'_>, item: Item) -> bool {
    let problem = state.problem();
    let mut hosts: Vec<u32> = problem.open_hosts(item).to_vec();
    hosts.sort_by_key(|host| (Reverse(room(state, Host(*host))), *host));
    for host in hosts.into_iter().take(EJECTION_HOSTS_MAX).map(Host) {
        for other in state.items_on(host).to_vec().into_iter().map(Item) {
            if other == item || problem.pinned(other) {
                continue;
            }
            let Some(there) = state.place(other) else { continue };
            let before = state.score().hard;
            state.apply(other, None);
            let fits = (0..problem.shapes(item))
                .map(|shape| Place { host, shape })
                .find(|place| state.delta(item, *place).is_some());
            if let Some(place) = fits {
                let from = state.place(item);
                state.apply(item, Some(place));
                if resettle(state, other) && state.score().hard < before {
                    return true;
                }
                state.apply(item, from);
            }
            state.apply(other, Some(there));
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        HostSpec, ItemSpec, ObjectiveTable, ProblemBuilder, ResourceSpec, RuleSpec, Strength,
    };

    /// Hosts of ten; each item is (size, host). The last host is to be emptied if `drain`.
    fn problem(hosts: u32, items: &[(i64, Option<u32>)], drain: bool, apart: &[u32]) -> Problem {
        let mut b = ProblemBuilder::new(ObjectiveTable::cluster());
        b.resource(ResourceSpec::allocation());
        for host in 0..hosts {
            let drained = drain && host + 1 == hosts;
            b.host(HostSpec { capacity: vec![10], drained, ..HostSpec::default() });
        }
        for (size, home) in items {
            let home = home.map(|host| Place::on(Host(host)));
            b.item(ItemSpec { shapes: vec![vec![*size]], home, ..ItemSpec::default() });
        }
        if !apart.is_empty() {
            let group = b.group(apart.iter().map(|item| Item(*item)).collect());
            let partition = b.host_partition();
            let kind = RuleKind::AtMostPerDomain(1);
            b.rule(RuleSpec { group, partition, kind, strength: Strength::Hard });
        }
        b.build().unwrap()
    }

    fn check(problem: &Problem, moves: usize) {
        let before = problem.initial();
        let after = mend(problem, &before);
        assert_eq!(problem.violations(&after), []);
        assert_eq!(after.moves_from(&before).len(), moves);
        assert_eq!(mend(problem, &after), after);
    }

    #[test]
    fn what_is_well_stays() {
        check(&problem(2, &[(5, Some(0)), (5, Some(0))], false, &[]), 0);
    }

    #[test]
    fn an_overload_is_mended_by_the_smallest_that_suffices() {
        check(&problem(2, &[(2, Some(0)), (3, Some(0)), (8, Some(0))], false, &[]), 1);
    }

    #[test]
    fn a_host_is_emptied_and_new_ones_are_placed() {
        check(&problem(3, &[(6, Some(2)), (5, Some(2)), (4, None)], true, &[]), 3);
    }

    #[test]
    fn those_to_be_apart_are_parted() {
        check(&problem(3, &[(1, Some(0)), (1, Some(0)), (1, Some(0))], false, &[0, 1, 2]), 2);
    }

    #[test]
    fn room_is_made_by_moving_another() {
        // The 8 has to leave; no host has 8 free until the 3 moves to where only 3 are free.
        check(&problem(3, &[(7, Some(0)), (3, Some(1)), (8, Some(2))], true, &[]), 2);
    }

    #[test]
    fn what_cannot_be_mended_is_left() {
        let problem = problem(1, &[(6, Some(0)), (6, Some(0))], false, &[]);
        assert_eq!(mend(&problem, &problem.initial()), problem.initial());
    }
}
