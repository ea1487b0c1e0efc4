//! The beginning of a migration.

use std::sync::Arc;

use ballast_model::audit::action;
use ballast_model::migration::Progress;
use ballast_model::plan::StepCause;
use ballast_model::{
    HostId, Migration, MigrationId, MigrationPhase, ReasonTrail, Refusal, RefusalCode, VmId,
};
use uuid::Uuid;

use crate::controller::Controller;
use crate::journal::Act;
use crate::now;
use crate::snapshot::Purpose;
use crate::state::{Inventory, MigrationRecord, Predicted, VmChange, VmRecord, json, unchanged};
use crate::store::{Compare, Transaction, keys};

/// What is to be moved, where to, and why.
#[derive(Debug, Clone)]
pub struct Order {
    /// The VM.
    pub vm: VmId,
    /// The destination; `None` lets the planner choose.
    pub to: Option<HostId>,
    /// Who and why.
    pub reasons: ReasonTrail,
    /// Why, as the planner sorts it.
    pub cause: Option<StepCause>,
    /// What the planner expects of it.
    pub predicted: Option<Predicted>,
    /// Who asks.
    pub purpose: Purpose,
}

impl Controller {
    /// Checks the order against the cluster as it is now, writes the record and starts its driver.
    ///
    /// # Errors
    /// Whatever `placement::check_step` or `choose_target` refuse; `RateLimited` at a cap; `Conflict`
    /// when somebody else was first; `Unavailable` when the store does not answer.
    pub async fn begin_migration(self: &Arc<Self>, order: Order) -> Result<MigrationId, Refusal> {
        let record = {
            let _turn = self.deciding.lock().await;
            self.write_beginning(&order).await?
        };
        let migration = &record.migration;
        tracing::info!(
            migration = %migration.id, vm = %migration.vm, from = %migration.from,
            to = %migration.to, why = %migration.reasons, "a migration begins"
        );
        self.metrics.migration_started();
        self.spawn_driver(migration.id);
        Ok(migration.id)
    }

    async fn write_beginning(&self, order: &Order) -> Result<MigrationRecord, Refusal> {
        let (inventory, snapshot) = self.look(order.purpose).await?;
        let to = match &order.to {
            Some(to) => to.clone(),
            None => {
                let options = self.config.plan_options();
                ballast_placement::choose_target(&snapshot, &order.vm, &options)?
            }
        };
        // A plan's later steps may put right what one of them breaks; after an order nothing comes.
        match &order.cause {
            Some(_) => ballast_placement::check_step(&snapshot, &order.vm, &to)?,
            None => ballast_placement::check_move(&snapshot, &order.vm, &to)?,
        }
        let vm = self.repository.known_vm(&order.vm).await?;
        if vm.record.value.change != VmChange::Settled {
            return Err(Refusal::new(
                RefusalCode::WrongState,
                format!("VM {} is being changed already", order.vm),
                "wait until that has ended",
            ));
        }
        let owner = &vm.owner.value;
        self.check_caps(&inventory, &owner.host, &to)?;
        let migration = Migration {
            id: MigrationId::new(Uuid::now_v7()),
            vm: order.vm.clone(),
            from: owner.host.clone(),
            to,
            source_epoch: owner.epoch,
            reasons: order.reasons.clone(),
            created_at: now(),
            updated_at: now(),
            phase: MigrationPhase::Preparing,
            progress: Progress::default(),
        };
        let record = MigrationRecord {
            migration,
            cause: order.cause.clone(),
            predicted: order.predicted,
            imbalance_before: ballast_placement::imbalance(&snapshot).get(),
        };
        let moving = VmRecord {
            spec: vm.record.value.spec.clone(),
            change: VmChange::Moving { migration: record.migration.id },
        };
        let (vm_key, owner_key) = (keys::vm_spec(&order.vm), keys::vm_owner(&order.vm));
        let key = keys::migration(record.migration.id);
        let announced = Transaction::when(Compare::Absent(key.clone()))
            .and(unchanged(vm_key.clone(), vm.record.revision))
            .and(unchanged(owner_key, vm.owner.revision))
            .put(key, json(&record))
            .put(vm_key, json(&moving));
        // Closed together with the end of the migration, by whoever drives it then.
        self.journal.open(&opening_act(&record), announced).await?;
        Ok(record)
    }

    /// Refuses what would put too many migrations on the cluster or on one host.
    fn check_caps(&self, inventory: &Inventory, from: &HostId, to: &HostId) -> Result<(), Refusal> {
        let limits = &self.config.migration;
        let limited = |reason: String| {
            Err(Refusal::new(
                RefusalCode::RateLimited,
                reason,
                "wait until one ends, or raise the limit in the controller's configuration",
            ))
        };
        let running = inventory.running().count();
        if running >= limits.migrations_max {
            return limited(format!("{running} migrations run already"));
        }
        for host in [from, to] {
            let takes_part =
                |r: &&MigrationRecord| r.migration.from == *host || r.migration.to == *host;
            let running = inventory.running().filter(takes_part).count();
            if running >= limits.migrations_per_host_max {
                return limited(format!("host {host} takes part in {running} migrations already"));
            }
        }
        Ok(())
    }
}

/// The audit's view of a migration at its beginning.
fn opening_act(record: &MigrationRecord) -> Act {
    let migration = &record.migration;
    let mut act = Act::new(action::MIGRATION, migration.id, migration.reasons.clone())
        .with("vm", &migration.vm)
        .with("from", &migration.from)
        .with("to", &migration.to)
        .with("source_epoch", migration.source_epoch.0);
    if let Some(predicted) = record.predicted {
        act = act
            .with("predicted_gain", format!("{:.4}", predicted.gain))
            .with("predicted_bytes", predicted.bytes.get())
            .with("predicted_ms", predicted.duration.as_millis());
    }
    act
}
