//! Moves that are not for balance: broken rules, full hosts, drains, preferences.

use crate::options::PlanOptions;
use crate::problem::{HostIx, RuleBody, RuleIx, VmIx};
use crate::solve::Solver;
use crate::state::{Cause, State};

/// How good a target is for a move that must be made. Field order is priority: fewest preferences missed, then CPU
/// within the ceiling (0), within capacity (1) or beyond (2), then by how much beyond, then the gain, then the number.
struct Fit {
    missed: usize,
    tightness: u8,
    beyond: f64,
    gain: f64,
    host: HostIx,
}

impl Fit {
    fn is_better_than(&self, other: &Self) -> bool {
        self.missed
            .cmp(&other.missed)
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
    let problem = state.problem;
    let mut best: Option<Fit> = None;
    for host in problem.host_ixs() {
        if state.obstacle(vm, host).is_some() || !state.cpu_allows(vm, host, cause, options) {
            continue;
        }
        let cpu = state.cpu_share_after(vm, host);
        let tightness = u8::from(cpu > options.cpu_ceiling.get()) + u8::from(cpu > 1.0);
        let fit = Fit {
            missed: problem.preferences_missed(vm, host),
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
        for (n, rule) in problem.rules.iter().enumerate() {
            match &rule.body {
                RuleBody::Apart { .. } => separate(solver, RuleIx(n)),
                RuleBody::Hosts { .. } => {}
            }
        }
        for vm in problem.vm_ixs() {
            let at = solver.state.at(vm);
            let broken = problem.vm(vm).must.iter().find(|rule| !problem.rule_allows(**rule, at));
            if let Some(rule) = broken {
                try_move(solver, vm, Cause::Rule(*rule));
            }
        }
    }
    if solver.options.causes.capacity {
        for host in problem.host_ixs() {
            relieve(solver, host);
        }
    }
}

/// Moves VMs of an anti-affinity rule away from each other; the small ones move, they cost least.
fn separate(solver: &mut Solver<'_, '_, '_>, rule: RuleIx) {
    for host in solver.state.crowded(rule) {
        let mut members: Vec<VmIx> = match &solver.state.problem.rules[rule.0].body {
            RuleBody::Apart { vms } => {
                vms.iter().copied().filter(|vm| solver.state.at(*vm) == host).collect()
            }
            RuleBody::Hosts { .. } => Vec::new(),
        };
        members.sort_by_key(|vm| (solver.state.problem.vm(*vm).memory, *vm));
        for vm in members {
            if solver.state.apart_on(rule, host) <= 1 {
                break;
            }
            try_move(solver, vm, Cause::Rule(rule));
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

/// Brings VMs to where a preference wants them, when there is room and no other preference is given up for it.
pub(super) fn prefer(solver: &mut Solver<'_, '_, '_>) {
    let problem = solver.state.problem;
    for vm in problem.vm_ixs() {
        let at = solver.state.at(vm);
        let missed = problem.vm(vm).should.iter().find(|rule| !problem.rule_allows(**rule, at));
        let Some(cause) = missed.map(|rule| Cause::Preference(*rule)) else { continue };
        if !problem.may_move(vm, cause) {
            continue;
        }
        let better = best_target(solver.state, vm, cause, solver.options)
            .filter(|to| problem.preferences_missed(vm, *to) < problem.preferences_missed(vm, at));
        if let Some(to) = better {
            solver.make(vm, to, cause);
        }
    }
}
