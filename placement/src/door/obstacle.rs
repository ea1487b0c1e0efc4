//! What keeps a VM from a host: one answer, whoever asks.

use ballast_model::Bytes;

use super::losses::Survey;
use super::problem::{HostIx, Problem, RuleIx, VmInfo, VmIx, times};
use super::reach::Coming;
use super::rules::{NO_DOMAIN, Role, RuleBody, RuleInfo, Tally};
use super::state::State;

/// What stands between a VM and a target, whatever it would move for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// It is there already.
    Here,
    /// The host is being emptied, or under suspicion.
    Closed,
    /// The host's load is unknown.
    Unknown,
    /// Too little memory is free.
    Memory { free: Bytes },
    /// The CPU sizes of its VMs would be more than the policy admits.
    Cpu,
    /// The host does not offer what the VM needs to come there so.
    Lacks { coming: Coming },
    /// No NUMA node of the host is large enough, or has enough left.
    Numa,
    /// The host has too little room for its local disks.
    Disk { room: Bytes },
    /// A rule of hosts or groups of hosts does not allow it.
    Forbidden { rule: RuleIx },
    /// Another rule that holds at every moment would be broken, or more than it is.
    Broken { rule: RuleIx },
    /// The loss of as many hosts as the policy tolerates would leave VMs without a place, or more than now.
    Intolerant,
}

impl State<'_, '_> {
    /// What keeps the VM from `to` for now, for whatever reason it moves.
    pub(crate) fn obstacle(&self, vm: VmIx, to: HostIx) -> Option<Obstacle> {
        self.obstacle_but_losses(vm, to)
            .or_else(|| (!Survey::new(self, vm).keeps(to)).then_some(Obstacle::Intolerant))
    }

    /// The same without the failures to tolerate, which are dearer to ask for: see [`Survey`].
    pub(crate) fn obstacle_but_losses(&self, vm: VmIx, to: HostIx) -> Option<Obstacle> {
        if self.at(vm) == to {
            return Some(Obstacle::Here);
        }
        self.closed_to(vm, to, Coming::Moving).or_else(|| self.rules_against(vm, to))
    }

    /// What keeps a VM that [`State::lift`] has taken out from starting on `to`. Every hard rule counts, also those that
    /// hold only in the end: nothing will move the VM afterwards.
    pub(crate) fn obstacle_to_start(&self, vm: VmIx, to: HostIx) -> Option<Obstacle> {
        if let Some(obstacle) = self.closed_to(vm, to, Coming::Starting) {
            return Some(obstacle);
        }
        let rules = self.problem.vm(vm).rules.iter();
        let must = rules.filter(|(ix, _)| self.problem.rule(*ix).is_must());
        must.into_iter().find_map(|(ix, role)| {
            if role.bound && !self.problem.rule_allows(*ix, to) {
                return Some(Obstacle::Forbidden { rule: *ix });
            }
            let change = self.change(*ix, *role, None, to);
            (change.after > change.before).then_some(Obstacle::Broken { rule: *ix })
        })
    }

    fn closed_to(&self, vm: VmIx, to: HostIx, coming: Coming) -> Option<Obstacle> {
        let (info, host) = (self.problem.vm(vm), self.problem.host(to));
        if host.draining() || host.quarantined() {
            return Some(Obstacle::Closed);
        }
        if !host.counts() {
            return Some(Obstacle::Unknown);
        }
        if let Some(obstacle) = lacking(self.problem, vm, to, coming) {
            return Some(obstacle);
        }
        if let Some(obstacle) = self.disks_against(vm, to) {
            return Some(obstacle);
        }
        if info.vm.one_numa_node && !host.host.numa.is_empty() && !self.node_fits(vm, to) {
            return Some(Obstacle::Numa);
        }
        let free = self.memory_free(to);
        // A host that holds too much takes nothing, not even what needs nothing.
        if info.memory > free.get() || self.memory_taken(to) > host.memory {
            return Some(Obstacle::Memory { free });
        }
        (!self.admits_cpu(to, info.cpu_size)).then_some(Obstacle::Cpu)
    }

