//! A machine that is a `ballast-vmm` process.
//!
//! One task a machine, the monitor, keeps its view up to date: it waits for
//! the end of the process, follows the migration's stream of changes, and asks
//! the process what it is doing when told to and once a second.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ballast_model::{Epoch, MigrationId, Refusal, RefusalCode, VmId, VmSpec};
use ballast_proto::convert::field::text;
use ballast_proto::limits::{prefault_time_max, snapshot_time_max};
use ballast_proto::v1::{self, MigrationState, MigrationStatus, MigrationVerdict, VmState};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tonic::Streaming;
use tracing::{debug, warn};

use super::client::{Client, call};
use super::confine::{Cgroup, check_snapshot_path};
use super::process::{Process, last_words};
use crate::config::VmmConfig;
use crate::driver::{Incoming, Machine, MachineView, Outgoing, ProcessId, Received, Save};
use crate::vm::dir::VmDir;

/// For calls that only look or only tell.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// For calls that build a machine or touch all of its memory.
const BUILD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a process may take to end by itself, and then to die.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a machine is asked what it is doing.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct KvmMachine {
    shared: Arc<Shared>,
}

struct Shared {
    vm: VmId,
    dir: VmDir,
    process: Process,
    client: Client,
    config: VmmConfig,
    view: watch::Sender<MachineView>,
    /// Tells the monitor that a migration may have begun.
    look: Notify,
}

impl KvmMachine {
    /// Takes over a process that answers.
    pub(super) async fn start(
        vm: VmId,
        dir: VmDir,
        process: Process,
        client: Client,
        config: VmmConfig,
    ) -> Result<Self, Refusal> {
        let view = watch::Sender::new(MachineView { alive: true, ..MachineView::default() });
        let look = Notify::new();
        let shared = Arc::new(Shared { vm, dir, process, client, config, view, look });
        shared.refresh().await?;
        tokio::spawn(monitor(shared.clone()));
        Ok(Self { shared })
    }

    /// After a call that began something: shows what came of it.
    async fn settle(&self) {
        if let Err(refusal) = self.shared.refresh().await {
            debug!(vm = %self.shared.vm, %refusal, "cannot look at the machine");
        }
        self.shared.look.notify_one();
    }
}

impl Shared {
    async fn refresh(&self) -> Result<(), Refusal> {
        let mut client = self.client.clone();
        let answer = call(CALL_TIMEOUT, client.describe(v1::DescribeRequest {})).await?;
        let status = answer.status.unwrap_or_default();
        if status.vm != self.vm.as_str() {
            return Err(Refusal::new(
                RefusalCode::Conflict,
                format!("the process of VM {} says it runs {:?}", self.vm, status.vm),
                "end that process",
            ));
        }
        self.change(|view| {
            view.state = status.state();
            view.detail = status.detail;
            if let Some(migration) = status.migration {
                advance(view, migration);
            }
        });
        Ok(())
    }

    /// Changes the view; those who watch wake up only when it differs.
    fn change(&self, change: impl FnOnce(&mut MachineView)) {
        self.view.send_if_modified(|view| {
            let before = view.clone();
            if view.alive {
                change(view);
            }
            *view != before
        });
    }

    fn followed(&self) -> Option<String> {
        let view = self.view.borrow();
        let migration = view.migration.as_ref().filter(|status| !status.state().is_ended())?;
        Some(migration.migration.clone())
    }
}

/// Takes a newer status. News come by two ways, so that older ones may come later: a migration never goes back.
fn advance(view: &mut MachineView, status: MigrationStatus) {
    let rank = |status: &MigrationStatus| match status.state() {
        MigrationState::Unspecified => 0,
        MigrationState::Listening => 1,
        MigrationState::Transferring => 2,
        MigrationState::Ready => 3,
        MigrationState::Fetching => 4,
        MigrationState::Finished | MigrationState::Aborted => 5,
    };
    let newer = view.migration.as_ref().is_none_or(|present| {
        present.migration != status.migration || rank(&status) >= rank(present)
    });
    if newer {
        view.migration = Some(status);
    }
}

