//! Networks of real processes in their jail: whose a tap is while VMs start, die and move.
//!
//! Each test has a network namespace of its own; the guest has no driver for
//! its device, which is no matter for whose the tap is.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;

use std::process::Command;
use std::time::Instant;

use ballast_guest::Params;
use ballast_model::RefusalCode;
use ballast_proto::v1::network::Attach;
use ballast_proto::v1::{self, MigrationState, MigrationVerdict, VmState};
use process::{Lab, PATIENCE, Vmm, check_refused, have_kvm};

/// This thread and the processes it starts, in a network of their own; false,
/// and said so, where that is not allowed.
fn in_own_network() -> bool {
    if !have_kvm() {
        return false;
    }
    // SAFETY: only this thread moves, and no other test shares it.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        eprintln!("SKIPPED: only root can have a network of its own");
        return false;
    }
    ip("link set lo up");
    true
}

fn ip(command: &str) -> String {
    let output = Command::new("ip").args(command.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn spec(lab: &Lab, attach: Attach) -> v1::VmSpec {
    let params = Params { heartbeat_ms: 20, ..Params::default() };
    let mac = "02:00:00:00:00:09".to_owned();
    let networks = vec![v1::Network { attach: Some(attach), mac, limit: None }];
    v1::VmSpec { networks, ..lab.spec(32, &params) }
}

fn tap(lab: &Lab) -> v1::VmSpec {
    spec(lab, Attach::Tap("tap0".to_owned()))
}

fn bridge(lab: &Lab) -> v1::VmSpec {
    spec(lab, Attach::Bridge("br0".to_owned()))
}

/// The bridge's ports.
fn ports() -> usize {
    ip("-o link show master br0").lines().count()
}

/// Whether a process holds the tap: its descriptor says so.
async fn has_tap(vmm: &mut Vmm) -> bool {
    let pid = vmm.status().await.pid;
    let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.unwrap().path()).ok());
    texts.into_iter().any(|text| text.lines().any(|line| line == "iff:\ttap0"))
}

#[tokio::test]
async fn what_is_not_there_is_refused_before_anything_starts() {
    if !in_own_network() {
        return;
    }
    let lab = Lab::new();
    let mut vmm = lab.vmm("a").await;
    check_refused(vmm.boot(tap(&lab)).await, RefusalCode::NotFound, "ip tuntap add dev tap0");
    check_refused(vmm.boot(bridge(&lab)).await, RefusalCode::NotFound, "ip link add br0");
    // A destination refuses it before its source has sent anything.
    check_refused(vmm.listen(bridge(&lab)).await, RefusalCode::NotFound, "no bridge br0");
    assert_eq!(vmm.state().await, VmState::Created);
    ip("tuntap add dev tap0 mode tap");
    vmm.boot(tap(&lab)).await.unwrap();
    vmm.beats(2).await;
    let mut other = lab.vmm("b").await;
    check_refused(other.boot(tap(&lab)).await, RefusalCode::WrongState, "in use");
}

#[tokio::test]
async fn a_tap_made_for_a_bridge_goes_with_its_process() {
    if !in_own_network() {
        return;
    }
    ip("link add br0 type bridge");
    ip("link set br0 up");
    let lab = Lab::new();
    let (mut source, mut destination) = (lab.vmm("a").await, lab.vmm("b").await);
    source.boot(bridge(&lab)).await.unwrap();
    source.beats(2).await;
    assert_eq!(ports(), 1);
    let address = destination.listen(bridge(&lab)).await.unwrap();
    assert_eq!(ports(), 2, "the destination has its own");
    source.send(&address, |_| {}).await.unwrap();
    destination.watch_state(MigrationState::Ready).await;
    source.watch_state(MigrationState::Ready).await;
    source.read_console().await;
    std::mem::swap(&mut source.console, &mut destination.console);
    destination.resolve(MigrationVerdict::Commit, 2).await.unwrap();
    source.resolve(MigrationVerdict::Superseded, 2).await.unwrap();
    assert!(source.ended().await.success());
    destination.beats(3).await;
    assert_eq!(ports(), 1);
    destination.kill();
    let end = Instant::now() + PATIENCE;
    while ports() > 0 {
        assert!(Instant::now() < end, "a killed process leaves its tap behind");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_tap_of_the_hosts_goes_over_with_its_vm() {
    if !in_own_network() {
        return;
    }
    ip("tuntap add dev tap0 mode tap");
    let lab = Lab::new();
    let (mut source, mut destination) = (lab.vmm("a").await, lab.vmm("b").await);
    source.boot(tap(&lab)).await.unwrap();
    source.beats(2).await;
    assert!(has_tap(&mut source).await);
    let address = destination.listen(tap(&lab)).await.unwrap();
    assert!(!has_tap(&mut destination).await, "it is still the source's");
    source.send(&address, |_| {}).await.unwrap();
    destination.watch_state(MigrationState::Ready).await;
    source.watch_state(MigrationState::Ready).await;
    assert!(has_tap(&mut destination).await, "a destination that has it not is not READY");
    assert!(!has_tap(&mut source).await);
    source.read_console().await;
    std::mem::swap(&mut source.console, &mut destination.console);
    destination.resolve(MigrationVerdict::Commit, 2).await.unwrap();
    source.resolve(MigrationVerdict::Superseded, 2).await.unwrap();
    destination.beats(3).await;
    assert!(has_tap(&mut destination).await);
}

#[tokio::test]
async fn a_tap_that_is_removed_is_made_again() {
    if !in_own_network() {
        return;
    }
    ip("link add br0 type bridge");
    ip("link set br0 up");
    let lab = Lab::new();
    let mut vmm = lab.vmm("a").await;
    // A guest that works with its device, so that the device's thread is there and in its jail.
    let at = Some((std::net::Ipv4Addr::new(192, 0, 2, 10), 24));
    let params = Params { heartbeat_ms: 20, ip: at, ..Params::default() };
    vmm.boot(v1::VmSpec { cmdline: params.to_cmdline(), ..bridge(&lab) }).await.unwrap();
    vmm.until(|report| report.heartbeats > 3).await;
    let name = || {
        let shown = ip("-o link show master br0");
        shown.split(": ").nth(1).map(str::to_owned)
    };
    let index = || ip("-o link show master br0").split(':').next().unwrap().to_owned();
    let before = index();
    ip(&format!("link del {}", name().unwrap()));
    let end = Instant::now() + PATIENCE;
    while ports() == 0 {
        assert!(Instant::now() < end, "the tap does not come back");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_ne!(index(), before);
    vmm.beats(3).await;
}
