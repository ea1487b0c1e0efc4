//! Real `ballast-vmm` processes on the real /dev/kvm, for tests.
//!
//! A [`Vmm`] is one process and the client of its socket. Dropping it kills the
//! process, so that a test that fails leaves nothing behind.

// Each test file uses its part; helpers of tests may unwrap like tests.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ballast_guest::{Console, ConsoleReport, Params};
use ballast_model::{Refusal, RefusalCode};
use ballast_proto::error::from_status;
use ballast_proto::v1;
use ballast_proto::v1::vmm_service_client::VmmServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// How long anything may take before a test gives up. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const VM: &str = "probe";
pub const MIGRATION: &str = "018f0000-0000-7000-8000-000000000001";
pub const TOKEN: [u8; 32] = [42; 32];

/// Whether this machine can run VMs; says so loudly when it cannot.
pub fn have_kvm() -> bool {
    let have = Path::new("/dev/kvm").exists();
    if !have {
        eprintln!("SKIPPED: this machine has no /dev/kvm, so no VM was started");
    }
    have
}

/// A directory for sockets, with the guest's image in it.
pub struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("guest"), ballast_guest::IMAGE).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A VM of `mib` MiB that runs the probe guest.
    pub fn spec(&self, mib: u64, params: &Params) -> v1::VmSpec {
        v1::VmSpec {
            id: VM.to_owned(),
            vcpus: 1,
            memory_bytes: mib << 20,
            kernel: self.path("guest").to_str().unwrap().to_owned(),
            cmdline: params.to_cmdline(),
            automation: v1::Automation::Full.into(),
            migration: Some(v1::MigrationPolicy {
                downtime_limit_ms: 300,
                verify: true,
                post_copy: false,
            }),
            ..v1::VmSpec::default()
        }
    }

    pub async fn vmm(&self, name: &str) -> Vmm {
        Vmm::start(&self.path(name)).await
    }
}

pub fn command(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ballast-vmm"));
    command
        .arg("--socket")
        .arg(socket)
        .args(["--vm", VM, "--jail", "enforce"])
        .stdin(Stdio::null());
    command
}

