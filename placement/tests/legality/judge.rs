//! Who is where while a plan runs, and what is wrong with that, told from the snapshot alone.

use std::collections::{BTreeMap, BTreeSet};

use ballast_model::rule::{Domain, Hold};
use ballast_model::{ClusterSnapshot, HostId, Ratio, Rule, RuleKind, Telemetry, VmId};

#[derive(Clone)]
pub(crate) struct Judge<'s> {
    snapshot: &'s ClusterSnapshot,
    /// The hosts on which a VM takes room: two while it moves.
    occupies: BTreeMap<VmId, BTreeSet<HostId>>,
    /// Where it runs.
    lives: BTreeMap<VmId, HostId>,
}

impl<'s> Judge<'s> {
    pub(crate) fn new(snapshot: &'s ClusterSnapshot) -> Self {
        let vms = || snapshot.vms.values();
        let mut occupies: BTreeMap<VmId, BTreeSet<HostId>> =
            vms().map(|vm| (vm.id.clone(), [vm.host.clone()].into())).collect();
        for flight in &snapshot.migrations {
            occupies.get_mut(&flight.vm).unwrap().extend([flight.from.clone(), flight.to.clone()]);
        }
        let lives = vms().map(|vm| (vm.id.clone(), vm.host.clone())).collect();
        Self { snapshot, occupies, lives }
    }

    /// The host of a VM that does not move.
    pub(crate) fn host_of(&self, vm: &VmId) -> Option<&HostId> {
        self.occupies[vm].iter().next().filter(|_| self.occupies[vm].len() == 1)
    }

    pub(crate) fn start(&mut self, vm: &VmId, to: &HostId) {
        self.occupies.get_mut(vm).unwrap().insert(to.clone());
    }

    pub(crate) fn end(&mut self, vm: &VmId, to: &HostId) {
        self.occupies.insert(vm.clone(), [to.clone()].into());
        self.lives.insert(vm.clone(), to.clone());
    }

    /// How much is wrong of what has to hold at every moment, by what it is; what is not wrong is not named.
    pub(crate) fn faults_while_running(&self) -> BTreeMap<String, u64> {
        let mut faults = BTreeMap::new();
        for host in self.snapshot.hosts.keys() {
            let (memory, cpu) = self.room(host);
            faults.insert(format!("memory of {host}"), u64::try_from(-memory).unwrap_or(0));
            faults.insert(format!("CPU sizes on {host}"), u64::try_from(-cpu).unwrap_or(0));
        }
        for (vm, hosts) in &self.occupies {
            let lacking = hosts.iter().filter(|host| self.lacks(vm, host)).count();
            faults.insert(format!("what {vm} needs"), lacking as u64);
        }
        let rules = self.snapshot.rules.values().filter(|rule| rule.strength.is_must());
        for rule in rules.filter(|rule| rule.hold == Hold::Continuous) {
            faults.extend(self.faults_of(rule));
        }
        faults.retain(|_, fault| *fault > 0);
        faults
    }

    /// Whether a word that the VM needs, or needs to move, is not offered there.
    fn lacks(&self, vm: &VmId, host: &HostId) -> bool {
        let (vm, host) = (&self.snapshot.vms[vm], &self.snapshot.hosts[host]);
        !vm.needs.is_subset(&host.offers) || !vm.needs_to_move.is_subset(&host.offers)
    }

    /// Memory in bytes and CPU sizes in millicores that are left; negative when there is too much.
    fn room(&self, host: &HostId) -> (i128, i128) {
        let (info, policy) = (&self.snapshot.hosts[host], self.snapshot.policy);
        #[allow(clippy::cast_possible_truncation)] // far below the range of the result
        let times = |amount: u64, by: Ratio| (amount as f64 * by.get()) as i128;
        let mut memory = times(info.capacity.memory.get(), policy.memory_overcommit);
        let cpu = policy.cpu_overcommit.map(|by| times(info.capacity.cpu.get(), by));
        let mut cpu = cpu.unwrap_or(i128::MAX);
        if let Telemetry::Known { overhead } = &info.telemetry {
            memory -= i128::from(overhead.memory.get());
        }
        for (vm, _) in self.occupies.iter().filter(|(_, hosts)| hosts.contains(host)) {
            let size = self.snapshot.vms[vm].size;
            memory -= i128::from(size.memory.get());
            cpu -= i128::from(size.cpu.get());
        }
        (memory, cpu)
    }

