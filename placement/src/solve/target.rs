//! Where a VM goes that has to leave.

use std::cmp::Ordering;

use crate::door::losses::Survey;
use crate::door::problem::{HostIx, VmIx};
use crate::door::state::{Cause, State};
use crate::options::PlanOptions;
use crate::solve::scan::Scan;

/// How good a target is for a move that must be made. Field order is priority: least fault of hard rules that hold in
/// the end, least weight of preferences missed, a host with CPU left before one without, then what the
/// [goal of a drain](super::aim) asks for, then CPU within the ceiling (0), within capacity (1) or beyond (2), then by how
/// much beyond, then the gain, then the number.
pub(super) struct Fit {
    fault: i64,
    missed: i64,
    /// Seconds that count for the goal; zero where time does not.
    pub(super) seconds: f64,
    /// Millicores above the CPU ceiling that count for the goal.
    pub(super) above: f64,
    tightness: u8,
    beyond: f64,
    gain: f64,
    pub(super) host: HostIx,
}

impl Fit {
    /// The better one is less.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        self.fault
            .cmp(&other.fault)
            .then(self.missed.cmp(&other.missed))
            .then(self.is_overloaded().cmp(&other.is_overloaded()))
            .then(self.seconds.total_cmp(&other.seconds))
            .then(self.above.total_cmp(&other.above))
            .then(self.tightness.cmp(&other.tightness))
            .then(self.beyond.total_cmp(&other.beyond))
            .then(other.gain.total_cmp(&self.gain))
            .then(self.host.cmp(&other.host))
    }

    /// Whether the host is asked for more CPU than it has then.
    fn is_overloaded(&self) -> bool {
        self.tightness > 1
    }
}

/// Every host that can take the VM now, failures to tolerate left aside ([`best`] asks for them). Rules that hold in the
/// end may be broken there: by others that follow they may be whole again.
pub(super) fn fits(
    state: &State<'_, '_>,
    vm: VmIx,
    cause: Cause,
    options: &PlanOptions,
) -> impl Iterator<Item = Fit> {
    let open = move |host: &HostIx| {
        state.obstacle_but_losses(vm, *host).is_none()
            && state.cpu_allows(vm, *host, cause, options)
    };
    state.problem.host_ixs().filter(open).map(move |host| {
        let cpu = state.cpu_share_after(vm, host);
        Fit {
            fault: state.fault_change(vm, host),
            missed: state.preference_change(vm, host),
            seconds: 0.0,
            above: 0.0,
            tightness: u8::from(cpu > options.cpu_ceiling.get()) + u8::from(cpu > 1.0),
            beyond: if cpu > 1.0 { cpu } else { 0.0 },
            gain: state.gain(vm, host),
            host,
        }
    })
}

/// The best host that can take the VM alone: no hard rule is further from holding in the end.
pub(crate) fn best_target(
    state: &State<'_, '_>,
    vm: VmIx,
    cause: Cause,
    options: &PlanOptions,
) -> Option<HostIx> {
    best_of(state, vm, cause, options, |_| true)
}

/// The same of the hosts that suit the caller.
pub(super) fn best_of(
    state: &State<'_, '_>,
    vm: VmIx,
    cause: Cause,
    options: &PlanOptions,
    suits: impl Fn(HostIx) -> bool,
) -> Option<HostIx> {
    best(state, vm, fits_alone(state, vm, cause, options, suits)).map(|fit| fit.host)
}

/// The hosts that suit the caller and can take the VM alone.
pub(super) fn fits_alone(
    state: &State<'_, '_>,
    vm: VmIx,
    cause: Cause,
    options: &PlanOptions,
    suits: impl Fn(HostIx) -> bool,
) -> impl Iterator<Item = Fit> {
    fits(state, vm, cause, options)
        .filter(move |fit| suits(fit.host) && state.discrete_broken(vm, fit.host).is_none())
}

/// The best host for a VM that no rule binds, if one takes it below the CPU ceiling: the same that [`best`] finds without
/// a goal of the drain, but hosts are not weighed one by one.
pub(super) fn best_unbound(
    state: &State<'_, '_>,
    scan: &Scan,
    vm: VmIx,
    options: &PlanOptions,
    suits: impl Fn(HostIx) -> bool,
) -> Option<HostIx> {
    if !state.problem.vm(vm).rules.is_empty() {
        return None;
    }
    let mut survey = Survey::new(state, vm);
    let takes = |host: HostIx| {
        state.cpu_share_after(vm, host) <= options.cpu_ceiling.get()
            && state.obstacle_but_losses(vm, host).is_none()
            && suits(host)
            && survey.keeps(host)
    };
    scan.best(state, vm, f64::NEG_INFINITY, takes).map(|best| best.to)
}

/// The best of some fits with which as many failures can be tolerated as before.
pub(super) fn best(
    state: &State<'_, '_>,
    vm: VmIx,
    fits: impl Iterator<Item = Fit>,
) -> Option<Fit> {
    let mut survey = Survey::new(state, vm);
    let mut best: Option<Fit> = None;
    for fit in fits {
        // Failures are dear to ask for: only what would be the best is asked for.
        if best.as_ref().is_none_or(|best| fit.order(best).is_lt()) && survey.keeps(fit.host) {
            best = Some(fit);
        }
    }
    best
}