async fn monitor(shared: Arc<Shared>) {
    let mut stream: Option<Streaming<MigrationStatus>> = None;
    loop {
        tokio::select! {
            // News before the end: a process says how its migration ended, then ends.
            biased;
            status = next(&mut stream) => match status {
                Some(status) => {
                    let before = shared.view.borrow().migration.as_ref().map(|m| m.state);
                    let turned = before != Some(status.state);
                    shared.change(|view| advance(view, status));
                    if turned {
                        look(&shared).await;
                    }
                }
                None => stream = None,
            },
            () = shared.process.ended() => break,
            () = shared.look.notified() => look(&shared).await,
            () = tokio::time::sleep(LOOK_INTERVAL) => look(&shared).await,
        }
        if stream.is_none()
            && let Some(migration) = shared.followed()
        {
            stream = follow(&shared, migration).await;
        }
    }
    let detail = last_words(&shared.dir);
    shared.change(|view| {
        view.alive = false;
        view.state = VmState::Stopped;
        view.detail = format!("the process has ended; the last line of its log: {detail}");
    });
}

async fn look(shared: &Shared) {
    if let Err(refusal) = shared.refresh().await {
        // Its end, if it is that, is seen by the monitor.
        debug!(vm = %shared.vm, %refusal, "cannot look at the machine");
    }
}

async fn follow(shared: &Shared, migration: String) -> Option<Streaming<MigrationStatus>> {
    let mut client = shared.client.clone();
    let request = v1::WatchMigrationRequest { migration };
    call(CALL_TIMEOUT, client.watch_migration(request)).await.ok()
}

