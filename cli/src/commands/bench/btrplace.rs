//! `ballast bench btrplace`: all constraints of an instance met with few moves,
//! as an ordered plan.
//!
//! The checker counts on the file as it was read, the simulator knows who is
//! where, and neither knows the solver: what is printed was found by three that
//! share nothing but the file.

mod file;
mod solve;

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use ballast_model::{Refusal, RefusalCode};
use ballast_placement::simulate::{Act, Guest, Law, World};
use serde::Serialize;

use super::input::{invalid_at, parse, read};
use crate::output;
use file::{Constraint, Instance};

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    file: String,
    nodes: usize,
    vms: usize,
    constraints: usize,
    violations_before: usize,
    violations_after: usize,
    moves: usize,
    starts: usize,
    parkings: usize,
    stages: usize,
    makespan_seconds: f64,
    load_seconds: f64,
    seconds: f64,
}

pub(super) fn run(path: &Path) -> Result<(), Refusal> {
    let begin = Instant::now();
    let instance = load(path)?;
    let load_seconds = begin.elapsed().as_secs_f64();
    let solved = solve::solve(&instance).map_err(|refusal| in_file(path, refusal))?;
    let after = violations(&instance, &solved.running);
    let order = &solved.ordered.order;
    let acts: Vec<Act> = order
        .steps
        .iter()
        .map(|step| Act {
            guest: step.vm as usize,
            from: step.from.map(|node| node as usize).into_iter().collect(),
            to: vec![step.to as usize],
            after: step.after.iter().map(|before| *before as usize).collect(),
        })
        .collect();
    super::replay(&world(&instance, &solved), &acts, 1)?;
    let starts = order.steps.iter().filter(|step| step.from.is_none()).count();
    let report = Report {
        bench: "btrplace",
        file: path.display().to_string(),
        nodes: instance.nodes.len(),
        vms: instance.vms.len(),
        constraints: instance.constraints.len(),
        violations_before: violations(&instance, &instance.running),
        violations_after: after,
        moves: order.steps.len() - starts,
        starts,
        parkings: solved.ordered.extra(),
        stages: solved.timing.stage_count(),
        makespan_seconds: solved.timing.makespan.as_secs_f64(),
        load_seconds,
        seconds: begin.elapsed().as_secs_f64(),
    };
    output::print(&format!("{}\n", output::json_line(&report)?))?;
    if after == 0 {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::RuleViolation,
        format!("{after} constraints of {} are not met", path.display()),
        "look whether the constraints can be met at all",
    ))
}

fn load(path: &Path) -> Result<Instance, Refusal> {
    let text = read(path)?;
    let view: file::FileView = parse(path, &text)?;
    Instance::new(view).map_err(|what| invalid_at(path, &text, &what))
}

fn in_file(path: &Path, refusal: Refusal) -> Refusal {
    Refusal { reason: format!("{}: {}", path.display(), refusal.reason), ..refusal }
}

/// How many constraints, and capacities of nodes, are not met if VMs run there.
fn violations(instance: &Instance, running: &[Option<u32>]) -> usize {
    let broken = |constraint: &&Constraint| !instance.holds(constraint, running);
    instance.constraints.iter().filter(broken).count() + overloads(instance, running)
}

/// Per resource, the nodes whose VMs need more than there is.
fn overloads(instance: &Instance, running: &[Option<u32>]) -> usize {
    let mut over = 0;
    for (resource, capacity) in instance.capacity.iter().enumerate() {
        let mut used = vec![0_u64; instance.nodes.len()];
        for (vm, node) in running.iter().enumerate() {
            if let Some(node) = node {
                let used = &mut used[*node as usize];
                *used = used.saturating_add(instance.need[vm][resource]);
            }
        }
        over += used.iter().zip(capacity).filter(|(used, capacity)| used > capacity).count();
    }
    over
}

/// The instance for the simulator: a room a node; what is continuous holds at every moment.
fn world(instance: &Instance, solved: &solve::Solved) -> World {
    let rooms = (0..instance.nodes.len())
        .map(|node| instance.capacity.iter().map(|capacity| capacity[node]).collect())
        .collect();
    let guests = solved
        .items
        .iter()
        .map(|vm| Guest {
            rooms: instance.running[*vm as usize].iter().map(|node| *node as usize).collect(),
            need: instance.need[*vm as usize].clone(),
        })
        .collect();
    let number: HashMap<u32, usize> = solved.items.iter().copied().zip(0..).collect();
    let own: Vec<usize> = (0..instance.nodes.len()).collect();
    let guests_of = |vms: &[u32]| vms.iter().filter_map(|vm| number.get(vm).copied()).collect();
    let laws = instance.constraints.iter().filter_map(|constraint| match constraint {
        Constraint::Spread { vms, continuous: true } => {
            Some(Law::Crowd { guests: guests_of(vms), scopes: own.clone(), most: 1 })
        }
        Constraint::Among { vms, parts, continuous: true } => {
            let mut scopes = vec![usize::MAX; instance.nodes.len()];
            for (n, part) in instance.parts[*parts].iter().enumerate() {
                part.iter().for_each(|node| scopes[*node as usize] = n);
            }
            Some(Law::Narrowness { guests: guests_of(vms), scopes, most: 1 })
        }
        _ => None,
    });
    World { rooms, guests, laws: laws.collect() }
}

#[cfg(test)]
mod tests;
