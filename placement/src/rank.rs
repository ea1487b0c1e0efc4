//! The order in which every beginning of a plan is worth most.
//!
//! What must be done comes first; of the rest, always the step that levels most, for what it takes of the plan's
//! budget, of those that are possible at that moment. So a plan that is cut short, or a window that closes, has bought the most level load for its migrations:
//! the steps, read from the first, are the curve of moves against imbalance. VMs that go together go one right after the
//! other, as soon as there is room: between them a rule is broken, and a plan is not to end there.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use ballast_model::DrainGoal;
use ballast_model::plan::StepCost;

use crate::cost;
use crate::door::groups::{Groups, is_tied};
use crate::door::problem::{HostIx, Problem, VmIx};
use crate::door::state::{Cause, Move, State};
use crate::objective::Quality;
use crate::options::PlanOptions;

/// A step in the queue: urgency, gain or size, memory, number of its VM, place in the list, and when it was weighed.
type Queued = (Reverse<u8>, Gain, Reverse<u64>, Reverse<usize>, usize, u64);

/// A gain with an order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Gain(f64);

impl Eq for Gain {}

impl Ord for Gain {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Gain {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The moves, one a VM, in that order; `None` when they cannot all be made one after the other.
pub(crate) fn best_first(
    problem: &Problem<'_>,
    moves: &[Move],
    options: &PlanOptions,
) -> Option<Vec<Move>> {
    let mut ranking = Ranking::new(problem, moves, options);
    let mut ordered: Vec<Move> = Vec::with_capacity(moves.len());
    let mut made_at_retry = usize::MAX;
    while ordered.len() < moves.len() {
        let Some(n) = ranking.next(options) else {
            // What was impossible may have become possible by a rule that spans hosts.
            if made_at_retry == ordered.len() {
                return None;
            }
            made_at_retry = ordered.len();
            (0..moves.len()).for_each(|n| ranking.weigh(n));
            continue;
        };
        ranking.make(n);
        ordered.push(moves[n]);
    }
    Some(ordered)
}

/// The beginning of the steps that is worth most, of those that the budget allows, each step at the price of a move: it
/// does not end on a step that pays only together with a later one, nor lead somewhere worse than here. That is so for
/// what must be done as well: room made for a move that the plan cannot hold would be filled by the next plan, and so on.
/// A step that is too large for what is left of the budget is left out, with those that need its room.
pub(crate) fn cut(problem: &Problem<'_>, moves: &[Move], options: &PlanOptions) -> Vec<Move> {
    let start = State::new(problem);
    let mut state = start.clone();
    let (mut best, mut length) = (Quality::of(&start, &state, options), 0);
    let (mut taken, mut spent, mut is_short) = (Vec::new(), StepCost::ZERO, false);
    for step in moves {
        let cost = spent + cost::of_step(problem, step);
        if taken.len() == options.steps_max {
            break;
        }
        let is_afforded = options.affords(taken.len() + 1, cost);
        if !is_afforded || is_short && !is_possible(&state, step, options) {
            is_short = true;
            continue;
        }
        state.shift(step.vm, step.to);
        spent = cost;
        taken.push(*step);
        let reached = Quality::after_steps(&start, &state, &taken, options);
        if reached.is_better_than(&best) {
            (best, length) = (reached, taken.len());
        }
    }
    taken.truncate(length);
    taken
}

/// Whether the step can be made in this state.
pub(crate) fn is_possible(state: &State<'_, '_>, step: &Move, options: &PlanOptions) -> bool {
    let Move { vm, from, to, cause, .. } = *step;
    state.at(vm) == from
        && state.obstacle(vm, to).is_none()
        && state.cpu_allows(vm, to, cause, options)
}

struct Ranking<'p, 'a, 'm> {
    state: State<'p, 'a>,
    moves: &'m [Move],
    is_made: Vec<bool>,
    /// By step, what it takes of the plan's budget.
    shares: Vec<f64>,
    /// By step, how large it is among those that must be made: they are made in any case, and the large ones first are
    /// the hardest to place, or where time matters the longest.
    sizes: Vec<f64>,
    /// By host, the steps that leave or reach it.
    touching: Vec<Vec<usize>>,
    /// By step, how often it was weighed: only the last counts.
    weighed: Vec<u64>,
    /// By step, whether a rule is broken until it is made, because another VM that the rule ties to its own has gone.
    is_awaited: Vec<bool>,
    /// The steps of VMs that rules tie to others, and those VMs by what ties them.
    tied: HashMap<VmIx, usize>,
    groups: Groups,
    queue: BinaryHeap<Queued>,
}

impl<'p, 'a, 'm> Ranking<'p, 'a, 'm> {
    fn new(problem: &'p Problem<'a>, moves: &'m [Move], options: &PlanOptions) -> Self {
        let share = |step: &Move| options.budget_share(cost::of_step(problem, step));
        let size = |step: &Move| match options.drain {
            DrainGoal::Fastest => cost::of_step(problem, step).duration.as_secs_f64(),
            DrainGoal::Balanced | DrainGoal::LeastDisturbing => problem.vm(step.vm).memory as f64,
        };
        let mut touching = vec![Vec::new(); problem.hosts.len()];
        for (n, step) in moves.iter().enumerate() {
            touching[step.from.0].push(n);
            touching[step.to.0].push(n);
        }
        let is_of_tied = |(_, step): &(usize, &Move)| is_tied(problem, step.vm);
        let tied: HashMap<VmIx, usize> =
            moves.iter().enumerate().filter(is_of_tied).map(|(n, step)| (step.vm, n)).collect();
        let mut tied_vms: Vec<VmIx> = tied.keys().copied().collect();
        tied_vms.sort_unstable();
        let mut ranking = Self {
            state: State::new(problem),
            moves,
            is_made: vec![false; moves.len()],
            shares: moves.iter().map(share).collect(),
            sizes: moves.iter().map(size).collect(),
            touching,
            weighed: vec![0; moves.len()],
            is_awaited: vec![false; moves.len()],
            groups: Groups::new(problem, &tied_vms),
            tied,
            queue: BinaryHeap::with_capacity(moves.len()),
        };
        (0..moves.len()).for_each(|n| ranking.weigh(n));
        ranking
    }

