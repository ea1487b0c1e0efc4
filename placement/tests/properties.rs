//! Properties of plans for random clusters. The executor here is independent of
//! the planner: it starts and ends steps in a random legal order and counts.
//! `PROPTEST_CASES` sets how many clusters each property sees.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ballast_model::plan::StepCause;
use ballast_model::rule::Domain;
use ballast_model::snapshot::{Mobility, PlacedVm};
use ballast_model::vm::Automation;
use ballast_model::{
    Bytes, BytesPerSec, ClusterSnapshot, HostId, HostState, Millicores, Plan, RefusalCode, Rule,
    RuleKind, Telemetry, Verdict, VmId,
};
use ballast_placement::{PlanOptions, check_step, imbalance, place, plan, usage};
use common::{after, clusters, goals};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// Short plans made one after the other until there is nothing to do, at most.
const PLANS_MAX: usize = 200;

/// Cases that failed once are kept beside this file and tried first.
fn config() -> ProptestConfig {
    let kept = FileFailurePersistence::Direct("tests/properties.proptest-regressions");
    ProptestConfig { failure_persistence: Some(Box::new(kept)), ..common::config() }
}

fn config_of(cases: u32) -> ProptestConfig {
    ProptestConfig { cases: cases.max(1), ..config() }
}

/// Memory a host has in use or promised.
fn memory(
    snapshot: &ClusterSnapshot,
    places: &BTreeMap<VmId, BTreeSet<HostId>>,
) -> BTreeMap<HostId, u64> {
    let mut used: BTreeMap<HostId, u64> = snapshot
        .hosts
        .values()
        .map(|host| match &host.telemetry {
            Telemetry::Known { overhead } => (host.id.clone(), overhead.memory.get()),
            Telemetry::Unknown { .. } => (host.id.clone(), 0),
        })
        .collect();
    for (vm, hosts) in places {
        for host in hosts {
            *used.get_mut(host).unwrap() += snapshot.vms[vm].size.memory.get();
        }
    }
    used
}

/// Hard rules broken, as readable facts.
fn broken(
    snapshot: &ClusterSnapshot,
    places: &BTreeMap<VmId, BTreeSet<HostId>>,
) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    for rule in snapshot.rules.values() {
        match &rule.kind {
            RuleKind::AntiAffinity { vms, .. } => {
                for a in vms {
                    for b in vms.iter().filter(|b| *b > a) {
                        for host in places[a].intersection(&places[b]) {
                            facts.insert(format!("{}: {a} and {b} on {host}", rule.id));
                        }
                    }
                }
            }
            RuleKind::VmHost { vms, hosts } if rule.strength.is_must() => {
                for vm in vms {
                    for host in places[vm].difference(hosts) {
                        facts.insert(format!("{}: {vm} on {host}", rule.id));
                    }
                }
            }
            _ => {}
        }
    }
    facts
}

/// Whether a host uses more CPU than balance may make it use. A VM in flight counts as arrived.
fn is_over_ceiling(snapshot: &ClusterSnapshot, host: &HostId) -> bool {
    let flights = || snapshot.migrations.iter();
    let counts = |vm: &&PlacedVm| {
        let bound_for = flights().find(|flight| flight.vm == vm.id).map(|flight| &flight.to);
        bound_for.unwrap_or(&vm.host) == host
    };
    let overhead = match &snapshot.hosts[host].telemetry {
        Telemetry::Known { overhead } => overhead.cpu.get(),
        Telemetry::Unknown { .. } => 0,
    };
    let used =
        snapshot.vms.values().filter(counts).fold(overhead, |sum, vm| sum + vm.demand.cpu.get());
    let ceiling = PlanOptions::default().cpu_ceiling.get();
    used as f64 > ceiling * snapshot.hosts[host].capacity.cpu.get() as f64
}

fn places(snapshot: &ClusterSnapshot) -> BTreeMap<VmId, BTreeSet<HostId>> {
    let mut places: BTreeMap<VmId, BTreeSet<HostId>> =
        snapshot.vms.values().map(|vm| (vm.id.clone(), [vm.host.clone()].into())).collect();
    for flight in &snapshot.migrations {
        places.get_mut(&flight.vm).unwrap().extend([flight.from.clone(), flight.to.clone()]);
    }
    places
}

