//! The one VM of this process: what it is now, and what may be done to it.
//!
//! ```text
//!   Created ──boot──▶ Runs ──migration: SUPERSEDED──▶ Gone
//!      │               ▲ │
//!      │               │ └─ pause, resume, send (and come back)
//!      │               └─ save, then stop ──▶ Saved
//!      ├──restore──▶ Runs
//!      └──receive──▶ Incoming ──COMMIT──┘
//!                      └─ ABORT, trouble ──▶ Gone
//! ```
//!
//! [`Vm`] is the owner of all of it: every change of stage happens here, under
//! one lock, held only for the change itself. What takes time (building a
//! machine, a migration) happens outside the lock, in a stage that says so.
//! Everything here blocks, briefly or long: the service calls it from threads
//! that may.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ballast_model::{Epoch, MigrationId, Refusal, RefusalCode, VmId, VmSpec};
use ballast_proto::v1::{MigrationRole as Role, MigrationState as State, VmState};
use ballast_service::exit::exit_code;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::devices::Beginning;
use crate::devices::console::log::LogFiles;
use crate::machine::{Machine, Surroundings};
use crate::memory::Taken;
use crate::migration::control::Control;
use crate::migration::postcopy::fetching::{Fetching, Outcome};
use crate::migration::{destination, source};
use crate::power::GuestEnd;
use crate::sample::{Load, Sampler};
use crate::snapshot::{self, After, Saved};
use crate::unrun::UnrunMark;
use crate::vcpu::OnEnd;

/// The VM of this process.
#[derive(Debug)]
pub(crate) struct Vm {
    id: VmId,
    owned: Mutex<Owned>,
    sampler: Mutex<Sampler>,
    unrun: UnrunMark,
    /// Where the paths of local disks begin on this host.
    disk_root: PathBuf,
    /// Until there is a machine to write it.
    console_log: Mutex<Option<LogFiles>>,
    /// Cancelled when the process has nothing left to do.
    quit: CancellationToken,
}

#[derive(Debug)]
struct Owned {
    spec: Option<VmSpec>,
    epoch: Epoch,
    stage: Stage,
    /// The newest migration; kept after its end for whoever asks.
    migration: Option<Arc<Control>>,
    /// Its snapshot is being taken.
    saving: bool,
}

#[derive(Debug)]
enum Stage {
    Created,
    /// A machine is being built; how far its memory is.
    Building(Arc<Taken>),
    Runs(Arc<Machine>),
    Incoming(Arc<Machine>),
    /// It has ended, and goes on from this file.
    Saved(PathBuf),
    Gone,
}

/// What the VM is at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) spec: Option<VmSpec>,
    pub(crate) epoch: Epoch,
    pub(crate) state: VmState,
    pub(crate) detail: String,
    pub(crate) migration: Option<Arc<Control>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wrong_state(reason: String, remedy: &str) -> Refusal {
    Refusal::new(RefusalCode::WrongState, reason, remedy)
}

fn on_end() -> OnEnd {
    Arc::new(|why: &GuestEnd| {
        if why.is_orderly() {
            tracing::info!(%why, "the guest has ended");
        } else {
            tracing::warn!(%why, "the guest has ended");
        }
    })
}

impl Owned {
    fn state(&self) -> VmState {
        match &self.stage {
            Stage::Created | Stage::Building(_) => VmState::Created,
            Stage::Incoming(_) => VmState::Incoming,
            Stage::Saved(_) | Stage::Gone => VmState::Stopped,
            Stage::Runs(machine) if machine.vcpus.ended().is_some() => VmState::Stopped,
            Stage::Runs(machine) if machine.vcpus.is_running() => VmState::Running,
            Stage::Runs(_) => VmState::Paused,
        }
    }

