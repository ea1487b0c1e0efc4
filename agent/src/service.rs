//! AgentService: messages in, checked; the host's answers out.

use std::pin::Pin;
use std::sync::Arc;

use ballast_model::hardware::CpuBaseline;
use ballast_model::{BytesPerSec, Epoch, MigrationId, Refusal, RefusalCode, VmId, VmSpec};
use ballast_proto::convert::field::{
    absolute_path, invalid, migration_id, optional_path, required, required_enum, vm_id,
};
use ballast_proto::error::to_status;
use ballast_proto::v1::agent_service_server::AgentService;
use ballast_proto::v1::{self, MigrationStatus};
use futures::Stream;
use prost::Message;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use crate::driver::{Machine, Outgoing, Save, TOKEN_BYTES, Terms};
use crate::host::Host;
use crate::load::Observation;
use crate::metrics::Metrics;
use crate::report::statuses;
use crate::vm::accept::not_found;

/// The largest encoded specification, so that a registration of every VM fits into one message.
const SPEC_BYTES_MAX: usize = 8 << 10;

/// The service.
pub struct Service {
    /// The host.
    pub host: Arc<Host>,
    /// What it says of itself.
    pub description: v1::HostDescription,
    /// What the sampler sees.
    pub observations: watch::Receiver<Arc<Observation>>,
    /// Counts.
    pub metrics: Metrics,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    /// Counts the outcome and turns a refusal into a status.
    fn answer<T>(&self, call: &'static str, result: Result<T, Refusal>) -> Answer<T> {
        let outcome = result.as_ref().err().map_or("OK", |refusal| refusal.code.name());
        self.metrics.requests.with_label_values(&[call, outcome]).inc();
        result.map(Response::new).map_err(|refusal| {
            tracing::info!(call, %refusal, "refused");
            to_status(&refusal)
        })
    }

    fn status(&self, vm: &VmId) -> Option<v1::VmStatus> {
        let load = self.observations.borrow().vms.get(vm).copied();
        self.host.vm(vm).map(|view| v1::VmStatus { load, ..view.status(vm) })
    }

    async fn create(
        &self,
        message: v1::AgentCreateVmRequest,
    ) -> Result<v1::AgentCreateVmResponse, Refusal> {
        let (spec, epoch) = (spec(message.spec)?, epoch(message.epoch, "epoch")?);
        let from = optional_path(message.restore_from, "restore_from")?;
        let vm = spec.id.clone();
        let create = |host: Arc<Host>| async move { host.create(spec, epoch, from).await };
        detached(self.host.clone(), create).await?;
        Ok(v1::AgentCreateVmResponse { status: self.status(&vm) })
    }

    /// Goes to the machine directly: it knows best what may not come between.
    async fn save(
        &self,
        message: v1::AgentSaveSnapshotRequest,
    ) -> Result<v1::SaveSnapshotResponse, Refusal> {
        let vm = vm_id(&message.vm, "vm")?;
        let path = absolute_path(message.path, "path")?;
        let view = self.host.vm(&vm).ok_or_else(|| not_found(&vm))?;
        let (Some(machine), Some(spec)) = (view.machine, view.spec) else {
            return Err(not_found(&vm));
        };
        if view.epoch != epoch(message.epoch, "epoch")? {
            return Err(Refusal::new(
                RefusalCode::StaleEpoch,
                format!("VM {vm} is here under epoch {}, not {}", view.epoch, message.epoch),
                "look at the VM again, then try again",
            ));
        }
        let order = Save { path, stop: message.stop, memory: spec.memory };
        // To its end, also when the caller hangs up: else nobody would know of the file.
        detached(self.host.clone(), |_| async move { machine.save(&order).await }).await
    }

    async fn describe_file(
        &self,
        message: v1::DescribeSnapshotRequest,
    ) -> Result<v1::DescribeSnapshotResponse, Refusal> {
        let path = absolute_path(message.path, "path")?;
        let head = self.host.context().driver.describe_snapshot(&path).await?;
        Ok(v1::DescribeSnapshotResponse {
            spec: Some((&head.spec).into()),
            taken_unix_millis: head.taken_unix_millis,
        })
    }