pub struct Vmm {
    child: Child,
    pub client: VmmServiceClient<Channel>,
    pub console: Console,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Vmm {
    pub async fn start(socket: &Path) -> Self {
        Self::adopt(command(socket).spawn().unwrap(), socket).await
    }

    /// Talks to a process that was started in another way.
    pub async fn adopt(child: Child, socket: &Path) -> Self {
        let client = connect(socket).await;
        Self { child, client, console: Console::new() }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the process to end by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the process does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn boot(&mut self, spec: v1::VmSpec) -> Result<(), Refusal> {
        self.boot_from(spec, "").await
    }

    /// Boots, or goes on from a snapshot.
    pub async fn boot_from(&mut self, spec: v1::VmSpec, file: &str) -> Result<(), Refusal> {
        let request = v1::BootRequest { spec: Some(spec), epoch: 1, restore_from: file.to_owned() };
        self.client.boot(request).await.map(|_| ()).map_err(refusal)
    }

    pub async fn save(
        &mut self,
        file: &str,
        stop: bool,
    ) -> Result<v1::SaveSnapshotResponse, Refusal> {
        let request = v1::VmmSaveSnapshotRequest { path: file.to_owned(), stop };
        self.client.save_snapshot(request).await.map(|answer| answer.into_inner()).map_err(refusal)
    }

    pub async fn status(&mut self) -> v1::VmStatus {
        self.client.describe(v1::DescribeRequest {}).await.unwrap().into_inner().status.unwrap()
    }

    pub async fn state(&mut self) -> v1::VmState {
        v1::VmState::try_from(self.status().await.state).unwrap()
    }

    pub async fn migration(&mut self) -> v1::MigrationStatus {
        self.status().await.migration.expect("a migration")
    }

    /// Reads what the guest has written since the last time.
    pub async fn read_console(&mut self) {
        loop {
            let offset = self.console.next_offset();
            let request = v1::ReadConsoleRequest { vm: VM.to_owned(), offset, wait_ms: 0 };
            let output = self.client.read_console(request).await.unwrap().into_inner();
            if output.data.is_empty() {
                return;
            }
            self.console.push(output.offset, &output.data);
        }
    }

    /// Reads until `enough`, with what the guest has said so far.
    pub async fn until(&mut self, enough: impl Fn(&ConsoleReport) -> bool) -> ConsoleReport {
        let end = Instant::now() + PATIENCE;
        loop {
            self.read_console().await;
            let report = self.console.report();
            if enough(report) {
                return report.clone();
            }
            assert!(Instant::now() < end, "the guest does not get there: {report:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for `more` heartbeats beyond those seen, and that no fault was.
    pub async fn beats(&mut self, more: u64) -> ConsoleReport {
        let seen = self.console.report().heartbeats;
        let report = self.until(|report| report.heartbeats >= seen + more).await;
        assert_eq!(report.faults(), Vec::<String>::new());
        report
    }

    pub async fn listen(&mut self, spec: v1::VmSpec) -> Result<String, Refusal> {
        self.listen_at(spec, "127.0.0.1:0").await
    }

    pub async fn listen_at(&mut self, spec: v1::VmSpec, at: &str) -> Result<String, Refusal> {
        Ok(self.listen_with(spec, at, false).await?.address)
    }

    pub async fn listen_with(
        &mut self,
        spec: v1::VmSpec,
        at: &str,
        tls: bool,
    ) -> Result<v1::ReceiveMigrationResponse, Refusal> {
        let request = v1::ReceiveMigrationRequest {
            migration: MIGRATION.to_owned(),
            listen: at.to_owned(),
            token: TOKEN.to_vec(),
            spec: Some(spec),
            source_epoch: 1,
            tls,
            post_copy_patience_ms: 0,
        };
        let answer = self.client.receive_migration(request).await.map_err(refusal)?;
        Ok(answer.into_inner())
    }

    pub async fn send(
        &mut self,
        address: &str,
        change: impl FnOnce(&mut v1::SendMigrationRequest),
    ) -> Result<(), Refusal> {
        let mut request = v1::SendMigrationRequest {
            migration: MIGRATION.to_owned(),
            address: address.to_owned(),
            token: TOKEN.to_vec(),
            downtime_limit_ms: 300,
            verify: true,
            rounds_max: 0,
            bandwidth_bytes_per_sec: 0,
            streams: 0,
            downtime_limit_max_ms: 0,
            never_throttle: false,
            never_compress: false,
            public_key: vec![],
            post_copy: false,
        };
        change(&mut request);
        self.client.send_migration(request).await.map(|_| ()).map_err(refusal)
    }

    /// Watches the migration until `enough`; answers with that status.
    pub async fn watch(
        &mut self,
        enough: impl Fn(&v1::MigrationStatus) -> bool,
    ) -> v1::MigrationStatus {
        let request = v1::WatchMigrationRequest { migration: MIGRATION.to_owned() };
        let mut changes = self.client.watch_migration(request).await.unwrap().into_inner();
        let found = async {
            while let Some(status) = changes.message().await.unwrap() {
                if enough(&status) {
                    return status;
                }
            }
            panic!("the migration ended before")
        };
        tokio::time::timeout(PATIENCE, found).await.expect("the migration does not get there")
    }

    pub async fn watch_state(&mut self, state: v1::MigrationState) -> v1::MigrationStatus {
        self.watch(|status| status.state == state as i32).await
    }

    pub async fn resolve(
        &mut self,
        verdict: v1::MigrationVerdict,
        epoch: u64,
    ) -> Result<v1::VmState, Refusal> {
        let migration = MIGRATION.to_owned();
        let request = v1::ResolveMigrationRequest { migration, verdict: verdict.into(), epoch };
        let answer = self.client.resolve_migration(request).await.map_err(refusal)?;
        Ok(v1::VmState::try_from(answer.into_inner().state).unwrap())
    }
}

/// A guest that computes and writes all the time.
pub fn busy() -> Params {
    Params {
        heartbeat_ms: 50,
        duty_percent: 30,
        working_set_mib: 16,
        dirty_mib_per_sec: 20,
        ..Params::default()
    }
}

pub fn refusal(status: tonic::Status) -> Refusal {
    from_status(&status, "vmm")
}

pub fn check_refused<T: std::fmt::Debug>(
    outcome: Result<T, Refusal>,
    code: RefusalCode,
    expected: &str,
) {
    let refusal = outcome.unwrap_err();
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(refusal.to_string().contains(expected), "{refusal}");
    assert!(!refusal.remedy.is_empty());
}

async fn connect(socket: &Path) -> VmmServiceClient<Channel> {
    let end = Instant::now() + PATIENCE;
    loop {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        match Endpoint::from_static("http://vmm").connect_with_connector(connector).await {
            Ok(channel) => return VmmServiceClient::new(channel),
            Err(error) => assert!(Instant::now() < end, "no VMM at {}: {error}", socket.display()),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
