//! Putting VMs that run nowhere on hosts: the largest first, each where it is best, and once more with
//! those moved aside that were put there a moment ago.

use crate::door::problem::{HostIx, VmIx};
use crate::door::state::State;
use crate::options::PlanOptions;

/// VMs put on a host a moment ago that are tried as the one to give way.
const GIVE_WAY_MAX: usize = 16;

/// Puts all of `vms`, which [`State::lift`] has taken out, on hosts that `open` allows. Answers with those
/// that found none; they stay out.
pub(super) fn start_all(
    state: &mut State<'_, '_>,
    vms: impl IntoIterator<Item = VmIx>,
    options: &PlanOptions,
    open: impl Fn(HostIx) -> bool,
) -> Vec<VmIx> {
    let mut waiting: Vec<VmIx> = vms.into_iter().collect();
    // Rules first: a VM that may go to few hosts is not to find them taken. Then the largest.
    waiting.sort_by_key(|vm| {
        let info = state.problem.vm(*vm);
        let bound = info.rules.iter().any(|(ix, _)| state.problem.rule(*ix).is_must());
        (!bound, std::cmp::Reverse((info.memory, info.cpu)), *vm)
    });
    let mut started = Vec::new();
    let mut left = Vec::new();
    for vm in waiting {
        match best(state, vm, options, &open) {
            Some(host) => {
                state.start(vm, host);
                started.push(vm);
            }
            None if make_way(state, vm, &started, options, &open) => started.push(vm),
            None => left.push(vm),
        }
    }
    left
}

/// The host where the VM breaks the fewest preferences, keeps the CPU ceiling and raises the spread least.
pub(super) fn best(
    state: &State<'_, '_>,
    vm: VmIx,
    options: &PlanOptions,
    open: impl Fn(HostIx) -> bool,
) -> Option<HostIx> {
    let info = state.problem.vm(vm);
    let size = ballast_model::Resources::new(
        ballast_model::Millicores(info.cpu),
        ballast_model::Bytes(info.memory),
    );
    let fits = |host: &HostIx| open(*host) && state.obstacle_to_start(vm, *host).is_none();
    let rank = |host: HostIx| {
        let over = state.cpu_share_after(vm, host) > options.cpu_ceiling.get();
        (state.preferences_to_start(vm, host), over, state.rise(host, size), host)
    };
    let less = |a: &(i64, bool, f64, HostIx), b: &(i64, bool, f64, HostIx)| {
        (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2)).then(a.3.cmp(&b.3))
    };
    let found = state.problem.host_ixs().filter(fits).map(rank).min_by(less);
    found.map(|(.., host)| host)
}

/// Puts `vm` where one of those started before gives way and finds another place.
fn make_way(
    state: &mut State<'_, '_>,
    vm: VmIx,
    started: &[VmIx],
    options: &PlanOptions,
    open: impl Fn(HostIx) -> bool,
) -> bool {
    for &other in started.iter().rev().take(GIVE_WAY_MAX) {
        let host = state.at(other);
        state.lift(other);
        if open(host) && state.obstacle_to_start(vm, host).is_none() {
            state.start(vm, host);
            if let Some(elsewhere) = best(state, other, options, &open) {
                state.start(other, elsewhere);
                return true;
            }
            state.lift(vm);
        }
        state.start(other, host);
    }
    false
}
