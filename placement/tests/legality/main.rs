//! Every kind of rule, hard and soft, overcommit, pools and needs: no order and concurrency that a plan allows breaks
//! anything that held before. The executor and the judge know the words of the model only, not the planner.
//! `PROPTEST_CASES` sets how many clusters are seen.

#![allow(clippy::unwrap_used)] // a test fails by panicking

#[path = "../common/mod.rs"]
#[allow(dead_code)] // shared with other tests, which use more of it
mod common;
mod generate;
mod judge;

use std::collections::BTreeSet;

use ballast_model::Plan;
use ballast_placement::{PlanOptions, plan};
use common::{config, goals};
use generate::clusters_of_all_kinds;
use judge::Judge;
use proptest::prelude::*;

/// Executes the plan with as much concurrency as `choices` picks, judging the world after every start and end.
fn execute(judge: &mut Judge<'_>, plan: &Plan, choices: &[u16]) -> Result<(), TestCaseError> {
    let before = judge.faults_while_running();
    let (mut running, mut done) = (BTreeSet::new(), BTreeSet::new());
    let mut choices = choices.iter().copied().cycle();
    while done.len() < plan.steps.len() {
        let is_ready = |n: &usize| {
            let step = &plan.steps[*n];
            !done.contains(n) && !running.contains(n) && step.after.iter().all(|a| done.contains(a))
        };
        let starts = (0..plan.steps.len()).filter(is_ready).map(|n| (n, true));
        let events: Vec<_> = starts.chain(running.iter().map(|n| (*n, false))).collect();
        prop_assert!(!events.is_empty(), "dead end");
        let (n, is_start) = events[usize::from(choices.next().unwrap()) % events.len()];
        let step = &plan.steps[n];
        if is_start {
            prop_assert_eq!(judge.host_of(&step.vm), Some(&step.from), "step {} starts", n);
            judge.start(&step.vm, &step.to);
            running.insert(n);
        } else {
            judge.end(&step.vm, &step.to);
            running.remove(&n);
            done.insert(n);
        }
        for (what, fault) in judge.faults_while_running() {
            let allowed = before.get(&what).copied().unwrap_or(0);
            prop_assert!(
                fault <= allowed,
                "{what}: {fault}, {allowed} before, at step {n} of {plan:?}"
            );
        }
    }
    Ok(())
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
        execute(&mut Judge::new(&snapshot), &planning.plan, &choices)?;
    }
}