    fn weigh(&mut self, n: usize) {
        if self.is_made[n] {
            return;
        }
        let step = &self.moves[n];
        let memory = self.state.problem.vm(step.vm).memory;
        let gain = Gain(match urgency(step.cause) {
            0 => self.sizes[n],
            _ => self.state.gain(step.vm, step.to) / self.shares[n],
        });
        let memory = Reverse(memory);
        self.weighed[n] += 1;
        let rank = if self.is_awaited[n] { 0 } else { 1 + urgency(step.cause) };
        let (urgency, vm) = (Reverse(rank), Reverse(step.vm.0));
        self.queue.push((urgency, gain, memory, vm, n, self.weighed[n]));
    }

    /// The best step that is possible now. Those that are not are weighed again when one of their hosts changes.
    fn next(&mut self, options: &PlanOptions) -> Option<usize> {
        while let Some((.., n, weighed)) = self.queue.pop() {
            let is_current = !self.is_made[n] && weighed == self.weighed[n];
            if is_current && is_possible(&self.state, &self.moves[n], options) {
                return Some(n);
            }
        }
        None
    }

    fn make(&mut self, n: usize) {
        let Move { vm, from, to, .. } = self.moves[n];
        self.is_made[n] = true;
        let parts = self.state.discrete_broken(vm, to).is_some();
        self.state.shift(vm, to);
        for host in [from, to] {
            self.weigh_at(host);
        }
        if parts {
            self.await_others(vm);
        }
    }

    /// The VM has left others that a rule ties to it: those go next.
    fn await_others(&mut self, vm: VmIx) {
        let others = self.groups.with(vm).iter().filter_map(|other| self.tied.get(other).copied());
        let others: Vec<usize> = others.filter(|n| !self.is_awaited[*n]).collect();
        for n in others {
            self.is_awaited[n] = true;
            self.weigh(n);
        }
    }

