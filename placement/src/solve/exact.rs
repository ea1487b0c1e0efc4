//! Very small clusters: every placement is looked at.
//!
//! Where three hosts have five VMs a search has no business missing the best. Not
//! every placement can be reached, so the best few are given, for the ordering to
//! take the first that has an order.

use std::cmp::Ordering;
use std::collections::HashSet;

use crate::door::obstacle::lacking;
use crate::door::problem::{HostIx, Problem, RuleIx, VmIx};
use crate::door::reach::Coming;
use crate::door::rules::Role;
use crate::door::state::{Cause, Move, State};
use crate::objective::Quality;
use crate::options::PlanOptions;

/// More placements than this are not looked at: eight VMs on four hosts.
const PLACEMENTS_MAX: usize = 1 << 16;
/// The most placements given: where rules or memory are in the way most cannot be reached.
const KEPT: usize = 4096;
/// Moves looked at for the orders of all placements together, at most.
pub(crate) const EFFORT: usize = 1_000_000;

/// Whether all placements of so many VMs on so many hosts are looked at.
pub(crate) fn is_small(hosts: usize, vms: usize) -> bool {
    let vms = u32::try_from(vms).unwrap_or(u32::MAX);
    hosts.checked_pow(vms).is_some_and(|placements| placements <= PLACEMENTS_MAX)
}

/// Where every VM is in the placements that are better than `least`, the best first, [`KEPT`] at most. Ones that give a
/// host more memory than it has are left out, unless it holds as much now: no order leads there.
pub(crate) fn better(
    start: &State<'_, '_>,
    least: &Quality,
    options: &PlanOptions,
) -> Vec<Vec<HostIx>> {
    let problem = start.problem;
    let choices: Vec<(VmIx, Vec<HostIx>)> = problem
        .vm_ixs()
        .map(|vm| (vm, places(start, vm)))
        .filter(|(_, places)| places.len() > 1)
        .collect();
    let (mut state, mut chosen) = (start.clone(), vec![0; choices.len()]);
    let mut better: Vec<(Quality, Vec<HostIx>)> = Vec::new();
    loop {
        let quality = Quality::of(start, &state, options);
        if quality.is_better_than(least) && has_room(start, &state) {
            better.push((quality, problem.vm_ixs().map(|vm| state.at(vm)).collect()));
        }
        // Counts on: the first that has another place left takes it, those before it begin again.
        let mut carried = true;
        for ((vm, places), chosen) in choices.iter().zip(&mut chosen) {
            *chosen = (*chosen + 1) % places.len();
            state.shift(*vm, places[*chosen]);
            if *chosen != 0 {
                carried = false;
                break;
            }
        }
        if carried {
            break;
        }
    }
    better.sort_by(|(one, _), (other, _)| one.partial_cmp(other).unwrap_or(Ordering::Equal));
    better.into_iter().take(KEPT).map(|(_, places)| places).collect()
}

/// Whether no host holds more than it has, or than it did at the beginning.
fn has_room(start: &State<'_, '_>, state: &State<'_, '_>) -> bool {
    state.problem.host_ixs().all(|host| {
        let most = state.problem.host(host).memory.max(start.memory_taken(host));
        state.memory_taken(host) <= most
    })
}

/// Where the VM may be: where it is first.
fn places(start: &State<'_, '_>, vm: VmIx) -> Vec<HostIx> {
    let (problem, home) = (start.problem, start.at(vm));
    let cause = if problem.host(home).draining() { Cause::Drain } else { Cause::Balance };
    if !problem.may_move(vm, cause) {
        return vec![home];
    }
    let open = problem.host_ixs().filter(|host| *host != home && may_run(problem, vm, *host));
    std::iter::once(home).chain(open).collect()
}

/// Whether the host takes VMs, this one can run there, and no rule of hosts forbids it.
fn may_run(problem: &Problem<'_>, vm: VmIx, host: HostIx) -> bool {
    let bound = |(rule, role): &&(RuleIx, Role)| role.bound && problem.rule(*rule).is_must();
    problem.host(host).counts()
        && lacking(problem, vm, host, Coming::Moving).is_none()
        && problem
            .vm(vm)
            .rules
            .iter()
            .filter(bound)
            .all(|(rule, _)| problem.rule_allows(*rule, host))
}

/// An order in which all the moves can be made, one VM each, if there is one; takes what it looks at from `effort`, and
/// finds none when that is used up.
pub(crate) fn order(
    start: &State<'_, '_>,
    moves: &[Move],
    options: &PlanOptions,
    effort: &mut usize,
) -> Option<Vec<Move>> {
    let (path, dead) = (Vec::new(), HashSet::new());
    let mut search = Search { state: start.clone(), moves, options, effort, path, dead };
    search.goes_on(0).then(|| search.path.iter().map(|n| moves[*n]).collect())
}

struct Search<'m, 'p, 'a> {
    state: State<'p, 'a>,
    moves: &'m [Move],
    options: &'m PlanOptions,
    effort: &'m mut usize,
    path: Vec<usize>,
    /// Sets of moves made, as bits, from which there is no way on.
    dead: HashSet<u64>,
}

impl Search<'_, '_, '_> {
    fn goes_on(&mut self, made: u64) -> bool {
        if self.path.len() == self.moves.len() {
            return true;
        }
        if self.dead.contains(&made) || *self.effort < self.moves.len() {
            return false;
        }
        *self.effort -= self.moves.len();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;

    #[test]
    fn no_placement_is_better_than_the_first() {
        let text = "host a 8 16G : v1 3 4G, v2 2 3G, v3 1 2G\nhost b 16 16G\nhost c 8 16G draining : v4 1 1G\nrule pack: v2 v3 together\n";
        let snapshot = parse(text).unwrap().snapshot;
        let problem = Problem::new(&snapshot).unwrap();
        let (start, options) = (State::new(&problem), PlanOptions::default());
        let quality = |places: &[HostIx]| {
            let mut state = start.clone();
            problem.vm_ixs().zip(places).for_each(|(vm, host)| state.shift(vm, *host));
            Quality::of(&start, &state, &options)
        };
        let now = Quality::of(&start, &start, &options);
        let found = better(&start, &now, &options);
        assert!(found.is_sorted_by(|one, next| quality(one) <= quality(next)));
        let all = (0..16_usize).map(|bits| [0, 1, 2, 3].map(|n| HostIx(bits >> n & 1)));
        let better: Vec<_> = all.filter(|places| quality(places).is_better_than(&now)).collect();
        assert!(better.iter().all(|places| found.contains(&places.to_vec())), "{found:?}");
        assert!(better.iter().all(|places| quality(&found[0]) <= quality(places)));
    }

    #[test]
    fn a_placement_that_no_host_has_memory_for_is_left_out() {
        let text = "host a 8 16G draining : v1 1 10G, v2 1 10G\nhost b 8 16G\n";
        let snapshot = parse(text).unwrap().snapshot;
        let problem = Problem::new(&snapshot).unwrap();
        let (start, options) = (State::new(&problem), PlanOptions::default());
        let found = better(&start, &Quality::of(&start, &start, &options), &options);
        let [a, b] = [0, 1].map(HostIx);
        assert_eq!(found, [[b, a], [a, b]]);
    }

    #[test]
    fn small_is_what_can_be_counted() {
        assert!(is_small(4, 8) && is_small(2, 16) && is_small(1, 1000));
        assert!(!is_small(4, 9) && !is_small(1000, 10_000));
    }
}
