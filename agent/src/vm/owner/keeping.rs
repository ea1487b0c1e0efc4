//! What is kept of the VM: its record, its machine and its disks, and what is shown of them.

use std::path::Path;
use std::sync::Arc;

use ballast_model::{MigrationId, Refusal, RefusalCode};
use ballast_proto::v1::{MigrationRole, MigrationState, MigrationStatus};
use tracing::error;

use super::{Owner, what_matters};
use crate::driver::{Machine, MachineView};
use crate::vm::VmView;
use crate::vm::accept::Phase;
use crate::vm::react;
use crate::vm::record::Record;

impl Owner {
    /// Directory, record, empty machine, record with its process: in this order.
    pub(super) async fn make(
        &mut self,
        mut record: Record,
        restore_from: Option<&Path>,
    ) -> Result<Arc<dyn Machine>, Refusal> {
        self.dir.create()?;
        record.store(&self.dir)?;
        self.record = Some(record.clone());
        if let (Some(_), Some(disks)) = (&record.incoming, &self.context.disks) {
            disks.expect(&record.spec)?;
        }
        let machine = self.context.driver.spawn(&record.spec, restore_from, &self.dir).await?;
        self.take(machine.clone());
        record.process = machine.process();
        if record.process.is_some() {
            record.store(&self.dir)?;
        }
        self.record = Some(record);
        Ok(machine)
    }

    pub(super) fn take(&mut self, machine: Arc<dyn Machine>) {
        self.machine_view = machine.view();
        self.machine = Some(machine);
    }

    /// The incoming VM is this host's now.
    pub(super) fn settled(&mut self) -> Result<(), Refusal> {
        self.phase = Phase::Running;
        self.publish();
        self.keep_disks();
        let fetching = fetching(&self.machine_view.borrow());
        self.change_record(|record| (record.incoming, record.fetching) = (None, fetching))
    }

    /// Records that all of the VM's memory is here, once it is.
    pub(super) fn whole(&mut self, seen: &MachineView) {
        let fetched = self.record.as_ref().is_some_and(|record| record.fetching.is_some());
        if !fetched || !seen.alive || fetching(seen).is_some() {
            return;
        }
        if let Err(refusal) = self.change_record(|record| record.fetching = None) {
            error!(vm = %self.vm, %refusal, "cannot record that all of the VM's memory is here");
        }
    }

    pub(super) fn stopped(&mut self, detail: &str) {
        self.drop_question();
        self.phase = Phase::Stopped;
        // It was here: what came with it is its own, whatever ended it.
        self.keep_disks();
        let stored = self.change_record(|record| {
            record.ended.get_or_insert_with(|| detail.to_owned());
            record.incoming = None;
        });
        if let Err(refusal) = stored {
            error!(vm = %self.vm, %refusal, "cannot record that the VM has stopped");
        }
        self.publish();
    }

    /// Gives the disks that came with the VM their names. It runs without, too.
    pub(super) fn keep_disks(&self) {
        let (Some(record), Some(disks)) = (&self.record, &self.context.disks) else { return };
        if let Err(refusal) = disks.keep(&record.spec) {
            error!(vm = %self.vm, %refusal, "a disk that came with the VM has not got its name");
        }
    }

    /// Removes the disks of a VM that runs elsewhere, with its own. Freeing a large file takes
    /// its time.
    pub(super) async fn remove_disks(&self) {
        let (Some(record), Some(disks)) = (&self.record, &self.context.disks) else { return };
        let (spec, disks) = (record.spec.clone(), disks.clone());
        let removed = tokio::task::spawn_blocking(move || disks.remove(&spec)).await;
        if let Ok(Err(refusal)) = removed {
            error!(vm = %self.vm, %refusal, "a disk stays behind; the VM cannot come back before it is removed");
        }
    }