    fn detail(&self) -> String {
        match &self.stage {
            Stage::Building(taken) => match taken.percent() {
                Some(percent) => format!("{percent} % of its memory is taken"),
                None => "its machine is being built".to_owned(),
            },
            Stage::Saved(path) => format!("stopped by its snapshot {}", path.display()),
            Stage::Gone => "it is no longer here".to_owned(),
            Stage::Runs(machine) => {
                let ended = machine.vcpus.ended().map(|why| why.to_string());
                ended.or_else(|| self.fetch_detail()).unwrap_or_default()
            }
            Stage::Created | Stage::Incoming(_) => String::new(),
        }
    }

    /// What there is to say while memory is on two hosts.
    fn fetch_detail(&self) -> Option<String> {
        let status = self.migration.as_ref()?.status();
        let left = status.progress.bytes_remaining;
        match (status.state, status.refusal, status.role) {
            (State::Fetching, Some(why), _) => Some(why.reason),
            (State::Fetching, None, Role::Destination) => {
                Some(format!("{left} of its memory are still to come from its source"))
            }
            (State::Fetching, None, _) => {
                Some(format!("it runs elsewhere and fetches {left} of its memory from here"))
            }
            _ => None,
        }
    }

    fn machine(&self) -> Option<&Arc<Machine>> {
        match &self.stage {
            Stage::Runs(machine) | Stage::Incoming(machine) => Some(machine),
            Stage::Created | Stage::Building(_) | Stage::Saved(_) | Stage::Gone => None,
        }
    }

    /// Whether something is under way that nothing else may come between.
    fn occupied(&self) -> bool {
        self.saving || self.migrates()
    }

    /// Whether it runs here without all of its memory.
    fn fetches(&self) -> bool {
        let fetches = |migration: &Arc<Control>| {
            let status = migration.status();
            status.role == Role::Destination && status.state == State::Fetching
        };
        self.migration.as_ref().is_some_and(fetches)
    }

    fn migrates(&self) -> bool {
        self.migration.as_ref().is_some_and(|migration| !migration.status().has_ended())
    }
}

impl Vm {
    pub(crate) fn new(
        id: VmId,
        unrun: UnrunMark,
        disk_root: PathBuf,
        quit: CancellationToken,
        console_log: Option<LogFiles>,
    ) -> Self {
        let owned = Owned {
            spec: None,
            epoch: Epoch(0),
            stage: Stage::Created,
            migration: None,
            saving: false,
        };
        let console_log = Mutex::new(console_log);
        let (owned, sampler) = (Mutex::new(owned), Mutex::default());
        Self { id, owned, sampler, unrun, disk_root, console_log, quit }
    }

    pub(crate) fn id(&self) -> &VmId {
        &self.id
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let owned = lock(&self.owned);
        Snapshot {
            spec: owned.spec.clone(),
            epoch: owned.epoch,
            state: owned.state(),
            detail: owned.detail(),
            migration: owned.migration.clone(),
        }
    }

    /// Builds the machine and starts the guest. When it comes to nothing, the
    /// process is as it was.
    ///
    /// # Errors
    /// `WrongState` when there is a machine already, and those of [`Machine::boot`].
    pub(crate) fn boot(&self, spec: VmSpec, epoch: Epoch) -> Result<(), Refusal> {
        let machine = self.build(&spec, Machine::boot)?;
        self.run(&machine)?;
        tracing::info!(%epoch, kernel = %spec.kernel.display(), "the guest runs");
        let mut owned = lock(&self.owned);
        (owned.spec, owned.epoch, owned.stage) = (Some(spec), epoch, Stage::Runs(machine));
        Ok(())
    }

    /// Builds the machine that a snapshot holds and lets the guest go on. When it
    /// comes to nothing, the process is as it was.
    ///
    /// # Errors
    /// `WrongState` when there is a machine already, and those of [`snapshot::restore`].
    pub(crate) fn restore(&self, spec: VmSpec, epoch: Epoch, path: &Path) -> Result<(), Refusal> {
        let machine = self.build(&spec, |spec, around| snapshot::restore(spec, path, around))?;
        self.run(&machine)?;
        tracing::info!(%epoch, from = %path.display(), "the guest goes on");
        let mut owned = lock(&self.owned);
        (owned.spec, owned.epoch, owned.stage) = (Some(spec), epoch, Stage::Runs(machine));
        Ok(())
    }

