//! Probe guests of a test cluster.

use ballast_guest::{Console, ConsoleReport, Params};
use ballast_proto::v1;

use crate::{TestCluster, eventually};

/// How many heartbeats show that a guest goes on.
const HEARTBEATS: u64 = 5;

/// A probe guest under test, with all it ever said.
#[derive(Debug)]
pub struct Guest {
    /// The VM's name.
    pub vm: String,
    console: Console,
}

impl Guest {
    /// Creates one on `host` and waits for its first heartbeats.
    pub async fn create(test: &TestCluster, vm: &str, host: &str, params: &Params) -> Self {
        Self::create_with(test, vm, host, params, Vec::new()).await
    }

    /// The same with disks.
    pub async fn create_with(
        test: &TestCluster,
        vm: &str,
        host: &str,
        params: &Params,
        disks: Vec<v1::Disk>,
    ) -> Self {
        Self::create_as(test, vm, host, params, |spec| spec.disks = disks).await
    }

    /// The same with whatever else its owner asks for.
    pub async fn create_as(
        test: &TestCluster,
        vm: &str,
        host: &str,
        params: &Params,
        change: impl FnOnce(&mut v1::VmSpec),
    ) -> Self {
        let mut spec = v1::VmSpec {
            id: vm.to_owned(),
            vcpus: 1,
            memory_bytes: (params.memory_mib_min() + 16) << 20,
            kernel: test.cluster.kernel().to_string_lossy().into_owned(),
            cmdline: params.to_cmdline(),
            automation: v1::Automation::Full.into(),
            migration: Some(v1::MigrationPolicy {
                downtime_limit_ms: 300,
                verify: true,
                post_copy: false,
            }),
            ..v1::VmSpec::default()
        };
        change(&mut spec);
        // A host takes no VM while its load is unknown, as it may be after one died there.
        test.loads_known().await;
        let actor = TestCluster::actor("a test needs it");
        let request = v1::CreateVmRequest { spec: Some(spec), host: host.to_owned(), actor };
        test.client.create_vm(request).await.unwrap_or_else(|refusal| panic!("{refusal}"));
        let mut guest = Self { vm: vm.to_owned(), console: Console::new() };
        guest.goes_on(test).await;
        guest
    }

    /// Waits for further heartbeats, and checks that nothing it ever said is a fault.
    pub async fn goes_on(&mut self, test: &TestCluster) -> ConsoleReport {
        let before = self.read(test).await.map_or(0, |report| report.heartbeats);
        let vm = self.vm.clone();
        let report = eventually(&format!("{vm} goes on beyond heartbeat {before}"), async || {
            let report = self.read(test).await?;
            (report.heartbeats >= before + HEARTBEATS).then_some(report)
        })
        .await;
        assert_eq!(report.faults(), Vec::<String>::new(), "{vm}: {report:?}");
        report
    }

    /// Leaves out of its reports what it has said so far.
    pub fn begin_anew(&mut self) {
        self.console = Console::starting_at(self.console.next_offset());
    }

    /// What it has said so far.
    pub fn report(&self) -> &ConsoleReport {
        self.console.report()
    }

    /// Reads what is new on its console; nothing while the VM cannot be reached.
    pub async fn read(&mut self, test: &TestCluster) -> Option<ConsoleReport> {
        loop {
            let offset = self.console.next_offset();
            let request = v1::ReadConsoleRequest { vm: self.vm.clone(), offset, wait_ms: 0 };
            let piece = test.client.read_console(request).await.ok()?;
            if piece.data.is_empty() {
                return Some(self.console.report().clone());
            }
            self.console.push(piece.offset, &piece.data);
        }
    }
}
