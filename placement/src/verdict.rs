//! Why each VM moves, stays or is stuck, in an operator's words.

use std::collections::{BTreeMap, BTreeSet};

use ballast_model::plan::{Alternative, StepCost};
use ballast_model::vm::Automation;
use ballast_model::{Bytes, Ratio, Refusal, Verdict, VmId};

use crate::cost;
use crate::door::losses::{Survey, strands};
use crate::door::obstacle::Obstacle;
use crate::door::problem::{HostIx, Problem, RuleIx, VmIx};
use crate::door::reach::Coming;
use crate::door::rules::RuleBody;
use crate::door::state::{Cause, Move, State};
use crate::eligibility::{REMEDY_OF_LOSSES, explain, missing_words, why_it_cannot_leave};
use crate::explain::core::Cores;
use crate::options::{DrainGoal, PlanOptions};
use crate::score::{CPU, MEMORY};
use crate::solve::{self, Best, scan::Scan};

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

/// What a step is for besides its own VM.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Purpose {
    /// The VM that comes to where this one was, and waits for it.
    makes_room_for: Option<VmIx>,
    /// The earlier step that brought the VM to where it leaves.
    came_in: Option<usize>,
    /// The later step that takes the VM on.
    goes_on_in: Option<usize>,
}

/// The purposes of the steps, each with the indices of those it waits for.
pub(crate) fn purposes(
    problem: &Problem<'_>,
    moves: &[Move],
    after: &[Vec<usize>],
) -> Vec<Purpose> {
    let mut purposes = vec![Purpose::default(); moves.len()];
    let mut next: BTreeMap<VmIx, usize> = BTreeMap::new();
    for (n, step) in moves.iter().enumerate().rev() {
        // One that has left a draining host is where it may stay; what moves it later is another matter.
        let is_settled =
            |later: &usize| problem.host(step.from).draining() && !moves[*later].cause.is_forced();
        let later = next.insert(step.vm, n).filter(|later| !is_settled(later));
        purposes[n].goes_on_in = later;
        if let Some(later) = later {
            purposes[later].came_in = Some(n);
        }
        for &earlier in after.get(n).into_iter().flatten() {
            if moves[earlier].from == step.to && moves[earlier].vm != step.vm {
                // Steps are visited from the last: the first to come is what stays.
                purposes[earlier].makes_room_for = Some(step.vm);
            }
        }
    }
    purposes
}

/// Why a step is made; `state` is the one after it.
pub(crate) fn of_move(
    state: &State<'_, '_>,
    step: &Move,
    purpose: Purpose,
    before: &Shares,
    gain: f64,
    options: &PlanOptions,
) -> String {
    let problem = state.problem;
    let (from, to) = (problem.host(step.from).id, problem.host(step.to).id);
    let other = |fallback: &str| match purpose.makes_room_for {
        Some(vm) => format!("VM {}", problem.vm(vm).id),
        None => fallback.to_owned(),
    };
    if let Some(next) = purpose.goes_on_in {
        let other = other("a VM that needs its place");
        return format!(
            "it makes room on {from} for {other} and waits on {to}; step {next} takes it on"
        );
    }
    let why = match (purpose.came_in, step.cause) {
        (Some(earlier), _) => {
            format!("it has waited on {from} since step {earlier}; {to} has room now")
        }
        (None, cause) if makes_room(state, step, cause) => {
            format!("it makes room on {from} for {}", other("a VM that has to move"))
        }
        (None, Cause::Rule(rule)) => {
            format!("on host {from} it breaks rule {}; {to} keeps it", problem.rule(rule).id)
        }
        (None, Cause::Needs) => {
            let missing =
                missing_words(&problem.vm(step.vm).vm.needs, problem.host(step.from).host);
            format!("host {from} does not offer {missing}, which it needs; {to} does")
        }
        (None, Cause::Preference(rule)) => {
            format!("rule {} prefers it elsewhere than on {from}", problem.rule(rule).id)
        }
        (None, Cause::Capacity) => format!(
            "host {from} holds more than its {} of memory; {to} has room",
            problem.host(step.from).host.capacity.memory
        ),
        (None, Cause::Drain) => format!("host {from} is being emptied; {to} has room"),
        (None, Cause::Quarantine) => {
            format!("host {from} is under suspicion; {to} takes it without harm")
        }
        (None, Cause::Balance) if gain < 0.0 => {
            let other = other("a VM that levels more than this costs");
            format!("it makes room on {from} for {other}")
        }
        (None, Cause::Balance) => format!(
            "host {from} is at {} and {to} at {}: moving it lowers the imbalance by {}",
            before.from,
            before.to,
            points(gain)
        ),
    };
    let mut reason = format!("{why}; {to} is at {} then", shares(state, step.to));
    if step.cause.is_forced() && state.share(step.to, CPU) > options.cpu_ceiling {
        let because = above_ceiling_because(step.cause, options.drain);
        reason.push_str(&format!(
            ", above the CPU ceiling of {}, because {because}",
            options.cpu_ceiling
        ));
    }
    reason
}

fn above_ceiling_because(cause: Cause, goal: DrainGoal) -> &'static str {
    match (cause, goal) {
        (Cause::Drain, DrainGoal::Fastest) => "that empties the host soonest",
        (Cause::Drain, DrainGoal::LeastDisturbing) => "that disturbs least",
        _ => "no better host can take it",
    }
}

