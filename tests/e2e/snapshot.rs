//! A VM goes to a file and comes back on another host, by the operator's command.

use ballast_cli::cluster::StoreKind;
use ballast_guest::Params;
use ballast_tests::{Finished, Guest, TestCluster, kvm_or_skip, run};

use crate::PROGRAM;

const INVALID: i32 = 2;
const ALREADY_THERE: i32 = 4;

async fn ballast(test: &TestCluster, args: &[&str]) -> Finished {
    let mut all = vec!["--controller", test.cluster.url()];
    all.extend(args);
    run(PROGRAM, &all).await
}

#[tokio::test]
async fn a_vm_goes_to_a_file_and_goes_on_elsewhere() {
    if !kvm_or_skip("snapshot and restore") {
        return;
    }
    let test = TestCluster::start(PROGRAM, StoreKind::Embedded).await;
    let hosts = test.hosts().await;
    let (here, there) = (hosts[0].host.as_str(), hosts[1].host.as_str());
    let params = Params { heartbeat_ms: 50, duty_percent: 20, ..Params::default() };
    let mut guest = Guest::create(&test, "web-1", here, &params).await;
    let file = test.cluster.snapshot_dir().join("web-1.snapshot");
    let file = file.to_str().unwrap();
    let elsewhere = ballast(&test, &["vm", "snapshot", "web-1", "--to", "/tmp/web-1"]).await;
    elsewhere.check_refused(INVALID, &["vmm.snapshot_dirs"]);

    let saved = ballast(&test, &["vm", "snapshot", "web-1", "--to", file]).await;
    assert_eq!(saved.code, Some(0), "{saved:?}");
    assert!(saved.stdout.contains("it goes on"), "{saved:?}");
    guest.goes_on(&test).await;
    let twice = ballast(&test, &["vm", "restore", "--from", file, "--host", there]).await;
    twice.check_refused(ALREADY_THERE, &["web-1"]);
    let taken = ballast(&test, &["vm", "snapshot", "web-1", "--to", file]).await;
    taken.check_refused(ALREADY_THERE, &["is there already"]);

    std::fs::remove_file(file).unwrap();
    let saved = ballast(&test, &["vm", "snapshot", "web-1", "--to", file, "--stop"]).await;
    assert_eq!(saved.code, Some(0), "{saved:?}");
    assert!(test.everywhere(&hosts, "web-1").await.is_empty(), "it is in the file alone");
    let restored = ballast(&test, &["vm", "restore", "--from", file, "--host", there]).await;
    assert_eq!(restored.code, Some(0), "{restored:?}");
    assert_eq!(test.runs_once("web-1").await, there);
    let report = guest.goes_on(&test).await;
    assert_eq!((report.boots, report.heartbeats_lost, report.memory_errors), (1, 0, 0));
    let verified = test.audit_verify(PROGRAM).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    test.stop().await;
}
