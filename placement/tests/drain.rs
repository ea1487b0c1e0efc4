//! What the goals of a drain promise, on random clusters. `PROPTEST_CASES` sets how many.

#![allow(clippy::unwrap_used)] // a test fails by panicking

#[allow(dead_code)] // shared with other tests, which use more of it
mod common;

use std::collections::BTreeSet;

use ballast_model::snapshot::PlacedVm;
use ballast_model::{ClusterSnapshot, HostId, HostState, Plan, VmId};
use ballast_placement::{Causes, DrainGoal, PlanOptions, plan, usage};
use common::{after, clusters};
use proptest::prelude::*;

/// Simpler clusters tried after one that fails, at most: a failure is to be seen soon.
const SHRINKS_MAX: u32 = 100;

/// Clusters without rules, so that two figures tell what a plan leaves wrong; at least one host drains.
fn draining() -> impl Strategy<Value = ClusterSnapshot> {
    (clusters(), any::<prop::sample::Index>()).prop_map(|(mut snapshot, drained)| {
        snapshot.rules.clear();
        let drained = drained.index(snapshot.hosts.len());
        snapshot.hosts.values_mut().nth(drained).unwrap().state = HostState::Draining;
        snapshot
    })
}

fn drains(snapshot: &ClusterSnapshot, host: &HostId) -> bool {
    snapshot.hosts[host].state == HostState::Draining
}

/// VMs on hosts that drain, and bytes of memory over capacity.
fn left_and_over(snapshot: &ClusterSnapshot) -> (usize, u64) {
    let left = |vm: &&PlacedVm| drains(snapshot, &vm.host);
    let over = usage(snapshot).unwrap().into_values().map(|usage| usage.memory_over.get());
    (snapshot.vms.values().filter(left).count(), over.sum())
}

/// How many VMs move that are not on a host that drains.
fn others(snapshot: &ClusterSnapshot, plan: &Plan) -> usize {
    let moved: BTreeSet<&VmId> = plan.steps.iter().map(|step| &step.vm).collect();
    moved.into_iter().filter(|vm| !drains(snapshot, &snapshot.vms[*vm].host)).count()
}

proptest! {
    #![proptest_config(ProptestConfig {
        max_shrink_iters: SHRINKS_MAX,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_usual_plan_empties_hosts_sooner_than_the_fastest(snapshot in draining()) {
        let outcome = |drain: DrainGoal| {
            let planning = plan(&snapshot, &PlanOptions { drain, ..PlanOptions::default() }).unwrap();
            (left_and_over(&after(&snapshot, &planning.plan)), planning.report.emptied)
        };
        let (fastest, usual) = (outcome(DrainGoal::Fastest), outcome(DrainGoal::Balanced));
        prop_assert!(fastest <= usual, "{:?}, {:?} by the usual plan", fastest, usual);
    }

    #[test]
    fn a_plan_that_is_to_disturb_least_moves_no_more_of_the_others(snapshot in draining()) {
        let planned = |drain, causes| {
            plan(&snapshot, &PlanOptions { drain, causes, ..PlanOptions::default() }).unwrap().plan
        };
        let least = planned(DrainGoal::LeastDisturbing, Causes::ALL);
        let usual = planned(DrainGoal::Balanced, Causes::FORCED);
        if left_and_over(&after(&snapshot, &usual)) == left_and_over(&after(&snapshot, &least)) {
            let (few, many) = (others(&snapshot, &least), others(&snapshot, &usual));
            prop_assert!(few <= many, "{} others, {} by the usual plan", few, many);
        }
    }
}
