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

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ballast_model::{Epoch, MigrationId, Refusal, RefusalCode, VmId, VmSpec};
use ballast_proto::v1::{
    MigrationRole, MigrationState, MigrationStatus, MigrationVerdict, VmState,
};
use ballast_service::holdpoint::hold;
use rand::RngCore;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info, warn};

use super::aborted::AbortedMigration;
use super::accept::{Accept, Phase, Standing};
use super::dir::VmDir;
use super::react::{self, Proof, Reaction, Seen};
use super::record::{IncomingRecord, Record};
use super::{Context, Listening, QUEUE_MAX, Request, VmHandle, VmView};
use crate::driver::{Incoming, Machine, MachineView, Outgoing, Received, TOKEN_BYTES};
use crate::registry::{Decision, called_off};

/// How often a VM's task looks at what no event tells: patience, failed resolves.
const TICK: Duration = Duration::from_secs(1);
/// How long a destination waits for its peer to begin or to go on, whatever the VM's size.
const PATIENCE: Duration = Duration::from_secs(30);
/// The slowest stream a destination waits for: its patience grows with the VM's memory at this rate.
const SLOWEST_BYTES_PER_SEC: u64 = 16 << 20;

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
            Request::Prepare(migration, spec, epoch, tls, reply) => {
                let _ = reply.send(self.prepare(migration, *spec, epoch, tls).await);
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

    async fn create(
        &mut self,
        spec: VmSpec,
        epoch: Epoch,
        restore_from: Option<&Path>,
    ) -> Result<(), Refusal> {
        let same = self.record.as_ref().is_some_and(|record| record.spec == spec);
        if self.standing().create(epoch, same)? == Accept::Done {
            return Ok(());
        }
        let made = self.make(Record::new(spec.clone(), epoch, None), restore_from).await;
        let booted = match made {
            Ok(machine) => machine.boot(&spec, epoch, restore_from).await,
            Err(refusal) => Err(refusal),
        };
        self.or_discard(booted).await?;
        info!(vm = %self.vm, %epoch, "created");
        self.phase = Phase::Running;
        self.publish();
        Ok(())
    }

    async fn prepare(
        &mut self,
        migration: MigrationId,
        spec: VmSpec,
        source_epoch: Epoch,
        tls: bool,
    ) -> Result<Listening, Refusal> {
        let known = self.context.migrations.get(migration);
        let ended = known.is_some_and(|status| status.state().is_ended());
        if self.standing().prepare(migration, source_epoch, ended)? == Accept::Act {
            let mut token = [0; TOKEN_BYTES];
            rand::rng().fill_bytes(&mut token);
            let incoming = IncomingRecord {
                migration,
                source_epoch,
                address: String::new(),
                token,
                public_key: vec![],
            };
            let record = Record::new(spec.clone(), source_epoch, Some(incoming));
            let made = self.make(record, None).await;
            let listen = self.context.migration_address;
            let incoming = Incoming { migration, listen, token, spec, source_epoch, tls };
            let listening = match made {
                Ok(machine) => machine.receive(&incoming).await,
                Err(refusal) => Err(refusal),
            };
            let Received { address, public_key } = self.or_discard(listening).await?;
            let stored = self.change_record(|record| {
                if let Some(incoming) = &mut record.incoming {
                    (incoming.address, incoming.public_key) = (address, public_key);
                }
            });
            self.or_discard(stored).await?;
            info!(vm = %self.vm, %migration, "ready to receive");
            self.phase = Phase::Incoming(migration);
            self.progress_at = Instant::now();
            self.publish();
        }
        let incoming = self.record.as_ref().and_then(|record| record.incoming.as_ref());
        let incoming = incoming.ok_or_else(|| self.without_record())?;
        Ok(Listening {
            address: incoming.address.clone(),
            token: incoming.token.to_vec(),
            public_key: incoming.public_key.clone(),
        })
    }

    async fn destroy(&mut self, epoch: Epoch) -> Result<(), Refusal> {
        if self.standing().destroy(epoch)? == Accept::Act {
            let why = Refusal::new(
                RefusalCode::Cancelled,
                format!("VM {} was destroyed", self.vm),
                "look at the audit trail for why",
            );
            self.end_migration(MigrationState::Aborted, Some(&why));
            self.discard().await?;
            info!(vm = %self.vm, %epoch, "destroyed");
        }
        Ok(())
    }

    async fn send(&mut self, outgoing: Outgoing, epoch: Epoch) -> Result<(), Refusal> {
        let known = self.context.migrations.get(outgoing.migration);
        if known.is_some_and(|status| status.role() == MigrationRole::Source) {
            return Ok(());
        }
        let Accept::Act = self.standing().start(outgoing.migration, epoch)? else { return Ok(()) };
        let machine = self.machine.clone().ok_or_else(|| self.without_record())?;
        machine.send(&outgoing).await?;
        info!(vm = %self.vm, migration = %outgoing.migration, to = outgoing.address, "sending");
        self.phase = Phase::Outgoing(outgoing.migration);
        self.publish();
        self.machine_changed().await;
        Ok(())
    }

    async fn resolve(
        &mut self,
        migration: MigrationId,
        verdict: MigrationVerdict,
        epoch: Epoch,
    ) -> Result<(), Refusal> {
        if self.standing().resolve(migration, verdict, epoch)? == Accept::Done {
            return Ok(());
        }
        let decision = match verdict {
            MigrationVerdict::Commit => Decision::Granted(epoch),
            MigrationVerdict::Superseded => Decision::Superseded(epoch),
            _ => Decision::Aborted(called_off(migration), epoch),
        };
        self.carry_out(migration, &decision).await
    }

    /// Does what the owner record says. A failure leaves the VM as it is, to be asked for again.
    async fn carry_out(
        &mut self,
        migration: MigrationId,
        decision: &Decision,
    ) -> Result<(), Refusal> {
        let (verdict, epoch) = decision.verdict();
        let machine = self.machine.clone().ok_or_else(|| self.without_record());
        match (decision, self.phase) {
            (Decision::Granted(epoch), _) => {
                let machine = machine?;
                // The epoch is on disk before the guest runs under it.
                self.change_record(|record| record.epoch = *epoch)?;
                hold("agent.granted", &self.vm);
                machine.resolve(migration, verdict, *epoch).await?;
                self.settled()?;
                info!(vm = %self.vm, %migration, %epoch, "the VM runs here now");
            }
            (Decision::Superseded(_), _) => {
                if self.phase == Phase::Outgoing(migration) {
                    let machine = machine?;
                    machine.resolve(migration, verdict, epoch).await?;
                }
                self.publish();
                self.end_migration(MigrationState::Finished, None);
                self.end_machine().await?;
                self.remove_disks().await;
                self.discard().await?;
                info!(vm = %self.vm, %migration, "the VM runs elsewhere now");
            }
            (Decision::Aborted(why, _), Phase::Incoming(_)) => {
                self.end_migration(MigrationState::Aborted, Some(why));
                self.discard().await?;
                info!(vm = %self.vm, %migration, %why, "called off");
            }
            (Decision::Aborted(why, returned), _) => {
                let machine = machine?;
                if *returned > self.standing().epoch {
                    self.change_record(|record| record.epoch = *returned)?;
                }
                machine.resolve(migration, verdict, epoch).await?;
                self.phase = Phase::Running;
                self.publish();
                self.end_migration(MigrationState::Aborted, Some(why));
                info!(vm = %self.vm, %migration, %why, "called off; the VM goes on here");
            }
        }
        self.drop_question();
        Ok(())
    }

    /// An answer to the question about the owner record has come.
    async fn decided(&mut self, answer: Option<(MigrationId, Decision)>) {
        let Some((migration, decision)) = answer else { return };
        if let Err(refusal) = self.carry_out(migration, &decision).await {
            error!(vm = %self.vm, %migration, %refusal, "cannot carry out what the owner record says");
        }
    }

    /// The machine's own view has changed.
    async fn machine_changed(&mut self) {
        let seen = self.machine_view.borrow_and_update().clone();
        if self.machine.is_none() || matches!(self.phase, Phase::Empty | Phase::Stopped) {
            return;
        }
        self.progress_at = Instant::now();
        self.publish();
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
    fn proof(&self) -> Proof {
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
    async fn abort_incoming(&mut self, why: Option<&Refusal>) {
        let Phase::Incoming(migration) = self.phase else { return };
        let known = self.view.borrow().migration.as_ref().and_then(|status| status.refusal.clone());
        let reason = why.map(|why| why.reason.clone()).or(known.map(|known| known.reason));
        let reason = reason.unwrap_or_default();
        let aborted = AbortedMigration { migration, vm: self.vm.clone(), reason };
        if let Err(refusal) = self.context.state.keep_aborted(&aborted) {
            // This agent still says it.
            error!(vm = %self.vm, %migration, %refusal, "the next agent would not know of it");
        }
        self.end_migration(MigrationState::Aborted, why);
        // Where the machine had said nothing yet.
        self.context.migrations.publish(migration, &aborted.status());
        self.context.migrations.keep(migration);
        self.discard_or_log().await;
    }

    fn machine_gone(&self, detail: &str) -> Refusal {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("the machine of VM {} ended: {detail}", self.vm),
            "look into the host's log",
        )
    }

    /// Looks at what no event tells.
    async fn look(&mut self) {
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

    fn drop_question(&mut self) {
        if let Some((_, question)) = self.question.take() {
            question.abort();
        }
    }

    /// Directory, record, empty machine, record with its process: in this order.
    async fn make(
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

    fn take(&mut self, machine: Arc<dyn Machine>) {
        self.machine_view = machine.view();
        self.machine = Some(machine);
    }

    /// The incoming VM is this host's now.
    fn settled(&mut self) -> Result<(), Refusal> {
        self.phase = Phase::Running;
        self.publish();
        self.keep_disks();
        self.change_record(|record| record.incoming = None)
    }

    fn stopped(&mut self, detail: &str) {
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
    fn keep_disks(&self) {
        let (Some(record), Some(disks)) = (&self.record, &self.context.disks) else { return };
        if let Err(refusal) = disks.keep(&record.spec) {
            error!(vm = %self.vm, %refusal, "a disk that came with the VM has not got its name");
        }
    }

    /// Removes the disks of a VM that runs elsewhere, with its own. Freeing a large file takes
    /// its time.
    async fn remove_disks(&self) {
        let (Some(record), Some(disks)) = (&self.record, &self.context.disks) else { return };
        let (spec, disks) = (record.spec.clone(), disks.clone());
        let removed = tokio::task::spawn_blocking(move || disks.remove(&spec)).await;
        if let Ok(Err(refusal)) = removed {
            error!(vm = %self.vm, %refusal, "a disk stays behind; the VM cannot come back before it is removed");
        }
    }

    fn change_record(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), Refusal> {
        let mut record = self.record.clone().ok_or_else(|| self.without_record())?;
        change(&mut record);
        record.store(&self.dir)?;
        self.record = Some(record);
        Ok(())
    }

    /// Passes a result on; after a failure nothing half-made stays.
    async fn or_discard<T>(&mut self, result: Result<T, Refusal>) -> Result<T, Refusal> {
        if result.is_err() {
            self.discard_or_log().await;
        }
        result
    }

    async fn discard_or_log(&mut self) {
        if let Err(refusal) = self.discard().await {
            error!(vm = %self.vm, %refusal, "cannot clean up");
        }
    }

    async fn end_machine(&mut self) -> Result<(), Refusal> {
        if let Some(machine) = &self.machine {
            machine.shutdown().await?;
        }
        self.machine_view = self.no_machine.subscribe();
        self.machine = None;
        Ok(())
    }

    /// Ends the machine and removes what is kept of the VM; of one that was to come here its
    /// disks, too.
    async fn discard(&mut self) -> Result<(), Refusal> {
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
    fn end_migration(&self, state: MigrationState, why: Option<&Refusal>) {
        let Some(mut status) = self.view.borrow().migration.clone() else { return };
        let Ok(migration) = status.migration.parse() else { return };
        if !status.state().is_ended() {
            status.set_state(state);
            status.refusal = why.map(Into::into);
            self.context.migrations.publish(migration, &status);
        }
    }

    /// Shows the VM as it is.
    fn publish(&self) {
        let seen = self.machine_view.borrow().clone();
        if let Some(status) = &seen.migration
            && let Ok(migration) = status.migration.parse()
        {
            self.context.migrations.publish(migration, status);
        }
        let ended = self.record.as_ref().and_then(|record| record.ended.clone());
        self.view.send_replace(VmView {
            spec: self.record.as_ref().map(|record| Arc::new(record.spec.clone())),
            epoch: self.standing().epoch,
            phase: self.phase,
            state: react::shown(self.phase, what_matters(&seen)),
            detail: ended.unwrap_or(seen.detail),
            migration: seen.migration,
            machine: self.machine.clone(),
        });
    }

    fn without_record(&self) -> Refusal {
        Refusal::new(
            RefusalCode::Internal,
            format!("VM {} has no record or no machine", self.vm),
            "report a defect",
        )
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
