//! Inventory and windows become the planner's one input.
//!
//! Whether a VM can move at all is decided by [`mobility`], one function for
//! every workflow; what it answers the planner, the operator's orders and
//! `vm show` all take from here. `history` is what past migrations mean for
//! the next one, `reach` what hosts offer and VMs need.

mod history;
mod reach;

use std::time::Duration;

use ballast_model::snapshot::{Mobility, MoveInFlight, PlacedVm, Policy};
use ballast_model::{Bytes, ClusterSnapshot, Host, HostId, Rule, Timestamp, VmId, VmSpec};
use ballast_proto::v1;

use crate::registry::{Live, VmView};
use crate::state::{HostRecord, Inventory, VmChange, VmEntry};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The balancer: VMs rest after a move.
    Balance,
    /// An operator's order: it is up to them.
    Order,
}

/// Builds the snapshot. A newcomer, a VM that is about to be created, stands in it on some host, so that the rules that
/// name it are there; `placement` takes it out before it looks for a place.
pub fn build(
    inventory: &Inventory,
    live: &Live,
    purpose: Purpose,
    (policy, cooldown): (Policy, Duration),
    now: Timestamp,
    newcomer: Option<&VmSpec>,
) -> ClusterSnapshot {
    let empty = ClusterSnapshot::empty(inventory.revision, now);
    let mut snapshot = ClusterSnapshot { policy, ..empty };
    for host in inventory.hosts.values() {
        snapshot.hosts.insert(host.id.clone(), host_of(host, live));
    }
    let past = history::past(&inventory.migrations, now);
    for (id, vm) in &inventory.vms {
        let owner = &vm.owner.value.host;
        let Some(host) = inventory.hosts.get(owner) else { continue };
        let view = live.vm(id, owner);
        let spec = &vm.record.value.spec;
        let past = past.get(id);
        let rests = match purpose {
            Purpose::Balance => history::rest(past, host.state, cooldown, now),
            Purpose::Order => None,
        };
        let placed = PlacedVm {
            demand: view.demand.unwrap_or_else(|| spec.size()),
            dirty_rate: view.dirty_rate,
            local_disks: view.local_disks,
            automation: spec.automation,
            mobility: mobility(vm, &view, purpose, rests),
            needs_to_move: reach::needs_to_move(spec, host),
            moves_recent: past.map_or(0, |past| past.moves_recent),
            ..asked_for(spec, owner.clone())
        };
        snapshot.vms.insert(id.clone(), placed);
    }
    if let Some(spec) = newcomer
        && let Some(host) = snapshot.hosts.keys().next().cloned()
    {
        snapshot.vms.insert(spec.id.clone(), asked_for(spec, host));
    }
    for record in inventory.running() {
        let migration = &record.migration;
        add_flight(&mut snapshot, migration);
    }
    for rule in inventory.rules.values() {
        let is_vm = |vm: &VmId| snapshot.vms.contains_key(vm);
        let is_host = |host: &HostId| snapshot.hosts.contains_key(host);
        if let Some(kind) = rule.kind.of_the_present(is_vm, is_host) {
            snapshot.rules.insert(rule.id.clone(), Rule { kind, ..rule.clone() });
        }
    }
    snapshot
}

/// While a migration runs the VM counts as on its way from source to destination, also after the
/// commit, when the owner record names the destination already: its memory is held at both.
fn add_flight(snapshot: &mut ClusterSnapshot, migration: &ballast_model::Migration) {
    let Some(vm) = snapshot.vms.get_mut(&migration.vm) else { return };
    if !snapshot.hosts.contains_key(&migration.from) || !snapshot.hosts.contains_key(&migration.to)
    {
        return;
    }
    vm.host = migration.from.clone();
    snapshot.migrations.push(MoveInFlight {
        id: migration.id,
        vm: migration.vm.clone(),
        from: migration.from.clone(),
        to: migration.to.clone(),
    });
}

/// A VM with what its owner asked for that bears on where it can run, on some host.
fn asked_for(spec: &VmSpec, host: HostId) -> PlacedVm {
    PlacedVm {
        needs: reach::needs(spec),
        one_numa_node: spec.one_numa_node,
        ..PlacedVm::new(spec.id.clone(), host, spec.size())
    }
}

fn host_of(host: &HostRecord, live: &Live) -> Host {
    let view = live.host(&host.id);
    let room = view.load.and_then(|load| load.local_disk_free_bytes);
    Host {
        state: host.state,
        drain_goal: host.drain_goal,
        telemetry: view.telemetry,
        local_disk_room: room.map(Bytes),
        link: host.link,
        labels: host.labels.clone(),
        offers: reach::offers(host),
        numa: host.numa.clone(),
        ..Host::new(host.id.clone(), host.capacity)
    }
}

/// Whether a VM can move at all, and if not, why not and what would change that.
pub fn mobility(
    vm: &VmEntry,
    view: &VmView,
    purpose: Purpose,
    rests: Option<(String, String)>,
) -> Mobility {
    let fixed =
        |reason: String, remedy: &str| Mobility::Fixed { reason, remedy: remedy.to_owned() };
    match &vm.record.value.change {
        VmChange::Creating => {
            return fixed("it is being created".into(), "wait until it runs");
        }
        VmChange::Removing => {
            return fixed("it is being removed".into(), "nothing: it will be gone");
        }
        VmChange::Moving { .. } | VmChange::Settled => {}
    }
    let host = &vm.owner.value.host;
    match &view.status {
        Some(status) if status.state == i32::from(v1::VmState::Running) => {}
        Some(status) => {
            let state = v1::VmState::try_from(status.state).unwrap_or_default();
            let state = state.as_str_name().trim_start_matches("VM_STATE_").to_lowercase();
            return fixed(
                format!("it is {state} on host {host} {}", status.detail).trim_end().to_owned(),
                "remove it and create it again, or bring it to run",
            );
        }
        None if view.host_reports => {
            return fixed(
                format!("host {host}, which owns it, does not have it"),
                "check the host, then remove the VM and create it again",
            );
        }
        None => {
            return fixed(
                format!("host {host} has not reported yet"),
                "check that its agent runs and reports",
            );
        }
    }
    let spec = &vm.record.value.spec;
    if let Some(disk) = spec.disks.iter().find(|disk| !disk.shared && disk.readonly) {
        return fixed(
            format!(
                "its disk {} is local and read-only: it may be others' too",
                disk.path.display()
            ),
            "put the same file on every host and do not mark it local",
        );
    }
    if purpose == Purpose::Balance && view.demand.is_none() {
        return fixed("there are too few samples of its load".into(), "wait for more reports");
    }
    match rests {
        Some((reason, remedy)) => Mobility::Fixed { reason, remedy },
        None => Mobility::Movable,
    }
}
