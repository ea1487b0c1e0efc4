//! Record, act, close: over a real store, and over one that fails.

#![allow(clippy::unwrap_used, clippy::expect_used)] // this whole crate is tests

#[path = "../support/faulty.rs"]
mod faulty;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ballast_controller::audit::{Audit, Opening, Recorded};
use ballast_controller::store::embedded::EmbeddedStore;
use ballast_controller::store::{Compare, Store, Transaction, keys};
use ballast_model::audit::verify::{Fault, Verified, verify_chain};
use ballast_model::audit::{AuditOutcome, AuditRecord, action};
use ballast_model::{AuditEntry, ReasonTrail, RefusalCode, Revision, Timestamp};

use crate::faulty::FaultyStore;

/// Longer than anything here takes; only a defect reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

struct Fixture {
    _dir: tempfile::TempDir,
    store: Arc<FaultyStore>,
    audit: Audit,
}

fn early() -> Timestamp {
    Timestamp(1_000)
}

fn late() -> Timestamp {
    Timestamp(61_001)
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let inner = EmbeddedStore::open(&dir.path().join("store")).await.unwrap();
    let store = FaultyStore::over(Arc::new(inner));
    let audit = Audit::with_clock(store.clone(), Vec::new(), early);
    Fixture { _dir: dir, store, audit }
}

fn opening(subject: &str) -> Opening {
    Opening {
        action: action::MIGRATION,
        subject: subject.to_owned(),
        details: BTreeMap::from([("to".to_owned(), "host-b".to_owned())]),
        reasons: ReasonTrail::new("balancer", "host-a is full", Timestamp(1_000)),
    }
}

async fn entries(audit: &Audit) -> Vec<AuditEntry> {
    let page = audit.page(1, 1000).await.unwrap();
    page.entries.iter().map(|(_, json)| serde_json::from_str(json).unwrap()).collect()
}

async fn verified(audit: &Audit) -> Verified {
    let page = audit.page(1, 1000).await.unwrap();
    verify_chain(page.entries, Some(&page.head)).unwrap()
}

#[tokio::test]
async fn a_record_is_opened_and_closed() {
    let Fixture { audit, .. } = fixture().await;
    let record = audit.open(opening("m-1")).await.unwrap();
    assert_eq!(verified(&audit).await, Verified { entries: 1, open: vec![1] });
    assert_eq!(audit.open_records().await.unwrap(), std::slice::from_ref(&record));

    audit.close(record, AuditOutcome::Succeeded).await;
    assert_eq!(verified(&audit).await, Verified { entries: 2, open: vec![] });
    assert_eq!(audit.open_records().await.unwrap(), []);
    let closed = AuditRecord::Closed { opened: 1, outcome: AuditOutcome::Succeeded };
    assert_eq!(entries(&audit).await[1].record, closed);
}

#[tokio::test]
async fn a_record_that_cannot_be_written_is_a_refusal() {
    let Fixture { audit, store, .. } = fixture().await;
    store.refuse.store(1, Ordering::SeqCst);
    let refusal = audit.open(opening("m-1")).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Unavailable);
    assert!(refusal.reason.starts_with("cannot record migration"), "{refusal}");
    assert_eq!(verified(&audit).await.entries, 0);
    audit.open(opening("m-1")).await.unwrap();
}

#[tokio::test]
async fn a_record_whose_answer_got_lost_is_found() {
    let Fixture { audit, store, .. } = fixture().await;
    store.lose.store(1, Ordering::SeqCst);
    let first = audit.open(opening("m-1")).await.unwrap();
    let second = audit.open(opening("m-2")).await.unwrap();
    assert_eq!((first.sequence, second.sequence), (1, 2));
    assert_eq!(verified(&audit).await, Verified { entries: 2, open: vec![1, 2] });
}

