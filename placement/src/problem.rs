//! The snapshot with names turned into small integers, once, at the door.
//!
//! A `Problem` borrows the snapshot, never changes, and is what every later
//! step reads. What changes while solving is in [`crate::state`].

use std::collections::HashMap;

use ballast_model::rule::Strength;
use ballast_model::snapshot::{Mobility, PlacedVm};
use ballast_model::vm::Automation;
use ballast_model::{
    ClusterSnapshot, Host, HostId, HostState, Refusal, RefusalCode, RuleId, RuleKind, Telemetry,
    VmId,
};

use crate::state::Cause;

/// A host's number, in order of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HostIx(pub(crate) usize);
/// A VM's number, in order of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct VmIx(pub(crate) usize);
/// A rule's number, in order of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RuleIx(pub(crate) usize);

pub(crate) struct HostInfo<'a> {
    pub(crate) id: &'a HostId,
    pub(crate) host: &'a Host,
    /// Capacity in millicores.
    pub(crate) cpu: u64,
    /// Capacity in bytes.
    pub(crate) memory: u64,
    /// What it uses besides its VMs, in millicores and bytes; zero when unknown.
    pub(crate) overhead: [u64; 2],
    /// Its samples passed the telemetry gate.
    pub(crate) known: bool,
}

impl HostInfo<'_> {
    pub(crate) fn draining(&self) -> bool {
        self.host.state != HostState::Active
    }

    /// Whether it may take VMs, and so whether it counts for the imbalance.
    pub(crate) fn counts(&self) -> bool {
        self.known && !self.draining() && self.cpu > 0 && self.memory > 0
    }
}

pub(crate) struct VmInfo<'a> {
    pub(crate) id: &'a VmId,
    pub(crate) vm: &'a PlacedVm,
    /// The host that owns it, or the source of a migration under way.
    pub(crate) host: HostIx,
    /// Where a migration under way takes it.
    pub(crate) bound_for: Option<HostIx>,
    /// Demand in millicores.
    pub(crate) cpu: u64,
    /// Size in bytes.
    pub(crate) memory: u64,
    pub(crate) anti: Vec<RuleIx>,
    pub(crate) must: Vec<RuleIx>,
    pub(crate) should: Vec<RuleIx>,
}

impl VmInfo<'_> {
    /// Whether its automation level lets the balancer move it for this cause on its own.
    pub(crate) fn automation_allows(&self, cause: Cause) -> bool {
        match self.vm.automation {
            Automation::Full => true,
            Automation::Partial => cause == Cause::Drain,
            Automation::Manual => false,
        }
    }
}

pub(crate) enum RuleBody {
    Apart {
        vms: Vec<VmIx>,
    },
    /// One flag a host.
    Hosts {
        allowed: Vec<bool>,
    },
}

pub(crate) struct RuleInfo<'a> {
    pub(crate) id: &'a RuleId,
    pub(crate) body: RuleBody,
}

pub(crate) struct Problem<'a> {
    pub(crate) snapshot: &'a ClusterSnapshot,
    pub(crate) hosts: Vec<HostInfo<'a>>,
    pub(crate) vms: Vec<VmInfo<'a>>,
    pub(crate) rules: Vec<RuleInfo<'a>>,
}

