//! Random clusters, and the state a plan leads to.

use std::collections::BTreeSet;

use ballast_model::snapshot::{Mobility, MoveInFlight, PlacedVm};
use ballast_model::vm::Automation;
use ballast_model::{
    Bytes, BytesPerSec, ClusterSnapshot, DrainGoal, Host, HostId, HostState, MigrationId,
    Millicores, Plan, Resources, Revision, Rule, RuleId, RuleKind, Telemetry, Timestamp, VmId,
};
use proptest::prelude::*;

/// Simpler clusters tried after one that fails, at most: a failure is to be seen soon.
const SHRINKS_MAX: u32 = 100;

/// As many cases as `PROPTEST_CASES` says.
pub(crate) fn config() -> ProptestConfig {
    ProptestConfig {
        max_shrink_iters: SHRINKS_MAX,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// The snapshot after all steps of the plan have ended well.
pub(crate) fn after(snapshot: &ClusterSnapshot, plan: &Plan) -> ClusterSnapshot {
    let mut snapshot = snapshot.clone();
    for step in &plan.steps {
        snapshot.relocate(&step.vm, &step.to);
    }
    snapshot
}

/// Every goal of a drain.
pub(crate) fn goals() -> impl Strategy<Value = DrainGoal> {
    proptest::sample::select(DrainGoal::ALL.to_vec())
}

fn host_id(n: usize) -> HostId {
    format!("h{n:02}").parse().unwrap()
}

fn vm_id(n: usize) -> VmId {
    format!("vm{n:02}").parse().unwrap()
}

fn host(n: usize) -> impl Strategy<Value = Host> {
    let capacity = (
        prop_oneof![Just(4_u64), Just(8), Just(16)],
        prop_oneof![Just(16_u64), Just(32), Just(64)],
    );
    let drain_goal = proptest::option::of(goals());
    (capacity, 0_u32..10, 0_u64..500, drain_goal).prop_map(
        move |((cores, gib), mood, overhead, drain_goal)| Host {
            state: if mood == 0 { HostState::Draining } else { HostState::Active },
            drain_goal,
            telemetry: if mood == 1 {
                Telemetry::Unknown { why: "no report for 30 s".into() }
            } else {
                Telemetry::Known {
                    overhead: Resources::new(Millicores(overhead), Bytes::mib(overhead)),
                }
            },
            link: BytesPerSec(125_000_000),
            ..Host::new(host_id(n), Resources::new(Millicores::cores(cores), Bytes::gib(gib)))
        },
    )
}

fn vm(n: usize, hosts: usize) -> impl Strategy<Value = PlacedVm> {
    (0..hosts * 2, 1_u64..12, 0_u64..3000, 0_u32..16).prop_map(move |(at, gib, cpu, mood)| {
        let size = Resources::new(Millicores::cores(4), Bytes::gib(gib));
        PlacedVm {
            demand: Resources::new(
                Millicores(cpu),
                Bytes::gib(gib).saturating_sub(Bytes::mib(100)),
            ),
            dirty_rate: BytesPerSec(cpu * 1000),
            automation: match mood {
                0 => Automation::Partial,
                1 => Automation::Manual,
                _ => Automation::Full,
            },
            mobility: match mood {
                2 => Mobility::Fixed {
                    reason: "it moved 40 s ago".into(),
                    remedy: "wait 20 s".into(),
                },
                _ => Mobility::Movable,
            },
            // Half of the VMs are piled up on the first two hosts.
            ..PlacedVm::new(
                vm_id(n),
                host_id(if at < hosts { at } else { at % hosts.min(2) }),
                size,
            )
        }
    })
}

/// (kind, VMs, hosts) of a rule.
fn rule(n: usize, vms: usize, hosts: usize) -> impl Strategy<Value = Rule> {
    let some_vms = proptest::collection::btree_set(0..vms, 1..=vms.min(5));
    let some_hosts = proptest::collection::btree_set(0..hosts, 1..=hosts);
    (0_u32..4, some_vms, some_hosts).prop_map(move |(kind, vms, hosts)| {
        let vms: BTreeSet<VmId> = vms.into_iter().map(vm_id).collect();
        let hosts = hosts.into_iter().map(host_id).collect();
        let id: RuleId = format!("rule{n}").parse().unwrap();
        let kind = match kind {
            0 => return Rule::must(id, RuleKind::VmHost { vms, hosts }),
            1 => return Rule::should(id, RuleKind::VmHost { vms, hosts }),
            _ => RuleKind::AntiAffinity { vms, per_host_max: 1 },
        };
        Rule::must(id, kind)
    })
}

/// Up to 8 hosts and 32 VMs with rules and migrations under way; memory may be over capacity, rules may be broken.
pub(crate) fn clusters() -> impl Strategy<Value = ClusterSnapshot> {
    (1_usize..=8, 1_usize..=32).prop_flat_map(|(hosts, vms)| {
        let all_hosts: Vec<_> = (0..hosts).map(host).collect();
        let all_vms: Vec<_> = (0..vms).map(|n| vm(n, hosts)).collect();
        let rules = (0..4_usize).map(|n| rule(n, vms, hosts)).collect::<Vec<_>>();
        let flights = proptest::collection::vec((0..vms, 0..hosts), 0..3);
        (all_hosts, all_vms, rules, 0_usize..=4, flights).prop_map(build)
    })
}

type Parts = (Vec<Host>, Vec<PlacedVm>, Vec<Rule>, usize, Vec<(usize, usize)>);

fn build((hosts, vms, rules, rules_kept, flights): Parts) -> ClusterSnapshot {
    let mut snapshot = ClusterSnapshot::empty(Revision(1), Timestamp(0));
    snapshot.hosts = hosts.into_iter().map(|host| (host.id.clone(), host)).collect();
    snapshot.vms = vms.into_iter().map(|vm| (vm.id.clone(), vm)).collect();
    snapshot.rules =
        rules.into_iter().take(rules_kept).map(|rule| (rule.id.clone(), rule)).collect();
    for (n, (vm, to)) in flights.into_iter().enumerate() {
        let (vm, to) = (vm_id(vm), host_id(to));
        let from = snapshot.vms[&vm].host.clone();
        if from != to && snapshot.migrations.iter().all(|flight| flight.vm != vm) {
            let id: MigrationId =
                format!("00000000-0000-7000-8000-00000000000{n}").parse().unwrap();
            snapshot.migrations.push(MoveInFlight { id, vm, from, to });
        }
    }
    snapshot.validate().unwrap();
    snapshot
}
