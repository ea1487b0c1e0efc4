//! A VM that writes too fast moves by post-copy, by the operator's command.

use ballast_cli::cluster::StoreKind;
use ballast_guest::Params;
use ballast_proto::v1;
use ballast_tests::hold::{HoldFile, is_stopped, vmm_of};
use ballast_tests::{Guest, TestCluster, eventually, kvm_or_skip, run, signal_process};

use crate::PROGRAM;

/// So slow that every round leaves as much as it began with.
const CONFIG: &str = "[migration]\nbandwidth_bytes_per_sec = 8388608";

fn hot() -> Params {
    Params {
        heartbeat_ms: 50,
        duty_percent: 50,
        working_set_mib: 8,
        dirty_mib_per_sec: 80,
        ..Params::default()
    }
}

/// Whether the VM runs on this host without all of its memory.
async fn fetches(test: &TestCluster, host: &v1::HostDescription) -> bool {
    test.vms_at(host).await.into_iter().any(|vm| {
        let migration = vm.migration.unwrap_or_default();
        vm.state == i32::from(v1::VmState::Running)
            && migration.state == i32::from(v1::MigrationState::Fetching)
    })
}

/// A VM that was sent to its destination by post-copy.
struct Moving {
    test: TestCluster,
    guest: Guest,
    hosts: Vec<v1::HostDescription>,
    migration: String,
    /// The process that has the rest of its memory, held before it sends it.
    source: u32,
    hold: HoldFile,
    _dir: tempfile::TempDir,
}

/// Waits until it runs without all of its memory.
async fn until_it_fetches() -> Moving {
    let dir = tempfile::tempdir().unwrap();
    let hold = HoldFile::new(dir.path());
    let test =
        TestCluster::start_configured(PROGRAM, StoreKind::Embedded, hold.env(), CONFIG).await;
    let hosts = test.hosts().await;
    let policy = v1::MigrationPolicy { downtime_limit_ms: 1, verify: true, post_copy: true };
    let guest = Guest::create_as(&test, "hot", &hosts[0].host, &hot(), |spec| {
        spec.migration = Some(policy);
    })
    .await;
    hold.arm("hot", "source.serving");
    let migration = test.migrate("hot", &hosts[1].host).await;
    let state = test.cluster.dir().join("state").join(&hosts[0].host);
    let source = eventually("its source is held when it is to send the rest", async || {
        vmm_of(&state, "hot").filter(|pid| is_stopped(*pid))
    })
    .await;
    eventually("it runs without all of its memory", async || {
        fetches(&test, &hosts[1]).await.then_some(())
    })
    .await;
    Moving { test, guest, hosts, migration, source, hold, _dir: dir }
}

#[tokio::test]
async fn a_hot_vm_moves_and_its_source_stays_until_all_of_its_memory_is_there() {
    if !kvm_or_skip("post-copy") {
        return;
    }
    let Moving { test, mut guest, hosts, migration: id, source: held, hold, _dir } =
        until_it_fetches().await;
    let (source, destination) = (&hosts[0], &hosts[1]);
    let shown = run(PROGRAM, &["--controller", test.cluster.url(), "migration", "show", &id]).await;
    let left = test.vms_at(source).await;
    assert!(left.iter().any(|vm| vm.state() == v1::VmState::Paused), "{left:?}");
    hold.clear();
    signal_process(held, rustix::process::Signal::CONT);
    let moved = test.ended(&id).await;
    assert_eq!(moved.phase, "completed", "{moved:?}");
    let progress = moved.progress.unwrap();
    assert!(progress.post_copy_bytes > 1 << 20, "{progress:?}; {shown:?}");
    assert_eq!(progress.bytes_remaining, 0, "{progress:?}");
    assert_eq!(test.runs_once("hot").await, destination.host);
    let report = guest.goes_on(&test).await;
    assert_eq!((report.boots, report.memory_errors), (1, 0));
    test.stop().await;
}

/// Its agent was not there when it died, and the next one has to say that it was not whole.
#[tokio::test]
async fn a_vm_that_died_without_all_of_its_memory_and_without_an_agent_is_told_as_lost() {
    if !kvm_or_skip("post-copy") {
        return;
    }
    let Moving { mut test, hosts, migration, source, hold, guest: _, _dir } =
        until_it_fetches().await;
    let destination = test.cluster.dir().join("state").join(&hosts[1].host);
    let machine = vmm_of(&destination, "hot").expect("it runs there");
    test.cluster.kill_agent(1).await.unwrap();
    signal_process(machine, rustix::process::Signal::KILL);
    hold.clear();
    signal_process(source, rustix::process::Signal::CONT);
    test.cluster.restart_agent(1).await.unwrap();
    let ended = test.ended(&migration).await;
    assert_eq!(ended.phase, "failed", "{ended:?}");
    assert!(ended.why.contains("VM hot is lost"), "{ended:?}");
    eventually("nothing of it is left at its source", async || {
        test.vms_at(&hosts[0]).await.is_empty().then_some(())
    })
    .await;
    test.stop().await;
}
