//! The snapshot with names turned into small integers, once, at the door.
//!
//! A `Problem` borrows the snapshot, never changes, and is what every later
//! step reads. What changes while planning is in [`crate::door::state`].

use std::collections::HashMap;

use ballast_model::snapshot::{Mobility, PlacedVm};
use ballast_model::vm::Automation;
use ballast_model::{ClusterSnapshot, Host, HostId, HostState, Refusal, Telemetry, VmId};

use super::entitle;
use super::losses::Losses;
use super::reach::Reach;
use super::rules::{self, Role, RuleBody, RuleInfo};
use super::state::Cause;
use crate::cost;
use crate::score::{self, Load, Weights};

/// A host's number, in order of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HostIx(pub(crate) usize);
/// A VM's number, in order of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct VmIx(pub(crate) usize);
/// A rule's number, in order of names; a spread rule with two bounds has two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RuleIx(pub(crate) usize);

impl HostIx {
    /// As the solver and the ordering number it.
    pub(crate) fn number(self) -> u32 {
        self.0 as u32
    }
}

impl VmIx {
    /// As the solver and the ordering number it.
    pub(crate) fn number(self) -> u32 {
        self.0 as u32
    }
}

pub(crate) struct HostInfo<'a> {
    pub(crate) id: &'a HostId,
    pub(crate) host: &'a Host,
    /// Capacity in millicores.
    pub(crate) cpu: u64,
    /// Memory it admits in bytes: its capacity and what the policy lets it overcommit.
    pub(crate) memory: u64,
    /// CPU size of VMs it admits in millicores, if that is bounded.
    pub(crate) cpu_admitted: Option<u64>,
    /// What it uses besides its VMs, in millicores and bytes; zero when unknown.
    pub(crate) overhead: [u64; 2],
    /// Its samples passed the telemetry gate.
    pub(crate) known: bool,
}

impl HostInfo<'_> {
    /// To be emptied, whatever that costs.
    pub(crate) fn draining(&self) -> bool {
        self.host.state == HostState::Draining
    }

    /// To be emptied where that does no harm.
    pub(crate) fn quarantined(&self) -> bool {
        self.host.state == HostState::Quarantined
    }

    /// Whether it may take VMs, and so whether it counts for the imbalance.
    pub(crate) fn counts(&self) -> bool {
        self.known && self.host.state == HostState::Active && self.cpu > 0 && self.memory > 0
    }
}

pub(crate) struct VmInfo<'a> {
    pub(crate) id: &'a VmId,
    pub(crate) vm: &'a PlacedVm,
    /// The host that owns it, or the source of a migration under way.
    pub(crate) host: HostIx,
    /// Where a migration under way takes it.
    pub(crate) bound_for: Option<HostIx>,
    /// What it is due of its demand, in millicores.
    pub(crate) cpu: u64,
    /// CPU size in millicores.
    pub(crate) cpu_size: u64,
    /// Size in bytes.
    pub(crate) memory: u64,
    /// What has to be gained for it to move, see [`cost::price`].
    pub(crate) price: f64,
    /// The rules that bind or need it, and which of the two.
    pub(crate) rules: Vec<(RuleIx, Role)>,
}

impl VmInfo<'_> {
    /// What it puts on its host.
    pub(crate) fn load(&self) -> Load {
        [self.cpu, self.memory]
    }

    /// Whether its automation level lets the balancer move it for this cause on its own.
    pub(crate) fn automation_allows(&self, cause: Cause) -> bool {
        match self.vm.automation {
            Automation::Full => true,
            Automation::Partial => matches!(cause, Cause::Drain | Cause::Quarantine),
            Automation::Manual => false,
        }
    }
}

pub(crate) struct Problem<'a> {
    pub(crate) snapshot: &'a ClusterSnapshot,
    pub(crate) hosts: Vec<HostInfo<'a>>,
    pub(crate) vms: Vec<VmInfo<'a>>,
    pub(crate) rules: Vec<RuleInfo<'a>>,
    /// The hosts that count for the imbalance.
    pub(crate) counted: Vec<HostIx>,
    /// The hosts that drain.
    pub(crate) draining: Vec<HostIx>,
    /// What is levelled, and how much it counts.
    pub(crate) weights: Weights,
    /// The failures to tolerate.
    pub(crate) losses: Losses,
    /// Which hosts offer what the VMs need.
    pub(crate) reach: Reach,
}