/// Executes the plan with as much concurrency as `choices` picks, looking at the world after every start and end.
fn execute(snapshot: &ClusterSnapshot, plan: &Plan, choices: &[u16]) -> Result<(), TestCaseError> {
    let mut places = places(snapshot);
    let (memory_before, broken_before) = (memory(snapshot, &places), broken(snapshot, &places));
    let (mut running, mut done) = (BTreeSet::new(), BTreeSet::new());
    let mut choices = choices.iter().copied().cycle();
    while done.len() < plan.steps.len() {
        let ready = (0..plan.steps.len()).filter(|n| {
            !done.contains(n)
                && !running.contains(n)
                && plan.steps[*n].after.iter().all(|a| done.contains(a))
        });
        // Starts are +n, ends are -n, so that any mixture of both is picked.
        let events: Vec<(usize, bool)> =
            ready.map(|n| (n, true)).chain(running.iter().map(|n| (*n, false))).collect();
        prop_assert!(!events.is_empty(), "dead end");
        let (n, start) = events[usize::from(choices.next().unwrap()) % events.len()];
        let step = &plan.steps[n];
        let at = places.get_mut(&step.vm).unwrap();
        if start {
            prop_assert_eq!(&*at, &BTreeSet::from([step.from.clone()]), "step {} starts", n);
            at.insert(step.to.clone());
            running.insert(n);
        } else {
            at.remove(&step.from);
            running.remove(&n);
            done.insert(n);
        }
        for (host, used) in memory(snapshot, &places) {
            let limit = snapshot.hosts[&host].capacity.memory.get().max(memory_before[&host]);
            prop_assert!(
                used <= limit,
                "{} holds {} of {} after event {} of step {}",
                host,
                used,
                limit,
                start,
                n
            );
        }
        let new: Vec<String> =
            broken(snapshot, &places).difference(&broken_before).cloned().collect();
        prop_assert!(new.is_empty(), "{:?}", new);
    }
    Ok(())
}

/// Two rules that tie VMs to one another, by numbers of VMs: some together, some near others.
fn tied(snapshot: &mut ClusterSnapshot, together: &[usize], near: &[usize], needs: &[usize]) {
    let ids: Vec<VmId> = snapshot.vms.keys().cloned().collect();
    let named = |numbers: &[usize]| -> BTreeSet<VmId> {
        numbers.iter().map(|n| ids[n % ids.len()].clone()).collect()
    };
    let domain = Domain::default();
    let kinds = [
        RuleKind::Affinity { vms: named(together), domain: domain.clone() },
        RuleKind::Near { vms: named(near), needs: named(needs), domain },
    ];
    for (name, kind) in ["tie-1", "tie-2"].into_iter().zip(kinds) {
        let rule = Rule::must(name.parse().unwrap(), kind);
        snapshot.rules.insert(rule.id.clone(), rule);
    }
}

/// Gathers these VMs, by number, on the host of the first, and ties them together there or on its rack of two hosts.
fn gathered(snapshot: &mut ClusterSnapshot, together: &[usize], on_rack: bool) {
    let ids: Vec<VmId> = snapshot.vms.keys().cloned().collect();
    let vms: BTreeSet<VmId> = together.iter().map(|n| ids[n % ids.len()].clone()).collect();
    let host = snapshot.vms[vms.first().unwrap()].host.clone();
    vms.iter().for_each(|vm| snapshot.relocate(vm, &host));
    for (n, host) in snapshot.hosts.values_mut().enumerate() {
        host.labels.insert("rack".into(), format!("r{}", n / 2));
    }
    let domain = if on_rack { "rack".parse().unwrap() } else { Domain::default() };
    let rule = Rule::must("tie".parse().unwrap(), RuleKind::Affinity { vms, domain });
    snapshot.rules.insert(rule.id.clone(), rule);
}

/// How far a rule that ties VMs to one another is from holding.
fn parted(snapshot: &ClusterSnapshot, kind: &RuleKind) -> usize {
    let place = |vm: &VmId, domain: &Domain| {
        let host = &snapshot.hosts[&snapshot.vms[vm].host];
        domain.of(&host.id, &host.labels)
    };
    match kind {
        RuleKind::Affinity { vms, domain } => {
            vms.iter().map(|vm| place(vm, domain)).collect::<BTreeSet<_>>().len() - 1
        }
        RuleKind::Near { vms, needs, domain } => {
            let near: BTreeSet<_> = needs.iter().map(|vm| place(vm, domain)).collect();
            vms.iter().filter(|vm| !near.contains(&place(vm, domain))).count()
        }
        _ => 0,
    }
}

