//! What is done in each phase.
//!
//! Each step may be taken again after a crash anywhere in it. Failure before
//! the commit leads to one place: `abort_migration`, and from there to [`Controller::undo`].

use std::sync::Arc;
use std::time::Duration;

use ballast_model::audit::{AuditOutcome, action};
use ballast_model::host::LINK_ASSUMED;
use ballast_model::migration::Progress;
use ballast_model::vm::MigrationPolicy;
use ballast_model::{
    Bytes, BytesPerSec, Epoch, HostState, Migration, MigrationId, MigrationOutcome, MigrationPhase,
    Refusal, RefusalCode, VmId,
};
use ballast_proto::v1::{self, MigrationVerdict};
use ballast_service::holdpoint::hold;
use futures::StreamExt;
use futures::stream::BoxStream;

use super::drive::Flow;
use super::figures::merge;
use super::judge::{self, Arrival, Guest};
use crate::agents::Agent;
use crate::config::Compression;
use crate::controller::{Controller, Driver};
use crate::now;
use crate::snapshot::Purpose;
use crate::state::{MigrationRecord, Versioned, VmChange, VmRecord, json, unchanged};
use crate::store::{Transaction, keys};

/// A transfer may take this many times as long as its memory takes on the link.
const TRANSFER_TIMES: u32 = 8;
/// The same where neither host nor the configuration says how fast the link is: it may be much slower than assumed.
const TRANSFER_TIMES_UNTOLD: u32 = 20;
/// What disks take and give at least.
const DISK_ASSUMED: BytesPerSec = BytesPerSec(100_000_000);
/// How long one look at a side's figures may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

type Heard = (Side, Result<v1::MigrationStatus, Refusal>);

impl Controller {
    /// `Preparing`: the destination reserves and listens, `Transferring` is written, the source begins.
    pub(super) async fn prepare(
        &self,
        record: &Versioned<MigrationRecord>,
    ) -> Result<Flow, Refusal> {
        let migration = &record.value.migration;
        let spec = self.repository.known_vm(&migration.vm).await?.record.value.spec;
        let source_host = self.repository.known_host(&migration.from).await?.value;
        let (source, destination) =
            (self.agent(&migration.from).await?, self.agent(&migration.to).await?);
        let request = v1::PrepareMigrationRequest {
            migration: migration.id.to_string(),
            spec: Some((&spec).into()),
            source_epoch: migration.source_epoch.0,
            source_cpu_model: source_host.cpu_model,
            tls: self.config.migration.tls,
            post_copy_patience_ms: self.config.migration.post_copy_patience_ms,
        };
        let prepared = match destination.prepare(request).await {
            Ok(prepared) => prepared,
            Err(refusal) => {
                let why = format!("host {} did not prepare: {refusal}", migration.to);
                self.abort_migration(migration.id, &why, false).await?;
                return Ok(Flow::Continue);
            }
        };
        let mut transferring = record.value.clone();
        transferring.migration.phase =
            MigrationPhase::Transferring { address: prepared.address.clone() };
        transferring.migration.updated_at = now();
        let key = keys::migration(migration.id);
        let transaction = Transaction::when(unchanged(key.clone(), record.revision))
            .put(key, json(&transferring));
        match self.repository.transact(transaction).await {
            Ok(_) => {}
            Err(refusal) if refusal.code == RefusalCode::Conflict => return Ok(Flow::Continue),
            Err(refusal) => return Err(refusal),
        }
        let request = v1::StartMigrationRequest {
            migration: migration.id.to_string(),
            vm: migration.vm.to_string(),
            source_epoch: migration.source_epoch.0,
            address: prepared.address,
            token: prepared.token,
            policy: Some(policy(spec.migration, source_host.state).into()),
            bandwidth_bytes_per_sec: self.config.migration.rate().get(),
            public_key: prepared.public_key,
            streams: self.config.migration.streams,
            never_throttle: !self.config.migration.throttle,
            never_compress: self.config.migration.compression == Compression::Off,
            downtime_limit_max_ms: self.config.migration.downtime_limit_max_ms,
        };
        if let Err(refusal) = source.start(request).await
            && !is_silence(&refusal)
        {
            let why = format!("host {} did not start: {refusal}", migration.from);
            self.abort_migration(migration.id, &why, false).await?;
        }
        // Silence leaves open whether it began: the next step observes.
        Ok(Flow::Continue)
    }

