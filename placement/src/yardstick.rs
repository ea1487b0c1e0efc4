//! What the planner is measured with: clusters of any size made from a seed, and
//! the loop that makes the best single move again and again.
//!
//! The loop is what many balancers are. It is exact: at every step it knows the
//! best move of all. It shares the formula of the spread with the planner
//! ([`crate::score`]) and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use ballast_model::snapshot::PlacedVm;
use ballast_model::{
    Bytes, BytesPerSec, ClusterSnapshot, Host, HostId, Millicores, Resources, Revision, Rule,
    RuleKind, Telemetry, Timestamp,
};

use crate::core::Rng;
use crate::score::{self, METRICS, Weights};

/// Cores and memory of every host.
const HOST_CORES: u64 = 32;
const HOST_GIB: u64 = 256;
/// Memory of VMs in GiB; one is drawn.
const VM_GIB: [u64; 6] = [4, 4, 8, 8, 16, 32];
/// CPU demand of VMs in millicores: the least, and so many different.
const VM_MILLICORES: (u64, usize) = (200, 2_800);
/// VMs of an anti-affinity group, and of how many VMs one is in a group.
const APART: usize = 4;
const APART_ONE_OF: usize = 10;

/// A cluster of equal hosts, unevenly loaded, one VM of ten in an anti-affinity group of four (which it keeps).
/// With ten VMs a host the CPU is about half used, and so is the memory.
pub fn cluster(hosts: usize, vms: usize, seed: u64) -> ClusterSnapshot {
    let mut rng = Rng::new(seed);
    let mut snapshot = ClusterSnapshot::empty(Revision(1), Timestamp(0));
    let names: Vec<HostId> =
        (0..hosts).filter_map(|n| format!("host-{n:05}").parse().ok()).collect();
    for id in &names {
        let size = Resources::new(Millicores::cores(HOST_CORES), Bytes::gib(HOST_GIB));
        let host = Host {
            telemetry: Telemetry::Known {
                overhead: Resources::new(Millicores(500), Bytes::gib(2)),
            },
            link: BytesPerSec(1_250_000_000),
            ..Host::new(id.clone(), size)
        };
        snapshot.hosts.insert(id.clone(), host);
    }
    let mut free = vec![HOST_GIB - 2; hosts];
    let grouped = vms / APART_ONE_OF / APART * APART;
    let mut group: Vec<usize> = Vec::new();
    let mut members = BTreeSet::new();
    for n in 0..vms {
        let gib = VM_GIB[rng.below(VM_GIB.len())];
        let millicores = VM_MILLICORES.0 + rng.below(VM_MILLICORES.1) as u64;
        if n % APART == 0 {
            group.clear();
        }
        // The smaller of two throws: low numbers get more.
        let first = rng.below(hosts).min(rng.below(hosts));
        let suits = |at: &usize| free[*at] >= gib && (n >= grouped || !group.contains(at));
        let Some(at) = (first..hosts).chain(0..first).find(suits) else { break };
        free[at] -= gib;
        let Ok(id) = format!("vm-{n:06}").parse::<ballast_model::VmId>() else { break };
        if n < grouped {
            group.push(at);
            members.insert(id.clone());
            if members.len() == APART {
                let kind =
                    RuleKind::AntiAffinity { vms: std::mem::take(&mut members), per_host_max: 1 };
                if let Ok(name) = format!("apart-{n:06}").parse::<ballast_model::RuleId>() {
                    snapshot.rules.insert(name.clone(), Rule::must(name, kind));
                }
            }
        }
        let vm = PlacedVm {
            demand: Resources::new(Millicores(millicores), Bytes::gib(gib)),
            dirty_rate: BytesPerSec(millicores * 10_000),
            ..PlacedVm::new(
                id.clone(),
                names[at].clone(),
                Resources::new(Millicores::cores(4), Bytes::gib(gib)),
            )
        };
        snapshot.vms.insert(id, vm);
    }
    snapshot
}

/// The standard deviation of the hosts' use, CPU then memory, as shares of a host.
pub fn deviations(snapshot: &ClusterSnapshot) -> [f64; METRICS.len()] {
    Greedy::new(snapshot).deviations()
}

/// What the loop came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GreedyRun {
    /// Moves made.
    pub moves: usize,
    /// Standard deviation of CPU and memory then.
    pub deviations: [f64; METRICS.len()],
    /// Whether the level asked for was reached.
    pub reached: bool,
}

