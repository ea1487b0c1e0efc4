//! Why a VM moves.

use std::collections::BTreeMap;

use ballast_model::DrainGoal;

use super::points;
use crate::door::problem::{HostIx, Problem, RuleIx, VmIx};
use crate::door::reach::Coming;
use crate::door::state::{Cause, Move, State};
use crate::eligibility::missing_words;
use crate::options::PlanOptions;
use crate::score::{CPU, MEMORY};

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
    /// Another VM of the plan, and the rule that does not let this one go without it.
    goes_with: Option<(VmIx, RuleIx)>,
}

impl Purpose {
    /// The VM that gets the room, in words, or these when that is not known.
    fn beneficiary(&self, problem: &Problem<'_>, fallback: &str) -> String {
        match self.makes_room_for {
            Some(vm) => format!("VM {}", problem.vm(vm).id),
            None => fallback.to_owned(),
        }
    }
}

/// The purposes of the steps, each with the indices of those it waits for; `start` is the state before the first.
pub(crate) fn purposes(
    start: &State<'_, '_>,
    moves: &[Move],
    after: &[Vec<usize>],
) -> Vec<Purpose> {
    let mut purposes = vec![Purpose::default(); moves.len()];
    let mut next: BTreeMap<VmIx, usize> = BTreeMap::new();
    for (n, step) in moves.iter().enumerate().rev() {
        // One that has left a draining host is where it may stay; what moves it later is another matter.
        let is_settled = |later: &usize| {
            start.problem.host(step.from).draining() && !moves[*later].cause.is_forced()
        };
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
    for (step, purpose) in moves.iter().zip(&mut purposes) {
        if step.cause == Cause::Balance && start.at(step.vm) == step.from {
            purpose.goes_with = companion(start, step, |vm| next.contains_key(&vm));
        }
    }
    purposes
}

/// Another VM that moves, and the rule by which the step could not be made without it.
fn companion(
    start: &State<'_, '_>,
    step: &Move,
    moves: impl Fn(VmIx) -> bool,
) -> Option<(VmIx, RuleIx)> {
    let rule = start.discrete_broken(step.vm, step.to)?;
    let info = start.problem.rule(rule);
    let mut others = info.vms.iter().chain(&info.needs).copied();
    others.find(|other| *other != step.vm && moves(*other)).map(|other| (other, rule))
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
    let other = |fallback: &str| purpose.beneficiary(problem, fallback);
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
        (None, Cause::Balance) => of_balance(state, step, purpose, before, gain),
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

/// Why a step is made that levels load, or lets others do so.
fn of_balance(
    state: &State<'_, '_>,
    step: &Move,
    purpose: Purpose,
    before: &Shares,
    gain: f64,
) -> String {
    let problem = state.problem;
    let (from, to) = (problem.host(step.from).id, problem.host(step.to).id);
    let loads = format!("host {from} is at {} and {to} at {}", before.from, before.to);
    if let Some((other, rule)) = purpose.goes_with {
        let (other, rule) = (problem.vm(other).id, problem.rule(rule).id);
        let changes = if gain < 0.0 { "raises" } else { "lowers" };
        return format!(
            "it goes with VM {other}, as rule {rule} demands: {loads}; its part {changes} the imbalance by {}",
            points(gain.abs())
        );
    }
    if gain < 0.0 {
        let other = purpose.beneficiary(problem, "a VM that levels more than this costs");
        return format!("it makes room on {from} for {other}");
    }
    format!("{loads}: moving it lowers the imbalance by {}", points(gain))
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