    /// `Transferring`: listens to both sides until the record changes or one of them gives up.
    pub(super) async fn transfer(
        &self,
        record: &Versioned<MigrationRecord>,
        driver: &Driver,
    ) -> Result<Flow, Refusal> {
        let migration = &record.value.migration;
        let limit = self.transfer_limit(&record.value).await?;
        let left = limit.saturating_sub(now().since(migration.updated_at));
        let deadline = tokio::time::sleep(left);
        tokio::pin!(deadline);
        let pause = Duration::from_millis(self.config.migration.retry_ms);
        let source = self.agent(&migration.from).await?;
        let destination = self.agent(&migration.to).await?;
        let mut heard = futures::stream::select(
            listen(source, migration.id, Side::Source, pause),
            listen(destination, migration.id, Side::Destination, pause),
        );
        loop {
            let why = tokio::select! {
                () = driver.changed.notified() => return Ok(Flow::Continue),
                () = &mut deadline => {
                    Some(format!("it did not end within {} s", limit.as_secs()))
                }
                Some((side, said)) = heard.next() => {
                    if let Ok(status) = &said {
                        note(driver, status);
                        if status.state == i32::from(v1::MigrationState::Finished) {
                            // What finished has asked the record: it has changed, or will not.
                            let phase = self.repository.known_migration(migration.id).await?;
                            if phase.revision != record.revision {
                                return Ok(Flow::Continue);
                            }
                        }
                    }
                    let host = if side == Side::Source { &migration.from } else { &migration.to };
                    gave_up(said).map(|why| format!("host {host}: {why}"))
                }
            };
            if let Some(why) = why {
                self.abort_migration(migration.id, &why, false).await?;
                return Ok(Flow::Continue);
            }
        }
    }

    /// In proportion to the memory and the disks that have to go over the link.
    async fn transfer_limit(&self, record: &MigrationRecord) -> Result<Duration, Refusal> {
        let migration = &record.migration;
        let memory = self.repository.known_vm(&migration.vm).await?.record.value.spec.memory;
        let cap = self.config.migration.rate();
        let from = self.repository.known_host(&migration.from).await?.value.link;
        let to = self.repository.known_host(&migration.to).await?.value.link;
        let told = [cap, from, to].into_iter().filter(|rate| *rate > BytesPerSec::ZERO);
        let (link, times) = match told.min() {
            Some(link) => (link, TRANSFER_TIMES),
            None => (LINK_ASSUMED, TRANSFER_TIMES_UNTOLD),
        };
        let disks = self.live.vm(&migration.vm, &migration.from).local_disks;
        let time = |bytes: Bytes, rate| bytes.time_at(rate).unwrap_or_default();
        let once = time(memory, link) + time(disks, link.min(DISK_ASSUMED));
        let least = Duration::from_millis(self.config.migration.transfer_timeout_min_ms);
        Ok(least + once * times)
    }

    /// `Committed`: the destination is seen running, the source is told to discard, the end is written.
    pub(super) async fn finish(
        &self,
        record: &Versioned<MigrationRecord>,
        epoch: Epoch,
        driver: &Driver,
    ) -> Result<Flow, Refusal> {
        let migration = &record.value.migration;
        let (source, destination) =
            (self.agent(&migration.from).await?, self.agent(&migration.to).await?);
        let outcome = match self.arrival(record, epoch, &*destination).await? {
            Arrival::Runs => MigrationOutcome::Completed,
            Arrival::Lost => MigrationOutcome::Failed { why: lost(migration) },
            Arrival::NeverRan(why) => {
                let why = format!("host {}: {why}", migration.to);
                self.hand_back(record, &why).await?;
                return Ok(Flow::Continue);
            }
            // Here, too: a part of the VM's memory is nowhere else.
            Arrival::Fetches => {
                look(&*destination, migration.id, driver).await;
                look(&*source, migration.id, driver).await;
                tokio::time::sleep(Duration::from_millis(self.config.migration.retry_ms)).await;
                return Ok(Flow::Continue);
            }
            // The source's copy may be the only one. However long it takes, it stays.
            Arrival::Waits | Arrival::Unknown => {
                return Err(not_yet(&migration.vm, migration.to.as_str()));
            }
        };
        hold("controller.cleanup", &migration.vm);
        look(&*destination, migration.id, driver).await;
        look(&*source, migration.id, driver).await;
        let verdict = MigrationVerdict::Superseded;
        match source.resolve(migration.id, &migration.vm, verdict, epoch).await {
            Ok(_) => {}
            Err(refusal) if refusal.code == RefusalCode::NotFound => {}
            Err(refusal) if !self.out_of_patience(record) => return Err(refusal),
            // When it comes back it asks the record, or registers and is told then.
            Err(refusal) => tracing::warn!(
                migration = %migration.id, host = %migration.from, %refusal,
                "the source was not told that it is superseded"
            ),
        }
        self.end_migration(record, outcome, driver).await
    }

