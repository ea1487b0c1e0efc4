//! What a scenario asks, and how that is written.

use std::collections::BTreeSet;

use ballast_model::{DrainGoal, HostId, Millicores, Resources, Rule, VmId};

use super::rules;
use super::words::{Words, cpu, memory};
use crate::ask::Shape;

/// What a scenario asks of the planner.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// A plan, and that planning again afterwards yields nothing.
    Plan {
        /// Every verdict, not only of VMs that move or ought to, and what each step changes and costs.
        explain: bool,
        /// How hosts are emptied, if not as the options say; then also how long that takes.
        drain: Option<DrainGoal>,
    },
    /// Whether a VM may go to a host as a step of a plan.
    Check {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
    },
    /// Whether an operator may send a VM to a host.
    Move {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
    },
    /// Whether a VM may start on a host.
    Start {
        /// The VM.
        vm: VmId,
        /// The host.
        host: HostId,
    },
    /// Where a VM would go.
    Target {
        /// The VM.
        vm: VmId,
    },
    /// Where a new VM starts.
    Place {
        /// Its name.
        vm: VmId,
        /// Its size.
        size: Resources,
    },
    /// What a change does, and a plan for the cluster that it makes.
    WhatIf {
        /// The change, in the words of [`what_if`](crate::ask::what_if).
        change: String,
    },
    /// Where the VMs of lost hosts start again.
    Restart {
        /// The hosts.
        lost: BTreeSet<HostId>,
    },
    /// How many more VMs of a shape fit.
    Spare {
        /// The shape.
        shape: Shape,
        /// Hosts that may be lost.
        failures: usize,
    },
    /// Which few moves make room for a VM of a shape.
    Room {
        /// The shape.
        shape: Shape,
    },
    /// Which hosts can be emptied together.
    RebootGroups {
        /// The most hosts of a group.
        group_max: usize,
    },
    /// Which hosts the cluster could do without.
    Consolidate {
        /// The least number of hosts that take VMs.
        hosts_min: usize,
    },
    /// Which hard rules cannot be kept together.
    Conflict,
    /// Whether a rule can be written.
    Rule {
        /// The rule.
        rule: Rule,
    },
}

impl Question {
    /// Reads what stands after `ask`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (word, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
        let words = &mut Words::of(rest);
        let question = match word {
            "plan" => Self::Plan { explain: words.take("explain"), drain: drain(words)? },
            "check" => Self::Check { vm: words.parse("a VM")?, host: words.parse("a host")? },
            "move" => Self::Move { vm: words.parse("a VM")?, host: words.parse("a host")? },
            "start" => Self::Start { vm: words.parse("a VM")?, host: words.parse("a host")? },
            "target" => Self::Target { vm: words.parse("a VM")? },
            "place" => Self::Place { vm: words.parse("a VM")?, size: size(words)? },
            "what-if" if rest.trim().is_empty() => return Err("a change is missing".to_owned()),
            "what-if" => return Ok(Self::WhatIf { change: rest.trim().to_owned() }),
            "restart" => {
                let first = words.parse("a lost host")?;
                let others = words.names(&[])?;
                Self::Restart { lost: others.into_iter().chain([first]).collect() }
            }
            "spare" => Self::Spare { shape: shape(words)?, failures: count(words, "failures", 0)? },
            "room" => Self::Room { shape: shape(words)? },
            "reboot-groups" => Self::RebootGroups { group_max: count(words, "max", usize::MAX)? },
            "consolidate" => Self::Consolidate { hosts_min: count(words, "min", 1)? },
            "conflict" => Self::Conflict,
            "rule" => return Ok(Self::Rule { rule: rules::rule(rest)? }),
            "" => return Err("a question is missing".to_owned()),
            other => return Err(format!("'{other}' is no question")),
        };
        words.end()?;
        Ok(question)
    }
}

/// `drain GOAL`, if the line goes on so.
fn drain(words: &mut Words<'_>) -> Result<Option<DrainGoal>, String> {
    if words.take("drain") { words.parse("a goal").map(Some) } else { Ok(None) }
}

fn size(words: &mut Words<'_>) -> Result<Resources, String> {
    Ok(Resources::new(cpu(words.word("CPU")?)?, memory(words.word("memory")?)?))
}

/// `CPU MEMORY [using CPU] [needs=a+b]`.
fn shape(words: &mut Words<'_>) -> Result<Shape, String> {
    let size = size(words)?;
    let demand: Millicores = if words.take("using") { cpu(words.word("CPU")?)? } else { size.cpu };
    let needs = words.peek().and_then(|word| word.strip_prefix("needs="));
    let needs: BTreeSet<String> =
        needs.into_iter().flat_map(|list| list.split('+')).map(str::to_owned).collect();
    if !needs.is_empty() {
        words.word("needs")?;
    }
    Ok(Shape { size, demand, needs })
}

/// `NAME COUNT`, or `otherwise` when the line does not go on with the name.
fn count(words: &mut Words<'_>, name: &str, otherwise: usize) -> Result<usize, String> {
    if words.take(name) { words.parse("a count") } else { Ok(otherwise) }
}
