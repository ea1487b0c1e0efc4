//! One cluster, one guest at a time, and what is done to them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ballast_cli::cluster::StoreKind;
use ballast_guest::{LogReport, Params};
use ballast_proto::v1;
use ballast_tests::hold::{self, HoldFile, is_stopped, vmm_of};
use ballast_tests::matrix::{Expected, Fault, Order, Point, Setting, Who};
use ballast_tests::tamper::Tamper;
use ballast_tests::{Guest, TestCluster, eventually, signal_process};
use rustix::process::Signal;
use tempfile::TempDir;

use super::MOMENT;
use crate::PROGRAM;

const DISK_BYTES: u64 = 256 << 20;

/// What came of all cells.
#[derive(Debug, Default)]
pub(super) struct Summary {
    migrations: u64,
    completed: u64,
    failed: u64,
    /// Guests that died with their process, as expected.
    died: u64,
    /// Of what must not be: one sentence each.
    faults: Vec<String>,
    /// From the fault until the source's agent sees the guest run again.
    recovery_ms: Vec<u128>,
    records: u64,
    /// The longest time a guest counted between two heartbeats; it was held for a part of it.
    gap_max: Duration,
}

impl Summary {
    /// Adds what came of other cells.
    pub(super) fn add(&mut self, other: Self) {
        self.migrations += other.migrations;
        self.completed += other.completed;
        self.failed += other.failed;
        self.died += other.died;
        self.faults.extend(other.faults);
        self.recovery_ms.extend(other.recovery_ms);
        self.records += other.records;
        self.gap_max = self.gap_max.max(other.gap_max);
    }

    /// Checks that nothing was that must not be.
    pub(super) fn check(&self) {
        assert_eq!(self.faults, Vec::<String>::new());
    }

    /// One line.
    pub(super) fn to_json(&self) -> String {
        let mut sorted = self.recovery_ms.clone();
        sorted.sort_unstable();
        let at = |percent: usize| {
            sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        };
        serde_json::json!({
            "migrations": self.migrations, "completed": self.completed, "failed": self.failed,
            "died_with_their_process": self.died, "faults": self.faults,
            "disk_records": self.records, "heartbeat_gap_max_ms": self.gap_max.as_millis(),
            "recovery_ms": { "count": sorted.len(), "p50": at(50), "p99": at(99), "max": sorted.last() },
        })
        .to_string()
    }
}

/// What the processes of a cluster hold.
#[derive(Debug)]
pub(super) struct Footprint {
    pub(super) processes: usize,
    pub(super) files: usize,
    pub(super) resident_kib: u64,
    pub(super) locks: usize,
    pub(super) links: usize,
}

pub(super) struct Bench {
    test: TestCluster,
    hold: HoldFile,
    dir: TempDir,
    guest: Guest,
    guests: u32,
    setting: Setting,
    hosts: Vec<v1::HostDescription>,
    summary: Summary,
}

/// What a link of these cells carries where the guest is to write faster.
const SLOW_LINK: &str = "bandwidth_bytes_per_sec = 16777216";

fn params(setting: Setting) -> Params {
    let calm = Params {
        heartbeat_ms: 10,
        duty_percent: 5,
        working_set_mib: 8,
        dirty_mib_per_sec: 8,
        log_per_sec: 50,
        ..Params::default()
    };
    if setting.post_copy {
        return Params { duty_percent: 50, dirty_mib_per_sec: 200, ..calm };
    }
    calm
}

fn disk_name(number: u32) -> String {
    format!("disk-{number}.img")
}

async fn new_guest(test: &TestCluster, dir: &Path, number: u32, setting: Setting) -> Guest {
    let local = setting.local_disks;
    let dir = if local { test.cluster.disk_root("host-1") } else { dir.to_owned() };
    let path = dir.join(disk_name(number));
    let disk = std::fs::File::create(&path).expect("a disk");
    disk.set_len(DISK_BYTES).expect("its size");
    let path = if local { Path::new("/").join(disk_name(number)) } else { path };
    let path = path.to_string_lossy().into_owned();
    let vm = format!("probe-{number}");
    let mut guest = Guest::create_as(test, &vm, "host-1", &params(setting), |spec| {
        spec.disks = vec![v1::Disk { path, local, ..v1::Disk::default() }];
        if let Some(policy) = spec.migration.as_mut().filter(|_| setting.post_copy) {
            (policy.post_copy, policy.downtime_limit_ms) = (true, 1);
        }
    })
    .await;
    // Its disk is evidence, also of a guest that does not live long: a slow one has to have come so far.
    eventually(&format!("{vm} has written to its disk"), async || {
        guest.read(test).await.filter(|said| said.durable_records > 0)
    })
    .await;
    guest
}

