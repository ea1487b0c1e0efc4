//! Which hosts can be emptied together, so that all have had their turn after few rounds?
//!
//! A colouring of the hosts: two of one colour may be away at the same time. Whether a set of hosts can be
//! away is asked of the cluster itself, by putting their VMs on the others under every hard rule; so a group
//! is at once a promise and the proof of it. Hosts go into the first group that has room for them, those with
//! most memory in use first. Each group is weighed on the cluster as it is: VMs come back, or are levelled,
//! between two rounds.

use ballast_model::{ClusterSnapshot, HostId, Refusal};

use super::packing::start_all;
use crate::door::groups::{hard_faults, is_as_whole};
use crate::door::problem::{HostIx, Problem, VmIx};
use crate::door::state::{Cause, State};
use crate::options::PlanOptions;

/// Groups of hosts that can be away at the same time, at most `group_max` each; and those that cannot be
/// emptied at all.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RebootGroups {
    /// One round each.
    pub groups: Vec<Vec<HostId>>,
    /// Hosts whose VMs have no place elsewhere, even with every other host there, or that hold a VM that cannot move or that only
    /// an operator moves.
    pub stuck: Vec<HostId>,
}

/// Puts the hosts into groups. Hosts that are unknown are left out: nobody knows what is on them.
///
/// # Errors
/// `InvalidArgument` when options or snapshot make no sense.
pub fn reboot_groups(
    snapshot: &ClusterSnapshot,
    group_max: usize,
    options: &PlanOptions,
) -> Result<RebootGroups, Refusal> {
    options.validate()?;
    let problem = Problem::new(snapshot)?;
    let start = State::new(&problem);
    let mut hosts: Vec<HostIx> =
        problem.host_ixs().filter(|host| problem.host(*host).known).collect();
    hosts.sort_by_key(|host| (std::cmp::Reverse(start.memory_taken(*host)), *host));
    // Each group with its state: its VMs are elsewhere in it.
    let mut groups: Vec<(Vec<HostIx>, State<'_, '_>)> = Vec::new();
    let mut stuck = Vec::new();
    for host in hosts {
        let joins = |(members, state): &mut (Vec<HostIx>, State<'_, '_>)| {
            members.len() < group_max.max(1) && empty(state, members, host, options)
        };
        if groups.iter_mut().any(joins) {
            continue;
        }
        let (mut members, mut state) = (Vec::new(), start.clone());
        if empty(&mut state, &mut members, host, options) {
            groups.push((members, state));
        } else {
            stuck.push(host);
        }
    }
    let id = |host: &HostIx| problem.host(*host).id.clone();
    let named = |hosts: &[HostIx]| {
        let mut ids: Vec<HostId> = hosts.iter().map(id).collect();
        ids.sort();
        ids
    };
    Ok(RebootGroups {
        groups: groups.iter().map(|(members, _)| named(members)).collect(),
        stuck: named(&stuck),
    })
}

/// Empties one more host of a group; leaves all as it was when it cannot be.
fn empty(
    state: &mut State<'_, '_>,
    members: &mut Vec<HostIx>,
    host: HostIx,
    options: &PlanOptions,
) -> bool {
    let vms: Vec<VmIx> = state.vms_on(host).iter().copied().collect();
    if vms.iter().any(|vm| !state.problem.may_move(*vm, Cause::Drain)) {
        return false;
    }
    let before = state.clone();
    let faults = hard_faults(state, &vms);
    vms.iter().for_each(|vm| state.lift(*vm));
    let away = |other: HostIx| other == host || members.contains(&other);
    let left = start_all(state, vms, options, |other| !away(other));
    if left.is_empty() && is_as_whole(state, &faults) {
        members.push(host);
        true
    } else {
        *state = before;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;
    use crate::testing::{Cluster, keep_apart};

    fn check(snapshot: &ClusterSnapshot, group_max: usize, expected: &str) {
        let found = reboot_groups(snapshot, group_max, &PlanOptions::default()).unwrap();
        let text =
            |hosts: &Vec<HostId>| hosts.iter().map(HostId::as_str).collect::<Vec<_>>().join("+");
        let groups: Vec<_> = found.groups.iter().map(text).collect();
        let stuck = if found.stuck.is_empty() {
            String::new()
        } else {
            format!(" stuck {}", text(&found.stuck))
        };
        assert_eq!(format!("{}{stuck}", groups.join(", ")), expected);
    }

    #[test]
    fn half_empty_hosts_go_in_two_rounds() {
        let mut cluster = Cluster::new(4, 8, 16);
        for n in 0..4 {
            cluster = cluster.vm(&format!("v{n}"), &format!("h{n}"), 500, 8);
        }
        check(&cluster.0, 10, "h0+h1, h2+h3");
        check(&cluster.0, 1, "h0, h1, h2, h3");
    }

    #[test]
    fn rules_split_a_group() {
        let cluster = Cluster::new(3, 8, 16).vm("a", "h0", 100, 1).vm("b", "h1", 100, 1);
        check(&cluster.0, 10, "h0+h1, h2");
        // Two of three hosts are needed at any time.
        check(&keep_apart(cluster.0, &["a", "b"]), 10, "h0, h1, h2");
    }

    #[test]
    fn a_host_that_cannot_be_emptied_is_named() {
        let cluster = Cluster::new(2, 8, 16).vm("a", "h0", 100, 12).vm("b", "h1", 100, 8);
        check(&cluster.0, 10, " stuck h0+h1");
        check(&Cluster::new(2, 8, 16).vm("a", "h0", 100, 12).0, 10, "h0, h1");
        let by_hand =
            parse("host h0 8 16G : v 1 1G manual\nhost h1 8 16G : w 1 1G partial").unwrap();
        check(&by_hand.snapshot, 10, "h1 stuck h0");
    }

    #[test]
    fn a_pair_leaves_together() {
        let text = "host h0 8 16G : app 1 8G, db 1 4G
                    host h1 8 16G : x 1 6G
                    host h2 8 16G : y 4 2G
                    rule link: app near db";
        check(&parse(text).unwrap().snapshot, 1, "h0, h1, h2");
    }
}
