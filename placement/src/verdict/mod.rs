//! Why each VM moves, stays or is stuck, in an operator's words.
//!
//! [`moves`] says why a VM moves, [`levelled`] why one stays that is well where it is; what ought to move and cannot is said
//! here.

mod levelled;
mod moves;

use std::collections::{BTreeMap, BTreeSet};

use ballast_model::plan::StepCost;
use ballast_model::vm::Automation;
use ballast_model::{Bytes, Refusal, Verdict, VmId};

pub(crate) use moves::{Shares, of_move, purposes};

use crate::cost;
use crate::door::losses::{Survey, strands};
use crate::door::obstacle::Obstacle;
use crate::door::problem::{HostIx, Problem, RuleIx, VmIx};
use crate::door::rules::RuleBody;
use crate::door::state::{Cause, Move, State};
use crate::drain;
use crate::eligibility::{REMEDY_OF_LOSSES, missing_words, why_it_cannot_leave};
use crate::explain::core::Cores;
use crate::options::PlanOptions;
use crate::solve::scan::Scan;

/// Less than this is no gain in words.
const GAIN_SHOWN_MIN: f64 = 0.000_5;

fn points(gain: f64) -> String {
    format!("{:.1} points", gain * 100.0)
}

/// Adds the verdicts on the VMs that do not move; `state` is the one after the plan, `found` what the solver
/// found, of which the plan may be the beginning only.
pub(crate) fn of_the_rest(
    state: &State<'_, '_>,
    found: &[Move],
    options: &PlanOptions,
    verdicts: &mut BTreeMap<VmId, Verdict>,
) {
    let last: BTreeMap<VmIx, &Move> = found.iter().map(|step| (step.vm, step)).collect();
    let scan = Scan::new(state);
    let mut cores = Cores::new(state.problem);
    let none_made = verdicts.is_empty();
    for vm in state.problem.vm_ixs() {
        let id = state.problem.vm(vm).id;
        if verdicts.contains_key(id) {
            continue;
        }
        let verdict = match last.get(&vm).filter(|step| step.to != state.at(vm)) {
            Some(step) if none_made => of_cut(state, step, found, options),
            Some(step) => stays(format!(
                "it would move to {}, but this plan ends after {}; a later one moves it",
                state.problem.host(step.to).id,
                options.budget()
            )),
            None => of_unmoved(state, &scan, &mut cores, vm, options),
        };
        verdicts.insert(id.clone(), verdict);
    }
}

/// Of a VM that would move if the plan's budget were larger: nothing within it makes anything better, so the next plan will
/// not move it either.
fn of_cut(state: &State<'_, '_>, step: &Move, found: &[Move], options: &PlanOptions) -> Verdict {
    let to = state.problem.host(step.to).id;
    let StepCost { bytes, duration } = cost::of_steps(state.problem, found);
    let more = PlanOptions {
        steps_max: found.len(),
        bytes_max: options.bytes_max.map(|_| bytes),
        time_max: options.time_max.map(|_| duration),
        ..*options
    };
    let reason = format!(
        "it would move to {to} in a plan of {}; within {} nothing gets better",
        more.budget(),
        options.budget()
    );
    if !step.cause.is_forced() {
        return stays(reason);
    }
    stuck(reason, format!("allow plans of {}", more.budget()))
}

fn stays(reason: impl Into<String>) -> Verdict {
    Verdict::Stays { reason: reason.into(), alternative: None }
}

fn stuck(reason: String, remedy: String) -> Verdict {
    Verdict::Stuck { reason, remedy, core: Vec::new() }
}

fn of_unmoved(
    state: &State<'_, '_>,
    scan: &Scan,
    cores: &mut Cores<'_, '_>,
    vm: VmIx,
    options: &PlanOptions,
) -> Verdict {
    let problem = state.problem;
    let info = problem.vm(vm);
    if let Some(bound_for) = info.bound_for {
        let reason = format!(
            "it is being migrated already, from {} to {}",
            problem.host(info.host).id,
            problem.host(bound_for).id
        );
        return stays(reason);
    }
    let ought = ought_to_move(state, vm);
    if let Some((cause, why)) = ought {
        return of_stuck(state, cores, vm, cause, &why, options);
    }
    if let Some(refusal) = why_it_cannot_leave(problem, vm) {
        return stays(refusal.reason);
    }
    levelled::verdict(state, scan, vm, options)
}

