//! Why a stuck VM has no place at all: a few demands that no placement meets together.
//!
//! The cluster is taken as it is now: hosts that drain, are under suspicion or unknown take nothing, and VMs
//! that the planner may not move stay. What each VM would need is asked of [`search`](super::search), first
//! with the rules that name the VM, then with those next to them.

use std::collections::BTreeSet;

use ballast_model::plan::Constraint;
use ballast_model::vm::Automation;
use ballast_model::{Bytes, Rule, VmId};

use super::conflict::{by_deletion, neighbourhood};
use super::search::{Demand, Effort};
use crate::door::problem::{HostIx, Problem, VmIx};
use crate::score::MEMORY;

/// Demands that are still a small core.
const DEMANDS_MAX: usize = 8;
/// Cores looked for in one plan; other VMs that are stuck by the rules of one share it.
const CORES_MAX: usize = 4;

/// Why some demands cannot be met together, and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Core {
    pub(crate) constraints: Vec<Constraint>,
    pub(crate) reason: String,
    pub(crate) remedy: String,
}

/// The cores of one plan, looked for when they are asked for.
pub(crate) struct Cores<'p, 'a> {
    problem: &'p Problem<'a>,
    effort: Effort,
    asked: usize,
    found: Vec<Core>,
    memory: Option<Option<Core>>,
}

impl<'p, 'a> Cores<'p, 'a> {
    pub(crate) fn new(problem: &'p Problem<'a>) -> Self {
        Self { problem, effort: Effort::of_a_plan(), asked: 0, found: Vec::new(), memory: None }
    }

    /// Whether the hosts that take VMs have too little memory for all VMs, wherever those went.
    pub(crate) fn memory_short(&mut self) -> Option<Core> {
        self.memory.get_or_insert_with(|| memory_short(self.problem)).clone()
    }

    /// A core of what keeps the VM from every host, if it is small and found within the bound.
    pub(crate) fn of(&mut self, vm: VmIx) -> Option<Core> {
        if let Some(known) = self.found.iter().find(|core| self.is_about(core, vm)) {
            return Some(known.clone());
        }
        if self.asked == CORES_MAX {
            return None;
        }
        self.asked += 1;
        let core = self.search(vm)?;
        self.found.push(core.clone());
        Some(core)
    }

    fn is_about(&self, core: &Core, vm: VmIx) -> bool {
        let info = self.problem.vm(vm);
        let names = |rule: &Rule| rule.kind.vms_named().any(|named| named == info.id);
        core.constraints.iter().any(|constraint| match constraint {
            Constraint::Rule { rule } => self.problem.snapshot.rules.get(rule).is_some_and(names),
            Constraint::Closed { .. } | Constraint::Stays { .. } => false,
        })
    }

    fn search(&mut self, vm: VmIx) -> Option<Core> {
        let id = self.problem.vm(vm).id;
        let snapshot = self.problem.snapshot;
        let hard: Vec<&Rule> =
            snapshot.rules.values().filter(|rule| rule.strength.is_must()).collect();
        let names = |rule: &&&Rule| rule.kind.vms_named().any(|named| named == id);
        let own: Vec<&Rule> = hard.iter().filter(names).copied().collect();
        let first = own.first()?.id.clone();
        let (core, why) = self.among(vm, &own).or_else(|| {
            let near = neighbourhood(&hard, &first);
            if near.len() > own.len() { self.among(vm, &near) } else { None }
        })?;
        if core.len() > DEMANDS_MAX {
            return None;
        }
        let mut constraints: Vec<Constraint> = core.into_iter().map(Demand::named).collect();
        // Rules first: they are what an operator wrote.
        constraints.sort();
        Some(Core { reason: reason(&constraints, &why), remedy: remedy(&constraints), constraints })
    }

    /// A core of these rules, the closed hosts and the VMs that stay, of which `wanted` is none.
    fn among(&mut self, wanted: VmIx, rules: &[&'a Rule]) -> Option<(Vec<Demand<'a>>, String)> {
        let problem = self.problem;
        let named: BTreeSet<&VmId> = rules.iter().flat_map(|rule| rule.kind.vms_named()).collect();
        let stays = |vm: &VmIx| {
            let info = problem.vm(*vm);
            let is_settled = info.bound_for.is_none() && problem.host(info.host).counts();
            let stays = !problem.can_leave(*vm) || info.vm.automation == Automation::Manual;
            *vm != wanted && stays && is_settled && named.contains(info.id)
        };
        let closed = problem.host_ixs().filter(|host| !problem.host(*host).counts());
        let closed = closed.map(|host| Demand::Closed(problem.host(host).id));
        let staying = problem.vm_ixs().filter(stays).map(|vm| Demand::Stays(problem.vm(vm).id));
        let rules = rules.iter().map(|rule| Demand::Rule(rule));
        let demands: Vec<Demand<'a>> = closed.chain(staying).chain(rules).collect();
        by_deletion(problem.snapshot, demands, &mut self.effort)
    }
}

/// E.g. `rule apart, rule pin and that host c takes no VMs cannot be met together: …`.
fn reason(constraints: &[Constraint], why: &str) -> String {
    let word = |constraint: &Constraint| match constraint {
        Constraint::Rule { rule } => format!("rule {rule}"),
        Constraint::Closed { host } => format!("that host {host} takes no VMs"),
        Constraint::Stays { vm } => format!("that VM {vm} stays where it is"),
    };
    let words: Vec<String> = constraints.iter().map(word).collect();
    match words.as_slice() {
        [only] => format!("{only} cannot be met at all: {why}"),
        _ => format!("{} cannot be met together: {why}", joined(&words, ", ", " and ")),
    }
}

fn remedy(constraints: &[Constraint]) -> String {
    let mut rules = Vec::new();
    let mut ways = Vec::new();
    for constraint in constraints {
        match constraint {
            Constraint::Rule { rule } => rules.push(rule.to_string()),
            Constraint::Closed { host } => {
                ways.push(format!("let host {host} take VMs again, or add one like it"));
            }
            Constraint::Stays { vm } => ways.push(format!("move VM {vm}, or let it be moved")),
        }
    }
    let rules = joined(&rules, ", ", " or ");
    ways.insert(0, format!("change rule {rules}, or make it a preference"));
    ways.join(", or ")
}

fn joined(words: &[String], between: &str, last: &str) -> String {
    match words {
        [first @ .., end] if !first.is_empty() => format!("{}{last}{end}", first.join(between)),
        _ => words.concat(),
    }
}

fn memory_short(problem: &Problem<'_>) -> Option<Core> {
    let takes_part = |host: HostIx| problem.host(host).counts() || problem.host(host).draining();
    let vms = problem.vm_ixs().map(|vm| problem.vm(vm));
    let here = vms.filter(|info| takes_part(info.bound_for.unwrap_or(info.host)));
    let vms: u64 = here.fold(0, |sum, info| sum.saturating_add(info.memory));
    let open = problem.counted.iter().map(|host| problem.host(*host));
    let room: u64 = open
        .fold(0, |sum, host| sum.saturating_add(host.memory.saturating_sub(host.overhead[MEMORY])));
    // Where no host takes VMs, that is what is wrong.
    let short = vms.checked_sub(room).filter(|short| *short > 0 && room > 0)?;
    Some(Core {
        constraints: Vec::new(),
        reason: format!(
            "all VMs together have {} of memory, and the hosts that take VMs {}",
            Bytes(vms),
            Bytes(room)
        ),
        remedy: format!("add hosts with {} of memory, or empty fewer hosts", Bytes(short)),
    })
}