/// Makes the best move again and again until the weighted deviation is at most `level` (as
/// [`imbalance`](crate::imbalance) has it), or no move improves anything.
///
/// Equal hosts that all count are taken for granted, and anti-affinity of one a host is the only rule it
/// knows: that is what [`cluster`] makes. `cpu_ceiling` is the share of its CPU a target may reach.
pub fn greedy(snapshot: &ClusterSnapshot, level: f64, cpu_ceiling: f64) -> GreedyRun {
    let mut greedy = Greedy::new(snapshot);
    greedy.ceiling = cpu_ceiling;
    greedy.weigh_all();
    let mut moves = 0;
    while greedy.imbalance() > level && moves < greedy.vms.len() * 4 && greedy.step() {
        moves += 1;
    }
    let reached = greedy.imbalance() <= level;
    GreedyRun { moves, deviations: greedy.deviations(), reached }
}

/// Less than this is noise, not a gain.
const GAIN_MIN: f64 = 1e-12;

/// The best VM of one host for another, and by how much the spread falls.
#[derive(Clone, Copy)]
struct Cell {
    gain: f64,
    vm: u32,
}

const NOTHING: Cell = Cell { gain: 0.0, vm: u32::MAX };

struct Greedy {
    load: Vec<[f64; METRICS.len()]>,
    on: Vec<Vec<u32>>,
    vms: Vec<([f64; METRICS.len()], Option<u32>)>,
    /// Per host, how many VMs of which groups.
    groups: Vec<BTreeMap<u32, u32>>,
    /// Source × target.
    cells: Vec<Cell>,
    /// The best target of each source.
    best: Vec<usize>,
    ceiling: f64,
    weights: Weights,
}

impl Greedy {
    fn new(snapshot: &ClusterSnapshot) -> Self {
        let hosts: BTreeMap<&HostId, usize> =
            snapshot.hosts.keys().enumerate().map(|(n, id)| (id, n)).collect();
        let mut group_of = BTreeMap::new();
        for (n, rule) in (0_u32..).zip(snapshot.rules.values()) {
            if let RuleKind::AntiAffinity { vms, .. } = &rule.kind {
                group_of.extend(vms.iter().map(|vm| (vm, n)));
            }
        }
        let mut greedy = Self {
            load: Vec::new(),
            on: vec![Vec::new(); hosts.len()],
            vms: Vec::new(),
            groups: vec![BTreeMap::new(); hosts.len()],
            cells: Vec::new(),
            best: vec![0; hosts.len()],
            ceiling: f64::INFINITY,
            weights: score::weights(&snapshot.policy),
        };
        let share = |of: Resources, all: Resources| {
            let part = |a: u64, b: u64| a as f64 / b.max(1) as f64;
            [part(of.cpu.get(), all.cpu.get()), part(of.memory.get(), all.memory.get())]
        };
        for host in snapshot.hosts.values() {
            let overhead = match &host.telemetry {
                Telemetry::Known { overhead } => *overhead,
                Telemetry::Unknown { .. } => Resources::new(Millicores(0), Bytes(0)),
            };
            greedy.load.push(share(overhead, host.capacity));
        }
        for (n, vm) in (0_u32..).zip(snapshot.vms.values()) {
            let at = hosts[&vm.host];
            let size = Resources::new(vm.demand.cpu, vm.size.memory);
            let size = share(size, snapshot.hosts[&vm.host].capacity);
            greedy.vms.push((size, group_of.get(&vm.id).copied()));
            greedy.enter(n, at);
        }
        greedy
    }

    fn enter(&mut self, vm: u32, at: usize) {
        let (size, group) = self.vms[vm as usize];
        self.on[at].push(vm);
        self.load[at].iter_mut().zip(size).for_each(|(load, size)| *load += size);
        if let Some(group) = group {
            *self.groups[at].entry(group).or_default() += 1;
        }
    }

    fn leave(&mut self, vm: u32, at: usize) {
        let (size, group) = self.vms[vm as usize];
        self.on[at].retain(|other| *other != vm);
        self.load[at].iter_mut().zip(size).for_each(|(load, size)| *load -= size);
        if let Some(count) = group.and_then(|group| self.groups[at].get_mut(&group)) {
            *count -= 1;
        }
    }

    fn deviations(&self) -> [f64; METRICS.len()] {
        let n = self.load.len().max(1) as f64;
        std::array::from_fn(|m| {
            let mean = self.load.iter().map(|load| load[m]).sum::<f64>() / n;
            (self.load.iter().map(|load| (load[m] - mean).powi(2)).sum::<f64>() / n).sqrt()
        })
    }

