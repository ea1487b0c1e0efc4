//! Agents in this process, and a controller that says what the test tells it to.
#![allow(dead_code, unreachable_pub)] // each test binary uses its own part
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests fail as tests do

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ballast_agent::Agent;
use ballast_agent::config::Config;
use ballast_model::{Bytes, Refusal, RefusalCode, VmSpec};
use ballast_proto::error::{from_status, to_status};
use ballast_proto::v1::agent_service_client::AgentServiceClient;
use ballast_proto::v1::registry_service_server::{RegistryService, RegistryServiceServer};
use ballast_proto::v1::{self, MigrationState, MigrationVerdict};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

pub type Client = AgentServiceClient<Channel>;

/// How long a test waits for something that must come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the stub says when a destination asks to commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Grant,
    Refuse,
    Unavailable,
    /// Not an answer of a controller: e.g. a broken proxy.
    Foreign,
}

#[derive(Debug, Default)]
pub struct Heard {
    pub registrations: Vec<v1::RegisterRequest>,
    pub reports: HashMap<String, Vec<v1::LoadReport>>,
    pub commits: u64,
    pub queries: u64,
    /// Migration → granted epoch.
    pub granted: HashMap<String, u64>,
    pub aborted: Vec<String>,
}

#[derive(Clone)]
pub struct Stub {
    pub mood: Arc<Mutex<Mood>>,
    pub heard: watch::Sender<Heard>,
    pub address: SocketAddr,
    pub stop: CancellationToken,
}

impl Stub {
    pub async fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stub = Self {
            mood: Arc::new(Mutex::new(mood)),
            heard: watch::Sender::new(Heard::default()),
            address: listener.local_addr().unwrap(),
            stop: CancellationToken::new(),
        };
        let server = tonic::transport::Server::builder()
            .add_service(RegistryServiceServer::new(stub.clone()))
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(listener),
                stub.stop.clone().cancelled_owned(),
            );
        tokio::spawn(server);
        stub
    }

    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Until it has heard that.
    pub async fn until(&self, mut heard: impl FnMut(&Heard) -> bool) {
        let mut watch = self.heard.subscribe();
        if tokio::time::timeout(PATIENCE, watch.wait_for(|h| heard(h))).await.is_err() {
            panic!("the controller never heard that, but: {:?}", self.heard.borrow());
        }
    }
}

#[tonic::async_trait]
impl RegistryService for Stub {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        self.heard.send_modify(|heard| heard.registrations.push(request.into_inner()));
        Ok(Response::new(v1::RegisterResponse {
            report_interval_ms: 100,
            controller_version: "stub".into(),
        }))
    }

    async fn report_load(
        &self,
        request: Request<Streaming<v1::LoadReport>>,
    ) -> Result<Response<v1::ReportLoadResponse>, Status> {
        let mut reports = request.into_inner();
        let mut accepted = 0;
        loop {
            let report = tokio::select! {
                report = reports.message() => report?,
                () = self.stop.cancelled() => return Err(Status::unavailable("ends")),
            };
            let Some(report) = report else { break };
            accepted += 1;
            self.heard.send_modify(|heard| {
                heard.reports.entry(report.host.clone()).or_default().push(report);
            });
        }
        Ok(Response::new(v1::ReportLoadResponse { accepted }))
    }

    async fn commit_migration(
        &self,
        request: Request<v1::CommitMigrationRequest>,
    ) -> Result<Response<v1::CommitMigrationResponse>, Status> {
        let request = request.into_inner();
        let mood = *self.mood.lock().unwrap();
        let epoch = request.source_epoch + 1;
        self.heard.send_modify(|heard| heard.commits += 1);
        match mood {
            Mood::Grant => {
                self.heard.send_modify(|heard| {
                    heard.granted.insert(request.migration, epoch);
                });
                Ok(Response::new(v1::CommitMigrationResponse { epoch }))
            }
            Mood::Refuse => {
                self.heard.send_modify(|heard| heard.aborted.push(request.migration));
                Err(to_status(&Refusal::new(RefusalCode::WrongState, "aborting", "nothing")))
            }
            Mood::Unavailable => {
                Err(to_status(&Refusal::new(RefusalCode::Unavailable, "no leader", "wait")))
            }
            Mood::Foreign => Err(Status::failed_precondition("a proxy")),
        }
    }

    async fn query_migration(
        &self,
        request: Request<v1::QueryMigrationRequest>,
    ) -> Result<Response<v1::QueryMigrationResponse>, Status> {
        let migration = request.into_inner().migration;
        self.heard.send_modify(|heard| heard.queries += 1);
        let heard = self.heard.borrow();
        let (verdict, epoch) = match heard.granted.get(&migration) {
            Some(epoch) => (MigrationVerdict::Superseded, *epoch),
            None if heard.aborted.contains(&migration) => (MigrationVerdict::Abort, 0),
            None => (MigrationVerdict::Pending, 0),
        };
        Ok(Response::new(v1::QueryMigrationResponse { verdict: verdict.into(), epoch }))
    }
}

pub fn config_text(host: &str, dir: &Path, controller: SocketAddr, driver: &str) -> String {
    let dir = dir.join(host);
    // The kvm driver's program: an example of this package, so built with its tests.
    let deps = std::env::current_exe().unwrap();
    let vmm = deps.parent().unwrap().parent().unwrap().join("examples/vmm");
    format!(
        "host = \"{host}\"\nlisten = \"127.0.0.1:0\"\nhttp_listen = \"127.0.0.1:0\"\n\
         controller = \"http://{controller}\"\nstate_dir = \"{}\"\ndriver = \"{driver}\"\n\
         migration_address = \"127.0.0.1\"\nlink = \"1Gbit/s\"\n\
         [capacity]\ncpu = \"1\"\nmemory = \"512MiB\"\n[vmm]\nbinary = \"{}\"\n",
        dir.display(),
        vmm.display()
    )
}

