//! From a numbered snapshot to the solver's problem, and back to moves.
//!
//! Hosts and VMs keep their numbers. What cannot change (a VM in flight, one
//! that may not move) is pinned where it is; a VM in flight also holds memory
//! where it comes from. Rules become counts of groups by domain, hosts and needs
//! become sets of hosts a VM may use, and quarantine is a preference for
//! elsewhere that weighs less than any rule.

use std::collections::HashMap;

use ballast_model::{DrainGoal, Refusal};

use super::obstacle::lacking;
use super::problem::{HostIx, Problem, VmIx};
use super::reach::Coming;
use super::rules::{RuleBody, RuleInfo};
use super::state::{Cause, State};
use crate::core::{
    Assignment, Host, HostSet, HostSpec, Item, ItemSpec, Partition, Place, Problem as Dense,
    ProblemBuilder, ResourceSpec, RuleKind, RuleSpec, Strength, UTILISATION_ONE,
};
use crate::objective::search_table;
use crate::options::PlanOptions;
use crate::score::{CPU, MEMORY, METRICS};

/// Preferences count this much more than leaving a quarantined host.
const RULE_OVER_QUARANTINE: i64 = 1 << 16;
/// Memory is counted in units of this many bytes, rounded against us.
const MEMORY_UNIT: u64 = 1 << 20;

/// The solver's problem for a snapshot. With the drains of [`DrainGoal::LeastDisturbing`] only VMs of draining hosts can
/// move in it.
///
/// # Errors
/// `InvalidArgument` when amounts are so large that the objective could leave its range.
pub(crate) fn problem(problem: &Problem<'_>, options: &PlanOptions) -> Result<Dense, Refusal> {
    let mut dense = Builder {
        problem,
        options,
        disks: tells_of_disks(problem),
        builder: ProblemBuilder::new(search_table()),
        sets: HashMap::new(),
        partitions: HashMap::new(),
    };
    dense.resources();
    dense.hosts();
    dense.items();
    dense.rules();
    dense.builder.build()
}

/// The largest weight of balance times the number of hosts: squares of utilisation times this are still far from 64 bits.
const WEIGHT_TIMES_HOSTS_MAX: i64 = 1 << 16;

/// The weights of CPU and memory in small whole numbers; less exact where there are very many hosts.
fn balance_weights(problem: &Problem<'_>) -> [i64; METRICS.len()] {
    let policy = problem.snapshot.policy.balance;
    let mut weights = [i64::from(policy.cpu), i64::from(policy.memory)];
    let hosts = problem.hosts.len() as i64;
    while weights.iter().any(|weight| *weight > 1 && weight * hosts > WEIGHT_TIMES_HOSTS_MAX) {
        weights = weights.map(|weight| (weight + 1) / 2);
    }
    weights
}

/// What the spread of one host that is off by all its capacity comes to in the last level of the objective, by the
/// metric that counts most.
pub(crate) fn spread_unit(problem: &Problem<'_>) -> f64 {
    let most = balance_weights(problem).into_iter().fold(1, i64::max);
    (UTILISATION_ONE * UTILISATION_ONE * most) as f64
}

/// What a move costs in the last level of the objective.
pub(crate) fn move_cost(problem: &Problem<'_>, options: &PlanOptions) -> f64 {
    (options.gain_floor() * spread_unit(problem)).ceil()
}

/// The VMs that are elsewhere in `found` than where they are now.
pub(crate) fn changes(state: &State<'_, '_>, found: &Assignment) -> Vec<(VmIx, HostIx)> {
    let place = |vm: VmIx| found.host(Item(vm.number())).map(|host| HostIx(host.ix()));
    let elsewhere = |vm: VmIx| place(vm).filter(|host| *host != state.at(vm)).map(|to| (vm, to));
    state.problem.vm_ixs().filter_map(elsewhere).collect()
}

/// Where every VM is in that state, as the solver says it.
pub(crate) fn assignment(state: &State<'_, '_>) -> Assignment {
    let place = |vm: VmIx| Some(Place::on(Host(state.at(vm).number())));
    Assignment::from_places(state.problem.vm_ixs().map(place))
}

/// Whether some VM has local disks, and some host says how much room it has.
fn tells_of_disks(problem: &Problem<'_>) -> bool {
    let has_some = |vm: VmIx| problem.vm(vm).vm.local_disks.get() > 0;
    let tells = |host: HostIx| problem.host(host).host.local_disk_room.is_some();
    problem.vm_ixs().any(has_some) && problem.host_ixs().any(tells)
}