    /// Writes the VM to a file. With [`After::Stop`] it has ended when this returns well.
    ///
    /// # Errors
    /// `WrongState` when there is none or it migrates, and those of [`snapshot::save`].
    pub(crate) fn save(&self, path: &Path, after: After) -> Result<Saved, Refusal> {
        let (machine, spec) = {
            let mut owned = lock(&self.owned);
            let found = match (&owned.stage, &owned.spec) {
                (Stage::Runs(machine), Some(spec)) if !owned.occupied() => {
                    (Arc::clone(machine), spec.clone())
                }
                _ => return Err(self.unsettled()),
            };
            owned.saving = true;
            found
        };
        let saved = snapshot::save(&machine, &spec, &self.disk_root, path, after);
        let mut owned = lock(&self.owned);
        owned.saving = false;
        if saved.is_ok() && after == After::Stop {
            machine.end();
            owned.stage = Stage::Saved(path.to_owned());
        }
        drop(owned);
        saved
    }

    /// Builds a machine for a migration to fill. When it comes to nothing, the
    /// process is as it was.
    ///
    /// # Errors
    /// `WrongState` when there is a machine already, and those of [`Machine::empty`].
    pub(crate) fn expect_migration(
        &self,
        spec: VmSpec,
        source_epoch: Epoch,
        migration: MigrationId,
    ) -> Result<Arc<Control>, Refusal> {
        let machine = self.build(&spec, |spec, around| {
            self.unrun.set()?;
            Machine::empty(spec, Beginning::Arrival, around)
        })?;
        let control = Control::new(migration, self.id.clone(), Role::Destination, State::Listening);
        let control = Arc::new(control);
        let mut owned = lock(&self.owned);
        (owned.spec, owned.epoch) = (Some(spec), source_epoch);
        owned.stage = Stage::Incoming(machine);
        owned.migration = Some(Arc::clone(&control));
        Ok(control)
    }

    /// Lets a new machine run; when it cannot, the process is as it was.
    fn run(&self, machine: &Machine) -> Result<(), Refusal> {
        machine.resume().inspect_err(|_| lock(&self.owned).stage = Stage::Created)
    }

    fn build(
        &self,
        spec: &VmSpec,
        build: impl FnOnce(&VmSpec, &Surroundings) -> Result<Machine, Refusal>,
    ) -> Result<Arc<Machine>, Refusal> {
        if spec.id != self.id {
            return Err(Refusal::new(
                RefusalCode::InvalidArgument,
                format!("this process is for VM {}, not {}", self.id, spec.id),
                "start a process of its own for each VM",
            ));
        }
        let around = Surroundings {
            disk_root: self.disk_root.clone(),
            on_end: on_end(),
            taken: Arc::default(),
        };
        {
            let mut owned = lock(&self.owned);
            if !matches!(owned.stage, Stage::Created) {
                return Err(wrong_state(
                    format!("VM {} has a machine already", self.id),
                    "start a process of its own for each VM",
                ));
            }
            owned.stage = Stage::Building(Arc::clone(&around.taken));
        }
        let machine = build(spec, &around).map(Arc::new);
        match &machine {
            Ok(machine) => match lock(&self.console_log).take().map(LogFiles::start) {
                Some(Ok(log)) => machine.devices.console.log_to(log),
                Some(Err(error)) => tracing::error!(%error, "the console is not logged"),
                None => {}
            },
            Err(_) => lock(&self.owned).stage = Stage::Created,
        }
        machine
    }

