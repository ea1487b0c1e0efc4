//! Why each VM moves, stays or is stuck, in an operator's words.

use std::collections::{BTreeMap, BTreeSet};

use ballast_model::plan::StepCost;
use ballast_model::vm::Automation;
use ballast_model::{Bytes, Ratio, Refusal, Verdict, VmId};

use crate::cost;
use crate::door::losses::Survey;
use crate::door::obstacle::Obstacle;
use crate::door::problem::{HostIx, RuleIx, VmIx};
use crate::door::rules::RuleBody;
use crate::door::state::{Cause, Move, State};
use crate::eligibility::{REMEDY_OF_LOSSES, explain, why_it_cannot_leave};
use crate::options::PlanOptions;
use crate::score::{CPU, MEMORY};
use crate::solve::{self, scan::Scan};

/// The loads of a move's two hosts before it.
pub(crate) struct Shares {
    from: String,
    to: String,
}

impl Shares {
    pub(crate) fn new(state: &State<'_, '_>, step: &Move) -> Self {
        Self { from: shares(state, step.from), to: shares(state, step.to) }
    }
}

/// E.g. `43.0 % CPU and 61.5 % memory`.
fn shares(state: &State<'_, '_>, host: HostIx) -> String {
    format!("{} CPU and {} memory", state.share(host, CPU), state.share(host, MEMORY))
}

/// The verdict on a VM that moves; `state` is the one after the move.
pub(crate) fn of_move(
    state: &State<'_, '_>,
    n: usize,
    step: &Move,
    before: &Shares,
    gain: f64,
    options: &PlanOptions,
) -> Verdict {
    let problem = state.problem;
    let (from, to) = (problem.host(step.from).id, problem.host(step.to).id);
    let why = match step.cause {
        cause if makes_room(state, step, cause) => {
            format!("it makes room on {from} for a VM that has to move")
        }
        Cause::Rule(rule) => {
            format!("on host {from} it breaks rule {}; {to} keeps it", problem.rule(rule).id)
        }
        Cause::Preference(rule) => {
            format!("rule {} prefers it elsewhere than on {from}", problem.rule(rule).id)
        }
        Cause::Capacity => format!(
            "host {from} holds more than its {} of memory; {to} has room",
            problem.host(step.from).host.capacity.memory
        ),
        Cause::Drain => format!("host {from} is being emptied; {to} has room"),
        Cause::Quarantine => {
            format!("host {from} is under suspicion; {to} takes it without harm")
        }
        Cause::Balance if gain < 0.0 => {
            format!("it makes room on {from} for a VM that levels more than this costs")
        }
        Cause::Balance => format!(
            "host {from} is at {} and {to} at {}: moving it lowers the imbalance by {}",
            before.from,
            before.to,
            points(gain)
        ),
    };
    let mut reason = format!("{why}; {to} is at {} then", shares(state, step.to));
    if step.cause.is_forced() && state.share(step.to, CPU) > options.cpu_ceiling {
        reason.push_str(&format!(
            ", above the CPU ceiling of {}, because no better host can take it",
            options.cpu_ceiling
        ));
    }
    Verdict::Moves { step: n, reason }
}

/// Whether the VM has the cause of another one, which needs its place.
fn makes_room(state: &State<'_, '_>, step: &Move, cause: Cause) -> bool {
    let problem = state.problem;
    match cause {
        Cause::Drain => !problem.host(step.from).draining(),
        Cause::Rule(rule) => problem.vm(step.vm).rules.iter().all(|(own, _)| *own != rule),
        Cause::Capacity => {
            let left = state.memory_taken(step.from).saturating_add(problem.vm(step.vm).memory);
            left <= problem.host(step.from).memory
        }
        Cause::Quarantine | Cause::Preference(_) | Cause::Balance => false,
    }
}

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
    let none_made = verdicts.is_empty();
    for vm in state.problem.vm_ixs() {
        let id = state.problem.vm(vm).id;
        if verdicts.contains_key(id) {
            continue;
        }
        let verdict = match last.get(&vm).filter(|step| step.to != state.at(vm)) {
            Some(step) if none_made => of_cut(state, step, found, options),
            Some(step) => Verdict::Stays {
                reason: format!(
                    "it would move to {}, but this plan ends after {}; a later one moves it",
                    state.problem.host(step.to).id,
                    options.budget()
                ),
            },
            None => of_unmoved(state, &scan, vm, options),
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
        return Verdict::Stays { reason };
    }
    Verdict::Stuck { reason, remedy: format!("allow plans of {}", more.budget()) }
}

