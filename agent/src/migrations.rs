//! The status of every migration this host takes or took part in.
//!
//! Written by the task that owns the VM, read by `WatchMigration`. The final
//! status stays for a while after the VM's machine is gone, so that a
//! controller that comes late still learns it. What was called off here by
//! itself stays until the controller has acknowledged it, also across agents
//! ([`crate::vm::dir::StateDir::keep_aborted`]): the VM may have to be given back.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ballast_model::{MigrationId, Refusal, RefusalCode};
use ballast_proto::v1::MigrationStatus;
use tokio::sync::watch;

/// How long an ended migration can be asked for.
const KEPT: Duration = Duration::from_secs(600);
/// The most migrations known at once; the oldest ended ones go first.
const ENTRIES_MAX: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct Migrations(Mutex<HashMap<MigrationId, Entry>>);

#[derive(Debug)]
struct Entry {
    status: watch::Sender<MigrationStatus>,
    ended: Option<Instant>,
    /// Not to be forgotten before the controller has heard of it.
    kept: bool,
}

impl Migrations {
    /// The migration stands so now. What has ended does not change any more.
    pub fn publish(&self, migration: MigrationId, status: &MigrationStatus) {
        let now = Instant::now();
        let is_end = status.state().is_ended();
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(&migration) {
            if entry.ended.is_none() {
                entry.ended = is_end.then_some(now);
                entry.status.send_if_modified(|present| {
                    let differs = present != status;
                    if differs {
                        present.clone_from(status);
                    }
                    differs
                });
            }
            return;
        }
        make_room(&mut entries, now);
        let status = watch::Sender::new(status.clone());
        entries.insert(migration, Entry { status, ended: is_end.then_some(now), kept: false });
    }

    /// Keeps what is known of the migration until [`Self::acknowledged`].
    pub fn keep(&self, migration: MigrationId) {
        if let Some(entry) = self.lock().get_mut(&migration) {
            entry.kept = true;
        }
    }

    /// The controller has heard how the migration ended.
    pub fn acknowledged(&self, migration: MigrationId) {
        if let Some(entry) = self.lock().get_mut(&migration) {
            entry.kept = false;
        }
    }

    /// Present and future statuses.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn watch(
        &self,
        migration: MigrationId,
    ) -> Result<watch::Receiver<MigrationStatus>, Refusal> {
        self.lock().get(&migration).map(|entry| entry.status.subscribe()).ok_or_else(|| {
            Refusal::new(
                RefusalCode::NotFound,
                format!("migration {migration} is not known on this host"),
                "compare the VMs of both hosts with the owner record",
            )
        })
    }

    /// The present status.
    pub fn get(&self, migration: MigrationId) -> Option<MigrationStatus> {
        self.lock().get(&migration).map(|entry| entry.status.borrow().clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MigrationId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make_room(entries: &mut HashMap<MigrationId, Entry>, now: Instant) {
    entries.retain(|_, entry| {
        entry.kept || entry.ended.is_none_or(|at| now.duration_since(at) < KEPT)
    });
    if entries.len() >= ENTRIES_MAX {
        let oldest = entries
            .iter()
            .filter_map(|(id, entry)| Some((entry.ended?, *id)))
            .min_by_key(|(at, _)| *at);
        if let Some((_, id)) = oldest {
            entries.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use ballast_proto::v1::MigrationState;

    use super::*;

    fn id(n: u32) -> MigrationId {
        format!("{n:032x}").parse().unwrap()
    }

    fn status(state: MigrationState) -> MigrationStatus {
        MigrationStatus { state: state.into(), ..MigrationStatus::default() }
    }

    #[test]
    fn an_end_stands() {
        let migrations = Migrations::default();
        assert_eq!(migrations.watch(id(1)).unwrap_err().code, RefusalCode::NotFound);
        migrations.publish(id(1), &status(MigrationState::Listening));
        let watch = migrations.watch(id(1)).unwrap();
        migrations.publish(id(1), &status(MigrationState::Aborted));
        migrations.publish(id(1), &status(MigrationState::Transferring));
        assert_eq!(watch.borrow().state(), MigrationState::Aborted);
    }

    #[test]
    fn the_table_is_bounded_and_keeps_what_runs() {
        let migrations = Migrations::default();
        migrations.publish(id(0), &status(MigrationState::Transferring));
        for n in 1..2_000 {
            migrations.publish(id(n), &status(MigrationState::Finished));
        }
        assert_eq!(migrations.lock().len(), ENTRIES_MAX);
        assert!(migrations.get(id(0)).is_some() && migrations.get(id(1999)).is_some());
        assert!(migrations.get(id(1)).is_none());
    }
}
