//! The objective of a plan: one struct, field order is priority.
//!
//! Every level is a sum of terms, less is better, and a level is looked at only where all above are
//! equal. What a step changes is told in [`TERMS`]; the joint search works on integers and gets the
//! same levels by [`search_table`].
//!
//! | level | terms, with weights where several are added |
//! | --- | --- |
//! | `broken` | faults of hard rules beyond those there were |
//! | `hard` | 1 · faults of hard rules + 1 · VMs on hosts that are being emptied + 1 · VMs on hosts that do not offer what they need |
//! | `memory_over` | memory over capacity |
//! | `soft` | faults of preferences, each times the weight of its rule |
//! | `cpu_unmet` | CPU that VMs are due and hosts do not have |
//! | `cpu_over` | CPU over the ceiling |
//! | `suspected` | VMs on hosts under suspicion |
//! | `cost` | weights of the policy · squared deviations of load ([`crate::score`]) + `gain_min`² · price ([`crate::cost`]) of each VM moved |

use ballast_model::plan::Term;

use crate::core::{ObjectiveTable, Term as SearchTerm};
use crate::door::problem::{RuleIx, VmIx};
use crate::door::state::{Move, State};
use crate::options::PlanOptions;

/// What a step is told to change, in the order of the levels.
pub(crate) const TERMS: [Term; 10] = [
    Term::RuleFaults,
    Term::NeedsUnmet,
    Term::VmsToDrain,
    Term::MemoryOverBytes,
    Term::PreferencesMissed,
    Term::CpuUnmetMillicores,
    Term::CpuOverCeilingMillicores,
    Term::VmsInQuarantine,
    Term::CpuDeviation,
    Term::MemoryDeviation,
];

/// The levels for the joint search. Faults of hard rules, drains and memory come before all of them there; VMs on hosts
/// under suspicion are a preference that weighs less than any rule.
pub(crate) fn search_table() -> ObjectiveTable {
    ObjectiveTable::off()
        .with(SearchTerm::SoftRules, 0, 1)
        .with(SearchTerm::Unmet, 1, 1)
        .with(SearchTerm::Safety, 2, 1)
        .with(SearchTerm::Imbalance, 3, 1)
        .with(SearchTerm::ItemMoves, 3, 1)
}

/// Less is better in every field.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub(crate) struct Quality {
    /// Faults of hard rules beyond those there were at the beginning: nothing is worth breaking what is whole.
    broken: u64,
    /// VMs on hosts that are being emptied or do not offer what they need, and faults of hard rules.
    hard: u64,
    /// Bytes of memory over capacity.
    memory_over: u64,
    /// Weight of preferences that are not met.
    soft: u64,
    /// Millicores that VMs are due and hosts do not have: nobody gets these.
    cpu_unmet: u64,
    /// Millicores above the CPU ceiling, over all hosts.
    cpu_over: u64,
    /// VMs on hosts under suspicion.
    suspected: usize,
    /// The spread, and the least gain for each VM moved or step made, times its price.
    cost: f64,
}

/// What nothing else makes up for: the first fields of a [`Quality`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wrongs {
    broken: u64,
    hard: u64,
    memory_over: u64,
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
        let lacking = problem.reach.choosy().filter(|vm| state.lacks_needed(*vm)).count();
        quality.hard += lacking as u64;
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
                let above = |most: u64| state.cpu(host).saturating_sub(most);
                quality.cpu_unmet = quality.cpu_unmet.saturating_add(above(info.cpu));
                quality.cpu_over = quality.cpu_over.saturating_add(above(ceiling));
            }
        }
        let price: f64 = moved.map(|vm| problem.vm(vm).price).sum();
        quality.cost += options.gain_floor() * price;
        quality
    }

    pub(crate) fn wrongs(&self) -> Wrongs {
        Wrongs { broken: self.broken, hard: self.hard, memory_over: self.memory_over }
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
