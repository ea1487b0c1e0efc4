//! One controller leads, another takes over, and the fence holds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ballast_controller::store::embedded::EmbeddedStore;
use ballast_controller::store::leader::{Candidate, LeaderRecord, Leadership};
use ballast_controller::store::{LeaseId, Store, Transacted, Transaction, keys};
use ballast_model::RefusalCode;
use tokio_util::sync::CancellationToken;

use crate::faulty::FaultyStore;
use crate::suite::commit;

/// Longer than anything here takes; only a defect reaches it.
const PATIENCE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(60);

async fn acquire(store: &Arc<dyn Store>, holder: &str, ttl: Duration) -> Leadership {
    let candidate = Candidate::new(Arc::clone(store), holder, ttl);
    let never = CancellationToken::new();
    tokio::time::timeout(PATIENCE, candidate.acquire(&never, |_| {})).await.unwrap().unwrap()
}

async fn store() -> (tempfile::TempDir, Arc<FaultyStore>, Arc<dyn Store>) {
    let dir = tempfile::tempdir().unwrap();
    let inner = EmbeddedStore::open(&dir.path().join("store")).await.unwrap();
    let faulty = FaultyStore::over(Arc::new(inner));
    let store: Arc<dyn Store> = faulty.clone();
    (dir, faulty, store)
}

async fn wait_lost(leadership: &Leadership) {
    tokio::time::timeout(PATIENCE, leadership.lost().cancelled()).await.expect("still leading");
}

/// Over any store: the second stands by, takes over when the first resigns, and the first is fenced off.
pub(crate) async fn leadership_passes_on(store: Arc<dyn Store>) {
    let first = acquire(&store, "first", LONG).await;
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let second = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            let candidate = Candidate::new(store, "second", LONG);
            let never = CancellationToken::new();
            candidate.acquire(&never, |holder| told.send(holder.to_owned()).unwrap()).await.unwrap()
        }
    });
    let holder = tokio::time::timeout(PATIENCE, heard.recv()).await.unwrap().unwrap();
    assert_eq!(holder, "first");
    assert!(!second.is_finished());

    let fenced = |fence| Transaction::when(fence).put("fenced", "1");
    let fence = first.fence();
    commit(&*store, fenced(fence.clone())).await;
    let (lost, term) = (first.lost(), first.term());
    first.resign().await;
    assert!(lost.is_cancelled());

    let second = tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap();
    assert!(second.term() > term);
    assert_eq!(store.transact(fenced(fence)).await.unwrap(), Transacted::CompareFailed);
    commit(&*store, fenced(second.fence())).await;
    second.resign().await;
}

#[tokio::test]
async fn leadership_passes_on_in_the_embedded_store() {
    let (_dir, _, store) = store().await;
    leadership_passes_on(store).await;
}

#[tokio::test]
async fn a_leader_outlives_its_lease_by_keeping_it_alive() {
    let (_dir, _, store) = store().await;
    let leadership = acquire(&store, "a", Duration::from_secs(3)).await;
    // A longer lease, granted later and not kept alive, ends meanwhile.
    let lease = store.grant_lease(Duration::from_secs(4)).await.unwrap();
    let at = commit(&*store, Transaction::default().put_leased("clock", "1", lease)).await;
    let mut watch = store.watch("clock", at).await.unwrap();
    let ended = futures::StreamExt::next(&mut watch);
    tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap().unwrap();
    assert!(!leadership.lost().is_cancelled());
    commit(&*store, Transaction::when(leadership.fence()).put("fenced", "1")).await;
}

#[tokio::test]
async fn a_leader_that_cannot_reach_the_store_stops_in_time() {
    let (_dir, faulty, store) = store().await;
    let leadership = acquire(&store, "a", Duration::from_secs(1)).await;
    faulty.leases_silent.store(true, Ordering::SeqCst);
    wait_lost(&leadership).await;
}

#[tokio::test]
async fn a_leader_whose_lease_or_key_is_taken_away_hears_of_it() {
    let (_dir, _, store) = store().await;
    let first = acquire(&store, "a", Duration::from_secs(2)).await;
    let entry = store.get(keys::LEADER).await.unwrap().unwrap();
    let record = LeaderRecord::read(&entry).unwrap();
    assert_eq!(record.holder, "a");
    store.revoke_lease(LeaseId(record.lease)).await.unwrap();
    wait_lost(&first).await;

    let second = acquire(&store, "b", Duration::from_secs(2)).await;
    commit(&*store, Transaction::default().delete(keys::LEADER)).await;
    wait_lost(&second).await;
}

#[tokio::test]
async fn a_candidate_whose_answer_got_lost_leads() {
    let (_dir, faulty, store) = store().await;
    faulty.lose.store(1, Ordering::SeqCst);
    let leadership = acquire(&store, "a", LONG).await;
    commit(&*store, Transaction::when(leadership.fence()).put("fenced", "1")).await;
}

#[tokio::test]
async fn a_candidate_that_is_asked_to_end_does() {
    let (_dir, _, store) = store().await;
    let _leader = acquire(&store, "a", LONG).await;
    let shutdown = CancellationToken::new();
    let candidate = Candidate::new(store, "b", LONG);
    let standing = candidate.acquire(&shutdown, |_| shutdown.cancel());
    let refusal = tokio::time::timeout(PATIENCE, standing).await.unwrap().unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Cancelled);
}