/// Whether the VM has the cause of another one, which needs its place.
fn makes_room(state: &State<'_, '_>, step: &Move, cause: Cause) -> bool {
    let problem = state.problem;
    match cause {
        Cause::Drain => !problem.host(step.from).draining(),
        Cause::Rule(rule) => problem.vm(step.vm).rules.iter().all(|(own, _)| *own != rule),
        Cause::Needs => problem.reach.meets(step.vm, step.from, Coming::Starting),
        Cause::Capacity => {
            let left = state.memory_taken(step.from).saturating_add(problem.vm(step.vm).memory);
            left <= problem.host(step.from).memory
        }
        Cause::Quarantine | Cause::Preference(_) | Cause::Balance => false,
    }
}

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
        let (reason, remedy) = not_asked(options);
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
fn not_asked(options: &PlanOptions) -> (&'static str, &'static str) {
    match options.drain {
        DrainGoal::LeastDisturbing => (
            "nothing moves for that while a host drains with least disturbance",
            "wait until no host drains, or use another goal of drains",
        ),
        DrainGoal::Balanced | DrainGoal::Fastest => {
            ("this plan was not asked to mend that", "plan for all causes")
        }
    }
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

/// A VM that is well where it is: the best that could be done with it, and what forbids or outweighs that.
fn of_levelled(state: &State<'_, '_>, scan: &Scan, vm: VmIx, options: &PlanOptions) -> Verdict {
    let automation = state.problem.vm(vm).vm.automation;
    let by_hand = "its automation is manual: only an operator moves it";
    if !options.causes.balance {
        return stays(match automation {
            Automation::Manual => by_hand,
            _ if options.drain == DrainGoal::LeastDisturbing => {
                "nothing moves for balance while a host drains with least disturbance"
            }
            _ => "nothing is wrong with it where it is",
        });
    }
    let best = solve::best_unhindered(state, scan, vm, f64::NEG_INFINITY);
    let Some(best) = best else {
        return stays("there is no other host that takes VMs");
    };
    let alternative = alternative(state, vm, &best, options);
    let reason = if best.gain < options.gain_floor() * state.problem.vm(vm).price {
        outweighed(&alternative)
    } else {
        let would = format!("{} would be better by {}", alternative.to, points(alternative.gain));
        format!("{would}, but {}", forbidden(state, vm, best.to, options))
    };
    Verdict::Stays { reason, alternative: Some(alternative) }
}

fn alternative(state: &State<'_, '_>, vm: VmIx, best: &Best, options: &PlanOptions) -> Alternative {
    let (problem, info) = (state.problem, state.problem.vm(vm));
    let to = problem.host(best.to);
    let cost = cost::of_move(info.vm, problem.host(state.at(vm)).host, to.host);
    Alternative {
        to: to.id.clone(),
        gain: imbalance_fall(state, best.gain),
        worth: best.gain.max(0.0).sqrt(),
        worth_min: (options.gain_floor() * info.price).sqrt(),
        cost_bytes: cost.bytes.get(),
        cost_micros: u64::try_from(cost.duration.as_micros()).unwrap_or(u64::MAX),
    }
}

/// Why the best move of a VM is not worth it.
fn outweighed(best: &Alternative) -> String {
    if best.gain.abs() < GAIN_SHOWN_MIN {
        return format!("its best move, to {}, would leave the imbalance as it is", best.to);
    }
    if best.gain < 0.0 {
        return format!(
            "every move of it would raise the imbalance, the best, to {}, by {}",
            best.to,
            points(-best.gain)
        );
    }
    format!(
        "its best move, to {}, would lower the imbalance by {} and send {}: worth a host {} off the mean, {} is the least",
        best.to,
        points(best.gain),
        Bytes(best.cost_bytes),
        Ratio::new(best.worth),
        Ratio::new(best.worth_min)
    )
}

/// Why a move that would be worth it is not made.
fn forbidden(state: &State<'_, '_>, vm: VmIx, to: HostIx, options: &PlanOptions) -> String {
    const NO_OTHER: &str = "no other host is worth the move";
    let problem = state.problem;
    let (info, to_id) = (problem.vm(vm), problem.host(to).id);
    let by_hand = |level: &str| {
        format!(
            "its automation is {level}; to move it, run 'ballast vm migrate {} --to {to_id}'",
            info.id
        )
    };
    let blocked = state.obstacle(vm, to).map(|o| explain(state, vm, to, o).reason);
    if let Some(why) = blocked {
        format!("{why}, and {NO_OTHER}")
    } else if !state.cpu_allows(vm, to, Cause::Balance, options) {
        let cpu = Ratio::new(state.cpu_share_after(vm, to));
        let ceiling = options.cpu_ceiling;
        format!("would reach {cpu} CPU, above the ceiling of {ceiling}, and {NO_OTHER}")
    } else if info.vm.automation == Automation::Partial {
        by_hand("partial, which covers maintenance only")
    } else if info.vm.automation == Automation::Manual {
        by_hand("manual")
    } else if let Some(rule) = state.discrete_broken(vm, to) {
        format!("rule {} would not hold then", problem.rule(rule).id)
    } else if state.preference_change(vm, to) > 0 {
        format!("a rule prefers it where it is, and {NO_OTHER}")
    } else {
        "the search ended before it; a later plan may move it".to_owned()
    }
}

/// What a fall of the spread means for the imbalance.
fn imbalance_fall(state: &State<'_, '_>, fall: f64) -> f64 {
    let (spread, now) = (state.sums().spread(), state.sums().imbalance().get());
    now - state.sums().imbalance_of((spread - fall).max(0.0)).get()
}
