//! How long planning takes: medians over several cluster sizes.
//!
//! `cargo bench -p ballast-placement` runs synthetic clusters and, when
//! `BALLAST_PLANETLAB` names a directory with PlanetLab CPU traces
//! (`*.csv.xz`: name, then five-minute samples in percent) or the default
//! `../shared/data/planetlab` beside the repository exists, one cluster per trace. It
//! fails when a plan is not settled.

#![allow(clippy::unwrap_used)] // a benchmark fails by panicking

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ballast_model::snapshot::PlacedVm;
use ballast_model::{
    Bytes, BytesPerSec, ClusterSnapshot, Host, HostState, Millicores, Resources, Revision,
    Telemetry, Timestamp,
};
use ballast_placement::{PlanOptions, plan};

const RUNS: usize = 5;

fn main() {
    println!(
        "{:<24} {:>6} {:>6} {:>6} {:>9} {:>9} {:>10}",
        "cluster", "hosts", "VMs", "steps", "before", "after", "median"
    );
    for hosts in [10, 100, 300, 1000] {
        let mut random = Random(7);
        let vms = (0..hosts * 10).map(|_| (50 + random.below(900), 1 + random.below(7)));
        report(&format!("synthetic-{hosts}"), &cluster(hosts, vms));
    }
    let mut drained = {
        let mut random = Random(7);
        let vms = (0..3000).map(|_| (50 + random.below(900), 1 + random.below(7)));
        cluster(300, vms)
    };
    for host in drained.hosts.values_mut().take(10) {
        host.state = HostState::Draining;
    }
    report("synthetic-300, 10 drain", &drained);
    for trace in traces() {
        let mut random = Random(7);
        let cpu = read_trace(&trace);
        let vms = cpu.iter().map(|percent| (percent * 20, 1 + random.below(7)));
        let name = trace.file_name().unwrap().to_string_lossy().into_owned();
        report(name.trim_end_matches(".csv.xz"), &cluster((cpu.len() / 12) as u64, vms));
    }
}

fn report(name: &str, snapshot: &ClusterSnapshot) {
    let options = PlanOptions { steps_max: 10_000, ..PlanOptions::default() };
    let mut times: Vec<Duration> = Vec::new();
    let mut planning = None;
    for _ in 0..RUNS {
        let start = Instant::now();
        planning = Some(plan(snapshot, &options).unwrap());
        times.push(start.elapsed());
    }
    times.sort();
    let plan_made = planning.unwrap().plan;
    println!(
        "{name:<24} {:>6} {:>6} {:>6} {:>9} {:>9} {:>8.1?}",
        snapshot.hosts.len(),
        snapshot.vms.len(),
        plan_made.steps.len(),
        plan_made.imbalance_before.to_string(),
        plan_made.imbalance_after.to_string(),
        times[RUNS / 2]
    );
    let mut after = snapshot.clone();
    for step in &plan_made.steps {
        after.vms.get_mut(&step.vm).unwrap().host = step.to.clone();
    }
    assert!(plan(&after, &options).unwrap().plan.steps.is_empty(), "{name} is not settled");
}

/// Hosts of 16 cores and 96 GiB; VMs as (millicores, GiB), put where a skewed dice and room let them.
fn cluster(hosts: u64, vms: impl Iterator<Item = (u64, u64)>) -> ClusterSnapshot {
    let mut snapshot = ClusterSnapshot::empty(Revision(1), Timestamp(0));
    let id = |n: u64| format!("host-{n:04}").parse().unwrap();
    for n in 0..hosts {
        let host = Host {
            telemetry: Telemetry::Known {
                overhead: Resources::new(Millicores(200), Bytes::gib(2)),
            },
            link: BytesPerSec(1_250_000_000),
            ..Host::new(id(n), Resources::new(Millicores::cores(16), Bytes::gib(96)))
        };
        snapshot.hosts.insert(host.id.clone(), host);
    }
    let mut random = Random(11);
    let mut free = vec![94; usize::try_from(hosts).unwrap()];
    for (n, (millicores, gib)) in vms.enumerate() {
        // The smaller of two throws: low numbers get more.
        let at = random.below(hosts).min(random.below(hosts));
        let mut at = usize::try_from(at).unwrap();
        while free[at] < gib {
            at = (at + 1) % free.len();
        }
        free[at] -= gib;
        let vm = PlacedVm {
            demand: Resources::new(Millicores(millicores), Bytes::gib(gib)),
            dirty_rate: BytesPerSec(millicores * 20_000),
            ..PlacedVm::new(
                format!("vm-{n:05}").parse().unwrap(),
                id(at as u64),
                Resources::new(Millicores::cores(2), Bytes::gib(gib)),
            )
        };
        snapshot.vms.insert(vm.id.clone(), vm);
    }
    snapshot
}

fn traces() -> Vec<PathBuf> {
    let directory = std::env::var_os("BALLAST_PLANETLAB").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/planetlab"),
        PathBuf::from,
    );
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut traces: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".csv.xz"))
        .collect();
    traces.sort();
    traces
}

/// Each VM's CPU in percent at noon.
fn read_trace(path: &Path) -> Vec<u64> {
    let output = Command::new("xz").arg("-dc").arg(path).output().unwrap();
    assert!(output.status.success(), "xz cannot read {}", path.display());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split(',').nth(1 + 144).unwrap().parse().unwrap()).collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same clusters everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
