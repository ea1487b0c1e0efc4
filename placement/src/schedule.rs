//! From the solver's moves to the order and dependencies they are executed in.
//!
//! 1. [`merge`]: a VM that moved several times while solving moves once, if
//!    the shorter list can still be made one after the other.
//! 2. [`ways`], [`shorten`]: what fits into one plan, the most urgent and then the
//!    most useful first ([`rank`](crate::rank)), so any beginning of the list is
//!    worth executing, and plans cut short come to an end.
//! 3. [`dependencies`]: steps without a dependency may run at the same time in
//!    any order, so each step names the earlier ones it cannot go without.
//!
//! The rule behind the dependencies: on its target, a step counts the arrivals
//! of *all* earlier steps, and of the departures only those it waits for. Take
//! any set of steps that have started, in any legal order, and of their arrivals
//! on one host the one with the highest index: that step counted all others,
//! and what it waits for has left. So no host is ever over its limit.
//! Losses concern all hosts at once, so there a step counts all earlier steps as under way but those it waits for: see
//! [`crate::door::losses`] for why nothing that can happen meanwhile is harder than that.

use std::collections::{BTreeMap, BTreeSet};

use crate::door::losses::Underway;
use crate::door::problem::{Problem, RuleIx, VmInfo, VmIx};
use crate::door::rules::RuleBody;
use crate::door::state::{Move, State};
use crate::options::PlanOptions;
use crate::solve::joint;
use crate::{cost, rank};

/// The solver's moves as steps in an order that can be made, the best way first.
pub(crate) fn ways(problem: &Problem<'_>, found: &[Move], options: &PlanOptions) -> Vec<Vec<Move>> {
    let merged = merge(problem, found);
    if let Some(ranked) = rank::best_first(problem, &merged, options) {
        return vec![ranked];
    }
    // The rare list that cannot be merged goes by way of third hosts, or as it was found.
    let start = State::new(problem);
    let mut end = start.clone();
    found.iter().for_each(|step| end.shift(step.vm, step.to));
    let by_parking = joint::sequence(&start, &end).map(|candidate| candidate.moves);
    by_parking.into_iter().chain([found.to_vec()]).collect()
}

/// The beginning of the steps that is worth most if not all are to be made: more than a plan may hold, or more than the
/// VMs they move.
pub(crate) fn shorten(problem: &Problem<'_>, moves: Vec<Move>, options: &PlanOptions) -> Vec<Move> {
    let vms: BTreeSet<VmIx> = moves.iter().map(|step| step.vm).collect();
    let is_afforded = options.affords(moves.len(), cost::of_steps(problem, &moves));
    if is_afforded && vms.len() == moves.len() {
        return moves;
    }
    rank::cut(problem, &moves, options)
}

/// One move for each VM that is elsewhere in the end, in the order of their first moves.
fn merge(problem: &Problem<'_>, moves: &[Move]) -> Vec<Move> {
    let start = State::new(problem);
    let mut merged: BTreeMap<VmIx, Move> = BTreeMap::new();
    let mut order = Vec::new();
    for step in moves {
        merged
            .entry(step.vm)
            .and_modify(|first| {
                first.to = step.to;
                first.cause = first.cause.min(step.cause);
            })
            .or_insert_with(|| {
                order.push(step.vm);
                *step
            });
    }
    // One that was found in the place of another has the cause of that one.
    let with_cause = |vm: &VmIx| {
        let step = merged[vm];
        Move { cause: step.cause.min(start.cause_of(*vm, step.to)), ..step }
    };
    order.iter().map(with_cause).filter(|step| step.from != step.to).collect()
}

/// For each move, the indices of the earlier ones it has to wait for.
pub(crate) fn dependencies(
    problem: &Problem<'_>,
    moves: &[Move],
    options: &PlanOptions,
) -> Vec<Vec<usize>> {
    let start = State::new(problem);
    let mut books: Vec<Book> = problem
        .host_ixs()
        .map(|host| {
            let (memory, cpu) = (start.memory_taken(host), start.cpu(host));
            Book { used: Used { memory, cpu, cpu_size: start.cpu_sizes(host) }, gone: Vec::new() }
        })
        .collect();
    let mut underway = Underway::new(&start);
    let mut last_step: BTreeMap<VmIx, usize> = BTreeMap::new();
    let mut all = Vec::with_capacity(moves.len());
    for (n, step) in moves.iter().enumerate() {
        let mut after: BTreeSet<usize> = last_step.insert(step.vm, n).into_iter().collect();
        let book = &mut books[step.to.0];
        book.used.add(problem.vm(step.vm));
        after.extend((0..n).filter(|earlier| conflict(problem, step, &moves[*earlier])));
        book.wait(problem, moves, &mut after, |used| used.fits(problem, step, options));
        if let Some(underway) = &mut underway {
            underway.note(step.vm, step.from, step.to);
            wait_for_room_to_fail(underway, moves, n, &mut after);
        }
        books[step.from.0].gone.push(n);
        all.push(after.into_iter().collect());
    }
    all
}

