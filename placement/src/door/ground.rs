//! A numbered snapshot as the ordering sees it: places, counters and claims.
//!
//! Places are hosts. A VM claims memory (on both hosts while it moves), CPU size
//! where the policy bounds it and room for its local disks; each rule that holds at every moment is a
//! counter by domain, or a group of counters of which so many may be in use.
//! Whether the cluster can lose hosts meanwhile is not a matter of counters: the
//! check on the way out answers that.

use super::obstacle::lacking;
use super::problem::{HostIx, Problem, RuleIx, VmIx};
use super::reach::Coming;
use super::rules::{NO_DOMAIN, RuleBody, RuleInfo, Tally};
use super::state::State;
use crate::order::{Claim, Counter, Ground, Group, Key, Place, Vm};

/// What is counted: memory by host.
const MEMORY: u32 = 0;
/// CPU size by host.
const CPU: u32 = 1;
/// Local disks that come to a host, which has so much room for them.
const DISKS: u32 = 2;
/// The first rule; each has two counters, for those bound and those needed.
const RULES: u32 = 3;

/// The cluster before the first step.
pub(crate) struct Floor<'s, 'p, 'a> {
    state: &'s State<'p, 'a>,
}

impl<'s, 'p, 'a> Floor<'s, 'p, 'a> {
    pub(crate) fn new(state: &'s State<'p, 'a>) -> Self {
        Self { state }
    }

    fn problem(&self) -> &'p Problem<'a> {
        self.state.problem
    }

    fn rule(&self, what: u32) -> (RuleIx, bool) {
        let n = what - RULES;
        (RuleIx((n / 2) as usize), n % 2 == 1)
    }

    fn rule_counter(&self, what: u32, domain: u32) -> Counter {
        let (ix, needed) = self.rule(what);
        let (rule, tally) = (self.problem().rule(ix), self.state.tally(ix));
        let counts = |limit: u32| Counter {
            once: true,
            ..Counter::at_most(u64::from(tally.in_domain(domain, needed)), u64::from(limit))
        };
        match &rule.body {
            RuleBody::Apart { most } => counts(*most),
            RuleBody::Distinct { .. } | RuleBody::Within { .. } => {
                Counter { group: Some(ix.0 as u64), limit: u64::MAX, ..counts(0) }
            }
            RuleBody::Among { .. } => {
                let used = u64::from(tally.in_first_group(rule, domain, self.state));
                Counter { group: Some(ix.0 as u64), once: true, ..Counter::at_most(used, u64::MAX) }
            }
            RuleBody::Near | RuleBody::Hosts { .. } => Counter { limit: u64::MAX, ..counts(0) },
        }
    }

    /// The domain of a host, also for groups of hosts: the first that has it.
    fn domain(rule: &RuleInfo<'_>, host: usize) -> u32 {
        match &rule.body {
            RuleBody::Among { groups } => {
                groups.iter().position(|group| group[host]).map_or(NO_DOMAIN, |group| group as u32)
            }
            _ => rule.domain[host],
        }
    }
}

fn key(what: u32, scope: u32) -> Key {
    u64::from(what) << 32 | u64::from(scope)
}

fn split(key: Key) -> (u32, u32) {
    ((key >> 32) as u32, key as u32)
}

