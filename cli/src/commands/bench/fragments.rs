//! `ballast bench fragments`: as little as possible of what is free in pieces
//! smaller than a unit, after a bounded number of migrations.
//!
//! The input is the JSON of the VM rescheduling literature: hosts with NUMA
//! nodes, VMs on one or both of them. What it says twice is checked.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use ballast_model::{Refusal, RefusalCode};
use ballast_placement::defrag::{Cell, Defrag, Effort, Piece, Yard, defrag};
use ballast_placement::order::{HostLimits, Timing};
use ballast_placement::simulate::{Act, Guest, World};
use serde::{Deserialize, Serialize};

use super::input::{invalid_at, parse, read};
use crate::output;

/// Kept for ordering, replaying and printing.
const RESERVE: Duration = Duration::from_millis(150);

pub(super) struct Options {
    pub(super) moves: usize,
    pub(super) seconds: f64,
    pub(super) seed: u64,
    pub(super) threads: u16,
    pub(super) unit: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    file: String,
    hosts: usize,
    vms: usize,
    fragment_before: f64,
    fragment_after: f64,
    units_before: u64,
    units_after: u64,
    moves: usize,
    stages: usize,
    makespan_seconds: f64,
    seconds: f64,
    seed: u64,
    threads: u16,
    evaluations_per_second: f64,
}

/// A step as it is written to a file.
#[derive(Debug, Serialize)]
struct StepView<'a> {
    instance_id: &'a str,
    from: &'a str,
    from_numa: Vec<u32>,
    to: &'a str,
    to_numa: Vec<u32>,
    after: &'a [u32],
}

pub(super) fn run(path: &Path, options: &Options, out: Option<&Path>) -> Result<(), Refusal> {
    let begin = Instant::now();
    let cluster = load(path, options.unit)?;
    let end = begin + Duration::from_secs_f64(options.seconds).saturating_sub(RESERVE);
    let loaded = Instant::now();
    let total = end.saturating_duration_since(loaded).as_secs_f64();
    let spent = |_: u64| {
        if total > 0.0 { loaded.elapsed().as_secs_f64() / total } else { 1.0 }
    };
    let effort = Effort {
        moves_max: options.moves,
        seed: options.seed,
        threads: usize::from(options.threads),
        spent: &spent,
    };
    let yard = &cluster.yard;
    let found = defrag(yard, &effort)?;
    let search_seconds = loaded.elapsed().as_secs_f64();
    verify(yard, &found, options)?;
    let timing = Timing::estimate(yard, &found.order, &|_| HostLimits::default(), Duration::ZERO);
    if let Some(out) = out {
        write(out, &cluster, &found)?;
    }
    let report = Report {
        bench: "fragments",
        file: path.display().to_string(),
        hosts: cluster.hosts.len(),
        vms: yard.pieces().len(),
        fragment_before: yard.fragment_rate(found.units_before),
        fragment_after: yard.fragment_rate(found.units_after),
        units_before: found.units_before,
        units_after: found.units_after,
        moves: found.order.steps.len(),
        stages: timing.stage_count(),
        makespan_seconds: timing.makespan.as_secs_f64(),
        seconds: begin.elapsed().as_secs_f64(),
        seed: options.seed,
        threads: options.threads,
        evaluations_per_second: (found.trials as f64 / search_seconds.max(1e-9)).round(),
    };
    output::print(&format!("{}\n", output::json_line(&report)?))
}

/// Replays the steps, and counts again what is free where they lead.
fn verify(yard: &Yard, found: &Defrag, options: &Options) -> Result<(), Refusal> {
    let rooms = |cells: &[u32]| cells.iter().map(|cell| *cell as usize).collect::<Vec<_>>();
    let world = World {
        rooms: yard.cells().iter().map(|cell| cell.capacity.to_vec()).collect(),
        guests: yard
            .pieces()
            .iter()
            .map(|piece| Guest { rooms: rooms(&piece.cells), need: piece.need.to_vec() })
            .collect(),
        laws: Vec::new(),
    };
    let spot = |spot: u32| yard.spot_cells(spot).map(|cell| cell as usize).collect::<Vec<_>>();
    let mut acts = Vec::with_capacity(found.order.steps.len());
    let mut pieces = yard.pieces().to_vec();
    for step in &found.order.steps {
        acts.push(Act {
            guest: step.vm as usize,
            from: step.from.map(spot).unwrap_or_default(),
            to: spot(step.to),
            after: rooms(&step.after),
        });
        pieces[step.vm as usize].cells = yard.spot_cells(step.to).collect();
    }
    super::replay(&world, &acts, options.seed)?;
    let units = Yard::new(yard.cells().to_vec(), pieces, yard.unit()).units();
    if units == found.units_after && acts.len() <= options.moves {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::Internal,
        format!("{} steps lead to {units} units, not to {}", acts.len(), found.units_after),
        "report a defect with the input file and the seed",
    ))
}