pub fn config(host: &str, dir: &Path, controller: SocketAddr, driver: &str) -> Config {
    let path = dir.join(format!("{host}.toml"));
    std::fs::write(&path, config_text(host, dir, controller, driver)).unwrap();
    Config::load(&path).unwrap()
}

/// An agent in this process.
pub struct Running {
    pub client: Client,
    pub agent: Option<Agent>,
    pub stop: CancellationToken,
}

impl Running {
    pub async fn start(config: Config) -> Self {
        let stop = CancellationToken::new();
        let agent = Agent::start(config, stop.clone()).await.unwrap();
        let client = connect(agent.listen).await;
        Self { client, agent: Some(agent), stop }
    }

    /// Ends it; its VMs go on.
    pub async fn end(mut self) {
        self.stop.cancel();
        drop(self.client);
        self.agent.take().unwrap().join().await.unwrap();
    }
}

pub async fn connect(address: SocketAddr) -> Client {
    AgentServiceClient::connect(format!("http://{address}")).await.unwrap()
}

pub fn spec(id: &str, kernel: &str, cmdline: &str) -> v1::VmSpec {
    let mut spec = VmSpec::new("name".parse().unwrap(), 1, Bytes::mib(64), kernel);
    spec.cmdline = cmdline.into();
    spec.migration.verify = true;
    // Tests also send names that are none.
    v1::VmSpec { id: id.into(), ..(&spec).into() }
}

pub fn migration(n: u32) -> String {
    format!("0190a0b0-0000-7000-8000-{n:012}")
}

pub fn refusal(status: &Status) -> Refusal {
    from_status(status, "agent")
}

pub async fn create(client: &mut Client, spec: v1::VmSpec, epoch: u64) -> v1::VmStatus {
    let request = v1::AgentCreateVmRequest { spec: Some(spec), epoch, ..Default::default() };
    client.create_vm(request).await.unwrap().into_inner().status.unwrap()
}

pub async fn list(client: &mut Client) -> Vec<v1::VmStatus> {
    client.list_vms(v1::AgentListVmsRequest {}).await.unwrap().into_inner().vms
}

/// Until the VM (or its absence) is as wanted.
pub async fn vm_until(
    client: &mut Client,
    vm: &str,
    mut wanted: impl FnMut(Option<&v1::VmStatus>) -> bool,
) -> Option<v1::VmStatus> {
    let poll = async {
        loop {
            let vms = list(client).await;
            let found = vms.into_iter().find(|status| status.vm == vm);
            if wanted(found.as_ref()) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, poll).await.expect("the VM does not come to be as wanted")
}

/// The last status of a migration, once it stands at `state` or has ended.
pub async fn migration_until(
    client: &mut Client,
    migration: &str,
    state: MigrationState,
) -> v1::MigrationStatus {
    let request = v1::WatchMigrationRequest { migration: migration.into() };
    let mut stream = client.watch_migration(request).await.unwrap().into_inner();
    let follow = async {
        loop {
            let status = stream.message().await.unwrap().expect("the stream ended early");
            if status.state() == state || status.state().is_ended() {
                return status;
            }
        }
    };
    let status = tokio::time::timeout(PATIENCE, follow).await.expect("the migration hangs");
    assert_eq!(status.state(), state, "{:?}", status.refusal);
    status
}

/// Prepares at `to`, starts at `from`.
pub async fn start_migration(from: &mut Client, to: &mut Client, id: &str, spec: v1::VmSpec) {
    let host = from.describe_host(v1::DescribeHostRequest {}).await.unwrap().into_inner().host;
    let vm = spec.id.clone();
    let policy = spec.migration;
    let prepare = v1::PrepareMigrationRequest {
        migration: id.into(),
        spec: Some(spec),
        source_epoch: 5,
        source_cpu_model: host.unwrap().cpu_model,
        tls: true,
        post_copy_patience_ms: 0,
    };
    let ready = to.prepare_migration(prepare.clone()).await.unwrap().into_inner();
    assert_eq!(to.prepare_migration(prepare).await.unwrap().into_inner(), ready);
    let start = v1::StartMigrationRequest {
        migration: id.into(),
        vm,
        source_epoch: 5,
        address: ready.address,
        token: ready.token,
        policy,
        bandwidth_bytes_per_sec: 0,
        public_key: ready.public_key,
        streams: 2,
        never_throttle: false,
        never_compress: false,
        downtime_limit_max_ms: 0,
    };
    from.start_migration(start.clone()).await.unwrap();
    from.start_migration(start).await.unwrap();
}

/// All that the VM has said from the beginning.
pub async fn console(client: &mut Client, vm: &str) -> String {
    let mut text = Vec::new();
    loop {
        let request = v1::ReadConsoleRequest {
            vm: vm.into(),
            offset: text.len() as u64,
            ..Default::default()
        };
        let answer = client.read_console(request).await.unwrap().into_inner();
        assert_eq!(answer.offset, text.len() as u64);
        if answer.data.is_empty() {
            return String::from_utf8(text).unwrap();
        }
        text.extend_from_slice(&answer.data);
    }
}

/// The numbers of all heartbeats, which must follow each other.
pub fn heartbeats(console: &str) -> u64 {
    let lines = console.lines().filter_map(|line| line.strip_prefix("H ")?.split_once(' '));
    let mut next = 0;
    // The last line may not be complete.
    for (number, rest) in lines {
        if rest.contains(" e") {
            assert_eq!(number.parse::<u64>().unwrap(), next, "{console}");
            next += 1;
        }
    }
    next
}
