//! kill -9 of a controller, a VMM, an agent: every VM runs exactly once, and
//! its guest noticed nothing but a pause.

use std::time::Duration;

use ballast_cli::cluster::StoreKind;
use ballast_guest::Params;
use ballast_proto::v1;
use ballast_tests::{Guest, TestCluster, eventually, kvm_or_skip, signal_process};
use rustix::process::Signal;

use crate::PROGRAM;

/// Enough memory and dirtying for a migration of some rounds.
fn busy() -> Params {
    Params {
        heartbeat_ms: 50,
        duty_percent: 20,
        working_set_mib: 192,
        dirty_mib_per_sec: 30,
        ..Params::default()
    }
}

/// When to kill.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after the migration was asked for.
    After(Duration),
    /// As soon as it is seen in a phase.
    Phase(&'static str),
    /// When both sides are paused and nothing is committed.
    BothReady,
}

impl Moment {
    /// Waits for it. At `BothReady` the controller is left stopped: it must not commit.
    async fn come(self, test: &TestCluster, migration: &str, vm: &str) {
        match self {
            Self::After(time) => tokio::time::sleep(time).await,
            Self::Phase(phase) => test.reaches(migration, phase).await,
            Self::BothReady => {
                let hosts = test.hosts().await;
                test.reaches(migration, "transferring").await;
                test.signal_controller(Signal::STOP);
                eventually("both sides are READY", async || {
                    let sides = test.everywhere(&hosts, vm).await;
                    let migrations =
                        || sides.iter().filter_map(|(_, side)| side.migration.as_ref());
                    if !migrations()
                        .any(|m| m.migration == migration && m.role() == v1::MigrationRole::Source)
                    {
                        // It was stopped before it had told the source to begin.
                        test.signal_controller(Signal::CONT);
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        test.signal_controller(Signal::STOP);
                    }
                    let ready = migrations().filter(|m| m.state() == v1::MigrationState::Ready);
                    (ready.count() == 2).then_some(())
                })
                .await;
            }
        }
    }
}

async fn check_controller_crashes(store: StoreKind) {
    let moments = [
        Moment::After(Duration::ZERO),
        Moment::Phase("transferring"),
        Moment::After(Duration::from_millis(150)),
        Moment::BothReady,
        Moment::Phase("committed"),
    ];
    let mut test = TestCluster::start(PROGRAM, store).await;
    let mut guest = Guest::create(&test, "probe", "host-1", &busy()).await;
    for moment in moments {
        let from = test.runs_once("probe").await;
        let to = if from == "host-1" { "host-2" } else { "host-1" };
        let id = test.migrate("probe", to).await;
        moment.come(&test, &id, "probe").await;
        test.crash_controller().await;
        let migration = test.ended(&id).await;
        let host = test.runs_once("probe").await;
        let expected = if migration.phase == "completed" { to } else { from.as_str() };
        assert_eq!(host, expected, "{moment:?}: {migration:?}");
        guest.goes_on(&test).await;
        eprintln!("{moment:?}: {} on {host}", migration.phase);
    }
    let verified = test.audit_verify(PROGRAM).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    test.stop().await;
}

#[tokio::test]
async fn a_killed_controller_ends_its_migrations_after_a_restart() {
    if kvm_or_skip("a killed controller") {
        check_controller_crashes(StoreKind::Embedded).await;
    }
}

#[tokio::test]
async fn a_killed_controller_ends_its_migrations_after_a_restart_on_etcd() {
    if kvm_or_skip("a killed controller on etcd") {
        check_controller_crashes(StoreKind::Etcd).await;
    }
}

async fn check_destination_killed(moment: Moment) {
    let test = TestCluster::start(PROGRAM, StoreKind::Embedded).await;
    let mut guest = Guest::create(&test, "probe", "host-1", &busy()).await;
    let hosts = test.hosts().await;
    let id = test.migrate("probe", "host-2").await;
    moment.come(&test, &id, "probe").await;
    let found = test.everywhere(&hosts, "probe").await;
    let (_, destination) =
        found.iter().find(|(host, _)| host == "host-2").expect("the destination has its VMM");
    signal_process(destination.pid, Signal::KILL);
    if matches!(moment, Moment::BothReady) {
        test.signal_controller(Signal::CONT);
    }
    let migration = test.ended(&id).await;
    assert_eq!(migration.phase, "failed", "{migration:?}");
    assert!(!migration.why.is_empty());
    assert_eq!(test.runs_once("probe").await, "host-1");
    guest.goes_on(&test).await;
    // The next attempt is not held back by the first.
    let id = test.migrate("probe", "host-2").await;
    assert_eq!(test.ended(&id).await.phase, "completed");
    assert_eq!(test.runs_once("probe").await, "host-2");
    guest.goes_on(&test).await;
    test.stop().await;
}

#[tokio::test]
async fn the_source_goes_on_when_the_destination_dies_in_the_transfer() {
    if kvm_or_skip("a killed destination") {
        check_destination_killed(Moment::Phase("transferring")).await;
    }
}

#[tokio::test]
async fn the_source_goes_on_when_the_destination_dies_before_the_commit() {
    if kvm_or_skip("a killed destination before the commit") {
        check_destination_killed(Moment::BothReady).await;
    }
}

#[tokio::test]
async fn vms_outlive_their_agent_which_adopts_them() {
    if !kvm_or_skip("a killed agent") {
        return;
    }
    let mut test = TestCluster::start(PROGRAM, StoreKind::Embedded).await;
    let mut guest = Guest::create(&test, "probe", "host-1", &busy()).await;
    let hosts = test.hosts().await;
    let pid = async |test: &TestCluster| test.everywhere(&hosts, "probe").await[0].1.pid;
    let pid_before = pid(&test).await;
    let before = guest.goes_on(&test).await;
    test.cluster.kill_agent(0).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await; // twenty heartbeats that nobody reads
    test.cluster.restart_agent(0).await.unwrap();
    assert_eq!(test.runs_once("probe").await, "host-1");
    assert_eq!(pid(&test).await, pid_before, "the same process");
    let after = guest.goes_on(&test).await;
    assert!(after.heartbeats >= before.heartbeats + 15, "{before:?} {after:?}");
    // And it can be moved.
    let id = test.migrate("probe", "host-3").await;
    assert_eq!(test.ended(&id).await.phase, "completed");
    guest.goes_on(&test).await;
    test.stop().await;
}

#[tokio::test]
async fn a_migration_outlives_the_source_agent() {
    if !kvm_or_skip("a killed source agent") {
        return;
    }
    let mut test = TestCluster::start(PROGRAM, StoreKind::Embedded).await;
    let mut guest = Guest::create(&test, "probe", "host-1", &busy()).await;
    for (index, moment) in [(0, Moment::Phase("transferring")), (1, Moment::BothReady)] {
        let from = test.runs_once("probe").await;
        let to = if from == "host-1" { "host-2" } else { "host-1" };
        let id = test.migrate("probe", to).await;
        moment.come(&test, &id, "probe").await;
        // The source's agent the first time, the destination's the second.
        let victim = if (from == "host-1") == (index == 0) { 0 } else { 1 };
        test.cluster.kill_agent(victim).await.unwrap();
        if matches!(moment, Moment::BothReady) {
            test.signal_controller(Signal::CONT);
        }
        test.cluster.restart_agent(victim).await.unwrap();
        test.ended(&id).await;
        test.runs_once("probe").await;
        guest.goes_on(&test).await;
    }
    test.stop().await;
}
