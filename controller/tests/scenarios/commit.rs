//! Exactly one of commit and abort happens.

use ballast_controller::migration::commit::CommitAsked;
use ballast_controller::migration::judge::Settlement;
use ballast_controller::store::etcd_process::{EtcdProcess, is_installed};
use ballast_controller::store::{StoreConfig, open};
use ballast_model::{Epoch, MigrationId, RefusalCode};
use ballast_proto::v1::MigrationVerdict;

use crate::cluster::{Cluster, eventually, reasons};
use crate::faults::transferring;
use crate::hosts::{Call, Fault};

const RACES: usize = 12;

/// The destination asks while an operator cancels.
async fn race(cluster: &Cluster) {
    let vm = "a".parse().unwrap();
    for _ in 0..RACES {
        cluster.world.set_mute(true);
        let owner = cluster.controller.repository.known_vm(&vm).await.unwrap().owner.value;
        let (from, epoch) = (owner.host, owner.epoch);
        let to = if from.as_str() == "h1" { "h2" } else { "h1" };
        let id = cluster.migrate("a", to).await.unwrap();
        eventually("both are ready", || async { cluster.world.runs(&vm).is_empty() }).await;
        let asked = CommitAsked {
            migration: id,
            vm: vm.clone(),
            host: to.parse().unwrap(),
            source_epoch: epoch,
        };
        let (commit, cancel) = tokio::join!(
            cluster.controller.commit_migration(&asked),
            cluster.controller.cancel_migration(id, reasons()),
        );
        cluster.world.set_mute(false);
        assert_ne!(commit.is_ok(), cancel.is_ok(), "{commit:?} {cancel:?}");
        match commit {
            Ok(granted) => {
                assert_eq!(granted, epoch.next());
                // Asked again, it is the same answer.
                assert_eq!(cluster.controller.commit_migration(&asked).await.unwrap(), granted);
                cluster.ended(id).await;
                assert_eq!(cluster.controller.commit_migration(&asked).await.unwrap(), granted);
            }
            Err(refusal) => {
                assert_eq!(refusal.code, RefusalCode::WrongState, "{refusal}");
                cluster.ended(id).await;
                cluster.controller.commit_migration(&asked).await.unwrap_err();
            }
        }
        cluster.settled().await;
        cluster.report();
    }
}

#[tokio::test]
async fn commit_and_cancel_exclude_each_other() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    race(&cluster).await;
}

#[tokio::test]
async fn commit_and_cancel_exclude_each_other_on_etcd() {
    if !is_installed() {
        eprintln!("skipped: there is no etcd on this machine");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let etcd =
        tokio::task::spawn_blocking(move || EtcdProcess::start(&path)).await.unwrap().unwrap();
    let store = open(&StoreConfig::Etcd { endpoints: vec![etcd.endpoint()] }).await.unwrap();
    let cluster = Cluster::over(store, |_| {}).await;
    cluster.create("a", "h1").await;
    race(&cluster).await;
}

#[tokio::test]
async fn a_commit_of_another_host_epoch_or_migration_is_refused() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.world.set_stuck("a", true);
    let id = cluster.migrate("a", "h2").await.unwrap();
    transferring(&cluster, id).await;
    let epoch = cluster.migration(id).await.source_epoch;
    let right = CommitAsked {
        migration: id,
        vm: "a".parse().unwrap(),
        host: "h2".parse().unwrap(),
        source_epoch: epoch,
    };
    let wrong = [
        (
            CommitAsked { host: "h3".parse().unwrap(), ..right.clone() },
            RefusalCode::InvalidArgument,
        ),
        (CommitAsked { source_epoch: Epoch(1), ..right.clone() }, RefusalCode::InvalidArgument),
        (
            CommitAsked {
                migration: "01890000-0000-7000-8000-000000000000".parse().unwrap(),
                ..right.clone()
            },
            RefusalCode::NotFound,
        ),
    ];
    for (asked, code) in wrong {
        let refusal = cluster.controller.commit_migration(&asked).await.unwrap_err();
        assert_eq!(refusal.code, code, "{asked:?}");
    }
    cluster.world.set_stuck("a", false);
    assert_eq!(cluster.ended(id).await.phase.name(), "completed");
    cluster.settled().await;
}