    /// Whether the policy admits so many millicores of CPU size more on the host.
    pub(crate) fn admits_cpu(&self, host: HostIx, size: u64) -> bool {
        let sizes = self.cpu_sizes(host).saturating_add(size);
        self.problem.host(host).cpu_admitted.is_none_or(|admitted| sizes <= admitted)
    }

    /// Whether a NUMA node is left for the VM, those that are leaving still on theirs.
    fn node_fits(&self, vm: VmIx, to: HostIx) -> bool {
        let flights = self.problem.snapshot.migrations.iter();
        let leaving = flights
            .filter_map(|flight| self.problem.find_vm(&flight.vm))
            .filter(|vm| self.problem.vm(*vm).host == to && self.at(*vm) != to);
        let there = self.vms_on(to).iter().copied().chain(leaving);
        nodes_fit(self.problem, to, there.chain([vm]))
    }

    /// Whether the disks that come to a host leave too little room for the VM's.
    fn disks_against(&self, vm: VmIx, to: HostIx) -> Option<Obstacle> {
        let info = self.problem.vm(vm);
        let disks = info.vm.local_disks.get();
        if disks == 0 || info.host == to {
            return None;
        }
        let room = self.problem.host(to).host.local_disk_room?;
        let left = room.get().saturating_sub(self.disks_come(to));
        (disks > left).then_some(Obstacle::Disk { room: Bytes(left) })
    }

    fn rules_against(&self, vm: VmIx, to: HostIx) -> Option<Obstacle> {
        let at = self.at(vm);
        for (ix, role) in &self.problem.vm(vm).rules {
            let rule = self.problem.rule(*ix);
            if !rule.is_must() {
                continue;
            }
            if role.bound && !self.problem.rule_allows(*ix, to) {
                return Some(Obstacle::Forbidden { rule: *ix });
            }
            let change = self.change(*ix, *role, Some(at), to);
            if rule.is_continuous()
                && (change.during > change.before || change.after > change.before)
            {
                return Some(Obstacle::Broken { rule: *ix });
            }
        }
        None
    }

    /// How the fault of a rule changes when a VM with this role goes from one host to another.
    pub(crate) fn change(
        &self,
        rule: RuleIx,
        role: Role,
        from: Option<HostIx>,
        to: HostIx,
    ) -> RuleChange {
        let info = self.problem.rule(rule);
        let tally = self.tally(rule);
        let before = tally.fault(info);
        if let Some(quick) = quick_change(info, tally, before, from, to, role) {
            return quick;
        }
        let mut moved = tally.clone();
        moved.note(info, to, role, 1);
        let during = moved.fault(info);
        if let Some(from) = from {
            moved.note(info, from, role, -1);
        }
        RuleChange { before, during, after: moved.fault(info) }
    }
}

/// A rule's fault before, during and after a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RuleChange {
    pub(crate) before: u32,
    pub(crate) during: u32,
    pub(crate) after: u32,
}

/// The frequent kinds without a copy of the tally.
fn quick_change(
    rule: &RuleInfo<'_>,
    tally: &Tally,
    before: u32,
    from: Option<HostIx>,
    to: HostIx,
    role: Role,
) -> Option<RuleChange> {
    match &rule.body {
        RuleBody::Hosts { allowed } => {
            let wrong = |host: HostIx| u32::from(!allowed[host.0]);
            let during = before + wrong(to);
            let after = during.saturating_sub(from.map_or(0, wrong));
            Some(RuleChange { before, during, after })
        }
        RuleBody::Apart { most } if role.bound => {
            if from.is_some_and(|from| rule.domain[from.0] == rule.domain[to.0]) {
                return Some(RuleChange { before, during: before, after: before });
            }
            let during = before + u32::from(tally.near(rule, to) >= *most);
            let leaves = from.is_some_and(|from| tally.near(rule, from) > *most);
            Some(RuleChange { before, during, after: during.saturating_sub(u32::from(leaves)) })
        }
        RuleBody::Within { most } if role.bound => {
            let (here, there) = (from.map(|from| rule.domain[from.0]), rule.domain[to.0]);
            if here == Some(there) {
                return Some(RuleChange { before, during: before, after: before });
            }
            let opens = there != NO_DOMAIN && tally.in_domain(there, false) == 0;
            let closes = here.is_some_and(|here| tally.in_domain(here, false) == 1);
            let used = tally.domains() + u32::from(opens);
            let fault = |domains: u32| domains.saturating_sub(*most);
            let after = fault(used - u32::from(closes));
            Some(RuleChange { before, during: fault(used), after })
        }
        _ => None,
    }
}