    async fn prepare(
        &self,
        message: v1::PrepareMigrationRequest,
    ) -> Result<v1::PrepareMigrationResponse, Refusal> {
        let migration = migration_id(&message.migration, "migration")?;
        let (spec, epoch) = (spec(message.spec)?, epoch(message.source_epoch, "source_epoch")?);
        let own = &self.description.cpu_model;
        // With a named baseline unlike hosts may do: their VMMs compare what the guest sees.
        if spec.cpu == CpuBaseline::Host && *own != message.source_cpu_model {
            return Err(Refusal::new(
                RefusalCode::Incompatible,
                format!(
                    "VM {} comes from a CPU {:.80?}, this host has {own:?}",
                    spec.id, message.source_cpu_model
                ),
                "move it to a host with the same CPU model, or give it a CPU baseline",
            ));
        }
        let terms =
            Terms { tls: message.tls, post_copy_patience_ms: message.post_copy_patience_ms };
        let prepare =
            |host: Arc<Host>| async move { host.prepare(migration, spec, epoch, terms).await };
        let listening = detached(self.host.clone(), prepare).await?;
        Ok(v1::PrepareMigrationResponse {
            address: listening.address,
            token: listening.token,
            public_key: listening.public_key,
        })
    }

    async fn start(
        &self,
        message: v1::StartMigrationRequest,
    ) -> Result<v1::StartMigrationResponse, Refusal> {
        let migration = migration_id(&message.migration, "migration")?;
        let vm = vm_id(&message.vm, "vm")?;
        let epoch = epoch(message.source_epoch, "source_epoch")?;
        if message.address.parse::<std::net::SocketAddr>().is_err() {
            return Err(invalid(
                "address",
                "is not ip:port",
                "pass what PrepareMigration answered",
            ));
        }
        if message.token.len() != TOKEN_BYTES {
            return Err(invalid(
                "token",
                format!("is {} bytes long", message.token.len()),
                "pass what PrepareMigration answered",
            ));
        }
        let outgoing = Outgoing {
            migration,
            address: message.address,
            token: message.token,
            policy: required(message.policy, "policy")?.into(),
            bandwidth: BytesPerSec(message.bandwidth_bytes_per_sec),
            public_key: message.public_key,
            streams: message.streams,
            never_throttle: message.never_throttle,
            never_compress: message.never_compress,
            downtime_limit_max_ms: message.downtime_limit_max_ms,
        };
        let start = |host: Arc<Host>| async move { host.start(&vm, outgoing, epoch).await };
        detached(self.host.clone(), start).await?;
        Ok(v1::StartMigrationResponse {})
    }

    async fn resolve(
        &self,
        message: v1::AgentResolveMigrationRequest,
    ) -> Result<v1::AgentResolveMigrationResponse, Refusal> {
        let migration = migration_id(&message.migration, "migration")?;
        let vm = vm_id(&message.vm, "vm")?;
        let verdict: v1::MigrationVerdict = required_enum(message.verdict, "verdict")?;
        let (epoch, id) = (Epoch(message.epoch), vm.clone());
        let resolve =
            |host: Arc<Host>| async move { host.resolve(&id, migration, verdict, epoch).await };
        detached(self.host.clone(), resolve).await?;
        Ok(v1::AgentResolveMigrationResponse { status: self.status(&vm) })
    }

    async fn console(
        &self,
        message: v1::ReadConsoleRequest,
    ) -> Result<v1::ReadConsoleResponse, Refusal> {
        self.machine(&message.vm)?.read_console(message).await
    }

    async fn type_at(
        &self,
        message: v1::WriteConsoleRequest,
    ) -> Result<v1::WriteConsoleResponse, Refusal> {
        self.machine(&message.vm)?.write_console(message).await
    }

    fn machine(&self, vm: &str) -> Result<Arc<dyn Machine>, Refusal> {
        let vm = vm_id(vm, "vm")?;
        let machine = self.host.vm(&vm).and_then(|view| view.machine);
        machine.ok_or_else(|| not_found(&vm))
    }
}

/// Runs it to its end even when the caller goes away meanwhile.
async fn detached<T, F>(host: Arc<Host>, work: impl FnOnce(Arc<Host>) -> F) -> Result<T, Refusal>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Refusal>> + Send + 'static,
{
    tokio::spawn(work(host)).await.unwrap_or_else(|error| {
        Err(Refusal::new(
            RefusalCode::Internal,
            format!("a request ended early: {error}"),
            "look into the agent's log, and report a defect",
        ))
    })
}

fn spec(message: Option<v1::VmSpec>) -> Result<VmSpec, Refusal> {
    let message = required(message, "spec")?;
    if message.encoded_len() > SPEC_BYTES_MAX {
        return Err(invalid(
            "spec",
            format!("is {} bytes long", message.encoded_len()),
            format!("use fewer or shorter labels and needs: at most {SPEC_BYTES_MAX} bytes in all"),
        ));
    }
    message.try_into()
}

