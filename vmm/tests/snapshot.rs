//! A guest that checks its own memory goes to a file and goes on from it, in another process.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;

use std::process::Command;

use ballast_model::{RefusalCode, VmSpec};
use ballast_proto::v1::VmState;
use process::{Lab, VM, busy, check_refused, have_kvm};

const MIB: u64 = 48;

fn file(lab: &Lab, name: &str) -> String {
    lab.path(name).to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_guest_goes_on_from_its_snapshot_in_another_process() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut first, file) = (lab.vmm("a").await, file(&lab, "snapshot"));
    first.boot(lab.spec(MIB, &busy())).await.unwrap();
    first.beats(5).await;
    let saved = first.save(&file, true).await.unwrap();
    let size = std::fs::metadata(&file).unwrap().len();
    assert_eq!(saved.bytes, size);
    assert!(size < MIB << 20, "zero pages take no room: {size}");
    let status = first.status().await;
    assert_eq!(status.state, i32::from(VmState::Stopped));
    assert!(status.detail.contains("snapshot"), "{}", status.detail);
    first.read_console().await;

    let mut second = lab.vmm("b").await;
    second.boot_from(lab.spec(MIB, &busy()), &file).await.unwrap();
    // The console's log came along: what the guest said before stands in it too.
    std::mem::swap(&mut first.console, &mut second.console);
    let report = second.beats(20).await;
    assert_eq!((report.boots, report.heartbeats_lost, report.memory_errors), (1, 0, 0));
    // The same file serves again.
    let mut third = lab.vmm("c").await;
    third.boot_from(lab.spec(MIB, &busy()), &file).await.unwrap();
    assert_eq!(third.beats(20).await.boots, 1);
}

#[tokio::test]
async fn a_guest_that_is_saved_while_it_runs_goes_on() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut vmm, path) = (lab.vmm("a").await, file(&lab, "snapshot"));
    vmm.boot(lab.spec(MIB, &busy())).await.unwrap();
    vmm.beats(5).await;
    vmm.save(&path, false).await.unwrap();
    assert_eq!(vmm.state().await, VmState::Running);
    let report = vmm.beats(10).await;
    assert_eq!((report.boots, report.heartbeats_lost), (1, 0));
    check_refused(vmm.save(&path, false).await, RefusalCode::AlreadyExists, "is there already");
    let missing = file(&lab, "missing/snapshot");
    check_refused(vmm.save(&missing, true).await, RefusalCode::HostFailure, "create its directory");
    check_refused(vmm.save("snapshot", true).await, RefusalCode::InvalidArgument, "absolute");
    assert_eq!(vmm.beats(10).await.boots, 1, "it goes on whatever came in between");
    // Both it and its copy could move on; the copy here only checks its memory.
    let mut copy = lab.vmm("b").await;
    copy.boot_from(lab.spec(MIB, &busy()), &path).await.unwrap();
    let report = copy.beats(20).await;
    assert_eq!((report.boots, report.memory_errors), (1, 0));
}

#[tokio::test]
async fn a_disk_that_is_full_costs_nothing_but_the_snapshot() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let small = lab.path("small");
    std::fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&small)
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("SKIPPED: only root can mount a small disk");
        return;
    }
    let mut vmm = lab.vmm("a").await;
    vmm.boot(lab.spec(MIB, &busy())).await.unwrap();
    vmm.beats(3).await;
    let refused = vmm.save(small.join("snapshot").to_str().unwrap(), true).await;
    let left = std::fs::read_dir(&small).unwrap().count();
    let unmounted = Command::new("umount").arg(&small).status().unwrap();
    assert!(unmounted.success());
    check_refused(refused, RefusalCode::HostFailure, "free room");
    assert_eq!(left, 0, "no half of a file stays behind");
    assert_eq!(vmm.state().await, VmState::Running);
    assert_eq!(vmm.beats(10).await.heartbeats_lost, 0);
}

#[tokio::test]
async fn a_file_that_is_not_whole_or_not_this_vms_starts_nothing() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut first, good) = (lab.vmm("a").await, file(&lab, "snapshot"));
    first.boot(lab.spec(MIB, &busy())).await.unwrap();
    first.beats(3).await;
    first.save(&good, true).await.unwrap();
    let bytes = std::fs::read(&good).unwrap();

    let mut second = lab.vmm("b").await;
    let spoilt = |name: &str, spoil: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        spoil(&mut bytes);
        let path = file(&lab, name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let middle = bytes.len() / 2;
    let cases = [
        (spoilt("short", &|b| b.truncate(middle)), "cut short"),
        (spoilt("bit", &|b| b[middle] ^= 1), "damaged"),
        (spoilt("magic", &|b| b[0] = 0), "begin like a snapshot"),
        (spoilt("version", &|b| b[4] = 9), "format 9"),
        (file(&lab, "absent"), "cannot read"),
    ];
    for (path, expected) in cases {
        let refusal = second.boot_from(lab.spec(MIB, &busy()), &path).await.unwrap_err();
        assert!(refusal.reason.contains(expected), "{refusal}");
        assert_eq!(second.state().await, VmState::Created);
    }
    let other = second.boot_from(lab.spec(MIB + 16, &busy()), &good).await;
    check_refused(other, RefusalCode::Conflict, "another shape");
    // After all that the process is as it was, and so is the file.
    second.boot_from(lab.spec(MIB, &busy()), &good).await.unwrap();
    assert_eq!(second.beats(10).await.boots, 1);
}

#[tokio::test]
async fn a_snapshot_tells_which_vm_it_is_of() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let (mut vmm, file) = (lab.vmm("a").await, file(&lab, "snapshot"));
    vmm.boot(lab.spec(MIB, &busy())).await.unwrap();
    vmm.save(&file, false).await.unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ballast-vmm"))
        .args(["--describe-snapshot", &file])
        .output()
        .unwrap();
    let head: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let spec: VmSpec = serde_json::from_value(head["spec"].clone()).unwrap();
    assert_eq!(spec, VmSpec::try_from(lab.spec(MIB, &busy())).unwrap());
    assert_eq!(spec.id.as_str(), VM);
    assert!(head["taken_unix_millis"].as_u64().unwrap() > 1_600_000_000_000);
}
