//! `ballast demo --json`, as a newcomer runs it.

use ballast_tests::kvm_or_skip;
use serde::Deserialize;
use tokio::process::Command;

use crate::PROGRAM;

/// The last line on standard output. Unknown keys are fine.
#[derive(Debug, Deserialize)]
struct Summary {
    driver: String,
    store: String,
    hosts: u32,
    vms: u32,
    migrations_completed: u32,
    migrations_failed: u32,
    imbalance_before: f64,
    imbalance_after: f64,
    downtime_ms_p50: f64,
    downtime_ms_max: f64,
    guest_memory_errors: u64,
    heartbeats_lost: u64,
    audit_entries: u64,
    audit_verified: bool,
    drained_host_vms: u32,
}

async fn check_demo(args: &[&str], driver: &str, store: &str) {
    let tmp = tempfile::tempdir().unwrap();
    let output = Command::new(PROGRAM)
        .arg("demo")
        .arg("--json")
        .args(args)
        .env("TMPDIR", tmp.path())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}\n{stdout}\n{stderr}", output.status);
    let last = stdout.lines().last().expect("a last line");
    let summary: Summary = serde_json::from_str(last).unwrap();
    eprintln!("{summary:?}");
    assert_eq!((summary.driver.as_str(), summary.store.as_str()), (driver, store));
    assert_eq!(summary.hosts, 4);
    assert!(summary.vms >= 10);
    assert!(summary.migrations_completed >= 5);
    assert_eq!(summary.migrations_failed, 0);
    assert!(summary.imbalance_after < summary.imbalance_before / 3.0);
    assert!(summary.downtime_ms_p50 > 0.0 && summary.downtime_ms_p50 <= summary.downtime_ms_max);
    assert_eq!((summary.guest_memory_errors, summary.heartbeats_lost), (0, 0));
    assert!(summary.audit_verified);
    // Each migration and each VM is opened and closed.
    assert!(summary.audit_entries >= 2 * u64::from(summary.migrations_completed + summary.vms));
    assert_eq!(summary.drained_host_vms, 0);
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0, "it cleans up after itself");
}

#[tokio::test]
async fn the_demo_holds_what_it_promises() {
    if kvm_or_skip("the demo") {
        check_demo(&[], "kvm", "embedded").await;
    }
}

#[tokio::test]
async fn the_demo_holds_it_on_etcd_too() {
    if kvm_or_skip("the demo on etcd") {
        check_demo(&["--store", "etcd"], "kvm", "etcd").await;
    }
}

#[tokio::test]
async fn the_demo_runs_simulated_vms() {
    check_demo(&["--driver", "sim"], "sim", "embedded").await;
}
