//! Whether one VM may go to one host: the same answer for every workflow.
//!
//! An operator's `migrate`, a drain and a balance step all ask [`check_step`],
//! right before the step starts and of the state as it is then. What depends on
//! the workflow (automation level, CPU ceiling, least gain) is not asked here.
//! [`start`] is the same for VMs that run nowhere yet, [`words`] says each no.

mod start;
mod words;

#[cfg(test)]
mod tests;

use ballast_model::snapshot::Mobility;
use ballast_model::{ClusterSnapshot, HostId, Refusal, RefusalCode, Telemetry, VmId};

pub(crate) use start::no_place;
pub use start::{check_start, place};
pub(crate) use words::{REMEDY_OF_LOSSES, explain, missing as missing_words};

use crate::door::obstacle::Obstacle;
use crate::door::problem::{Problem, VmIx};
use crate::door::state::{Cause, State};
use crate::options::PlanOptions;
use crate::solve;
use crate::verdict::why_no_target;

/// Whether `vm` may be migrated to `to` now.
///
/// CPU is not a reason to refuse: too little of it slows guests, it does not
/// stop them, and a drain may need it.
///
/// # Errors
/// - `InvalidArgument`: the snapshot does not fit together
/// - `NotFound`: no such VM or host
/// - `WrongState`: it is there already, it migrates already, it cannot move now, or the target is draining
/// - `Unavailable`: the load of the source or the target is unknown
/// - `CapacityExceeded`: the target has not enough memory free
/// - `RuleViolation`: a hard rule forbids it
pub fn check_step(snapshot: &ClusterSnapshot, vm: &VmId, to: &HostId) -> Result<(), Refusal> {
    let problem = Problem::new(snapshot)?;
    let vm = problem.find_vm(vm).ok_or_else(|| missing("VM", vm.as_str()))?;
    let to = problem.find_host(to).ok_or_else(|| missing("host", to.as_str()))?;
    if let Some(refusal) = why_it_cannot_leave(&problem, vm) {
        return Err(refusal);
    }
    let state = State::new(&problem);
    match state.obstacle(vm, to) {
        None => Ok(()),
        Some(obstacle) => Err(explain(&state, vm, to, obstacle)),
    }
}

/// Whether an operator may send `vm` to `to`: as [`check_step`], and no hard rule may be further from holding afterwards,
/// those included that have to hold only when a plan has ended.
///
/// # Errors
/// Those of [`check_step`].
pub fn check_move(snapshot: &ClusterSnapshot, vm: &VmId, to: &HostId) -> Result<(), Refusal> {
    check_step(snapshot, vm, to)?;
    let problem = Problem::new(snapshot)?;
    let (Some(vm), Some(to)) = (problem.find_vm(vm), problem.find_host(to)) else { return Ok(()) };
    let state = State::new(&problem);
    match state.discrete_broken(vm, to) {
        None => Ok(()),
        Some(rule) => Err(explain(&state, vm, to, Obstacle::Broken { rule })),
    }
}

/// The host to migrate `vm` to when somebody asks for a migration and names no destination.
///
/// The choice is that of a drain: hosts that meet the VM's preferences first, then those that stay below
/// `options.cpu_ceiling`, then the one that leaves the load most level, then the first by name. What it answers passes
/// [`check_step`].
///
/// # Errors
/// Those of [`check_step`] that concern the VM; `InvalidArgument` when an option is out of range; `CapacityExceeded`
/// when no host can take it, with a count of what stands in the way.
pub fn choose_target(
    snapshot: &ClusterSnapshot,
    vm: &VmId,
    options: &PlanOptions,
) -> Result<HostId, Refusal> {
    options.validate()?;
    let problem = Problem::new(snapshot)?;
    let vm = problem.find_vm(vm).ok_or_else(|| missing("VM", vm.as_str()))?;
    if let Some(refusal) = why_it_cannot_leave(&problem, vm) {
        return Err(refusal);
    }
    let state = State::new(&problem);
    match solve::best_target(&state, vm, Cause::Drain, options) {
        Some(host) => Ok(problem.host(host).id.clone()),
        None => {
            let (reason, remedy) = why_no_target(&state, vm, Cause::Drain, options);
            let reason = format!("VM {}: {reason}", problem.vm(vm).id);
            Err(Refusal::new(RefusalCode::CapacityExceeded, reason, remedy))
        }
    }
}

fn missing(what: &str, id: &str) -> Refusal {
    let list = what.to_lowercase();
    Refusal::new(
        RefusalCode::NotFound,
        format!("there is no {what} {id}"),
        format!("see 'ballast {list} ls' for what there is"),
    )
}

/// Why the VM cannot leave its host, wherever to.
pub(crate) fn why_it_cannot_leave(problem: &Problem<'_>, vm: VmIx) -> Option<Refusal> {
    let info = problem.vm(vm);
    if let Some(bound_for) = info.bound_for {
        let flight = problem.snapshot.migrations.iter().find(|flight| flight.vm == *info.id);
        let id = flight.map(|flight| flight.id.to_string()).unwrap_or_default();
        let other = problem.host(bound_for).id;
        return Some(Refusal::new(
            RefusalCode::WrongState,
            format!(
                "VM {} is being migrated already, from {} to {other}",
                info.id,
                problem.host(info.host).id
            ),
            format!("wait for migration {id} to end, or cancel it"),
        ));
    }
    let host = problem.host(info.host);
    if let Telemetry::Unknown { why } = &host.host.telemetry {
        return Some(Refusal::new(
            RefusalCode::Unavailable,
            format!("the load of host {}, where VM {} is, is unknown: {why}", host.id, info.id),
            format!("check that the agent on {} runs and reports", host.id),
        ));
    }
    match &info.vm.mobility {
        Mobility::Movable => None,
        Mobility::Fixed { reason, remedy } => Some(Refusal::new(
            RefusalCode::WrongState,
            format!("VM {} cannot move for now: {reason}", info.id),
            remedy.clone(),
        )),
    }
}
