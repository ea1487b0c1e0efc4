//! Which few moves make room for a VM that fits nowhere?
//!
//! Memory is free in pieces: together enough, on no host enough. For each host the VMs are looked for that
//! would have to leave, with the least memory to move, and whether the others can take them; the host that
//! costs least is the answer. Where the policy bounds the CPU size a host admits, that has to be free as well. The moves are independent of each other: each goes to a host that has room now.

use ballast_model::{
    Bytes, ClusterSnapshot, HostId, Millicores, Refusal, RefusalCode, Resources, VmId,
};

use super::spare::Shape;
use crate::door::problem::{HostIx, Problem, VmIx};
use crate::door::state::{Cause, State};
use crate::options::PlanOptions;
use crate::solve::best_target;

/// VMs that are moved away from one host at most.
const MOVES_MAX: usize = 16;

/// How room is made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Room {
    /// Where the VM fits then.
    pub host: HostId,
    /// VMs that move and where to, in this order; none when it fits already.
    pub moves: Vec<(VmId, HostId)>,
    /// What goes over the network at least.
    pub bytes: Bytes,
}

/// Makes room for a VM like `shape`.
///
/// # Errors
/// `CapacityExceeded` when no such moves are found; `InvalidArgument` when options or snapshot make no sense.
pub fn room(
    snapshot: &ClusterSnapshot,
    shape: &Shape,
    options: &PlanOptions,
) -> Result<Room, Refusal> {
    options.validate()?;
    let problem = Problem::new(snapshot)?;
    let start = State::new(&problem);
    let mut found: Option<Cleared> = None;
    for host in problem.host_ixs() {
        let info = problem.host(host);
        if !info.counts() || info.quarantined() || info.memory < shape.size.memory.get() {
            continue;
        }
        if !shape.needs.is_subset(&info.host.offers) {
            continue;
        }
        let Some(moves) = clear(&start, host, shape.size, options) else { continue };
        let bytes = problem.memory_of(moves.iter().map(|(vm, _)| vm));
        let better = |old: &Cleared| (bytes, moves.len()) < (old.bytes, old.moves.len());
        if found.as_ref().is_none_or(better) {
            found = Some(Cleared { bytes, host, moves });
        }
    }
    let Some(Cleared { bytes, host, moves }) = found else {
        return Err(Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "no host can be cleared for a VM with {} of memory and {} of CPU",
                shape.size.memory, shape.size.cpu
            ),
            "add a host, or give the VM less",
        ));
    };
    let id = |host: HostIx| problem.host(host).id.clone();
    let named = |(vm, to): (VmIx, HostIx)| (problem.vm(vm).id.clone(), id(to));
    Ok(Room { host: id(host), moves: moves.into_iter().map(named).collect(), bytes: Bytes(bytes) })
}

/// A host with enough memory free, once these have moved.
struct Cleared {
    bytes: u64,
    host: HostIx,
    moves: Vec<(VmIx, HostIx)>,
}

/// VMs to move from `host` so that `size` is free there, and where to; smallest sufficient first.
fn clear(
    start: &State<'_, '_>,
    host: HostIx,
    size: Resources,
    options: &PlanOptions,
) -> Option<Vec<(VmIx, HostIx)>> {
    let problem = start.problem;
    let mut state = start.clone();
    let mut moves = Vec::new();
    loop {
        let lacks = lacks(&state, host, size);
        if lacks == Resources::default() {
            return Some(moves);
        }
        if moves.len() == MOVES_MAX {
            return None;
        }
        // The smallest that is enough alone, else the largest.
        let rank = |vm: &VmIx| {
            let info = problem.vm(*vm);
            let enough = info.memory >= lacks.memory.get() && info.cpu_size >= lacks.cpu.get();
            let (most, other) = match lacks.memory {
                Bytes::ZERO => (info.cpu_size, info.memory),
                _ => (info.memory, info.cpu_size),
            };
            if enough { (false, info.memory, 0, *vm) } else { (true, u64::MAX - most, other, *vm) }
        };
        let movable = state.vms_on(host).iter().copied().filter(|vm| problem.can_leave(*vm));
        let mut candidates: Vec<VmIx> = movable.collect();
        candidates.sort_by_key(rank);
        let (vm, to) = candidates.into_iter().find_map(|vm| {
            let to = best_target(&state, vm, Cause::Capacity, options)?;
            Some((vm, to))
        })?;
        state.shift(vm, to);
        moves.push((vm, to));
    }
}

