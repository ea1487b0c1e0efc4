//! How hosts are emptied, by the [goal](DrainGoal) of their drain.
//!
//! ```text
//!  Balanced         the usual plan
//!  Fastest          drain ─▶ the rest, when the hosts are empty          the soonest of several, the usual plan among them
//!  LeastDisturbing  drain; room made by few for who cannot leave then   nothing else while a host drains
//! ```
//!
//! Where no host drains, every goal is the usual plan. Each way ends with a leg that finds nothing, so that it is as
//! settled as the usual one.

mod fastest;
mod undisturbed;

use ballast_model::Refusal;

use crate::door::problem::{HostInfo, Problem};
use crate::options::{DrainGoal, PlanOptions};
use crate::planner::Leg;
use crate::route;

/// All steps of a plan, and the options that say what it was to do.
///
/// # Errors
/// `InvalidArgument` when the snapshot's amounts are too large for the solver.
pub(crate) fn plan(
    problem: &Problem<'_>,
    options: &PlanOptions,
) -> Result<(Leg, PlanOptions), Refusal> {
    let is_draining = options.causes.drain && problem.hosts.iter().any(HostInfo::draining);
    let usual = PlanOptions { drain: DrainGoal::Balanced, ..*options };
    match options.drain {
        DrainGoal::Fastest if is_draining => {
            Ok((fastest::plan(problem, &usual, &urgent(options))?, *options))
        }
        DrainGoal::LeastDisturbing if is_draining => {
            let urgent = urgent(options);
            Ok((undisturbed::plan(problem, &usual, &urgent)?, urgent))
        }
        _ => Ok((route::usual(problem, &usual)?, usual)),
    }
}

/// Without what can wait until the hosts are empty.
fn urgent(options: &PlanOptions) -> PlanOptions {
    PlanOptions { causes: options.causes.urgent(), ..*options }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cluster;
    use ballast_model::Planning;
    use ballast_model::plan::StepCause;

    fn planned(cluster: &Cluster, drain: DrainGoal) -> Planning {
        crate::plan(&cluster.0, &PlanOptions { drain, ..PlanOptions::default() }).unwrap()
    }

    /// `h1` is hot, `h0` has two VMs.
    fn hot() -> Cluster {
        (0..6)
            .fold(Cluster::new(4, 8, 64), |cluster, n| {
                cluster.vm(&format!("hot-{n}"), "h1", 1_000, 4)
            })
            .vm("a", "h0", 500, 4)
            .vm("b", "h0", 500, 4)
    }

    #[test]
    fn where_no_host_drains_every_goal_is_the_usual_plan() {
        let usual = planned(&hot(), DrainGoal::Balanced);
        assert!(!usual.plan.steps.is_empty());
        for goal in DrainGoal::ALL {
            assert_eq!(planned(&hot(), goal), usual, "{goal}");
        }
    }

    #[test]
    fn balance_begins_when_the_hosts_are_empty() {
        let planning = planned(&hot().draining("h0"), DrainGoal::Fastest);
        let steps = &planning.plan.steps;
        let drains: Vec<usize> =
            (0..steps.len()).filter(|n| steps[*n].cause == StepCause::Drain).collect();
        assert_eq!(drains, [0, 1]);
        assert!(steps.len() > 2, "{steps:?}");
        assert!(steps[2..].iter().all(|step| step.after.starts_with(&drains)), "{steps:?}");
        assert!(planning.report.emptied.unwrap() < planning.report.makespan);
    }

    #[test]
    fn nobody_else_moves_while_a_host_drains_with_least_disturbance() {
        let with_vms = planned(&hot().draining("h0"), DrainGoal::LeastDisturbing).plan;
        assert!(with_vms.steps.iter().all(|step| step.from.as_str() == "h0"), "{with_vms:?}");
        assert_eq!(with_vms.steps.len(), 2);
        let empty = planned(&hot().draining("h3"), DrainGoal::LeastDisturbing);
        assert_eq!(empty.plan.steps, []);
        assert_eq!(empty.report.emptied, None);
    }
}
