//! Putting VMs that run nowhere on hosts: those that rules bind first, then the largest, each where it is best, and once
//! more with those moved aside that were put there a moment ago. VMs that a rule holds together find a place together;
//! what others need starts before them.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeSet, HashMap};

use crate::door::groups::{Groups, hard_faults, is_as_whole};
use crate::door::problem::{HostIx, Problem, RuleIx, VmIx};
use crate::door::rules::RuleBody;
use crate::door::state::State;
use crate::options::PlanOptions;

/// VMs put on a host a moment ago that are tried as the one to give way.
const GIVE_WAY_MAX: usize = 16;
/// VMs that are placed on trial for one group: large groups have fewer tries.
const PLACED_MAX: usize = 64;
/// How many VMs that need each other in turn start one after the other; longer chains, and circles, are not told apart.
const CHAIN_MAX: u32 = 8;

/// Puts all of `vms`, which [`State::lift`] has taken out, on hosts that `open` allows. Answers with those
/// that found none; they stay out.
pub(super) fn start_all(
    state: &mut State<'_, '_>,
    vms: impl IntoIterator<Item = VmIx>,
    options: &PlanOptions,
    open: impl Fn(HostIx) -> bool,
) -> Vec<VmIx> {
    let mut started = Vec::new();
    let mut left = Vec::new();
    for group in in_order(state.problem, vms.into_iter().collect()) {
        if group.len() > 1 && start_together(state, &group, options, &open) {
            started.extend(group);
        } else {
            left.extend(start_each(state, &group, &mut started, options, &open));
        }
    }
    // What one of them needs may have started after it.
    loop {
        let before = left.len();
        left = start_each(state, &left, &mut started, options, &open);
        if left.is_empty() || left.len() == before {
            return left;
        }
    }
}

/// The groups of the VMs in the order they are placed. Rules first: a VM that may go to few hosts is not to find them
/// taken. Then the largest. Within a group, what others need comes first.
fn in_order(problem: &Problem<'_>, mut vms: Vec<VmIx>) -> Vec<Vec<VmIx>> {
    let turns = turns(problem, &vms);
    vms.sort_by_key(|vm| {
        let info = problem.vm(*vm);
        (turns[vm], Reverse((info.memory, info.cpu)), *vm)
    });
    let mut groups: Vec<Vec<VmIx>> =
        Groups::new(problem, &vms).iter().map(<[VmIx]>::to_vec).collect();
    groups.sort_by_key(|group| {
        let hard =
            |vm: &VmIx| problem.vm(*vm).rules.iter().any(|(ix, _)| problem.rule(*ix).is_must());
        let cpu = group.iter().fold(0_u64, |sum, vm| sum.saturating_add(problem.vm(*vm).cpu));
        let size = Reverse((problem.memory_of(group), cpu));
        (!group.iter().any(hard), size, group.first().copied())
    });
    groups
}

/// By VM, how many others have to start one after the other before it: 0 for one that needs none of `vms` near it.
pub(super) fn turns(problem: &Problem<'_>, vms: &[VmIx]) -> HashMap<VmIx, u32> {
    let mut turns: HashMap<VmIx, u32> = vms.iter().map(|vm| (*vm, 0)).collect();
    let named: BTreeSet<RuleIx> =
        vms.iter().flat_map(|vm| problem.vm(*vm).rules.iter().map(|(ix, _)| *ix)).collect();
    let near: Vec<_> = named
        .into_iter()
        .map(|ix| problem.rule(ix))
        .filter(|rule| matches!(rule.body, RuleBody::Near))
        .collect();
    for _ in 0..CHAIN_MAX {
        let mut later = false;
        for rule in &near {
            let Some(last) = rule.needs.iter().filter_map(|vm| turns.get(vm)).max().copied() else {
                continue;
            };
            for vm in rule.vms.iter().filter(|vm| !rule.needs.contains(vm)) {
                if let Some(turn) = turns.get_mut(vm).filter(|turn| **turn <= last) {
                    *turn = last + 1;
                    later = true;
                }
            }
        }
        if !later {
            break;
        }
    }
    turns
}