fn write(out: &Path, cluster: &Cluster, found: &Defrag) -> Result<(), Refusal> {
    let yard = &cluster.yard;
    let nodes =
        |spot: u32| yard.spot_cells(spot).map(|cell| cluster.nodes[cell as usize]).collect();
    let host = |spot: u32| {
        let cell = yard.spot_cells(spot).next().unwrap_or_default();
        cluster.hosts[yard.cells()[cell as usize].host as usize].as_str()
    };
    let steps: Vec<StepView<'_>> = found
        .order
        .steps
        .iter()
        .map(|step| {
            let from = step.from.unwrap_or_else(|| yard.home(step.vm));
            StepView {
                instance_id: &cluster.instances[step.vm as usize],
                from: host(from),
                from_numa: nodes(from),
                to: host(step.to),
                to_numa: nodes(step.to),
                after: &step.after,
            }
        })
        .collect();
    std::fs::write(out, output::json_line(&steps)? + "\n").map_err(|error| {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot write {}: {error}", out.display()),
            "choose another file",
        )
    })
}

#[derive(Debug, Deserialize)]
struct FileView {
    cluster_list: Vec<ClusterView>,
}

#[derive(Debug, Deserialize)]
struct ClusterView {
    host_info: Vec<HostView>,
    vm_instance: Vec<InstanceView>,
    #[serde(default)]
    other_requirement: RequirementView,
}

#[derive(Debug, Default, Deserialize)]
struct RequirementView {
    #[serde(default)]
    deployment_set: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct HostView {
    node_id: String,
    status: String,
    numa: Vec<HostNumaView>,
}

#[derive(Debug, Deserialize)]
struct HostNumaView {
    node: u32,
    total_cpu: u64,
    free_cpu: u64,
    memory_huge_total_mb: u64,
    memory_huge_free_mb: u64,
}

#[derive(Debug, Deserialize)]
struct InstanceView {
    instance_id: String,
    host_id: String,
    allow_migration: bool,
    numa: Vec<InstanceNumaView>,
}

#[derive(Debug, Deserialize)]
struct InstanceNumaView {
    node: u32,
    cpu: u64,
    mem_mb: u64,
}

/// A file with its names, numbered as in the yard.
struct Cluster {
    yard: Yard,
    hosts: Vec<String>,
    instances: Vec<String>,
    /// Per cell, its node's number on the host.
    nodes: Vec<u32>,
}

fn load(path: &Path, unit: u64) -> Result<Cluster, Refusal> {
    let text = read(path)?;
    let view: FileView = parse(path, &text)?;
    cluster(view, unit).map_err(|what| invalid_at(path, &text, &what))
}

/// The file as a yard, or what is wrong with it and where.
fn cluster(view: FileView, unit: u64) -> Result<Cluster, String> {
    let mut clusters = view.cluster_list;
    let (Some(view), true) = (clusters.pop(), clusters.is_empty()) else {
        return Err("cluster_list: exactly one cluster is understood".to_owned());
    };
    if !view.other_requirement.deployment_set.is_empty() {
        return Err("cluster_list[0].other_requirement.deployment_set: not understood".to_owned());
    }
    let mut build = Build::default();
    for (n, host) in (0..).zip(view.host_info) {
        build.host(n, host).map_err(|what| format!("cluster_list[0].host_info[{n}]{what}"))?;
    }
    for (n, instance) in view.vm_instance.into_iter().enumerate() {
        build
            .instance(instance)
            .map_err(|what| format!("cluster_list[0].vm_instance[{n}]{what}"))?;
    }
    let yard = Yard::new(build.cells, build.pieces, unit);
    for (cell, free) in (0_u32..).zip(&build.free) {
        if yard.free(cell) != *free {
            let n = yard.cells()[cell as usize].host;
            let (host, node) = (&build.hosts[n as usize], build.nodes[cell as usize]);
            return Err(format!(
                "cluster_list[0].host_info[{n}].numa ({host} node {node}): {free:?} free (cores, bytes) by host_info, {:?} by vm_instance",
                yard.free(cell)
            ));
        }
    }
    Ok(Cluster { yard, hosts: build.hosts, instances: build.instances, nodes: build.nodes })
}

const fn bytes(mb: u64) -> u64 {
    mb.saturating_mul(1 << 20)
}

#[derive(Default)]
struct Build {
    cells: Vec<Cell>,
    free: Vec<[u64; 2]>,
    nodes: Vec<u32>,
    pieces: Vec<Piece>,
    hosts: Vec<String>,
    host_numbers: HashMap<String, u32>,
    instances: Vec<String>,
    instance_names: HashMap<String, usize>,
    /// Cell by host and node.
    cell_numbers: HashMap<(u32, u32), u32>,
}

impl Build {
    fn host(&mut self, n: u32, host: HostView) -> Result<(), String> {
        if host.numa.is_empty() || host.numa.len() > 2 {
            return Err(format!(".numa ({}): one or two nodes are understood", host.node_id));
        }
        for numa in &host.numa {
            let capacity = [numa.total_cpu, bytes(numa.memory_huge_total_mb)];
            let free = [numa.free_cpu, bytes(numa.memory_huge_free_mb)];
            if free.iter().zip(&capacity).any(|(free, capacity)| free > capacity) {
                return Err(format!(
                    ".numa ({} node {}): more free than there is",
                    host.node_id, numa.node
                ));
            }
            let cell =
                u32::try_from(self.cells.len()).map_err(|_| ": too many nodes".to_owned())?;
            if self.cell_numbers.insert((n, numa.node), cell).is_some() {
                return Err(format!(".numa ({}): node {} twice", host.node_id, numa.node));
            }
            self.cells.push(Cell::new(n, capacity, host.status == "ACTIVE"));
            self.free.push(free);
            self.nodes.push(numa.node);
        }
        self.hosts.push(host.node_id.clone());
        match self.host_numbers.insert(host.node_id, n) {
            None => Ok(()),
            Some(first) => Err(format!(".node_id: {} twice", self.hosts[first as usize])),
        }
    }

