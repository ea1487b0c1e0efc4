//! What each VM is due of the cluster's CPU under its pool's shares, reservation and limit.
//!
//! From the cluster down: whoever divides gives each child at least what it
//! reserved and wants, at most what it wants within its limit, and in between in
//! proportion to shares. When not even the reservations fit, all get the same
//! part of theirs. While there is enough for all, everybody is due what it wants.

use std::collections::BTreeMap;

use ballast_model::pool::Claim;
use ballast_model::{ClusterSnapshot, HostState, Millicores, PoolId, Telemetry, VmId};

/// Halvings until the level of a division is known to within a thousandth of a millicore.
const HALVINGS: u32 = 80;

/// Somebody who wants a part.
#[derive(Debug, Clone, Copy)]
struct Want {
    shares: f64,
    floor: f64,
    ceiling: f64,
}

/// The entitlement of every VM, in millicores.
pub(crate) fn cpu(snapshot: &ClusterSnapshot) -> BTreeMap<&VmId, Millicores> {
    let demand = |vm: &ballast_model::snapshot::PlacedVm| vm.demand.cpu;
    let asked = snapshot.vms.values().any(|vm| vm.pool.is_some() || !vm.claims.is_default());
    if !asked {
        return snapshot.vms.iter().map(|(id, vm)| (id, demand(vm))).collect();
    }
    let usable = snapshot.hosts.values().filter_map(|host| match (&host.telemetry, host.state) {
        (Telemetry::Known { overhead }, HostState::Active) => {
            Some(host.capacity.cpu.saturating_sub(overhead.cpu).get() as f64)
        }
        _ => None,
    });
    let mut tree = Tree::new(snapshot);
    tree.divide(None, usable.sum());
    tree.due
}

struct Tree<'a> {
    snapshot: &'a ClusterSnapshot,
    vms: BTreeMap<Option<&'a PoolId>, Vec<&'a VmId>>,
    pools: BTreeMap<Option<&'a PoolId>, Vec<&'a PoolId>>,
    due: BTreeMap<&'a VmId, Millicores>,
}

impl<'a> Tree<'a> {
    fn new(snapshot: &'a ClusterSnapshot) -> Self {
        let mut tree =
            Self { snapshot, vms: BTreeMap::new(), pools: BTreeMap::new(), due: BTreeMap::new() };
        for (id, vm) in &snapshot.vms {
            tree.vms.entry(vm.pool.as_ref()).or_default().push(id);
        }
        for (id, pool) in &snapshot.pools {
            tree.pools.entry(pool.parent.as_ref()).or_default().push(id);
        }
        tree
    }

    fn divide(&mut self, parent: Option<&'a PoolId>, available: f64) {
        let vms = self.vms.get(&parent).cloned().unwrap_or_default();
        let pools = self.pools.get(&parent).cloned().unwrap_or_default();
        let mut wants: Vec<Want> = vms.iter().map(|vm| self.want_of_vm(vm)).collect();
        wants.extend(pools.iter().map(|pool| self.want_of_pool(pool)));
        let parts = parts(&wants, available);
        for (vm, part) in vms.iter().zip(&parts) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative
            self.due.insert(vm, Millicores(part.round() as u64));
        }
        for (pool, part) in pools.iter().zip(&parts[vms.len()..]) {
            self.divide(Some(pool), *part);
        }
    }

    fn want_of_vm(&self, id: &VmId) -> Want {
        let vm = &self.snapshot.vms[id];
        want(vm.demand.cpu.get() as f64, &vm.claims.cpu)
    }

    /// What a pool wants is what those in it want. Nesting is bounded when a snapshot is validated.
    fn want_of_pool(&self, id: &PoolId) -> Want {
        let vms = self.vms.get(&Some(id)).into_iter().flatten();
        let pools = self.pools.get(&Some(id)).into_iter().flatten();
        let inside: f64 = vms.map(|vm| self.want_of_vm(vm).ceiling).sum::<f64>()
            + pools.map(|pool| self.want_of_pool(pool).ceiling).sum::<f64>();
        want(inside, &self.snapshot.pools[id].claims.cpu)
    }
}

fn want(demand: f64, claim: &Claim<Millicores>) -> Want {
    let ceiling = claim.limit.map_or(demand, |limit| demand.min(limit.get() as f64));
    let floor = ceiling.min(claim.reservation.get() as f64);
    Want { shares: f64::from(claim.shares), floor, ceiling }
}

/// Divides `available`: `clamp(level · shares, floor, ceiling)` each, with the level at which it is used up.
fn parts(wants: &[Want], available: f64) -> Vec<f64> {
    let floors: f64 = wants.iter().map(|want| want.floor).sum();
    let ceilings: f64 = wants.iter().map(|want| want.ceiling).sum();
    if ceilings <= available {
        return wants.iter().map(|want| want.ceiling).collect();
    }
    if floors >= available {
        let part = if floors > 0.0 { available / floors } else { 0.0 };
        return wants.iter().map(|want| want.floor * part).collect();
    }
    let at = |level: f64, want: &Want| (level * want.shares).clamp(want.floor, want.ceiling);
    let (mut low, mut high) = (0.0, wants.iter().map(|w| w.ceiling).fold(0.0, f64::max));
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        let used: f64 = wants.iter().map(|want| at(middle, want)).sum();
        if used > available { high = middle } else { low = middle }
    }
    wants.iter().map(|want| at(low, want)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;

    fn check(text: &str, expected: &[(&str, u64)]) {
        let snapshot = parse(text).unwrap().snapshot;
        let due = cpu(&snapshot);
        for (vm, millicores) in expected {
            let vm: VmId = vm.parse().unwrap();
            assert_eq!(due[&vm].get(), *millicores, "{vm}");
        }
    }

    #[test]
    fn everybody_is_due_what_it_wants_while_there_is_enough() {
        check(
            "pool p cpu-shares=1\nhost h 4 16G : a 1 1G pool=p, b 2 1G\n",
            &[("a", 1000), ("b", 2000)],
        );
    }

    #[test]
    fn scarce_cpu_goes_by_shares_reservation_and_limit() {
        let host = "host h 4 16G :";
        check(&format!("{host} a 4 1G cpu-shares=3000, b 4 1G\n"), &[("a", 3000), ("b", 1000)]);
        check(
            &format!("{host} a 4 1G cpu-shares=3000, b 4 1G cpu-reserve=2\n"),
            &[("a", 2000), ("b", 2000)],
        );
        check(&format!("{host} a 4 1G cpu-limit=500m, b 4 1G\n"), &[("a", 500), ("b", 3500)]);
        check(
            &format!("{host} a 4 1G cpu-reserve=4, b 4 1G cpu-reserve=4\n"),
            &[("a", 2000), ("b", 2000)],
        );
    }

    #[test]
    fn pools_divide_among_their_own() {
        let text = "pool gold cpu-shares=3000\npool inner in gold\nhost h 4 16G : \
                    a 4 1G pool=gold, b 4 1G pool=inner, c 4 1G\n";
        check(text, &[("a", 1500), ("b", 1500), ("c", 1000)]);
    }
}
