//! The answers to all questions but a plan, each in one line or a few.

use std::fmt::Write;

use ballast_model::{DrainGoal, Refusal};

use super::{Question, Scenario, render};
use crate::ask::{self, Consolidation, RebootGroups, Restart, Room, Spare};
use crate::explain::{check_rule, conflict};
use crate::{check_move, check_start, check_step, choose_target, place, plan};

/// The answer to one question; a refusal is an answer like any other.
pub(super) fn answer(scenario: &Scenario, question: &Question) -> String {
    let (snapshot, options) = (&scenario.snapshot, &scenario.options);
    match question {
        Question::Plan { explain, drain } => a_plan(scenario, *explain, *drain),
        Question::Check { vm, host } => {
            said(&format!("check {vm} -> {host}"), check_step(snapshot, vm, host).map(yes))
        }
        Question::Move { vm, host } => {
            said(&format!("move {vm} -> {host}"), check_move(snapshot, vm, host).map(yes))
        }
        Question::Start { vm, host } => {
            said(&format!("start {vm} on {host}"), check_start(snapshot, vm, host).map(yes))
        }
        Question::Target { vm } => {
            said(&format!("target of {vm}"), choose_target(snapshot, vm, options))
        }
        Question::Place { vm, size } => {
            said(&format!("place {vm}"), place(snapshot, vm, *size, options))
        }
        Question::WhatIf { change } => what_if(scenario, change),
        Question::Restart { lost } => {
            let names: Vec<&str> = lost.iter().map(|host| host.as_str()).collect();
            let what = format!("restart without {}", names.join(" "));
            said(&what, ask::restart(snapshot, lost, options).map(|found| restart(&found)))
        }
        Question::Spare { shape, failures } => {
            let what = format!("spare for {} with {failures} failures", shape.size.memory);
            said(&what, ask::spare(snapshot, shape, *failures, options).map(|found| spare(&found)))
        }
        Question::Room { shape } => {
            let what = format!("room for {}", shape.size.memory);
            said(&what, ask::room(snapshot, shape, options).map(|found| room(&found)))
        }
        Question::RebootGroups { group_max } => {
            let found = ask::reboot_groups(snapshot, *group_max, options);
            said("reboot groups", found.map(|found| groups(&found)))
        }
        Question::Consolidate { hosts_min } => {
            let found = ask::consolidate(snapshot, *hosts_min, options);
            said("consolidate", found.map(|found| consolidation(&found)))
        }
        Question::Conflict => said(
            "conflict",
            conflict(snapshot).map(|found| match found {
                None => "none".to_owned(),
                Some(conflict) => format!("{}: {}", list(&conflict.rules), conflict.why),
            }),
        ),
        Question::Rule { rule } => {
            said(&format!("rule {}", rule.id), check_rule(snapshot, rule).map(yes))
        }
    }
}

/// A plan, and that planning again yields nothing; with a goal of drains how long it takes.
fn a_plan(scenario: &Scenario, explain: bool, drain: Option<DrainGoal>) -> String {
    let mut snapshot = scenario.snapshot.clone();
    if let Some(goal) = drain {
        snapshot.set_drain_goal(goal);
    }
    let options = &scenario.options;
    let planning = match plan(&snapshot, options) {
        Ok(planning) => planning,
        Err(refusal) => return refused("plan", &refusal),
    };
    let goal = drain.map_or_else(String::new, |goal| format!("drain {goal}:\n"));
    let times = drain.map_or_else(String::new, |_| render::times(&planning));
    let planned = render::planned(&snapshot, &planning, explain);
    goal + &planned + &times + &render::again(&snapshot, options, &planning)
}

fn said(what: &str, answer: Result<impl std::fmt::Display, Refusal>) -> String {
    match answer {
        Ok(answer) => format!("{what}: {answer}\n"),
        Err(refusal) => refused(what, &refusal),
    }
}

pub(super) fn refused(what: &str, refusal: &Refusal) -> String {
    let Refusal { code, reason, remedy } = refusal;
    format!("{what}: {} {reason}\n    remedy: {remedy}\n", code.name())
}

fn yes((): ()) -> &'static str {
    "yes"
}

/// Names with spaces between them, `-` for none.
fn list<T: std::fmt::Display>(names: &[T]) -> String {
    let names: Vec<String> = names.iter().map(T::to_string).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(" ") }
}

fn what_if(scenario: &Scenario, change: &str) -> String {
    let what = format!("what if {change}");
    let changed = match ask::what_if(&scenario.snapshot, change, &scenario.options) {
        Ok(changed) => changed,
        Err(refusal) => return refused(&what, &refusal),
    };
    let mut text = format!("{what}:\n");
    for note in &changed.notes {
        line(&mut text, format_args!("  {note}"));
    }
    match plan(&changed.snapshot, &scenario.options) {
        Ok(planning) => text + &render::planned(&changed.snapshot, &planning, false),
        Err(refusal) => text + &refused("plan", &refusal),
    }
}

fn restart(found: &Restart) -> String {
    let mut text =
        format!("{} of {}", found.starts.len(), found.starts.len() + found.stranded.len());
    for start in &found.starts {
        text += &format!("\n  {} {} -> {}", start.vm, start.from, start.to);
    }
    for (vm, why) in &found.stranded {
        text += &format!("\n  {vm} is stranded: {}\n    remedy: {}", why.reason, why.remedy);
    }
    text
}

fn spare(found: &Spare) -> String {
    let on = found.by_host.iter().map(|(host, count)| format!("{host} {count}"));
    let on: Vec<String> = on.collect();
    let on = if on.is_empty() { String::new() } else { format!(" ({})", on.join(", ")) };
    format!(
        "{}{on}, {} without failures\n  limit: {}",
        found.vms, found.vms_without_failures, found.limit
    )
}

fn room(found: &Room) -> String {
    let mut text = format!("on {}", found.host);
    if !found.moves.is_empty() {
        text += &format!(" when {} have moved", found.bytes);
    }
    for (vm, to) in &found.moves {
        text += &format!("\n  {vm} -> {to}");
    }
    text
}

fn groups(found: &RebootGroups) -> String {
    let groups = found.groups.iter().enumerate();
    let mut text: String =
        groups.map(|(n, hosts)| format!("\n  round {}: {}", n + 1, list(hosts))).collect();
    if !found.stuck.is_empty() {
        text += &format!("\n  cannot be emptied: {}", list(&found.stuck));
    }
    format!("{} rounds{text}", found.groups.len())
}

fn consolidation(found: &Consolidation) -> String {
    format!(
        "empty {}; can be emptied {}; {} moves of {}",
        list(&found.empty),
        list(&found.emptied),
        found.moves,
        found.bytes
    )
}

/// Writing to a string cannot fail.
pub(super) fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _infallible = writeln!(text, "{arguments}");
}
