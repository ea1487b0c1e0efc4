//! One modelled machine: its state, kept in `sim.json`, and who may change it how.
//!
//! The guest is a function of the time it ran, so that it goes on while no
//! agent is there. Every change is on disk before it is seen.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ballast_model::migration::Progress;
use ballast_model::{MigrationId, Refusal, RefusalCode, Timestamp, VmSpec};
use ballast_proto::v1::{self, MigrationRole, MigrationState, VmState};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::model::Guest;
use crate::driver::MachineView;
use crate::vm::dir::VmDir;

const FILE: &str = "sim.json";
const BYTES_MAX: u64 = 1 << 20;

/// What is kept of a modelled machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    pub(super) spec: VmSpec,
    /// How long the guest had run when `since` began.
    ran: Duration,
    /// Since when it runs; none while it does not.
    since: Option<Timestamp>,
    pub(super) migration: Option<SavedMigration>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedMigration {
    pub(super) id: MigrationId,
    pub(super) source: bool,
    /// The migration has come to READY, or may have.
    pub(super) ready: bool,
    pub(super) progress: Progress,
}

/// The state of a machine behind its lock, with all who watch it.
pub(super) struct Cell {
    dir: VmDir,
    inner: Mutex<Inner>,
    view: watch::Sender<MachineView>,
}

pub(super) struct Inner {
    pub(super) saved: Option<Saved>,
    pub(super) guest: Option<Guest>,
    /// Ends the running transfer.
    pub(super) transfer: CancellationToken,
    /// When READY was reached, for the commit's share of the downtime.
    pub(super) ready_at: Option<Instant>,
}

impl Cell {
    /// An empty machine.
    pub(super) fn empty(dir: VmDir) -> Self {
        let inner =
            Inner { saved: None, guest: None, transfer: CancellationToken::new(), ready_at: None };
        let view = MachineView { alive: true, state: VmState::Created, ..MachineView::default() };
        Self { dir, inner: Mutex::new(inner), view: watch::Sender::new(view) }
    }

    /// The machine kept in `dir`. A transfer that was running died with its agent: a source goes on,
    /// a destination is gone.
    pub(super) fn load(dir: VmDir) -> Result<Option<Self>, Refusal> {
        let Some(bytes) = dir.read(FILE, BYTES_MAX)? else { return Ok(None) };
        let saved: Saved = serde_json::from_slice(&bytes).map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("{FILE} cannot be understood: {error}"),
                "remove the VM's directory if the VM is not wanted",
            )
        })?;
        let lost = |m: &SavedMigration| !m.ready && saved.since.is_none();
        if saved.migration.as_ref().is_some_and(lost) {
            return Ok(None);
        }
        let guest = Guest::new(&saved.spec)?;
        let cell = Self::empty(dir);
        let mut view = MachineView { alive: true, ..MachineView::default() };
        view.state = match (&saved.since, &saved.migration) {
            (Some(_), _) => VmState::Running,
            (None, Some(m)) if !m.source => VmState::Incoming,
            _ => VmState::Paused,
        };
        view.migration = saved.migration.as_ref().map(|m| {
            let state = match (m.ready, m.source, saved.since) {
                (true, false, Some(_)) => MigrationState::Finished,
                (true, ..) => MigrationState::Ready,
                (false, ..) => MigrationState::Aborted,
            };
            let mut status = status_of(&saved, m, state);
            if state == MigrationState::Aborted {
                status.refusal = Some((&interrupted()).into());
            }
            status
        });
        {
            let mut inner = cell.lock();
            inner.saved = Some(saved);
            inner.guest = Some(guest);
        }
        cell.view.send_replace(view);
        Ok(Some(cell))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn watch(&self) -> watch::Receiver<MachineView> {
        self.view.subscribe()
    }

    /// Stores the state as it is now, then shows it.
    pub(super) fn commit(
        &self,
        inner: &Inner,
        state: VmState,
        migration: Option<MigrationState>,
        refusal: Option<&Refusal>,
    ) -> Result<(), Refusal> {
        if let Some(saved) = &inner.saved {
            let bytes = serde_json::to_vec(saved).map_err(|error| {
                Refusal::new(RefusalCode::Internal, error.to_string(), "report a defect")
            })?;
            self.dir.write(FILE, &bytes)?;
        }
        self.show(inner, state, migration, refusal);
        Ok(())
    }

    /// Shows the state without storing it: for what a restart of the agent may forget.
    pub(super) fn show(
        &self,
        inner: &Inner,
        state: VmState,
        migration: Option<MigrationState>,
        refusal: Option<&Refusal>,
    ) {
        self.view.send_modify(|view| {
            view.state = state;
            let saved = inner.saved.as_ref();
            let known = saved.and_then(|saved| Some((saved, saved.migration.as_ref()?)));
            if let (Some(migration), Some((saved, record))) = (migration, known) {
                let mut status = status_of(saved, record, migration);
                status.refusal = refusal.map(Into::into);
                view.migration = Some(status);
            }
        });
    }

    /// The machine is no more.
    pub(super) fn end(&self, detail: &str) {
        self.lock().transfer.cancel();
        self.view.send_modify(|view| {
            view.alive = false;
            view.state = VmState::Stopped;
            detail.clone_into(&mut view.detail);
        });
    }
}

impl Inner {
    /// Starts with `saved` as the machine.
    pub(super) fn fill(&mut self, spec: &VmSpec) -> Result<(), Refusal> {
        if self.saved.is_some() {
            return Err(Refusal::new(
                RefusalCode::WrongState,
                format!("the machine of VM {} is in use", spec.id),
                "make a new one",
            ));
        }
        self.guest = Some(Guest::new(spec)?);
        self.saved =
            Some(Saved { spec: spec.clone(), ran: Duration::ZERO, since: None, migration: None });
        Ok(())
    }

    /// How long the guest has run.
    pub(super) fn ran(&self) -> Duration {
        self.saved.as_ref().map_or(Duration::ZERO, Saved::ran)
    }

    /// Stops the guest's time.
    pub(super) fn pause(&mut self) {
        if let Some(saved) = &mut self.saved {
            saved.ran = saved.ran();
            saved.since = None;
        }
    }

    /// Lets the guest's time go on.
    pub(super) fn resume(&mut self) {
        if let Some(saved) = &mut self.saved
            && saved.since.is_none()
        {
            saved.since = Some(Timestamp::from(SystemTime::now()));
        }
    }

    /// Sets how long the guest ran elsewhere.
    pub(super) fn set_ran(&mut self, ran: Duration) {
        if let Some(saved) = &mut self.saved {
            saved.ran = ran;
        }
    }

    pub(super) fn migration(&mut self) -> Option<&mut SavedMigration> {
        self.saved.as_mut()?.migration.as_mut()
    }

    pub(super) fn running(&self) -> bool {
        self.saved.as_ref().is_some_and(|saved| saved.since.is_some())
    }
}

impl Saved {
    fn ran(&self) -> Duration {
        let since = self.since.map(|since| Timestamp::from(SystemTime::now()).since(since));
        self.ran + since.unwrap_or_default()
    }
}

fn status_of(saved: &Saved, record: &SavedMigration, state: MigrationState) -> v1::MigrationStatus {
    let role = if record.source { MigrationRole::Source } else { MigrationRole::Destination };
    v1::MigrationStatus {
        migration: record.id.to_string(),
        vm: saved.spec.id.to_string(),
        role: role.into(),
        state: state.into(),
        progress: Some(record.progress.into()),
        refusal: None,
    }
}

fn interrupted() -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        "the agent ended while the migration was running",
        "start the migration again",
    )
}
