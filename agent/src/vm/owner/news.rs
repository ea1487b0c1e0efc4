//! What the machine does by itself, what the owner record says, and what no event tells.

use std::time::Duration;

use ballast_model::{MigrationId, Refusal, RefusalCode};
use ballast_proto::v1::MigrationState;
use tokio::time::Instant;
use tracing::{error, warn};

use super::{Owner, what_matters};
use crate::driver::MachineView;
use crate::registry::Decision;
use crate::vm::aborted::AbortedMigration;
use crate::vm::accept::Phase;
use crate::vm::react::{self, Proof, Reaction};
use crate::vm::record::Record;

/// How long a destination waits for its peer to begin or to go on, whatever the VM's size.
const PATIENCE: Duration = Duration::from_secs(30);
/// The slowest stream a destination waits for: its patience grows with the VM's memory at this rate.
const SLOWEST_BYTES_PER_SEC: u64 = 16 << 20;

impl Owner {
    /// An answer to the question about the owner record has come.
    pub(super) async fn decided(&mut self, answer: Option<(MigrationId, Decision)>) {
        let Some((migration, decision)) = answer else { return };
        if let Err(refusal) = self.carry_out(migration, &decision).await {
            error!(vm = %self.vm, %migration, %refusal, "cannot carry out what the owner record says");
        }
    }

    /// The machine's own view has changed.
    pub(super) async fn machine_changed(&mut self) {
        let seen = self.machine_view.borrow_and_update().clone();
        if self.machine.is_none() || matches!(self.phase, Phase::Empty | Phase::Stopped) {
            return;
        }
        self.progress_at = Instant::now();
        self.publish();
        self.whole(&seen);
        let reaction = react::to_machine(self.phase, what_matters(&seen), self.proof());
        self.react(reaction, &seen).await;
    }

    async fn react(&mut self, reaction: Reaction, seen: &MachineView) {
        let why = seen.migration.as_ref().and_then(|status| status.refusal.as_ref());
        match reaction {
            Reaction::Nothing => {}
            Reaction::Ask => self.ask(),
            Reaction::Settle => {
                if let Err(refusal) = self.settled() {
                    error!(vm = %self.vm, %refusal, "cannot record that the VM is here");
                }
            }
            Reaction::GoOn => {
                warn!(vm = %self.vm, ?why, "the migration failed; the VM goes on here");
                self.phase = Phase::Running;
                self.drop_question();
                self.publish();
            }
            Reaction::Discard => {
                let gone = (!seen.alive).then(|| self.machine_gone(&seen.detail));
                warn!(vm = %self.vm, ?why, ?gone, "the incoming migration failed");
                self.abort_incoming(gone.as_ref()).await;
            }
            Reaction::Stop(said) => {
                if !seen.alive {
                    warn!(vm = %self.vm, detail = seen.detail, "the machine ended");
                }
                if let Some(state) = said {
                    let aborted = state == MigrationState::Aborted;
                    let why = aborted.then(|| self.machine_gone(&seen.detail));
                    self.end_migration(state, why.as_ref());
                }
                self.stopped(&seen.detail);
            }
        }
    }

    /// What proves whether an incoming VM ran here.
    pub(super) fn proof(&self) -> Proof {
        let granted = |record: &Record| {
            record.incoming.as_ref().is_some_and(|incoming| record.epoch > incoming.source_epoch)
        };
        Proof {
            granted: self.record.as_ref().is_some_and(granted),
            unrun: self.machine.as_ref().is_some_and(|machine| machine.never_ran()),
        }
    }

    /// Says ABORTED of the incoming migration and cleans up. What was said survives this agent: the
    /// VM may have been committed meanwhile, and is then given back on this word alone.
    pub(super) async fn abort_incoming(&mut self, why: Option<&Refusal>) {
        let Phase::Incoming(migration) = self.phase else { return };
        let known = self.view.borrow().migration.as_ref().and_then(|status| status.refusal.clone());
        let reason = why.map(|why| why.reason.clone()).or(known.map(|known| known.reason));
        let reason = reason.unwrap_or_default();
        let aborted = AbortedMigration { migration, vm: self.vm.clone(), reason };
        let kept = self.context.state.keep_aborted(&aborted);
        self.end_migration(MigrationState::Aborted, why);
        // Where the machine had said nothing yet.
        self.context.migrations.publish(migration, &aborted.status());
        self.context.migrations.keep(migration);
        self.discard_or_log().await;
        // There may be room where the VM was.
        if let Err(refusal) = kept.or_else(|_| self.context.state.keep_aborted(&aborted)) {
            // This agent still says it.
            error!(vm = %self.vm, %migration, %refusal, "the next agent would not know of it");
        }
    }

    /// Gives up a VM that is this host's and was never told to run: it goes on at its source. Its
    /// machine is gone before anybody hears of it.
    pub(super) async fn give_back(&mut self, why: &Refusal) -> Result<(), Refusal> {
        warn!(vm = %self.vm, %why, "the VM cannot be taken and goes back to its source");
        self.end_machine().await?;
        self.abort_incoming(Some(why)).await;
        Ok(())
    }

    pub(super) fn machine_gone(&self, detail: &str) -> Refusal {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("the machine of VM {} ended: {detail}", self.vm),
            "look into the host's log",
        )
    }

    /// Looks at what no event tells.
    pub(super) async fn look(&mut self) {
        let seen = self.machine_view.borrow().clone();
        if self.machine.is_none() {
            return;
        }
        match (react::to_machine(self.phase, what_matters(&seen), self.proof()), self.phase) {
            (reaction @ (Reaction::Ask | Reaction::Settle), _) => {
                self.react(reaction, &seen).await;
            }
            (Reaction::Nothing, Phase::Incoming(migration))
                if self.progress_at.elapsed() > self.patience() =>
            {
                let why = Refusal::new(
                    RefusalCode::Timeout,
                    format!("migration {migration} made no progress for {:?}", self.patience()),
                    "check the source host and the network between them, then start it again",
                );
                warn!(vm = %self.vm, refusal = %why, "the incoming migration is given up");
                self.abort_incoming(Some(&why)).await;
            }
            _ => {}
        }
    }

    fn patience(&self) -> Duration {
        let memory = self.record.as_ref().map_or(0, |record| record.spec.memory.get());
        PATIENCE + Duration::from_secs(memory / SLOWEST_BYTES_PER_SEC)
    }

    /// Asks the owner record, unless it is being asked.
    fn ask(&mut self) {
        let (Phase::Incoming(migration) | Phase::Outgoing(migration)) = self.phase else { return };
        if self.question.is_some() {
            return;
        }
        let Some(record) = &self.record else { return };
        let (registry, vm) = (self.context.registry.clone(), self.vm.clone());
        let question = match &record.incoming {
            Some(incoming) => {
                let source_epoch = incoming.source_epoch;
                tokio::spawn(async move { registry.commit(migration, vm, source_epoch).await })
            }
            None => {
                let epoch = record.epoch;
                tokio::spawn(async move { registry.query(migration, vm, epoch).await })
            }
        };
        self.question = Some((migration, question));
    }

    pub(super) fn drop_question(&mut self) {
        if let Some((_, question)) = self.question.take() {
            question.abort();
        }
    }
}