/// Whether those of the VMs that must each fit one NUMA node of the host can be put on its nodes by their memory, the
/// largest first, each where the least that suffices is left. A snapshot does not say which node a VM is on; the others
/// may span nodes and take what is left.
pub(crate) fn nodes_fit(
    problem: &Problem<'_>,
    host: HostIx,
    vms: impl IntoIterator<Item = VmIx>,
) -> bool {
    let overcommit = problem.snapshot.policy.memory_overcommit;
    let nodes = problem.host(host).host.numa.iter();
    let mut free: Vec<(u64, u64)> =
        nodes.map(|node| (times(node.memory.get(), overcommit), node.cpu.get())).collect();
    let mut bound: Vec<&VmInfo<'_>> =
        vms.into_iter().map(|vm| problem.vm(vm)).filter(|vm| vm.vm.one_numa_node).collect();
    bound.sort_by_key(|vm| std::cmp::Reverse((vm.memory, vm.cpu_size)));
    bound.into_iter().all(|vm| {
        let suffices =
            |(memory, cpu): &&mut (u64, u64)| *memory >= vm.memory && *cpu >= vm.cpu_size;
        let node = free.iter_mut().filter(suffices).min_by_key(|(memory, _)| *memory);
        node.map(|(memory, _)| *memory -= vm.memory).is_some()
    })
}

/// What the host lacks that the VM needs, whatever else is on it.
pub(crate) fn lacking(
    problem: &Problem<'_>,
    vm: VmIx,
    host: HostIx,
    coming: Coming,
) -> Option<Obstacle> {
    if !problem.reach.meets(vm, host, coming) {
        return Some(Obstacle::Lacks { coming });
    }
    let (vm, host) = (problem.vm(vm).vm, problem.host(host).host);
    // Where it is, they are.
    if let Some(room) = host.local_disk_room.filter(|room| vm.local_disks > *room)
        && vm.host != host.id
    {
        return Some(Obstacle::Disk { room });
    }
    let fits =
        |node: &ballast_model::Resources| vm.size.memory <= node.memory && vm.size.cpu <= node.cpu;
    let numa = vm.one_numa_node && !host.numa.is_empty() && !host.numa.iter().any(fits);
    numa.then_some(Obstacle::Numa)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;

    #[test]
    fn what_a_move_makes_of_a_rule_is_what_it_is_after_the_move() {
        let text = "host a 8 64G rack=r1 : v1 1 4G, v2 1 4G\nhost b 8 64G rack=r1 : v3 1 4G\nhost c 8 64G rack=r2\n\
            rule cap: v1 v2 v3 at most 1 of a b\nrule pack: v1 v2 together\nrule rack: v1 v3 together on rack\n\
            rule apart: v1 v3 apart\nrule link: v3 near v1\n";
        let snapshot = parse(text).unwrap().snapshot;
        let problem = Problem::new(&snapshot).unwrap();
        let state = State::new(&problem);
        for vm in problem.vm_ixs() {
            for (rule, role) in &problem.vm(vm).rules {
                for to in problem.host_ixs().filter(|to| *to != state.at(vm)) {
                    let change = state.change(*rule, *role, Some(state.at(vm)), to);
                    let mut moved = state.clone();
                    moved.shift(vm, to);
                    assert_eq!(change.before, state.fault(*rule));
                    assert_eq!(change.after, moved.fault(*rule), "{}", problem.rule(*rule).id);
                }
            }
        }
    }
}