#[tokio::test]
async fn a_closing_that_fails_is_tried_again_and_written_once() {
    let Fixture { audit, store, .. } = fixture().await;
    let record = audit.open(opening("m-1")).await.unwrap();
    store.refuse.store(2, Ordering::SeqCst);
    let outcome = AuditOutcome::Failed { why: "the link broke".into() };
    audit.close(record.clone(), outcome.clone()).await;
    audit.shutdown(PATIENCE).await;
    audit.close(record, AuditOutcome::Succeeded).await;
    assert_eq!(verified(&audit).await, Verified { entries: 2, open: vec![] });
    assert_eq!(entries(&audit).await[1].record, AuditRecord::Closed { opened: 1, outcome });
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_store_that_is_gone() {
    let Fixture { audit, store, .. } = fixture().await;
    let record = audit.open(opening("m-1")).await.unwrap();
    store.refuse.store(u32::MAX, Ordering::SeqCst);
    audit.close(record, AuditOutcome::Succeeded).await;
    tokio::time::timeout(PATIENCE, audit.shutdown(Duration::ZERO)).await.unwrap();
}

#[tokio::test]
async fn record_and_state_are_one_transaction() {
    let Fixture { audit, store, .. } = fixture().await;
    let create = || Transaction::when(Compare::Absent("m-1".into())).put("m-1", "preparing");
    let opened = audit.open_with(opening("m-1"), create()).await.unwrap();
    let Recorded::Committed(record, revision) = opened else { panic!("{opened:?}") };
    assert_eq!(store.get("m-1").await.unwrap().unwrap().created, revision);

    // The state exists: neither a second state nor a second record.
    let again = audit.open_with(opening("m-1"), create()).await.unwrap();
    assert_eq!(again, Recorded::CompareFailed);
    assert_eq!(verified(&audit).await.entries, 1);

    let end = |at| Transaction::when(Compare::ModifiedAt("m-1".into(), at)).put("m-1", "ended");
    let outcome = || AuditOutcome::Succeeded;
    let missed = audit.close_with(&record, outcome(), end(Revision(1))).await.unwrap();
    assert_eq!(missed, Recorded::CompareFailed);
    assert_eq!(verified(&audit).await.open, [1]);
    let ended = audit.close_with(&record, outcome(), end(revision)).await.unwrap();
    assert!(matches!(ended, Recorded::Committed((), _)), "{ended:?}");
    assert_eq!(verified(&audit).await, Verified { entries: 2, open: vec![] });

    // Closed already: the state goes on, the trail does not.
    let late = Transaction::default().put("m-1", "forgotten");
    let late = audit.close_with(&record, outcome(), late).await.unwrap();
    assert!(matches!(late, Recorded::Committed((), _)), "{late:?}");
    assert_eq!(store.get("m-1").await.unwrap().unwrap().value, "forgotten");
    assert_eq!(verified(&audit).await.entries, 2);
}

#[tokio::test]
async fn the_sweep_closes_what_is_old_and_not_running() {
    let Fixture { audit, store, .. } = fixture().await;
    for subject in ["running", "lost"] {
        audit.open(opening(subject)).await.unwrap();
    }
    let restarted = Audit::with_clock(store, Vec::new(), late);
    let young = restarted.open(opening("young")).await.unwrap();
    let running = |record: &ballast_controller::audit::OpenRecord| record.subject == "running";
    assert_eq!(restarted.sweep(Duration::from_secs(60), running).await.unwrap(), 1);
    let closed = AuditRecord::Closed { opened: 2, outcome: AuditOutcome::Timeout };
    assert_eq!(entries(&audit).await[3].record, closed);
    assert_eq!(verified(&audit).await, Verified { entries: 4, open: vec![1, young.sequence] });
    assert_eq!(restarted.sweep(Duration::from_secs(60), running).await.unwrap(), 0);

    let found = restarted.find_open(action::MIGRATION, "running").await.unwrap().unwrap();
    restarted.close(found, AuditOutcome::Succeeded).await;
    assert_eq!(restarted.find_open(action::MIGRATION, "running").await.unwrap(), None);
}

#[tokio::test]
async fn a_controller_that_does_not_lead_records_nothing() {
    let Fixture { store, .. } = fixture().await;
    let fence = Compare::CreatedAt(keys::LEADER.into(), Revision(77));
    let deposed = Audit::new(store.clone(), vec![fence]);
    let refusal = deposed.open(opening("m-1")).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Conflict);
    assert!(refusal.reason.contains("does not lead"), "{refusal}");
    assert_eq!(store.list(keys::AUDIT).await.unwrap().entries, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_appenders_of_two_controllers_make_one_chain() {
    const EACH: usize = 25;
    let Fixture { audit, store, _dir } = fixture().await;
    let other = Audit::new(store, Vec::new());
    let work = [audit.clone(), audit.clone(), other.clone()].map(|audit| {
        tokio::spawn(async move {
            for n in 0..EACH {
                let record = audit.open(opening(&format!("m-{n}"))).await.unwrap();
                audit.close(record, AuditOutcome::Succeeded).await;
            }
            audit.shutdown(PATIENCE).await;
        })
    });
    futures::future::try_join_all(work).await.unwrap();
    assert_eq!(verified(&audit).await, Verified { entries: 150, open: vec![] });
}

#[tokio::test]
async fn pages_join_to_the_whole_trail() {
    let Fixture { audit, .. } = fixture().await;
    for n in 0..7 {
        audit.open(opening(&format!("m-{n}"))).await.unwrap();
    }
    let mut joined = Vec::new();
    loop {
        let page = audit.page(joined.len() as u64 + 1, 3).await.unwrap();
        joined.extend(page.entries);
        if joined.len() as u64 >= page.head.sequence {
            assert_eq!(verify_chain(joined, Some(&page.head)).unwrap().entries, 7);
            return;
        }
    }
}

#[tokio::test]
async fn an_entry_changed_in_the_store_is_named() {
    let Fixture { audit, store, .. } = fixture().await;
    for n in 0..5 {
        audit.open(opening(&format!("m-{n}"))).await.unwrap();
    }
    let key = keys::audit_entry(3);
    let json = String::from_utf8(store.get(&key).await.unwrap().unwrap().value.to_vec()).unwrap();
    let changed = json.replace("host-b", "host-c");
    store.transact(Transaction::default().put(key, changed)).await.unwrap();
    let page = audit.page(1, 1000).await.unwrap();
    let found = verify_chain(page.entries, Some(&page.head)).unwrap_err();
    assert_eq!((found.sequence, found.what), (3, Fault::Tampered));
}

#[tokio::test]
async fn long_texts_are_cut() {
    let Fixture { audit, .. } = fixture().await;
    let mut long = opening(&"ü".repeat(10_000));
    long.details = (0..100).map(|n| (format!("{n:03}"), "x".repeat(10_000))).collect();
    audit.open(long).await.unwrap();
    let entry = &entries(&audit).await[0];
    assert!(entry.subject.ends_with('…') && entry.subject.len() <= 4096);
    assert_eq!(entry.details.len(), 32);
    assert_eq!(verified(&audit).await.entries, 1);
}