/// What is not free of it on the host: memory, and CPU size where that is bounded.
fn lacks(state: &State<'_, '_>, host: HostIx, size: Resources) -> Resources {
    let memory = size.memory.saturating_sub(state.memory_free(host));
    let cpu = state.problem.host(host).cpu_admitted.map_or(0, |admitted| {
        state.cpu_sizes(host).saturating_add(size.cpu.get()).saturating_sub(admitted)
    });
    Resources::new(Millicores(cpu), memory)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::scenario::parse;
    use crate::testing::{Cluster, gib, keep_apart};

    fn check(cluster: &ClusterSnapshot, memory_gib: u64, expected: Result<&str, &str>) {
        let shape = Shape {
            size: Resources::new(Millicores::cores(1), gib(memory_gib)),
            demand: Millicores(100),
            needs: BTreeSet::new(),
        };
        match (room(cluster, &shape, &PlanOptions::default()), expected) {
            (Ok(room), Ok(expected)) => {
                let moves = room.moves.iter().map(|(vm, to)| format!("{vm}->{to}"));
                let text: Vec<_> = std::iter::once(room.host.to_string()).chain(moves).collect();
                assert_eq!(text.join(" "), expected);
            }
            (Err(refusal), Err(expected)) => {
                assert!(refusal.reason.contains(expected), "{refusal}");
            }
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        }
    }

    fn pieces() -> Cluster {
        Cluster::new(3, 16, 16)
            .vm("a", "h0", 100, 4)
            .vm("b", "h0", 100, 6)
            .vm("c", "h1", 100, 9)
            .vm("d", "h2", 100, 10)
    }

    #[test]
    fn the_smallest_vm_that_is_enough_moves() {
        check(&pieces().0, 6, Ok("h0"));
        check(&pieces().0, 10, Ok("h0 a->h1"));
        check(&pieces().0, 16, Ok("h0 b->h1 a->h2"));
    }

    #[test]
    fn a_rule_that_counts_the_vm_counts_it_once() {
        // One of the two licensed hosts may be in use: v may go from one to the other.
        let text = "host h0 8 16G : v 0.1 6G
                    host h1 8 16G : w 0.1 8G fixed
                    host h2 8 16G : x 0.1 12G fixed
                    rule licence (discrete): v at most 1 of h0 h1";
        check(&parse(text).unwrap().snapshot, 16, Ok("h0 v->h1"));
        let text = "host h0 8 16G : v 0.1 6G, w 0.1 6G
                    host h1 8 16G : x 0.1 1G fixed
                    rule pack: v w together";
        check(&parse(text).unwrap().snapshot, 16, Err("no host can be cleared"));
    }

    #[test]
    fn admitted_cpu_has_to_be_free_as_well() {
        let text = "host h0 8 16G : a 0.1/8 1G
                    host h1 8 16G : b 0.1/2 2G, c 0.1/6 8G
                    host h2 8 16G : d 0.1/8 2G
                    policy cpu-overcommit 1";
        check(&parse(text).unwrap().snapshot, 6, Err("no host can be cleared"));
        let text = "host h0 8 16G : a 0.1/8 1G
                    host h1 8 16G : b 0.1/1 2G, c 0.1/7 8G
                    host h2 8 16G : d 0.1/7 11G
                    policy cpu-overcommit 1";
        check(&parse(text).unwrap().snapshot, 6, Ok("h1 b->h2"));
    }

    #[test]
    fn rules_and_size_can_make_it_impossible() {
        check(&pieces().0, 17, Err("17.0 GiB"));
        let bound = keep_apart(pieces().0, &["a", "b", "c", "d"]);
        check(&bound, 16, Err("no host can be cleared"));
    }
}
