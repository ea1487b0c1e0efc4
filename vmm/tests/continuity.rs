//! What those notice who talk to a guest and read its disk while it moves or comes back from a
//! file: nothing but a pause.
//!
//! The guest serves TCP over a tap and a bridge in a network of the test's own, and appends to a
//! log on its disk. The client accepts no gap, the log no lost, repeated or torn record.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

#[path = "support/process.rs"]
mod process;

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use ballast_guest::net::{self, Lan};
use ballast_guest::{Asking, ConsoleReport, CountClient, LogReport, Params};
use ballast_proto::v1::network::Attach;
use ballast_proto::v1::{self, MigrationState, MigrationVerdict};
use process::{Lab, PATIENCE, Vmm, command, have_kvm};

const RECORD_BYTES: u32 = 512;
const DISK_BYTES: u64 = 32 << 20;
/// Requests that must be answered before and after whatever is tested.
const SOME: u64 = 200;

/// Hosts, a network between them, a disk they share, and a client.
struct Site {
    lab: Lab,
    lan: Lan,
    disk: PathBuf,
    params: Params,
}

impl Site {
    /// None, and said so loudly, where this machine or user cannot have one.
    fn new() -> Option<Self> {
        if !have_kvm() {
            return None;
        }
        let lan = Lan::new()
            .inspect_err(|error| eprintln!("SKIPPED: no networks of its own, be root: {error}"))
            .ok()?;
        let lab = Lab::new();
        let disk = lab.path("disk");
        File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();
        let params = Params {
            ip: Some((net::GUEST, net::PREFIX)),
            log_per_sec: 500,
            log_bytes: RECORD_BYTES,
            ..process::busy()
        };
        Some(Self { lab, lan, disk, params })
    }

    /// The VM, with its disk and attached in this way.
    fn spec(&self, attach: &Attach) -> v1::VmSpec {
        let path = self.disk.to_str().unwrap().to_owned();
        let mac = "52:54:00:00:00:10".to_owned();
        v1::VmSpec {
            disks: vec![v1::Disk { path, readonly: false, local: false, limit: None }],
            networks: vec![v1::Network { mac, limit: None, attach: Some(attach.clone()) }],
            ..self.lab.spec(64, &self.params)
        }
    }

    /// A VMM on the host with the bridge.
    async fn vmm(&self, name: &str) -> Vmm {
        self.vmm_at(&self.lan.host, name).await
    }

    async fn vmm_at(&self, host: &net::Namespace, name: &str) -> Vmm {
        let socket = self.lab.path(name);
        let child = host.within(|| command(&socket).spawn()).unwrap().unwrap();
        Vmm::adopt(child, &socket).await
    }

    /// A guest that runs, and a client who has been served for a while.
    async fn begin(&self, attach: &Attach) -> (Vmm, Asking) {
        let mut vmm = self.vmm("a").await;
        vmm.boot(self.spec(attach)).await.unwrap();
        vmm.until(|report| report.on_network && report.durable_records >= 16).await;
        let asking = self.client().keep_asking();
        self.answered(&asking, SOME).await;
        (vmm, asking)
    }

    fn client(&self) -> CountClient {
        let counter = (net::GUEST, self.params.count_port).into();
        CountClient::new(self.lan.connect(counter, PATIENCE).unwrap(), PATIENCE).unwrap()
    }

