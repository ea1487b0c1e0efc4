//! What would be, were the cluster another one: a changed copy of a snapshot, to plan on as usual.
//!
//! | change | the copy |
//! | --- | --- |
//! | `drain HOST [GOAL]` | the host is being emptied, with a goal of its own |
//! | `quarantine HOST` | it is under suspicion |
//! | `fail HOST` | it is lost: its VMs have to start elsewhere, as if it were emptied; those with local disks cannot |
//! | `add host like HOST` | one more host of its kind, empty |
//! | `add COUNT vms like VM` | so many more VMs of its kind, each placed as a new VM would be |
//! | `without rule RULE`, `without vm VM` | it is not there |

use std::collections::BTreeSet;

use ballast_model::snapshot::{Mobility, PlacedVm};
use ballast_model::vm::Automation;
use ballast_model::{
    ClusterSnapshot, Host, HostId, HostState, Refusal, RefusalCode, Resources, RuleId, Telemetry,
    VmId,
};

use super::restart::disks_lost;
use crate::{PlanOptions, place};

/// The most VMs one change may add.
pub const VMS_ADDED_MAX: u32 = 10_000;

/// A changed cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct WhatIf {
    /// The cluster as it would be.
    pub snapshot: ClusterSnapshot,
    /// What the change did, one sentence each.
    pub notes: Vec<String>,
}

/// The cluster after a change in words.
///
/// # Errors
/// `InvalidArgument` when the change cannot be read, `NotFound` when it names what is not there, and what
/// [`place`](crate::place) refuses when not even one of several new VMs has room.
pub fn what_if(
    snapshot: &ClusterSnapshot,
    change: &str,
    options: &PlanOptions,
) -> Result<WhatIf, Refusal> {
    let words: Vec<&str> = change.split_whitespace().collect();
    let mut result = WhatIf { snapshot: snapshot.clone(), notes: Vec::new() };
    match words.as_slice() {
        ["drain", host] => result.set_state(host, HostState::Draining)?,
        ["drain", host, goal] => {
            result.set_state(host, HostState::Draining)?;
            result.host_mut(host)?.drain_goal = Some(goal.parse()?);
        }
        ["quarantine", host] => result.set_state(host, HostState::Quarantined)?,
        ["fail", host] => result.fail(host)?,
        ["add", "host", "like", host] => result.add_host(host)?,
        ["add", count, "vms" | "vm", "like", vm] => {
            let count = count.parse().ok().filter(|count| (1..=VMS_ADDED_MAX).contains(count));
            let count = count.ok_or_else(|| unreadable(change))?;
            result.add_vms(count, vm, options)?;
        }
        ["without", "rule", rule] => result.without_rule(rule)?,
        ["without", "vm", vm] => result.without_vm(vm)?,
        _ => return Err(unreadable(change)),
    }
    Ok(result)
}

fn unreadable(change: &str) -> Refusal {
    Refusal::new(
        RefusalCode::InvalidArgument,
        format!("'{change}' is not a change of a cluster"),
        "write 'drain HOST [GOAL]', 'quarantine HOST', 'fail HOST', 'add host like HOST', 'add COUNT vms like VM', \
         'without rule RULE' or 'without vm VM'",
    )
}

fn missing(what: &str, name: &str) -> Refusal {
    Refusal::new(
        RefusalCode::NotFound,
        format!("there is no {what} {name} in the snapshot"),
        "name one that is in it",
    )
}

impl WhatIf {
    fn host_mut(&mut self, name: &str) -> Result<&mut Host, Refusal> {
        let id: Option<HostId> = name.parse().ok();
        let host = id.and_then(|id| self.snapshot.hosts.get_mut(&id));
        host.ok_or_else(|| missing("host", name))
    }

    fn set_state(&mut self, name: &str, state: HostState) -> Result<(), Refusal> {
        self.host_mut(name)?.state = state;
        Ok(())
    }

    /// A lost host gives its VMs away whatever they or their owners say: they do not run any more.
    fn fail(&mut self, name: &str) -> Result<(), Refusal> {
        let host = self.host_mut(name)?;
        host.state = HostState::Draining;
        if matches!(host.telemetry, Telemetry::Unknown { .. }) {
            host.telemetry = Telemetry::Known { overhead: Resources::default() };
        }
        let id = host.id.clone();
        self.snapshot.migrations.retain(|flight| flight.from != id && flight.to != id);
        let (mut lost, mut diskless) = (0, 0);
        for vm in self.snapshot.vms.values_mut().filter(|vm| vm.host == id) {
            vm.automation = Automation::Full;
            vm.needs_to_move.clear();
            vm.mobility = match disks_lost(vm) {
                None => Mobility::Movable,
                Some(Refusal { reason, remedy, .. }) => Mobility::Fixed { reason, remedy },
            };
            lost += 1;
            diskless += u32::from(vm.mobility != Mobility::Movable);
        }
        self.notes.push(format!(
            "{} VMs of host {id} start elsewhere; their steps are starts, not migrations",
            lost - diskless
        ));
        if diskless > 0 {
            self.notes.push(format!("{diskless} VMs of host {id} are lost with their local disks"));
        }
        Ok(())
    }

    fn add_host(&mut self, name: &str) -> Result<(), Refusal> {
        let like = self.host_mut(name)?.clone();
        let id = fresh(name, |id: &HostId| self.snapshot.hosts.contains_key(id))?;
        self.notes.push(format!("host {id} is added, like {name}"));
        let telemetry = match like.telemetry {
            Telemetry::Known { overhead } => Telemetry::Known { overhead },
            Telemetry::Unknown { .. } => Telemetry::Known { overhead: Resources::default() },
        };
        let host = Host { id: id.clone(), state: HostState::Active, telemetry, ..like };
        self.snapshot.hosts.insert(id, host);
        Ok(())
    }

