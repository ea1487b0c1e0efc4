//! The check on the way out: a finished plan against the snapshot it is for.
//!
//! Written against the snapshot and the plan's names, sharing nothing with the
//! solver but the numbering and what is one definition for all (whether hosts may
//! be lost, whether NUMA nodes suffice), so that a slip there is found here. It checks that
//! every order and concurrency the dependencies allow is safe: for each step,
//! what is on the target with every earlier arrival there, and only those
//! departures gone that the step (through its dependencies) waits for. See
//! [`crate::schedule`] for why that covers every interleaving.

mod rules;

use std::collections::{BTreeMap, HashMap};

use ballast_model::plan::StepCause;
use ballast_model::{Plan, Refusal, RefusalCode, Step};

use crate::door::losses::Underway;
use crate::door::obstacle::nodes_fit;
use crate::door::problem::{HostIx, Problem, VmIx};
use crate::door::state::State;
use crate::options::PlanOptions;

/// Refuses (`Internal`) a plan that would break something if executed.
pub(crate) fn check(
    problem: &Problem<'_>,
    plan: &Plan,
    options: &PlanOptions,
) -> Result<(), Refusal> {
    let mut checker = Checker::new(problem, plan, options)?;
    for n in 0..plan.steps.len() {
        checker.check_step(n).map_err(|what| {
            let step = &plan.steps[n];
            Refusal::new(
                RefusalCode::Internal,
                format!(
                    "the planner made a plan that fails its own check: step {n}, VM {} from {} to {}: {what}",
                    step.vm, step.from, step.to
                ),
                "nothing was changed; save the snapshot and report the defect with it",
            )
        })?;
    }
    Ok(())
}

/// How many steps of the plan, from the first on, break nothing.
pub(crate) fn legal_steps(problem: &Problem<'_>, plan: &Plan, options: &PlanOptions) -> usize {
    Checker::new(problem, plan, options).map_or(0, |mut checker| {
        (0..plan.steps.len()).take_while(|n| checker.check_step(*n).is_ok()).count()
    })
}

struct Checker<'c, 'a> {
    problem: &'c Problem<'a>,
    steps: &'c [Step],
    options: &'c PlanOptions,
    moves: Vec<(VmIx, HostIx, HostIx)>,
    /// For each step, the steps that have ended whenever it starts.
    ancestors: Vec<Bits>,
    arrivals: HashMap<HostIx, Vec<usize>>,
    departures: HashMap<HostIx, Vec<usize>>,
    steps_of: HashMap<VmIx, Vec<usize>>,
    /// Memory, CPU and CPU sizes on each host before the first step. Migrations under way count on both hosts, but for
    /// CPU, which they use on the target.
    memory: Vec<u64>,
    cpu: Vec<u64>,
    cpu_sizes: Vec<u64>,
    /// All steps up to the one that is checked, if hosts may be lost.
    underway: Option<Underway<'c, 'a>>,
}