fn of_unmoved(state: &State<'_, '_>, scan: &Scan, vm: VmIx, options: &PlanOptions) -> Verdict {
    let problem = state.problem;
    let info = problem.vm(vm);
    if let Some(bound_for) = info.bound_for {
        let reason = format!(
            "it is being migrated already, from {} to {}",
            problem.host(info.host).id,
            problem.host(bound_for).id
        );
        return Verdict::Stays { reason };
    }
    let ought = ought_to_move(state, vm);
    if let Some((cause, why)) = ought {
        return of_stuck(state, vm, cause, &why, options);
    }
    if let Some(refusal) = why_it_cannot_leave(problem, vm) {
        return Verdict::Stays { reason: refusal.reason };
    }
    if info.vm.automation == Automation::Manual {
        return Verdict::Stays {
            reason: "its automation is manual: only an operator moves it".to_owned(),
        };
    }
    of_levelled(state, scan, vm, options)
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
    vm: VmIx,
    cause: Cause,
    why: &str,
    options: &PlanOptions,
) -> Verdict {
    let stuck = |reason: String, remedy: String| Verdict::Stuck {
        reason: format!("{why}, but {reason}"),
        remedy,
    };
    let info = state.problem.vm(vm);
    if let Some(Refusal { reason, remedy, .. }) = why_it_cannot_leave(state.problem, vm) {
        return stuck(reason, remedy);
    }
    if !allowed_by_options(cause, options) {
        return stuck(
            "this plan was not asked to mend that".to_owned(),
            "plan for all causes".to_owned(),
        );
    }
    if !info.automation_allows(cause) {
        let level = match info.vm.automation {
            Automation::Partial => "partial, which covers maintenance only",
            _ => "manual",
        };
        return stuck(
            format!("its automation is {level}"),
            format!("run 'ballast vm migrate {}', or raise its automation", info.id),
        );
    }
    let (reason, remedy) = why_no_target(state, vm, cause, options);
    stuck(reason, remedy)
}

fn allowed_by_options(cause: Cause, options: &PlanOptions) -> bool {
    match cause {
        Cause::Rule(_) | Cause::Preference(_) => options.causes.rules,
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
            Some(Obstacle::Cpu | Obstacle::Lacks | Obstacle::Numa) => unfit += 1,
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
        let failures = problem.snapshot.policy.failures_tolerated;
        parts.push(format!(
            "with it on {intolerant} the loss of {failures} hosts would leave VMs without a place"
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
        None => "change the rules, or add a host".to_owned(),
    };
    (reason, remedy)
}

/// A VM that is well where it is: why nothing better is done with it.
fn of_levelled(state: &State<'_, '_>, scan: &Scan, vm: VmIx, options: &PlanOptions) -> Verdict {
    let (problem, at) = (state.problem, state.at(vm));
    if !options.causes.balance {
        return Verdict::Stays { reason: "nothing is wrong with it where it is".to_owned() };
    }
    let best = solve::best_unhindered(state, scan, vm, options.gain_floor());
    let Some(best) = best else {
        let sums = state.sums();
        return Verdict::Stays {
            reason: format!(
                "no move of it would level the load enough to be worth it: host {} is at {}, the mean is {} and {}",
                problem.host(at).id,
                shares(state, at),
                sums.mean(CPU),
                sums.mean(MEMORY)
            ),
        };
    };
    let to = problem.host(best.to).id;
    let would = format!("{to} would be better by {}", points(imbalance_fall(state, best.gain)));
    let blocked = state.obstacle(vm, best.to).map(|o| explain(state, vm, best.to, o).reason);
    let reason = if let Some(why) = blocked {
        format!("{would}, but {why}, and no other host is worth the move")
    } else if !state.cpu_allows(vm, best.to, Cause::Balance, options) {
        let cpu = Ratio::new(state.cpu_share_after(vm, best.to));
        format!(
            "{would}, but would reach {cpu} CPU, above the ceiling of {}, and no other host is worth the move",
            options.cpu_ceiling
        )
    } else if problem.vm(vm).vm.automation == Automation::Partial {
        format!(
            "{would}, but its automation is partial, which covers maintenance only; to move it, run \
             'ballast vm migrate {} --to {to}'",
            problem.vm(vm).id
        )
    } else if let Some(rule) = state.discrete_broken(vm, best.to) {
        format!("{would}, but rule {} would not hold then", problem.rule(rule).id)
    } else if state.preference_change(vm, best.to) > 0 {
        format!("{would}, but a rule prefers it where it is, and no other host is worth the move")
    } else {
        format!("{would}, but the search ended before it; a later plan may move it")
    };
    Verdict::Stays { reason }
}

/// What a fall of the spread means for the imbalance.
fn imbalance_fall(state: &State<'_, '_>, fall: f64) -> f64 {
    let (spread, now) = (state.sums().spread(), state.sums().imbalance().get());
    if spread <= 0.0 {
        return 0.0;
    }
    now - now * ((spread - fall).max(0.0) / spread).sqrt()
}
