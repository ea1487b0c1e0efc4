//! What the goal of a drain asks of a target, besides what every forced move does.
//!
//! For time it is list scheduling: the longest transfers are placed first, each where it would end first with all that
//! its two hosts have to send and to take by then (Graham, *Bounds on multiprocessing timing anomalies*, 1969). A side
//! of a host is done no sooner than its link has carried all bytes, nor than so many transfers at a time take when each
//! goes at the speed of the slower of its two links. While the draining host is what limits them, all targets end
//! equally soon, and the choice among them is the usual one.

use std::cmp::Reverse;
use std::time::Duration;

use ballast_model::plan::StepCost;
use ballast_model::{BytesPerSec, DrainGoal};

use super::target::Fit;
use crate::cost;
use crate::door::problem::{HostIx, Problem, VmIx};
use crate::door::state::{Move, State};
use crate::options::PlanOptions;

/// What the choices of one drain have in common.
pub(super) enum Aim {
    /// Nothing but what every target is weighed by.
    Usual,
    /// Each transfer ends as soon as can be.
    Soon(Traffic),
    /// Each transfer is short, and little comes above the ceiling, given as a share of the CPU capacity.
    Quiet { ceiling: f64 },
}

impl Aim {
    pub(super) fn new(problem: &Problem<'_>, options: &PlanOptions) -> Self {
        match options.drain {
            DrainGoal::Balanced => Self::Usual,
            DrainGoal::Fastest => Self::Soon(Traffic::new(problem, options.host_moves_max)),
            DrainGoal::LeastDisturbing => Self::Quiet { ceiling: options.cpu_ceiling.get() },
        }
    }

    /// Counts moves made since the last time; `moves` are all of the plan so far.
    pub(super) fn note(&mut self, problem: &Problem<'_>, moves: &[Move]) {
        if let Self::Soon(traffic) = self {
            traffic.note(problem, moves);
        }
    }

    /// Whether the goal asks for nothing but what every target is weighed by.
    pub(super) fn is_usual(&self) -> bool {
        matches!(self, Self::Usual)
    }

    /// Adds what counts for the goal to targets of the VM.
    pub(super) fn weigh(
        &self,
        state: &State<'_, '_>,
        vm: VmIx,
        fits: impl Iterator<Item = Fit>,
    ) -> impl Iterator<Item = Fit> {
        let mut transfer = Transfer { vm, known: Vec::new() };
        fits.map(move |mut fit| {
            match self {
                Self::Usual => {}
                Self::Soon(traffic) => {
                    let cost = transfer.cost(state, fit.host);
                    fit.seconds = traffic.end(state.problem, state.at(vm), fit.host, cost);
                }
                Self::Quiet { ceiling } => {
                    fit.seconds = transfer.cost(state, fit.host).duration.as_secs_f64();
                    fit.above = rise_above(state, vm, fit.host, *ceiling);
                }
            }
            fit
        })
    }
}

/// The VMs in the order in which a drain places them: the large ones first, which are the hardest to place; the longest
/// transfers before all others where time matters.
pub(super) fn order(problem: &Problem<'_>, vms: &mut [VmIx], goal: DrainGoal) {
    vms.sort_by_cached_key(|vm| {
        let info = problem.vm(*vm);
        let from = problem.host(info.host).host;
        let seconds = match goal {
            DrainGoal::Fastest => cost::of_move(info.vm, from, from).duration,
            DrainGoal::Balanced | DrainGoal::LeastDisturbing => Duration::ZERO,
        };
        (Reverse(seconds), Reverse(info.memory), *vm)
    });
}

/// By how many millicores the load of the host above its ceiling rises with the VM.
fn rise_above(state: &State<'_, '_>, vm: VmIx, host: HostIx, ceiling: f64) -> f64 {
    let (before, own) = (state.cpu(host) as f64, state.problem.vm(vm).cpu as f64);
    let ceiling = ceiling * state.problem.host(host).cpu as f64;
    (before + own - before.max(ceiling)).max(0.0)
}

/// What moving one VM costs; most links are alike.
struct Transfer {
    vm: VmIx,
    known: Vec<(BytesPerSec, StepCost)>,
}

impl Transfer {
    fn cost(&mut self, state: &State<'_, '_>, to: HostIx) -> StepCost {
        let problem = state.problem;
        let (from, to) = (problem.host(state.at(self.vm)).host, problem.host(to).host);
        let link = cost::link(to);
        if let Some((_, cost)) = self.known.iter().find(|(known, _)| *known == link) {
            return *cost;
        }
        let cost = cost::of_move(problem.vm(self.vm).vm, from, to);
        self.known.push((link, cost));
        cost
    }
}

/// What hosts have to send and to take.
pub(super) struct Traffic {
    sent: Vec<Load>,
    taken: Vec<Load>,
    /// Transfers of a host at a time, each way.
    slots: f64,
    /// Moves that are counted.
    noted: usize,
}

/// Of one side of a host.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    bytes: f64,
    /// That the transfers take, each alone on its two links.
    seconds: f64,
}

impl Load {
    fn with(self, cost: StepCost) -> Self {
        Self {
            bytes: self.bytes + cost.bytes.get() as f64,
            seconds: self.seconds + cost.duration.as_secs_f64(),
        }
    }

    /// Seconds until all of it is through.
    fn busy(self, link: BytesPerSec, slots: f64) -> f64 {
        (self.bytes / link.get() as f64).max(self.seconds / slots)
    }
}

impl Traffic {
    fn new(problem: &Problem<'_>, host_moves_max: u32) -> Self {
        let idle = vec![Load::default(); problem.hosts.len()];
        Self { sent: idle.clone(), taken: idle, slots: f64::from(host_moves_max), noted: 0 }
    }

    fn note(&mut self, problem: &Problem<'_>, moves: &[Move]) {
        for step in &moves[self.noted..] {
            let cost = cost::of_step(problem, step);
            for side in [&mut self.sent[step.from.0], &mut self.taken[step.to.0]] {
                *side = side.with(cost);
            }
        }
        self.noted = moves.len();
    }

    /// Seconds until one more transfer has ended.
    fn end(&self, problem: &Problem<'_>, from: HostIx, to: HostIx, cost: StepCost) -> f64 {
        let busy = |side: &[Load], host: HostIx| {
            side[host.0].with(cost).busy(cost::link(problem.host(host).host), self.slots)
        };
        busy(&self.sent, from).max(busy(&self.taken, to)).max(cost.duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gib;

    #[test]
    fn a_side_is_done_when_its_link_and_its_slots_are() {
        let cost = |count| StepCost { bytes: gib(count), duration: Duration::from_secs(count) };
        let load = Load::default().with(cost(4)).with(cost(2));
        let gib_per_sec = |count| BytesPerSec(gib(count).get());
        assert_eq!(load.busy(gib_per_sec(1), 2.0), 6.0);
        // The other ends carry 1 GiB/s each, so that two at a time are what limits this one.
        assert_eq!(load.busy(gib_per_sec(4), 2.0), 3.0);
    }
}