impl<'c, 'a> Checker<'c, 'a> {
    fn new(
        problem: &'c Problem<'a>,
        plan: &'c Plan,
        options: &'c PlanOptions,
    ) -> Result<Self, Refusal> {
        let unknown = || {
            Refusal::new(
                RefusalCode::Internal,
                "the planner made a plan for a VM or host that is not in the snapshot",
                "nothing was changed; save the snapshot and report the defect with it",
            )
        };
        let mut moves = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            let vm = problem.find_vm(&step.vm).ok_or_else(unknown)?;
            let from = problem.find_host(&step.from).ok_or_else(unknown)?;
            moves.push((vm, from, problem.find_host(&step.to).ok_or_else(unknown)?));
        }
        let mut memory: Vec<u64> = problem.hosts.iter().map(|host| host.overhead[1]).collect();
        let mut cpu: Vec<u64> = problem.hosts.iter().map(|host| host.overhead[0]).collect();
        let mut cpu_sizes = vec![0_u64; problem.hosts.len()];
        for vm in &problem.vms {
            for host in [Some(vm.host), vm.bound_for].into_iter().flatten() {
                memory[host.0] = memory[host.0].saturating_add(vm.memory);
                cpu_sizes[host.0] = cpu_sizes[host.0].saturating_add(vm.cpu_size);
            }
            let runs_on = vm.bound_for.unwrap_or(vm.host);
            cpu[runs_on.0] = cpu[runs_on.0].saturating_add(vm.cpu);
        }
        let (steps, none) = (&plan.steps, HashMap::new());
        let (arrivals, departures) = (none.clone(), none);
        let (ancestors, steps_of) = (Vec::new(), HashMap::new());
        let underway = Underway::new(&State::new(problem));
        Ok(Self {
            problem,
            steps,
            options,
            moves,
            ancestors,
            arrivals,
            departures,
            steps_of,
            memory,
            cpu,
            cpu_sizes,
            underway,
        })
    }

    fn check_step(&mut self, n: usize) -> Result<(), String> {
        let (vm, from, to) = self.moves[n];
        self.note_ancestors(n)?;
        self.check_vm(n)?;
        self.steps_of.entry(vm).or_default().push(n);
        self.check_target(n)?;
        self.check_nodes(n)?;
        self.check_rules(n)?;
        self.check_losses(n)?;
        self.arrivals.entry(to).or_default().push(n);
        self.departures.entry(from).or_default().push(n);
        Ok(())
    }

    fn note_ancestors(&mut self, n: usize) -> Result<(), String> {
        let waits = &self.steps[n].after;
        // Most steps wait for nothing and take no room.
        let mut ancestors = Bits::new(waits.iter().max().map_or(0, |last| (*last).min(n) + 1));
        for &earlier in waits {
            if earlier >= n {
                return Err(format!("it waits for step {earlier}, which is not before it"));
            }
            ancestors.insert(earlier);
            ancestors.extend(&self.ancestors[earlier]);
        }
        self.ancestors.push(ancestors);
        Ok(())
    }

    /// The VM can move and is where the step says, in every order.
    fn check_vm(&self, n: usize) -> Result<(), String> {
        let (vm, from, to) = self.moves[n];
        let info = self.problem.vm(vm);
        if !self.problem.can_leave(vm) {
            return Err("the VM cannot leave its host".into());
        }
        let at = match self.steps_of.get(&vm).and_then(|steps| steps.last()) {
            Some(last) if !self.ancestors[n].contains(*last) => {
                return Err(format!("it does not wait for the same VM's step {last}"));
            }
            Some(last) => self.moves[*last].2,
            None => info.host,
        };
        if at != from || from == to {
            return Err(format!("the VM is on {} then", self.problem.host(at).id));
        }
        Ok(())
    }

    fn check_target(&self, n: usize) -> Result<(), String> {
        let (vm, _, to) = self.moves[n];
        let (info, host) = (self.problem.vm(vm), self.problem.host(to));
        if !host.counts() {
            return Err("the target takes no VMs".into());
        }
        let hard = info.rules.iter().filter(|(rule, _)| self.problem.rule(*rule).is_must());
        let bound = hard.filter(|(_, role)| role.bound).map(|(rule, _)| *rule);
        if let Some(rule) = bound.into_iter().find(|rule| !self.problem.rule_allows(*rule, to)) {
            return Err(format!("rule {} forbids it", self.problem.rule(rule).id));
        }
        let mut needs = info.vm.needs.iter().chain(&info.vm.needs_to_move);
        if let Some(word) = needs.find(|word| !host.host.offers.contains(*word)) {
            return Err(format!("the target does not offer {word}"));
        }
        let at = |map: &HashMap<HostIx, Vec<usize>>| map.get(&to).cloned().unwrap_or_default();
        let came = at(&self.arrivals);
        let left: Vec<usize> =
            at(&self.departures).into_iter().filter(|d| self.ancestors[n].contains(*d)).collect();
        let total = |start: u64, own: u64, of: fn(&Checker<'c, 'a>, usize) -> u64| {
            let sum =
                |list: &[usize]| list.iter().fold(0_u64, |s, i| s.saturating_add(of(self, *i)));
            start.saturating_add(own).saturating_add(sum(&came)).saturating_sub(sum(&left))
        };
        let memory =
            total(self.memory[to.0], info.memory, |c, i| c.problem.vm(c.moves[i].0).memory);
        if memory > host.memory {
            return Err(format!(
                "memory on the target may reach {memory} of {} bytes",
                host.memory
            ));
        }
        let sizes =
            total(self.cpu_sizes[to.0], info.cpu_size, |c, i| c.problem.vm(c.moves[i].0).cpu_size);
        if let Some(admitted) = host.cpu_admitted.filter(|admitted| sizes > *admitted) {
            return Err(format!(
                "VMs of {sizes} millicores may be on the target, which admits {admitted}"
            ));
        }
        self.check_disks(n, &came)?;
        let cpu = total(self.cpu[to.0], info.cpu, |c, i| c.problem.vm(c.moves[i].0).cpu);
        let limited = self.steps[n].cause == StepCause::Balance;
        if limited && cpu as f64 > self.options.cpu_ceiling.get() * host.cpu as f64 {
            return Err(format!("CPU on the target may reach {cpu} of {} millicores", host.cpu));
        }
        Ok(())
    }

    /// Local disks come with their VMs, and nothing is given back while the plan runs: the disk of a VM that left is deleted
    /// only after it runs elsewhere.
    fn check_disks(&self, n: usize, came: &[usize]) -> Result<(), String> {
        let to = self.moves[n].2;
        let Some(room) = self.problem.host(to).host.local_disk_room else { return Ok(()) };
        let bound = self.problem.vms.iter().filter(|vm| vm.bound_for == Some(to) && vm.host != to);
        let mut coming: BTreeMap<VmIx, u64> = BTreeMap::new();
        for step in came.iter().copied().chain([n]) {
            let (vm, ..) = self.moves[step];
            let info = self.problem.vm(vm);
            if info.host != to && info.vm.local_disks.get() > 0 {
                coming.insert(vm, info.vm.local_disks.get());
            }
        }
        if !coming.contains_key(&self.moves[n].0) {
            return Ok(());
        }
        let under_way = bound.map(|vm| vm.vm.local_disks.get());
        let disks = under_way.chain(coming.into_values()).fold(0_u64, u64::saturating_add);
        if disks > room.get() {
            return Err(format!("{disks} bytes of disks come to the target, which has {room}"));
        }
        Ok(())
    }

    /// No node of the target may have to take more than it has.
    fn check_nodes(&self, n: usize) -> Result<(), String> {
        let (vm, _, to) = self.moves[n];
        let host = self.problem.host(to).host;
        if !self.problem.vm(vm).vm.one_numa_node || host.numa.is_empty() {
            return Ok(());
        }
        let there = self.problem.vm_ixs().filter(|other| self.hosts_of(*other, n).contains(&to));
        match nodes_fit(self.problem, to, there) {
            true => Ok(()),
            false => Err("no NUMA node of the target may be left for the VM".into()),
        }
    }

    /// The cluster can lose what it could before the first step, with everything under way that may be.
    fn check_losses(&mut self, n: usize) -> Result<(), String> {
        let (vm, from, to) = self.moves[n];
        let Some(underway) = &mut self.underway else { return Ok(()) };
        underway.note(vm, from, to);
        let ended = (0..n).filter(|earlier| self.ancestors[n].contains(*earlier));
        let ended = ended.map(|earlier| (self.moves[earlier].0, self.moves[earlier].1));
        match underway.keeps(ended) {
            true => Ok(()),
            false => Err("a host may be lost then with VMs that have no other place".into()),
        }
    }

    /// The hosts where a VM may be, or may leave or reach, while step `n` runs.
    fn hosts_of(&self, vm: VmIx, n: usize) -> Vec<HostIx> {
        let info = self.problem.vm(vm);
        let mut hosts: Vec<HostIx> =
            [Some(info.host), info.bound_for].into_iter().flatten().collect();
        let steps = self.steps_of.get(&vm).map_or(&[][..], Vec::as_slice);
        for step in steps.iter().take_while(|step| **step <= n) {
            if self.ancestors[n].contains(*step) {
                hosts.clear();
            }
            hosts.push(self.moves[*step].2);
        }
        hosts
    }
}