struct Builder<'b, 'a> {
    problem: &'b Problem<'a>,
    options: &'b PlanOptions,
    /// Whether room for local disks is a resource.
    disks: bool,
    builder: ProblemBuilder,
    sets: HashMap<Vec<bool>, HostSet>,
    partitions: HashMap<Vec<u32>, Partition>,
}

fn amount(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX).min(crate::core::AMOUNT_MAX)
}

impl Builder<'_, '_> {
    /// CPU demanded, memory admitted, CPU size admitted, and room for local disks where that is told. Memory is held on
    /// both hosts only while a VM moves, which is for the ordering to see to.
    fn resources(&mut self) {
        let weights = balance_weights(self.problem);
        self.builder.resource(ResourceSpec {
            safety_weight: 1,
            imbalance_weight: weights[CPU],
            ..ResourceSpec::demand()
        });
        self.builder.resource(ResourceSpec {
            imbalance_weight: weights[MEMORY],
            ..ResourceSpec::allocation()
        });
        self.builder.resource(ResourceSpec::allocation());
        if self.disks {
            // The disk of a VM that left is deleted only after it runs elsewhere.
            self.builder.resource(ResourceSpec { transient: true, ..ResourceSpec::allocation() });
        }
    }

    fn hosts(&mut self) {
        let state = State::new(self.problem);
        for host in self.problem.host_ixs() {
            let info = self.problem.host(host);
            let held = state.memory_held(host).saturating_add(info.overhead[1]);
            let cpu = info.cpu.saturating_sub(info.overhead[0]);
            let ceiling = self.options.cpu_ceiling.get() * info.cpu as f64;
            #[allow(clippy::cast_possible_truncation)] // saturates
            let safety = (ceiling - info.overhead[0] as f64).max(0.0) as i64;
            let memory = info.memory.saturating_sub(held) / MEMORY_UNIT;
            let sizes = info.cpu_admitted.unwrap_or(u64::MAX);
            let mut capacity = vec![amount(cpu), amount(memory), amount(sizes)];
            let mut safety = vec![safety, crate::core::AMOUNT_MAX, crate::core::AMOUNT_MAX];
            if self.disks {
                capacity.push(self.disk_room(host));
                safety.push(crate::core::AMOUNT_MAX);
            }
            self.builder.host(HostSpec {
                capacity,
                safety,
                closed: !info.counts(),
                drained: info.draining() && info.known && self.options.causes.drain,
                unbalanced: !info.counts(),
                activation: 0,
            });
        }
    }

    /// Room for local disks on a host, with what those take that are there.
    fn disk_room(&self, host: HostIx) -> i64 {
        let Some(room) = self.problem.host(host).host.local_disk_room else {
            return crate::core::AMOUNT_MAX;
        };
        let is_there = |vm: &VmIx| {
            let info = self.problem.vm(*vm);
            info.host == host && info.bound_for.is_none_or(|bound| bound == host)
        };
        let units = |vm: VmIx| self.problem.vm(vm).vm.local_disks.get().div_ceil(MEMORY_UNIT);
        let taken = self.problem.vm_ixs().filter(is_there).map(units);
        amount(taken.fold(room.get() / MEMORY_UNIT, u64::saturating_add))
    }

    fn items(&mut self) {
        let floor = move_cost(self.problem, self.options);
        for vm in self.problem.vm_ixs() {
            let info = self.problem.vm(vm);
            let at = info.bound_for.unwrap_or(info.host);
            let allowed = self.allowed(vm);
            let allowed = self.set(allowed);
            let cause = self.cause(at);
            let mut shape = vec![
                amount(info.cpu),
                amount(info.memory.div_ceil(MEMORY_UNIT)),
                amount(info.cpu_size),
            ];
            if self.disks {
                shape.push(amount(info.vm.local_disks.get().div_ceil(MEMORY_UNIT)));
            }
            self.builder.item(ItemSpec {
                shapes: vec![shape],
                home: Some(Place::on(Host(at.number()))),
                pinned: !self.problem.may_move(vm, cause) || self.is_undisturbed(at),
                #[allow(clippy::cast_possible_truncation)] // a share of a small number
                move_cost: (floor * info.price) as i64,
                move_bytes: info.memory,
                allowed: Some(allowed),
            });
            if self.problem.host(at).quarantined() && self.options.causes.drain {
                let elsewhere = (0..self.problem.hosts.len()).map(|host| host != at.0).collect();
                let elsewhere = self.set(elsewhere);
                self.builder.prefer(Item(vm.number()), elsewhere, 1);
            }
        }
    }

