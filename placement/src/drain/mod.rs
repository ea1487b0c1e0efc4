//! How hosts are emptied, by the [goal](DrainGoal) of their drain.
//!
//! ```text
//!  Balanced         the usual plan
//!  Fastest          drain ─▶ the rest, when the hosts are empty          the soonest of several, the usual plan among them
//!  LeastDisturbing  drain; room made by few for who cannot leave then   nothing else while a host drains
//! ```
//!
//! A drain may have a goal of its own; then one plan serves all hosts that drain ([`Asked`]). Where no host drains, every
//! goal is the usual plan. Each way ends with a leg that finds nothing, so that it is as
//! settled as the usual one.

mod fastest;
mod undisturbed;

use ballast_model::{DrainGoal, Refusal};

use crate::door::problem::{HostIx, Problem};
use crate::door::state::Cause;
use crate::options::PlanOptions;
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
    let asked = Asked::of(problem, options);
    let usual = PlanOptions { drain: DrainGoal::Balanced, ..*options };
    let urgent = |drain| PlanOptions { drain, causes: options.causes.urgent(), ..*options };
    if asked.is_urgent {
        let goal = DrainGoal::Fastest;
        let rest = if asked.is_quiet { urgent(DrainGoal::Balanced) } else { usual };
        let leg = fastest::plan(problem, &rest, &urgent(goal))?;
        Ok((leg, PlanOptions { drain: goal, ..rest }))
    } else if asked.is_quiet {
        let urgent = urgent(DrainGoal::LeastDisturbing);
        Ok((undisturbed::plan(problem, &usual, &urgent)?, urgent))
    } else {
        Ok((route::usual(problem, &usual)?, usual))
    }
}

/// Whether nothing moves for balance or a preference because a host drains with least disturbance.
pub(crate) fn is_quiet(problem: &Problem<'_>, options: &PlanOptions) -> bool {
    options.causes.drain
        && problem
            .draining
            .iter()
            .any(|host| goal(problem, *host, options) == DrainGoal::LeastDisturbing)
}

/// What the hosts that drain ask for, each by its own goal, or else that of the options.
#[derive(Debug, Clone, Copy)]
struct Asked {
    /// A VM is to leave as soon as can be.
    is_urgent: bool,
    /// What can wait is to wait until no host drains.
    is_quiet: bool,
}

impl Asked {
    fn of(problem: &Problem<'_>, options: &PlanOptions) -> Self {
        let leaves_soon = |vm| {
            let host = problem.vm(vm).host;
            problem.host(host).draining()
                && goal(problem, host, options) == DrainGoal::Fastest
                && problem.may_move(vm, Cause::Drain)
        };
        Self {
            is_urgent: options.causes.drain && problem.vm_ixs().any(leaves_soon),
            is_quiet: is_quiet(problem, options),
        }
    }
}

/// That of the host's own drain, or else that of the options.
fn goal(problem: &Problem<'_>, host: HostIx, options: &PlanOptions) -> DrainGoal {
    problem.host(host).host.drain_goal.unwrap_or(options.drain)
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