#[tokio::test]
async fn a_vm_that_the_destination_lost_right_after_the_grant_goes_back() {
    let cluster = Cluster::start().await;
    cluster.create("a", "h1").await;
    cluster.world.set_mute(true);
    let id = cluster.migrate("a", "h2").await.unwrap();
    let vm = "a".parse().unwrap();
    eventually("both are ready", || async { cluster.world.runs(&vm).is_empty() }).await;
    let epoch = cluster.migration(id).await.source_epoch;
    // The driver must not have the VM resumed before it dies.
    cluster.world.fail("h2", Call::List, &[Fault::Lost; 20]);
    let asked = CommitAsked {
        migration: id,
        vm: vm.clone(),
        host: "h2".parse().unwrap(),
        source_epoch: epoch,
    };
    cluster.controller.commit_migration(&asked).await.unwrap();
    let (verdict, _) =
        cluster.controller.query_migration(id, &vm, &"h1".parse().unwrap()).await.unwrap();
    assert_eq!(verdict, MigrationVerdict::Pending, "the source keeps its copy");
    cluster.world.kill_incoming("h2");
    let migration = cluster.ended(id).await;
    assert_eq!(migration.phase.name(), "failed", "{migration:?}");
    assert_eq!(cluster.settled().await["a"], "h1");
    let owner = cluster.controller.repository.known_vm(&vm).await.unwrap().owner.value;
    assert_eq!(owner.epoch, epoch.next().next(), "every change of owner is an epoch");
    cluster.controller.commit_migration(&asked).await.unwrap_err();
    // And it can move on.
    cluster.world.set_mute(false);
    cluster.report();
    let id = cluster.migrate("a", "h2").await.unwrap();
    assert_eq!(cluster.ended(id).await.phase.name(), "completed");
    cluster.settled().await;
}

/// A migration to `h2` that has committed, and the host is dead.
async fn committed_to_a_dead_host(cluster: &Cluster) -> MigrationId {
    cluster.create("a", "h1").await;
    cluster.world.set_mute(true);
    let id = cluster.migrate("a", "h2").await.unwrap();
    let vm = "a".parse().unwrap();
    eventually("both are ready", || async { cluster.world.runs(&vm).is_empty() }).await;
    cluster.world.set_silent("h2", true);
    let asked = CommitAsked {
        migration: id,
        vm,
        host: "h2".parse().unwrap(),
        source_epoch: cluster.migration(id).await.source_epoch,
    };
    cluster.controller.commit_migration(&asked).await.unwrap();
    id
}

#[tokio::test]
async fn a_vm_of_a_fenced_host_is_given_back() {
    let cluster = Cluster::start().await;
    let id = committed_to_a_dead_host(&cluster).await;
    let settle = async |host: &str| {
        let host = host.parse().unwrap();
        cluster.controller.settle_migration(id, &host, Settlement::GiveBack, reasons()).await
    };
    assert_eq!(settle("h3").await.unwrap_err().code, RefusalCode::InvalidArgument);
    settle("h2").await.unwrap();
    let vm = "a".parse().unwrap();
    eventually("the source goes on", || async {
        let here: Vec<_> = cluster.world.runs(&vm).into_iter().map(|it| it.0.to_string()).collect();
        here == ["h1"]
    })
    .await;
    // The host comes back, against the operator's word: it must not run the VM.
    cluster.world.set_silent("h2", false);
    cluster.world.set_mute(false);
    let migration = cluster.ended(id).await;
    assert_eq!(migration.phase.name(), "failed");
    assert!(format!("{:?}", migration.phase).contains("declared fenced"), "{migration:?}");
    assert_eq!(cluster.settled().await["a"], "h1");
    assert_eq!(settle("h2").await.unwrap_err().code, RefusalCode::WrongState);
}

#[tokio::test]
async fn a_vm_is_lost_with_a_fenced_host() {
    let cluster = Cluster::start().await;
    let id = committed_to_a_dead_host(&cluster).await;
    let host = "h2".parse().unwrap();
    let lost = Settlement::Lost;
    cluster.controller.settle_migration(id, &host, lost, reasons()).await.unwrap();
    assert_eq!(cluster.ended(id).await.phase.name(), "failed");
    let vm = "a".parse().unwrap();
    eventually("the source discards its copy", || async {
        !cluster.world.holds(&vm).iter().any(|host| host.as_str() == "h1")
    })
    .await;
    assert!(cluster.world.runs(&vm).is_empty());
}

#[tokio::test]
async fn a_host_that_answers_is_not_fenced() {
    let cluster = Cluster::start().await;
    let id = committed_to_a_dead_host(&cluster).await;
    cluster.world.fail("h2", Call::Resolve, &[Fault::Lost; 1000]);
    cluster.world.set_silent("h2", false);
    let host = "h2".parse().unwrap();
    let answer = cluster.controller.settle_migration(id, &host, Settlement::Lost, reasons()).await;
    assert_eq!(answer.unwrap_err().code, RefusalCode::WrongState);
}
