//! How many more VMs of a shape does the cluster have room for, also with hosts to lose?
//!
//! Without failures it is a sum over hosts: what fits by memory, by the CPU size a host admits, and below the
//! CPU ceiling by demand. With `k` failures to tolerate the VMs of any `k` hosts, new ones included, must fit
//! on the rest: the largest number for which that holds is found by bisection, with the new VMs spread so that
//! hosts are left equally free, which is how they would be placed.
//!
//! A loss is weighed by memory and by what hosts offer; rules among the VMs that run already are not, so the
//! answer is an upper bound where they bind. For `k` above one the hosts with most to lose are lost.

use std::collections::{BTreeMap, BTreeSet};

use ballast_model::snapshot::PlacedVm;
use ballast_model::{Bytes, ClusterSnapshot, HostId, Millicores, Refusal, RefusalCode, Resources};
use serde::Serialize;

use crate::door::obstacle::lacking;
use crate::door::problem::{HostIx, Problem};
use crate::door::state::State;
use crate::options::PlanOptions;

/// More VMs than this are not counted: it is enough.
const COUNT_MAX: u64 = 1 << 20;
/// Hosts that are lost one after the other when one may be lost.
const LOSSES_MAX: usize = 4096;

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
    let fits = |count: u64| {
        failures == 0 || holds(&state, &spread(&state, &room, shape, count), shape, failures)
    };
    if !fits(0) {
        return Ok(Spare {
            vms: 0,
            vms_without_failures: most,
            by_host: BTreeMap::new(),
            limit: format!(
                "already now the loss of {failures} hosts would leave VMs without a place"
            ),
        });
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle) { good = middle } else { bad = middle }
    }
    let by_host = spread(&state, &room, shape, good);
    let limit = if good < most {
        format!("with one more, the loss of {failures} hosts would leave VMs without a place")
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
    let Ok(id) = "shape".parse() else { return false };
    let info = state.problem.host(host);
    let mut vm = PlacedVm::new(id, info.id.clone(), shape.size);
    vm.needs.clone_from(&shape.needs);
    lacking(&vm, info.host).is_some()
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
    let mut left = count.saturating_sub(placed.iter().sum());
    while left > 0 {
        let can = (0..room.len()).filter(|host| placed[*host] < room[*host]);
        let Some(host) = can.max_by_key(|host| {
            (free[*host].saturating_sub(placed[*host] * one), std::cmp::Reverse(*host))
        }) else {
            break;
        };
        placed[host] += 1;
        left -= 1;
    }
    placed
}

/// Whether, with `placed` new VMs, the loss of any `failures` hosts leaves room for all.
fn holds(state: &State<'_, '_>, placed: &[u64], shape: &Shape, failures: usize) -> bool {
    let extra = |host: HostIx| placed.get(host.0).copied().unwrap_or(0);
    survives_with(
        state,
        failures,
        |_| true,
        |host| {
            std::iter::repeat_n(
                shape.size.memory.get(),
                usize::try_from(extra(host)).unwrap_or(usize::MAX),
            )
        },
    )
}

/// Whether the VMs of any `failures` of the hosts that `on` names fit on the others of them, by memory and by
/// what hosts offer.
pub(super) fn survives(
    state: &State<'_, '_>,
    failures: usize,
    on: impl Fn(HostIx) -> bool,
) -> bool {
    survives_with(state, failures, on, |_| std::iter::empty())
}

/// Whether that still holds with a new VM of so many bytes on `to`.
pub(crate) fn survives_start(
    state: &State<'_, '_>,
    failures: usize,
    to: HostIx,
    memory: Bytes,
) -> bool {
    survives_with(
        state,
        failures,
        |_| true,
        |host| (host == to).then_some(memory.get()).into_iter(),
    )
}

fn survives_with<I: Iterator<Item = u64>>(
    state: &State<'_, '_>,
    failures: usize,
    on: impl Fn(HostIx) -> bool,
    extra: impl Fn(HostIx) -> I,
) -> bool {
    if failures == 0 {
        return true;
    }
    let problem = state.problem;
    let hosts: Vec<HostIx> =
        problem.host_ixs().filter(|host| problem.host(*host).counts() && on(*host)).collect();
    if hosts.len() <= failures {
        return false;
    }
    let taken = |host: HostIx| state.memory_taken(host) + extra(host).sum::<u64>();
    let mut heaviest = hosts.clone();
    heaviest.sort_by_key(|host| (std::cmp::Reverse(taken(*host)), *host));
    let fits = |lost: &[HostIx]| {
        let mut free: Vec<(u64, HostIx)> = hosts
            .iter()
            .filter(|host| !lost.contains(host))
            .map(|host| (problem.host(*host).memory.saturating_sub(taken(*host)), *host))
            .collect();
        let mut waiting: Vec<(u64, Option<&PlacedVm>)> = Vec::new();
        for host in lost {
            let vms = state.vms_on(*host).iter().map(|vm| problem.vm(*vm));
            waiting.extend(vms.map(|info| (info.memory, Some(info.vm))));
            waiting.extend(extra(*host).map(|memory| (memory, None)));
        }
        waiting.sort_by_key(|(memory, _)| std::cmp::Reverse(*memory));
        waiting.into_iter().all(|(memory, vm)| {
            free.sort_unstable_by_key(|(free, host)| (std::cmp::Reverse(*free), *host));
            let offers =
                |host: HostIx| vm.is_none_or(|vm| lacking(vm, problem.host(host).host).is_none());
            let found = free.iter_mut().find(|(free, host)| *free >= memory && offers(*host));
            found.map(|(free, _)| *free -= memory).is_some()
        })
    };
    if failures == 1 {
        heaviest.iter().take(LOSSES_MAX).all(|host| fits(std::slice::from_ref(host)))
    } else {
        fits(&heaviest[..failures])
    }
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
        assert!(found.limit.contains("loss of 1 hosts"), "{}", found.limit);
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