    /// Whether the VMs of the host are to stay if the others can do without.
    fn is_undisturbed(&self, host: HostIx) -> bool {
        self.options.drain == DrainGoal::LeastDisturbing && !self.problem.host(host).draining()
    }

    /// The most urgent thing that may move VMs of a host.
    fn cause(&self, host: HostIx) -> Cause {
        let info = self.problem.host(host);
        if info.draining() && self.options.causes.drain { Cause::Drain } else { Cause::Balance }
    }

    /// The hosts a VM may use by hard rules about hosts and by what it needs.
    fn allowed(&self, vm: VmIx) -> Vec<bool> {
        let info = self.problem.vm(vm);
        let suffices = |host| lacking(self.problem, vm, host, Coming::Moving).is_none();
        let mut allowed: Vec<bool> = self.problem.host_ixs().map(suffices).collect();
        for (ix, role) in &info.rules {
            if role.bound && self.problem.rule(*ix).is_must() {
                let host_allows = |host: usize| self.problem.rule_allows(*ix, HostIx(host));
                allowed.iter_mut().enumerate().for_each(|(host, flag)| *flag &= host_allows(host));
            }
        }
        allowed
    }

    fn set(&mut self, flags: Vec<bool>) -> HostSet {
        if let Some(set) = self.sets.get(&flags) {
            return *set;
        }
        let hosts = flags.iter().enumerate().filter(|(_, flag)| **flag);
        let set = self.builder.host_set(hosts.map(|(host, _)| Host(host as u32)).collect());
        self.sets.insert(flags, set);
        set
    }

    fn partition(&mut self, domains: &[u32]) -> Partition {
        if let Some(partition) = self.partitions.get(domains) {
            return *partition;
        }
        let some = domains.iter().map(|d| (*d != super::rules::NO_DOMAIN).then_some(*d)).collect();
        let partition = self.builder.partition(some);
        self.partitions.insert(domains.to_vec(), partition);
        partition
    }

    fn rules(&mut self) {
        let problem = self.problem;
        for rule in problem.rules.iter().filter(|rule| !rule.vms.is_empty()) {
            let strength = match rule.weight() {
                0 => Strength::Hard,
                weight => Strength::Soft(amount(weight) * RULE_OVER_QUARANTINE),
            };
            match &rule.body {
                RuleBody::Hosts { allowed } => self.prefer(rule, allowed.clone()),
                RuleBody::Apart { most } => {
                    self.count(rule, &rule.domain, RuleKind::AtMostPerDomain(*most), strength);
                }
                RuleBody::Distinct { least } => {
                    let least = (*least).min(rule.vms.len() as u32);
                    self.count(rule, &rule.domain, RuleKind::MinDomains(least), strength);
                }
                RuleBody::Within { most } => {
                    self.count(rule, &rule.domain, RuleKind::MaxDomains(*most), strength);
                }
                RuleBody::Near => {
                    let needs = rule.needs.iter().map(|vm| Item(vm.number())).collect();
                    let needs = self.builder.group(needs);
                    self.count(rule, &rule.domain, RuleKind::Requires(needs), strength);
                }
                RuleBody::Among { groups } => {
                    // A host in several groups counts in the first; a preference also sees hosts in none.
                    let first = |host: usize| {
                        let group = groups.iter().position(|group| group[host]);
                        group.unwrap_or(groups.len()) as u32
                    };
                    let domains: Vec<u32> = (0..problem.hosts.len()).map(first).collect();
                    let few = domains.iter().max().is_some_and(|d| *d as usize >= domains.len());
                    if !few {
                        self.count(rule, &domains, RuleKind::MaxDomains(1), strength);
                    }
                    let inside = domains.iter().map(|d| (*d as usize) < groups.len()).collect();
                    self.prefer(rule, inside);
                }
            }
        }
    }

    /// Of a preference; hard ones are part of what a VM is allowed.
    fn prefer(&mut self, rule: &RuleInfo<'_>, allowed: Vec<bool>) {
        if rule.is_must() {
            return;
        }
        let set = self.set(allowed);
        for vm in &rule.vms {
            let weight = amount(rule.weight()) * RULE_OVER_QUARANTINE;
            self.builder.prefer(Item(vm.number()), set, weight);
        }
    }

    fn count(&mut self, rule: &RuleInfo<'_>, domains: &[u32], kind: RuleKind, strength: Strength) {
        let partition = self.partition(domains);
        let group = self.builder.group(rule.vms.iter().map(|vm| Item(vm.number())).collect());
        self.builder.rule(RuleSpec { group, partition, kind, strength });
    }
}
