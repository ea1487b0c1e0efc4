//! Clusters on one machine, for end-to-end tests.
//!
//! A [`TestCluster`] is a controller and agents as real processes, with real
//! VMs. To [`ballast_cli::cluster`] it adds what tests ask: does every VM run
//! exactly once, do its heartbeats go on, what does the guest say of its
//! memory. Helpers panic with what they waited for: a panic is a failed test.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a panic is a failed test")]

mod guests;
pub mod hold;
mod logs;
pub mod matrix;
mod program;
pub mod small;
pub mod tamper;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ballast_cli::client::Client;
use ballast_cli::cluster::{Cluster, ClusterOptions, DriverKind, StoreKind};
use ballast_model::{Bytes, Millicores, Resources};
use ballast_proto::v1;
use ballast_proto::v1::agent_service_client::AgentServiceClient;

pub use guests::Guest;
pub use program::{Finished, run, run_as};

/// The bound on anything a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// Waits until `look` answers with a value.
///
/// # Panics
/// When nothing came within [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "gave up waiting until {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Whether this machine runs VMs; says so loudly when it does not.
pub fn kvm_or_skip(test: &str) -> bool {
    let usable = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    if !usable {
        eprintln!("SKIPPED: {test} needs a usable /dev/kvm, which this machine lacks");
    }
    usable
}

/// A controller that moves nothing by itself, agents, and a connection.
#[derive(Debug)]
pub struct TestCluster {
    /// Dropped before the directory with the logs is.
    logs: logs::ShownOnPanic,
    /// The processes.
    pub cluster: Cluster,
    /// The operator's connection to the controller; broken while the controller is down.
    pub client: Client,
}

impl TestCluster {
    /// Three hosts of one core and 2 GiB, run by `program`, with real VMs.
    pub async fn start(program: &str, store: StoreKind) -> Self {
        Self::start_with(program, store, Vec::new()).await
    }

    /// The same with environment variables for all its processes.
    pub async fn start_with(program: &str, store: StoreKind, env: Vec<(String, String)>) -> Self {
        Self::start_configured(program, store, env, "").await
    }

    /// The same with more of the controller's configuration, in TOML.
    pub async fn start_configured(
        program: &str,
        store: StoreKind,
        env: Vec<(String, String)>,
        more: &str,
    ) -> Self {
        let options = ClusterOptions {
            program: PathBuf::from(program),
            hosts: 3,
            capacity: Resources::new(Millicores::cores(1), Bytes::gib(2)),
            driver: DriverKind::Kvm,
            store,
            controller_config: format!("[balance]\nautomation = 'manual'\n{more}").parse().unwrap(),
            log_level: "info".to_owned(),
            env,
        };
        let cluster = Cluster::start(options).await.unwrap_or_else(|refusal| panic!("{refusal}"));
        let client = cluster.client().await.unwrap();
        let logs = logs::ShownOnPanic::of(cluster.dir());
        Self { logs, cluster, client }
    }

    /// Ends everything; nothing may be left.
    pub async fn stop(self) {
        drop(self.logs);
        self.cluster.stop().await.unwrap();
    }

    /// Who acts, for calls that change something.
    pub fn actor(why: &str) -> Option<v1::Actor> {
        Some(v1::Actor { who: "test".to_owned(), why: why.to_owned() })
    }

    /// Kills the controller, starts it again and connects anew.
    pub async fn crash_controller(&mut self) {
        self.cluster.kill_controller().await.unwrap();
        self.cluster.restart_controller().await.unwrap();
        self.client = self.cluster.client().await.unwrap();
        self.loads_known().await;
    }

    /// Waits until the load of every host is known: before that the controller moves nothing.
    pub async fn loads_known(&self) {
        eventually("the load of every host is known", async || {
            let hosts = self.client.list_hosts(v1::ListHostsRequest {}).await.ok()?.hosts;
            hosts.iter().all(|host| host.known).then_some(())
        })
        .await;
    }