/// What is wrong with the VM where it is.
fn ought_to_move(state: &State<'_, '_>, vm: VmIx) -> Option<(Cause, String)> {
    let problem = state.problem;
    let at = state.at(vm);
    let host = problem.host(at);
    if host.draining() {
        return Some((Cause::Drain, format!("host {} is being emptied", host.id)));
    }
    if let Some(rule) = state.rule_broken(vm) {
        return Some((Cause::Rule(rule), wrong_about(state, vm, rule)));
    }
    if state.lacks_needed(vm) {
        let missing = missing_words(&problem.vm(vm).vm.needs, host.host);
        let why = format!("host {} does not offer {missing}, which it needs", host.id);
        return Some((Cause::Needs, why));
    }
    if state.memory_taken(at) > host.memory {
        let why = format!(
            "host {} holds {} of {} memory",
            host.id,
            Bytes(state.memory_taken(at)),
            host.host.capacity.memory
        );
        return Some((Cause::Capacity, why));
    }
    if host.quarantined() {
        return Some((Cause::Quarantine, format!("host {} is under suspicion", host.id)));
    }
    let cause = state.preference_missed(vm)?;
    let Cause::Preference(rule) = cause else { return None };
    let why =
        format!("rule {} prefers it elsewhere than on host {}", problem.rule(rule).id, host.id);
    Some((cause, why))
}

/// What a broken hard rule wants, as far as this VM is concerned.
fn wrong_about(state: &State<'_, '_>, vm: VmIx, rule: RuleIx) -> String {
    let (problem, at) = (state.problem, state.at(vm));
    let (info, host) = (problem.rule(rule), problem.host(at).id);
    let id = info.id;
    match &info.body {
        RuleBody::Hosts { .. } => format!("rule {id} does not let it run on host {host}"),
        RuleBody::Apart { most: 1 } => {
            format!("host {host} has another VM that rule {id} keeps it apart from")
        }
        RuleBody::Apart { most } => {
            format!("there are more than {most} VMs of rule {id} where it is")
        }
        RuleBody::Distinct { least } => {
            format!("the VMs of rule {id} are in fewer than {least} domains")
        }
        RuleBody::Within { most: 1 } => format!("rule {id} wants its VMs together"),
        RuleBody::Within { most } => format!("rule {id} allows its VMs on {most} hosts only"),
        RuleBody::Near => format!("nothing that it needs by rule {id} is near it"),
        RuleBody::Among { .. } => format!("rule {id} wants its VMs in one group of hosts"),
    }
}

fn of_stuck(
    state: &State<'_, '_>,
    cores: &mut Cores<'_, '_>,
    vm: VmIx,
    cause: Cause,
    why: &str,
    options: &PlanOptions,
) -> Verdict {
    let but = |reason: String, remedy: String| stuck(format!("{why}, but {reason}"), remedy);
    let info = state.problem.vm(vm);
    if let Some(Refusal { reason, remedy, .. }) = why_it_cannot_leave(state.problem, vm) {
        return but(reason, remedy);
    }
    if !allowed_by_options(cause, options) {
        let (reason, remedy) = not_asked(state.problem, options);
        return but(reason.to_owned(), remedy.to_owned());
    }
    if !info.automation_allows(cause) {
        let level = match info.vm.automation {
            Automation::Partial => "partial, which covers maintenance only",
            _ => "manual",
        };
        return but(
            format!("its automation is {level}"),
            format!("run 'ballast vm migrate {}', or raise its automation", info.id),
        );
    }
    let (reason, remedy) = why_no_target(state, vm, cause, options);
    if let Some(core) = cores.of(vm) {
        let reason = format!("{why}, but {reason}; {}", core.reason);
        return Verdict::Stuck { reason, remedy: core.remedy, core: core.constraints };
    }
    match cores.memory_short() {
        Some(short) => but(format!("{reason}; {}", short.reason), short.remedy),
        None => but(reason, remedy),
    }
}

/// Why a plan leaves something as it is that it could mend, and what would change that.
fn not_asked(problem: &Problem<'_>, options: &PlanOptions) -> (&'static str, &'static str) {
    if drain::is_quiet(problem, options) {
        return (
            "nothing moves for that while a host drains with least disturbance",
            "wait until no host drains, or use another goal of drains",
        );
    }
    ("this plan was not asked to mend that", "plan for all causes")
}