fn epoch(value: u64, field: &str) -> Result<Epoch, Refusal> {
    if value == 0 {
        return Err(invalid(field, "is not said", "pass the epoch of the owner record"));
    }
    Ok(Epoch(value))
}

#[tonic::async_trait]
impl AgentService for Service {
    async fn describe_host(
        &self,
        _: Request<v1::DescribeHostRequest>,
    ) -> Answer<v1::DescribeHostResponse> {
        let load = self.observations.borrow().host;
        let host = Some(self.description.clone());
        self.answer("describe_host", Ok(v1::DescribeHostResponse { host, load }))
    }

    async fn create_vm(
        &self,
        request: Request<v1::AgentCreateVmRequest>,
    ) -> Answer<v1::AgentCreateVmResponse> {
        self.answer("create_vm", self.create(request.into_inner()).await)
    }

    async fn destroy_vm(
        &self,
        request: Request<v1::DestroyVmRequest>,
    ) -> Answer<v1::DestroyVmResponse> {
        let message = request.into_inner();
        let destroy = async {
            let vm = vm_id(&message.vm, "vm")?;
            let epoch = epoch(message.epoch, "epoch")?;
            let destroy = |host: Arc<Host>| async move { host.destroy(&vm, epoch).await };
            detached(self.host.clone(), destroy).await?;
            Ok(v1::DestroyVmResponse {})
        };
        self.answer("destroy_vm", destroy.await)
    }

    async fn save_snapshot(
        &self,
        request: Request<v1::AgentSaveSnapshotRequest>,
    ) -> Answer<v1::SaveSnapshotResponse> {
        self.answer("save_snapshot", self.save(request.into_inner()).await)
    }

    async fn describe_snapshot(
        &self,
        request: Request<v1::DescribeSnapshotRequest>,
    ) -> Answer<v1::DescribeSnapshotResponse> {
        self.answer("describe_snapshot", self.describe_file(request.into_inner()).await)
    }

    async fn list_vms(
        &self,
        _: Request<v1::AgentListVmsRequest>,
    ) -> Answer<v1::AgentListVmsResponse> {
        let observation = self.observations.borrow().clone();
        let vms = statuses(&self.host, &observation);
        self.answer("list_vms", Ok(v1::AgentListVmsResponse { vms }))
    }

    async fn read_console(
        &self,
        request: Request<v1::ReadConsoleRequest>,
    ) -> Answer<v1::ReadConsoleResponse> {
        self.answer("read_console", self.console(request.into_inner()).await)
    }

    async fn write_console(
        &self,
        request: Request<v1::WriteConsoleRequest>,
    ) -> Answer<v1::WriteConsoleResponse> {
        self.answer("write_console", self.type_at(request.into_inner()).await)
    }

    async fn prepare_migration(
        &self,
        request: Request<v1::PrepareMigrationRequest>,
    ) -> Answer<v1::PrepareMigrationResponse> {
        self.answer("prepare_migration", self.prepare(request.into_inner()).await)
    }

    async fn start_migration(
        &self,
        request: Request<v1::StartMigrationRequest>,
    ) -> Answer<v1::StartMigrationResponse> {
        self.answer("start_migration", self.start(request.into_inner()).await)
    }

    type WatchMigrationStream = Pin<Box<dyn Stream<Item = Result<MigrationStatus, Status>> + Send>>;

    async fn watch_migration(
        &self,
        request: Request<v1::WatchMigrationRequest>,
    ) -> Answer<Self::WatchMigrationStream> {
        let watch = migration_id(&request.into_inner().migration, "migration")
            .and_then(|id: MigrationId| self.host.context().migrations.watch(id));
        self.answer("watch_migration", watch.map(until_ended))
    }

    async fn resolve_migration(
        &self,
        request: Request<v1::AgentResolveMigrationRequest>,
    ) -> Answer<v1::AgentResolveMigrationResponse> {
        self.answer("resolve_migration", self.resolve(request.into_inner()).await)
    }
}

/// The present status, then every change, up to the one that is the end.
fn until_ended(
    watch: watch::Receiver<MigrationStatus>,
) -> Pin<Box<dyn Stream<Item = Result<MigrationStatus, Status>> + Send>> {
    let mut ended = false;
    Box::pin(
        WatchStream::new(watch)
            .take_while(move |status| {
                let go_on = !ended;
                ended = status.state().is_ended();
                go_on
            })
            .map(Ok),
    )
}