    fn faults_of(&self, rule: &Rule) -> BTreeMap<String, u64> {
        let at = |vm: &VmId| &self.occupies[vm];
        let each_host = Domain::default();
        let (mut faults, id) = (BTreeMap::new(), &rule.id);
        let mut add = |what: &str, fault: usize| {
            faults.insert(format!("{id}: {what}"), fault as u64);
        };
        match &rule.kind {
            RuleKind::AntiAffinity { vms, per_host_max } => {
                add("crowd", self.crowd(vms, &each_host, *per_host_max));
            }
            RuleKind::Affinity { vms, domain } => {
                add("apart", self.domains(vms, domain, |_| true).len().saturating_sub(1));
            }
            RuleKind::VmHost { vms, hosts } => {
                add("astray", vms.iter().map(|vm| at(vm).difference(hosts).count()).sum());
            }
            RuleKind::VmNotHost { vms, hosts } => {
                add("astray", vms.iter().map(|vm| at(vm).intersection(hosts).count()).sum());
            }
            RuleKind::Spread { vms, domain, domains_min, per_domain_max } => {
                if let Some(most) = per_domain_max {
                    add("crowd", self.crowd(vms, domain, *most));
                }
                if let Some(least) = domains_min {
                    let running: BTreeSet<String> =
                        vms.iter().map(|vm| self.domain(domain, &self.lives[vm])).collect();
                    add("narrow", (*least as usize).saturating_sub(running.len()));
                }
            }
            RuleKind::Near { vms, needs, domain } => {
                let company: BTreeSet<String> =
                    needs.iter().map(|vm| self.domain(domain, &self.lives[vm])).collect();
                let alone = |vm: &VmId| {
                    let own: BTreeSet<String> =
                        at(vm).iter().map(|host| self.domain(domain, host)).collect();
                    own.difference(&company).count()
                };
                add("alone", vms.iter().map(alone).sum());
            }
            RuleKind::HostCap { vms, hosts, hosts_max } => {
                let used = self.domains(vms, &each_host, |host| hosts.contains(host));
                add("too many hosts", used.len().saturating_sub(*hosts_max as usize));
            }
            RuleKind::Among { vms, groups } => {
                let all: Vec<&HostId> = vms.iter().flat_map(at).collect();
                let inside = |group: &BTreeSet<HostId>| {
                    all.iter().filter(|host| group.contains(**host)).count()
                };
                add("outside", all.len() - groups.iter().map(inside).max().unwrap_or(0));
            }
        }
        faults
    }

    fn domain(&self, domain: &Domain, host: &HostId) -> String {
        domain.of(host, &self.snapshot.hosts[host].labels)
    }

    fn domains(
        &self,
        vms: &BTreeSet<VmId>,
        domain: &Domain,
        counts: impl Fn(&HostId) -> bool,
    ) -> BTreeSet<String> {
        let hosts = vms.iter().flat_map(|vm| &self.occupies[vm]).filter(|host| counts(host));
        hosts.map(|host| self.domain(domain, host)).collect()
    }

    /// By how many VMs domains have more than `most`.
    fn crowd(&self, vms: &BTreeSet<VmId>, domain: &Domain, most: u32) -> usize {
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        for vm in vms {
            let own: BTreeSet<String> =
                self.occupies[vm].iter().map(|host| self.domain(domain, host)).collect();
            own.into_iter().for_each(|domain| *count.entry(domain).or_default() += 1);
        }
        count.values().map(|count| count.saturating_sub(most as usize)).sum()
    }
}