/// Hosts are named `host-1`, `host-2`, …
fn index_of(host: &str) -> usize {
    host.trim_start_matches("host-").parse::<usize>().expect("a host's name") - 1
}

impl Bench {
    /// A cluster that has what cells of this setting take.
    pub(super) async fn start(setting: Setting) -> Self {
        let store = if setting.store { StoreKind::Etcd } else { StoreKind::Embedded };
        let mut config = "[migration]\npost_copy_patience_ms = 2000\n".to_owned();
        // What is encrypted is authenticated: a changed byte is found there anyway.
        config += if setting.tamper { "tls = false\nstreams = 1\n" } else { "" };
        config += if setting.post_copy { SLOW_LINK } else { "" };
        let dir = tempfile::tempdir().expect("a directory");
        let hold = HoldFile::new(dir.path());
        let test = TestCluster::start_configured(PROGRAM, store, hold.env(), &config).await;
        let guest = new_guest(&test, dir.path(), 0, setting).await;
        let hosts = test.hosts().await;
        Self { test, hold, dir, guest, guests: 1, setting, hosts, summary: Summary::default() }
    }

    /// A migration without any fault.
    pub(super) async fn migrate(&mut self) {
        let from = self.test.runs_once(&self.guest.vm).await;
        let id = self.test.migrate(&self.guest.vm, other(&from)).await;
        let migration = self.ended(&id).await;
        assert_eq!(migration.phase, "completed", "{migration:?}");
        self.summary.migrations += 1;
        self.summary.completed += 1;
    }

    /// One cell, checked.
    pub(super) async fn run(&mut self, point: Point, fault: Fault, expected: Expected) {
        let began = Instant::now();
        let vm = self.guest.vm.clone();
        let from = self.test.runs_once(&vm).await;
        let to = other(&from);
        let (name, holder) = point.name();
        // Once its source is sealed a destination needs nobody to get to run.
        let outruns = point == Point::Sealed && fault == Fault::Kill(Who::DestinationVmm);
        let first = match (fault, outruns) {
            (Fault::Corrupt, _) => Point::Connect.name().0,
            (_, true) => Point::State.name().0,
            _ => name,
        };
        self.hold.arm(&vm, first);
        let id = self.test.migrate(&vm, to).await;
        let mut pid = self.held(first, holder, &from, to).await;
        if fault == Fault::Corrupt {
            pid = self.tampered(name, (holder, pid), (&from, to)).await;
        }
        if outruns {
            pid = self.sealed_alone(pid, (&from, to)).await;
        }
        if point == Point::Fetching {
            self.fetches(&vm, to).await;
        }
        self.hold.clear();
        // Whether the source's agent or the destination's commit is first is decided here.
        let raced = fault == Fault::Kill(Who::SourceVmm) && expected == Expected::Destination;
        let told = raced.then(|| self.pid(Who::SourceAgent, &from, to).expect("it is there"));
        told.inspect(|agent| signal_process(*agent, Signal::STOP));
        self.hurt(point, fault, (holder, pid), (&from, to)).await;
        if let Some(agent) = told {
            self.reaches(&id, "committed").await;
            signal_process(agent, Signal::CONT);
        }
        if expected == Expected::Source {
            let hurt = Instant::now();
            self.is_back(&vm, &from).await;
            self.summary.recovery_ms.push(hurt.elapsed().as_millis());
        }
        let migration = self.ended(&id).await;
        self.summary.migrations += 1;
        let completed = migration.phase == "completed";
        *(if completed { &mut self.summary.completed } else { &mut self.summary.failed }) += 1;
        let host = self.where_it_runs(&vm, expected).await;
        let as_expected = match expected {
            Expected::Source => !completed && host.as_deref() == Some(from.as_str()),
            Expected::Destination => completed && host.as_deref() == Some(to),
            // One that died before it was handed over, or after, is no matter of the migration.
            Expected::Lost if point != Point::Fetching => host.is_none(),
            Expected::Lost => {
                host.is_none()
                    && !completed
                    && migration.why.contains(&format!("on host {from} alone"))
            }
        };
        let outcome = format!(
            "{point:?} × {fault:?}: {} on {host:?}, expected {expected:?}; {}",
            migration.phase, migration.why
        );
        eprintln!("{outcome} ({} ms)", began.elapsed().as_millis());
        if !as_expected {
            self.summary.faults.push(outcome);
        }
        if let Err(why) = self.disk() {
            self.summary.faults.push(format!("{point:?} × {fault:?}: {why}"));
        }
        match host {
            Some(host) => {
                self.guest.goes_on(&self.test).await;
                if host == from {
                    // A failed attempt does not stand in the way of the next one.
                    self.migrate().await;
                }
            }
            None => {
                self.summary.died += 1;
                self.bury().await;
                self.guest =
                    new_guest(&self.test, self.dir.path(), self.guests, self.setting).await;
                self.guests += 1;
            }
        }
    }