    fn weigh_at(&mut self, host: HostIx) {
        let mut touching = std::mem::take(&mut self.touching[host.0]);
        touching.retain(|n| !self.is_made[*n]);
        touching.iter().for_each(|n| self.weigh(*n));
        self.touching[host.0] = touching;
    }
}

fn urgency(cause: Cause) -> u8 {
    match cause {
        Cause::Rule(_) | Cause::Needs | Cause::Capacity | Cause::Drain => 0,
        Cause::Quarantine | Cause::Preference(_) => 1,
        Cause::Balance => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cluster;
    use crate::yardstick;

    fn steps(problem: &Problem<'_>, names: &[(&str, &str)]) -> Vec<Move> {
        let start = State::new(problem);
        let step = |(vm, to): &(&str, &str)| {
            let vm = problem.find_vm(&vm.parse().unwrap()).unwrap();
            let to = problem.find_host(&to.parse().unwrap()).unwrap();
            Move { vm, from: start.at(vm), to, cause: Cause::Balance }
        };
        names.iter().map(step).collect()
    }

    #[test]
    fn the_step_that_levels_most_comes_first() {
        let cluster = Cluster::new(3, 8, 64)
            .vm("small", "h0", 400, 1)
            .vm("large", "h0", 2_000, 1)
            .vm("rest", "h0", 2_000, 1);
        let problem = Problem::new(&cluster.0).unwrap();
        let moves = steps(&problem, &[("small", "h1"), ("large", "h2")]);
        let ranked = best_first(&problem, &moves, &PlanOptions::default()).unwrap();
        assert_eq!(ranked, [moves[1], moves[0]]);
        let one = PlanOptions { steps_max: 1, ..PlanOptions::default() };
        assert_eq!(cut(&problem, &ranked, &one), [moves[1]]);
    }

    #[test]
    fn vms_that_go_together_go_one_right_after_the_other() {
        let cluster = Cluster::new(3, 8, 64)
            .vm("a1", "h0", 900, 1)
            .vm("a2", "h0", 300, 1)
            .vm("b", "h0", 600, 1);
        let mut snapshot = cluster.0;
        let vms = ["a1", "a2"].map(|vm| vm.parse().unwrap()).into();
        let kind = ballast_model::RuleKind::Affinity { vms, domain: Default::default() };
        let rule = ballast_model::Rule::must("pack".parse().unwrap(), kind);
        let names = [("a1", "h1"), ("a2", "h1"), ("b", "h2")];
        let ranked = |snapshot: &ballast_model::ClusterSnapshot| {
            let problem = Problem::new(snapshot).unwrap();
            let moves = steps(&problem, &names);
            let ranked = best_first(&problem, &moves, &PlanOptions::default()).unwrap();
            ranked.iter().map(|step| problem.vm(step.vm).id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(ranked(&snapshot), ["a1", "b", "a2"]);
        snapshot.rules.insert(rule.id.clone(), rule);
        assert_eq!(ranked(&snapshot), ["a1", "a2", "b"]);
    }

    #[test]
    fn what_needs_room_waits_for_it_and_what_can_never_be_made_is_said() {
        let cluster = Cluster::new(3, 8, 16)
            .vm("a", "h0", 3_000, 10)
            .vm("b", "h1", 100, 10)
            .vm("c", "h2", 100, 10);
        let problem = Problem::new(&cluster.0).unwrap();
        let options = PlanOptions::default();
        let circle = steps(&problem, &[("a", "h1"), ("b", "h0")]);
        assert_eq!(best_first(&problem, &circle, &options), None);
        let cluster = Cluster::new(3, 8, 16).vm("a", "h0", 3_000, 10).vm("b", "h1", 100, 10);
        let problem = Problem::new(&cluster.0).unwrap();
        let chain = steps(&problem, &[("a", "h1"), ("b", "h2")]);
        assert_eq!(best_first(&problem, &chain, &options).unwrap(), [chain[1], chain[0]]);
    }

    #[test]
    fn every_beginning_of_a_levelling_plan_is_better_than_the_one_before() {
        let snapshot = yardstick::cluster(20, 200, 2);
        let plan = crate::plan(&snapshot, &PlanOptions::default()).unwrap().plan;
        let gains: Vec<f64> = plan.steps.iter().map(|step| step.gain).collect();
        assert!(gains.len() > 20 && gains.iter().all(|gain| *gain > 0.0), "{gains:?}");
        // Of equal hosts, a step rarely gains more for coming later.
        let half = gains.len() / 2;
        let sum = |part: &[f64]| part.iter().sum::<f64>();
        assert!(sum(&gains[..half]) > 1.4 * sum(&gains[half..]), "{gains:?}");
    }
}
