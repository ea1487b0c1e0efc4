//! Records as messages.

use ballast_model::snapshot::Mobility;
use ballast_model::{HostId, Refusal, RefusalCode, Resources, Telemetry, VmId};
use ballast_proto::v1;

use crate::controller::Controller;
use crate::migration::latest_progress;
use crate::snapshot::{Purpose, mobility};
use crate::state::{HostRecord, Inventory, MigrationRecord, PlanRecord, VmChange, VmEntry};

impl Controller {
    pub(super) fn host_status(&self, host: &HostRecord, inventory: &Inventory) -> v1::HostStatus {
        let view = self.live.host(&host.id);
        let own = |(_, vm): &(&VmId, &VmEntry)| vm.owner.value.host == host.id;
        let vms: Vec<_> = inventory.vms.iter().filter(own).map(|(id, _)| id.clone()).collect();
        let demand: Resources = vms.iter().filter_map(|vm| self.live.vm(vm, &host.id).demand).sum();
        let unknown_because = match &view.telemetry {
            Telemetry::Known { .. } => String::new(),
            Telemetry::Unknown { why } => why.clone(),
        };
        let baselines = host.cpu_baselines.iter().map(|b| i32::from(v1::CpuBaseline::from(*b)));
        v1::HostStatus {
            description: Some(v1::HostDescription {
                host: host.id.to_string(),
                endpoint: host.endpoint.clone(),
                driver: host.driver,
                capacity: Some(host.capacity.into()),
                link_bytes_per_sec: host.link.get(),
                labels: host.labels.clone().into_iter().collect(),
                version: host.version.clone(),
                cpu_model: host.cpu_model.clone(),
                offers: host.offers.iter().cloned().collect(),
                cpu_baselines: baselines.collect(),
                numa: host.numa.iter().copied().map(Into::into).collect(),
            }),
            state: v1::HostState::from(host.state).into(),
            drain_goal: v1::DrainGoal::from(host.drain_goal).into(),
            known: unknown_because.is_empty(),
            unknown_because,
            load: view.load,
            demand: Some(demand.into()),
            vms: vms.iter().map(ToString::to_string).collect(),
            last_report_unix_millis: view.last_report.map_or(0, |at| at.unix_millis()),
        }
    }

    pub(super) fn vm_record(&self, vm: &VmEntry) -> v1::VmRecord {
        let owner = &vm.owner.value;
        let view = self.live.vm(&owner.vm, &owner.host);
        let immobile = match (&vm.record.value.change, mobility(vm, &view, Purpose::Order, None)) {
            (VmChange::Moving { migration }, _) => Some(Refusal::new(
                RefusalCode::WrongState,
                "it is being migrated",
                format!("wait for migration {migration} to end, or cancel it"),
            )),
            (_, Mobility::Fixed { reason, remedy }) => {
                Some(Refusal::new(RefusalCode::WrongState, reason, remedy))
            }
            (_, Mobility::Movable) => None,
        };
        v1::VmRecord {
            spec: Some((&vm.record.value.spec).into()),
            host: owner.host.to_string(),
            epoch: owner.epoch.0,
            status: view.status,
            demand: view.demand.map(Into::into),
            immobile: immobile.as_ref().map(Into::into),
        }
    }

    pub(super) fn migration(&self, record: &MigrationRecord) -> v1::Migration {
        let mut migration = record.migration.clone();
        if !migration.phase.is_ended() {
            migration.progress = latest_progress(self, &migration);
        }
        (&migration).into()
    }

    pub(super) fn status(
        &self,
        inventory: &Inventory,
        snapshot: &ballast_model::ClusterSnapshot,
    ) -> v1::ClusterStatus {
        let unknown =
            |host: &&ballast_model::Host| matches!(host.telemetry, Telemetry::Unknown { .. });
        let automation = inventory.automation(self.config.balance.automation);
        v1::ClusterStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store: self.repository.store().kind().to_owned(),
            revision: inventory.revision.0,
            automation: v1::Automation::from(automation).into(),
            paused_because: self.said().paused.clone().unwrap_or_default(),
            imbalance: ballast_placement::imbalance(snapshot).get(),
            hosts: count(snapshot.hosts.len()),
            hosts_unknown: count(snapshot.hosts.values().filter(unknown).count()),
            vms: count(inventory.vms.len()),
            migrations_running: count(inventory.running().count()),
        }
    }
}

pub(super) fn plan_record(record: &PlanRecord) -> Result<v1::PlanRecord, Refusal> {
    let unwritable = |error: serde_json::Error| {
        Refusal::new(
            RefusalCode::Internal,
            format!("the plan is no JSON: {error}"),
            "report a defect",
        )
    };
    Ok(v1::PlanRecord {
        id: record.id.to_string(),
        at_unix_millis: record.at.unix_millis(),
        planning_json: serde_json::to_string(&record.planning).map_err(unwritable)?,
        snapshot_json: serde_json::to_string(&record.snapshot).map_err(unwritable)?,
    })
}

pub(super) fn of_host(vm: &VmEntry, host: Option<&HostId>) -> bool {
    host.is_none_or(|host| vm.owner.value.host == *host)
}

pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
