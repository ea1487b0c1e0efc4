//! Moves that are not for balance: broken rules, full hosts, drains, preferences.

use std::collections::BTreeSet;

use crate::door::groups::Groups;
use crate::door::problem::{HostIx, RuleIx, VmIx};
use crate::door::state::{Cause, State};
use crate::solve::Solver;
use crate::solve::aim::{self, Aim};
use crate::solve::scan::Scan;
use crate::solve::target::{best, best_of, best_target, best_unbound, fits_alone};
use crate::solve::together::move_all;

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

/// Mends broken hard rules, brings VMs to what they need and hosts back under their memory.
pub(super) fn mend(solver: &mut Solver<'_, '_, '_>) {
    let problem = solver.state.problem;
    if solver.options.causes.rules {
        for n in 0..problem.rules.len() {
            if problem.rules[n].is_must() {
                mend_rule(solver, RuleIx(n));
            }
        }
        provide(solver);
    }
    if solver.options.causes.capacity {
        for host in problem.host_ixs() {
            relieve(solver, host);
        }
    }
}

/// Moves VMs that have a part in a rule's fault, as long as that lowers it; the small ones move, they cost least. One that
/// another rule holds where it is takes those along that the rule binds it to.
fn mend_rule(solver: &mut Solver<'_, '_, '_>, rule: RuleIx) {
    if solver.state.fault(rule) == 0 {
        return;
    }
    let problem = solver.state.problem;
    let cause = Cause::Rule(rule);
    let mut members = problem.rule(rule).vms.clone();
    members.sort_by_key(|vm| (problem.vm(*vm).memory, *vm));
    for vm in members {
        if !solver.state.is_at_fault(vm, rule) || !problem.may_move(vm, cause) {
            continue;
        }
        let state = &*solver.state;
        let mends = |to: HostIx| {
            let bound = problem.vm(vm).rules.iter().find(|(ix, _)| *ix == rule);
            bound.is_some_and(|(_, role)| {
                let change = state.change(rule, *role, Some(state.at(vm)), to);
                change.after < change.before
            })
        };
        if let Some(to) = best_of(state, vm, cause, solver.options, mends) {
            solver.make(vm, to, cause);
            continue;
        }
        let here: Vec<VmIx> = state.vms_on(state.at(vm)).iter().copied().collect();
        let group = with_first(vm, Groups::new(problem, &here).with(vm));
        let fault = state.fault(rule);
        move_all(solver, &group, cause, |_, _, _| true, |state| state.fault(rule) < fault);
    }
}

/// Moves VMs off hosts that do not offer what they need, the largest first: for them there are fewest places.
fn provide(solver: &mut Solver<'_, '_, '_>) {
    let (problem, state) = (solver.state.problem, &*solver.state);
    let mut vms: Vec<VmIx> = problem.reach.choosy().filter(|vm| state.lacks_needed(*vm)).collect();
    vms.sort_by_key(|vm| (std::cmp::Reverse(problem.vm(*vm).memory), *vm));
    for vm in vms {
        try_move(solver, vm, Cause::Needs);
    }
}

/// The group in the order of its moves, this VM before the others.
fn with_first(vm: VmIx, group: &[VmIx]) -> Vec<VmIx> {
    let others = group.iter().copied().filter(|other| *other != vm);
    std::iter::once(vm).chain(others).collect()
}

/// Moves VMs off a host that holds more memory than it has: the smallest that suffices, else the largest first; groups
/// only where no VM can go alone.
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
        let alone = vms.iter().any(|vm| try_move(solver, *vm, Cause::Capacity));
        let groups = || Groups::new(solver.state.problem, &vms);
        if !alone
            && !groups()
                .iter()
                .any(|group| move_all(solver, group, Cause::Capacity, |_, _, _| true, |_| true))
        {
            return;
        }
    }
}

/// Empties draining hosts. A VM that a rule holds back goes with its group, or not at all.
pub(super) fn drain(solver: &mut Solver<'_, '_, '_>) {
    let problem = solver.state.problem;
    let leaves = |host: &HostIx| problem.host(*host).draining() && problem.host(*host).known;
    let mut vms = vms_on(solver.state, leaves);
    aim::order(problem, &mut vms, solver.options.drain);
    leave(solver, &vms, Cause::Drain, |_, _, _| true);
}

/// Takes VMs off hosts under suspicion, where there is room without harm.
pub(super) fn leave_quarantine(solver: &mut Solver<'_, '_, '_>) {
    let problem = solver.state.problem;
    let vms = vms_on(solver.state, |host| problem.host(*host).quarantined());
    let harmless =
        |state: &State<'_, '_>, vm: VmIx, to: HostIx| state.preference_change(vm, to) <= 0;
    leave(solver, &vms, Cause::Quarantine, harmless);
}

fn vms_on(state: &State<'_, '_>, wanted: impl Fn(&HostIx) -> bool) -> Vec<VmIx> {
    let hosts = state.problem.host_ixs().filter(wanted);
    hosts.flat_map(|host| state.vms_on(host).iter().copied()).collect()
}

/// Moves these VMs off their hosts, in this order: each alone, to where the goal of the drain has it, or else with its
/// group.
fn leave(
    solver: &mut Solver<'_, '_, '_>,
    vms: &[VmIx],
    cause: Cause,
    suits: impl Fn(&State<'_, '_>, VmIx, HostIx) -> bool,
) {
    if vms.is_empty() {
        return;
    }
    let problem = solver.state.problem;
    let home: Vec<HostIx> = vms.iter().map(|vm| solver.state.at(*vm)).collect();
    let groups = Groups::new(problem, vms);
    let mut aim = Aim::new(problem, solver.options);
    let mut scan = aim.is_usual().then(|| Scan::new(solver.state));
    let mut noted = solver.now;
    let mut stays: BTreeSet<VmIx> = BTreeSet::new();
    for (vm, home) in vms.iter().zip(home) {
        if solver.state.at(*vm) != home || !problem.may_move(*vm, cause) {
            continue;
        }
        aim.note(problem, &solver.moves);
        if let Some(scan) = &mut scan {
            scan.note(solver.state, solver.changed_since(noted));
            noted = solver.now;
        }
        let (state, options) = (&*solver.state, solver.options);
        let suits_it = |to: HostIx| suits(state, *vm, to);
        let unbound = |scan: &Scan| best_unbound(state, scan, *vm, options, suits_it);
        let any = || {
            let fits = fits_alone(state, *vm, cause, options, suits_it);
            best(state, *vm, aim.weigh(state, *vm, fits)).map(|fit| fit.host)
        };
        if let Some(host) = scan.as_ref().and_then(unbound).or_else(any) {
            solver.make(*vm, host, cause);
            continue;
        }
        // Those of its group that have left alone are where they may be.
        let group: Vec<VmIx> = groups
            .with(*vm)
            .iter()
            .copied()
            .filter(|other| solver.state.at(*other) == home)
            .collect();
        if !stays.contains(vm) && !move_all(solver, &group, cause, &suits, |_| true) {
            stays.extend(group);
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
        let better = best_target(solver.state, vm, cause, solver.options)
            .filter(|to| solver.state.preference_change(vm, *to) < 0);
        if let Some(to) = better {
            solver.make(vm, to, cause);
        }
    }
}
