//! Moves that are not for balance: broken rules, full hosts, drains, preferences.

use crate::door::problem::{HostIx, RuleIx, VmIx};
use crate::door::state::{Cause, State};
use crate::options::PlanOptions;
use crate::solve::Solver;

/// How good a target is for a move that must be made. Field order is priority: least fault of hard rules that hold in
/// the end, least weight of preferences missed, then CPU
/// within the ceiling (0), within capacity (1) or beyond (2), then by how much beyond, then the gain, then the number.
struct Fit {
    fault: i64,
    missed: i64,
    tightness: u8,
    beyond: f64,
    gain: f64,
    host: HostIx,
}

impl Fit {
    fn is_better_than(&self, other: &Self) -> bool {
        self.fault
            .cmp(&other.fault)
            .then(self.missed.cmp(&other.missed))
            .then(self.tightness.cmp(&other.tightness))
            .then(self.beyond.total_cmp(&other.beyond))
            .then(other.gain.total_cmp(&self.gain))
            .then(self.host.cmp(&other.host))
            .is_lt()
    }
}

pub(super) fn best_target(
    state: &State<'_, '_>,
    vm: VmIx,
    cause: Cause,
    options: &PlanOptions,
) -> Option<HostIx> {
    best_of(state, vm, cause, options, |_| true)
}

fn best_of(
    state: &State<'_, '_>,
    vm: VmIx,
    cause: Cause,
    options: &PlanOptions,
    suits: impl Fn(HostIx) -> bool,
) -> Option<HostIx> {
    let mut best: Option<Fit> = None;
    for host in state.problem.host_ixs().filter(|host| suits(*host)) {
        if state.obstacle(vm, host).is_some() || !state.cpu_allows(vm, host, cause, options) {
            continue;
        }
        let cpu = state.cpu_share_after(vm, host);
        let tightness = u8::from(cpu > options.cpu_ceiling.get()) + u8::from(cpu > 1.0);
        let fit = Fit {
            fault: state.fault_change(vm, host),
            missed: state.preference_change(vm, host),
            tightness,
            beyond: if cpu > 1.0 { cpu } else { 0.0 },
            gain: state.gain(vm, host),
            host,
        };
        if best.as_ref().is_none_or(|best| fit.is_better_than(best)) {
            best = Some(fit);
        }
    }
    best.map(|fit| fit.host)
}

fn try_move(solver: &mut Solver<'_, '_, '_>, vm: VmIx, cause: Cause) -> bool {
    if !solver.state.problem.may_move(vm, cause) {
        return false;
    }
    let target = best_target(solver.state, vm, cause, solver.options);
    if let Some(to) = target {
        solver.make(vm, to, cause);
    }
    target.is_some()
}

/// Mends broken hard rules and brings hosts back under their memory.
pub(super) fn mend(solver: &mut Solver<'_, '_, '_>) {
    let problem = solver.state.problem;
    if solver.options.causes.rules {
        for n in 0..problem.rules.len() {
            if problem.rules[n].is_must() {
                mend_rule(solver, RuleIx(n));
            }
        }
    }
    if solver.options.causes.capacity {
        for host in problem.host_ixs() {
            relieve(solver, host);
        }
    }
}

/// Moves VMs that have a part in a rule's fault, as long as that lowers it; the small ones move, they cost least.
fn mend_rule(solver: &mut Solver<'_, '_, '_>, rule: RuleIx) {
    if solver.state.fault(rule) == 0 {
        return;
    }
    let problem = solver.state.problem;
    let mut members = problem.rule(rule).vms.clone();
    members.sort_by_key(|vm| (problem.vm(*vm).memory, *vm));
    for vm in members {
        if solver.state.is_at_fault(vm, rule) && problem.may_move(vm, Cause::Rule(rule)) {
            let mends = |to: HostIx| {
                let bound = problem.vm(vm).rules.iter().find(|(ix, _)| *ix == rule);
                bound.is_some_and(|(_, role)| {
                    let change = solver.state.change(rule, *role, Some(solver.state.at(vm)), to);
                    change.after < change.before
                })
            };
            let target = best_of(solver.state, vm, Cause::Rule(rule), solver.options, mends);
            if let Some(to) = target {
                solver.make(vm, to, Cause::Rule(rule));
            }
        }
    }
}

/// Moves VMs off a host that holds more memory than it has: the smallest that suffices, else the largest first.
fn relieve(solver: &mut Solver<'_, '_, '_>, host: HostIx) {
    let memory = solver.state.problem.host(host).memory;
    for _ in 0..solver.state.vms_on(host).len() {
        let excess = solver.state.memory_taken(host).saturating_sub(memory);
        if excess == 0 {
            return;
        }
        let mut vms: Vec<VmIx> = solver.state.vms_on(host).iter().copied().collect();
        vms.sort_by_key(|vm| {
            let size = solver.state.problem.vm(*vm).memory;
            if size >= excess { (0, size, *vm) } else { (1, u64::MAX - size, *vm) }
        });
        if !vms.into_iter().any(|vm| try_move(solver, vm, Cause::Capacity)) {
            return;
        }
    }
}

/// Empties draining hosts, large VMs first: they are the hardest to place.
pub(super) fn drain(solver: &mut Solver<'_, '_, '_>) {
    let problem = solver.state.problem;
    let mut vms: Vec<VmIx> = problem
        .host_ixs()
        .filter(|host| problem.host(*host).draining() && problem.host(*host).known)
        .flat_map(|host| solver.state.vms_on(host).iter().copied())
        .collect();
    vms.sort_by_key(|vm| (u64::MAX - problem.vm(*vm).memory, *vm));
    for vm in vms {
        try_move(solver, vm, Cause::Drain);
    }
}

/// Takes VMs off hosts under suspicion, where there is room without harm.
pub(super) fn leave_quarantine(solver: &mut Solver<'_, '_, '_>) {
    let problem = solver.state.problem;
    let hosts = problem.host_ixs();
    let suspected = hosts.filter(|host| problem.host(*host).quarantined());
    let vms: Vec<VmIx> =
        suspected.flat_map(|host| solver.state.vms_on(host).iter().copied()).collect();
    for vm in vms {
        if !problem.may_move(vm, Cause::Quarantine) {
            continue;
        }
        let target = best_target(solver.state, vm, Cause::Quarantine, solver.options);
        let harmless = |to: &HostIx| {
            solver.state.preference_change(vm, *to) <= 0
                && solver.state.discrete_broken(vm, *to).is_none()
        };
        if let Some(to) = target.filter(harmless) {
            solver.make(vm, to, Cause::Quarantine);
        }
    }
}

/// Brings VMs to where a preference wants them, when there is room and no other preference is given up for it.
pub(super) fn prefer(solver: &mut Solver<'_, '_, '_>) {
    let problem = solver.state.problem;
    for vm in problem.vm_ixs() {
        let Some(cause) = solver.state.preference_missed(vm) else { continue };
        if !problem.may_move(vm, cause) {
            continue;
        }
        let better = best_target(solver.state, vm, cause, solver.options).filter(|to| {
            solver.state.preference_change(vm, *to) < 0
                && solver.state.discrete_broken(vm, *to).is_none()
        });
        if let Some(to) = better {
            solver.make(vm, to, cause);
        }
    }
}