    /// Waits until whoever comes to this point is held there.
    async fn held(&self, name: &str, holder: Who, from: &str, to: &str) -> u32 {
        eventually(&format!("{holder:?} is held at {name}"), async || {
            self.pid(holder, from, to).filter(|pid| is_stopped(*pid))
        })
        .await
    }

    /// Lets a source that has sent its state seal, while the destination stands still.
    async fn sealed_alone(&self, source: u32, (from, to): (&str, &str)) -> u32 {
        let (name, holder) = Point::Sealed.name();
        self.hold.arm(&self.guest.vm, name);
        let destination = self.pid(Who::DestinationVmm, from, to).expect("it is there");
        signal_process(destination, Signal::STOP);
        eventually("the destination stands still", async || is_stopped(destination).then_some(()))
            .await;
        signal_process(source, Signal::CONT);
        eventually("the source goes on", async || (!is_stopped(source)).then_some(())).await;
        self.held(name, holder, from, to).await
    }

    /// Takes the connection of a source that is held before it connects, and changes the next
    /// byte of the source, which is held at `name` then.
    async fn tampered(&self, name: &str, held: (Who, u32), (from, to): (&str, &str)) -> u32 {
        let (holder, held) = held;
        self.hold.arm(&self.guest.vm, name);
        let destination = self.pid(Who::DestinationVmm, from, to).expect("it listens");
        signal_process(destination, Signal::STOP);
        eventually("the destination stands still", async || is_stopped(destination).then_some(()))
            .await;
        signal_process(held, Signal::CONT);
        let tamper = tokio::task::spawn_blocking(move || Tamper::take(destination));
        let tamper = tamper.await.expect("no panic");
        signal_process(destination, Signal::CONT);
        let held = self.held(name, holder, from, to).await;
        let source = hold::connections(held);
        eventually("nothing is under way", async || tamper.is_idle(&source).then_some(())).await;
        tamper.arm();
        held
    }

    /// Does it, and lets whoever was held go on.
    async fn hurt(
        &mut self,
        point: Point,
        fault: Fault,
        held: (Who, u32),
        (from, to): (&str, &str),
    ) {
        let (holder, held) = held;
        let go_on = || signal_process(held, Signal::CONT);
        match fault {
            Fault::Kill(who) => {
                let victim = self.pid(who, from, to);
                match who {
                    Who::SourceVmm | Who::DestinationVmm => {
                        signal_process(victim.expect("it is there"), Signal::KILL);
                    }
                    Who::SourceAgent => self.test.cluster.kill_agent(index_of(from)).await.unwrap(),
                    Who::DestinationAgent => {
                        self.test.cluster.kill_agent(index_of(to)).await.unwrap();
                    }
                    Who::Controller => self.test.cluster.kill_controller().await.unwrap(),
                    Who::Store => self.test.cluster.crash_store().await.unwrap(),
                }
                if point == Point::Connect && matches!(who, Who::SourceAgent | Who::Controller) {
                    // Who comes back finds that the two have agreed.
                    let (name, holder) = Point::Negotiated.name();
                    self.hold.arm(&self.guest.vm, name);
                    go_on();
                    eventually("the source goes on", async || (!is_stopped(held)).then_some(()))
                        .await;
                    self.held(name, holder, from, to).await;
                    self.hold.clear();
                }
                if who != holder {
                    go_on();
                }
                match who {
                    Who::SourceAgent => {
                        self.test.cluster.restart_agent(index_of(from)).await.unwrap();
                    }
                    Who::DestinationAgent => {
                        self.test.cluster.restart_agent(index_of(to)).await.unwrap();
                    }
                    Who::Controller => {
                        self.test.cluster.restart_controller().await.unwrap();
                        self.test.client = self.test.cluster.client().await.unwrap();
                    }
                    Who::SourceVmm | Who::DestinationVmm | Who::Store => {}
                }
            }
            Fault::Outage(order) => {
                let agents = [index_of(from), index_of(to)];
                for agent in agents {
                    self.test.cluster.kill_agent(agent).await.unwrap();
                }
                self.test.cluster.kill_controller().await.unwrap();
                if matches!(holder, Who::SourceVmm | Who::DestinationVmm) {
                    go_on();
                }
                self.come_back(order, agents).await;
            }
            Fault::Corrupt => go_on(),
            Fault::Freeze(who) => {
                let victim = self.pid(who, from, to).expect("it is there");
                signal_process(victim, Signal::STOP);
                if who != holder {
                    go_on();
                }
                tokio::time::sleep(MOMENT).await;
                signal_process(victim, Signal::CONT);
            }
            Fault::Cut => {
                let ends = self.link(from, to);
                hold::cut(&ends);
                go_on();
            }
            Fault::Stall => {
                let ends = self.link(from, to);
                hold::stall(&ends);
                go_on();
                tokio::time::sleep(MOMENT).await;
                hold::heal(&ends);
            }
        }
    }

