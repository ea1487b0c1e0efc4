//! The controller dies at every write in turn, before it or right after it.

use ballast_controller::vms::Creation;
use ballast_model::RefusalCode;

use crate::cluster::{Cluster, eventually, reasons, spec};
use crate::hosts::{Call, Fault};

/// More writes than any of these scenarios has.
const WRITES_MAX: i64 = 40;

/// Runs `scenario` with a death at each write, until a run ends before its death. At least `writes_min` were died at.
async fn die_everywhere<S, F>(writes_min: i64, prepare: S, act: F)
where
    S: AsyncFn(&Cluster),
    F: AsyncFn(&Cluster, &str),
{
    for happens in [false, true] {
        let mut survived = None;
        for writes in 0..WRITES_MAX {
            let mut cluster = Cluster::start().await;
            prepare(&cluster).await;
            cluster.store.dies_after(writes, happens);
            act(&cluster, &format!("write {writes}, which happens: {happens}")).await;
            if !cluster.store.is_dead() {
                cluster.settled().await;
                survived = Some(writes);
                break;
            }
            cluster.crash().await;
            cluster.settled().await;
        }
        assert!(survived.unwrap() >= writes_min, "it had only {survived:?} writes");
    }
}

async fn quiet(cluster: &Cluster) {
    eventually("it ends or the controller dies", || async {
        if cluster.store.is_dead() {
            return true;
        }
        let Ok(inventory) = cluster.controller.repository.inventory().await else { return true };
        inventory.running().count() == 0
    })
    .await;
}

#[tokio::test]
async fn at_every_write_of_a_migration() {
    let prepare = async |cluster: &Cluster| cluster.create("a", "h1").await;
    die_everywhere(4, prepare, async |cluster, case| match cluster.migrate("a", "h2").await {
        Ok(_) => quiet(cluster).await,
        Err(refusal) => assert_eq!(refusal.code, RefusalCode::Unavailable, "{case}"),
    })
    .await;
}

#[tokio::test]
async fn at_every_write_of_a_migration_that_fails() {
    let prepare = async |cluster: &Cluster| {
        cluster.create("a", "h1").await;
        cluster.world.fail("h1", Call::Start, &[Fault::Refused]);
    };
    die_everywhere(4, prepare, async |cluster, _| {
        if cluster.migrate("a", "h2").await.is_ok() {
            quiet(cluster).await;
        }
    })
    .await;
}

#[tokio::test]
async fn at_every_write_of_a_creation() {
    die_everywhere(
        2,
        async |_: &Cluster| {},
        async |cluster, _| {
            let _ = cluster.controller.create_vm(Creation::boot(spec("a"), None), reasons()).await;
        },
    )
    .await;
}

#[tokio::test]
async fn at_every_write_of_a_creation_that_the_host_refuses() {
    let prepare =
        async |cluster: &Cluster| cluster.world.fail("h1", Call::Create, &[Fault::Refused]);
    die_everywhere(2, prepare, async |cluster, _| {
        let host = Some("h1".parse().unwrap());
        cluster.controller.create_vm(Creation::boot(spec("a"), host), reasons()).await.unwrap_err();
    })
    .await;
}

#[tokio::test]
async fn at_every_write_of_a_removal() {
    let prepare = async |cluster: &Cluster| cluster.create("a", "h1").await;
    die_everywhere(2, prepare, async |cluster, _| {
        let _ = cluster.controller.delete_vm(&"a".parse().unwrap(), reasons()).await;
    })
    .await;
}

#[tokio::test]
async fn while_both_sides_wait_for_the_commit() {
    let mut cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.world.set_stuck("a", true);
    let id = cluster.migrate("a", "h2").await.unwrap();
    crate::faults::transferring(&cluster, id).await;
    cluster.world.set_controller(None);
    cluster.world.set_stuck("a", false);
    let vm = "a".parse().unwrap();
    eventually("the source pauses", || async { cluster.world.runs(&vm).is_empty() }).await;
    cluster.crash().await;
    assert_eq!(cluster.ended(id).await.phase.name(), "completed");
    assert_eq!(cluster.settled().await["a"], "h2");
}

#[tokio::test]
async fn a_leader_that_was_succeeded_changes_nothing_more() {
    let mut cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    let old = std::sync::Arc::clone(&cluster.controller);
    cluster.crash().await;
    assert_eq!(old.leading().unwrap_err().code, RefusalCode::Unavailable);
    let refusal = old.drain_host(&"h1".parse().unwrap(), None, reasons()).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Unavailable);
    cluster.settled().await;
}
