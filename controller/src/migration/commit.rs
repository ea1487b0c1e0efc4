//! The point of no return and what excludes it.
//!
//! A commit and an abort both compare the revision the migration's record was
//! read at, so exactly one of them happens (decision 0003). What may be written
//! is for [`super::judge`] to say.

use ballast_model::audit::action;
use ballast_model::{
    Epoch, HostId, MigrationId, MigrationPhase, Owner, ReasonTrail, Refusal, RefusalCode, VmId,
};
use ballast_proto::v1::MigrationVerdict;
use ballast_service::holdpoint::hold;

use super::judge::{self, Commit};
use crate::controller::Controller;
use crate::journal::{Act, outcome_of};
use crate::now;
use crate::state::{MigrationRecord, Versioned, VmEntry, json, unchanged};
use crate::store::{Transaction, keys};

/// Looks at the record and tries again this often when somebody else was first.
const TRIES_MAX: usize = 5;

/// What a destination asks for.
#[derive(Debug, Clone)]
pub struct CommitAsked {
    /// The migration.
    pub migration: MigrationId,
    /// Its VM.
    pub vm: VmId,
    /// The host that asks.
    pub host: HostId,
    /// The source's epoch, as the destination knows it.
    pub source_epoch: Epoch,
}

impl Controller {
    /// Hands the VM to the destination. Idempotent: asked again by the same host it grants the same epoch.
    ///
    /// # Errors
    /// `Unavailable`: ask again. `NotFound`, `InvalidArgument`, `WrongState`, `Conflict`: the
    /// destination must discard its copy.
    pub async fn commit_migration(&self, asked: &CommitAsked) -> Result<Epoch, Refusal> {
        self.leading()?;
        for _ in 0..TRIES_MAX {
            let record = self.repository.known_migration(asked.migration).await?;
            let vm = self.repository.known_vm(&record.value.migration.vm).await?;
            let owner = match judge::commit(&record.value.migration, &vm.owner.value, asked)? {
                Commit::Granted(epoch) => return Ok(epoch),
                Commit::HandOver(owner) => owner,
            };
            match self.hand_over(&record, &vm, &owner).await {
                Err(refusal) if refusal.code == RefusalCode::Conflict => {}
                answer => return answer.map(|()| owner.epoch),
            }
        }
        Err(Refusal::new(
            RefusalCode::Unavailable,
            format!("the record of migration {} changes all the time", asked.migration),
            "ask again",
        ))
    }

    /// The one transaction that moves the ownership.
    async fn hand_over(
        &self,
        record: &Versioned<MigrationRecord>,
        vm: &VmEntry,
        owner: &Owner,
    ) -> Result<(), Refusal> {
        let migration = &record.value.migration;
        let mut committed = record.value.clone();
        committed.migration.phase = MigrationPhase::Committed { epoch: owner.epoch };
        committed.migration.updated_at = now();
        if let Some(driver) = self.driver(migration.id) {
            committed.migration.progress = driver.progress();
        }
        let (key, owner_key) = (keys::migration(migration.id), keys::vm_owner(&migration.vm));
        let transaction = Transaction::when(unchanged(key.clone(), record.revision))
            .and(unchanged(owner_key.clone(), vm.owner.revision))
            .put(key, json(&committed))
            .put(owner_key, json(owner));
        hold("controller.commit", &migration.vm);
        self.repository.transact(transaction).await?;
        hold("controller.granted", &migration.vm);
        tracing::info!(
            migration = %migration.id, vm = %migration.vm, host = %owner.host, epoch = %owner.epoch,
            "committed: the destination owns the VM"
        );
        self.notify_driver(migration.id);
        Ok(())
    }

