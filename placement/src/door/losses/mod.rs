//! Whether the cluster can lose hosts (N+k): the one definition.
//!
//! So many failures are tolerated when, whichever so many hosts are lost, every VM that then runs nowhere fits by its
//! memory on a host that is left, takes VMs and offers what the VM needs. Rules among VMs and CPU are not asked: what a
//! restart cannot keep of them it weighs when it comes to that.
//!
//! A VM that moves takes memory on both its hosts and is lost only with both: before the commit it goes on at its
//! source, after it at its target. That is the hardest moment of a move: what fits then fits before and after, since
//! whoever found a place still has it. So one question is enough for a step, and steps that run at the same time are
//! covered by the state in which all of them are under way.
//!
//! Lost VMs are packed the largest first, each into the least room that suffices, and once more each into the most. Sets
//! of hosts that a count shows to be harmless are not looked at, and of the others a bounded number, those with the most VMs
//! first.

mod inquiry;
mod survey;

use std::collections::BTreeMap;

pub(crate) use inquiry::{Inquiry, Newcomers};
pub(crate) use survey::{Survey, Underway, first_to_start, is_kept};

use super::problem::{HostInfo, HostIx, Problem, VmInfo, VmIx};
use super::state::State;

/// What may be lost, and what is known of the VMs beforehand.
#[derive(Debug, Clone, Default)]
pub(crate) struct Losses {
    /// How many hosts may be lost at the same time.
    failures: usize,
    /// By VM, whether every host that takes VMs offers what it needs; empty when nothing may be lost.
    plain: Vec<bool>,
    all_plain: bool,
    /// Memory of the largest VM in bytes.
    largest: u64,
}

/// What stands against a place when so many hosts may be lost, after the words for the place.
pub(crate) fn strands(failures: usize) -> String {
    let hosts = if failures == 1 { "host" } else { "hosts" };
    format!("the loss of {failures} {hosts} would leave VMs without a place")
}

impl Losses {
    pub(crate) fn new(hosts: &[HostInfo<'_>], vms: &[VmInfo<'_>], failures: usize) -> Self {
        let failures = failures.min(hosts.len());
        if failures == 0 {
            return Self::default();
        }
        let mut counting = hosts.iter().filter(|host| host.counts());
        let mut by_all = counting.next().map(|host| host.host.offers.clone()).unwrap_or_default();
        counting.for_each(|host| by_all.retain(|word| host.host.offers.contains(word)));
        let is_plain = |info: &VmInfo<'_>| {
            let vm = info.vm;
            !vm.one_numa_node && vm.local_disks.get() == 0 && vm.needs.is_subset(&by_all)
        };
        let plain: Vec<bool> = vms.iter().map(is_plain).collect();
        let all_plain = plain.iter().all(|plain| *plain);
        let largest = vms.iter().map(|vm| vm.memory).max().unwrap_or(0);
        Self { failures, plain, all_plain, largest }
    }
}

/// What is on each host. A VM that moves is on several.
#[derive(Debug, Clone)]
pub(crate) struct Occupancy {
    /// Memory taken by host, in bytes.
    taken: Vec<u64>,
    on: Vec<Vec<VmIx>>,
    moving: BTreeMap<VmIx, Vec<HostIx>>,
}

impl Occupancy {
    pub(crate) fn new(state: &State<'_, '_>) -> Self {
        let problem = state.problem;
        let mut occupancy = Self {
            taken: problem.host_ixs().map(|host| state.memory_taken(host)).collect(),
            on: problem
                .host_ixs()
                .map(|host| state.vms_on(host).iter().copied().collect())
                .collect(),
            moving: BTreeMap::new(),
        };
        for vm in problem.vm_ixs() {
            let info = problem.vm(vm);
            let is_in = state.vms_on(state.at(vm)).contains(&vm);
            if is_in && info.bound_for.is_some_and(|bound| bound != info.host) {
                occupancy.on[info.host.0].push(vm);
                occupancy.moving.insert(vm, vec![info.host, state.at(vm)]);
            }
        }
        occupancy
    }

