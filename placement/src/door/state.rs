//! Where every VM is while a plan is being worked out, and what may move.
//!
//! One `State` belongs to one solver run. It starts as the snapshot and changes
//! only by [`State::shift`]; loads are whole numbers, so the same placement is
//! the same state however it was reached.

use std::collections::BTreeSet;

use ballast_model::{Bytes, Ratio, Resources};

use super::obstacle::RuleChange;
use super::problem::{HostIx, Problem, RuleIx, VmIx};
use super::reach::Coming;
use super::rules::{Role, RuleBody, Tally};
use crate::options::PlanOptions;
use crate::score::{CPU, Change, Load, MEMORY, METRICS, Sums};

/// Why a move is made. The order is the order of urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// It breaks a hard rule.
    Rule(RuleIx),
    /// Its host does not offer what it needs.
    Needs,
    /// Its host holds more memory than it has.
    Capacity,
    /// Its host is being emptied.
    Drain,
    /// Its host is under suspicion.
    Quarantine,
    /// It is where a preference does not want it.
    Preference(RuleIx),
    /// The load is more level afterwards.
    Balance,
}

impl Cause {
    /// Whether the move must be made even if the target's CPU gets tight.
    pub(crate) fn is_forced(self) -> bool {
        matches!(self, Self::Rule(_) | Self::Needs | Self::Capacity | Self::Drain)
    }
}

/// One move. A list of them is made one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) vm: VmIx,
    pub(crate) from: HostIx,
    pub(crate) to: HostIx,
    pub(crate) cause: Cause,
}

#[derive(Clone)]
pub(crate) struct State<'p, 'a> {
    pub(crate) problem: &'p Problem<'a>,
    /// Where each VM is; a VM in flight counts as arrived.
    at: Vec<HostIx>,
    on: Vec<BTreeSet<VmIx>>,
    /// Load by metric and host, in millicores and bytes.
    load: [Vec<u64>; METRICS.len()],
    /// The same as shares of the capacity, by host.
    shares: Vec<[f64; METRICS.len()]>,
    /// Memory held on the other end of migrations under way, in bytes.
    held: Vec<u64>,
    /// CPU sizes of the VMs on each host, those in flight on both, in millicores.
    sizes: Vec<u64>,
    /// Bytes of local disks that came with VMs. What those that left give back is not counted: their disks are deleted
    /// only after they run elsewhere.
    disks_come: Vec<u64>,
    /// What each rule counts, VMs in flight on both hosts.
    tallies: Vec<Tally>,
    sums: Sums,
}

impl<'p, 'a> State<'p, 'a> {
    pub(crate) fn new(problem: &'p Problem<'a>) -> Self {
        let hosts = problem.hosts.len();
        let mut state = Self {
            problem,
            at: Vec::with_capacity(problem.vms.len()),
            on: vec![BTreeSet::new(); hosts],
            load: [CPU, MEMORY].map(|m| problem.hosts.iter().map(|h| h.overhead[m]).collect()),
            shares: vec![[0.0; METRICS.len()]; hosts],
            held: vec![0; hosts],
            sizes: vec![0; hosts],
            disks_come: vec![0; hosts],
            tallies: problem.rules.iter().map(Tally::new).collect(),
            sums: Sums::default(),
        };
        for vm in problem.vm_ixs() {
            let info = problem.vm(vm);
            let at = info.bound_for.unwrap_or(info.host);
            state.at.push(at);
            state.enter(vm, at);
            if at != info.host {
                state.held[info.host.0] = state.held[info.host.0].saturating_add(info.memory);
                state.sizes[info.host.0] = state.sizes[info.host.0].saturating_add(info.cpu_size);
                state.note_rules(vm, info.host, 1);
            }
        }
        problem.host_ixs().for_each(|host| state.note_shares(host));
        state.sum_up();
        state
    }

    pub(crate) fn at(&self, vm: VmIx) -> HostIx {
        self.at[vm.0]
    }

    pub(crate) fn vms_on(&self, host: HostIx) -> &BTreeSet<VmIx> {
        &self.on[host.0]
    }

    pub(crate) fn sums(&self) -> &Sums {
        &self.sums
    }

    pub(crate) fn tally(&self, rule: RuleIx) -> &Tally {
        &self.tallies[rule.0]
    }

    pub(crate) fn fault(&self, rule: RuleIx) -> u32 {
        self.tallies[rule.0].fault(self.problem.rule(rule))
    }