    /// Adds VMs until one finds no place; refuses only when the first finds none.
    fn add_vms(&mut self, count: u32, name: &str, options: &PlanOptions) -> Result<(), Refusal> {
        let id: Option<VmId> = name.parse().ok();
        let like = id.and_then(|id| self.snapshot.vms.get(&id)).cloned();
        let like = like.ok_or_else(|| missing("VM", name))?;
        for n in 0..count {
            let id = fresh(name, |id: &VmId| self.snapshot.vms.contains_key(id))?;
            let vm = PlacedVm {
                id: id.clone(),
                mobility: Mobility::Movable,
                needs_to_move: BTreeSet::new(),
                ..like.clone()
            };
            self.snapshot.vms.insert(id.clone(), vm);
            match place(&self.snapshot, &id, like.size, options) {
                Ok(host) => {
                    self.notes.push(format!("VM {id} would start on host {host}"));
                    self.snapshot.relocate(&id, &host);
                }
                Err(refusal) if n == 0 => return Err(refusal),
                Err(refusal) => {
                    self.snapshot.vms.remove(&id);
                    self.notes.push(format!("after {n} of {count} VMs: {}", refusal.reason));
                    break;
                }
            }
        }
        Ok(())
    }

    fn without_rule(&mut self, name: &str) -> Result<(), Refusal> {
        let id: Option<RuleId> = name.parse().ok();
        let gone = id.and_then(|id| self.snapshot.rules.remove(&id));
        gone.map(drop).ok_or_else(|| missing("rule", name))
    }

    fn without_vm(&mut self, name: &str) -> Result<(), Refusal> {
        let id: Option<VmId> = name.parse().ok();
        let gone = id.and_then(|id| self.snapshot.vms.remove(&id));
        let gone = gone.ok_or_else(|| missing("VM", name))?;
        self.snapshot.migrations.retain(|flight| flight.vm != gone.id);
        for rule in std::mem::take(&mut self.snapshot.rules).into_values() {
            let is_vm = |vm: &VmId| *vm != gone.id;
            if let Some(kind) = rule.kind.of_the_present(is_vm, |_| true) {
                self.snapshot.rules.insert(rule.id.clone(), ballast_model::Rule { kind, ..rule });
            }
        }
        Ok(())
    }
}

/// The first name of the form `like-new-1` that is not taken.
fn fresh<T: std::str::FromStr<Err: std::fmt::Display>>(
    like: &str,
    taken: impl Fn(&T) -> bool,
) -> Result<T, Refusal> {
    // Room for the ending in a name of 63 bytes.
    let stem: String = like.chars().take(48).collect();
    for n in 1..=VMS_ADDED_MAX + 1 {
        let name = format!("{stem}-new-{n}");
        let id: T = name.parse().map_err(|error: T::Err| {
            Refusal::new(RefusalCode::InvalidArgument, error.to_string(), "choose another")
        })?;
        if !taken(&id) {
            return Ok(id);
        }
    }
    let reason = format!("every name of the form {stem}-new-1 is taken");
    Err(Refusal::new(RefusalCode::AlreadyExists, reason, "rename some of them"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;

    fn changed(change: &str) -> Result<WhatIf, Refusal> {
        let text =
            "host a 8 16G : v 1 4G manual, w 1 4G\nhost b 8 16G unknown\nrule r: v w apart\n";
        what_if(&parse(text).unwrap().snapshot, change, &PlanOptions::default())
    }

    #[test]
    fn each_change_changes_what_it_says() {
        let host = |result: &WhatIf, id: &str| result.snapshot.hosts[&id.parse().unwrap()].clone();
        assert_eq!(host(&changed("drain a").unwrap(), "a").state, HostState::Draining);
        assert_eq!(host(&changed("quarantine a").unwrap(), "a").state, HostState::Quarantined);
        let lost = changed("fail a").unwrap();
        assert_eq!(lost.snapshot.vms[&"v".parse().unwrap()].automation, Automation::Full);
        assert!(lost.notes[0].contains("2 VMs"), "{:?}", lost.notes);
        let more = changed("add host like b").unwrap();
        assert!(matches!(host(&more, "b-new-1").telemetry, Telemetry::Known { .. }));
        assert!(changed("without rule r").unwrap().snapshot.rules.is_empty());
        let fewer = changed("without vm v").unwrap().snapshot;
        assert_eq!((fewer.vms.len(), fewer.rules.len()), (1, 0));
    }

    #[test]
    fn vms_are_added_while_there_is_room() {
        let result = changed("add 5 vms like w").unwrap();
        assert_eq!(result.snapshot.vms.len(), 4);
        assert!(result.notes[2].starts_with("after 2 of 5 VMs: "), "{:?}", result.notes);
    }

    #[test]
    fn what_cannot_be_read_or_found_is_refused() {
        let code = |change: &str| changed(change).unwrap_err().code;
        assert_eq!(code("paint a"), RefusalCode::InvalidArgument);
        assert_eq!(code("add 0 vms like v"), RefusalCode::InvalidArgument);
        assert_eq!(code("drain z"), RefusalCode::NotFound);
        assert_eq!(code("without rule z"), RefusalCode::NotFound);
    }
}