    pub(super) fn change_record(
        &mut self,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), Refusal> {
        let mut record = self.record.clone().ok_or_else(|| self.without_record())?;
        change(&mut record);
        record.store(&self.dir)?;
        self.record = Some(record);
        Ok(())
    }

    /// Passes a result on; after a failure nothing half-made stays.
    pub(super) async fn or_discard<T>(&mut self, result: Result<T, Refusal>) -> Result<T, Refusal> {
        if result.is_err() {
            self.discard_or_log().await;
        }
        result
    }

    pub(super) async fn discard_or_log(&mut self) {
        if let Err(refusal) = self.discard().await {
            error!(vm = %self.vm, %refusal, "cannot clean up");
        }
    }

    pub(super) async fn end_machine(&mut self) -> Result<(), Refusal> {
        if let Some(machine) = &self.machine {
            machine.shutdown().await?;
        }
        self.machine_view = self.no_machine.subscribe();
        self.machine = None;
        Ok(())
    }

    /// Ends the machine and removes what is kept of the VM; of one that was to come here its
    /// disks, too.
    pub(super) async fn discard(&mut self) -> Result<(), Refusal> {
        self.drop_question();
        let may_have_run = self.proof().may_have_run();
        self.end_machine().await?;
        if let (Some(record), Some(disks)) = (&self.record, &self.context.disks)
            && record.incoming.is_some()
        {
            // In doubt what has arrived may be the only copy.
            if may_have_run { self.keep_disks() } else { disks.forget(&record.spec)? }
        }
        self.dir.remove()?;
        self.record = None;
        self.phase = Phase::Empty;
        self.gone = true;
        self.publish();
        Ok(())
    }

    /// Writes the end of the present migration, where the machine could not say it.
    pub(super) fn end_migration(&self, state: MigrationState, why: Option<&Refusal>) {
        let Some(mut status) = self.view.borrow().migration.clone() else { return };
        let Ok(migration) = status.migration.parse() else { return };
        if !status.state().is_ended() {
            status.set_state(state);
            status.refusal = why.map(Into::into);
            self.context.migrations.publish(migration, &status);
        }
    }

    /// Shows the VM as it is.
    pub(super) fn publish(&self) {
        let seen = self.machine_view.borrow().clone();
        if let Some(status) = &seen.migration
            && let Ok(migration) = status.migration.parse()
        {
            self.context.migrations.publish(migration, status);
        }
        let ended = self.record.as_ref().and_then(|record| record.ended.clone());
        let migration = seen.migration.clone().or_else(|| self.cut_short());
        self.view.send_replace(VmView {
            spec: self.record.as_ref().map(|record| Arc::new(record.spec.clone())),
            epoch: self.standing().epoch,
            phase: self.phase,
            state: react::shown(self.phase, what_matters(&seen)),
            detail: ended.unwrap_or(seen.detail),
            migration,
            machine: self.machine.clone(),
        });
    }

    /// The migration that an earlier agent saw under way when the VM ran here without all of its
    /// memory, and of which there is no machine left to say anything.
    fn cut_short(&self) -> Option<MigrationStatus> {
        if self.phase != Phase::Stopped {
            return None;
        }
        let migration = self.record.as_ref()?.fetching?;
        Some(MigrationStatus {
            migration: migration.to_string(),
            vm: self.vm.to_string(),
            role: MigrationRole::Destination.into(),
            state: MigrationState::Fetching.into(),
            ..MigrationStatus::default()
        })
    }

    pub(super) fn without_record(&self) -> Refusal {
        Refusal::new(
            RefusalCode::Internal,
            format!("VM {} has no record or no machine", self.vm),
            "report a defect",
        )
    }
}

/// The migration by which the machine's guest came, if a part of its memory is still at the source.
fn fetching(seen: &MachineView) -> Option<MigrationId> {
    let status = seen.migration.as_ref()?;
    let fetches =
        status.role() == MigrationRole::Destination && status.state() == MigrationState::Fetching;
    fetches.then(|| status.migration.parse().ok()).flatten()
}
