//! Disks of real processes: what is refused, and whose a disk is while VMs start, die and move.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ballast_guest::Params;
use ballast_model::RefusalCode;
use ballast_proto::v1::{self, MigrationState, MigrationVerdict, VmState};
use process::{Lab, Vmm, check_refused, have_kvm};

fn disk(lab: &Lab, name: &str, bytes: u64) -> PathBuf {
    let path = lab.path(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

fn spec(lab: &Lab, path: &Path) -> v1::VmSpec {
    let params = Params { heartbeat_ms: 20, ..Params::default() };
    let path = path.to_str().unwrap().to_owned();
    let disks = vec![v1::Disk { path, readonly: false, local: false, limit: None }];
    v1::VmSpec { disks, ..lab.spec(32, &params) }
}

/// Somebody else's lock on a disk, until it is dropped. None when there is another's already.
fn intruder(path: &Path) -> Option<File> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    // SAFETY: plain numbers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK.try_into().unwrap();
    // SAFETY: `lock` lives through the call and is of the type this command takes.
    let set = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) };
    (set == 0).then_some(file)
}

fn held_by(vmm: &mut v1::VmStatus) -> String {
    format!("is in use by VM probe on host {} (process {})", host(), vmm.pid)
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

#[tokio::test]
async fn what_is_no_disk_is_refused_before_anything_starts() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let mut vmm = lab.vmm("a").await;
    let odd = disk(&lab, "odd", 1000);
    let none = lab.path("none");
    check_refused(vmm.boot(spec(&lab, &none)).await, RefusalCode::NotFound, "cannot open disk");
    check_refused(vmm.boot(spec(&lab, &odd)).await, RefusalCode::InvalidArgument, "1000 bytes");
    let directory = vmm.boot(spec(&lab, &lab.path(""))).await;
    check_refused(directory, RefusalCode::InvalidArgument, "directory");
    // A destination refuses it before its source has sent anything.
    check_refused(vmm.listen(spec(&lab, &none)).await, RefusalCode::NotFound, "cannot open disk");
    assert_eq!(vmm.state().await, VmState::Created);
    let good = disk(&lab, "disk", 1 << 20);
    vmm.boot(spec(&lab, &good)).await.unwrap();
    vmm.beats(3).await;
}

#[tokio::test]
async fn a_disk_is_one_vms_until_its_process_is_gone() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let path = disk(&lab, "disk", 1 << 20);
    let (mut first, mut second) = (lab.vmm("a").await, lab.vmm("b").await);
    first.boot(spec(&lab, &path)).await.unwrap();
    let holder = held_by(&mut first.status().await);
    check_refused(second.boot(spec(&lab, &path)).await, RefusalCode::Conflict, &holder);
    assert!(intruder(&path).is_none(), "other programs are kept out too");
    first.kill();
    second.boot(spec(&lab, &path)).await.unwrap();
    second.beats(3).await;
}

/// A source that is sealed and a destination that is READY: nobody has the disk.
async fn ready(lab: &Lab, path: &Path) -> (Vmm, Vmm) {
    let (mut source, mut destination) = (lab.vmm("a").await, lab.vmm("b").await);
    source.boot(spec(lab, path)).await.unwrap();
    source.beats(3).await;
    let address = destination.listen(spec(lab, path)).await.unwrap();
    assert!(intruder(path).is_none(), "it is still the source's");
    source.send(&address, |_| {}).await.unwrap();
    destination.watch_state(MigrationState::Ready).await;
    source.watch_state(MigrationState::Ready).await;
    source.read_console().await;
    (source, destination)
}

#[tokio::test]
async fn a_disk_moves_with_its_vm() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let path = disk(&lab, "disk", 1 << 20);
    let (mut source, mut destination) = ready(&lab, &path).await;
    std::mem::swap(&mut source.console, &mut destination.console);
    destination.resolve(MigrationVerdict::Commit, 2).await.unwrap();
    let holder = held_by(&mut destination.status().await);
    source.resolve(MigrationVerdict::Superseded, 2).await.unwrap();
    assert!(source.ended().await.success());
    destination.beats(3).await;
    let mut third = lab.vmm("c").await;
    check_refused(third.boot(spec(&lab, &path)).await, RefusalCode::Conflict, &holder);
}

#[tokio::test]
async fn a_source_that_goes_on_has_its_disk_back() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let path = disk(&lab, "disk", 1 << 20);
    let (mut source, _destination) = ready(&lab, &path).await;
    assert!(intruder(&path).is_some(), "given up while it is not decided");
    source.resolve(MigrationVerdict::Abort, 0).await.unwrap();
    source.beats(3).await;
    assert!(intruder(&path).is_none());
}

#[tokio::test]
async fn a_source_whose_disk_was_taken_stays_paused_and_says_so() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let path = disk(&lab, "disk", 1 << 20);
    let (mut source, _destination) = ready(&lab, &path).await;
    let taken = intruder(&path).unwrap();
    let state = source.resolve(MigrationVerdict::Abort, 0).await.unwrap();
    assert_eq!(state, VmState::Paused);
    let why = source.migration().await.refusal.unwrap();
    assert!(why.reason.contains("stays paused: disk"), "{why:?}");
    let resumed = source.client.resume(v1::ResumeRequest {}).await.map_err(process::refusal);
    check_refused(resumed, RefusalCode::Conflict, "in use");
    drop(taken);
    source.client.resume(v1::ResumeRequest {}).await.unwrap();
    source.beats(3).await;
}

#[tokio::test]
async fn a_destination_whose_disk_was_taken_never_runs() {
    if !have_kvm() {
        return;
    }
    let lab = Lab::new();
    let path = disk(&lab, "disk", 1 << 20);
    let (_source, mut destination) = ready(&lab, &path).await;
    let _taken = intruder(&path).unwrap();
    let _ = destination.resolve(MigrationVerdict::Commit, 2).await;
    destination.ended().await;
}
