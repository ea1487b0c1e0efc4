//! Every kind of rule, hard and soft, overcommit, pools and needs: no order and concurrency that a plan allows breaks
//! anything that held before. The executor and the judge know the words of the model only, not the planner.
//! `PROPTEST_CASES` sets how many clusters are seen.

#![allow(clippy::unwrap_used)] // a test fails by panicking

#[path = "../common/mod.rs"]
#[allow(dead_code)] // shared with other tests, which use more of it
mod common;
mod generate;
mod judge;

use std::collections::{BTreeMap, BTreeSet};

use ballast_model::snapshot::MoveInFlight;
use ballast_model::{ClusterSnapshot, Plan};
use ballast_placement::{PlanOptions, plan};
use common::{config, goals};
use generate::clusters_of_all_kinds;
use judge::Judge;
use proptest::prelude::*;

/// What can happen while a plan runs.
#[derive(Clone, Copy)]
enum Event<'s> {
    Start(usize),
    End(usize),
    /// A migration under way, which no step waits for.
    Landing(&'s MoveInFlight),
}

/// Executes the plan with as much concurrency as `choices` picks, judging the world after every event.
fn execute(snapshot: &ClusterSnapshot, plan: &Plan, choices: &[u16]) -> Result<(), TestCaseError> {
    let judge = &mut Judge::new(snapshot);
    let allowed = worst_without_plan(judge, &snapshot.migrations);
    let mut flights: Vec<&MoveInFlight> = snapshot.migrations.iter().collect();
    let (mut running, mut done) = (BTreeSet::new(), BTreeSet::new());
    let mut choices = choices.iter().copied().cycle();
    while done.len() < plan.steps.len() {
        let is_ready = |n: &usize| {
            let step = &plan.steps[*n];
            !done.contains(n) && !running.contains(n) && step.after.iter().all(|a| done.contains(a))
        };
        let starts = (0..plan.steps.len()).filter(is_ready).map(Event::Start);
        let mut events: Vec<Event<'_>> =
            starts.chain(running.iter().map(|n| Event::End(*n))).collect();
        prop_assert!(!events.is_empty(), "dead end");
        events.extend(flights.iter().map(|flight| Event::Landing(flight)));
        let what_happens = match events[usize::from(choices.next().unwrap()) % events.len()] {
            Event::Start(n) => {
                let step = &plan.steps[n];
                prop_assert_eq!(judge.host_of(&step.vm), Some(&step.from), "step {} starts", n);
                judge.start(&step.vm, &step.to);
                running.insert(n);
                format!("step {n} starts")
            }
            Event::End(n) => {
                let step = &plan.steps[n];
                judge.end(&step.vm, &step.to);
                running.remove(&n);
                done.insert(n);
                format!("step {n} ends")
            }
            Event::Landing(landed) => {
                judge.end(&landed.vm, &landed.to);
                flights.retain(|flight| flight.vm != landed.vm);
                format!("{} lands", landed.vm)
            }
        };
        for (what, fault) in judge.faults_while_running() {
            let allowed = allowed.get(&what).copied().unwrap_or(0);
            prop_assert!(
                fault <= allowed,
                "{what}: {fault}, {allowed} without the plan, as {what_happens} of {plan:?}"
            );
        }
    }
    Ok(())
}

/// The faults without any step, each the worst it is whichever migrations under way have ended: a plan may mend what one
/// of them breaks, and must not make it worse.
fn worst_without_plan(judge: &Judge<'_>, flights: &[MoveInFlight]) -> BTreeMap<String, u64> {
    let Some((first, rest)) = flights.split_first() else { return judge.faults_while_running() };
    let mut landed = judge.clone();
    landed.end(&first.vm, &first.to);
    let mut worst = worst_without_plan(judge, rest);
    for (what, fault) in worst_without_plan(&landed, rest) {
        let most = worst.entry(what).or_default();
        *most = fault.max(*most);
    }
    worst
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_interleaving_breaks_what_held(
        snapshot in clusters_of_all_kinds(),
        choices in proptest::collection::vec(any::<u16>(), 1..64),
        drain in goals(),
    ) {
        let planning = plan(&snapshot, &PlanOptions { drain, ..PlanOptions::default() }).unwrap();
        execute(&snapshot, &planning.plan, &choices)?;
    }
}
