//! How good a state is: one struct, field order is priority.

use crate::door::problem::{RuleIx, VmIx};
use crate::door::state::{Move, State};
use crate::options::PlanOptions;

/// Less is better in every field.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub(crate) struct Quality {
    /// Faults of hard rules beyond those there were at the beginning: nothing is worth breaking what is whole.
    broken: u64,
    /// VMs on hosts that are being emptied, and faults of hard rules.
    hard: u64,
    /// Bytes of memory over capacity.
    memory_over: u64,
    /// Weight of preferences that are not met.
    soft: u64,
    /// Millicores above the CPU ceiling, over all hosts.
    cpu_over: u64,
    /// VMs on hosts under suspicion.
    suspected: usize,
    /// The spread, and the least gain for each VM moved or step made, times its price.
    cost: f64,
}

/// Differences of the last field below this are noise.
const NOISE: f64 = 1e-9;

impl Quality {
    /// Of a state reached from `start`.
    pub(crate) fn of(start: &State<'_, '_>, state: &State<'_, '_>, options: &PlanOptions) -> Self {
        let is_moved = |vm: &VmIx| start.at(*vm) != state.at(*vm);
        Self::priced(start, state, state.problem.vm_ixs().filter(is_moved), options)
    }

    /// Of a state reached from `start` in these steps: a VM that goes by way of a third host pays for both.
    pub(crate) fn after_steps(
        start: &State<'_, '_>,
        state: &State<'_, '_>,
        steps: &[Move],
        options: &PlanOptions,
    ) -> Self {
        Self::priced(start, state, steps.iter().map(|step| step.vm), options)
    }

    fn priced(
        start: &State<'_, '_>,
        state: &State<'_, '_>,
        moved: impl Iterator<Item = VmIx>,
        options: &PlanOptions,
    ) -> Self {
        let problem = state.problem;
        let mut quality = Self { cost: state.sums().spread(), ..Self::default() };
        for (n, rule) in problem.rules.iter().enumerate() {
            let fault = u64::from(state.fault(RuleIx(n)));
            if rule.is_must() {
                quality.hard += fault;
                quality.broken += fault.saturating_sub(u64::from(start.fault(RuleIx(n))));
            } else {
                quality.soft += fault * rule.weight();
            }
        }
        for host in problem.host_ixs() {
            let info = problem.host(host);
            let vms = state.vms_on(host).len();
            if info.draining() {
                quality.hard += vms as u64;
            }
            if info.quarantined() {
                quality.suspected += vms;
            }
            let over = state.memory_taken(host).saturating_sub(info.memory);
            quality.memory_over = quality.memory_over.saturating_add(over);
            if info.counts() {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
                let ceiling = (options.cpu_ceiling.get() * info.cpu as f64) as u64;
                let over = state.cpu(host).saturating_sub(ceiling);
                quality.cpu_over = quality.cpu_over.saturating_add(over);
            }
        }
        let price: f64 = moved.map(|vm| problem.vm(vm).price).sum();
        quality.cost += options.gain_floor() * price;
        quality
    }

    /// Whether anything but balance could be better.
    pub(crate) fn is_wrong(&self) -> bool {
        Self { cost: 0.0, ..*self } != Self::default()
    }

    /// Whether it is better in anything but balance.
    pub(crate) fn is_less_wrong_than(&self, other: &Self) -> bool {
        Self { cost: 0.0, ..*self } < Self { cost: 0.0, ..*other }
    }

    pub(crate) fn is_better_than(&self, other: &Self) -> bool {
        let (mine, theirs) = (Self { cost: 0.0, ..*self }, Self { cost: 0.0, ..*other });
        match mine.partial_cmp(&theirs) {
            Some(std::cmp::Ordering::Equal) => self.cost < other.cost - NOISE,
            order => order == Some(std::cmp::Ordering::Less),
        }
    }
}
