//! What each host has, holds and has left, counted as the planner counts.

use std::collections::BTreeMap;

use ballast_model::{Bytes, ClusterSnapshot, HostId, Millicores, Refusal};

use crate::door::problem::Problem;
use crate::door::state::State;
use crate::score::MEMORY;

/// One host's memory and CPU. For memory `overhead + vms + moving + free = capacity`, unless the host holds more than
/// its capacity; then `free` is zero and the rest is over by [`Usage::memory_over`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// What it offers.
    pub memory_capacity: Bytes,
    /// Used besides VMs.
    pub memory_overhead: Bytes,
    /// The sizes of its VMs, those arriving included.
    pub memory_vms: Bytes,
    /// Held for VMs that are leaving.
    pub memory_moving: Bytes,
    /// Left for VMs. Only a host that takes VMs can use it.
    pub memory_free: Bytes,
    /// By how much it is over its capacity.
    pub memory_over: Bytes,
    /// What it offers.
    pub cpu_capacity: Millicores,
    /// Demand of its VMs, those arriving included, and overhead. May be more than the capacity.
    pub cpu_demand: Millicores,
    /// Whether it takes VMs: it is active and its load is known.
    pub takes_vms: bool,
}

/// What each host has, holds and has left.
///
/// # Errors
/// `InvalidArgument`: the snapshot does not fit together.
pub fn usage(snapshot: &ClusterSnapshot) -> Result<BTreeMap<HostId, Usage>, Refusal> {
    let problem = Problem::new(snapshot)?;
    let state = State::new(&problem);
    let of_host = |host| {
        let info = problem.host(host);
        let (overhead, taken) = (info.overhead[MEMORY], state.memory_taken(host));
        let held = state.memory_held(host);
        Usage {
            memory_capacity: Bytes(info.memory),
            memory_overhead: Bytes(overhead),
            memory_vms: Bytes(taken.saturating_sub(held).saturating_sub(overhead)),
            memory_moving: Bytes(held),
            memory_free: state.memory_free(host),
            memory_over: Bytes(taken.saturating_sub(info.memory)),
            cpu_capacity: Millicores(info.cpu),
            cpu_demand: Millicores(state.cpu(host)),
            takes_vms: info.counts(),
        }
    };
    Ok(problem.host_ixs().map(|host| (problem.host(host).id.clone(), of_host(host))).collect())
}
