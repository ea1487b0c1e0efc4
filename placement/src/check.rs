//! The check on the way out: a finished plan against the snapshot it is for.
//!
//! Written against the snapshot and the plan's names, sharing nothing with the
//! solver but the numbering, so that a slip there is found here. It checks that
//! every order and concurrency the dependencies allow is safe: for each step,
//! what is on the target with every earlier arrival there, and only those
//! departures gone that the step (through its dependencies) waits for. See
//! [`crate::schedule`] for why that covers every interleaving.

use std::collections::{BTreeMap, HashMap};

use ballast_model::plan::StepCause;
use ballast_model::{Plan, Refusal, RefusalCode, Step};

use crate::door::problem::{HostIx, Problem, VmIx};
use crate::door::rules::RuleBody;
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

struct Checker<'c, 'a> {
    problem: &'c Problem<'a>,
    steps: &'c [Step],
    options: &'c PlanOptions,
    moves: Vec<(VmIx, HostIx, HostIx)>,
    /// For each step, the steps that have ended whenever it starts.
    ancestors: Vec<Bits>,
    arrivals: HashMap<HostIx, Vec<usize>>,
    departures: HashMap<HostIx, Vec<usize>>,
    last_of: HashMap<VmIx, usize>,
    /// Memory and CPU on each host before the first step, migrations under way counted on both hosts.
    memory: Vec<u64>,
    cpu: Vec<u64>,
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
        for vm in &problem.vms {
            for host in [Some(vm.host), vm.bound_for].into_iter().flatten() {
                memory[host.0] = memory[host.0].saturating_add(vm.memory);
            }
            let runs_on = vm.bound_for.unwrap_or(vm.host);
            cpu[runs_on.0] = cpu[runs_on.0].saturating_add(vm.cpu);
        }
        let (steps, none) = (&plan.steps, HashMap::new());
        let (arrivals, departures) = (none.clone(), none);
        let (ancestors, last_of) = (Vec::new(), HashMap::new());
        Ok(Self {
            problem,
            steps,
            options,
            moves,
            ancestors,
            arrivals,
            departures,
            last_of,
            memory,
            cpu,
        })
    }

    fn check_step(&mut self, n: usize) -> Result<(), String> {
        let (vm, from, to) = self.moves[n];
        self.note_ancestors(n)?;
        self.check_vm(n)?;
        self.check_target(n)?;
        self.check_apart(n)?;
        self.last_of.insert(vm, n);
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
        let at = match self.last_of.get(&vm) {
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

    /// Every VM to be kept apart from this one that is or was on the target has left before it starts.
    fn check_apart(&self, n: usize) -> Result<(), String> {
        let (vm, from, to) = self.moves[n];
        for (ix, _) in &self.problem.vm(vm).rules {
            let rule = self.problem.rule(*ix);
            let RuleBody::Apart { most } = rule.body else { continue };
            let domain = rule.domain[to.0];
            if !rule.is_continuous() || rule.domain[from.0] == domain {
                continue;
            }
            let there = |host: HostIx| rule.domain[host.0] == domain;
            let others = rule.vms.iter().filter(|other| **other != vm);
            let met: Vec<VmIx> =
                others.copied().filter(|other| self.meets(n, *other, &there)).collect();
            if met.len() >= most as usize {
                let other = met.last().map_or("", |other| self.problem.vm(*other).id.as_str());
                return Err(format!("rule {}: VM {other} may still be there", rule.id));
            }
        }
        Ok(())
    }

    /// Whether step `n` may find `other` on one of the hosts.
    fn meets(&self, n: usize, other: VmIx, there: &impl Fn(HostIx) -> bool) -> bool {
        let info = self.problem.vm(other);
        if info.bound_for.is_some_and(there) {
            return true;
        }
        let own = |i: &usize| self.moves[*i].0 == other;
        let came = (0..n).filter(|i| own(i) && there(self.moves[*i].2)).count();
        let left = |i: &usize| own(i) && there(self.moves[*i].1) && self.ancestors[n].contains(*i);
        usize::from(there(info.host)) + came > (0..n).filter(left).count()
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