    /// What became of the VM on the destination. One that waits there is told to run.
    async fn arrival(
        &self,
        record: &Versioned<MigrationRecord>,
        epoch: Epoch,
        destination: &dyn Agent,
    ) -> Result<Arrival, Refusal> {
        let migration = &record.value.migration;
        let never_ran = never_ran(destination, migration.id).await;
        let found = match never_ran {
            None => find(&migration.vm, destination).await?,
            Some(_) => None,
        };
        let vm = found.as_ref().map(|status| (Epoch(status.epoch), guest(status, migration.id)));
        let arrival = judge::arrival(judge::Destination { never_ran, vm }, epoch);
        match (&arrival, found) {
            (Arrival::Runs | Arrival::Fetches | Arrival::Lost, Some(status)) => {
                self.live.vm_seen(&migration.to, &migration.vm, status);
            }
            (Arrival::Waits, _) => {
                let verdict = MigrationVerdict::Commit;
                destination.resolve(migration.id, &migration.vm, verdict, epoch).await?;
            }
            _ => {}
        }
        Ok(arrival)
    }

    /// `Aborting`: both sides are told, the source is seen running, the end is written.
    pub(super) async fn undo(
        &self,
        record: &Versioned<MigrationRecord>,
        why: &str,
        cancelled: bool,
        driver: &Driver,
    ) -> Result<Flow, Refusal> {
        let migration = &record.value.migration;
        let (source, destination) =
            (self.agent(&migration.from).await?, self.agent(&migration.to).await?);
        look(&*source, migration.id, driver).await;
        // Later than the source's own when the VM was given back to it.
        let epoch = self.repository.known_vm(&migration.vm).await?.owner.value.epoch;
        let (id, vm) = (migration.id, &migration.vm);
        let (on_source, on_destination) = tokio::join!(
            source.resolve(id, vm, MigrationVerdict::Abort, epoch),
            destination.resolve(id, vm, MigrationVerdict::Abort, epoch),
        );
        let mut notes = String::new();
        for told in [on_source, on_destination] {
            match told {
                Ok(_) => {}
                Err(refusal) if refusal.code == RefusalCode::NotFound => {}
                Err(refusal) if !self.out_of_patience(record) => return Err(refusal),
                Err(refusal) => notes.push_str(&format!("; not told: {}", refusal.reason)),
            }
        }
        match find(vm, &*source).await {
            Ok(Some(status)) if has_begun(status.state) => {
                self.live.vm_seen(&migration.from, vm, status);
            }
            Ok(_) if !self.out_of_patience(record) => {
                return Err(not_yet(vm, migration.from.as_str()));
            }
            Err(refusal) if !self.out_of_patience(record) => return Err(refusal),
            _ => notes.push_str("; not seen running on the source afterwards"),
        }
        let why = format!("{why}{notes}");
        let outcome = if cancelled {
            MigrationOutcome::Cancelled { why }
        } else {
            MigrationOutcome::Failed { why }
        };
        self.end_migration(record, outcome, driver).await
    }

    fn out_of_patience(&self, record: &Versioned<MigrationRecord>) -> bool {
        let patience = Duration::from_millis(self.config.migration.resolve_timeout_ms);
        now().since(record.value.migration.updated_at) > patience
    }

