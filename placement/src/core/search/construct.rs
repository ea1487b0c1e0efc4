//! First aid: a lawful place for every item that has none.
//!
//! Items without a host, on drained or forbidden hosts, on overloaded hosts
//! or in broken rules, largest first, each to the host where it costs least. What
//! fits nowhere may push one other item aside (an ejection chain of two).

use crate::core::evaluate::Violation;
use crate::core::ids::{Host, Item, Place};
use crate::core::objective::Score;
use crate::core::rng::Rng;
use crate::core::state::State;

use super::SearchOptions;

/// Hosts weighed at first for one item; all are when none of these will do.
const SAMPLE: usize = 256;

/// Hosts on which making room is tried for one item.
const EJECTION_HOSTS: usize = 200;

/// Hosts tried for an item pushed aside.
const ASIDE_HOSTS: usize = 64;

/// Rounds of looking for what is broken.
const ROUNDS: usize = 4;

/// Repairs what can be repaired simply. Returns the number of moves weighed.
///
/// Moves away from home stay within the limits of the options.
pub(super) fn repair<const L: usize>(state: &mut State<'_, L>, options: &SearchOptions) -> u64 {
    let mut rng = Rng::new(options.seed ^ 0xc0de);
    let mut evaluations = 0;
    for _ in 0..ROUNDS {
        if state.score().hard == 0 {
            break;
        }
        let before = state.score();
        for item in broken_items(state) {
            if options.within(state, item) {
                evaluations += settle(state, item, options, &mut rng);
            }
        }
        if state.score() >= before {
            break;
        }
    }
    evaluations
}

/// Finds the cheapest lawful place for an item, if that is a gain.
fn settle<const L: usize>(
    state: &mut State<'_, L>,
    item: Item,
    options: &SearchOptions,
    rng: &mut Rng,
) -> u64 {
    let (place, mut evaluations) = best_place(state, item, SAMPLE, rng);
    if let Some((place, delta)) = place {
        if delta.is_gain() {
            state.apply(item, Some(place));
        }
        return evaluations;
    }
    evaluations += make_room(state, item, options, rng);
    evaluations
}

/// The best place for an item among a sample of hosts, or among all if the sample has none.
pub(super) fn best_place<const L: usize>(
    state: &State<'_, L>,
    item: Item,
    sample: usize,
    rng: &mut Rng,
) -> (Option<(Place, Score<L>)>, u64) {
    let problem = state.problem();
    let hosts = problem.open_hosts(item);
    if hosts.is_empty() {
        return (None, 0);
    }
    let start = rng.below(hosts.len());
    let mut best: Option<(Place, Score<L>)> = None;
    let mut evaluations = 0;
    for n in 0..hosts.len() {
        if n >= sample && best.is_some() {
            break;
        }
        let host = Host(hosts[(start + n) % hosts.len()]);
        for shape in 0..problem.shapes(item) {
            evaluations += 1;
            let place = Place { host, shape };
            let Some(delta) = state.delta(item, place) else { continue };
            if best.is_none_or(|(_, least)| delta < least) {
                best = Some((place, delta));
            }
        }
    }
    (best, evaluations)
}

/// Pushes one item of some host aside so that this one fits there.
fn make_room<const L: usize>(
    state: &mut State<'_, L>,
    item: Item,
    options: &SearchOptions,
    rng: &mut Rng,
) -> u64 {
    let problem = state.problem();
    let hosts = problem.open_hosts(item);
    let mut evaluations = 0;
    for _ in 0..EJECTION_HOSTS.min(hosts.len() * 2) {
        let host = Host(hosts[rng.below(hosts.len())]);
        let there: Vec<u32> = state.items_on(host).to_vec();
        for other in there.into_iter().map(Item) {
            let Some(back) = state.place(other) else { continue };
            if !options.within(state, other) {
                continue;
            }
            let before = state.score();
            let (aside, weighed) = best_aside(state, other, host, rng);
            evaluations += weighed;
            let Some(aside) = aside else { continue };
            state.apply(other, Some(aside));
            let shapes = if options.within(state, item) { problem.shapes(item) } else { 0 };
            for shape in 0..shapes {
                evaluations += 1;
                let place = Place { host, shape };
                if let Some(delta) = state.delta(item, place)
                    && state.score() + delta < before
                {
                    state.apply(item, Some(place));
                    return evaluations;
                }
            }
            state.apply(other, Some(back));
        }
    }
    evaluations
}

fn best_aside<const L: usize>(
    state: &State<'_, L>,
    item: Item,
    not: Host,
    rng: &mut Rng,
) -> (Option<Place>, u64) {
    let problem = state.problem();
    let hosts = problem.open_hosts(item);
    let mut best: Option<(Score<L>, Place)> = None;
    let mut evaluations = 0;
    for _ in 0..ASIDE_HOSTS.min(hosts.len()) {
        let host = Host(hosts[rng.below(hosts.len())]);
        if host == not {
            continue;
        }
        evaluations += 1;
        let place = Place { host, shape: rng.below(usize::from(problem.shapes(item))) as u8 };
        if let Some(delta) = state.delta(item, place)
            && best.is_none_or(|(least, _)| delta < least)
        {
            best = Some((delta, place));
        }
    }
    (best.map(|(_, place)| place), evaluations)
}

/// Items whose move could mend something hard, largest first.
fn broken_items<const L: usize>(state: &State<'_, L>) -> Vec<Item> {
    let problem = state.problem();
    let mut items = Vec::new();
    for violation in problem.violations(&state.assignment()) {
        match violation {
            Violation::Unplaced(item)
            | Violation::OnDrained(item)
            | Violation::NotAllowed(item)
            | Violation::PinnedAway(item) => items.push(item),
            Violation::OverCapacity { host, .. } => {
                items.extend(state.items_on(host).iter().copied().map(Item));
            }
            Violation::Rule { rule, .. } => items.extend(problem.members(problem.rule(rule).group)),
        }
    }
    items.retain(|item| !problem.pinned(*item));
    items.sort_unstable();
    items.dedup();
    let largest = largest_capacity(state);
    let size = |item: &Item| {
        let need = problem.need(*item, 0);
        let shares = need.iter().zip(&largest).map(|(need, most)| need * 1024 / (*most).max(1));
        shares.max().unwrap_or(0)
    };
    items.sort_by_cached_key(|item| std::cmp::Reverse(size(item)));
    items
}

fn largest_capacity<const L: usize>(state: &State<'_, L>) -> Vec<i64> {
    let problem = state.problem();
    let mut largest = vec![0; problem.resources()];
    for host in 0..problem.hosts() {
        for (most, capacity) in largest.iter_mut().zip(problem.capacity(Host::from(host))) {
            *most = (*most).max(*capacity);
        }
    }
    largest
}
