//! Rounds of the balancer: level, drain, recommend, pause, rest.

use ballast_model::audit::{AuditEntry, AuditRecord};
use ballast_model::vm::Automation;
use ballast_model::{DrainGoal, MigrationPhase, RefusalCode, Telemetry};

use crate::cluster::{Cluster, eventually, reasons};

async fn piled(change: impl Fn(&mut ballast_controller::config::Config)) -> Cluster {
    let mut cluster = Cluster::start_with(change).await;
    for n in 0..6 {
        let vm = format!("v{n}");
        cluster.load.insert(vm.parse().unwrap(), 300 + 50 * n);
        cluster.create(&vm, "h1").await;
    }
    cluster.report();
    cluster
}

/// A round, until what it began has ended and been reported.
async fn round(cluster: &Cluster) -> usize {
    let before = cluster.controller.repository.migrations().await.unwrap().len();
    cluster.controller.round().await.unwrap();
    cluster.settled().await;
    cluster.report();
    cluster.controller.repository.migrations().await.unwrap().len() - before
}

#[tokio::test]
async fn a_pile_is_levelled_and_then_left_alone() {
    let cluster = piled(|config| config.balance.moves_per_cycle_max = 2).await;
    let mut moves = Vec::new();
    loop {
        let begun = round(&cluster).await;
        moves.push(begun);
        if begun == 0 {
            break;
        }
        assert!(begun <= 2, "{moves:?}");
        assert!(moves.len() < 10, "it does not settle: {moves:?}");
    }
    let places = cluster.settled().await;
    let used: std::collections::BTreeSet<_> = places.values().collect();
    assert_eq!(used.len(), 3, "{places:?}");
    assert_eq!(round(&cluster).await, 0, "a settled cluster stays");
}

#[tokio::test]
async fn levels_below_full_recommend_and_an_operator_applies() {
    let cluster = piled(|config| config.balance.automation = Automation::Full).await;
    cluster.controller.set_automation(Automation::Partial, reasons()).await.unwrap();
    assert_eq!(round(&cluster).await, 0);
    let plans = cluster.controller.repository.plans().await.unwrap();
    assert_eq!(plans.len(), 1, "kept as a recommendation");
    assert_eq!(round(&cluster).await, 0);
    let again = cluster.controller.repository.plans().await.unwrap();
    assert_eq!(again.len(), 1, "the same recommendation is kept once");
    let started = cluster.controller.apply_plan(plans[0].value.id, reasons()).await.unwrap();
    assert!(!started.is_empty());
    cluster.settled().await;
    cluster.report();
    let refusal = cluster.controller.apply_plan(plans[0].value.id, reasons()).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Conflict, "applied once: {refusal}");
    cluster.settled().await;
}

#[tokio::test]
async fn a_drain_is_served_at_every_level_and_carries_the_operators_reason() {
    let cluster = piled(|config| config.balance.cooldown_ms = 600_000).await;
    cluster.controller.set_automation(Automation::Manual, reasons()).await.unwrap();
    let host = "h1".parse().unwrap();
    assert_eq!(cluster.controller.drain_host(&host, None, reasons()).await.unwrap(), 6);
    for _ in 0..6 {
        round(&cluster).await;
    }
    assert!(cluster.settled().await.values().all(|host| host != "h1"));
    for record in cluster.controller.repository.migrations().await.unwrap() {
        let trail = record.value.migration.reasons.to_string();
        assert!(trail.starts_with("test: a scenario → balancer: "), "{trail}");
    }
    let refusal = cluster.migrate("v0", "h1").await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::WrongState, "{refusal}");
    cluster.controller.uncordon_host(&host, reasons()).await.unwrap();
    let id = cluster.migrate("v0", "h1").await.unwrap();
    assert!(matches!(cluster.ended(id).await.phase, MigrationPhase::Ended { .. }));
    cluster.settled().await;
}

