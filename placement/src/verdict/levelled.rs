//! Why a VM stays that is well where it is.

use ballast_model::plan::Alternative;
use ballast_model::vm::Automation;
use ballast_model::{Bytes, Ratio, Verdict};

use super::{GAIN_SHOWN_MIN, points, stays};
use crate::cost;
use crate::door::problem::{HostIx, RuleIx, VmIx};
use crate::door::state::{Cause, State};
use crate::drain;
use crate::eligibility::explain;
use crate::options::PlanOptions;
use crate::solve::group_moves::{self, Against, Held};
use crate::solve::{self, Best, scan::Scan};

/// VMs of a group that are named.
const NAMED_MAX: usize = 3;

/// A VM that is well where it is: the best that could be done with it, and what forbids or outweighs that.
pub(super) fn verdict(
    state: &State<'_, '_>,
    scan: &Scan,
    vm: VmIx,
    options: &PlanOptions,
) -> Verdict {
    let automation = state.problem.vm(vm).vm.automation;
    let by_hand = "its automation is manual: only an operator moves it";
    if !options.causes.balance {
        return stays(match automation {
            Automation::Manual => by_hand,
            _ if drain::is_quiet(state.problem, options) => {
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
        format!("{would}, but {}", forbidden(state, scan, vm, best.to, options))
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
fn forbidden(
    state: &State<'_, '_>,
    scan: &Scan,
    vm: VmIx,
    to: HostIx,
    options: &PlanOptions,
) -> String {
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
        tied(state, scan, vm, rule, options)
    } else if state.preference_change(vm, to) > 0 {
        format!("a rule prefers it where it is, and {NO_OTHER}")
    } else {
        "the search ended before it; a later plan may move it".to_owned()
    }
}

/// Why a VM does not go that a rule holds where it is, or where others are.
fn tied(
    state: &State<'_, '_>,
    scan: &Scan,
    vm: VmIx,
    rule: RuleIx,
    options: &PlanOptions,
) -> String {
    let (problem, rule) = (state.problem, state.problem.rule(rule).id);
    let Some((others, held)) = group_moves::held(state, scan, vm, options) else {
        return format!("rule {rule} would not hold then");
    };
    let mut names: Vec<String> =
        others.iter().take(NAMED_MAX).map(|vm| problem.vm(*vm).id.to_string()).collect();
    if others.len() > NAMED_MAX {
        names.push(format!("{} more", others.len() - NAMED_MAX));
    }
    format!(
        "rule {rule} keeps it with {}, and {}",
        names.join(", "),
        why_held(state, &held, options)
    )
}

/// Why a group as a whole stays.
fn why_held(state: &State<'_, '_>, held: &Held, options: &PlanOptions) -> String {
    let problem = state.problem;
    let id = |host: HostIx| problem.host(host).id;
    match held {
        Held::Fixed(vm) => format!("VM {} is not to be moved for balance", problem.vm(*vm).id),
        Held::Outweighed(best) => {
            let to = id(best.to);
            let gain = imbalance_fall(state, best.gain);
            if gain.abs() < GAIN_SHOWN_MIN {
                format!("the best move of all of them, to {to}, would leave the imbalance as it is")
            } else if gain < 0.0 {
                let rise = points(-gain);
                format!(
                    "every move of all of them would raise the imbalance, the best, to {to}, by {rise}"
                )
            } else {
                let fall = points(gain);
                format!(
                    "the best move of all of them, to {to}, would lower the imbalance by {fall}: less than it costs"
                )
            }
        }
        Held::Kept(to, Against::Memory(needed)) => format!(
            "all of them need {} of memory, of which {}, the best host for them, has {} free",
            Bytes(*needed),
            id(*to),
            state.memory_free(*to)
        ),
        Held::Kept(to, Against::Ceiling(share)) => format!(
            "all of them would take {}, the best host for them, to {} CPU, above the ceiling of {}",
            id(*to),
            Ratio::new(*share),
            options.cpu_ceiling
        ),
        Held::Kept(to, Against::One(vm, obstacle)) => explain(state, *vm, *to, *obstacle).reason,
        Held::Refused(to) => format!(
            "rules or failures to tolerate keep them from {}, the best host for all of them",
            id(*to)
        ),
    }
}

/// What a fall of the spread means for the imbalance.
fn imbalance_fall(state: &State<'_, '_>, fall: f64) -> f64 {
    let (spread, now) = (state.sums().spread(), state.sums().imbalance().get());
    now - state.sums().imbalance_of((spread - fall).max(0.0)).get()
}
