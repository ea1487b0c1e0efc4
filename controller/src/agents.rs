//! The agents as the controller calls them, behind a trait so that tests can put their own in.
//!
//! Every call has a time bound of its own. An agent that does not answer costs
//! its own callers time and nobody else.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use ballast_model::{Bytes, Epoch, HostId, MigrationId, Refusal, RefusalCode, VmId, VmSpec};
use ballast_proto::convert::field::{required, text};
use ballast_proto::error::from_status;
use ballast_proto::limits::{prefault_time_max, snapshot_time_max};
use ballast_proto::v1;
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::transport::{Channel, Endpoint};

/// For an agent to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For calls that only look or tell.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For calls that start or end processes.
const WORK_TIMEOUT: Duration = Duration::from_secs(60);

/// What a destination answers to [`Agent::prepare`].
#[derive(Debug, Clone)]
pub struct Prepared {
    /// `ip:port` it listens on.
    pub address: String,
    /// What the source must show.
    pub token: Vec<u8>,
    /// What the source knows it by; empty where connections are in the clear.
    pub public_key: Vec<u8>,
}

/// A VM to be started.
#[derive(Debug, Clone)]
pub struct Start {
    /// The VM.
    pub spec: VmSpec,
    /// The epoch it runs under.
    pub epoch: Epoch,
    /// A snapshot on the host, to go on from instead of booting.
    pub restore_from: Option<PathBuf>,
}

/// One host's agent. Calls that change something are idempotent.
#[async_trait]
pub trait Agent: Send + Sync + 'static {
    /// Starts a VM or lets it go on; answers once the guest runs.
    async fn create_vm(&self, start: &Start) -> Result<v1::VmStatus, Refusal>;
    /// Writes a VM of this much memory to a file.
    async fn save_snapshot(
        &self,
        request: v1::AgentSaveSnapshotRequest,
        memory: Bytes,
    ) -> Result<v1::SaveSnapshotResponse, Refusal>;
    /// Which VM a snapshot file is of.
    async fn describe_snapshot(&self, path: &Path) -> Result<VmSpec, Refusal>;
    /// Ends a VM.
    async fn destroy_vm(&self, vm: &VmId, epoch: Epoch) -> Result<(), Refusal>;
    /// Every VM on the host.
    async fn list_vms(&self) -> Result<Vec<v1::VmStatus>, Refusal>;
    /// Console output.
    async fn read_console(
        &self,
        request: v1::ReadConsoleRequest,
    ) -> Result<v1::ReadConsoleResponse, Refusal>;
    /// Console input.
    async fn write_console(
        &self,
        request: v1::WriteConsoleRequest,
    ) -> Result<v1::WriteConsoleResponse, Refusal>;
    /// Destination: reserve and listen.
    async fn prepare(&self, request: v1::PrepareMigrationRequest) -> Result<Prepared, Refusal>;
    /// Source: begin to send.
    async fn start(&self, request: v1::StartMigrationRequest) -> Result<(), Refusal>;
    /// The present status, then every change.
    async fn watch(
        &self,
        migration: MigrationId,
    ) -> Result<BoxStream<'static, Result<v1::MigrationStatus, Refusal>>, Refusal>;
    /// Tells what the record says.
    async fn resolve(
        &self,
        migration: MigrationId,
        vm: &VmId,
        verdict: v1::MigrationVerdict,
        epoch: Epoch,
    ) -> Result<Option<v1::VmStatus>, Refusal>;
}

/// Finds the agent of a host.
pub trait Agents: Send + Sync + 'static {
    /// The agent of `host`, which serves at `endpoint`. Connects when first used.
    fn agent(&self, host: &HostId, endpoint: &str) -> Result<Arc<dyn Agent>, Refusal>;
}

/// Agents over gRPC, one connection per endpoint.
#[derive(Debug, Default)]
pub struct GrpcAgents(Mutex<HashMap<HostId, (String, GrpcAgent)>>);

impl Agents for GrpcAgents {
    fn agent(&self, host: &HostId, endpoint: &str) -> Result<Arc<dyn Agent>, Refusal> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, agent)) = known.get(host).filter(|(at, _)| at == endpoint) {
            let _ = at;
            return Ok(Arc::new(agent.clone()));
        }
        let target = Endpoint::from_shared(format!("http://{endpoint}")).map_err(|error| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("agent address {endpoint} of host {host} is no address: {error}"),
                "configure the agent to listen on ip:port",
            )
        })?;
        let target = target.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        let channel = target.connect_lazy();
        let agent = GrpcAgent { channel, peer: format!("agent of host {host} at {endpoint}") };
        known.insert(host.clone(), (endpoint.to_owned(), agent.clone()));
        Ok(Arc::new(agent))
    }
}

