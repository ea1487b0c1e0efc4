//! How many more VMs of a shape does the cluster have room for, also with hosts to lose?
//!
//! Without failures it is a sum over hosts: what fits by memory, by the CPU size a host admits, and below the
//! CPU ceiling by demand. With `k` failures to tolerate the VMs of any `k` hosts, new ones included, must fit
//! on the rest: the largest number for which that holds is found by bisection, with the new VMs spread so that
//! hosts are left equally free, which is how they would be placed.
//!
//! What a loss leaves without a place is said by [`crate::door::losses`]: by memory and by what hosts offer. Rules among
//! the VMs are not weighed, so the answer is an upper bound where they bind.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use ballast_model::{Bytes, ClusterSnapshot, HostId, Millicores, Refusal, RefusalCode, Resources};
use serde::Serialize;

use crate::door::losses::{Inquiry, Losses, Newcomers, Occupancy, strands};
use crate::door::problem::{HostIx, Problem};
use crate::door::state::State;
use crate::options::PlanOptions;

/// More VMs than this are not counted: it is enough.
const COUNT_MAX: u64 = 1 << 20;

/// What the VMs to come are like.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// CPU it can use at most, and memory.
    pub size: Resources,
    /// CPU it uses, typically.
    pub demand: Millicores,
    /// What it must find on a host.
    pub needs: BTreeSet<String>,
}

/// How many fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spare {
    /// VMs in all.
    pub vms: u64,
    /// The same if no host had to be spared for failures.
    pub vms_without_failures: u64,
    /// How many each host would get; hosts without any are left out.
    pub by_host: BTreeMap<HostId, u64>,
    /// What keeps one more away.
    pub limit: String,
}

/// How many VMs like `shape` fit with `failures` hosts to lose.
///
/// # Errors
/// `InvalidArgument` for a shape without memory, or when options or snapshot make no sense.
pub fn spare(
    snapshot: &ClusterSnapshot,
    shape: &Shape,
    failures: usize,
    options: &PlanOptions,
) -> Result<Spare, Refusal> {
    options.validate()?;
    if shape.size.memory == Bytes::ZERO {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            "a VM without memory fits any number of times",
            "give the memory of one VM",
        ));
    }
    let problem = Problem::new(snapshot)?;
    let state = State::new(&problem);
    let room: Vec<u64> =
        problem.host_ixs().map(|host| room_on(&state, host, shape, options)).collect();
    let most = room.iter().sum::<u64>().min(COUNT_MAX);
    let (mut good, mut bad) = (0, most + 1);
    let losses = Losses::new(&problem.hosts, &problem.vms, failures);
    let occupancy = Occupancy::new(&state);
    let offers: Vec<bool> = problem.host_ixs().map(|host| !lacks(&state, host, shape)).collect();
    let fits = |count: u64| {
        let by_host = spread(&state, &room, shape, count);
        let memory = shape.size.memory.get();
        let newcomers = Some(&Newcomers { memory, by_host: &by_host, fits: &offers });
        let inquiry =
            Inquiry { problem: &problem, losses: &losses, occupancy: &occupancy, newcomers };
        inquiry.fatal(|_| true).is_none()
    };
    if !fits(0) {
        return Ok(Spare {
            vms: 0,
            vms_without_failures: most,
            by_host: BTreeMap::new(),
            limit: format!("already now {}", strands(failures)),
        });
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle) { good = middle } else { bad = middle }
    }
    let by_host = spread(&state, &room, shape, good);
    let limit = if good < most {
        format!("with one more, {}", strands(failures))
    } else if most == COUNT_MAX {
        format!("counted up to {COUNT_MAX}")
    } else {
        "memory, admitted CPU or the CPU ceiling of every host that takes VMs".to_owned()
    };
    let named = problem.host_ixs().zip(by_host).filter(|(_, count)| *count > 0);
    let by_host = named.map(|(host, count)| (problem.host(host).id.clone(), count)).collect();
    Ok(Spare { vms: good, vms_without_failures: most, by_host, limit })
}

/// How many of them fit on one host, as it is.
fn room_on(state: &State<'_, '_>, host: HostIx, shape: &Shape, options: &PlanOptions) -> u64 {
    let info = state.problem.host(host);
    if !info.counts() || info.quarantined() || lacks(state, host, shape) {
        return 0;
    }
    let times = |free: u64, one: u64| free.checked_div(one).unwrap_or(COUNT_MAX);
    let memory = times(state.memory_free(host).get(), shape.size.memory.get());
    let ceiling = options.cpu_ceiling.get() * info.cpu as f64;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
    let cpu = times((ceiling as u64).saturating_sub(state.cpu(host)), shape.demand.get());
    let admitted = info.cpu_admitted.map_or(COUNT_MAX, |admitted| {
        times(admitted.saturating_sub(state.cpu_sizes(host)), shape.size.cpu.get())
    });
    memory.min(cpu).min(admitted).min(COUNT_MAX)
}

fn lacks(state: &State<'_, '_>, host: HostIx, shape: &Shape) -> bool {
    !shape.needs.is_subset(&state.problem.host(host).host.offers)
}

