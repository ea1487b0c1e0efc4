//! What of the objective a step changes, and by how much.

use ballast_model::plan::{Term, TermChange};

use crate::door::problem::{HostIx, VmIx};
use crate::door::state::State;
use crate::objective::TERMS;
use crate::options::PlanOptions;
use crate::score::{CPU, MEMORY};

/// Differences below this are rounding.
const NOISE: f64 = 1e-9;
/// The terms, as far as one VM and two hosts have to do with them.
pub(crate) struct Terms([f64; TERMS.len()]);

impl Terms {
    /// Of the state before or after the step of `vm` between the hosts.
    pub(crate) fn of(
        state: &State<'_, '_>,
        vm: VmIx,
        hosts: [HostIx; 2],
        options: &PlanOptions,
    ) -> Self {
        Self(TERMS.map(|term| amount(term, state, vm, hosts, options)))
    }

    /// What differs in `after`.
    pub(crate) fn changed(&self, after: &Self) -> Vec<TermChange> {
        let both = TERMS.into_iter().zip(self.0.into_iter().zip(after.0));
        both.filter(|(_, (before, after))| (before - after).abs() > NOISE)
            .map(|(term, (before, after))| TermChange { term, before, after })
            .collect()
    }
}

fn amount(
    term: Term,
    state: &State<'_, '_>,
    vm: VmIx,
    hosts: [HostIx; 2],
    options: &PlanOptions,
) -> f64 {
    let problem = state.problem;
    let of_hosts = |of: &dyn Fn(HostIx) -> u64| hosts.into_iter().map(|host| of(host) as f64).sum();
    let faults = |counts: fn(bool) -> bool| {
        let rules = problem.vm(vm).rules.iter().map(|(rule, _)| *rule);
        let chosen = rules.filter(|rule| counts(problem.rule(*rule).is_must()));
        let weighed = |rule| u64::from(state.fault(rule)) * problem.rule(rule).weight().max(1);
        chosen.map(weighed).sum::<u64>() as f64
    };
    let cpu_above = |share: f64| {
        let above = |host: &HostIx| {
            let most = share * problem.host(*host).cpu as f64;
            (state.cpu(*host) as f64 - most).max(0.0)
        };
        hosts.iter().filter(|host| problem.host(**host).known).map(above).sum::<f64>()
    };
    match term {
        Term::RuleFaults => faults(|must| must),
        Term::NeedsUnmet => f64::from(u8::from(state.lacks_needed(vm))),
        Term::PreferencesMissed => faults(|must| !must),
        Term::VmsToDrain => of_hosts(&|host| {
            if problem.host(host).draining() { state.vms_on(host).len() as u64 } else { 0 }
        }),
        Term::VmsInQuarantine => of_hosts(&|host| {
            if problem.host(host).quarantined() { state.vms_on(host).len() as u64 } else { 0 }
        }),
        Term::MemoryOverBytes => {
            of_hosts(&|host| state.memory_taken(host).saturating_sub(problem.host(host).memory))
        }
        Term::CpuUnmetMillicores => cpu_above(1.0),
        Term::CpuOverCeilingMillicores => cpu_above(options.cpu_ceiling.get()),
        Term::CpuDeviation => state.sums().deviation(CPU).get(),
        Term::MemoryDeviation => state.sums().deviation(MEMORY).get(),
    }
}