    pub(crate) fn cpu_sizes(&self, host: HostIx) -> u64 {
        self.sizes[host.0]
    }

    /// Bytes of local disks that came to the host with VMs.
    pub(crate) fn disks_come(&self, host: HostIx) -> u64 {
        self.disks_come[host.0]
    }

    /// Whether the VM has a part in the fault of a rule: with it elsewhere the rule could be nearer to holding.
    pub(crate) fn is_at_fault(&self, vm: VmIx, rule: RuleIx) -> bool {
        let (info, tally, at) = (self.problem.rule(rule), self.tally(rule), self.at(vm));
        if tally.fault(info) == 0 {
            return false;
        }
        match &info.body {
            RuleBody::Hosts { allowed } => !allowed[at.0],
            RuleBody::Apart { most } => tally.near(info, at) > *most,
            RuleBody::Distinct { .. } => tally.near(info, at) > 1,
            // The few move to the many; who is where the rule counts nobody has no part in it.
            RuleBody::Within { most } => tally.is_beyond_fullest(info, at, *most),
            RuleBody::Near => tally.needed_near(info, at) == 0,
            RuleBody::Among { groups } => {
                tally.best_group().is_none_or(|group| !groups[group][at.0])
            }
        }
    }

    /// The weight of preferences that would be broken with the VM there, less what is broken with it where it is.
    pub(crate) fn preference_change(&self, vm: VmIx, to: HostIx) -> i64 {
        let mut sum = 0;
        for (ix, role) in &self.problem.vm(vm).rules {
            let weight = self.problem.rule(*ix).weight();
            if weight > 0 {
                let change = self.change(*ix, *role, Some(self.at(vm)), to);
                sum += to_signed(weight) * (i64::from(change.after) - i64::from(change.before));
            }
        }
        sum
    }

    /// By how much the faults of all hard rules together rise.
    pub(crate) fn fault_change(&self, vm: VmIx, to: HostIx) -> i64 {
        self.hard_change(vm, Some(self.at(vm)), to)
    }

    /// Why the VM, where it is, would go to `to`.
    pub(crate) fn cause_of(&self, vm: VmIx, to: HostIx) -> Cause {
        let at = self.at(vm);
        let host = self.problem.host(at);
        if host.draining() {
            return Cause::Drain;
        }
        if let Some(rule) = self.rule_broken(vm) {
            return Cause::Rule(rule);
        }
        if self.lacks_needed(vm) {
            return Cause::Needs;
        }
        if self.memory_taken(at) > host.memory {
            return Cause::Capacity;
        }
        if host.quarantined() {
            return Cause::Quarantine;
        }
        let missed = self.preference_missed(vm).filter(|_| self.preference_change(vm, to) < 0);
        missed.unwrap_or(Cause::Balance)
    }

    /// The state that these moves lead to.
    pub(crate) fn after(&self, moves: &[Move]) -> Self {
        let mut reached = self.clone();
        moves.iter().for_each(|step| reached.shift(step.vm, step.to));
        reached
    }

    /// Whether the host where the VM is does not offer what it needs.
    pub(crate) fn lacks_needed(&self, vm: VmIx) -> bool {
        !self.problem.reach.meets(vm, self.at(vm), Coming::Starting)
    }

    /// A preference that the VM has a part in breaking.
    pub(crate) fn preference_missed(&self, vm: VmIx) -> Option<Cause> {
        let rules = self.problem.vm(vm).rules.iter();
        let mut soft = rules.filter(|(ix, role)| role.bound && !self.problem.rule(*ix).is_must());
        soft.find(|(ix, _)| self.is_at_fault(vm, *ix)).map(|(ix, _)| Cause::Preference(*ix))
    }

    /// The weight of preferences that a VM taken out would break by starting on `host`.
    pub(crate) fn preferences_to_start(&self, vm: VmIx, host: HostIx) -> i64 {
        let rules = self.problem.vm(vm).rules.iter();
        rules
            .map(|(ix, role)| {
                let weight = to_signed(self.problem.rule(*ix).weight());
                let change = self.change(*ix, *role, None, host);
                weight * (i64::from(change.after) - i64::from(change.before))
            })
            .sum()
    }

    /// By how much the faults of all hard rules together rise when a VM taken out starts on `host`; less than zero when
    /// others miss it.
    pub(crate) fn faults_to_start(&self, vm: VmIx, host: HostIx) -> i64 {
        self.hard_change(vm, None, host)
    }

