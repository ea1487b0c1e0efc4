//! Where every VM is while a plan is being worked out, and what may move.
//!
//! One `State` belongs to one solver run. It starts as the snapshot and changes
//! only by [`State::shift`]; loads are whole numbers, so the same placement is
//! the same state however it was reached.

use std::collections::{BTreeMap, BTreeSet};

use ballast_model::{Bytes, Ratio, Resources};

use crate::options::PlanOptions;
use crate::problem::{HostIx, Problem, RuleIx, VmIx};
use crate::score::{CPU, Change, MEMORY, METRICS, Sums};

/// Why a move is made. The order is the order of urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// It breaks a hard rule.
    Rule(RuleIx),
    /// Its host holds more memory than it has.
    Capacity,
    /// Its host is being emptied.
    Drain,
    /// It is where a preference does not want it.
    Preference(RuleIx),
    /// The load is more level afterwards.
    Balance,
}

impl Cause {
    /// Whether the move must be made even if the target's CPU gets tight.
    pub(crate) fn is_forced(self) -> bool {
        matches!(self, Self::Rule(_) | Self::Capacity | Self::Drain)
    }
}

/// One move. A list of them is made one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) vm: VmIx,
    pub(crate) from: HostIx,
    pub(crate) to: HostIx,
    pub(crate) cause: Cause,
    /// The first half of a swap: only with the next move does it pay.
    pub(crate) opens_swap: bool,
}

/// What stands between a VM and a target, whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    Here,
    Draining,
    Unknown,
    Memory { free: Bytes },
    Apart { rule: RuleIx },
    Forbidden { rule: RuleIx },
}

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
    /// For each anti-affinity rule, how many of its VMs each host has, in-flight ones on both hosts.
    apart: Vec<BTreeMap<HostIx, u32>>,
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
            apart: vec![BTreeMap::new(); problem.rules.len()],
            sums: Sums::default(),
        };
        for vm in problem.vm_ixs() {
            let info = problem.vm(vm);
            let at = info.bound_for.unwrap_or(info.host);
            state.at.push(at);
            state.enter(vm, at);
            if at != info.host {
                state.held[info.host.0] = state.held[info.host.0].saturating_add(info.memory);
                for rule in &info.anti {
                    *state.apart[rule.0].entry(info.host).or_default() += 1;
                }
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

    pub(crate) fn apart_on(&self, rule: RuleIx, host: HostIx) -> u32 {
        self.apart[rule.0].get(&host).copied().unwrap_or(0)
    }

    /// Hosts with more than one VM of an anti-affinity rule.
    pub(crate) fn crowded(&self, rule: RuleIx) -> Vec<HostIx> {
        self.apart[rule.0].iter().filter(|(_, n)| **n > 1).map(|(host, _)| *host).collect()
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

    /// What keeps the VM from `to` for now, for whatever reason it moves.
    pub(crate) fn obstacle(&self, vm: VmIx, to: HostIx) -> Option<Obstacle> {
        let (info, host) = (self.problem.vm(vm), self.problem.host(to));
        if self.at(vm) == to {
            return Some(Obstacle::Here);
        }
        if host.draining() {
            return Some(Obstacle::Draining);
        }
        if !host.counts() {
            return Some(Obstacle::Unknown);
        }
        let free = self.memory_free(to);
        if info.memory > free.get() {
            return Some(Obstacle::Memory { free });
        }
        if let Some(rule) = info.must.iter().find(|rule| !self.problem.rule_allows(**rule, to)) {
            return Some(Obstacle::Forbidden { rule: *rule });
        }
        let crowd = info.anti.iter().find(|rule| self.apart_on(**rule, to) > 0);
        crowd.map(|rule| Obstacle::Apart { rule: *rule })
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
        self.gain_after(self.departure(vm), vm, to)
    }

    /// What the VM's departure changes on its host; nothing that counts when the host does not count.
    pub(crate) fn departure(&self, vm: VmIx) -> Change {
        let (info, from) = (self.problem.vm(vm), self.at(vm));
        if !self.problem.host(from).counts() {
            return Change::default();
        }
        let after = self.loads_with(from, -to_signed(info.cpu), -to_signed(info.memory));
        (self.loads(from), after)
    }

    /// [`Self::gain`] with the departure worked out beforehand, for many targets.
    pub(crate) fn gain_after(&self, departure: Change, vm: VmIx, to: HostIx) -> f64 {
        let info = self.problem.vm(vm);
        let after = self.loads_with(to, to_signed(info.cpu), to_signed(info.memory));
        self.sums.fall(&[departure, (self.loads(to), after)])
    }

    /// By how much the spread rises when something of this size starts on a host that counts.
    pub(crate) fn rise(&self, host: HostIx, size: Resources) -> f64 {
        let (cpu, memory) = (to_signed(size.cpu.get()), to_signed(size.memory.get()));
        -self.sums.fall(&[(self.loads(host), self.loads_with(host, cpu, memory))])
    }

    /// By how much the spread falls when two VMs on hosts that count change places.
    pub(crate) fn swap_gain(&self, one: VmIx, other: VmIx) -> f64 {
        let (a, b) = (self.problem.vm(one), self.problem.vm(other));
        let cpu = to_signed(b.cpu) - to_signed(a.cpu);
        let memory = to_signed(b.memory) - to_signed(a.memory);
        let (from, to) = (self.at(one), self.at(other));
        self.sums.fall(&[
            (self.loads(from), self.loads_with(from, cpu, memory)),
            (self.loads(to), self.loads_with(to, -cpu, -memory)),
        ])
    }

    /// Moves the VM. What may move is the caller's business.
    pub(crate) fn shift(&mut self, vm: VmIx, to: HostIx) {
        let from = self.at(vm);
        let info = self.problem.vm(vm);
        self.on[from.0].remove(&vm);
        self.load[CPU][from.0] = self.load[CPU][from.0].saturating_sub(info.cpu);
        self.load[MEMORY][from.0] = self.load[MEMORY][from.0].saturating_sub(info.memory);
        for rule in &info.anti {
            if let Some(count) = self.apart[rule.0].get_mut(&from) {
                *count = count.saturating_sub(1);
            }
        }
        self.at[vm.0] = to;
        self.enter(vm, to);
        self.note_shares(from);
        self.note_shares(to);
        self.sum_up();
    }

    fn note_shares(&mut self, host: HostIx) {
        self.shares[host.0] = self.loads_with(host, 0, 0);
    }

    fn enter(&mut self, vm: VmIx, host: HostIx) {
        let info = self.problem.vm(vm);
        self.on[host.0].insert(vm);
        self.load[CPU][host.0] = self.load[CPU][host.0].saturating_add(info.cpu);
        self.load[MEMORY][host.0] = self.load[MEMORY][host.0].saturating_add(info.memory);
        for rule in &info.anti {
            *self.apart[rule.0].entry(host).or_default() += 1;
        }
    }

    fn sum_up(&mut self) {
        let counted = self.problem.host_ixs().filter(|host| self.problem.host(*host).counts());
        self.sums = Sums::new(counted.map(|host| self.loads(host)));
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