impl<'a> Problem<'a> {
    /// Numbers everything; refuses a snapshot that refers to what it does not hold.
    pub(crate) fn new(snapshot: &'a ClusterSnapshot) -> Result<Self, Refusal> {
        snapshot.validate()?;
        let host_ix: HashMap<_, _> =
            snapshot.hosts.keys().enumerate().map(|(n, id)| (id, HostIx(n))).collect();
        let vm_ix: HashMap<_, _> =
            snapshot.vms.keys().enumerate().map(|(n, id)| (id, VmIx(n))).collect();
        let hosts: Vec<_> = snapshot.hosts.iter().map(|(id, host)| host_info(id, host)).collect();
        let mut vms: Vec<_> = snapshot
            .vms
            .iter()
            .map(|(id, vm)| VmInfo {
                id,
                vm,
                host: host_ix[&vm.host],
                bound_for: None,
                cpu: vm.demand.cpu.get(),
                memory: vm.size.memory.get(),
                anti: Vec::new(),
                must: Vec::new(),
                should: Vec::new(),
            })
            .collect();
        for flight in &snapshot.migrations {
            let vm = &mut vms[vm_ix[&flight.vm].0];
            vm.bound_for = Some(host_ix[&flight.to]);
            // Between the commit and the end of the migration's record the destination is the owner already.
            if vm.vm.host == flight.to {
                vm.host = host_ix[&flight.from];
            }
        }
        let mut rules = Vec::with_capacity(snapshot.rules.len());
        for (n, (id, rule)) in snapshot.rules.iter().enumerate() {
            let body = match &rule.kind {
                RuleKind::AntiAffinity { vms: apart, per_host_max: 1 } => {
                    let apart: Vec<VmIx> = apart.iter().map(|vm| vm_ix[vm]).collect();
                    apart.iter().for_each(|vm| vms[vm.0].anti.push(RuleIx(n)));
                    RuleBody::Apart { vms: apart }
                }
                RuleKind::VmHost { vms: bound, hosts: named }
                | RuleKind::VmNotHost { vms: bound, hosts: named } => {
                    for vm in bound {
                        let vm = &mut vms[vm_ix[vm].0];
                        match rule.strength {
                            Strength::Must => vm.must.push(RuleIx(n)),
                            Strength::Should { .. } => vm.should.push(RuleIx(n)),
                        }
                    }
                    let wanted = matches!(rule.kind, RuleKind::VmHost { .. });
                    let mut allowed = vec![!wanted; hosts.len()];
                    named.iter().for_each(|host| allowed[host_ix[host].0] = wanted);
                    RuleBody::Hosts { allowed }
                }
                other => {
                    return Err(Refusal::new(
                        RefusalCode::Unsupported,
                        format!("rule {id} of kind {} is not planned with yet", other.name()),
                        "remove the rule",
                    ));
                }
            };
            rules.push(RuleInfo { id, body });
        }
        Ok(Self { snapshot, hosts, vms, rules })
    }

    pub(crate) fn host(&self, host: HostIx) -> &HostInfo<'a> {
        &self.hosts[host.0]
    }

    pub(crate) fn vm(&self, vm: VmIx) -> &VmInfo<'a> {
        &self.vms[vm.0]
    }

    pub(crate) fn host_ixs(&self) -> impl Iterator<Item = HostIx> + use<> {
        (0..self.hosts.len()).map(HostIx)
    }

    pub(crate) fn vm_ixs(&self) -> impl Iterator<Item = VmIx> + use<> {
        (0..self.vms.len()).map(VmIx)
    }

    pub(crate) fn find_vm(&self, id: &VmId) -> Option<VmIx> {
        self.vms.binary_search_by(|vm| vm.id.cmp(id)).ok().map(VmIx)
    }

    pub(crate) fn find_host(&self, id: &HostId) -> Option<HostIx> {
        self.hosts.binary_search_by(|host| host.id.cmp(id)).ok().map(HostIx)
    }

    /// Whether a VM-host rule lets its VMs run on `host`; anti-affinity rules always do.
    pub(crate) fn rule_allows(&self, rule: RuleIx, host: HostIx) -> bool {
        match &self.rules[rule.0].body {
            RuleBody::Hosts { allowed } => allowed[host.0],
            RuleBody::Apart { .. } => true,
        }
    }

    /// How many of the VM's preferences `host` does not meet.
    pub(crate) fn preferences_missed(&self, vm: VmIx, host: HostIx) -> usize {
        self.vm(vm).should.iter().filter(|rule| !self.rule_allows(**rule, host)).count()
    }

    /// Whether the VM can leave its host at all, whoever asks.
    pub(crate) fn can_leave(&self, vm: VmIx) -> bool {
        let info = self.vm(vm);
        info.bound_for.is_none()
            && self.host(info.host).known
            && info.vm.mobility == Mobility::Movable
    }

    /// Whether the balancer may move the VM for this cause on its own.
    pub(crate) fn may_move(&self, vm: VmIx, cause: Cause) -> bool {
        self.can_leave(vm) && self.vm(vm).automation_allows(cause)
    }
}

fn host_info<'a>(id: &'a HostId, host: &'a Host) -> HostInfo<'a> {
    let (known, overhead) = match &host.telemetry {
        Telemetry::Known { overhead } => (true, [overhead.cpu.get(), overhead.memory.get()]),
        Telemetry::Unknown { .. } => (false, [0, 0]),
    };
    let (cpu, memory) = (host.capacity.cpu.get(), host.capacity.memory.get());
    HostInfo { id, host, cpu, memory, overhead, known }
}