    fn imbalance(&self) -> f64 {
        let squares = self.deviations().into_iter().zip(self.weights).map(|(d, w)| w * d * d);
        (squares.sum::<f64>() / self.weights.iter().sum::<f64>()).sqrt()
    }

    fn weigh_all(&mut self) {
        let hosts = self.load.len();
        self.cells = vec![NOTHING; hosts * hosts];
        for from in 0..hosts {
            self.weigh_row(from);
        }
    }

    fn weigh_row(&mut self, from: usize) {
        for to in 0..self.load.len() {
            self.cells[from * self.load.len() + to] = self.weigh(from, to);
        }
        self.find_best(from);
    }

    fn find_best(&mut self, from: usize) {
        let row = &self.cells[from * self.load.len()..][..self.load.len()];
        let (mut best, mut gain) = (0, f64::MIN);
        for (to, cell) in row.iter().enumerate() {
            if cell.gain > gain {
                (best, gain) = (to, cell.gain);
            }
        }
        self.best[from] = best;
    }

    fn weigh(&self, from: usize, to: usize) -> Cell {
        let mut best = NOTHING;
        if from == to {
            return best;
        }
        let (here, there) = (self.load[from], self.load[to]);
        for vm in &self.on[from] {
            let (size, group) = self.vms[*vm as usize];
            let gain: f64 = (0..METRICS.len())
                .map(|m| self.weights[m] * 2.0 * size[m] * (here[m] - there[m] - size[m]))
                .sum();
            let fits = there[0] + size[0] <= self.ceiling && there[1] + size[1] <= 1.0;
            let apart =
                || group.is_none_or(|group| self.groups[to].get(&group).is_none_or(|n| *n == 0));
            if gain > best.gain && fits && apart() {
                best = Cell { gain, vm: *vm };
            }
        }
        best
    }

    /// Makes the best move of all, if one gains.
    fn step(&mut self) -> bool {
        let hosts = self.load.len();
        let gain = |from: &usize| self.cells[from * hosts + self.best[*from]].gain;
        let Some(from) = (0..hosts).max_by(|a, b| gain(a).total_cmp(&gain(b))) else {
            return false;
        };
        let to = self.best[from];
        let cell = self.cells[from * hosts + to];
        if cell.gain <= GAIN_MIN {
            return false;
        }
        self.leave(cell.vm, from);
        self.enter(cell.vm, to);
        for other in (0..hosts).filter(|other| *other != from && *other != to) {
            for changed in [from, to] {
                let cell = self.weigh(other, changed);
                let best = self.cells[other * hosts + self.best[other]].gain;
                self.cells[other * hosts + changed] = cell;
                if self.best[other] == changed {
                    self.find_best(other);
                } else if cell.gain > best {
                    self.best[other] = changed;
                }
            }
        }
        self.weigh_row(from);
        self.weigh_row(to);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PlanOptions, imbalance, plan};

    #[test]
    fn a_made_cluster_is_valid_keeps_its_rules_and_has_every_vm() {
        let snapshot = cluster(20, 200, 3);
        snapshot.validate().unwrap();
        assert_eq!((snapshot.vms.len(), snapshot.rules.len()), (200, 5));
        assert_eq!(cluster(20, 200, 3), snapshot);
        let forced = PlanOptions { causes: crate::Causes::FORCED, ..PlanOptions::default() };
        assert_eq!(plan(&snapshot, &forced).unwrap().plan.steps, []);
    }

    #[test]
    fn the_loop_counts_as_the_planner_does_and_levels() {
        let snapshot = cluster(20, 200, 3);
        let start = greedy(&snapshot, f64::INFINITY, 0.8);
        let [cpu, memory] = start.deviations;
        let weighted = ((cpu * cpu + 0.5 * memory * memory) / 1.5).sqrt();
        assert!((weighted - imbalance(&snapshot).get()).abs() < 1e-9);
        assert_eq!((start.moves, start.reached), (0, true));
        let end = greedy(&snapshot, 0.03, 0.8);
        assert!(end.reached && end.moves > 20, "{end:?}");
    }

    #[test]
    fn the_plan_needs_no_more_moves_than_the_loop_for_its_level() {
        for seed in 1..4 {
            let snapshot = cluster(20, 200, seed);
            let options = PlanOptions::default().aggressive(5).unwrap();
            let plan = plan(&snapshot, &options).unwrap().plan;
            let loops = greedy(&snapshot, plan.imbalance_after.get(), options.cpu_ceiling.get());
            assert!(
                plan.steps.len() <= loops.moves || !loops.reached,
                "{} {loops:?}",
                plan.steps.len()
            );
        }
    }
}