impl<'a> Problem<'a> {
    /// Numbers everything; refuses a snapshot that refers to what it does not hold.
    pub(crate) fn new(snapshot: &'a ClusterSnapshot) -> Result<Self, Refusal> {
        snapshot.validate()?;
        let host_ix: HashMap<_, _> =
            snapshot.hosts.keys().enumerate().map(|(n, id)| (id, HostIx(n))).collect();
        let vm_ix: HashMap<_, _> =
            snapshot.vms.keys().enumerate().map(|(n, id)| (id, VmIx(n))).collect();
        let hosts: Vec<_> =
            snapshot.hosts.iter().map(|(id, host)| host_info(snapshot, id, host)).collect();
        let due = entitle::cpu(snapshot);
        let mut vms: Vec<_> = snapshot
            .vms
            .iter()
            .map(|(id, vm)| VmInfo {
                id,
                vm,
                host: host_ix[&vm.host],
                bound_for: None,
                cpu: due[id].get(),
                cpu_size: vm.size.cpu.get(),
                memory: vm.size.memory.get(),
                price: cost::price(vm, &snapshot.hosts[&vm.host]),
                rules: Vec::new(),
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
        let rules = rules::number(snapshot, &host_ix, &vm_ix);
        for (n, rule) in rules.iter().enumerate() {
            for vm in &rule.vms {
                vms[vm.0].rules.push((RuleIx(n), Role { bound: true, needed: false }));
            }
            for vm in &rule.needs {
                let own = &mut vms[vm.0].rules;
                match own.last_mut().filter(|(last, _)| *last == RuleIx(n)) {
                    Some((_, role)) => role.needed = true,
                    None => own.push((RuleIx(n), Role { bound: false, needed: true })),
                }
            }
        }
        let host_ixs = || (0..hosts.len()).map(HostIx);
        let counted = host_ixs().filter(|host| hosts[host.0].counts()).collect();
        let draining = host_ixs().filter(|host| hosts[host.0].draining()).collect();
        let weights = score::weights(&snapshot.policy);
        let failures = snapshot.policy.failures_tolerated as usize;
        let losses = Losses::new(&hosts, &vms, failures);
        let reach = Reach::new(snapshot);
        Ok(Self { snapshot, hosts, vms, rules, counted, draining, weights, losses, reach })
    }

    pub(crate) fn host(&self, host: HostIx) -> &HostInfo<'a> {
        &self.hosts[host.0]
    }

    pub(crate) fn vm(&self, vm: VmIx) -> &VmInfo<'a> {
        &self.vms[vm.0]
    }

    pub(crate) fn rule(&self, rule: RuleIx) -> &RuleInfo<'a> {
        &self.rules[rule.0]
    }

    pub(crate) fn host_ixs(&self) -> impl Iterator<Item = HostIx> + use<> {
        (0..self.hosts.len()).map(HostIx)
    }

    /// The memory of all of these VMs; as much as can be said where it is more.
    pub(crate) fn memory_of<'v>(&self, vms: impl IntoIterator<Item = &'v VmIx>) -> u64 {
        vms.into_iter().fold(0, |sum, vm| sum.saturating_add(self.vm(*vm).memory))
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

    /// Whether a VM-host rule lets its VMs run on `host`; other kinds always do.
    pub(crate) fn rule_allows(&self, rule: RuleIx, host: HostIx) -> bool {
        match &self.rule(rule).body {
            RuleBody::Hosts { allowed } => allowed[host.0],
            RuleBody::Among { groups } => groups.iter().any(|group| group[host.0]),
            _ => true,
        }
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

fn host_info<'a>(snapshot: &ClusterSnapshot, id: &'a HostId, host: &'a Host) -> HostInfo<'a> {
    let (known, overhead) = match &host.telemetry {
        Telemetry::Known { overhead } => (true, [overhead.cpu.get(), overhead.memory.get()]),
        Telemetry::Unknown { .. } => (false, [0, 0]),
    };
    let cpu = host.capacity.cpu.get();
    let memory = times(host.capacity.memory.get(), snapshot.policy.memory_overcommit);
    let cpu_admitted = snapshot.policy.cpu_overcommit.map(|ratio| times(cpu, ratio));
    HostInfo { id, host, cpu, memory, cpu_admitted, overhead, known }
}

/// An amount with what may be overcommitted; exact when nothing may.
pub(super) fn times(amount: u64, ratio: ballast_model::Ratio) -> u64 {
    if ratio == ballast_model::Ratio::ONE {
        return amount;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
    let admitted = (amount as f64 * ratio.get()) as u64;
    admitted
}