/// A set of step indices below a bound.
#[derive(Debug, Clone)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(bound: usize) -> Self {
        Self(vec![0; bound.div_ceil(64)])
    }

    fn insert(&mut self, n: usize) {
        self.0[n / 64] |= 1 << (n % 64);
    }

    fn contains(&self, n: usize) -> bool {
        self.0.get(n / 64).is_some_and(|word| word & (1 << (n % 64)) != 0)
    }

    fn extend(&mut self, other: &Self) {
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Cluster, keep_apart};
    use ballast_model::ClusterSnapshot;

    /// `a` leaves `h1`, which makes room there for `b`.
    fn tight() -> ClusterSnapshot {
        Cluster::new(3, 8, 16).vm("a", "h1", 100, 10).vm("b", "h0", 100, 10).draining("h0").0
    }

    fn step(vm: &str, from: &str, to: &str, after: &[usize]) -> Step {
        Step {
            vm: vm.parse().unwrap(),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            cause: StepCause::Balance,
            after: after.to_vec(),
            gain: 0.0,
            cost: ballast_model::plan::StepCost {
                bytes: ballast_model::Bytes::ZERO,
                duration: std::time::Duration::ZERO,
            },
            reason: String::new(),
            terms: Vec::new(),
        }
    }

    fn expect(snapshot: &ClusterSnapshot, steps: Vec<Step>, expected: Option<&str>) {
        let problem = Problem::new(snapshot).unwrap();
        let zero = ballast_model::Ratio::ZERO;
        let plan = Plan {
            snapshot: snapshot.revision,
            steps,
            imbalance_before: zero,
            imbalance_after: zero,
        };
        let result = check(&problem, &plan, &PlanOptions::default());
        match (result, expected) {
            (Ok(()), None) => {}
            (Err(refusal), Some(words)) => {
                assert_eq!(refusal.code, RefusalCode::Internal);
                assert!(refusal.reason.contains(words), "{refusal}");
            }
            (result, expected) => panic!("{result:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_step_that_waits_for_its_room_passes_and_one_that_does_not_fails() {
        let a_leaves = || step("a", "h1", "h2", &[]);
        expect(&tight(), vec![a_leaves(), step("b", "h0", "h1", &[0])], None);
        expect(
            &tight(),
            vec![a_leaves(), step("b", "h0", "h1", &[])],
            Some("memory on the target"),
        );
        expect(&tight(), vec![step("b", "h0", "h1", &[])], Some("memory on the target"));
    }

    #[test]
    fn two_arrivals_that_fit_only_one_by_one_fail() {
        let cluster = Cluster::new(3, 8, 16).vm("a", "h0", 100, 10).vm("b", "h1", 100, 10).0;
        let steps = vec![step("a", "h0", "h2", &[]), step("b", "h1", "h2", &[])];
        expect(&cluster, steps, Some("memory on the target"));
    }

    #[test]
    fn vms_kept_apart_may_not_meet_even_in_passing() {
        let cluster = Cluster::new(3, 8, 64).vm("a", "h1", 100, 1).vm("b", "h0", 100, 1).0;
        let cluster = keep_apart(cluster, &["a", "b"]);
        let a_leaves = || step("a", "h1", "h2", &[]);
        expect(&cluster, vec![a_leaves(), step("b", "h0", "h1", &[0])], None);
        expect(
            &cluster,
            vec![a_leaves(), step("b", "h0", "h1", &[])],
            Some("VM a may still be there"),
        );
    }

    #[test]
    fn a_balance_step_over_the_cpu_ceiling_fails() {
        let cluster = Cluster::new(2, 1, 64).vm("a", "h0", 900, 1).0;
        expect(&cluster, vec![step("a", "h0", "h1", &[])], Some("CPU on the target"));
    }

    #[test]
    fn what_cannot_be_executed_fails() {
        let twice = vec![step("b", "h0", "h2", &[]), step("b", "h2", "h0", &[])];
        expect(&tight(), twice, Some("does not wait for the same VM's step 0"));
        expect(&tight(), vec![step("b", "h1", "h2", &[])], Some("the VM is on h0 then"));
        expect(&tight(), vec![step("a", "h1", "h0", &[])], Some("takes no VMs"));
        expect(&tight(), vec![step("b", "h0", "h2", &[0])], Some("which is not before it"));
        expect(&tight(), vec![step("zz", "h0", "h2", &[])], Some("not in the snapshot"));
    }
}
