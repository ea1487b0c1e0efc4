//! A committed migration whose destination is gone for good, settled at an operator's word.
//!
//! Nobody but the destination knows whether the guest ran there, so the
//! controller waits for it as long as it takes, and the source keeps its copy.
//! When the host will never come back, somebody has to say so. That is not for
//! the controller: silence looks the same whether a host is dead or cut off, and
//! giving back the VM of one that is cut off would run it twice. Who says it has
//! fenced the host, names it, and stands in the audit.

use ballast_model::audit::action;
use ballast_model::{
    HostId, MigrationId, MigrationOutcome, MigrationPhase, ReasonTrail, Refusal, RefusalCode,
};
use ballast_proto::v1::MigrationVerdict;

use super::judge::{self, Settlement};
use crate::controller::Controller;
use crate::journal::{Act, outcome_of};
use crate::state::{MigrationRecord, Versioned};
use crate::store::Transaction;

impl Controller {
    /// Settles it. What [`judge::settle`] allows is written with a comparison of the record, so a
    /// destination that comes back after all is either first, or too late.
    ///
    /// # Errors
    /// As [`judge::settle`]; `NotFound`; `Conflict` when the record has changed; `Unavailable`.
    pub async fn settle_migration(
        &self,
        id: MigrationId,
        fenced: &HostId,
        settlement: Settlement,
        reasons: ReasonTrail,
    ) -> Result<(), Refusal> {
        let record = self.repository.known_migration(id).await?;
        let migration = &record.value.migration;
        let vm = self.repository.known_vm(&migration.vm).await?;
        let spec = &vm.record.value.spec;
        // What can be said without the host is said at once.
        judge::settle(migration, spec, fenced, false, settlement)?;
        let answers = match self.agent(&migration.to).await {
            Ok(agent) => agent.list_vms().await.is_ok(),
            Err(_) => false,
        };
        judge::settle(migration, spec, fenced, answers, settlement)?;
        let name = match settlement {
            Settlement::GiveBack => "given back",
            Settlement::Lost => "lost",
        };
        let why = format!("host {fenced} was declared fenced, the VM {name}: {reasons}");
        let act = Act::new(action::MIGRATION_SETTLE, id, reasons)
            .with("vm", &migration.vm)
            .with("fenced_host", fenced)
            .with("settlement", name);
        let opened = self.journal.open(&act, Transaction::default()).await?;
        let answer = match settlement {
            Settlement::GiveBack => self.hand_back(&record, &why).await,
            Settlement::Lost => self.declare_lost(&record, why).await,
        };
        self.notify_driver(id);
        self.journal.close(opened, outcome_of(&answer)).await;
        answer
    }

    /// Writes the end first: a source that has discarded its copy cannot be given the VM back.
    async fn declare_lost(
        &self,
        record: &Versioned<MigrationRecord>,
        why: String,
    ) -> Result<(), Refusal> {
        let migration = &record.value.migration;
        let MigrationPhase::Committed { epoch } = migration.phase else { return Ok(()) };
        let driver = self.driver(migration.id).ok_or_else(|| {
            Refusal::new(
                RefusalCode::Unavailable,
                format!("migration {} is being taken over", migration.id),
                "try again",
            )
        })?;
        self.end_migration(record, MigrationOutcome::Failed { why }, &driver).await?;
        let verdict = MigrationVerdict::Superseded;
        let told = match self.agent(&migration.from).await {
            Ok(source) => {
                source.resolve(migration.id, &migration.vm, verdict, epoch).await.map(drop)
            }
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = told {
            // It asks the record, which says the same.
            tracing::warn!(migration = %migration.id, %refusal, "the source was not told");
        }
        Ok(())
    }
}
