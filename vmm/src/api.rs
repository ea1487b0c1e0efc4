//! `ballast.v1.VmmService`: messages in, checked values to [`Vm`], messages out.
//!
//! The service runs on one thread that must not block: whatever takes time goes
//! to a thread that may.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballast_model::{BytesPerSec, Epoch, Refusal, RefusalCode, VmSpec};
use ballast_proto::convert::field::{
    absolute_path, migration_id, optional_path, required, required_enum,
};
use ballast_proto::convert::migration::micros;
use ballast_proto::error::to_status;
use ballast_proto::v1;
use ballast_proto::v1::vmm_service_server::VmmService;
use tokio::sync::{oneshot, watch};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::migration::control::{self, Control, Verdict};
use crate::migration::convergence::{Limits, Policy, ROUNDS_DEFAULT, ROUNDS_MAX};
use crate::migration::crew::Peer;
use crate::migration::destination::{Incoming, nobody_came};
use crate::migration::framing::{Hello, STREAMS_MAX, TOKEN_BYTES, VERSIONS};
use crate::migration::lobby::{Expected, Lobby};
use crate::migration::postcopy::door::Door;
use crate::migration::postcopy::{PATIENCE_DEFAULT, PATIENCE_MAX};
use crate::migration::source::{BANDWIDTH_MIN, Order};
use crate::migration::tls::{self, Identity, PUBLIC_KEY_BYTES};
use crate::snapshot::After;
use crate::vm::{Vm, address, no_thread};

/// The longest a reader or writer of the console is kept waiting.
const CONSOLE_WAIT_MAX: Duration = Duration::from_secs(2);
/// How often it is looked again meanwhile.
const CONSOLE_POLL: Duration = Duration::from_millis(10);
/// The most one write to the console may carry, in bytes.
const CONSOLE_WRITE_BYTES_MAX: usize = 4096;
/// The longest downtime limit taken.
const DOWNTIME_MAX: Duration = Duration::from_secs(600);
/// How long a destination waits for its source.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(300);

/// The service, over the process's one VM.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    vm: Arc<Vm>,
}

type Answer<T> = Result<Response<T>, Status>;

fn refuse(refusal: Refusal) -> Status {
    to_status(&refusal)
}

fn invalid(reason: String, remedy: &str) -> Status {
    refuse(Refusal::new(RefusalCode::InvalidArgument, reason, remedy))
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        refuse(Refusal::new(
            RefusalCode::Internal,
            format!("the work panicked: {error}"),
            "look into the log of this VM, and report a defect",
        ))
    })
}

fn token(bytes: &[u8]) -> Result<[u8; TOKEN_BYTES], Status> {
    bytes.try_into().map_err(|_| {
        invalid(format!("the token has {} bytes", bytes.len()), "use a token of 32 random bytes")
    })
}

impl Api {
    pub(crate) fn new(vm: Arc<Vm>) -> Self {
        Self { vm }
    }

    fn describe(&self) -> v1::VmStatus {
        let now = self.vm.snapshot();
        v1::VmStatus {
            vm: self.vm.id().to_string(),
            epoch: now.epoch.0,
            state: now.state.into(),
            detail: now.detail,
            pid: std::process::id(),
            spec: now.spec.as_ref().map(Into::into),
            migration: now.migration.map(|migration| status_message(&migration.status())),
            load: None,
        }
    }

    fn spec(&self, spec: Option<v1::VmSpec>) -> Result<VmSpec, Status> {
        required(spec, "spec").and_then(VmSpec::try_from).map_err(refuse)
    }

    fn order(&self, request: &v1::SendMigrationRequest) -> Result<Order, Status> {
        let migration = migration_id(&request.migration, "migration").map_err(refuse)?;
        if !(1..=600_000).contains(&request.downtime_limit_ms) {
            return Err(invalid(
                format!("the downtime limit is {} ms", request.downtime_limit_ms),
                "use 1 to 600000 ms",
            ));
        }
        if request.rounds_max > ROUNDS_MAX {
            return Err(invalid(
                format!("{} pre-copy rounds are too many", request.rounds_max),
                "use at most 1000",
            ));
        }
        let streams = u16::try_from(request.streams).ok().filter(|&streams| streams <= STREAMS_MAX);
        let Some(streams) = streams else {
            return Err(invalid(
                format!("{} streams are too many", request.streams),
                "use 1 to 128, or 0 for as many as link and CPUs ask for",
            ));
        };
        let bandwidth = BytesPerSec(request.bandwidth_bytes_per_sec);
        if bandwidth > BytesPerSec::ZERO && bandwidth < BANDWIDTH_MIN {
            return Err(invalid(
                format!("a bandwidth of {bandwidth} is too low"),
                "use 64 KiB/s or more, or 0 for no limit",
            ));
        }
        Ok(Order {
            peer: Peer {
                address: address(&request.address, "address").map_err(refuse)?,
                tls: public_key(&request.public_key)?,
            },
            hello: Hello {
                versions: VERSIONS,
                migration,
                token: token(&request.token)?,
                vm: self.vm.id().clone(),
            },
            limits: limits(request)?,
            verify: request.verify,
            bandwidth: (bandwidth > BytesPerSec::ZERO).then_some(bandwidth),
            streams: (streams > 0).then_some(streams),
            compress: !request.never_compress,
            post_copy: request.post_copy,
        })
    }