    /// Starts what an outage ended.
    async fn come_back(&mut self, order: Order, [source, destination]: [usize; 2]) {
        let cluster = &mut self.test.cluster;
        match order {
            Order::ControllerFirst => {
                cluster.restart_controller().await.unwrap();
                cluster.spawn_agent(destination).unwrap();
                // The controller has only one side to ask for a while.
                tokio::time::sleep(MOMENT).await;
                cluster.restart_agent(source).await.unwrap();
            }
            Order::ControllerLast => {
                cluster.spawn_agent(source).unwrap();
                cluster.spawn_agent(destination).unwrap();
                cluster.restart_controller().await.unwrap();
            }
        }
        self.test.client = self.test.cluster.client().await.unwrap();
    }

    /// Waits until a migration has come to this phase, or to its end.
    async fn reaches(&self, id: &str, phase: &str) {
        eventually(&format!("migration {id} is {phase}"), async || {
            let request = v1::GetMigrationRequest { migration: id.to_owned() };
            let found = self.test.client.get_migration(request).await.ok()?;
            (found.ended || found.phase == phase).then_some(())
        })
        .await;
    }

    /// Both ends of all connections between the two.
    fn link(&self, from: &str, to: &str) -> Vec<std::os::fd::OwnedFd> {
        let sides = [(Who::SourceVmm, "source"), (Who::DestinationVmm, "destination")];
        let ends = sides.map(|(who, name)| {
            hold::connections(self.pid(who, from, to).unwrap_or_else(|| panic!("no {name}")))
        });
        ends.into_iter().flatten().collect()
    }

    fn pid(&self, who: Who, from: &str, to: &str) -> Option<u32> {
        let vmm = |host: &str| {
            let state = self.test.cluster.dir().join("state").join(host);
            vmm_of(&state, &self.guest.vm)
        };
        match who {
            Who::SourceVmm => vmm(from),
            Who::DestinationVmm => vmm(to),
            Who::SourceAgent => self.test.cluster.agent_pid(index_of(from)),
            Who::DestinationAgent => self.test.cluster.agent_pid(index_of(to)),
            Who::Controller => self.test.cluster.controller_pid(),
            Who::Store => self.test.cluster.store_pid(),
        }
    }

    /// Waits until the guest runs on `host` without all of its memory.
    async fn fetches(&self, vm: &str, host: &str) {
        let host = &self.hosts[index_of(host)];
        eventually(&format!("{vm} runs without all of its memory"), async || {
            let found = self.test.vms_at(host).await.into_iter().find(|status| status.vm == vm)?;
            let migration = found.migration.as_ref()?.state();
            (found.state() == v1::VmState::Running && migration == v1::MigrationState::Fetching)
                .then_some(())
        })
        .await;
    }

    /// Waits until the guest runs on `host`.
    async fn is_back(&self, vm: &str, host: &str) {
        let host = &self.hosts[index_of(host)];
        eventually(&format!("{vm} runs again"), async || {
            let found = self.test.vms_at(host).await;
            let runs =
                |status: &v1::VmStatus| status.vm == vm && status.state() == v1::VmState::Running;
            found.iter().any(runs).then_some(())
        })
        .await;
    }

    /// The end of a migration, also while the controller does not answer.
    async fn ended(&self, id: &str) -> v1::Migration {
        eventually(&format!("migration {id} ends"), async || {
            let request = v1::GetMigrationRequest { migration: id.to_owned() };
            self.test.client.get_migration(request).await.ok().filter(|migration| migration.ended)
        })
        .await
    }