    /// Writes the end: the record, the VM free for the next change, and the closing audit entry.
    pub(super) async fn end_migration(
        &self,
        record: &Versioned<MigrationRecord>,
        outcome: MigrationOutcome,
        driver: &Driver,
    ) -> Result<Flow, Refusal> {
        let mut ended = record.value.clone();
        let migration = &mut ended.migration;
        let heard = driver.progress();
        // A driver that came after the transfer has heard nothing of it.
        if heard != Progress::default() {
            migration.progress = heard;
        }
        migration.phase = MigrationPhase::Ended { outcome: outcome.clone() };
        migration.updated_at = now();
        let vm = self.repository.known_vm(&migration.vm).await?;
        let (key, vm_key) = (keys::migration(migration.id), keys::vm_spec(&migration.vm));
        let mut transaction =
            Transaction::when(unchanged(key.clone(), record.revision)).put(key, json(&ended));
        if vm.record.value.change == (VmChange::Moving { migration: ended.migration.id }) {
            let settled =
                VmRecord { spec: vm.record.value.spec.clone(), change: VmChange::Settled };
            transaction = transaction
                .and(unchanged(vm_key.clone(), vm.record.revision))
                .put(vm_key, json(&settled));
        }
        let audit_outcome = match &outcome {
            MigrationOutcome::Completed => AuditOutcome::Succeeded,
            MigrationOutcome::Cancelled { why } | MigrationOutcome::Failed { why } => {
                AuditOutcome::Failed { why: why.clone() }
            }
        };
        let migration = &ended.migration;
        let audit = self.journal.audit()?;
        match audit.find_open(action::MIGRATION, &migration.id.to_string()).await? {
            Some(mut opened) => {
                opened.details.extend(self.closing_details(&ended).await);
                self.journal.close_with(&opened, audit_outcome, transaction).await?;
            }
            // Swept meanwhile: the end is written all the same.
            None => drop(self.repository.transact(transaction).await?),
        }
        let took = migration.updated_at.since(migration.created_at);
        let downtime = migration.progress.downtime.total();
        self.metrics.migration_ended(outcome.name(), took, downtime);
        tracing::info!(
            migration = %migration.id, vm = %migration.vm, outcome = outcome.name(),
            took_ms = took.as_millis(), downtime_ms = downtime.as_millis(), "a migration has ended"
        );
        Ok(Flow::Done)
    }