/// `count` VMs over the hosts: always to the one that has most memory free.
fn spread(state: &State<'_, '_>, room: &[u64], shape: &Shape, count: u64) -> Vec<u64> {
    // The level of free memory down to which hosts are filled, by bisection; then the rest one by one.
    let free: Vec<u64> =
        state.problem.host_ixs().map(|host| state.memory_free(host).get()).collect();
    let one = shape.size.memory.get();
    let down_to = |level: u64| -> Vec<u64> {
        let fill = |(free, room): (&u64, &u64)| (free.saturating_sub(level) / one).min(*room);
        free.iter().zip(room).map(fill).collect()
    };
    let (mut low, mut high) = (0, free.iter().copied().max().unwrap_or(0));
    while low < high {
        let middle = low + (high - low) / 2;
        if down_to(middle).iter().sum::<u64>() <= count { high = middle } else { low = middle + 1 }
    }
    let mut placed = down_to(high);
    let left_free = |placed: &[u64], host: usize| free[host].saturating_sub(placed[host] * one);
    let can = |placed: &[u64], host: usize| placed[host] < room[host];
    let mut freest: BinaryHeap<(u64, Reverse<usize>)> = (0..room.len())
        .filter(|host| can(&placed, *host))
        .map(|host| (left_free(&placed, host), Reverse(host)))
        .collect();
    for _ in placed.iter().sum()..count {
        let Some((_, Reverse(host))) = freest.pop() else { break };
        placed[host] += 1;
        if can(&placed, host) {
            freest.push((left_free(&placed, host), Reverse(host)));
        }
    }
    placed
}

/// Whether the VMs of any hosts that may be lost fit on the others of those that `on` names.
pub(super) fn survives(state: &State<'_, '_>, on: impl Fn(HostIx) -> bool) -> bool {
    let losses = &state.problem.losses;
    let occupancy = Occupancy::new(state);
    let inquiry =
        Inquiry { problem: state.problem, losses, occupancy: &occupancy, newcomers: None };
    inquiry.fatal(on).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Cluster, gib};

    fn check(cluster: &ClusterSnapshot, memory_gib: u64, failures: usize, expected: u64) -> Spare {
        let shape = Shape {
            size: Resources::new(Millicores::cores(1), gib(memory_gib)),
            demand: Millicores(100),
            needs: BTreeSet::new(),
        };
        let found = spare(cluster, &shape, failures, &PlanOptions::default()).unwrap();
        assert_eq!(found.vms, expected, "{found:?}");
        assert_eq!(found.by_host.values().sum::<u64>(), expected);
        found
    }

    #[test]
    fn what_fits_is_what_each_host_has_left() {
        let cluster = Cluster::new(2, 16, 16).vm("a", "h0", 100, 6).0;
        check(&cluster, 4, 0, 2 + 4);
        check(&cluster, 17, 0, 0);
    }

    #[test]
    fn a_host_to_lose_costs_its_share() {
        let cluster = Cluster::new(3, 64, 16).0;
        check(&cluster, 4, 0, 12);
        // Any two hosts must hold all: 8 VMs of 4 GiB.
        let found = check(&cluster, 4, 1, 8);
        assert_eq!(found.vms_without_failures, 12);
        assert!(found.limit.contains("loss of 1 host"), "{}", found.limit);
        check(&cluster, 4, 2, 4);
        check(&cluster, 4, 3, 0);
    }

    #[test]
    fn the_cpu_ceiling_counts() {
        let cluster = Cluster::new(1, 1, 64).0;
        // Of 1,000 millicores, at 100 each.
        assert_eq!(PlanOptions::default().cpu_ceiling, ballast_model::Ratio::new(0.8));
        check(&cluster, 1, 0, 8);
    }

    #[test]
    fn a_cluster_that_cannot_lose_a_host_says_so() {
        let cluster = Cluster::new(2, 16, 16).vm("a", "h0", 100, 12).vm("b", "h1", 100, 12).0;
        let found = check(&cluster, 1, 1, 0);
        assert!(found.limit.contains("already now"), "{}", found.limit);
    }

    #[test]
    fn any_two_hosts_may_be_lost_not_only_the_fullest() {
        // The small hosts are full; without both large ones there is no room for what is on those.
        let mut cluster = Cluster::new(4, 16, 64)
            .vm("a", "h0", 100, 10)
            .vm("b", "h1", 100, 10)
            .vm("c", "h2", 100, 15)
            .vm("d", "h3", 100, 15)
            .0;
        for host in ["h2", "h3"] {
            cluster.hosts.get_mut(&host.parse().unwrap()).unwrap().capacity.memory = gib(16);
        }
        check(&cluster, 1, 2, 0);
        assert!(check(&cluster, 1, 1, 46).limit.contains("loss of 1 host"));
    }

    #[test]
    fn very_many_small_vms_are_counted_not_packed_one_by_one() {
        let cluster = crate::yardstick::cluster(200, 2_000, 1);
        let found = |failures| {
            let size = Resources::new(Millicores(1), Bytes::mib(1));
            let shape = Shape { size, demand: Millicores(0), needs: BTreeSet::new() };
            spare(&cluster, &shape, failures, &PlanOptions::default()).unwrap().vms
        };
        let (none, one, two) = (found(0), found(1), found(2));
        assert_eq!(none, COUNT_MAX);
        assert!(two <= one && one <= none && two > COUNT_MAX / 2, "{one} {two}");
    }

    #[test]
    fn draining_hosts_and_absent_offers_do_not_count() {
        let cluster = Cluster::new(2, 16, 16).draining("h1").0;
        check(&cluster, 4, 0, 4);
        let shape = Shape {
            size: Resources::new(Millicores::cores(1), gib(1)),
            demand: Millicores(1),
            needs: BTreeSet::from(["storage:san".to_owned()]),
        };
        assert_eq!(spare(&cluster, &shape, 0, &PlanOptions::default()).unwrap().vms, 0);
    }
}
