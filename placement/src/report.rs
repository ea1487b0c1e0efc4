//! What a finished plan comes to: what each step buys, when it runs, and how far from level the end is.

use std::time::Duration;

use ballast_model::plan::{CurvePoint, PlanReport, StepCost, StepTiming};
use ballast_model::{Plan, Ratio};

use crate::door::ground::Floor;
use crate::door::state::{Move, State};
use crate::level;
use crate::options::PlanOptions;
use crate::order::{HostLimits, Order, Role, Step, Timing};

/// Of the plan whose steps these moves are, and which leads to `end`.
pub(crate) fn of(
    plan: &Plan,
    moves: &[Move],
    end: &State<'_, '_>,
    options: &PlanOptions,
) -> PlanReport {
    let start = State::new(end.problem);
    let after = plan.steps.iter().map(|step| step.after.as_slice());
    let timing = timing(&start, moves, after, options);
    let timings = (0..moves.len()).map(|n| StepTiming {
        stage: timing.stages[n],
        start: timing.starts[n],
        duration: timing.durations[n],
    });
    PlanReport {
        curve: curve(plan),
        timings: timings.collect(),
        makespan: timing.makespan,
        emptied: last_arrival(&start, moves, &timing),
        imbalance_bound: level::imbalance_bound(&start, end),
    }
}

fn curve(plan: &Plan) -> Vec<CurvePoint> {
    let first = CurvePoint { moves: 0, cost: StepCost::ZERO, imbalance: plan.imbalance_before };
    let mut curve = vec![first];
    let mut reached = first;
    for step in &plan.steps {
        reached = CurvePoint {
            moves: reached.moves + 1,
            cost: reached.cost + step.cost,
            imbalance: Ratio::new(reached.imbalance.get() - step.gain),
        };
        curve.push(reached);
    }
    curve
}

/// When moves that wait for these earlier ones have emptied the hosts that drain, see [`PlanReport::emptied`].
pub(crate) fn emptied(
    start: &State<'_, '_>,
    moves: &[Move],
    after: &[Vec<usize>],
    options: &PlanOptions,
) -> Option<Duration> {
    let timing = timing(start, moves, after.iter().map(Vec::as_slice), options);
    last_arrival(start, moves, &timing)
}

fn last_arrival(start: &State<'_, '_>, moves: &[Move], timing: &Timing) -> Option<Duration> {
    let leaves = |n: &usize| start.problem.host(moves[*n].from).draining();
    (0..moves.len()).filter(leaves).map(|n| timing.starts[n] + timing.durations[n]).max()
}

fn timing<'m>(
    start: &State<'_, '_>,
    moves: &[Move],
    after: impl Iterator<Item = &'m [usize]>,
    options: &PlanOptions,
) -> Timing {
    let steps = moves.iter().zip(after).map(|(step, after)| Step {
        vm: step.vm.number(),
        from: Some(step.from.number()),
        to: step.to.number(),
        role: Role::Final,
        after: after.iter().filter_map(|n| u32::try_from(*n).ok()).collect(),
    });
    let order = Order { steps: steps.collect(), dropped: Vec::new() };
    let limits = |host: u32| HostLimits {
        link: start.problem.hosts[host as usize].host.link.get(),
        incoming_max: options.host_moves_max,
        outgoing_max: options.host_moves_max,
    };
    Timing::estimate(&Floor::new(start), &order, &limits, Duration::ZERO)
}
