//! Hosts are lost: where does each of their VMs start again?
//!
//! Nobody moves a VM that still runs for it: at such a moment the network has better things to do. VMs that
//! rules bind come first, then the largest, so that what is left over is little; a VM placed a moment ago
//! gives way once to one that finds no room.

use std::collections::BTreeSet;

use ballast_model::{ClusterSnapshot, HostId, HostState, Refusal, RefusalCode, VmId};

use super::packing::start_all;
use crate::door::problem::{Problem, VmIx};
use crate::door::state::State;
use crate::eligibility::no_place;
use crate::options::PlanOptions;

/// What becomes of the VMs of lost hosts.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Restart {
    /// VMs that start again, in the order to start them: what other VMs depend on by rules first, then large ones.
    pub starts: Vec<Start>,
    /// VMs for which there is no place, and why.
    pub stranded: Vec<(VmId, Refusal)>,
}

/// One VM's new beginning.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Start {
    /// The VM.
    pub vm: VmId,
    /// The host that was lost.
    pub from: HostId,
    /// Where it starts.
    pub to: HostId,
}

/// Where the VMs of `lost` start.
///
/// # Errors
/// `NotFound` for a host that is not in the snapshot; `InvalidArgument` when options or snapshot make no sense.
pub fn restart(
    snapshot: &ClusterSnapshot,
    lost: &BTreeSet<HostId>,
    options: &PlanOptions,
) -> Result<Restart, Refusal> {
    options.validate()?;
    let snapshot = without_hosts(snapshot, lost)?;
    let problem = Problem::new(&snapshot)?;
    let mut state = State::new(&problem);
    let waiting: Vec<VmIx> = problem
        .vm_ixs()
        .filter(|vm| lost.contains(problem.host(problem.vm(*vm).host).id))
        .collect();
    let home: Vec<_> = waiting.iter().map(|vm| state.at(*vm)).collect();
    waiting.iter().for_each(|vm| state.lift(*vm));
    let left = start_all(&mut state, waiting.iter().copied(), options, |_| true);
    let mut starts: Vec<(u64, Start)> = Vec::new();
    for (vm, home) in waiting.iter().zip(home) {
        if !left.contains(vm) {
            let id = |host| problem.host(host).id.clone();
            let info = problem.vm(*vm);
            let start = Start { vm: info.id.clone(), from: id(home), to: id(state.at(*vm)) };
            starts.push((info.memory, start));
        }
    }
    starts.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.vm.cmp(&b.1.vm)));
    let stranded = left.into_iter().map(|vm| (problem.vm(vm).id.clone(), no_place(&state, vm)));
    let stranded = stranded.collect();
    Ok(Restart { starts: starts.into_iter().map(|(_, start)| start).collect(), stranded })
}

/// The snapshot in which those hosts take nothing any more and no migration has to do with them.
pub(super) fn without_hosts(
    snapshot: &ClusterSnapshot,
    lost: &BTreeSet<HostId>,
) -> Result<ClusterSnapshot, Refusal> {
    let mut snapshot = snapshot.clone();
    for id in lost {
        let host = snapshot.hosts.get_mut(id).ok_or_else(|| {
            Refusal::new(
                RefusalCode::NotFound,
                format!("there is no host {id} in the snapshot"),
                "name hosts that are in it",
            )
        })?;
        host.state = HostState::Draining;
    }
    // A VM on its way from a lost host is lost with it; one on its way to it goes on where it was.
    snapshot.migrations.retain(|flight| !lost.contains(&flight.from) && !lost.contains(&flight.to));
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Cluster, keep_apart};

    fn lost(names: &[&str]) -> BTreeSet<HostId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn check(snapshot: &ClusterSnapshot, hosts: &[&str], expected: &str) {
        let restart = restart(snapshot, &lost(hosts), &PlanOptions::default()).unwrap();
        let starts = restart.starts.iter().map(|start| format!("{}->{}", start.vm, start.to));
        let stranded = restart.stranded.iter().map(|(vm, why)| format!("{vm}: {}", why.reason));
        let found: Vec<_> = starts.chain(stranded).collect();
        assert_eq!(found.join(", "), expected);
    }

    #[test]
    fn lost_vms_start_where_the_load_stays_level() {
        let cluster = Cluster::new(3, 8, 16)
            .vm("a", "h0", 2000, 4)
            .vm("b", "h0", 1000, 2)
            .vm("c", "h1", 2000, 4);
        check(&cluster.0, &["h0"], "a->h2, b->h1");
    }

    #[test]
    fn rules_hold_for_a_new_start_too() {
        let cluster = Cluster::new(3, 8, 16).vm("a", "h0", 100, 4).vm("b", "h2", 100, 1);
        check(&keep_apart(cluster.0, &["a", "b"]), &["h0"], "a->h1");
    }

    #[test]
    fn what_has_no_room_is_named_with_its_reason() {
        let cluster = Cluster::new(2, 8, 16).vm("a", "h0", 100, 12).vm("b", "h1", 100, 8);
        let restart = restart(&cluster.0, &lost(&["h0"]), &PlanOptions::default()).unwrap();
        let (vm, why) = &restart.stranded[0];
        assert_eq!((vm.as_str(), restart.starts.len()), ("a", 0));
        assert!(why.reason.contains("12.0 GiB") && why.reason.contains("8.0 GiB"), "{why}");
    }

    #[test]
    fn one_placed_before_gives_way() {
        // By memory `big` comes first and takes the freest host, the only one that `bound` fits after it.
        let cluster = Cluster::new(3, 8, 16)
            .vm("x", "h0", 100, 8)
            .vm("y", "h0", 100, 7)
            .vm("z", "h0", 100, 1)
            .vm("p", "h1", 100, 8)
            .vm("q", "h2", 100, 8);
        check(&cluster.0, &["h0"], "x->h1, y->h2, z->h2");
    }

    #[test]
    fn a_host_that_is_not_there_is_named() {
        let refusal = restart(&Cluster::new(1, 8, 16).0, &lost(&["h9"]), &PlanOptions::default())
            .unwrap_err();
        assert!(refusal.reason.contains("h9"), "{refusal}");
    }
}
