//! A guest that keeps a log on its disk, while it is paused, saved, moved and killed: no record
//! is lost, none is written twice, and what was flushed is there.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;

use std::fs::File;
use std::path::{Path, PathBuf};

use ballast_guest::{LogReport, Params};
use ballast_proto::v1::{self, MigrationState, MigrationVerdict};
use process::{Lab, Vmm, have_kvm};

const RECORD_BYTES: u32 = 4096;

fn disk(lab: &Lab) -> PathBuf {
    let path = lab.path("disk");
    File::create(&path).unwrap().set_len(32 << 20).unwrap();
    path
}

fn spec(lab: &Lab, path: &Path) -> v1::VmSpec {
    let params = Params {
        heartbeat_ms: 20,
        log_per_sec: 100,
        log_bytes: RECORD_BYTES,
        working_set_mib: 8,
        dirty_mib_per_sec: 8,
        ..Params::default()
    };
    let path = path.to_str().unwrap().to_owned();
    let disks = vec![v1::Disk { path, readonly: false, local: false, limit: None }];
    v1::VmSpec { disks, ..lab.spec(48, &params) }
}

/// Waits until the guest has flushed `more` records than it had.
async fn records(vmm: &mut Vmm, more: u64) -> u64 {
    let seen = vmm.console.report().durable_records;
    let report = vmm.until(|report| report.durable_records >= seen + more).await;
    assert_eq!(report.faults(), Vec::<String>::new());
    report.durable_records
}

fn check_log(path: &Path, durable: u64, runs: u64) {
    let log = LogReport::of(path, RECORD_BYTES, durable).unwrap();
    assert_eq!(log.faults, Vec::<String>::new(), "{log:?}");
    assert_eq!(log.runs, runs, "{log:?}");
    assert!(log.records >= durable, "{log:?}");
}

#[tokio::test]
async fn a_log_goes_on_over_pauses() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let path = disk(&lab);
    let mut vmm = lab.vmm("a").await;
    vmm.boot(spec(&lab, &path)).await.unwrap();
    let mut durable = records(&mut vmm, 16).await;
    for _ in 0..4 {
        vmm.client.pause(v1::PauseRequest {}).await.unwrap();
        // Nothing is in flight while it is paused: the disk stays as it is.
        let before = LogReport::of(&path, RECORD_BYTES, durable).unwrap();
        tokio::task::yield_now().await;
        assert_eq!(LogReport::of(&path, RECORD_BYTES, durable).unwrap(), before);
        vmm.client.resume(v1::ResumeRequest {}).await.unwrap();
        durable = records(&mut vmm, 16).await;
    }
    check_log(&path, durable, 1);
}

#[tokio::test]
async fn a_log_moves_with_its_guest() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let path = disk(&lab);
    let spec = spec(&lab, &path);
    let mut source = lab.vmm("host0").await;
    source.boot(spec.clone()).await.unwrap();
    records(&mut source, 32).await;
    for hop in 1..=3 {
        let mut next = lab.vmm(&format!("host{hop}")).await;
        let address = next.listen(spec.clone()).await.unwrap();
        source.send(&address, |_| {}).await.unwrap();
        next.watch_state(MigrationState::Ready).await;
        source.watch_state(MigrationState::Ready).await;
        source.read_console().await;
        std::mem::swap(&mut source.console, &mut next.console);
        next.resolve(MigrationVerdict::Commit, hop + 1).await.unwrap();
        source.resolve(MigrationVerdict::Superseded, hop + 1).await.unwrap();
        assert!(source.ended().await.success());
        source = next;
        records(&mut source, 32).await;
    }
    let report = source.console.report();
    assert_eq!((report.boots, report.heartbeats_lost, report.memory_errors), (1, 0, 0));
    check_log(&path, report.durable_records, 1);
}

#[tokio::test]
async fn a_log_goes_on_after_migrations_that_come_to_nothing() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let path = disk(&lab);
    let mut source = lab.vmm("a").await;
    source.boot(spec(&lab, &path)).await.unwrap();
    records(&mut source, 16).await;
    for (attempt, sealed) in [(0, false), (1, true)] {
        let mut destination = lab.vmm(&format!("b{attempt}")).await;
        let address = destination.listen(spec(&lab, &path)).await.unwrap();
        source.send(&address, |_| {}).await.unwrap();
        if sealed {
            destination.watch_state(MigrationState::Ready).await;
            source.watch_state(MigrationState::Ready).await;
        }
        destination.kill();
        if sealed {
            source.resolve(MigrationVerdict::Abort, 0).await.unwrap();
        } else {
            source
                .watch(|status| {
                    [MigrationState::Aborted as i32, MigrationState::Ready as i32]
                        .contains(&status.state)
                })
                .await;
            // Had it got that far before the kill, the verdict is still ours to give.
            let _ = source.resolve(MigrationVerdict::Abort, 0).await;
        }
        records(&mut source, 32).await;
    }
    let durable = source.console.report().durable_records;
    check_log(&path, durable, 1);
}

#[tokio::test]
async fn a_log_goes_on_from_a_snapshot_in_another_process() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let path = disk(&lab);
    let file = lab.path("saved").to_str().unwrap().to_owned();
    let mut first = lab.vmm("a").await;
    first.boot(spec(&lab, &path)).await.unwrap();
    records(&mut first, 32).await;
    first.save(&file, true).await.unwrap();
    let mut second = lab.vmm("b").await;
    second.boot_from(spec(&lab, &path), &file).await.unwrap();
    let durable = records(&mut second, 64).await;
    check_log(&path, durable, 1);
}

#[tokio::test]
async fn what_was_flushed_survives_a_killed_process() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let path = disk(&lab);
    let mut durable = 0;
    for run in 1..=3 {
        let mut vmm = lab.vmm(&format!("run{run}")).await;
        vmm.boot(spec(&lab, &path)).await.unwrap();
        durable = durable.max(records(&mut vmm, 24).await);
        vmm.kill();
        check_log(&path, durable, run);
    }
}