    fn hard_change(&self, vm: VmIx, from: Option<HostIx>, to: HostIx) -> i64 {
        let hard =
            self.problem.vm(vm).rules.iter().filter(|(ix, _)| self.problem.rule(*ix).is_must());
        hard.map(|(ix, role)| {
            let change = self.change(*ix, *role, from, to);
            i64::from(change.after) - i64::from(change.before)
        })
        .sum()
    }

    /// A hard rule that the VM has a part in breaking; those that only a host breaks come first.
    pub(crate) fn rule_broken(&self, vm: VmIx) -> Option<RuleIx> {
        let rules = self.problem.vm(vm).rules.iter();
        let hard = rules.filter(|(ix, role)| role.bound && self.problem.rule(*ix).is_must());
        let mut broken: Vec<RuleIx> =
            hard.map(|(ix, _)| *ix).filter(|ix| self.is_at_fault(vm, *ix)).collect();
        broken.sort_by_key(|ix| self.problem.rule_allows(*ix, self.at(vm)));
        broken.first().copied()
    }

    /// A hard rule that has to hold only in the end, and that would be further from that.
    pub(crate) fn discrete_broken(&self, vm: VmIx, to: HostIx) -> Option<RuleIx> {
        let worse = |(ix, role): &&(RuleIx, Role)| {
            let rule = self.problem.rule(*ix);
            let change = || self.change(*ix, *role, Some(self.at(vm)), to);
            let is_worse = |change: RuleChange| change.after > change.before;
            rule.is_must() && !rule.is_continuous() && is_worse(change())
        };
        self.problem.vm(vm).rules.iter().find(worse).map(|(ix, _)| *ix)
    }

    /// Memory in use or promised, in bytes.
    pub(crate) fn memory_taken(&self, host: HostIx) -> u64 {
        self.load[MEMORY][host.0].saturating_add(self.held[host.0])
    }

    /// The part of [`Self::memory_taken`] that is held for VMs that are leaving.
    pub(crate) fn memory_held(&self, host: HostIx) -> u64 {
        self.held[host.0]
    }

    pub(crate) fn memory_free(&self, host: HostIx) -> Bytes {
        Bytes(self.problem.host(host).memory.saturating_sub(self.memory_taken(host)))
    }

    pub(crate) fn cpu(&self, host: HostIx) -> u64 {
        self.load[CPU][host.0]
    }

    /// The host's load, for people.
    pub(crate) fn share(&self, host: HostIx, metric: usize) -> Ratio {
        Ratio::new(self.loads(host)[metric])
    }

    /// The share of its CPU capacity the target would reach.
    pub(crate) fn cpu_share_after(&self, vm: VmIx, to: HostIx) -> f64 {
        let after = self.cpu(to).saturating_add(self.problem.vm(vm).cpu);
        after as f64 / self.problem.host(to).cpu.max(1) as f64
    }

    /// Whether the move keeps the CPU limit its cause has.
    pub(crate) fn cpu_allows(
        &self,
        vm: VmIx,
        to: HostIx,
        cause: Cause,
        options: &PlanOptions,
    ) -> bool {
        cause.is_forced() || self.cpu_share_after(vm, to) <= options.cpu_ceiling.get()
    }

    /// By how much the spread falls when the VM goes to `to`.
    pub(crate) fn gain(&self, vm: VmIx, to: HostIx) -> f64 {
        self.gain_of(self.at(vm), self.problem.vm(vm).load(), to)
    }

    /// By how much the spread falls when VMs of that load go from one host to the other.
    pub(crate) fn gain_of(&self, from: HostIx, load: Load, to: HostIx) -> f64 {
        self.gain_after(self.departure(from, load), load, to)
    }

    /// What the departure of VMs of that load changes on their host; nothing that counts when the host does not count.
    pub(crate) fn departure(&self, from: HostIx, load: Load) -> Change {
        if !self.problem.host(from).counts() {
            return Change::default();
        }
        let [cpu, memory] = load.map(to_signed);
        (self.loads(from), self.loads_with(from, -cpu, -memory))
    }

    /// [`Self::gain_of`] with the departure worked out beforehand, for many targets.
    pub(crate) fn gain_after(&self, departure: Change, load: Load, to: HostIx) -> f64 {
        let [cpu, memory] = load.map(to_signed);
        self.sums.fall(&[departure, (self.loads(to), self.loads_with(to, cpu, memory))])
    }