impl Ground for Floor<'_, '_, '_> {
    fn places(&self) -> Place {
        self.problem().hosts.len() as Place
    }

    fn counter(&self, key: Key) -> Counter {
        let (what, scope) = split(key);
        let host = HostIx(scope as usize);
        match what {
            MEMORY => {
                Counter::at_most(self.state.memory_taken(host), self.problem().host(host).memory)
            }
            CPU => {
                let limit = self.problem().host(host).cpu_admitted.unwrap_or(u64::MAX);
                Counter::at_most(self.state.cpu_sizes(host), limit)
            }
            DISKS => {
                let room = self.problem().host(host).host.local_disk_room;
                let limit = room.map_or(u64::MAX, |room| room.get());
                Counter::at_most(self.state.disks_come(host), limit)
            }
            rule => self.rule_counter(rule, scope),
        }
    }

    fn group(&self, group: u64) -> Group {
        let ix = RuleIx(group as usize);
        let (rule, tally) = (self.problem().rule(ix), self.state.tally(ix));
        let open = tally.domains_in_use(rule, self.state);
        match &rule.body {
            RuleBody::Distinct { least } => {
                Group { open, open_max: u32::MAX, open_min: (*least).min(tally.placed()) }
            }
            RuleBody::Within { most } => Group { open, open_max: *most, open_min: 0 },
            RuleBody::Among { .. } => Group { open, open_max: 1, open_min: 0 },
            _ => Group { open, open_max: u32::MAX, open_min: 0 },
        }
    }

    fn claims(&self, vm: Vm, place: Place, out: &mut Vec<Claim>) {
        let info = self.problem().vm(VmIx(vm as usize));
        let host = self.problem().host(HostIx(place as usize));
        out.push(Claim { key: key(MEMORY, place), amount: info.memory });
        if host.cpu_admitted.is_some() {
            out.push(Claim { key: key(CPU, place), amount: info.cpu_size });
        }
        let disks = info.vm.local_disks.get();
        if disks > 0 && info.host.0 != place as usize && host.host.local_disk_room.is_some() {
            out.push(Claim { key: key(DISKS, place), amount: disks });
        }
        for (ix, role) in &info.rules {
            let rule = self.problem().rule(*ix);
            let domain = Self::domain(rule, place as usize);
            if !rule.is_continuous() || domain == NO_DOMAIN {
                continue;
            }
            let what = RULES + 2 * ix.0 as u32;
            if role.bound {
                out.push(Claim { key: key(what, domain), amount: 1 });
            }
            if role.needed {
                out.push(Claim { key: key(what + 1, domain), amount: 1 });
            }
        }
    }

    fn needs(&self, needing: Key, out: &mut Vec<Key>) {
        let (what, scope) = split(needing);
        if what >= RULES {
            let (ix, needed) = self.rule(what);
            if !needed && matches!(self.problem().rule(ix).body, RuleBody::Near) {
                out.push(key(what + 1, scope));
            }
        }
    }

    fn needed_by(&self, needed: Key, out: &mut Vec<Key>) {
        let (what, scope) = split(needed);
        if what >= RULES && self.rule(what).1 {
            out.push(key(what - 1, scope));
        }
    }

    fn allows(&self, vm: Vm, place: Place) -> bool {
        let (vm, host) = (VmIx(vm as usize), HostIx(place as usize));
        let (info, target) = (self.problem().vm(vm), self.problem().host(host));
        let rules =
            info.rules.iter().filter(|(ix, role)| role.bound && self.problem().rule(*ix).is_must());
        target.counts()
            && lacking(self.problem(), vm, host, Coming::Moving).is_none()
            && rules.into_iter().all(|(ix, _)| self.problem().rule_allows(*ix, host))
    }

    fn host(&self, place: Place) -> u32 {
        place
    }

    fn bytes(&self, vm: Vm) -> u64 {
        let info = self.problem().vm(VmIx(vm as usize));
        info.memory.saturating_add(info.vm.local_disks.get())
    }

    fn disk_bytes(&self, vm: Vm) -> u64 {
        self.problem().vm(VmIx(vm as usize)).vm.local_disks.get()
    }

    fn dirty_rate(&self, vm: Vm) -> u64 {
        self.problem().vm(VmIx(vm as usize)).vm.dirty_rate.get()
    }
}

impl Tally {
    /// VMs of an `Among` rule on hosts whose first group this is.
    fn in_first_group(&self, rule: &RuleInfo<'_>, group: u32, state: &State<'_, '_>) -> u32 {
        let there = |vm: &&VmIx| Floor::domain(rule, state.at(**vm).0) == group;
        rule.vms.iter().filter(there).count() as u32
    }

    /// Domains with at least one of the VMs bound.
    fn domains_in_use(&self, rule: &RuleInfo<'_>, state: &State<'_, '_>) -> u32 {
        if !matches!(rule.body, RuleBody::Among { .. }) {
            return self.domains();
        }
        let mut groups: Vec<u32> =
            rule.vms.iter().map(|vm| Floor::domain(rule, state.at(*vm).0)).collect();
        groups.retain(|group| *group != NO_DOMAIN);
        groups.sort_unstable();
        groups.dedup();
        groups.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;

    #[test]
    fn a_move_sends_local_disks_along() {
        let text = "host a 8 16G : small 1 1G disks=200G, large 1 8G";
        let snapshot = parse(text).unwrap().snapshot;
        let problem = Problem::new(&snapshot).unwrap();
        let state = State::new(&problem);
        let bytes = |vm: &str| {
            let vm = problem.find_vm(&vm.parse().unwrap()).unwrap();
            Floor::new(&state).bytes(vm.number())
        };
        assert_eq!((bytes("small"), bytes("large")), (201 << 30, 8 << 30));
    }
}
