//! The task that owns one VM.
//!
//! ```text
//!            Create                     Start            machine: ABORTED, or verdict ABORT
//!   Empty ───────────▶ Running ────────────────▶ Outgoing ───────────▶ Running
//!     │                   ▲                          └─ SUPERSEDED ──▶ (gone)
//!     └─ Prepare ─▶ Incoming ─ granted ─┘
//!                      └─ refused, aborted, no peer ──▶ (gone)
//! ```
//!
//! Its sources of news: requests, the machine's own view, and – while a side
//! is READY – the question to the owner record. A record on disk precedes what
//! it announces. The task ends, and the VM's directory with it, when the VM is
//! gone from this host.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`requests`] | what others ask for |
//! | [`news`] | what the machine does, what the owner record says, patience |
//! | [`keeping`] | record, machine and disks, and what is shown of them |

mod keeping;
mod news;
mod requests;

use std::sync::Arc;
use std::time::Duration;

use ballast_model::{Epoch, MigrationId, Refusal, VmId};
use ballast_proto::v1::{MigrationRole, MigrationStatus, VmState};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::info;

use super::accept::{Phase, Standing};
use super::dir::VmDir;
use super::react::{self, Reaction, Seen};
use super::record::Record;
use super::{Context, QUEUE_MAX, Request, VmHandle, VmView};
use crate::driver::{Machine, MachineView};
use crate::registry::Decision;

/// How often a VM's task looks at what no event tells: patience, failed resolves.
const TICK: Duration = Duration::from_secs(1);
type OnEnd = Box<dyn FnOnce() + Send>;

struct Owner {
    context: Arc<Context>,
    vm: VmId,
    dir: VmDir,
    phase: Phase,
    record: Option<Record>,
    machine: Option<Arc<dyn Machine>>,
    machine_view: watch::Receiver<MachineView>,
    /// Keeps `machine_view` open while there is no machine.
    no_machine: watch::Sender<MachineView>,
    question: Option<(MigrationId, JoinHandle<Decision>)>,
    view: watch::Sender<VmView>,
    /// When the incoming migration was seen to make progress.
    progress_at: Instant,
    gone: bool,
}

/// Starts the task of a VM that is not here yet. `on_end` runs when it is gone again.
pub fn start(
    context: Arc<Context>,
    vm: VmId,
    reserved: ballast_model::Bytes,
    on_end: OnEnd,
) -> VmHandle {
    let owner = Owner::new(context, vm);
    owner.launch(reserved, on_end)
}

/// Starts the task of a VM that an earlier agent left; none when nothing is left of it.
///
/// # Errors
/// When what is left cannot be understood or talked to; it is left alone then.
pub async fn adopt(
    context: Arc<Context>,
    vm: VmId,
    on_end: OnEnd,
) -> Result<Option<VmHandle>, Refusal> {
    let mut owner = Owner::new(context, vm);
    let record = Record::load(&owner.dir)?;
    let process = record.as_ref().and_then(|record| record.process);
    let machine = owner.context.driver.adopt(&owner.vm, &owner.dir, process).await?;
    owner.adopted(record, machine).await?;
    Ok((!owner.gone).then(|| owner.launch(ballast_model::Bytes::ZERO, on_end)))
}

impl Owner {
    fn new(context: Arc<Context>, vm: VmId) -> Self {
        let no_machine = watch::Sender::new(MachineView::default());
        let view = VmView {
            spec: None,
            epoch: Epoch(0),
            phase: Phase::Empty,
            state: VmState::Unspecified,
            detail: String::new(),
            migration: None,
            machine: None,
        };
        Self {
            dir: context.state.vm(&vm),
            context,
            vm,
            phase: Phase::Empty,
            record: None,
            machine: None,
            machine_view: no_machine.subscribe(),
            no_machine,
            question: None,
            view: watch::Sender::new(view),
            progress_at: Instant::now(),
            gone: false,
        }
    }

    fn launch(self, reserved: ballast_model::Bytes, on_end: OnEnd) -> VmHandle {
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let handle = VmHandle { requests, view: self.view.subscribe(), reserved };
        tokio::spawn(async move {
            self.run(queue).await;
            on_end();
        });
        handle
    }

