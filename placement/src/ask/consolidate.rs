//! Which hosts could the cluster do without?
//!
//! The host with least on it is emptied onto the others, as long as that is possible under every hard rule,
//! below the CPU ceiling, and with so many failures as the policy tolerates still covered. What comes out is
//! not a plan but its goal: drain these hosts, and the planner orders the moves.

use std::collections::BTreeSet;

use ballast_model::{Bytes, ClusterSnapshot, HostId, HostState, Refusal};

use super::packing::start_all;
use super::spare::survives;
use crate::door::groups::{hard_faults, is_as_whole};
use crate::door::problem::{HostIx, Problem, VmIx};
use crate::door::state::{Cause, State};
use crate::options::PlanOptions;

/// What could be switched off.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Consolidation {
    /// Hosts with nothing on them now.
    pub empty: Vec<HostId>,
    /// Hosts that could be emptied, in this order.
    pub emptied: Vec<HostId>,
    /// How many VMs would move, and their memory.
    pub moves: usize,
    /// What would go over the network at least.
    pub bytes: Bytes,
}

impl Consolidation {
    /// The snapshot in which the hosts are being emptied, to plan on.
    pub fn goal(&self, snapshot: &ClusterSnapshot) -> ClusterSnapshot {
        let mut goal = snapshot.clone();
        for host in self.empty.iter().chain(&self.emptied) {
            if let Some(host) = goal.hosts.get_mut(host) {
                host.state = HostState::Draining;
            }
        }
        goal
    }
}

/// Finds hosts the cluster could do without, keeping at least `hosts_min` that take VMs.
///
/// # Errors
/// `InvalidArgument` when options or snapshot make no sense.
pub fn consolidate(
    snapshot: &ClusterSnapshot,
    hosts_min: usize,
    options: &PlanOptions,
) -> Result<Consolidation, Refusal> {
    options.validate()?;
    let problem = Problem::new(snapshot)?;
    let mut state = State::new(&problem);
    let mut order: Vec<HostIx> =
        problem.host_ixs().filter(|host| problem.host(*host).counts()).collect();
    order.sort_by_key(|host| (state.memory_taken(*host), *host));
    let mut left = order.len();
    let mut off = BTreeSet::new();
    let (mut empty, mut emptied) = (Vec::new(), Vec::new());
    for host in order {
        if left <= hosts_min.max(1) {
            break;
        }
        let vms: Vec<VmIx> = state.vms_on(host).iter().copied().collect();
        off.insert(host);
        if move_away(&mut state, &vms, &off, options) {
            left -= 1;
            if vms.is_empty() { empty.push(host) } else { emptied.push(host) }
        } else {
            off.remove(&host);
        }
    }
    let moved: Vec<VmIx> =
        problem.vm_ixs().filter(|vm| state.at(*vm) != problem.vm(*vm).host).collect();
    let id = |host: HostIx| problem.host(host).id.clone();
    Ok(Consolidation {
        empty: empty.into_iter().map(id).collect(),
        emptied: emptied.into_iter().map(id).collect(),
        moves: moved.len(),
        bytes: moved.iter().map(|vm| Bytes(problem.vm(*vm).memory)).sum(),
    })
}

/// Moves the VMs to hosts that stay on; leaves all as it was when that cannot be.
fn move_away(
    state: &mut State<'_, '_>,
    vms: &[VmIx],
    off: &BTreeSet<HostIx>,
    options: &PlanOptions,
) -> bool {
    if vms.iter().any(|vm| !state.problem.may_move(*vm, Cause::Drain)) {
        return false;
    }
    let before = state.clone();
    let faults = hard_faults(state, vms);
    let crowded = |state: &State<'_, '_>| {
        let over = |host: &HostIx| {
            let capacity = state.problem.host(*host).cpu.max(1) as f64;
            state.cpu(*host) as f64 / capacity > options.cpu_ceiling.get()
        };
        state.problem.host_ixs().filter(|host| !off.contains(host)).filter(over).count()
    };
    let crowded_before = crowded(state);
    vms.iter().for_each(|vm| state.lift(*vm));
    let left = start_all(state, vms.iter().copied(), options, |host| !off.contains(&host));
    let good = left.is_empty()
        && is_as_whole(state, &faults)
        && crowded(state) <= crowded_before
        && survives(state, |host| !off.contains(&host));
    if !good {
        *state = before;
    }
    good
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cluster;

    fn found(snapshot: &ClusterSnapshot, hosts_min: usize) -> (Vec<String>, usize) {
        let found = consolidate(snapshot, hosts_min, &PlanOptions::default()).unwrap();
        let hosts = found.empty.iter().chain(&found.emptied);
        (hosts.map(ToString::to_string).collect(), found.moves)
    }

    fn sparse() -> Cluster {
        Cluster::new(4, 8, 16).vm("a", "h0", 500, 2).vm("b", "h1", 500, 3).vm("c", "h2", 500, 4)
    }

    #[test]
    fn little_load_fits_on_one_host() {
        assert_eq!(found(&sparse().0, 1), (vec!["h3".into(), "h0".into(), "h1".into()], 2));
        assert_eq!(found(&sparse().0, 3), (vec!["h3".into()], 0));
    }

    #[test]
    fn a_failure_to_tolerate_keeps_a_host_on() {
        let mut cluster = sparse().0;
        cluster.policy.failures_tolerated = 1;
        assert_eq!(found(&cluster, 1).0.len(), 2);
    }

    #[test]
    fn the_cpu_ceiling_holds() {
        let busy = Cluster::new(2, 2, 64).vm("a", "h0", 1500, 1).vm("b", "h1", 1500, 1);
        assert_eq!(found(&busy.0, 1), (vec![], 0));
    }

    #[test]
    fn a_host_with_a_vm_that_only_an_operator_moves_stays_on() {
        let text = "host a 8 16G : v 1 1G manual
                    host b 8 16G : w 1 2G
                    host c 8 16G : x 1 4G";
        let snapshot = crate::scenario::parse(text).unwrap().snapshot;
        assert_eq!(found(&snapshot, 1), (vec!["b".into(), "c".into()], 2));
    }

    #[test]
    fn what_others_need_does_not_leave_them() {
        let text = "host a 8 16G rack=1 : db 1 2G
                    host b 8 16G rack=1 : app 1 14G, x 1 1G
                    host c 8 16G rack=2
                    rule link: app near db on rack";
        let snapshot = crate::scenario::parse(text).unwrap().snapshot;
        assert_eq!(found(&snapshot, 1).0, vec!["c".to_owned()]);
    }

    #[test]
    fn the_goal_can_be_planned_for() {
        let cluster = sparse().0;
        let goal = consolidate(&cluster, 1, &PlanOptions::default()).unwrap().goal(&cluster);
        let planning = crate::plan(&goal, &PlanOptions::default()).unwrap();
        assert_eq!(planning.plan.steps.len(), 2);
    }
}
