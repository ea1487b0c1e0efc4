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

#[tokio::test]
async fn a_hot_vm_moves_and_its_source_stays_until_all_of_its_memory_is_there() {
    if !kvm_or_skip("post-copy") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hold = HoldFile::new(dir.path());
    let env = vec![("BALLAST_HOLD".to_owned(), hold.path().to_string_lossy().into_owned())];
    let test = TestCluster::start_configured(PROGRAM, StoreKind::Embedded, env, CONFIG).await;
    let hosts = test.hosts().await;
    let (source, destination) = (&hosts[0], &hosts[1]);
    let policy = v1::MigrationPolicy { downtime_limit_ms: 1, verify: true, post_copy: true };
    let mut guest = Guest::create_as(&test, "hot", &source.host, &hot(), |spec| {
        spec.migration = Some(policy);
    })
    .await;
    hold.arm("hot", "source.serving");
    let id = test.migrate("hot", &destination.host).await;
    let state = test.cluster.dir().join("state").join(&source.host);
    let held = eventually("its source is held when it is to send the rest", async || {
        vmm_of(&state, "hot").filter(|pid| is_stopped(*pid))
    })
    .await;
    eventually("it runs without all of its memory", async || {
        fetches(&test, destination).await.then_some(())
    })
    .await;
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