    /// Receives a migration over a connection whose peer has shown the token.
    /// Returns when the VM runs here or has been discarded.
    pub(crate) fn receive(&self, incoming: destination::Incoming, control: &Arc<Control>) {
        let machine = match &lock(&self.owned).stage {
            Stage::Incoming(machine) => Arc::clone(machine),
            _ => return,
        };
        match destination::receive(&machine, incoming, control, &self.unrun) {
            destination::Ending::Runs(epoch, fetching) => {
                {
                    let mut owned = lock(&self.owned);
                    (owned.epoch, owned.stage) = (epoch, Stage::Runs(machine));
                    if fetching.is_some() {
                        // Nobody sees the one without the other.
                        control.update(|status| status.state = State::Fetching);
                    }
                }
                tracing::info!(%epoch, "the guest runs here");
                if let Some(fetching) = fetching {
                    await_memory(fetching, control);
                }
                control.end(State::Finished, None);
            }
            destination::Ending::Discarded(why) => self.discard_incoming(control, why),
        }
    }

    /// Ends a destination that will not run: the process has nothing left to do.
    pub(crate) fn discard_incoming(&self, control: &Control, why: Refusal) {
        tracing::warn!(%why, "the incoming migration is discarded");
        lock(&self.owned).stage = Stage::Gone;
        control.end(State::Aborted, Some(why));
        self.quit.cancel();
    }

    /// Begins to send; `agreed` hears when the destination has accepted.
    ///
    /// # Errors
    /// `WrongState` when the VM does not run or migrates already.
    pub(crate) fn begin_send(
        self: &Arc<Self>,
        order: source::Order,
        agreed: oneshot::Sender<Result<(), Refusal>>,
    ) -> Result<Arc<Control>, Refusal> {
        let mut owned = lock(&self.owned);
        let state = owned.state();
        let machine = match owned.machine() {
            Some(machine) if state == VmState::Running && !owned.occupied() => Arc::clone(machine),
            _ => {
                return Err(wrong_state(
                    format!("VM {} is {state:?}, migrates already or is being saved", self.id),
                    "migrate a VM that runs, one migration at a time",
                ));
            }
        };
        let migration = order.hello.migration;
        let control = Control::new(migration, self.id.clone(), Role::Source, State::Transferring);
        let control = Arc::new(control);
        let (vm, shared) = (Arc::clone(self), Arc::clone(&control));
        std::thread::Builder::new()
            .name("migration".to_owned())
            .spawn(move || vm.send(&machine, order, &shared, agreed))
            .map_err(|error| no_thread(&error))?;
        owned.migration = Some(Arc::clone(&control));
        Ok(control)
    }

    fn send(
        &self,
        machine: &Arc<Machine>,
        order: source::Order,
        control: &Arc<Control>,
        agreed: oneshot::Sender<Result<(), Refusal>>,
    ) {
        match source::send(machine, order, control, agreed) {
            (source::Ending::GoesOn, refusal) => {
                if let Some(why) = &refusal {
                    tracing::warn!(%why, "the migration is over; the guest goes on here");
                }
                control.end(State::Aborted, refusal);
            }
            (source::Ending::Superseded, _) => {
                // It may still run when the verdict came early: it must not.
                machine.end();
                lock(&self.owned).stage = Stage::Gone;
                control.end(State::Finished, None);
                tracing::info!("the VM is another host's now");
                self.quit.cancel();
            }
        }
    }

    /// The migration with this id.
    ///
    /// # Errors
    /// `NotFound` when it is another or there is none.
    pub(crate) fn migration(&self, id: MigrationId) -> Result<Arc<Control>, Refusal> {
        let migration = lock(&self.owned).migration.clone();
        migration.filter(|control| control.status().migration == id).ok_or_else(|| {
            Refusal::new(
                RefusalCode::NotFound,
                format!("VM {} takes no part in migration {id}", self.id),
                "check the migration's id",
            )
        })
    }

    /// Load since the call before; zero while there is no guest.
    pub(crate) fn sample(&self) -> Load {
        let (machine, whole) = {
            let owned = lock(&self.owned);
            match &owned.stage {
                Stage::Runs(machine) => (Arc::clone(machine), !owned.fetches()),
                _ => return Load::default(),
            }
        };
        lock(&self.sampler).sample(&machine, whole)
    }

