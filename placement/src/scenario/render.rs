//! A plan as text that a reader checks at a glance.

use ballast_model::plan::{StepCause, StepCost, TermChange};
use ballast_model::{ClusterSnapshot, HostState, Planning, Ratio, Step, Telemetry, Verdict, VmId};

use super::answers::{line, refused};
use crate::{PlanOptions, Usage, plan, usage};

/// Characters of a bar.
const BAR: usize = 10;

/// The plan: before, steps, after, and who ought to move and cannot.
pub(super) fn planned(snapshot: &ClusterSnapshot, planning: &Planning, explain: bool) -> String {
    let plan = &planning.plan;
    let mut text = String::new();
    line(&mut text, format_args!("before: imbalance {}", plan.imbalance_before));
    text += &hosts(snapshot);
    for (n, step) in plan.steps.iter().enumerate() {
        text += &step_lines(n, step, plan.steps.len(), explain);
    }
    if plan.steps.is_empty() {
        text += "no steps\n";
    } else {
        line(&mut text, format_args!("after: imbalance {}", plan.imbalance_after));
        text += &hosts(&after(snapshot, &plan.steps));
    }
    for (vm, verdict) in &planning.verdicts {
        text += &verdict_lines(vm, verdict, explain);
    }
    text
}

fn step_lines(n: usize, step: &Step, steps: usize, explain: bool) -> String {
    let cause = match &step.cause {
        StepCause::Drain => "drain".to_owned(),
        StepCause::Rule { rule } => format!("rule {rule}"),
        StepCause::Needs => "needs".to_owned(),
        StepCause::Capacity => "capacity".to_owned(),
        StepCause::Balance => "balance".to_owned(),
    };
    let after: Vec<String> = step.after.iter().map(usize::to_string).collect();
    let after =
        if after.is_empty() { String::new() } else { format!(", after {}", after.join(" ")) };
    let width = if steps > 10 { 2 } else { 1 };
    let mut text = format!("{n:width$} {} {} -> {}: {cause}{after}\n", step.vm, step.from, step.to);
    line(&mut text, format_args!("    {}", step.reason));
    if explain {
        let terms: Vec<String> = step.terms.iter().map(TermChange::to_string).collect();
        let StepCost { bytes, duration } = step.cost;
        line(&mut text, format_args!("    changes {}", terms.join(", ")));
        line(&mut text, format_args!("    sends {bytes} in {:.1} s", duration.as_secs_f64()));
    }
    text
}

fn verdict_lines(vm: &VmId, verdict: &Verdict, explain: bool) -> String {
    match verdict {
        Verdict::Stays { reason, .. } if explain => format!("{vm} stays: {reason}\n"),
        Verdict::Stuck { reason, remedy, .. } => {
            format!("{vm} is stuck: {reason}\n    remedy: {remedy}\n")
        }
        Verdict::Stays { .. } | Verdict::Moves { .. } => String::new(),
    }
}

/// How long the plan takes, and how long until the last VM has left a host that drains.
pub(super) fn times(planning: &Planning) -> String {
    let report = &planning.report;
    let emptied = match report.emptied {
        Some(emptied) => format!(", the last VM has left after {:.1} s", emptied.as_secs_f64()),
        None => String::new(),
    };
    format!("takes {:.1} s{emptied}\n", report.makespan.as_secs_f64())
}

/// What a plan on the state this plan leads to would do: nothing, or the planner is not settled.
pub(super) fn again(
    snapshot: &ClusterSnapshot,
    options: &PlanOptions,
    planning: &Planning,
) -> String {
    let mut snapshot = after(snapshot, &planning.plan.steps);
    snapshot.revision = planning.plan.snapshot;
    match plan(&snapshot, options) {
        Ok(second) if second.plan.steps.is_empty() => String::new(),
        Ok(second) => format!("again: {} more steps\n", second.plan.steps.len()),
        Err(refusal) => refused("again", &refusal),
    }
}

fn after(snapshot: &ClusterSnapshot, steps: &[Step]) -> ClusterSnapshot {
    let mut snapshot = snapshot.clone();
    for step in steps {
        snapshot.relocate(&step.vm, &step.to);
    }
    snapshot
}

/// One line a host: bars of CPU and memory, and the VMs on it.
fn hosts(snapshot: &ClusterSnapshot) -> String {
    let Ok(usage) = usage(snapshot) else { return String::new() };
    let name = snapshot.hosts.keys().map(|id| id.as_str().len()).max().unwrap_or(0);
    let mut text = String::new();
    for (id, host) in &snapshot.hosts {
        let Some(used) = usage.get(id) else { continue };
        let note = match (&host.telemetry, host.state) {
            (Telemetry::Unknown { .. }, _) => " (unknown)",
            (_, HostState::Draining) => " (draining)",
            (_, HostState::Quarantined) => " (quarantined)",
            (_, HostState::Active) => "",
        };
        let on = snapshot.vms.values().filter(|vm| vm.host == *id);
        let vms: Vec<&str> = on.map(|vm| vm.id.as_str()).collect();
        let vms = if vms.is_empty() { "-".to_owned() } else { vms.join(" ") };
        let (cpu, memory) = (cpu_bar(used), memory_bar(used));
        line(&mut text, format_args!("  {id:name$}  cpu {cpu}  mem {memory}  {vms}{note}"));
    }
    text
}

fn cpu_bar(used: &Usage) -> String {
    bar(used.cpu_demand.get(), used.cpu_capacity.get())
}

fn memory_bar(used: &Usage) -> String {
    let taken = used.memory_overhead + used.memory_vms + used.memory_moving;
    bar(taken.get(), used.memory_capacity.get())
}

/// `####......`, with `!` at the end when it is over.
fn bar(used: u64, capacity: u64) -> String {
    let share = Ratio::new(used as f64 / capacity.max(1) as f64).get();
    if used > capacity {
        return "#".repeat(BAR - 1) + "!";
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 0 and BAR
    let full = (share * BAR as f64).round().clamp(0.0, BAR as f64) as usize;
    "#".repeat(full) + &".".repeat(BAR - full)
}