    /// The one host on which it runs, as its owner; none when it has died.
    async fn where_it_runs(&self, vm: &str, expected: Expected) -> Option<String> {
        let outcome = format!("{vm} runs on one host, or on none, expected {expected:?}");
        eventually(&outcome, async || {
            let found = self.test.everywhere(&self.hosts, vm).await;
            let running: Vec<_> =
                found.iter().filter(|(_, status)| status.state() == v1::VmState::Running).collect();
            assert!(running.len() <= 1, "twice: {found:?}");
            let record = self.test.record(vm).await;
            match (running.as_slice(), found.as_slice()) {
                // Its agent hears that it has died when the kernel has taken the process apart.
                ([_], _) if expected == Expected::Lost => None,
                ([(host, status)], [_]) => (record.host == *host && record.epoch == status.epoch)
                    .then(|| Some(host.clone())),
                ([], [(_, status)]) if status.state() == v1::VmState::Stopped => Some(None),
                ([], []) => Some(None),
                _ => None,
            }
        })
        .await
    }

    /// Deletes the guest and reads what it left on its disk.
    async fn bury(&mut self) {
        let durable = self.guest.read(&self.test).await.map_or(0, |said| said.durable_records);
        let said = self.guest.report();
        self.summary.gap_max = self.summary.gap_max.max(said.heartbeat_gap_max);
        let vm = self.guest.vm.clone();
        let actor = TestCluster::actor("the test is over");
        let deleted =
            self.test.client.delete_vm(v1::DeleteVmRequest { vm: vm.clone(), actor }).await;
        deleted.unwrap_or_else(|refusal| panic!("{refusal}"));
        let disk = self.disk().expect("one disk");
        // Read beside the runtime, which has to answer its connections meanwhile.
        let read = {
            let (disk, log_bytes) = (disk.clone(), params(self.setting).log_bytes);
            move || LogReport::of(&disk, log_bytes, durable)
        };
        let report = tokio::task::spawn_blocking(read).await.expect("no panic").expect("its disk");
        assert!(report.records > 0, "{vm} wrote nothing: {report:?}");
        self.summary.records += report.records;
        let runs = (report.runs > 1).then(|| format!("it began {} times", report.runs));
        let faults = report.faults.iter().cloned().chain(runs);
        self.summary.faults.extend(faults.map(|fault| format!("{vm}: disk: {fault}")));
        std::fs::remove_file(disk).expect("its disk");
    }

    /// The guest's disk: one file, whatever has become of the guest, and no part of another.
    fn disk(&self) -> Result<PathBuf, String> {
        let name = disk_name(self.guests - 1);
        if !self.setting.local_disks {
            return Ok(self.dir.path().join(name));
        }
        let mut found = Vec::new();
        for host in &self.hosts {
            let entries = std::fs::read_dir(self.test.cluster.disk_root(&host.host));
            found
                .extend(entries.expect("its directory").map(|entry| entry.expect("a file").path()));
        }
        match found.as_slice() {
            [disk] if disk.file_name().is_some_and(|found| *found == *name) => Ok(disk.clone()),
            _ => Err(format!("the disks found are {found:?}, not one {name}")),
        }
    }

    /// What the cluster's processes hold now.
    pub(super) fn footprint(&self) -> Footprint {
        let dir = self.test.cluster.dir().to_string_lossy().into_owned();
        let mut footprint = Footprint {
            processes: 0,
            files: 0,
            resident_kib: 0,
            locks: 0,
            links: std::fs::read_dir("/sys/class/net").map_or(0, Iterator::count),
        };
        let daemons = (0..self.test.cluster.host_count())
            .filter_map(|index| self.test.cluster.agent_pid(index))
            .chain(self.test.cluster.controller_pid());
        for pid in daemons {
            let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its files");
            footprint.files += files.count();
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            footprint.resident_kib += kib.expect("its memory");
        }
        let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let members: Vec<u32> = pids
            .filter(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(&dir)
            })
            .collect();
        footprint.processes = members.len();
        let inode = std::os::unix::fs::MetadataExt::ino(
            &std::fs::metadata(self.disk().expect("one disk")).expect("the disk"),
        );
        let locks = std::fs::read_to_string("/proc/locks").expect("locks");
        footprint.locks = locks.lines().filter(|line| line.contains(&format!(":{inode} "))).count();
        footprint
    }

    /// Ends everything; what came of it.
    pub(super) async fn end(mut self) -> Summary {
        self.guest.goes_on(&self.test).await;
        self.bury().await;
        let verified = self.test.audit_verify(PROGRAM).await;
        assert_eq!(verified.code, Some(0), "{verified:?}");
        self.test.stop().await;
        self.summary
    }
}

fn other(host: &str) -> &'static str {
    if host == "host-1" { "host-2" } else { "host-1" }
}