    fn instance(&mut self, instance: InstanceView) -> Result<(), String> {
        let name = &instance.instance_id;
        let host = self.host_numbers.get(&instance.host_id);
        let Some(host) = host.copied() else {
            return Err(format!(".host_id ({name}): no host {:?}", instance.host_id));
        };
        let Some(first) = instance.numa.first() else {
            return Err(format!(".numa ({name}): on no node"));
        };
        let need = [first.cpu, bytes(first.mem_mb)];
        let mut cells = Vec::with_capacity(instance.numa.len());
        for numa in &instance.numa {
            if [numa.cpu, bytes(numa.mem_mb)] != need {
                return Err(format!(".numa ({name}): nodes with different amounts"));
            }
            match self.cell_numbers.get(&(host, numa.node)) {
                Some(cell) if !cells.contains(cell) => cells.push(*cell),
                _ => return Err(format!(".numa ({name}): no node {} to be on", numa.node)),
            }
        }
        cells.sort_unstable();
        let movable = instance.allow_migration;
        self.pieces.push(Piece { need, cells, movable });
        self.instances.push(instance.instance_id.clone());
        match self.instance_names.insert(instance.instance_id, self.instances.len()) {
            None => Ok(()),
            Some(_) => {
                Err(format!(".instance_id: {} twice", self.instances[self.instances.len() - 1]))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = r#"{"node_id":"pm0","status":"ACTIVE","numa":[
        {"node":0,"total_cpu":44,"free_cpu":40,"memory_huge_total_mb":100,"memory_huge_free_mb":90},
        {"node":1,"total_cpu":44,"free_cpu":44,"memory_huge_total_mb":100,"memory_huge_free_mb":100}]}"#;
    const VM: &str = r#"{"instance_id":"vm0","host_id":"pm0","allow_migration":true,
        "numa":[{"node":0,"cpu":4,"mem_mb":10}]}"#;

    fn check(host: &str, vm: &str, expected: &str) {
        let text = format!(r#"{{"cluster_list":[{{"host_info":[{host}],"vm_instance":[{vm}]}}]}}"#);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.json");
        std::fs::write(&path, text).unwrap();
        match load(&path, 16) {
            Ok(cluster) => assert_eq!(expected, format!("{} units", cluster.yard.units())),
            Err(refusal) => assert!(refusal.reason.contains(expected), "{refusal}"),
        }
    }

    #[test]
    fn a_cluster_is_read() {
        check(HOST, VM, "4 units");
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        check(HOST, &VM.replace("pm0", "pm9"), "vm_instance[0].host_id (vm0): no host \"pm9\"");
        check(
            HOST,
            &VM.replace("\"node\":0", "\"node\":7"),
            "vm_instance[0].numa (vm0): no node 7",
        );
        check(
            HOST,
            &VM.replace("\"cpu\":4", "\"cpu\":5"),
            "line 1: cluster_list[0].host_info[0].numa (pm0 node 0): [40, 94371840] free",
        );
        check(HOST, &VM.replace("\"cpu\":4", "\"cpu\":-4"), "line 4 column");
        check(
            HOST,
            &format!("{VM},{VM}"),
            "line 4: cluster_list[0].vm_instance[1].instance_id: vm0 twice",
        );
        check(&format!("{HOST},{HOST}"), VM, "host_info[1].node_id: pm0 twice");
        check(
            &HOST.replace("44,\"free_cpu\":40", "44,\"free_cpu\":45"),
            VM,
            "more free than there is",
        );
        check(
            &HOST.replace("\"node\":1", "\"node\":0"),
            VM,
            "host_info[0].numa (pm0): node 0 twice",
        );
        check(HOST, &VM[..40], "line 3 column");
    }
}
