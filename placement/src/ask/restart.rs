//! Hosts are lost: where does each of their VMs start again?
//!
//! Nobody moves a VM that still runs for it: at such a moment the network has better things to do. VMs that
//! rules bind come first, then the largest, so that what is left over is little; a VM placed a moment ago
//! gives way once to one that finds no room. A VM whose disks were on a lost host starts nowhere.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use ballast_model::snapshot::PlacedVm;
use ballast_model::{Bytes, ClusterSnapshot, HostId, HostState, Refusal, RefusalCode, VmId};

use super::packing::{start_all, turns};
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
    waiting.iter().for_each(|vm| state.lift(*vm));
    let (diskless, waiting): (Vec<VmIx>, Vec<VmIx>) =
        waiting.into_iter().partition(|vm| disks_lost(problem.vm(*vm).vm).is_some());
    let left = start_all(&mut state, waiting.iter().copied(), options, |_| true);
    let mut order: Vec<VmIx> = waiting.iter().copied().filter(|vm| !left.contains(vm)).collect();
    let turns = turns(&problem, &order);
    order.sort_by_key(|vm| (turns[vm], Reverse(problem.vm(*vm).memory), *vm));
    let start = |vm: VmIx| {
        let id = |host| problem.host(host).id.clone();
        let info = problem.vm(vm);
        Start { vm: info.id.clone(), from: info.vm.host.clone(), to: id(state.at(vm)) }
    };
    let without_disks = diskless.iter().filter_map(|vm| {
        let info = problem.vm(*vm);
        Some((info.id.clone(), disks_lost(info.vm)?))
    });
    let without_place = left.iter().map(|vm| (problem.vm(*vm).id.clone(), no_place(&state, *vm)));
    Ok(Restart {
        starts: order.into_iter().map(start).collect(),
        stranded: without_disks.chain(without_place).collect(),
    })
}

/// Why a VM cannot start elsewhere now that its host is lost: its disks are lost with it.
pub(super) fn disks_lost(vm: &PlacedVm) -> Option<Refusal> {
    if vm.local_disks == Bytes::ZERO {
        return None;
    }
    Some(Refusal::new(
        RefusalCode::HostFailure,
        format!("{} of disks of VM {} were on host {} alone", vm.local_disks, vm.id, vm.host),
        format!("bring host {} back, or restore the disks on another host", vm.host),
    ))
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
    use crate::scenario::parse;
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

    fn check_text(text: &str, hosts: &[&str], expected: &str) {
        check(&parse(text).unwrap().snapshot, hosts, expected);
    }

    #[test]
    fn what_others_need_starts_before_them_and_with_room_for_them() {
        // The host that levels best for db has no room for app, which is near it.
        let text = "host h0 8 16G : app 1 8G, db 1 4G
                    host h1 8 16G : x 1 6G
                    host h2 8 16G : y 4 2G
                    rule link: app near db";
        check_text(text, &["h0"], "db->h2, app->h2");
    }

    #[test]
    fn a_chain_of_needs_starts_from_its_end() {
        let text = "host h0 8 16G : a 1 4G, b 1 3G, c 1 2G, w 1 5G
                    host h1 8 16G
                    rule one: a near b
                    rule two: b near c";
        check_text(text, &["h0"], "w->h1, c->h1, b->h1, a->h1");
    }

    #[test]
    fn a_group_starts_together_or_as_far_as_there_is_room() {
        let hosts = "host h0 8 32G : a 1 6G, b 1 6G
                     host h1 8 16G : x 1 6G
                     rule pack: a b together\n";
        check_text(&format!("{hosts}host h2 8 16G : y 4 3G"), &["h0"], "a->h2, b->h2");
        let refused = "rule pack allows its VMs in 1 places at once, VM b on h2 would be one more";
        check_text(
            &format!("{hosts}host h2 8 16G : y 4 8G"),
            &["h0"],
            &format!("a->h1, b: {refused}"),
        );
    }

    #[test]
    fn one_whose_place_others_need_does_not_give_way() {
        // Only without db would big fit, and then app would be without it.
        let text = "host h0 8 16G : app 1 2G, db 1 4G, big 1 12G
                    host h1 8 16G : x 1 2G
                    host h2 8 16G : y 1 10G
                    rule link: app near db
                    rule big: big only on h1";
        check_text(text, &["h0"], "big->h1, db->h2, app->h2");
    }

    #[test]
    fn disks_on_the_lost_host_are_lost_with_it() {
        let text = "host h0 8 16G : a 1 4G, b 1 4G disks=20G
                    host h1 8 16G";
        check_text(text, &["h0"], "a->h1, b: 20.0 GiB of disks of VM b were on host h0 alone");
    }

    #[test]
    fn a_host_that_is_not_there_is_named() {
        let refusal = restart(&Cluster::new(1, 8, 16).0, &lost(&["h9"]), &PlanOptions::default())
            .unwrap_err();
        assert!(refusal.reason.contains("h9"), "{refusal}");
    }
}