/// The next status; for ever when there is no stream, none at its end.
async fn next(stream: &mut Option<Streaming<MigrationStatus>>) -> Option<MigrationStatus> {
    match stream {
        Some(stream) => stream.message().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

#[async_trait]
impl Machine for KvmMachine {
    fn process(&self) -> Option<ProcessId> {
        Some(self.shared.process.id())
    }

    fn never_ran(&self) -> bool {
        self.shared.dir.unrun().exists()
    }

    fn view(&self) -> watch::Receiver<MachineView> {
        self.shared.view.subscribe()
    }

    async fn boot(
        &self,
        spec: &VmSpec,
        epoch: Epoch,
        restore_from: Option<&Path>,
    ) -> Result<(), Refusal> {
        let mut client = self.shared.client.clone();
        let restored = restore_from.map(|_| snapshot_time_max(spec.memory)).unwrap_or_default();
        let restore_from = restore_from.map(text).unwrap_or_default();
        let request = v1::BootRequest { spec: Some(spec.into()), epoch: epoch.0, restore_from };
        let limit = BUILD_TIMEOUT + prefault_time_max(spec) + restored;
        call(limit, client.boot(request)).await?;
        self.settle().await;
        Ok(())
    }

    async fn save(&self, order: &Save) -> Result<v1::SaveSnapshotResponse, Refusal> {
        check_snapshot_path(&self.shared.config, &order.path)?;
        let mut client = self.shared.client.clone();
        let request = v1::VmmSaveSnapshotRequest { path: text(&order.path), stop: order.stop };
        let limit = BUILD_TIMEOUT + snapshot_time_max(order.memory);
        let saved = call(limit, client.save_snapshot(request)).await;
        self.settle().await;
        saved
    }

    async fn receive(&self, incoming: &Incoming) -> Result<Received, Refusal> {
        let mut client = self.shared.client.clone();
        let request = v1::ReceiveMigrationRequest {
            migration: incoming.migration.to_string(),
            listen: std::net::SocketAddr::new(incoming.listen, 0).to_string(),
            token: incoming.token.to_vec(),
            spec: Some((&incoming.spec).into()),
            source_epoch: incoming.source_epoch.0,
            tls: incoming.terms.tls,
            post_copy_patience_ms: incoming.terms.post_copy_patience_ms,
        };
        let limit = BUILD_TIMEOUT + prefault_time_max(&incoming.spec);
        let answer = call(limit, client.receive_migration(request)).await?;
        self.settle().await;
        let v1::ReceiveMigrationResponse { address, public_key } = answer;
        // Never in the clear because a program is too old to know better.
        if incoming.terms.tls && public_key.is_empty() {
            return Err(Refusal::new(
                RefusalCode::Unsupported,
                "the VMM on this host does not encrypt migrations",
                "bring the host to this release, or set migration.tls = false in the controller's configuration",
            ));
        }
        Ok(Received { address, public_key })
    }

    async fn send(&self, outgoing: &Outgoing) -> Result<(), Refusal> {
        let mut client = self.shared.client.clone();
        let request = v1::SendMigrationRequest {
            migration: outgoing.migration.to_string(),
            address: outgoing.address.clone(),
            token: outgoing.token.clone(),
            downtime_limit_ms: outgoing.policy.downtime_limit_ms,
            verify: outgoing.policy.verify,
            rounds_max: 0,
            bandwidth_bytes_per_sec: outgoing.bandwidth.get(),
            streams: outgoing.streams,
            downtime_limit_max_ms: outgoing.downtime_limit_max_ms,
            never_throttle: outgoing.never_throttle,
            never_compress: outgoing.never_compress,
            public_key: outgoing.public_key.clone(),
            post_copy: outgoing.policy.post_copy,
        };
        let sent = call(BUILD_TIMEOUT, client.send_migration(request)).await;
        self.settle().await;
        sent.map(|_| ())
    }

    async fn resolve(
        &self,
        migration: MigrationId,
        verdict: MigrationVerdict,
        epoch: Epoch,
    ) -> Result<(), Refusal> {
        let mut client = self.shared.client.clone();
        let request = v1::ResolveMigrationRequest {
            migration: migration.to_string(),
            verdict: verdict.into(),
            epoch: epoch.0,
        };
        call(BUILD_TIMEOUT, client.resolve_migration(request)).await?;
        let looked = self.shared.refresh().await;
        self.shared.look.notify_one();
        if looked.is_err() && verdict == MigrationVerdict::Superseded {
            // A source that was told to go may be gone before it can be asked.
            self.shared.change(|view| {
                if let Some(status) = &mut view.migration {
                    status.set_state(MigrationState::Finished);
                }
            });
            return Ok(());
        }
        looked
    }

    async fn sample(&self) -> Result<v1::VmLoad, Refusal> {
        let mut client = self.shared.client.clone();
        let answer = call(CALL_TIMEOUT, client.sample(v1::SampleRequest {})).await?;
        answer.load.ok_or_else(|| {
            Refusal::new(RefusalCode::Internal, "a sample without load", "report a defect")
        })
    }

    async fn read_console(
        &self,
        request: v1::ReadConsoleRequest,
    ) -> Result<v1::ReadConsoleResponse, Refusal> {
        let mut client = self.shared.client.clone();
        call(CALL_TIMEOUT, client.read_console(request)).await
    }

    async fn write_console(
        &self,
        request: v1::WriteConsoleRequest,
    ) -> Result<v1::WriteConsoleResponse, Refusal> {
        let mut client = self.shared.client.clone();
        call(CALL_TIMEOUT, client.write_console(request)).await
    }

    async fn shutdown(&self) -> Result<(), Refusal> {
        self.shared.end_process().await?;
        if let Some(group) = Cgroup::of(&self.shared.config, &self.shared.vm) {
            group.remove();
        }
        Ok(())
    }
}

impl Shared {
    /// Asks the process to end, then makes it.
    async fn end_process(&self) -> Result<(), Refusal> {
        let process = &self.process;
        let mut client = self.client.clone();
        let asked = async {
            if let Err(refusal) = call(END_TIMEOUT, client.shutdown(v1::ShutdownRequest {})).await {
                debug!(vm = %self.vm, %refusal, "the process does not end when asked");
                process.kill();
            }
        };
        tokio::select! {
            () = process.ended() => return Ok(()),
            () = asked => {}
        }
        if timeout(END_TIMEOUT, process.ended()).await.is_ok() {
            return Ok(());
        }
        warn!(vm = %self.vm, "the process does not end by itself");
        process.kill();
        timeout(END_TIMEOUT, process.ended()).await.map_err(|_| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("the process of VM {} cannot be ended", self.vm),
                "look at what keeps it in the kernel, or restart the host",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_never_goes_back() {
        let status = |migration: &str, state: MigrationState| MigrationStatus {
            migration: migration.into(),
            state: state.into(),
            ..MigrationStatus::default()
        };
        let mut view = MachineView::default();
        advance(&mut view, status("a", MigrationState::Ready));
        advance(&mut view, status("a", MigrationState::Transferring));
        assert_eq!(view.migration, Some(status("a", MigrationState::Ready)));
        advance(&mut view, status("a", MigrationState::Aborted));
        advance(&mut view, status("b", MigrationState::Listening));
        assert_eq!(view.migration, Some(status("b", MigrationState::Listening)));
    }
}