    /// What was achieved, beside what was predicted when it was opened.
    async fn closing_details(&self, ended: &MigrationRecord) -> Vec<(String, String)> {
        let migration = &ended.migration;
        let progress = &migration.progress;
        let total = migration.updated_at.since(migration.created_at);
        let mut details = vec![
            ("rounds", progress.rounds.to_string()),
            ("bytes_sent", progress.bytes_sent.get().to_string()),
            ("total_ms", total.as_millis().to_string()),
            ("downtime_us", progress.downtime.total().as_micros().to_string()),
            ("imbalance_before", format!("{:.4}", ended.imbalance_before)),
        ];
        if let Ok((_, snapshot)) = self.look(Purpose::Order).await {
            let after = ballast_placement::imbalance(&snapshot).get();
            details.push(("imbalance_after", format!("{after:.4}")));
        }
        details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Statuses of one side without end: watches again when a stream breaks.
fn listen(
    agent: Arc<dyn Agent>,
    id: MigrationId,
    side: Side,
    pause: Duration,
) -> BoxStream<'static, Heard> {
    type Stream = BoxStream<'static, Result<v1::MigrationStatus, Refusal>>;
    struct State {
        agent: Arc<dyn Agent>,
        stream: Option<Stream>,
        again: bool,
    }
    let state = State { agent, stream: None, again: false };
    futures::stream::unfold(state, move |mut state| async move {
        loop {
            if let Some(stream) = &mut state.stream {
                match stream.next().await {
                    Some(Ok(status)) => return Some(((side, Ok(status)), state)),
                    Some(Err(refusal)) => {
                        state.stream = None;
                        return Some(((side, Err(refusal)), state));
                    }
                    None => state.stream = None,
                }
            }
            if std::mem::replace(&mut state.again, true) {
                tokio::time::sleep(pause).await;
            }
            match state.agent.watch(id).await {
                Ok(stream) => state.stream = Some(stream),
                Err(refusal) => return Some(((side, Err(refusal)), state)),
            }
        }
    })
    .boxed()
}

/// Why a side has given up, if it has. Silence is no giving up.
fn gave_up(said: Result<v1::MigrationStatus, Refusal>) -> Option<String> {
    match said {
        Ok(status) if status.state == i32::from(v1::MigrationState::Aborted) => {
            Some(status.refusal.map_or_else(|| "aborted".to_owned(), |r| Refusal::from(r).reason))
        }
        Ok(_) => None,
        Err(refusal) if is_silence(&refusal) => None,
        Err(refusal) => Some(refusal.reason),
    }
}

/// Whether the answer leaves open what happened.
fn is_silence(refusal: &Refusal) -> bool {
    matches!(refusal.code, RefusalCode::Unavailable | RefusalCode::Timeout | RefusalCode::Cancelled)
}

/// Takes down a side's present figures; they are missed rather than waited for.
async fn look(agent: &dyn Agent, id: MigrationId, driver: &Driver) {
    if let Some(status) = status_now(agent, id).await {
        note(driver, &status);
    }
}

/// How the VM is to be migrated from a host in this state: from a sick one never by post-copy,
/// after which the VM would need that host for a while.
fn policy(wanted: MigrationPolicy, source: HostState) -> MigrationPolicy {
    let post_copy = wanted.post_copy && source != HostState::Quarantined;
    MigrationPolicy { post_copy, ..wanted }
}

/// What a side says of the migration now, if it says anything.
async fn status_now(agent: &dyn Agent, id: MigrationId) -> Option<v1::MigrationStatus> {
    let first = async { agent.watch(id).await.ok()?.next().await?.ok() };
    tokio::time::timeout(LOOK_TIMEOUT, first).await.ok()?
}

/// Why the destination never ran the VM, if it is certain: an agent says ABORTED of an incoming
/// migration only when its VMM was never told to run.
async fn never_ran(destination: &dyn Agent, id: MigrationId) -> Option<String> {
    let status = status_now(destination, id).await?;
    let is_destination = status.role == i32::from(v1::MigrationRole::Destination);
    let aborted = status.state == i32::from(v1::MigrationState::Aborted);
    (is_destination && aborted)
        .then(|| status.refusal.map_or_else(|| "aborted".to_owned(), |r| Refusal::from(r).reason))
}

fn note(driver: &Driver, status: &v1::MigrationStatus) {
    let mut progress = driver.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    *progress = merge(*progress, status);
}

async fn find(vm: &VmId, agent: &dyn Agent) -> Result<Option<v1::VmStatus>, Refusal> {
    Ok(agent.list_vms().await?.into_iter().find(|status| status.vm == vm.as_str()))
}

/// The guest runs, or ran and ended by itself.
fn has_begun(state: i32) -> bool {
    state == i32::from(v1::VmState::Running) || state == i32::from(v1::VmState::Stopped)
}

/// What the guest does on its destination.
fn guest(status: &v1::VmStatus, id: MigrationId) -> Guest {
    let fetches = status.migration.as_ref().is_some_and(|migration| {
        migration.migration == id.to_string()
            && migration.state == i32::from(v1::MigrationState::Fetching)
    });
    match status.state {
        state if !has_begun(state) => Guest::Waits,
        state if fetches && state == i32::from(v1::VmState::Running) => Guest::Fetches,
        _ if fetches => Guest::Died,
        _ => Guest::Runs,
    }
}

/// Why a migration has failed whose VM is nowhere any more.
fn lost(migration: &Migration) -> String {
    let Migration { vm, from, to, .. } = migration;
    format!(
        "VM {vm} is lost: its process on host {to} ended while a part of its memory was on host {from} alone \
         ('ballast vm show {vm}' says why it ended)"
    )
}

fn not_yet(vm: &VmId, host: &str) -> Refusal {
    Refusal::new(
        RefusalCode::WrongState,
        format!("VM {vm} does not run on host {host} yet"),
        "wait, or look at the agent's log",
    )
}