#[derive(Debug, Clone)]
struct GrpcAgent {
    channel: Channel,
    peer: String,
}

type Client = v1::agent_service_client::AgentServiceClient<Channel>;

impl GrpcAgent {
    fn client(&self) -> Client {
        Client::new(self.channel.clone())
    }

    /// Waits at most `limit` for `call`.
    async fn call<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Refusal> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(from_status(&status, &self.peer)),
            Err(_) => Err(Refusal::new(
                RefusalCode::Timeout,
                format!("the {} did not answer within {} s", self.peer, limit.as_secs()),
                "check that it runs and can be reached",
            )),
        }
    }
}

#[async_trait]
impl Agent for GrpcAgent {
    async fn create_vm(&self, start: &Start) -> Result<v1::VmStatus, Refusal> {
        let request = v1::AgentCreateVmRequest {
            spec: Some((&start.spec).into()),
            epoch: start.epoch.0,
            restore_from: start.restore_from.as_deref().map(text).unwrap_or_default(),
        };
        let restored = start.restore_from.as_ref().map(|_| snapshot_time_max(start.spec.memory));
        let limit = WORK_TIMEOUT + prefault_time_max(&start.spec) + restored.unwrap_or_default();
        let answer = self.call(limit, self.client().create_vm(request)).await?;
        required(answer.status, "status")
    }

    async fn save_snapshot(
        &self,
        request: v1::AgentSaveSnapshotRequest,
        memory: Bytes,
    ) -> Result<v1::SaveSnapshotResponse, Refusal> {
        let limit = WORK_TIMEOUT * 2 + snapshot_time_max(memory);
        self.call(limit, self.client().save_snapshot(request)).await
    }

    async fn describe_snapshot(&self, path: &Path) -> Result<VmSpec, Refusal> {
        let request = v1::DescribeSnapshotRequest { path: text(path) };
        let answer = self.call(WORK_TIMEOUT, self.client().describe_snapshot(request)).await?;
        required(answer.spec, "spec")?.try_into()
    }

    async fn destroy_vm(&self, vm: &VmId, epoch: Epoch) -> Result<(), Refusal> {
        let request = v1::DestroyVmRequest { vm: vm.to_string(), epoch: epoch.0 };
        self.call(WORK_TIMEOUT, self.client().destroy_vm(request)).await.map(drop)
    }

    async fn list_vms(&self) -> Result<Vec<v1::VmStatus>, Refusal> {
        let request = v1::AgentListVmsRequest {};
        Ok(self.call(CALL_TIMEOUT, self.client().list_vms(request)).await?.vms)
    }

    async fn read_console(
        &self,
        request: v1::ReadConsoleRequest,
    ) -> Result<v1::ReadConsoleResponse, Refusal> {
        self.call(CALL_TIMEOUT, self.client().read_console(request)).await
    }

    async fn write_console(
        &self,
        request: v1::WriteConsoleRequest,
    ) -> Result<v1::WriteConsoleResponse, Refusal> {
        self.call(CALL_TIMEOUT, self.client().write_console(request)).await
    }

    async fn prepare(&self, request: v1::PrepareMigrationRequest) -> Result<Prepared, Refusal> {
        let spec = request.spec.clone().map(VmSpec::try_from).transpose()?;
        let limit = WORK_TIMEOUT + spec.as_ref().map(prefault_time_max).unwrap_or_default();
        let answer = self.call(limit, self.client().prepare_migration(request)).await?;
        let v1::PrepareMigrationResponse { address, token, public_key } = answer;
        Ok(Prepared { address, token, public_key })
    }

    async fn start(&self, request: v1::StartMigrationRequest) -> Result<(), Refusal> {
        self.call(WORK_TIMEOUT, self.client().start_migration(request)).await.map(drop)
    }

    async fn watch(
        &self,
        migration: MigrationId,
    ) -> Result<BoxStream<'static, Result<v1::MigrationStatus, Refusal>>, Refusal> {
        let request = v1::WatchMigrationRequest { migration: migration.to_string() };
        let stream = self.call(CALL_TIMEOUT, self.client().watch_migration(request)).await?;
        let peer = self.peer.clone();
        Ok(stream.map(move |item| item.map_err(|status| from_status(&status, &peer))).boxed())
    }

    async fn resolve(
        &self,
        migration: MigrationId,
        vm: &VmId,
        verdict: v1::MigrationVerdict,
        epoch: Epoch,
    ) -> Result<Option<v1::VmStatus>, Refusal> {
        let request = v1::AgentResolveMigrationRequest {
            migration: migration.to_string(),
            vm: vm.to_string(),
            verdict: verdict.into(),
            epoch: epoch.0,
        };
        Ok(self.call(WORK_TIMEOUT, self.client().resolve_migration(request)).await?.status)
    }
}