    /// Waits for `more` answers, or for the client's error, which is told at its end.
    async fn answered(&self, asking: &Asking, more: u64) {
        let enough = asking.answered() + more;
        while asking.answered() < enough && !asking.has_failed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets the guest serve and write on, and then takes its, the client's and the disk's word
    /// that nothing is missing.
    async fn end(&self, mut vmm: Vmm, asking: Asking, what: &str) {
        self.answered(&asking, SOME).await;
        let served = asking.stop().unwrap();
        vmm.read_console().await;
        let durable = vmm.console.report().durable_records + 100;
        let caught_up = |report: &ConsoleReport| {
            report.durable_records >= durable && report.requests >= served.requests
        };
        let report = vmm.until(caught_up).await;
        assert_eq!(report.faults(), Vec::<String>::new());
        assert_eq!(report.requests, served.requests, "there is one client");
        vmm.kill();
        let log = LogReport::of(&self.disk, RECORD_BYTES, report.durable_records).unwrap();
        assert_eq!(log.faults, Vec::<String>::new());
        assert_eq!(log.runs, 1, "{log:?}");
        eprintln!(
            "{what}: {} requests, the longest wait {:?}; {} records; guest stall {:?}",
            served.requests, served.wait_max, log.records, report.stall_max
        );
    }
}

/// The guest is running on `source`; then it is on the VMM returned.
async fn migrate(site: &Site, mut source: Vmm, to: &str, spec: &v1::VmSpec, epoch: u64) -> Vmm {
    let mut destination = site.vmm(to).await;
    let address = destination.listen(spec.clone()).await.unwrap();
    source.send(&address, |_| {}).await.unwrap();
    destination.watch_state(MigrationState::Ready).await;
    source.watch_state(MigrationState::Ready).await;
    source.read_console().await;
    std::mem::swap(&mut source.console, &mut destination.console);
    destination.resolve(MigrationVerdict::Commit, epoch).await.unwrap();
    source.resolve(MigrationVerdict::Superseded, epoch).await.unwrap();
    assert!(source.ended().await.success());
    destination
}

/// On one machine, where both VMMs are ports of one bridge and users of one disk.
#[tokio::test]
async fn a_guest_moves_and_nobody_loses_anything() {
    let Some(site) = Site::new() else { return };
    let attach = Attach::Bridge(net::BRIDGE.to_owned());
    let spec = site.spec(&attach);
    let (mut vmm, asking) = site.begin(&attach).await;
    for (hop, to) in ["b", "c"].into_iter().enumerate() {
        vmm = migrate(&site, vmm, to, &spec, hop as u64 + 2).await;
        site.answered(&asking, SOME).await;
    }
    site.end(vmm, asking, "two moves").await;
}

/// A client's connection lives through one move after the other between two hosts, and each time
/// it waits no longer than the guest was paused, and a little.
///
/// That little is a bound for a machine that has nothing else to do: it is asked of the long form
/// (`make endure-migrate`), while the short one asks for an answer after every move.
async fn endure(moves: u64, slack: Option<Duration>) {
    let Some(site) = Site::new() else { return };
    let other = site.lan.add_host().unwrap();
    let attach = Attach::Bridge(net::BRIDGE.to_owned());
    let spec = site.spec(&attach);
    let (mut source, asking) = site.begin(&attach).await;
    let (mut downtimes, mut excesses) = (Vec::new(), Vec::new());
    for hop in 0..moves {
        let (host, at) =
            if hop % 2 == 0 { (&other, net::OTHER_HOST) } else { (&site.lan.host, net::HOST) };
        let mut destination = site.vmm_at(host, &format!("hop{hop}")).await;
        let address = destination.listen_at(spec.clone(), &format!("{at}:0")).await.unwrap();
        asking.take_wait_max();
        source.send(&address, |_| {}).await.unwrap();
        destination.watch_state(MigrationState::Ready).await;
        let sent = source.watch_state(MigrationState::Ready).await.progress.unwrap();
        source.read_console().await;
        std::mem::swap(&mut source.console, &mut destination.console);
        destination.resolve(MigrationVerdict::Commit, hop + 2).await.unwrap();
        site.answered(&asking, SOME).await;
        assert!(!asking.has_failed(), "move {hop}: {:?}", asking.stop());
        let here = destination.migration().await.progress.unwrap().downtime.unwrap();
        let there = sent.downtime.unwrap();
        let parts = [
            there.last_pass_micros,
            there.state_save_micros,
            there.send_micros,
            here.load_micros,
            here.commit_micros,
            here.resume_micros,
        ];
        let downtime = Duration::from_micros(parts.iter().sum());
        let wait = asking.take_wait_max();
        downtimes.push((downtime, parts));
        excesses.push(wait.saturating_sub(downtime));
        source.resolve(MigrationVerdict::Superseded, hop + 2).await.unwrap();
        assert!(source.ended().await.success());
        source = destination;
    }
    site.end(source, asking, &format!("{moves} moves between two hosts")).await;
    downtimes.sort_unstable();
    excesses.sort_unstable();
    let half = excesses.len() / 2;
    let (longest, parts) = downtimes[downtimes.len() - 1];
    eprintln!(
        "downtime p50 {:?} max {longest:?} (last pass, save, send, load, commit, resume: {parts:?} µs); \
         beyond it the client waited p50 {:?} max {:?}",
        downtimes[half].0,
        excesses[half],
        excesses[excesses.len() - 1]
    );
    if let Some(slack) = slack {
        assert!(excesses.iter().all(|excess| *excess <= slack), "{excesses:?}");
    }
}

#[tokio::test]
async fn a_connection_lives_through_moves_between_two_hosts() {
    endure(4, None).await;
}

#[tokio::test]
#[ignore = "takes minutes, and a machine with nothing else to do: make endure-migrate"]
async fn a_connection_lives_through_many_moves() {
    let moves = std::env::var("ENDURE_COUNT").map_or(50, |count| count.parse().unwrap());
    endure(moves, Some(Duration::from_millis(50))).await;
}

/// The same with the one tap there is, which the source has until the destination is to load.
#[tokio::test]
async fn a_guest_takes_its_tap_along() {
    let Some(site) = Site::new() else { return };
    site.lan.add_tap("tap0").unwrap();
    let attach = Attach::Tap("tap0".to_owned());
    let spec = site.spec(&attach);
    let (vmm, asking) = site.begin(&attach).await;
    let vmm = migrate(&site, vmm, "b", &spec, 2).await;
    site.end(vmm, asking, "a move with the tap").await;
}

#[tokio::test]
async fn a_guest_that_stays_has_lost_nothing_either() {
    let Some(site) = Site::new() else { return };
    let attach = Attach::Bridge(net::BRIDGE.to_owned());
    let (mut vmm, asking) = site.begin(&attach).await;
    let mut destination = site.vmm("b").await;
    let address = destination.listen(site.spec(&attach)).await.unwrap();
    vmm.send(&address, |_| {}).await.unwrap();
    destination.watch_state(MigrationState::Ready).await;
    vmm.watch_state(MigrationState::Ready).await;
    vmm.resolve(MigrationVerdict::Abort, 0).await.unwrap();
    site.end(vmm, asking, "a move that was not").await;
}

#[tokio::test]
async fn a_guest_comes_back_from_a_snapshot_to_its_clients_and_its_disk() {
    let Some(site) = Site::new() else { return };
    let attach = Attach::Bridge(net::BRIDGE.to_owned());
    let (mut first, asking) = site.begin(&attach).await;
    let file = site.lab.path("snapshot").to_str().unwrap().to_owned();
    first.save(&file, true).await.unwrap();
    first.read_console().await;
    let durable = first.console.report().durable_records;
    let log = LogReport::of(&site.disk, RECORD_BYTES, durable).unwrap();
    assert_eq!(log.faults, Vec::<String>::new(), "the disk is whole while nobody runs");
    first.kill();

    let mut second = site.vmm("b").await;
    second.boot_from(site.spec(&attach), &file).await.unwrap();
    std::mem::swap(&mut first.console, &mut second.console);
    site.end(second, asking, "a snapshot").await;
}
