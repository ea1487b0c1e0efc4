//! One task per migration.

use std::sync::Arc;
use std::time::Duration;

use ballast_model::{MigrationId, MigrationPhase, Refusal};

use crate::controller::{Controller, Driver};

/// How many times the first pause between tries grows at most.
const RETRY_GROWTH_MAX: u32 = 20;

/// What a step led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// Look at the record again.
    Continue,
    /// It is over.
    Done,
}

impl Controller {
    /// Starts the driver of a migration; nothing happens when it has one.
    pub(crate) fn spawn_driver(self: &Arc<Self>, id: MigrationId) {
        let Some(driver) = self.add_driver(id) else { return };
        let (this, acting) = (Arc::clone(self), self.acting());
        self.tasks.spawn(async move {
            tokio::select! {
                () = acting.cancelled() => {}
                () = this.drive(id, &driver) => {}
            }
            this.remove_driver(id);
            this.wake.notify_one();
        });
    }

    /// Takes the step the phase asks for until the migration has ended; pauses after a step that failed.
    async fn drive(self: &Arc<Self>, id: MigrationId, driver: &Driver) {
        let first = Duration::from_millis(self.config.migration.retry_ms);
        let mut pause = first;
        loop {
            match self.advance(id, driver).await {
                Ok(Flow::Done) => return,
                Ok(Flow::Continue) => pause = first,
                Err(refusal) => {
                    tracing::warn!(
                        migration = %id, %refusal, pause_ms = pause.as_millis(),
                        "a step of a migration is tried again"
                    );
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(first * RETRY_GROWTH_MAX);
                }
            }
        }
    }

    async fn advance(self: &Arc<Self>, id: MigrationId, driver: &Driver) -> Result<Flow, Refusal> {
        let Some(record) = self.repository.migration(id).await? else { return Ok(Flow::Done) };
        match record.value.migration.phase.clone() {
            MigrationPhase::Preparing => self.prepare(&record).await,
            MigrationPhase::Transferring { .. } => self.transfer(&record, driver).await,
            MigrationPhase::Committed { epoch } => self.finish(&record, epoch, driver).await,
            MigrationPhase::Aborting { why, cancelled } => {
                self.undo(&record, &why, cancelled, driver).await
            }
            MigrationPhase::Ended { .. } => Ok(Flow::Done),
        }
    }

    /// Starts a driver for every migration that has not ended and has none.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn pick_up_migrations(self: &Arc<Self>) -> Result<usize, Refusal> {
        let mut picked_up = 0;
        for record in self.repository.migrations().await? {
            let migration = &record.value.migration;
            if !migration.phase.is_ended() && self.driver(migration.id).is_none() {
                tracing::info!(
                    migration = %migration.id, vm = %migration.vm, phase = %migration.phase,
                    "a migration is picked up"
                );
                self.spawn_driver(migration.id);
                picked_up += 1;
            }
        }
        Ok(picked_up)
    }
}