    /// Console output from `offset` on; see [`crate::devices::console::Console::read`].
    pub(crate) fn console(&self, offset: u64) -> (u64, Vec<u8>) {
        let machine = lock(&self.owned).machine().map(Arc::clone);
        machine.map_or((offset, Vec::new()), |machine| machine.devices.console.read(offset))
    }

    /// Types at the console; how many bytes the guest's port took.
    ///
    /// # Errors
    /// `WrongState` when no guest runs here.
    pub(crate) fn type_at_console(&self, bytes: &[u8]) -> Result<usize, Refusal> {
        let machine = match &lock(&self.owned).stage {
            Stage::Runs(machine) => Arc::clone(machine),
            _ => {
                return Err(wrong_state(
                    format!("VM {} does not run here", self.id),
                    "try again once it runs",
                ));
            }
        };
        Ok(machine.devices.type_at_console(bytes))
    }

    /// Stops the guest between two instructions. Idempotent.
    ///
    /// # Errors
    /// `WrongState` when there is none or it migrates.
    pub(crate) fn pause(&self) -> Result<(), Refusal> {
        self.settled_machine()?.pause()
    }

    /// Lets the guest go on. Idempotent.
    ///
    /// # Errors
    /// `WrongState` when there is none or it migrates, and those of [`Machine::resume`].
    pub(crate) fn resume(&self) -> Result<(), Refusal> {
        self.settled_machine()?.resume()
    }

    fn unsettled(&self) -> Refusal {
        wrong_state(
            format!("VM {} does not run here, is being migrated or is being saved", self.id),
            "wait for the end of that, or boot the VM first",
        )
    }

    fn settled_machine(&self) -> Result<Arc<Machine>, Refusal> {
        let owned = lock(&self.owned);
        match &owned.stage {
            Stage::Runs(machine) if !owned.occupied() => Ok(Arc::clone(machine)),
            _ => Err(self.unsettled()),
        }
    }

    /// Ends the guest, whatever it is doing, and then the process.
    pub(crate) fn shutdown(&self) {
        let (stage, fetches) = {
            let mut owned = lock(&self.owned);
            (std::mem::replace(&mut owned.stage, Stage::Gone), owned.fetches())
        };
        if fetches {
            // What waits for memory that may never come cannot be told to end: it ends with the
            // process.
            self.quit.cancel();
            return;
        }
        if let Stage::Runs(machine) | Stage::Incoming(machine) = stage {
            machine.end();
        }
        self.quit.cancel();
    }
}

/// Waits until all memory of a guest that runs is here. When it does not come, the process ends:
/// with it ends the guest before it can use or write what it should not have.
fn await_memory(fetching: Fetching, control: &Control) {
    let why = match fetching.finish() {
        Outcome::Whole => return,
        Outcome::Lost(why) => why,
        Outcome::Discarded(trouble, _) => trouble.into_refusal(),
    };
    tracing::error!(%why, "the VM is lost");
    control.update(|status| status.refusal = Some(why.clone()));
    // The last line of its log is why it ended.
    eprintln!("ballast-vmm: {why}");
    #[expect(clippy::disallowed_methods, reason = "threads that wait for pages cannot be ended")]
    std::process::exit(exit_code(why.code).into());
}

pub(crate) fn no_thread(error: &std::io::Error) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("no thread for the migration: {error}"),
        "raise the limit on tasks of this service, or free memory on the host",
    )
}

/// Parses the address of a `ReceiveMigration` or `SendMigration`.
pub(crate) fn address(text: &str, field: &str) -> Result<SocketAddr, Refusal> {
    text.parse().map_err(|_| {
        Refusal::new(
            RefusalCode::InvalidArgument,
            format!("{field} {text:?} is not an address"),
            "give it as ip:port",
        )
    })
}