    /// Takes over what an earlier agent left.
    async fn adopted(
        &mut self,
        record: Option<Record>,
        machine: Option<Arc<dyn Machine>>,
    ) -> Result<(), Refusal> {
        let Some(record) = record else {
            // Without a record no guest was ever started.
            self.machine = machine;
            return self.discard().await;
        };
        let incoming = record.incoming.clone();
        self.record = Some(record);
        let machine_there = machine.is_some();
        if let Some(machine) = machine {
            self.take(machine);
        }
        let seen = self.machine_view.borrow().clone();
        let proof = self.proof();
        let incoming = incoming.map(|incoming| (incoming.migration, proof));
        let machine = machine_there.then(|| what_matters(&seen));
        match react::to_adoption(incoming, machine, outgoing(&seen)) {
            Ok(phase) => self.phase = phase,
            Err(Reaction::Settle) => self.settled()?,
            Err(Reaction::Stop(_)) => {
                self.stopped("its machine ended while no agent was there");
                return Ok(());
            }
            Err(_) => {
                if let Some((migration, _)) = incoming {
                    self.phase = Phase::Incoming(migration);
                    let why = self.machine_gone("while no agent was there");
                    self.abort_incoming(Some(&why)).await;
                    return Ok(());
                }
                return self.discard().await;
            }
        }
        info!(vm = %self.vm, state = ?seen.state, "adopted");
        if self.phase == Phase::Running {
            self.keep_disks();
        }
        self.publish();
        self.machine_changed().await;
        Ok(())
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.gone {
            tokio::select! {
                request = queue.recv() => match request {
                    Some(request) => self.serve(request).await,
                    // The agent ends; the VM goes on.
                    None => break,
                },
                Ok(()) = self.machine_view.changed() => self.machine_changed().await,
                decision = answer(&mut self.question) => self.decided(decision).await,
                _ = tick.tick() => self.look().await,
            }
        }
        if let Some((_, question)) = self.question.take() {
            question.abort();
        }
    }

    fn standing(&self) -> Standing<'_> {
        let epoch = self.record.as_ref().map_or(Epoch(0), |record| record.epoch);
        Standing { vm: &self.vm, phase: self.phase, epoch }
    }

    async fn serve(&mut self, request: Request) {
        // A caller that has gone away does not need its answer.
        match request {
            Request::Create(spec, epoch, from, reply) => {
                let _ = reply.send(self.create(*spec, epoch, from.as_deref()).await);
            }
            Request::Prepare(migration, spec, epoch, terms, reply) => {
                let _ = reply.send(self.prepare(migration, *spec, epoch, terms).await);
            }
            Request::Destroy(epoch, reply) => {
                let _ = reply.send(self.destroy(epoch).await);
            }
            Request::Start(outgoing, epoch, reply) => {
                let _ = reply.send(self.send(*outgoing, epoch).await);
            }
            Request::Resolve(migration, verdict, epoch, reply) => {
                let _ = reply.send(self.resolve(migration, verdict, epoch).await);
            }
        }
        if self.phase == Phase::Empty {
            self.gone = true;
        }
    }
}

fn what_matters(seen: &MachineView) -> Seen {
    Seen {
        alive: seen.alive,
        guest: seen.state,
        migration: seen.migration.as_ref().map(MigrationStatus::state),
    }
}

/// The migration by which the machine sends the VM away.
fn outgoing(seen: &MachineView) -> Option<MigrationId> {
    let status = seen.migration.as_ref()?;
    let sends = status.role() == MigrationRole::Source && !status.state().is_ended();
    sends.then(|| status.migration.parse().ok()).flatten()
}

/// Waits for the answer to the question; for ever when there is none. A question that was dropped gives none.
async fn answer(
    question: &mut Option<(MigrationId, JoinHandle<Decision>)>,
) -> Option<(MigrationId, Decision)> {
    let Some((migration, task)) = question else { return std::future::pending().await };
    let (migration, decision) = (*migration, task.await);
    *question = None;
    Some((migration, decision.ok()?))
}