    /// The VM, which is on `from`, is on its way to `to` as well.
    pub(crate) fn arrive(&mut self, problem: &Problem<'_>, vm: VmIx, from: HostIx, to: HostIx) {
        self.taken[to.0] = self.taken[to.0].saturating_add(problem.vm(vm).memory);
        self.on[to.0].push(vm);
        self.moving.entry(vm).or_insert_with(|| vec![from]).push(to);
    }

    /// The VM, which is on its way, leaves one of its hosts.
    pub(crate) fn depart(&mut self, problem: &Problem<'_>, vm: VmIx, host: HostIx) {
        self.taken[host.0] = self.taken[host.0].saturating_sub(problem.vm(vm).memory);
        let take_one = |list: &mut Vec<VmIx>| {
            if let Some(n) = list.iter().rposition(|on| *on == vm) {
                list.swap_remove(n);
            }
        };
        take_one(&mut self.on[host.0]);
        if let Some(hosts) = self.moving.get_mut(&vm) {
            if let Some(n) = hosts.iter().position(|on| *on == host) {
                hosts.remove(n);
            }
            if hosts.len() < 2 {
                self.moving.remove(&vm);
            }
        }
    }

    /// VMs that run nowhere when these hosts are lost; one that was to move among them is named more than once.
    fn lost_with(&self, lost: &[HostIx]) -> Vec<VmIx> {
        let mut vms = Vec::new();
        for host in lost {
            let is_lost = |vm: &&VmIx| match self.moving.get(vm) {
                None => true,
                Some(hosts) => hosts.iter().all(|on| lost.contains(on)),
            };
            vms.extend(self.on[host.0].iter().filter(is_lost));
        }
        vms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cluster;
    use ballast_model::ClusterSnapshot;

    fn tolerating(failures: u32, cluster: Cluster) -> ClusterSnapshot {
        let mut snapshot = cluster.0;
        snapshot.policy.failures_tolerated = failures;
        snapshot
    }

    /// Whether the VM may go to the host.
    fn keeps(snapshot: &ClusterSnapshot, vm: &str, to: &str) -> bool {
        let problem = Problem::new(snapshot).unwrap();
        let vm = problem.find_vm(&vm.parse().unwrap()).unwrap();
        let to = problem.find_host(&to.parse().unwrap()).unwrap();
        Survey::new(&State::new(&problem), vm).keeps(to)
    }

    #[test]
    fn a_vm_on_its_way_has_a_place_on_either_host() {
        // h0 is full and h1 empty: whichever is lost while `a` moves, the other has room for what it holds.
        let full = Cluster::new(2, 8, 16).vm("a", "h0", 100, 8).vm("b", "h0", 100, 8);
        assert!(keeps(&tolerating(1, full), "a", "h1"));
    }

    #[test]
    fn what_is_held_for_a_move_is_room_for_nobody_else() {
        // While `a` is on two hosts none has 10 GiB left for `c`.
        let cluster = || {
            Cluster::new(3, 8, 16)
                .vm("a", "h0", 100, 8)
                .vm("b", "h1", 100, 2)
                .vm("c", "h2", 100, 10)
        };
        assert!(!keeps(&tolerating(1, cluster()), "a", "h1"));
        assert!(keeps(&tolerating(0, cluster()), "a", "h1"));
    }

    #[test]
    fn steps_that_are_harmless_one_by_one_may_not_be_so_together() {
        let cluster = Cluster::new(4, 8, 16)
            .vm("a", "h0", 100, 4)
            .vm("b", "h0", 100, 4)
            .vm("c", "h3", 100, 14)
            .vm("d", "h2", 100, 4);
        let snapshot = tolerating(1, cluster);
        let problem = Problem::new(&snapshot).unwrap();
        let [a, b] = ["a", "b"].map(|vm| problem.find_vm(&vm.parse().unwrap()).unwrap());
        let [h0, h1, h2] = [0, 1, 2].map(HostIx);
        let mut underway = Underway::new(&State::new(&problem)).unwrap();
        underway.note(a, h0, h2);
        assert!(underway.keeps([]));
        underway.note(b, h0, h1);
        assert!(!underway.keeps([]), "14 GiB are free nowhere for c");
        assert!(underway.keeps([(a, h0), (b, h0)]), "h0 has them when both have left");
    }
}
