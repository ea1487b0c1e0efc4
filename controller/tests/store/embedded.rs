//! The suite over the embedded store, and what only a file can go through.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ballast_controller::store::embedded::{EmbeddedStore, LogLimits};
use ballast_controller::store::{Compare, Store, StoreConfig, StoreError, Transaction, open};
use ballast_model::{RefusalCode, Revision};
use futures::StreamExt;

use crate::suite::{self, commit};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_passes_the_suite() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig::Embedded { path: dir.path().join("store.redb") };
    let store = open(&config).await.unwrap();
    assert_eq!(store.kind(), "embedded");
    suite::run(store).await;
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = EmbeddedStore::open(&path).await.unwrap();
    commit(&store, Transaction::default().put("a", "1")).await;
    let last = commit(&store, Transaction::default().put("a", "2").put("b", "1")).await;
    let before = store.list("").await.unwrap();
    drop(store);

    let store = EmbeddedStore::open(&path).await.unwrap();
    assert_eq!(store.list("").await.unwrap(), before);
    let next = commit(&store, Transaction::default().put("a", "3")).await;
    assert_eq!(next, Revision(last.0 + 1));

    // What was before the restart cannot be replayed, and is not silently left out.
    let early = store.watch("", Revision(last.0 - 1)).await.err();
    assert!(matches!(early, Some(StoreError::Compacted(_))), "{early:?}");
    let mut watch = store.watch("", last).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().revision(), next);
}

#[tokio::test]
async fn a_restart_ends_the_leases_of_the_process_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = EmbeddedStore::open(&path).await.unwrap();
    let lease = store.grant_lease(Duration::from_secs(3600)).await.unwrap();
    commit(&store, Transaction::default().put_leased("leader", "me", lease).put("kept", "1")).await;
    drop(store);

    let store = EmbeddedStore::open(&path).await.unwrap();
    assert_eq!(store.get("leader").await.unwrap(), None);
    assert!(store.get("kept").await.unwrap().is_some());
    assert!(matches!(store.keep_alive(lease).await, Err(StoreError::LeaseLost)));
    commit(&store, Transaction::when(Compare::Absent("leader".into())).put("leader", "you")).await;
}

#[tokio::test]
async fn a_watcher_that_is_too_slow_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits { changes_max: 8, bytes_max: 1 << 20 };
    let store = EmbeddedStore::open_with(&dir.path().join("s"), limits).await.unwrap();
    let start = commit(&store, Transaction::default().put("a", "0")).await;
    let mut slow = store.watch("", start).await.unwrap();
    for n in 1..=20 {
        commit(&store, Transaction::default().put("a", n.to_string())).await;
    }
    let first = slow.next().await.unwrap();
    assert!(matches!(first, Err(StoreError::Compacted(_))), "{first:?}");
    assert!(slow.next().await.is_none(), "the stream ends with its first error");

    let mut near = store.watch("", Revision(start.0 + 12)).await.unwrap();
    assert_eq!(near.next().await.unwrap().unwrap().revision(), Revision(start.0 + 13));
}

#[tokio::test]
async fn a_transaction_larger_than_the_log_stays_whole() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits { changes_max: 2, bytes_max: 1 << 20 };
    let store = EmbeddedStore::open_with(&dir.path().join("s"), limits).await.unwrap();
    let start = commit(&store, Transaction::default().put("a", "0")).await;
    let watch = store.watch("", start).await.unwrap();
    let wide = Transaction::default().put("a", "1").put("b", "1").put("c", "1").put("d", "1");
    commit(&store, wide).await;
    let seen: Vec<_> = watch.take(4).map(|change| change.unwrap().key().to_owned()).collect().await;
    assert_eq!(seen, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn a_watch_ends_when_the_store_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&dir.path().join("s")).await.unwrap();
    let mut watch = store.watch("", Revision(1)).await.unwrap();
    drop(store);
    let last = watch.next().await.unwrap();
    assert!(matches!(last, Err(StoreError::Unavailable { .. })), "{last:?}");
    assert!(watch.next().await.is_none());
}

async fn check_refused(path: &Path, code: RefusalCode, expected: &str) {
    let refusal = EmbeddedStore::open(path).await.unwrap_err();
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(refusal.reason.contains(expected), "{refusal}");
    assert!(refusal.reason.contains(path.to_str().unwrap()), "{refusal}");
    assert!(!refusal.to_string().contains('\n'), "{refusal}");
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    let words = "I am a letter, not a store. ".repeat(1000);
    std::fs::write(&text, &words).unwrap();
    check_refused(&text, RefusalCode::HostFailure, "not a readable store").await;
    assert_eq!(std::fs::read_to_string(&text).unwrap(), words);

    check_refused(dir.path(), RefusalCode::HostFailure, "cannot open").await;
    let nowhere = dir.path().join("missing/store");
    check_refused(&nowhere, RefusalCode::HostFailure, "cannot create").await;

    let foreign = dir.path().join("foreign");
    let table = redb::TableDefinition::<&str, u64>::new("meta");
    let database = redb::Database::create(&foreign).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(table).unwrap().insert("format", 99).unwrap();
    transaction.commit().unwrap();
    drop(database);
    check_refused(&foreign, RefusalCode::Incompatible, "has format 99").await;
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = EmbeddedStore::open(&path).await.unwrap();
    commit(&store, Transaction::default().put("a", vec![7; 100_000])).await;
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    for byte in &mut bytes[64..] {
        *byte ^= 0xa5;
    }
    std::fs::write(&path, bytes).unwrap();
    check_refused(&path, RefusalCode::HostFailure, "not a readable store").await;
}

#[tokio::test]
async fn an_empty_file_becomes_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    std::fs::write(&path, "").unwrap();
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&path).await.unwrap());
    commit(&*store, Transaction::default().put("a", "1")).await;
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["store"], "nothing else is left in the directory");
}

#[tokio::test]
async fn a_file_in_use_is_refused_and_the_user_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let first = EmbeddedStore::open(&path).await.unwrap();
    check_refused(&path, RefusalCode::WrongState, "is in use by this process").await;
    drop(first);
    EmbeddedStore::open(&path).await.unwrap();
}
