//! What the goals of a drain promise, on random clusters. `PROPTEST_CASES` sets how many.

#![allow(clippy::unwrap_used)] // a test fails by panicking

#[allow(dead_code)] // shared with other tests, which use more of it
mod common;

use std::collections::BTreeSet;

use ballast_model::plan::StepCause;
use ballast_model::snapshot::PlacedVm;
use ballast_model::{ClusterSnapshot, DrainGoal, HostId, HostState, Plan, VmId};
use ballast_placement::{Causes, PlanOptions, plan, usage};
use common::{after, clusters, config, goals};
use proptest::prelude::*;

/// Clusters in which at least one host drains, each with a goal of its own or none.
fn draining() -> impl Strategy<Value = ClusterSnapshot> {
    (clusters(), any::<prop::sample::Index>()).prop_map(|(mut snapshot, drained)| {
        let drained = drained.index(snapshot.hosts.len());
        snapshot.hosts.values_mut().nth(drained).unwrap().state = HostState::Draining;
        snapshot
    })
}

/// The same without rules, so that two figures tell what a plan leaves wrong, and without goals.
fn plain() -> impl Strategy<Value = ClusterSnapshot> {
    draining().prop_map(|mut snapshot| {
        snapshot.rules.clear();
        snapshot.hosts.values_mut().for_each(|host| host.drain_goal = None);
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
    #![proptest_config(config())]

    #[test]
    fn no_usual_plan_empties_hosts_sooner_than_the_fastest(snapshot in plain()) {
        let outcome = |drain: DrainGoal| {
            let planning = plan(&snapshot, &PlanOptions { drain, ..PlanOptions::default() }).unwrap();
            (left_and_over(&after(&snapshot, &planning.plan)), planning.report.emptied)
        };
        let (fastest, usual) = (outcome(DrainGoal::Fastest), outcome(DrainGoal::Balanced));
        prop_assert!(fastest <= usual, "{:?}, {:?} by the usual plan", fastest, usual);
    }

    #[test]
    fn a_plan_that_is_to_disturb_least_moves_no_more_of_the_others(snapshot in plain()) {
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

    #[test]
    fn nothing_moves_for_balance_while_any_host_drains_with_least_disturbance(
        snapshot in draining(),
        drain in goals(),
    ) {
        let planned = plan(&snapshot, &PlanOptions { drain, ..PlanOptions::default() }).unwrap().plan;
        let mut hosts = snapshot.hosts.values().filter(|host| host.state == HostState::Draining);
        let is_quiet = hosts.any(|host| {
            host.drain_goal.unwrap_or(drain) == DrainGoal::LeastDisturbing
        });
        let waits = planned.steps.iter().any(|step| step.cause == StepCause::Balance);
        prop_assert!(!(is_quiet && waits), "{:?}", planned.steps);
    }
}