fn allowed_by_options(cause: Cause, options: &PlanOptions) -> bool {
    match cause {
        Cause::Rule(_) | Cause::Needs => options.causes.rules,
        Cause::Preference(_) => options.causes.preferences,
        Cause::Capacity => options.causes.capacity,
        Cause::Drain | Cause::Quarantine => options.causes.drain,
        Cause::Balance => options.causes.balance,
    }
}

/// Counts what stands between the VM and all hosts, and names the way out that is nearest.
pub(crate) fn why_no_target(
    state: &State<'_, '_>,
    vm: VmIx,
    cause: Cause,
    options: &PlanOptions,
) -> (String, String) {
    let problem = state.problem;
    let (mut full, mut closed, mut other, mut busy) = (0_usize, 0, 0, 0);
    let (mut unfit, mut diskless, mut intolerant) = (0_usize, 0_usize, 0_usize);
    let mut survey = Survey::new(state, vm);
    let mut freest: Option<(Bytes, HostIx)> = None;
    let mut rules = BTreeSet::new();
    for host in problem.host_ixs() {
        let parted = || state.discrete_broken(vm, host).map(|rule| Obstacle::Broken { rule });
        match state.obstacle_but_losses(vm, host).or_else(parted) {
            Some(Obstacle::Here) => {}
            Some(Obstacle::Closed | Obstacle::Unknown) => closed += 1,
            Some(Obstacle::Memory { free }) => {
                full += 1;
                if freest.is_none_or(|(most, _)| free > most) {
                    freest = Some((free, host));
                }
            }
            Some(Obstacle::Forbidden { rule } | Obstacle::Broken { rule }) => {
                other += 1;
                rules.insert(problem.rule(rule).id.to_string());
            }
            Some(Obstacle::Disk { .. }) => diskless += 1,
            Some(Obstacle::Cpu | Obstacle::Lacks { .. } | Obstacle::Numa) => unfit += 1,
            Some(Obstacle::Intolerant) => intolerant += 1,
            None if !state.cpu_allows(vm, host, cause, options) => busy += 1,
            None if !survey.keeps(host) => intolerant += 1,
            None => other += 1,
        }
    }
    let mut parts = Vec::new();
    if let Some((free, host)) = freest {
        parts.push(format!(
            "{full} lack memory (it needs {}, the most free is {free} on {})",
            Bytes(problem.vm(vm).memory),
            problem.host(host).id
        ));
    }
    if !rules.is_empty() {
        let names: Vec<String> = rules.into_iter().take(4).collect();
        parts.push(format!("{other} are ruled out by {}", names.join(", ")));
    } else if other > 0 {
        parts.push(format!("{other} would be no better"));
    }
    if busy > 0 {
        parts.push(format!("{busy} would pass the CPU ceiling of {}", options.cpu_ceiling));
    }
    if diskless > 0 {
        let disks = problem.vm(vm).vm.local_disks;
        parts.push(format!("{diskless} lack room for its {disks} of local disks"));
    }
    if intolerant > 0 {
        parts.push(format!(
            "with it on {intolerant} {}",
            strands(problem.snapshot.policy.failures_tolerated as usize)
        ));
    }
    if unfit > 0 {
        parts.push(format!("{unfit} lack what it needs besides memory"));
    }
    if closed > 0 {
        parts.push(format!("{closed} drain or are unknown"));
    }
    let reason = match parts.is_empty() {
        true => "there is no other host".to_owned(),
        false => format!("no other host can take it: {}", parts.join(", ")),
    };
    let remedy = match freest {
        _ if intolerant > 0 => REMEDY_OF_LOSSES.to_owned(),
        Some((free, host)) => format!(
            "free {} of memory on host {}, or add a host",
            Bytes(problem.vm(vm).memory).saturating_sub(free),
            problem.host(host).id
        ),
        None if diskless > 0 => "make room for local disks on a host, or add a host".to_owned(),
        None if closed > 0 => "uncordon a host or mend its agent, or add a host".to_owned(),
        None if cause == Cause::Needs => "let another host offer it, or add a host".to_owned(),
        None => "change the rules, or add a host".to_owned(),
    };
    (reason, remedy)
}