    /// By how much the spread rises when something of this size starts on a host that counts.
    pub(crate) fn rise(&self, host: HostIx, size: Resources) -> f64 {
        let (cpu, memory) = (to_signed(size.cpu.get()), to_signed(size.memory.get()));
        -self.sums.fall(&[(self.loads(host), self.loads_with(host, cpu, memory))])
    }

    /// By how much the spread falls when two VMs on hosts that count change places.
    pub(crate) fn swap_gain(&self, one: VmIx, other: VmIx) -> f64 {
        let side = |vm: VmIx| (self.at(vm), self.problem.vm(vm).load());
        self.exchange_gain(side(one), side(other))
    }

    /// By how much the spread falls when VMs of such loads on two hosts that count change places.
    pub(crate) fn exchange_gain(&self, one: (HostIx, Load), other: (HostIx, Load)) -> f64 {
        let ((a, gone), (b, come)) = (one, other);
        let cpu = to_signed(come[CPU]) - to_signed(gone[CPU]);
        let memory = to_signed(come[MEMORY]) - to_signed(gone[MEMORY]);
        self.sums.fall(&[
            (self.loads(a), self.loads_with(a, cpu, memory)),
            (self.loads(b), self.loads_with(b, -cpu, -memory)),
        ])
    }

    /// Moves the VM. What may move is the caller's business.
    pub(crate) fn shift(&mut self, vm: VmIx, to: HostIx) {
        let from = self.at(vm);
        self.leave(vm);
        self.at[vm.0] = to;
        self.enter(vm, to);
        self.note_shares(from);
        self.note_shares(to);
        self.sum_up();
    }

    /// Puts a VM that was taken out on a host. Whether it may start there is the caller's business.
    pub(crate) fn start(&mut self, vm: VmIx, to: HostIx) {
        self.at[vm.0] = to;
        self.enter(vm, to);
        self.note_shares(to);
        self.sum_up();
    }

    /// Takes the VM out of the cluster: one that has yet to start, or to start again.
    pub(crate) fn lift(&mut self, vm: VmIx) {
        self.leave(vm);
        self.note_shares(self.at(vm));
        self.sum_up();
    }

    fn leave(&mut self, vm: VmIx) {
        let (from, info) = (self.at(vm), self.problem.vm(vm));
        self.on[from.0].remove(&vm);
        self.load[CPU][from.0] = self.load[CPU][from.0].saturating_sub(info.cpu);
        self.load[MEMORY][from.0] = self.load[MEMORY][from.0].saturating_sub(info.memory);
        self.sizes[from.0] = self.sizes[from.0].saturating_sub(info.cpu_size);
        if from != info.host {
            let come = &mut self.disks_come[from.0];
            *come = come.saturating_sub(info.vm.local_disks.get());
        }
        self.note_rules(vm, from, -1);
    }

    fn note_shares(&mut self, host: HostIx) {
        self.shares[host.0] = self.loads_with(host, 0, 0);
    }

    fn enter(&mut self, vm: VmIx, host: HostIx) {
        let info = self.problem.vm(vm);
        self.on[host.0].insert(vm);
        self.load[CPU][host.0] = self.load[CPU][host.0].saturating_add(info.cpu);
        self.load[MEMORY][host.0] = self.load[MEMORY][host.0].saturating_add(info.memory);
        self.sizes[host.0] = self.sizes[host.0].saturating_add(info.cpu_size);
        if host != info.host {
            let come = &mut self.disks_come[host.0];
            *come = come.saturating_add(info.vm.local_disks.get());
        }
        self.note_rules(vm, host, 1);
    }

    fn note_rules(&mut self, vm: VmIx, host: HostIx, by: i32) {
        for (rule, role) in &self.problem.vm(vm).rules {
            self.tallies[rule.0].note(self.problem.rule(*rule), host, *role, by);
        }
    }

    fn sum_up(&mut self) {
        let loads = self.problem.counted.iter().map(|host| self.shares[host.0]);
        self.sums = Sums::new(self.problem.weights, loads);
    }

    pub(crate) fn loads(&self, host: HostIx) -> [f64; METRICS.len()] {
        self.shares[host.0]
    }

    fn loads_with(&self, host: HostIx, cpu: i64, memory: i64) -> [f64; METRICS.len()] {
        let info = self.problem.host(host);
        let share = |load: u64, change: i64, capacity: u64| {
            load.saturating_add_signed(change) as f64 / capacity.max(1) as f64
        };
        [
            share(self.load[CPU][host.0], cpu, info.cpu),
            share(self.load[MEMORY][host.0], memory, info.memory),
        ]
    }
}

fn to_signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}