    /// Sends a signal to the controller, e.g. to stop it and let it go on.
    pub fn signal_controller(&self, signal: rustix::process::Signal) {
        signal_process(self.cluster.controller_pid().expect("the controller runs"), signal);
    }

    /// Begins to move a VM, as soon as the load of every host is known; answers with the migration's id.
    pub async fn migrate(&self, vm: &str, to: &str) -> String {
        self.loads_known().await;
        let request = v1::MigrateVmRequest {
            vm: vm.to_owned(),
            to: to.to_owned(),
            actor: Self::actor("a test moves it"),
        };
        self.client
            .migrate_vm(request)
            .await
            .unwrap_or_else(|refusal| panic!("{refusal}"))
            .migration
    }

    /// A migration as it stands.
    pub async fn migration(&self, id: &str) -> v1::Migration {
        let request = v1::GetMigrationRequest { migration: id.to_owned() };
        self.client.get_migration(request).await.unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    /// Waits until a migration is over.
    pub async fn ended(&self, id: &str) -> v1::Migration {
        eventually(&format!("migration {id} ends"), async || {
            let migration = self.migration(id).await;
            migration.ended.then_some(migration)
        })
        .await
    }

    /// Waits until a migration is in `phase` or over.
    pub async fn reaches(&self, id: &str, phase: &str) {
        eventually(&format!("migration {id} is {phase}"), async || {
            let migration = self.migration(id).await;
            (migration.phase == phase || migration.ended).then_some(())
        })
        .await;
    }

    /// Every VM that `host`'s agent has, asked directly.
    pub async fn vms_at(&self, host: &v1::HostDescription) -> Vec<v1::VmStatus> {
        let mut agent = AgentServiceClient::connect(format!("http://{}", host.endpoint))
            .await
            .unwrap_or_else(|error| panic!("agent of {}: {error}", host.host));
        agent.list_vms(v1::AgentListVmsRequest {}).await.unwrap().into_inner().vms
    }

    /// All hosts as they described themselves.
    pub async fn hosts(&self) -> Vec<v1::HostDescription> {
        let hosts = self.client.list_hosts(v1::ListHostsRequest {}).await.unwrap().hosts;
        hosts.into_iter().map(|host| host.description.expect("registered")).collect()
    }

    /// What each host has of a VM.
    pub async fn everywhere(
        &self,
        hosts: &[v1::HostDescription],
        vm: &str,
    ) -> Vec<(String, v1::VmStatus)> {
        let mut found = Vec::new();
        for host in hosts {
            let here = self.vms_at(host).await.into_iter().filter(|status| status.vm == vm);
            found.extend(here.map(|status| (host.host.clone(), status)));
        }
        found
    }

    /// Checks that exactly one host has the VM, that it runs there, and that the owner record says so.
    /// Answers with the host.
    pub async fn runs_once(&self, vm: &str) -> String {
        let hosts = self.hosts().await;
        let (host, status) = eventually(&format!("{vm} is on one host and runs"), async || {
            let found = self.everywhere(&hosts, vm).await;
            let running =
                |(_, status): &(String, v1::VmStatus)| status.state() == v1::VmState::Running;
            assert!(found.iter().filter(|found| running(found)).count() <= 1, "twice: {found:?}");
            <[_; 1]>::try_from(found).ok().map(|[only]| only).filter(running)
        })
        .await;
        let record = self.record(vm).await;
        assert_eq!((record.host.as_str(), record.epoch), (host.as_str(), status.epoch));
        host
    }

    /// What the controller knows of a VM.
    pub async fn record(&self, vm: &str) -> v1::VmRecord {
        let request = v1::GetVmRequest { vm: vm.to_owned() };
        self.client.get_vm(request).await.unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    /// `ballast audit verify` against this cluster.
    pub async fn audit_verify(&self, program: &str) -> Finished {
        run(program, &["--controller", self.cluster.url(), "audit", "verify"]).await
    }
}

/// Sends a signal to one process.
pub fn signal_process(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("the process is there");
}