/// Starts each that finds a place, if need be where another gives way; answers with the others.
fn start_each(
    state: &mut State<'_, '_>,
    vms: &[VmIx],
    started: &mut Vec<VmIx>,
    options: &PlanOptions,
    open: impl Fn(HostIx) -> bool,
) -> Vec<VmIx> {
    let mut left = Vec::new();
    for vm in vms {
        if let Some(host) = best(state, *vm, options, &open) {
            state.start(*vm, host);
            started.push(*vm);
        } else if make_way(state, *vm, started, options, &open) {
            started.push(*vm);
        } else {
            left.push(*vm);
        }
    }
    left
}

/// Starts all of a group, hosts with room for all of them before others; none when not all find a place.
fn start_together(
    state: &mut State<'_, '_>,
    group: &[VmIx],
    options: &PlanOptions,
    open: impl Fn(HostIx) -> bool,
) -> bool {
    let memory = state.problem.memory_of(group);
    let mut first: Vec<(Reverse<bool>, Fit)> = fits(state, group[0], options, &open)
        .map(|fit| (Reverse(state.memory_free(fit.host).get() >= memory), fit))
        .collect();
    first.sort_by(|(room, fit), (other_room, other)| {
        room.cmp(other_room).then_with(|| fit.order(other))
    });
    for (_, fit) in first.into_iter().take((PLACED_MAX / group.len()).max(1)) {
        state.start(group[0], fit.host);
        let mut placed = 1;
        while let Some(host) = group.get(placed).and_then(|vm| best(state, *vm, options, &open)) {
            state.start(group[placed], host);
            placed += 1;
        }
        if placed == group.len() {
            return true;
        }
        group[..placed].iter().for_each(|vm| state.lift(*vm));
    }
    false
}

/// How good a host is to start on. Field order is priority: faults of hard rules that rise, or fall, by it, the weight of
/// preferences missed, whether the CPU ceiling is passed, by how much the spread rises, the number.
struct Fit {
    fault: i64,
    missed: i64,
    over: bool,
    rise: f64,
    host: HostIx,
}

impl Fit {
    /// The better one is less.
    fn order(&self, other: &Self) -> Ordering {
        (self.fault, self.missed, self.over)
            .cmp(&(other.fault, other.missed, other.over))
            .then(self.rise.total_cmp(&other.rise))
            .then(self.host.cmp(&other.host))
    }
}

/// The hosts that `open` allows and where the VM may start.
fn fits(
    state: &State<'_, '_>,
    vm: VmIx,
    options: &PlanOptions,
    open: impl Fn(HostIx) -> bool,
) -> impl Iterator<Item = Fit> {
    let info = state.problem.vm(vm);
    let size = ballast_model::Resources::new(
        ballast_model::Millicores(info.cpu),
        ballast_model::Bytes(info.memory),
    );
    let may_start =
        move |host: &HostIx| open(*host) && state.obstacle_to_start(vm, *host).is_none();
    state.problem.host_ixs().filter(may_start).map(move |host| Fit {
        fault: state.faults_to_start(vm, host),
        missed: state.preferences_to_start(vm, host),
        over: state.cpu_share_after(vm, host) > options.cpu_ceiling.get(),
        rise: state.rise(host, size),
        host,
    })
}

/// The best host for the VM to start on.
fn best(
    state: &State<'_, '_>,
    vm: VmIx,
    options: &PlanOptions,
    open: impl Fn(HostIx) -> bool,
) -> Option<HostIx> {
    fits(state, vm, options, open).min_by(Fit::order).map(|fit| fit.host)
}

/// Puts `vm` where one of those started before gives way and finds another place, where nothing that needs it misses it.
fn make_way(
    state: &mut State<'_, '_>,
    vm: VmIx,
    started: &[VmIx],
    options: &PlanOptions,
    open: impl Fn(HostIx) -> bool,
) -> bool {
    for &other in started.iter().rev().take(GIVE_WAY_MAX) {
        let host = state.at(other);
        let faults = hard_faults(state, &[other]);
        state.lift(other);
        if open(host) && state.obstacle_to_start(vm, host).is_none() {
            state.start(vm, host);
            if let Some(elsewhere) = best(state, other, options, &open) {
                state.start(other, elsewhere);
                if is_as_whole(state, &faults) {
                    return true;
                }
                state.lift(other);
            }
            state.lift(vm);
        }
        state.start(other, host);
    }
    false
}