/// Adds the first steps to `after`, as many as it takes for the cluster to tolerate what it did before while step `n`
/// runs with all the others.
fn wait_for_room_to_fail(
    underway: &Underway<'_, '_>,
    moves: &[Move],
    n: usize,
    after: &mut BTreeSet<usize>,
) {
    let keeps = |first: usize| {
        let waits = after.iter().copied().filter(|earlier| *earlier >= first);
        underway.keeps((0..first).chain(waits).map(|ended| (moves[ended].vm, moves[ended].from)))
    };
    if keeps(0) {
        return;
    }
    let (mut too_few, mut enough) = (0, n);
    while enough - too_few > 1 {
        let middle = too_few + (enough - too_few) / 2;
        if keeps(middle) { enough = middle } else { too_few = middle }
    }
    after.extend(0..enough);
}

/// Whether a rule that holds at every moment, or a NUMA node, may need the earlier step to have ended.
fn conflict(problem: &Problem<'_>, step: &Move, earlier: &Move) -> bool {
    let on_one_node = |vm: VmIx| problem.vm(vm).vm.one_numa_node;
    if earlier.from == step.to && on_one_node(earlier.vm) && on_one_node(step.vm) {
        return true;
    }
    let bound_too = |rule: RuleIx| problem.vm(earlier.vm).rules.iter().any(|(r, _)| *r == rule);
    let needs_it = |rule: RuleIx| {
        let info = problem.rule(rule);
        match &info.body {
            RuleBody::Hosts { .. } => false,
            RuleBody::Apart { .. } => info.domain[earlier.from.0] == info.domain[step.to.0],
            _ => true,
        }
    };
    let rules = problem.vm(step.vm).rules.iter().map(|(rule, _)| *rule);
    let continuous = rules.filter(|rule| problem.rule(*rule).is_continuous());
    earlier.vm != step.vm && continuous.into_iter().any(|rule| needs_it(rule) && bound_too(rule))
}

/// What VMs use of a host, or hold there.
#[derive(Debug, Clone, Copy)]
struct Used {
    /// In bytes.
    memory: u64,
    /// Demand in millicores.
    cpu: u64,
    /// Size in millicores.
    cpu_size: u64,
}

impl Used {
    fn add(&mut self, vm: &VmInfo<'_>) {
        self.memory = self.memory.saturating_add(vm.memory);
        self.cpu = self.cpu.saturating_add(vm.cpu);
        self.cpu_size = self.cpu_size.saturating_add(vm.cpu_size);
    }

    fn remove(&mut self, vm: &VmInfo<'_>) {
        self.memory = self.memory.saturating_sub(vm.memory);
        self.cpu = self.cpu.saturating_sub(vm.cpu);
        self.cpu_size = self.cpu_size.saturating_sub(vm.cpu_size);
    }

    /// Whether so much may be in use on the target after the step.
    fn fits(&self, problem: &Problem<'_>, step: &Move, options: &PlanOptions) -> bool {
        let host = problem.host(step.to);
        let ceiling = options.cpu_ceiling.get() * host.cpu.max(1) as f64;
        self.memory <= host.memory
            && host.cpu_admitted.is_none_or(|admitted| self.cpu_size <= admitted)
            && (step.cause.is_forced() || self.cpu as f64 <= ceiling)
    }
}

/// A host's use if every earlier arrival has come and no departure has ended, and the steps that leave it.
struct Book {
    used: Used,
    gone: Vec<usize>,
}

impl Book {
    /// Adds departures to `after`, the earliest first, until the use is within limits.
    fn wait(
        &self,
        problem: &Problem<'_>,
        moves: &[Move],
        after: &mut BTreeSet<usize>,
        within: impl Fn(&Used) -> bool,
    ) {
        let mut used = self.used;
        for gone in self.gone.iter().filter(|gone| after.contains(gone)) {
            used.remove(problem.vm(moves[*gone].vm));
        }
        for &gone in &self.gone {
            if within(&used) {
                return;
            }
            if after.insert(gone) {
                used.remove(problem.vm(moves[gone].vm));
            }
        }
    }
}
