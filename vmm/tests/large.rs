//! VMs with more memory than fits below the devices, and with many vCPUs: they run, go to a file
//! and back, and move, with everything they have.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;

use ballast_guest::{ConsoleReport, Params};
use ballast_proto::v1::{self, MigrationState, MigrationVerdict};
use process::{Lab, PATIENCE, Vmm, have_kvm};
use tokio::time::Instant;

/// The most a VM may have.
const VCPUS: u32 = 32;

#[tokio::test]
async fn memory_above_4_gib_goes_along() {
    if !have_kvm() {
        return;
    }
    let params = Params {
        heartbeat_ms: 20,
        working_set_mib: 4,
        high_mib: 24,
        dirty_mib_per_sec: 40,
        check_mib_per_sec: 100,
        ..Params::default()
    };
    let lab = Lab::new();
    // What lies above 4 GiB, and as much again that is never touched.
    let spec = lab.spec(params.memory_mib_min() + 24, &params);
    assert!(spec.memory_bytes > 3 << 30);
    let guest =
        round_trip(&lab, spec, |before, now| now.check_passes > before.check_passes + 1).await;
    assert_eq!(guest.console.report().other_vcpus, 0);
}

#[tokio::test]
async fn many_vcpus_go_along() {
    if !have_kvm() {
        return;
    }
    // They share few CPUs: one that is slow to come has its turn within a heartbeat.
    let params = Params { heartbeat_ms: 500, ..Params::default() };
    let lab = Lab::new();
    let spec = v1::VmSpec { vcpus: VCPUS, ..lab.spec(32, &params) };
    let all_work = |_: &ConsoleReport, now: &ConsoleReport| now.other_vcpus == u64::from(VCPUS - 1);
    round_trip(&lab, spec, all_work).await;
}

/// Boots, goes to a file and back in another process, moves to a third; on each it must do well
/// and `is_seen` must come to hold, told what was known before and what is now.
async fn round_trip(
    lab: &Lab,
    spec: v1::VmSpec,
    is_seen: impl Fn(&ConsoleReport, &ConsoleReport) -> bool,
) -> Vmm {
    let mut first = lab.vmm("a").await;
    first.boot(spec.clone()).await.unwrap();
    wait_until(&mut first, &is_seen).await;
    let file = lab.path("snapshot").to_str().unwrap().to_owned();
    first.save(&file, true).await.unwrap();
    first.read_console().await;

    let mut second = lab.vmm("b").await;
    second.boot_from(spec.clone(), &file).await.unwrap();
    std::mem::swap(&mut first.console, &mut second.console);
    wait_until(&mut second, &is_seen).await;

    let mut third = lab.vmm("c").await;
    let address = third.listen(spec).await.unwrap();
    second.send(&address, |_| {}).await.unwrap();
    third.watch_state(MigrationState::Ready).await;
    second.read_console().await;
    std::mem::swap(&mut second.console, &mut third.console);
    third.resolve(MigrationVerdict::Commit, 2).await.unwrap();
    second.resolve(MigrationVerdict::Superseded, 2).await.unwrap();
    assert!(second.ended().await.success());
    wait_until(&mut third, &is_seen).await;
    third
}

/// Waits for two more heartbeats, and for the guest to be as it shall.
async fn wait_until(vmm: &mut Vmm, is_seen: impl Fn(&ConsoleReport, &ConsoleReport) -> bool) {
    let end = Instant::now() + PATIENCE;
    let before = vmm.beats(2).await;
    loop {
        let report = vmm.beats(1).await;
        assert_eq!(report.faults(), Vec::<String>::new());
        if is_seen(&before, &report) {
            return;
        }
        assert!(Instant::now() < end, "not seen: {report:?}");
    }
}