    /// Waits for the source in the lobby, then hands its connections to a thread.
    async fn accept(self, lobby: Lobby, control: Arc<Control>, patience: Duration) {
        let mut changes = control.watch();
        let source = tokio::select! {
            source = lobby.await_source() => Ok(source),
            () = tokio::time::sleep(LISTEN_TIMEOUT) => Err(nobody_came(LISTEN_TIMEOUT)),
            () = aborted(&control, &mut changes) => {
                Err(Refusal::new(RefusalCode::Cancelled, "the migration was cancelled", "try again"))
            }
        };
        let (wire, hello) = match source {
            Ok(source) => source,
            Err(why) => return self.vm.discard_incoming(&control, why),
        };
        let (others, joined) = std::sync::mpsc::sync_channel(STREAMS_MAX.into());
        let (key, door) = (lobby.key(), lobby.door());
        let incoming = Incoming { wire, hello, key, joined, door: Arc::clone(&door), patience };
        let (vm, shared) = (Arc::clone(&self.vm), Arc::clone(&control));
        let thread = std::thread::Builder::new().name("migration".to_owned());
        if let Err(error) = thread.spawn(move || vm.receive(incoming, &shared)) {
            return self.vm.discard_incoming(&control, no_thread(&error));
        }
        tokio::select! {
            () = lobby.await_others(others) => {}
            // With post-copy the source may come back.
            _ = changes.wait_for(|now| {
                now.has_ended() || (now.state == v1::MigrationState::Ready && !door.is_open())
            }) => {}
        }
    }
}

/// How to talk to the destination with this public key; none when there is none.
fn public_key(bytes: &[u8]) -> Result<Option<Arc<rustls::ClientConfig>>, Status> {
    match bytes.len() {
        0 => Ok(None),
        PUBLIC_KEY_BYTES => tls::client(bytes).map(Some).map_err(refuse),
        other => Err(invalid(
            format!("the public key has {other} bytes"),
            "pass the one that ReceiveMigration answered",
        )),
    }
}

/// How long a guest waits in post-copy for a source that is gone.
fn patience(millis: u32) -> Result<Duration, Status> {
    match Duration::from_millis(millis.into()) {
        Duration::ZERO => Ok(PATIENCE_DEFAULT),
        patience if patience <= PATIENCE_MAX => Ok(patience),
        patience => Err(invalid(
            format!("a source that is gone cannot be waited for {} s", patience.as_secs()),
            "use at most 3600000 ms, or 0 for the default",
        )),
    }
}

fn limits(request: &v1::SendMigrationRequest) -> Result<Limits, Status> {
    let ms = |ms: u32| Duration::from_millis(ms.into());
    let downtime = ms(request.downtime_limit_ms);
    let downtime_max = ms(request.downtime_limit_max_ms).max(downtime);
    if downtime_max > DOWNTIME_MAX {
        return Err(invalid(
            format!("the downtime limit may be raised to {} ms", downtime_max.as_millis()),
            "use at most 600000 ms, or 0 to leave the limit as it is",
        ));
    }
    let policy = if request.post_copy { Policy::with_post_copy() } else { Policy::default() };
    let policy = if request.never_throttle { policy.without_throttling() } else { policy };
    let rounds = if request.rounds_max == 0 { ROUNDS_DEFAULT } else { request.rounds_max };
    Ok(Limits { downtime, downtime_max, rounds, policy })
}