#[tokio::test]
async fn a_drain_keeps_its_goal_until_it_is_given_another() {
    let quiet = Some(DrainGoal::LeastDisturbing);
    let cluster = piled(|config| config.balance.drain = DrainGoal::Fastest).await;
    let controller = &cluster.controller;
    let (full, empty) = ("h1".parse().unwrap(), "h3".parse().unwrap());
    for (host, asked, expected) in [
        (&empty, None, Some(DrainGoal::Fastest)),
        (&empty, quiet, quiet),
        (&empty, None, quiet),
        (&full, Some(DrainGoal::Fastest), Some(DrainGoal::Fastest)),
    ] {
        controller.drain_host(host, asked, reasons()).await.unwrap();
        let snapshot = controller.show_plan().await.unwrap().snapshot;
        assert_eq!(snapshot.hosts[host].drain_goal, expected, "{asked:?}");
    }
    controller.uncordon_host(&empty, reasons()).await.unwrap();
    assert_eq!(controller.repository.known_host(&empty).await.unwrap().value.drain_goal, None);
    let trail = controller.journal.audit().unwrap().page(1, 1_000).await.unwrap();
    let entries = trail.entries.iter().map(|(_, json)| serde_json::from_str::<AuditEntry>(json));
    let opened = entries.map(Result::unwrap).filter(|entry| entry.record == AuditRecord::Opened);
    let goals: Vec<String> =
        opened.filter_map(|entry| entry.details.get("goal").cloned()).collect();
    assert_eq!(goals, ["fastest", "least-disturbing", "fastest"]);
}

#[tokio::test]
async fn a_moved_vm_rests_from_the_balancer_and_not_from_operators() {
    let cluster = Cluster::start_with(|config| config.balance.cooldown_ms = 600_000).await;
    cluster.create("a", "h1").await;
    let id = cluster.migrate("a", "h2").await.unwrap();
    cluster.ended(id).await;
    cluster.report();
    let plan = cluster.controller.show_plan().await.unwrap();
    let mobility = format!("{:?}", plan.snapshot.vms[&"a".parse().unwrap()].mobility);
    assert!(mobility.contains("it was moved") && mobility.contains("wait"), "{mobility}");
    let id = cluster.migrate("a", "h3").await.unwrap();
    assert_eq!(cluster.ended(id).await.phase.name(), "completed");
    cluster.settled().await;
}

#[tokio::test]
async fn the_planner_is_told_how_often_a_vm_was_moved_lately() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.create("b", "h2").await;
    for host in ["h2", "h3"] {
        let id = cluster.migrate("a", host).await.unwrap();
        cluster.ended(id).await;
    }
    cluster.settled().await;
    let plan = cluster.controller.show_plan().await.unwrap();
    let moves = |vm: &str| plan.snapshot.vms[&vm.parse().unwrap()].moves_recent;
    assert_eq!((moves("a"), moves("b")), (2, 0));
}

#[tokio::test]
async fn too_many_unknown_hosts_pause_the_balancer() {
    let cluster = piled(|_| {}).await;
    // A new stream whose first report is broken: unknown until good ones follow.
    for host in ["h2", "h3"] {
        let host = host.parse().unwrap();
        let mut broken = cluster.world.report(&host, |_| 1);
        broken.load = None;
        cluster.controller.live.report(&host, broken).unwrap().unwrap_err();
        let telemetry = cluster.controller.live.host(&host).telemetry;
        assert!(matches!(telemetry, Telemetry::Unknown { .. }));
    }
    cluster.controller.round().await.unwrap();
    assert_eq!(cluster.controller.repository.migrations().await.unwrap().len(), 0);
    assert_eq!(cluster.controller.metrics.balancer_paused.get(), 1);
    cluster.report();
    eventually("it goes on by itself", || async {
        cluster.controller.round().await.unwrap();
        cluster.controller.metrics.balancer_paused.get() == 0
    })
    .await;
    assert!(!cluster.controller.repository.migrations().await.unwrap().is_empty());
    cluster.settled().await;
}
