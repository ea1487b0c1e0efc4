//! Each step of a migration fails in turn.

use ballast_model::{MigrationOutcome, MigrationPhase, RefusalCode};

use crate::cluster::{Cluster, eventually, reasons};
use crate::hosts::{Call, Fault};

async fn check(host: &str, call: Call, faults: &[Fault], expected: &str) {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.world.fail(host, call, faults);
    let id = cluster.migrate("a", "h2").await.unwrap();
    let migration = cluster.ended(id).await;
    let case = format!("{host} {call:?} {faults:?}: {migration:?}");
    assert_eq!(migration.phase.name(), expected, "{case}");
    let place = if expected == "completed" { "h2" } else { "h1" };
    assert_eq!(cluster.settled().await["a"], place, "{case}");
    // It is free for the next one.
    cluster.report();
    let next = cluster.migrate("a", "h3").await.unwrap();
    assert_eq!(cluster.ended(next).await.phase.name(), "completed", "{case}");
    assert_eq!(cluster.settled().await["a"], "h3");
}

#[tokio::test]
async fn a_plain_migration_completes_with_both_sides_figures() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    let before = cluster.controller.repository.known_vm(&"a".parse().unwrap()).await.unwrap();
    let id = cluster.migrate("a", "h2").await.unwrap();
    let migration = cluster.ended(id).await;
    assert_eq!(migration.phase, MigrationPhase::Ended { outcome: MigrationOutcome::Completed });
    assert_eq!(migration.progress.downtime.total().as_millis(), 10, "7 + 3 ms, one part a side");
    assert_eq!(migration.progress.bytes_sent.get(), 1_000_000);
    let after = cluster.controller.repository.known_vm(&"a".parse().unwrap()).await.unwrap();
    assert_eq!(after.owner.value.epoch, before.owner.value.epoch.next());
    assert_eq!(cluster.settled().await["a"], "h2");
}

#[tokio::test]
async fn the_destination_does_not_prepare() {
    check("h2", Call::Prepare, &[Fault::Refused], "failed").await;
    check("h2", Call::Prepare, &[Fault::Lost], "failed").await;
    check("h2", Call::Prepare, &[Fault::AnswerLost], "failed").await;
}

#[tokio::test]
async fn the_source_does_not_start() {
    check("h1", Call::Start, &[Fault::Refused], "failed").await;
    check("h1", Call::Start, &[Fault::Lost], "failed").await;
}

#[tokio::test]
async fn a_start_whose_answer_is_lost_is_observed() {
    check("h1", Call::Start, &[Fault::AnswerLost], "completed").await;
}

#[tokio::test]
async fn sides_that_cannot_be_watched_for_a_while() {
    check("h1", Call::Watch, &[Fault::Lost; 5], "completed").await;
    check("h2", Call::Watch, &[Fault::Lost; 5], "completed").await;
}

#[tokio::test]
async fn a_commit_that_is_lost_or_whose_answer_is() {
    check("h2", Call::Commit, &[Fault::Lost; 3], "completed").await;
    check("h2", Call::Commit, &[Fault::AnswerLost; 3], "completed").await;
}

#[tokio::test]
async fn sides_that_cannot_be_told_for_a_while() {
    check("h1", Call::Resolve, &[Fault::Lost; 4], "completed").await;
    check("h1", Call::Resolve, &[Fault::AnswerLost; 4], "completed").await;
    check("h2", Call::List, &[Fault::Lost; 4], "completed").await;
}

#[tokio::test]
async fn a_destination_that_dies_before_the_commit_leaves_the_source_running() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.world.set_stuck("a", true);
    let id = cluster.migrate("a", "h2").await.unwrap();
    transferring(&cluster, id).await;
    cluster.world.kill_incoming("h2");
    assert_eq!(cluster.ended(id).await.phase.name(), "failed");
    assert_eq!(cluster.settled().await["a"], "h1");
}

#[tokio::test]
async fn an_undo_is_told_again_until_both_sides_have_heard() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.world.set_stuck("a", true);
    let id = cluster.migrate("a", "h2").await.unwrap();
    transferring(&cluster, id).await;
    cluster.world.fail("h1", Call::Resolve, &[Fault::Lost; 4]);
    cluster.world.fail("h2", Call::Resolve, &[Fault::AnswerLost; 6]);
    cluster.controller.cancel_migration(id, reasons()).await.unwrap();
    assert_eq!(cluster.ended(id).await.phase.name(), "cancelled");
    assert_eq!(cluster.settled().await["a"], "h1");
}

#[tokio::test]
async fn a_transfer_that_takes_too_long_is_aborted() {
    let cluster =
        Cluster::start_with(|config| config.migration.transfer_timeout_min_ms = 100).await;
    cluster.create("a", "h1").await;
    cluster.world.set_stuck("a", true);
    let id = cluster.migrate("a", "h2").await.unwrap();
    let migration = cluster.ended(id).await;
    assert!(format!("{:?}", migration.phase).contains("did not end within"), "{migration:?}");
    assert_eq!(cluster.settled().await["a"], "h1");
}

#[tokio::test]
async fn a_silent_host_holds_up_its_own_migrations_only() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.create("b", "h1").await;
    cluster.world.set_stuck("a", true);
    let slow = cluster.migrate("a", "h2").await.unwrap();
    transferring(&cluster, slow).await;
    cluster.world.set_silent("h2", true);
    let quick = cluster.migrate("b", "h3").await.unwrap();
    assert_eq!(cluster.ended(quick).await.phase.name(), "completed");
    assert_eq!(cluster.migration(slow).await.phase.name(), "transferring");
    cluster.world.set_silent("h2", false);
    cluster.world.set_stuck("a", false);
    assert_eq!(cluster.ended(slow).await.phase.name(), "completed");
    cluster.settled().await;
}

#[tokio::test]
async fn a_cancel_after_the_end_is_refused() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    let id = cluster.migrate("a", "h2").await.unwrap();
    cluster.ended(id).await;
    let refusal = cluster.controller.cancel_migration(id, reasons()).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::WrongState);
    cluster.settled().await;
}

#[tokio::test]
async fn one_change_at_a_time_holds_a_vm() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.world.set_stuck("a", true);
    let id = cluster.migrate("a", "h2").await.unwrap();
    assert_eq!(cluster.migrate("a", "h3").await.unwrap_err().code, RefusalCode::WrongState);
    let delete = cluster.controller.delete_vm(&"a".parse().unwrap(), reasons()).await;
    assert_eq!(delete.unwrap_err().code, RefusalCode::WrongState);
    cluster.world.set_stuck("a", false);
    cluster.ended(id).await;
    cluster.settled().await;
}

pub(crate) async fn transferring(cluster: &Cluster, id: ballast_model::MigrationId) {
    eventually("the transfer begins", || async {
        let phase = cluster.migration(id).await.phase;
        matches!(phase, MigrationPhase::Transferring { .. })
            && !cluster.world.holds(&"a".parse().unwrap()).is_empty()
            && cluster
                .controller
                .query_migration(id, &"a".parse().unwrap(), &"h1".parse().unwrap())
                .await
                .is_ok()
    })
    .await;
}
