//! Very small clusters: every placement is looked at.
//!
//! Where three hosts have five VMs a search has no business missing the best. Not
//! every placement can be reached, so the best few are given, for the ordering to
//! take the first that has an order.

use std::collections::HashSet;

use crate::core::{Assignment, Host, Item, Place, Problem, Score, State};
use crate::door::state::{Move, State as Cluster};
use crate::options::PlanOptions;

/// More placements than this are not looked at: eight VMs on four hosts.
const PLACEMENTS_MAX: usize = 1 << 16;
/// The most placements given. The spread is told exactly only of equal hosts here, so the best is among the first, not
/// always the first.
const KEPT: usize = 256;

/// Whether all placements of so many VMs on so many hosts are looked at.
pub(crate) fn is_small(hosts: usize, vms: usize) -> bool {
    let vms = u32::try_from(vms).unwrap_or(u32::MAX);
    hosts.checked_pow(vms).is_some_and(|placements| placements <= PLACEMENTS_MAX)
}

/// The best placements, the best first.
pub(crate) fn best(problem: &Problem) -> Vec<Assignment> {
    let choices: Vec<(Item, Vec<Place>)> = (0..problem.items())
        .map(Item::from)
        .filter(|item| !problem.pinned(*item))
        .map(|item| (item, places(problem, item)))
        .collect();
    let mut state: State<'_> = State::new(problem, &problem.initial());
    let mut chosen = vec![0; choices.len()];
    let mut best: Vec<(Score, Assignment)> = Vec::with_capacity(KEPT + 1);
    loop {
        let score = state.score();
        if best.len() < KEPT || best.last().is_some_and(|(worst, _)| score < *worst) {
            let at = best.partition_point(|(kept, _)| *kept <= score);
            best.insert(at, (score, state.assignment()));
            best.truncate(KEPT);
        }
        // Counts on: the first that has another place left takes it, those before it begin again.
        let mut carried = true;
        for ((item, places), chosen) in choices.iter().zip(&mut chosen) {
            *chosen = (*chosen + 1) % places.len();
            state.apply(*item, Some(places[*chosen]));
            if *chosen != 0 {
                carried = false;
                break;
            }
        }
        if carried {
            return best.into_iter().map(|(_, assignment)| assignment).collect();
        }
    }
}

/// An order in which all the moves can be made, one VM each, if there is one.
pub(crate) fn order(
    start: &Cluster<'_, '_>,
    moves: &[Move],
    options: &PlanOptions,
) -> Option<Vec<Move>> {
    let mut search =
        Search { state: start.clone(), moves, options, path: Vec::new(), dead: HashSet::new() };
    search.goes_on(0).then(|| search.path.iter().map(|n| moves[*n]).collect())
}

struct Search<'m, 'p, 'a> {
    state: Cluster<'p, 'a>,
    moves: &'m [Move],
    options: &'m PlanOptions,
    path: Vec<usize>,
    /// Sets of moves made, as bits, from which there is no way on.
    dead: HashSet<u64>,
}

impl Search<'_, '_, '_> {
    fn goes_on(&mut self, made: u64) -> bool {
        if self.path.len() == self.moves.len() {
            return true;
        }
        if self.dead.contains(&made) {
            return false;
        }
        for n in 0..self.moves.len() {
            let Move { vm, from, to, cause, .. } = self.moves[n];
            let can = made & 1 << n == 0
                && self.state.obstacle(vm, to).is_none()
                && self.state.cpu_allows(vm, to, cause, self.options);
            if !can {
                continue;
            }
            self.state.shift(vm, to);
            self.path.push(n);
            if self.goes_on(made | 1 << n) {
                return true;
            }
            self.path.pop();
            self.state.shift(vm, from);
        }
        self.dead.insert(made);
        false
    }
}

/// Where an item may be: where it is first.
fn places(problem: &Problem, item: Item) -> Vec<Place> {
    let open = problem.open_hosts(item).iter().map(|host| Place::on(Host(*host)));
    let home = problem.home(item);
    home.into_iter().chain(open.filter(|place| Some(*place) != home)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::dense;
    use crate::door::problem::Problem as Numbered;
    use crate::scenario::parse;

    #[test]
    fn no_placement_scores_less_than_the_first() {
        let text = "host a 8 16G : v1 3 4G, v2 2 3G, v3 1 2G\nhost b 8 16G\nhost c 8 16G draining : v4 1 1G\n";
        let snapshot = parse(text).unwrap().snapshot;
        let numbered = Numbered::new(&snapshot).unwrap();
        let problem = dense::problem(&numbered, &PlanOptions::default()).unwrap();
        let best = best(&problem);
        let score = |assignment: &Assignment| problem.evaluate(assignment).score;
        assert_eq!(best.len(), 24);
        assert!(best.is_sorted_by(|one, next| score(one) <= score(next)));
        let on = |host: u32| Some(Place::on(Host(host)));
        let mut seen = 0;
        for places in (0..16_u32).map(|bits| [0, 1, 2, 3].map(|n| on(bits >> n & 1))) {
            let one = Assignment::from_places(places);
            assert!(score(&best[0]) <= score(&one));
            seen += usize::from(score(&best[0]) == score(&one));
        }
        assert!(seen > 0, "the best is among those");
    }

    #[test]
    fn small_is_what_can_be_counted() {
        assert!(is_small(4, 8) && is_small(2, 16) && is_small(1, 1000));
        assert!(!is_small(4, 9) && !is_small(1000, 10_000));
    }
}
