//! What stands between a VM and a host, and what would help.

use std::collections::BTreeSet;

use ballast_model::{Bytes, Host, Millicores, Refusal, RefusalCode, Telemetry};

use crate::door::losses::strands;
use crate::door::obstacle::Obstacle;
use crate::door::problem::{HostIx, Problem, RuleIx, VmIx};
use crate::door::reach::Coming;
use crate::door::rules::RuleBody;
use crate::door::state::State;

/// What helps where the failures to tolerate forbid something.
pub(crate) const REMEDY_OF_LOSSES: &str = "add a host, remove VMs, or lower policy.failures_tolerated; 'ballast capacity spare' says what fits";

/// An obstacle in words.
pub(crate) fn explain(state: &State<'_, '_>, vm: VmIx, to: HostIx, obstacle: Obstacle) -> Refusal {
    let problem = state.problem;
    let (info, host) = (problem.vm(vm), problem.host(to));
    let (vm_id, to_id) = (info.id, host.id);
    match obstacle {
        Obstacle::Here => Refusal::new(
            RefusalCode::WrongState,
            format!("VM {vm_id} is on host {to_id} already"),
            "name another host",
        ),
        Obstacle::Closed if host.quarantined() => Refusal::new(
            RefusalCode::WrongState,
            format!("host {to_id} is quarantined and takes no VMs"),
            format!("choose another host, or run 'ballast host uncordon {to_id}'"),
        ),
        Obstacle::Closed => Refusal::new(
            RefusalCode::WrongState,
            format!("host {to_id} is being emptied and takes no VMs"),
            format!("choose another host, or run 'ballast host uncordon {to_id}'"),
        ),
        Obstacle::Unknown => {
            let why = match &host.host.telemetry {
                Telemetry::Unknown { why } => why.as_str(),
                Telemetry::Known { .. } => "it reports no capacity",
            };
            Refusal::new(
                RefusalCode::Unavailable,
                format!("the load of host {to_id} is unknown: {why}"),
                format!("choose another host, or check that the agent on {to_id} runs and reports"),
            )
        }
        Obstacle::Memory { free } => Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "VM {vm_id} needs {} of memory and host {to_id} has {free} free of {}",
                Bytes(info.memory),
                host.host.capacity.memory
            ),
            format!("choose another host, or move a VM off {to_id} first"),
        ),
        Obstacle::Cpu => Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "VM {vm_id} has {} of CPU, and host {to_id} admits {} for all its VMs, {} of them taken",
                Millicores(info.cpu_size),
                Millicores(host.cpu_admitted.unwrap_or_default()),
                Millicores(state.cpu_sizes(to))
            ),
            "choose another host, or let the policy overcommit more CPU",
        ),
        Obstacle::Lacks { coming } => {
            let (words, purpose, remedy) = match missing(&info.vm.needs, host.host) {
                words if words.is_empty() && coming == Coming::Moving => (
                    missing(&info.vm.needs_to_move, host.host),
                    " to move while it runs",
                    "choose a host that offers it, or end the VM and start it there",
                ),
                words => (words, "", "choose a host that offers it"),
            };
            Refusal::new(
                RefusalCode::Incompatible,
                format!("VM {vm_id} needs {words}{purpose}, which host {to_id} does not offer"),
                remedy,
            )
        }
        Obstacle::Disk { room } => Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "VM {vm_id} takes {} of local disks along, and host {to_id} has {room} free for them",
                info.vm.local_disks
            ),
            "choose another host, make room there, or move the disks to shared storage",
        ),
        Obstacle::Numa => Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "VM {vm_id} must fit one NUMA node, and host {to_id} has none with room for it"
            ),
            "choose another host, or let the VM span nodes",
        ),
        Obstacle::Intolerant => Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "with VM {vm_id} on host {to_id} {}",
                strands(problem.snapshot.policy.failures_tolerated as usize)
            ),
            REMEDY_OF_LOSSES,
        ),
        Obstacle::Broken { rule } => Refusal::new(
            RefusalCode::RuleViolation,
            broken(state, vm, rule, to),
            "choose another host, or change the rule",
        ),
        Obstacle::Forbidden { rule } => Refusal::new(
            RefusalCode::RuleViolation,
            format!("rule {} does not let VM {vm_id} run on host {to_id}", problem.rule(rule).id),
            format!("choose one of the rule's hosts: {}", allowed_hosts(problem, rule)),
        ),
    }
}

/// What a rule that holds at every moment has against the move.
fn broken(state: &State<'_, '_>, vm: VmIx, rule: RuleIx, to: HostIx) -> String {
    let problem = state.problem;
    let (info, vm_id, to_id) = (problem.rule(rule), problem.vm(vm).id, problem.host(to).id);
    let id = info.id;
    match &info.body {
        RuleBody::Apart { most: 1 } => {
            let there = |host: HostIx| info.domain[host.0] == info.domain[to.0];
            let is_near = |other: &&VmIx| {
                let flies_from = problem.vm(**other).bound_for.is_some();
                **other != vm
                    && (there(state.at(**other)) || flies_from && there(problem.vm(**other).host))
            };
            let other = info.vms.iter().find(is_near);
            let other = other.map_or("others", |other| problem.vm(*other).id.as_str());
            format!("rule {id} keeps VM {vm_id} apart from VM {other} on host {to_id}")
        }
        RuleBody::Apart { most } => {
            format!("rule {id} allows {most} of its VMs where host {to_id} is, and they are there")
        }
        RuleBody::Distinct { least } => format!(
            "rule {id} wants its VMs in {least} domains, fewer would be left with VM {vm_id} on {to_id}"
        ),
        RuleBody::Within { most } => format!(
            "rule {id} allows its VMs in {most} places at once, VM {vm_id} on {to_id} would be one more"
        ),
        RuleBody::Near => {
            format!(
                "rule {id} wants VM {vm_id} and what needs it, or what it needs, near each other"
            )
        }
        RuleBody::Hosts { .. } | RuleBody::Among { .. } => {
            format!("rule {id} wants its VMs in one group of hosts, {to_id} is outside")
        }
    }
}

/// Those of the words that the host does not offer.
pub(crate) fn missing(words: &BTreeSet<String>, host: &Host) -> String {
    let words: Vec<&str> = words.difference(&host.offers).map(String::as_str).collect();
    words.join(", ")
}

fn allowed_hosts(problem: &Problem<'_>, rule: RuleIx) -> String {
    const SHOWN_MAX: usize = 8;
    let mut names: Vec<String> = problem
        .host_ixs()
        .filter(|host| problem.rule_allows(rule, *host))
        .map(|host| problem.host(host).id.to_string())
        .collect();
    if names.len() > SHOWN_MAX {
        let more = names.len() - SHOWN_MAX;
        names.truncate(SHOWN_MAX);
        names.push(format!("{more} more"));
    }
    names.join(", ")
}