    /// Gives the VM back to the source: committed, but the destination's copy is gone and never
    /// ran, while the source still holds its own. As the commit it is one transaction over the
    /// migration's record and the owner record, so the destination can win nothing afterwards.
    ///
    /// # Errors
    /// `Conflict` when the record has changed; `Unavailable`.
    pub(crate) async fn hand_back(
        &self,
        record: &Versioned<MigrationRecord>,
        why: &str,
    ) -> Result<(), Refusal> {
        let migration = &record.value.migration;
        let vm = self.repository.known_vm(&migration.vm).await?;
        let owner = vm.owner.value.handed_to(migration.from.clone());
        let mut aborting = record.value.clone();
        aborting.migration.phase =
            MigrationPhase::Aborting { why: why.to_owned(), cancelled: false };
        aborting.migration.updated_at = now();
        let (key, owner_key) = (keys::migration(migration.id), keys::vm_owner(&migration.vm));
        let transaction = Transaction::when(unchanged(key.clone(), record.revision))
            .and(unchanged(owner_key.clone(), vm.owner.revision))
            .put(key, json(&aborting))
            .put(owner_key, json(&owner));
        self.repository.transact(transaction).await?;
        tracing::warn!(
            migration = %migration.id, vm = %migration.vm, host = %owner.host, epoch = %owner.epoch,
            %why, "given back: the source owns the VM again"
        );
        Ok(())
    }

    /// What the record says to a side that asks.
    ///
    /// # Errors
    /// `Unavailable`: ask again.
    pub async fn query_migration(
        &self,
        migration: MigrationId,
        vm: &VmId,
        host: &HostId,
    ) -> Result<(MigrationVerdict, Epoch), Refusal> {
        self.leading()?;
        let record = self.repository.migration(migration).await?;
        let owner = self.repository.vm(vm).await?.map(|vm| vm.owner.value);
        let migration = record.as_ref().map(|record| &record.value.migration);
        Ok(judge::verdict(migration, owner.as_ref(), host))
    }

    /// Writes `Aborting`, which forbids a commit from then on. Answers with the phase the record has
    /// afterwards: another one than `Aborting` means that it came too late.
    ///
    /// # Errors
    /// `NotFound`, or `Unavailable` when the store does not answer.
    pub(crate) async fn abort_migration(
        &self,
        id: MigrationId,
        why: &str,
        cancelled: bool,
    ) -> Result<MigrationPhase, Refusal> {
        for _ in 0..TRIES_MAX {
            let record = self.repository.known_migration(id).await?;
            if !record.value.migration.phase.is_before_commit() {
                return Ok(record.value.migration.phase);
            }
            let mut aborting = record.value;
            let phase = MigrationPhase::Aborting { why: why.to_owned(), cancelled };
            aborting.migration.phase = phase.clone();
            aborting.migration.updated_at = now();
            if let Some(driver) = self.driver(id) {
                aborting.migration.progress = driver.progress();
            }
            let key = keys::migration(id);
            let transaction = Transaction::when(unchanged(key.clone(), record.revision))
                .put(key, json(&aborting));
            match self.repository.transact(transaction).await {
                Ok(_) => {
                    tracing::warn!(migration = %id, %why, "a migration is aborted");
                    self.notify_driver(id);
                    return Ok(phase);
                }
                Err(refusal) if refusal.code == RefusalCode::Conflict => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Err(Refusal::new(
            RefusalCode::Unavailable,
            format!("the record of migration {id} changes all the time"),
            "try again",
        ))
    }

    /// Cancels a migration at an operator's word.
    ///
    /// # Errors
    /// `NotFound`; `WrongState` when it has committed or ended; `Unavailable`.
    pub async fn cancel_migration(
        &self,
        id: MigrationId,
        reasons: ReasonTrail,
    ) -> Result<(), Refusal> {
        let too_late = |phase: &MigrationPhase| {
            Refusal::new(
                RefusalCode::WrongState,
                format!("migration {id} is {phase} and can no longer be cancelled"),
                "let it end; migrate the VM back if it is not to stay there",
            )
        };
        let record = self.repository.known_migration(id).await?.value;
        if !record.migration.phase.is_before_commit() {
            return Err(too_late(&record.migration.phase));
        }
        let why = reasons.to_string();
        let act = Act::new(action::MIGRATION_CANCEL, id, reasons).with("vm", &record.migration.vm);
        let opened = self.journal.open(&act, Transaction::default()).await?;
        let phase = self.abort_migration(id, &why, true).await;
        let answer = match phase {
            Ok(MigrationPhase::Aborting { .. }) => Ok(()),
            Ok(phase) => Err(too_late(&phase)),
            Err(refusal) => Err(refusal),
        };
        self.journal.close(opened, outcome_of(&answer)).await;
        answer
    }
}
