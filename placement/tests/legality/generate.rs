//! Random clusters with everything a snapshot can say about what must hold.

use std::collections::BTreeSet;

use ballast_model::rule::{Hold, Strength};
use ballast_model::{
    ClusterSnapshot, HostId, Millicores, Pool, Ratio, Rule, RuleId, RuleKind, VmId,
};
use proptest::prelude::*;
use proptest::sample::Index;

use super::common::clusters;

/// What a rule is made of: its kind, VMs, others (those needed, or hosts of a second group), hosts, a bound, how strict.
type Draft = (usize, Vec<Index>, Vec<Index>, Vec<Index>, u32, u8);

/// Racks of two hosts.
const RACK: usize = 2;

fn draft() -> impl Strategy<Value = Draft> {
    let some = || proptest::collection::vec(any::<Index>(), 1..5);
    (0_usize..8, some(), some(), some(), 1_u32..3, 0_u8..4)
}

/// Overcommit of memory and CPU in percent, and VMs in a pool.
type Policy = (Option<u32>, Option<u32>, Vec<Index>);

fn policy() -> impl Strategy<Value = Policy> {
    (
        proptest::option::weighted(0.2, 90_u32..150),
        proptest::option::weighted(0.4, 100_u32..400),
        proptest::collection::vec(any::<Index>(), 0..6),
    )
}

/// Words as bits: what hosts offer, in turn, and VMs with what they need and need to move.
type Words = (Vec<u8>, Vec<(Index, u8, u8)>);

fn words() -> impl Strategy<Value = Words> {
    let needs = (any::<Index>(), 0_u8..4, 0_u8..8);
    (proptest::collection::vec(0_u8..8, 2..5), proptest::collection::vec(needs, 0..5))
}

/// The clusters of the other properties, with racks, rules of every kind, a policy, a pool and needs instead of their
/// rules.
pub(crate) fn clusters_of_all_kinds() -> impl Strategy<Value = ClusterSnapshot> {
    let rules = proptest::collection::vec(draft(), 0..4);
    (clusters(), rules, policy(), words()).prop_map(|(mut snapshot, drafts, policy, words)| {
        for (n, host) in snapshot.hosts.values_mut().enumerate() {
            host.labels.insert("rack".into(), format!("r{}", n / RACK));
        }
        let rules: Vec<Rule> =
            drafts.into_iter().enumerate().map(|(n, draft)| rule(&snapshot, n, draft)).collect();
        snapshot.rules = rules.into_iter().map(|rule| (rule.id.clone(), rule)).collect();
        set_policy(&mut snapshot, policy);
        set_words(&mut snapshot, words);
        snapshot.validate().unwrap();
        snapshot
    })
}

fn set_policy(snapshot: &mut ClusterSnapshot, (memory, cpu, pooled): Policy) {
    let percent = |percent: u32| Ratio::new(f64::from(percent) / 100.0);
    snapshot.policy.memory_overcommit = memory.map_or(Ratio::ONE, percent);
    snapshot.policy.cpu_overcommit = cpu.map(percent);
    let pool: ballast_model::PoolId = "pool".parse().unwrap();
    let mut claims = ballast_model::pool::Claims::default();
    claims.cpu.limit = Some(Millicores(3_000));
    snapshot.pools.insert(pool.clone(), Pool { id: pool.clone(), parent: None, claims });
    let vms: Vec<VmId> = snapshot.vms.keys().cloned().collect();
    for index in pooled {
        snapshot.vms.get_mut(index.get(&vms)).unwrap().pool = Some(pool.clone());
    }
}

fn set_words(snapshot: &mut ClusterSnapshot, (offers, needs): Words) {
    let spelled = |bits: u8| -> BTreeSet<String> {
        (0..8).filter(|bit| bits >> bit & 1 == 1).map(|bit| format!("w{bit}")).collect()
    };
    for (host, bits) in snapshot.hosts.values_mut().zip(offers.iter().cycle()) {
        host.offers = spelled(*bits);
    }
    let vms: Vec<VmId> = snapshot.vms.keys().cloned().collect();
    for (vm, needs, to_move) in needs {
        let vm = snapshot.vms.get_mut(vm.get(&vms)).unwrap();
        (vm.needs, vm.needs_to_move) = (spelled(needs), spelled(to_move));
    }
}

fn rule(snapshot: &ClusterSnapshot, n: usize, draft: Draft) -> Rule {
    let (kind, vms, others, hosts, bound, strictness) = draft;
    let all_vms: Vec<VmId> = snapshot.vms.keys().cloned().collect();
    let all_hosts: Vec<HostId> = snapshot.hosts.keys().cloned().collect();
    let pick_vms = |indices: &[Index]| -> BTreeSet<VmId> {
        indices.iter().map(|index| index.get(&all_vms).clone()).collect()
    };
    let pick_hosts = |indices: &[Index]| -> BTreeSet<HostId> {
        indices.iter().map(|index| index.get(&all_hosts).clone()).collect()
    };
    let (vms, domain) = (pick_vms(&vms), if bound == 1 { "host" } else { "rack" });
    let domain = domain.parse().unwrap();
    let kind = match kind {
        0 => RuleKind::AntiAffinity { vms, per_host_max: bound },
        1 => RuleKind::Affinity { vms, domain },
        2 => RuleKind::VmHost { vms, hosts: pick_hosts(&hosts) },
        3 => RuleKind::VmNotHost { vms, hosts: pick_hosts(&hosts) },
        4 => {
            let domains_min = Some(bound.min(u32::try_from(vms.len()).unwrap()));
            RuleKind::Spread { vms, domain, domains_min, per_domain_max: Some(bound) }
        }
        5 => RuleKind::Near { vms, needs: pick_vms(&others), domain },
        6 => RuleKind::HostCap { vms, hosts: pick_hosts(&hosts), hosts_max: bound },
        _ => RuleKind::Among { vms, groups: vec![pick_hosts(&hosts), pick_hosts(&others)] },
    };
    let id: RuleId = format!("rule{n}").parse().unwrap();
    let rule = Rule::must(id, kind);
    match strictness {
        0 => Rule { strength: Strength::SHOULD, ..rule },
        1 => Rule { hold: Hold::Discrete, ..rule },
        2 => Rule { hold: Hold::Continuous, ..rule },
        _ => rule,
    }
}
