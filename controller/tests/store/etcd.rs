//! The suite over a real etcd, and what only a server can go through.

use std::sync::Arc;
use std::time::Duration;

use ballast_controller::store::etcd_process::{EtcdProcess, is_installed};
use ballast_controller::store::{Store, StoreConfig, StoreError, Transaction, open};
use ballast_model::{RefusalCode, Revision};
use futures::StreamExt;

use crate::suite::{self, commit};

/// Longer than anything here takes; only a defect reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// An etcd of the test's own; `None`, said loudly, where there is none to start.
pub(crate) async fn start() -> Option<(tempfile::TempDir, EtcdProcess)> {
    if !is_installed() {
        eprintln!(
            "SKIPPED: there is no etcd on this machine; install etcd-server to run this test"
        );
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let process = tokio::task::spawn_blocking(move || EtcdProcess::start(&path)).await.unwrap();
    Some((dir, process.unwrap()))
}

pub(crate) async fn connect(process: &EtcdProcess) -> Arc<dyn Store> {
    open(&StoreConfig::Etcd { endpoints: vec![process.endpoint()] }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_passes_the_suite() {
    let Some((_dir, process)) = start().await else { return };
    let store = connect(&process).await;
    assert_eq!(store.kind(), "etcd");
    suite::run(Arc::clone(&store)).await;
    crate::leader::leadership_passes_on(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_revision_is_said_to_be() {
    let Some((_dir, process)) = start().await else { return };
    let store = connect(&process).await;
    let start = commit(&*store, Transaction::default().put("a", "0")).await;
    let last = commit(&*store, Transaction::default().put("a", "1")).await;
    commit(&*store, Transaction::default().put("a", "2")).await;
    let mut client = etcd_client::Client::connect([process.endpoint()], None).await.unwrap();
    client.compact(i64::try_from(last.0).unwrap() + 1, None).await.unwrap();

    let mut watch = store.watch("a", start).await.unwrap();
    let first = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert!(matches!(first, Err(StoreError::Compacted(at)) if at == start), "{first:?}");
    assert!(watch.next().await.is_none(), "the stream ends with its first error");
    assert_eq!(store.list("a").await.unwrap().entries[0].value, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_etcd_is_found_again() {
    let Some((dir, process)) = start().await else { return };
    let store = connect(&process).await;
    let before = commit(&*store, Transaction::default().put("a", "1")).await;
    let mut watch = store.watch("a", before).await.unwrap();
    let address = process.address();
    tokio::task::spawn_blocking(move || drop(process)).await.unwrap();

    let cut = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert!(matches!(cut, Err(StoreError::Unavailable { .. })), "{cut:?}");
    let down = store.transact(Transaction::default().put("a", "2")).await;
    let Err(StoreError::Unavailable { endpoint, .. }) = down else { panic!("{down:?}") };
    assert_eq!(endpoint, address.to_string());

    let path = dir.path().to_owned();
    let again = tokio::task::spawn_blocking(move || EtcdProcess::start_at(&path, address));
    let _again = again.await.unwrap().unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().modified, before);
    let mut watch = store.watch("a", before).await.unwrap();
    let after = commit(&*store, Transaction::default().put("a", "3")).await;
    assert_eq!(after, Revision(before.0 + 1));
    let change = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(change.revision(), after);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_ends_with_its_value_and_says_why_it_does_not_start() {
    let Some((dir, process)) = start().await else { return };
    let (pid, taken) = (process.pid(), process.address());
    let path = dir.path().join("second");
    std::fs::create_dir(&path).unwrap();
    let second = tokio::task::spawn_blocking(move || EtcdProcess::start_at(&path, taken));
    let refusal = second.await.unwrap().unwrap_err();
    assert_eq!(refusal.code, RefusalCode::HostFailure);
    assert!(refusal.reason.contains("address already in use"), "{refusal}");

    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    tokio::task::spawn_blocking(move || drop(process)).await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}