/// Returns once the migration has a verdict, or has ended.
async fn aborted(control: &Control, changes: &mut watch::Receiver<control::Status>) {
    loop {
        if control.verdict().is_some() {
            return;
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn status_message(status: &control::Status) -> v1::MigrationStatus {
    v1::MigrationStatus {
        migration: status.migration.to_string(),
        vm: status.vm.to_string(),
        role: status.role.into(),
        state: status.state.into(),
        progress: Some(status.progress.into()),
        refusal: status.refusal.as_ref().map(Into::into),
    }
}

fn verdict(request: &v1::ResolveMigrationRequest) -> Result<Verdict, Status> {
    use v1::MigrationVerdict as Wire;
    match required_enum(request.verdict, "verdict").map_err(refuse)? {
        Wire::Commit if request.epoch == 0 => {
            Err(invalid("a commit needs an epoch".to_owned(), "give the epoch granted"))
        }
        Wire::Commit => Ok(Verdict::Commit(Epoch(request.epoch))),
        Wire::Superseded => Ok(Verdict::Superseded),
        Wire::Abort => Ok(Verdict::Abort),
        Wire::Pending | Wire::Unspecified => Err(invalid(
            "a pending verdict changes nothing".to_owned(),
            "send COMMIT, SUPERSEDED or ABORT once the record says so",
        )),
    }
}

#[tonic::async_trait]
impl VmmService for Api {
    async fn describe(&self, _: Request<v1::DescribeRequest>) -> Answer<v1::DescribeResponse> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(v1::DescribeResponse { status: Some(self.describe()), version }))
    }

    async fn boot(&self, request: Request<v1::BootRequest>) -> Answer<v1::BootResponse> {
        let request = request.into_inner();
        let (spec, epoch) = (self.spec(request.spec)?, Epoch(request.epoch));
        let restore_from = optional_path(request.restore_from, "restore_from").map_err(refuse)?;
        let vm = Arc::clone(&self.vm);
        let begin = move || match restore_from {
            Some(path) => vm.restore(spec, epoch, &path),
            None => vm.boot(spec, epoch),
        };
        blocking(begin).await?.map_err(refuse)?;
        Ok(Response::new(v1::BootResponse {}))
    }

    async fn save_snapshot(
        &self,
        request: Request<v1::VmmSaveSnapshotRequest>,
    ) -> Answer<v1::SaveSnapshotResponse> {
        let request = request.into_inner();
        let path = absolute_path(request.path, "path").map_err(refuse)?;
        let after = if request.stop { After::Stop } else { After::GoOn };
        let vm = Arc::clone(&self.vm);
        let saved = blocking(move || vm.save(&path, after)).await?.map_err(refuse)?;
        Ok(Response::new(v1::SaveSnapshotResponse {
            bytes: saved.bytes.get(),
            paused_micros: micros(saved.paused),
        }))
    }

    async fn sample(&self, _: Request<v1::SampleRequest>) -> Answer<v1::SampleResponse> {
        let vm = Arc::clone(&self.vm);
        let load = blocking(move || vm.sample()).await?;
        let load = v1::VmLoad {
            cpu_millicores: load.cpu.get(),
            resident_bytes: load.resident.get(),
            dirty_bytes_per_sec: load.dirty_rate.get(),
            local_disk_bytes: load.local_disks.get(),
            cpu_time_nanos: micros(load.cpu_time).saturating_mul(1000),
        };
        Ok(Response::new(v1::SampleResponse { load: Some(load) }))
    }

    async fn pause(&self, _: Request<v1::PauseRequest>) -> Answer<v1::PauseResponse> {
        let vm = Arc::clone(&self.vm);
        blocking(move || vm.pause()).await?.map_err(refuse)?;
        Ok(Response::new(v1::PauseResponse {}))
    }

    async fn resume(&self, _: Request<v1::ResumeRequest>) -> Answer<v1::ResumeResponse> {
        let vm = Arc::clone(&self.vm);
        blocking(move || vm.resume()).await?.map_err(refuse)?;
        Ok(Response::new(v1::ResumeResponse {}))
    }

    async fn shutdown(&self, _: Request<v1::ShutdownRequest>) -> Answer<v1::ShutdownResponse> {
        let vm = Arc::clone(&self.vm);
        blocking(move || vm.shutdown()).await?;
        Ok(Response::new(v1::ShutdownResponse {}))
    }

    async fn read_console(
        &self,
        request: Request<v1::ReadConsoleRequest>,
    ) -> Answer<v1::ReadConsoleResponse> {
        let request = request.into_inner();
        let patience = Duration::from_millis(request.wait_ms.into()).min(CONSOLE_WAIT_MAX);
        let until = Instant::now() + patience;
        let (offset, data) = loop {
            let (offset, data) = self.vm.console(request.offset);
            if !data.is_empty() || request.offset == u64::MAX || Instant::now() >= until {
                break (offset, data);
            }
            tokio::time::sleep(CONSOLE_POLL).await;
        };
        Ok(Response::new(v1::ReadConsoleResponse { offset, data }))
    }

    async fn write_console(
        &self,
        request: Request<v1::WriteConsoleRequest>,
    ) -> Answer<v1::WriteConsoleResponse> {
        let data = request.into_inner().data;
        if data.len() > CONSOLE_WRITE_BYTES_MAX {
            return Err(invalid(
                format!("{} bytes are too many for one write to the console", data.len()),
                "send at most 4096 at a time",
            ));
        }
        let until = Instant::now() + CONSOLE_WAIT_MAX;
        let mut accepted = 0;
        loop {
            accepted += self.vm.type_at_console(&data[accepted..]).map_err(refuse)?;
            if accepted == data.len() || Instant::now() >= until {
                break;
            }
            tokio::time::sleep(CONSOLE_POLL).await;
        }
        let accepted = u32::try_from(accepted).unwrap_or(u32::MAX);
        Ok(Response::new(v1::WriteConsoleResponse { accepted }))
    }

    async fn receive_migration(
        &self,
        request: Request<v1::ReceiveMigrationRequest>,
    ) -> Answer<v1::ReceiveMigrationResponse> {
        let request = request.into_inner();
        let migration = migration_id(&request.migration, "migration").map_err(refuse)?;
        let token = token(&request.token)?;
        let spec = self.spec(request.spec)?;
        let listen = address(&request.listen, "listen").map_err(refuse)?;
        let patience = patience(request.post_copy_patience_ms)?;
        let identity = request.tls.then(Identity::new).transpose().map_err(refuse)?;
        let listener =
            ballast_service::net::bind(listen, "an incoming migration").await.map_err(refuse)?;
        let bound = listener.local_addr().map_err(|error| {
            refuse(Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot tell the address listened on: {error}"),
                "report a defect",
            ))
        })?;
        let (vm, epoch) = (Arc::clone(&self.vm), Epoch(request.source_epoch));
        let control = blocking(move || vm.expect_migration(spec, epoch, migration)).await?;
        let control = control.map_err(refuse)?;
        let door = Door::new().map(Arc::new).map_err(|error| {
            refuse(Refusal::new(
                RefusalCode::HostFailure,
                format!("no descriptor for an incoming migration: {error}"),
                "raise the limit on open files of this service",
            ))
        })?;
        let key = rand::random();
        let public_key = identity.as_ref().map(|one| one.public_key().to_vec()).unwrap_or_default();
        let vm = self.vm.id().clone();
        let lobby = Lobby::new(listener, Expected { migration, token, vm, key, identity, door });
        tokio::spawn(self.clone().accept(lobby, control, patience));
        Ok(Response::new(v1::ReceiveMigrationResponse { address: bound.to_string(), public_key }))
    }

    async fn send_migration(
        &self,
        request: Request<v1::SendMigrationRequest>,
    ) -> Answer<v1::SendMigrationResponse> {
        let order = self.order(&request.into_inner())?;
        let (agree, agreed) = oneshot::channel();
        let control = self.vm.begin_send(order, agree).map_err(refuse)?;
        let lost = |_| {
            refuse(Refusal::new(
                RefusalCode::Internal,
                "the migration's thread ended without a word",
                "look into the log of this VM, and report a defect",
            ))
        };
        if let Err(refusal) = agreed.await.map_err(lost)? {
            // Whoever hears this may begin the next one at once.
            let _ = control.watch().wait_for(control::Status::has_ended).await;
            return Err(refuse(refusal));
        }
        Ok(Response::new(v1::SendMigrationResponse {}))
    }

    type WatchMigrationStream =
        Pin<Box<dyn Stream<Item = Result<v1::MigrationStatus, Status>> + Send>>;

    async fn watch_migration(
        &self,
        request: Request<v1::WatchMigrationRequest>,
    ) -> Answer<Self::WatchMigrationStream> {
        let id = migration_id(&request.into_inner().migration, "migration").map_err(refuse)?;
        let control = self.vm.migration(id).map_err(refuse)?;
        let mut ended = false;
        let changes = tokio_stream::wrappers::WatchStream::new(control.watch())
            // Up to and with the first status that is an end.
            .take_while(move |status| !std::mem::replace(&mut ended, status.has_ended()))
            .map(|status| Ok(status_message(&status)));
        Ok(Response::new(Box::pin(changes)))
    }

    async fn resolve_migration(
        &self,
        request: Request<v1::ResolveMigrationRequest>,
    ) -> Answer<v1::ResolveMigrationResponse> {
        let request = request.into_inner();
        let verdict = verdict(&request)?;
        let id = migration_id(&request.migration, "migration").map_err(refuse)?;
        let control = self.vm.migration(id).map_err(refuse)?;
        control.resolve(verdict).map_err(refuse)?;
        // Answers when it has been carried out.
        let _ = control.watch().wait_for(control::Status::is_carried_out).await;
        let state = self.vm.snapshot().state;
        Ok(Response::new(v1::ResolveMigrationResponse { state: state.into() }))
    }
}