proptest! {
    // Each cluster is planned a dozen times and more.
    #![proptest_config(config_of(config().cases / 8))]

    #[test]
    fn a_short_plan_is_a_legal_start_and_repeating_it_ends(
        snapshot in clusters(),
        steps_max in 1_usize..4,
        choices in proptest::collection::vec(any::<u16>(), 1..16),
        drain in goals(),
    ) {
        let options = PlanOptions { steps_max, drain, ..PlanOptions::default() };
        let mut now = snapshot;
        for _ in 0..PLANS_MAX {
            let planning = plan(&now, &options).unwrap();
            prop_assert!(planning.plan.steps.len() <= steps_max);
            execute(&now, &planning.plan, &choices)?;
            if planning.plan.steps.is_empty() {
                return Ok(());
            }
            now = after(&now, &planning.plan);
        }
        prop_assert!(false, "{} plans and no end", PLANS_MAX);
    }

    #[test]
    fn a_plan_keeps_its_budget_and_is_legal(
        snapshot in clusters(),
        gib in 1_u64..40,
        seconds in 10_u64..400,
        choices in proptest::collection::vec(any::<u16>(), 1..16),
        drain in goals(),
    ) {
        let (bytes_max, time_max) = (Bytes::gib(gib), Duration::from_secs(seconds));
        let options = PlanOptions {
            bytes_max: Some(bytes_max),
            time_max: Some(time_max),
            drain,
            ..PlanOptions::default()
        };
        let planning = plan(&snapshot, &options).unwrap();
        let spent = planning.report.curve.last().unwrap().cost;
        prop_assert!(spent.bytes <= bytes_max && spent.duration <= time_max, "{:?}", spent);
        execute(&snapshot, &planning.plan, &choices)?;
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_interleaving_breaks_memory_or_a_hard_rule(
        snapshot in clusters(),
        choices in proptest::collection::vec(any::<u16>(), 1..64),
        drain in goals(),
    ) {
        let planning = plan(&snapshot, &PlanOptions { drain, ..PlanOptions::default() }).unwrap();
        execute(&snapshot, &planning.plan, &choices)?;
    }

    #[test]
    fn a_plan_for_vms_that_rules_tie_is_settled_and_parts_none(
        snapshot in clusters(),
        together in proptest::collection::vec(0_usize..32, 2..4),
        near in proptest::collection::vec(0_usize..32, 1..3),
        needs in proptest::collection::vec(0_usize..32, 1..3),
        steps_max in 1_usize..64,
        drain in goals(),
    ) {
        let mut snapshot = snapshot;
        snapshot.migrations.clear();
        tied(&mut snapshot, &together, &near, &needs);
        let whole = PlanOptions { drain, ..PlanOptions::default() };
        let short = PlanOptions { steps_max, ..whole };
        let end = after(&snapshot, &plan(&snapshot, &whole).unwrap().plan);
        prop_assert_eq!(plan(&end, &whole).unwrap().plan.steps, vec![]);
        let begun = after(&snapshot, &plan(&snapshot, &short).unwrap().plan);
        for rule in snapshot.rules.values() {
            let before = parted(&snapshot, &rule.kind);
            for then in [&begun, &end] {
                let after = parted(then, &rule.kind);
                prop_assert!(after <= before, "rule {}: {before} -> {after}", rule.id);
            }
        }
    }

    #[test]
    fn a_group_that_is_together_levels_as_one_and_is_left_in_peace_then(
        snapshot in clusters(),
        groups in proptest::collection::vec(0_usize..32, 2..5),
        on_rack in any::<bool>(),
        choices in proptest::collection::vec(any::<u16>(), 1..64),
    ) {
        let mut snapshot = snapshot;
        snapshot.migrations.clear();
        gathered(&mut snapshot, &groups, on_rack);
        let options = PlanOptions::default();
        let planning = plan(&snapshot, &options).unwrap();
        execute(&snapshot, &planning.plan, &choices)?;
        let end = after(&snapshot, &planning.plan);
        for rule in snapshot.rules.values() {
            prop_assert_eq!(parted(&end, &rule.kind), 0, "rule {}", rule.id);
        }
        prop_assert_eq!(plan(&end, &options).unwrap().plan.steps, vec![]);
    }

    #[test]
    fn planning_on_the_state_a_plan_leads_to_yields_nothing(
        snapshot in clusters(),
        drain in goals(),
    ) {
        let options = PlanOptions { drain, ..PlanOptions::default() };
        let first = plan(&snapshot, &options).unwrap();
        let second = plan(&after(&snapshot, &first.plan), &options).unwrap();
        prop_assert_eq!(second.plan.steps, vec![]);
        prop_assert_eq!(second.plan.imbalance_before, first.plan.imbalance_after);
    }

    #[test]
    fn the_same_cluster_gives_the_same_plan(
        snapshot in clusters(),
        seed in any::<u64>(),
        drain in goals(),
    ) {
        let options = PlanOptions { seed, drain, ..PlanOptions::default() };
        let first = plan(&snapshot, &options).unwrap();
        // The file lists everything in another order; migrations are the only list in memory.
        let mut json = serde_json::to_value(&snapshot).unwrap();
        for list in ["hosts", "vms", "rules", "migrations"] {
            json[list].as_array_mut().unwrap().reverse();
        }
        let turned = ClusterSnapshot::from_json(&json.to_string()).unwrap();
        prop_assert_eq!(plan(&turned, &options).unwrap(), first);
    }

    #[test]
    fn every_vm_has_a_verdict_and_moves_only_if_it_may(
        snapshot in clusters(),
        drain in goals(),
    ) {
        let planning = plan(&snapshot, &PlanOptions { drain, ..PlanOptions::default() }).unwrap();
        prop_assert!(planning.verdicts.keys().eq(snapshot.vms.keys()));
        let moved: BTreeSet<&VmId> = planning.plan.steps.iter().map(|step| &step.vm).collect();
        for (id, verdict) in &planning.verdicts {
            match verdict {
                Verdict::Moves { step, reason } => {
                    prop_assert_eq!(&planning.plan.steps[*step].vm, id);
                    prop_assert!(!reason.is_empty());
                }
                Verdict::Stays { reason, .. } => prop_assert!(!reason.is_empty() && !moved.contains(id)),
                Verdict::Stuck { reason, remedy, .. } => {
                    prop_assert!(!reason.is_empty() && !remedy.is_empty() && !moved.contains(id));
                }
            }
        }
        for step in &planning.plan.steps {
            let vm = &snapshot.vms[&step.vm];
            let drains = snapshot.hosts[&vm.host].state == HostState::Draining;
            prop_assert_eq!(&vm.mobility, &Mobility::Movable);
            prop_assert!(vm.automation == Automation::Full || vm.automation == Automation::Partial && drains);
            prop_assert!(snapshot.migrations.iter().all(|flight| flight.vm != step.vm));
            for host in [&step.from, &step.to] {
                let known = matches!(snapshot.hosts[host].telemetry, Telemetry::Known { .. });
                prop_assert!(known, "{} is unknown", host);
            }
            prop_assert_eq!(snapshot.hosts[&step.to].state, HostState::Active);
        }
    }

    #[test]
    fn each_step_made_in_order_passes_the_eligibility_check(
        snapshot in clusters(),
        drain in goals(),
    ) {
        let planning = plan(&snapshot, &PlanOptions { drain, ..PlanOptions::default() }).unwrap();
        let mut now = snapshot;
        for step in &planning.plan.steps {
            check_step(&now, &step.vm, &step.to).unwrap();
            let before = imbalance(&now);
            now.vms.get_mut(&step.vm).unwrap().host = step.to.clone();
            let fall = before.get() - imbalance(&now).get();
            prop_assert!((fall - step.gain).abs() < 1e-9, "{} {}", fall, step.gain);
        }
        prop_assert_eq!(imbalance(&now), planning.plan.imbalance_after);
    }

    #[test]
    fn a_step_that_levels_nothing_pays_with_a_later_one(snapshot in clusters()) {
        let plan = plan(&snapshot, &PlanOptions::default()).unwrap().plan;
        let mut now = snapshot.clone();
        // To relieve a host above the CPU ceiling is worth more than level load, as is what must be.
        let mut must = Vec::new();
        for step in &plan.steps {
            must.push(step.cause != StepCause::Balance || is_over_ceiling(&now, &step.from));
            now.vms.get_mut(&step.vm).unwrap().host = step.to.clone();
        }
        for n in 0..plan.steps.len() {
            let mut sum = 0.0;
            let pays = plan.steps[n..].iter().zip(&must[n..]).any(|(step, must)| {
                sum += step.gain;
                *must || sum > -1e-9
            });
            prop_assert!(pays, "step {} of {:?}", n, plan.steps);
        }
        let is_forced = must.contains(&true);
        let slack = 1e-3;
        prop_assert!(
            is_forced || plan.imbalance_after.get() <= plan.imbalance_before.get() + slack,
            "{:?}",
            plan
        );
    }

    #[test]
    fn extreme_amounts_neither_wrap_nor_panic(
        snapshot in clusters(),
        picks in proptest::collection::vec((any::<u16>(), 0_usize..6), 1..8),
    ) {
        const AMOUNTS: [u64; 6] = [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, i64::MAX as u64];
        let mut snapshot = snapshot;
        let (vms, hosts) = (snapshot.vms.len(), snapshot.hosts.len());
        for (n, (pick, amount)) in picks.iter().enumerate() {
            let (at, amount) = (usize::from(*pick), AMOUNTS[*amount]);
            let vm = snapshot.vms.values_mut().nth(at % vms).unwrap();
            let host = snapshot.hosts.values_mut().nth(at % hosts).unwrap();
            match n % 6 {
                0 => vm.size.memory = Bytes(amount),
                1 => vm.demand.cpu = Millicores(amount),
                2 => vm.dirty_rate = BytesPerSec(amount),
                3 => host.capacity.memory = Bytes(amount),
                4 => host.capacity.cpu = Millicores(amount),
                _ => host.link = BytesPerSec(amount),
            }
        }
        match plan(&snapshot, &PlanOptions::default()) {
            Err(refusal) => prop_assert_eq!(refusal.code, RefusalCode::InvalidArgument, "{}", refusal),
            Ok(planning) => {
                prop_assert!(planning.verdicts.keys().eq(snapshot.vms.keys()));
                prop_assert!(planning.plan.imbalance_after.get().is_finite());
                for step in &planning.plan.steps {
                    let (vm, host) = (&snapshot.vms[&step.vm], &snapshot.hosts[&step.to]);
                    prop_assert!(vm.size.memory <= host.capacity.memory);
                }
            }
        }
    }

    #[test]
    fn nothing_is_lost_in_the_books(snapshot in clusters()) {
        let check = |snapshot: &ClusterSnapshot| -> Result<Bytes, TestCaseError> {
            let mut vms = Bytes::ZERO;
            for (host, u) in usage(snapshot).unwrap() {
                let parts = u.memory_overhead + u.memory_vms + u.memory_moving + u.memory_free;
                prop_assert_eq!(parts, u.memory_capacity + u.memory_over, "{}", host);
                prop_assert!(u.memory_free == Bytes::ZERO || u.memory_over == Bytes::ZERO);
                vms += u.memory_vms;
            }
            Ok(vms)
        };
        let planning = plan(&snapshot, &PlanOptions::default()).unwrap();
        let sizes = snapshot.vms.values().fold(Bytes::ZERO, |sum, vm| sum + vm.size.memory);
        prop_assert_eq!(check(&snapshot)?, sizes);
        prop_assert_eq!(check(&after(&snapshot, &planning.plan))?, sizes);
    }

    #[test]
    fn a_new_vm_starts_where_it_fits_or_is_refused_for_memory(snapshot in clusters(), gib in 1_u64..80) {
        let size = ballast_model::Resources::new(Millicores(500), Bytes::gib(gib));
        let room = usage(&snapshot).unwrap();
        let fits = |host: &HostId| room[host].takes_vms && room[host].memory_free >= size.memory;
        match place(&snapshot, &"new".parse().unwrap(), size, &PlanOptions::default()) {
            Ok(host) => prop_assert!(fits(&host)),
            Err(refusal) => prop_assert!(!room.keys().any(fits), "{}", refusal),
        }
    }
}
