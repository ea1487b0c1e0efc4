//! A store that fails when told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ballast_controller::store::{
    Change, Entry, LeaseId, Listing, Store, StoreError, Transacted, Transaction,
};
use ballast_model::Revision;
use futures::stream::BoxStream;

/// Passes everything on to another store, except the transactions it is told to fail.
pub(crate) struct FaultyStore {
    pub(crate) inner: Arc<dyn Store>,
    /// So many transactions fail before they happen.
    pub(crate) refuse: AtomicU32,
    /// So many happen, and their answer gets lost.
    pub(crate) lose: AtomicU32,
    /// Leases can be neither kept alive nor ended.
    pub(crate) leases_silent: AtomicBool,
}

impl FaultyStore {
    pub(crate) fn over(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            refuse: AtomicU32::new(0),
            lose: AtomicU32::new(0),
            leases_silent: AtomicBool::new(false),
        })
    }
}

fn take(counter: &AtomicU32) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

fn unavailable() -> StoreError {
    StoreError::Unavailable { endpoint: "faulty".into(), why: "it was told to fail".into() }
}

#[async_trait]
impl Store for FaultyStore {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.inner.get(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.inner.list(prefix).await
    }
    async fn range(&self, from: &str, to: &str, limit: usize) -> Result<Listing, StoreError> {
        self.inner.range(from, to, limit).await
    }
    async fn transact(&self, transaction: Transaction) -> Result<Transacted, StoreError> {
        if take(&self.refuse) {
            return Err(unavailable());
        }
        let answer = self.inner.transact(transaction).await;
        if take(&self.lose) { Err(unavailable()) } else { answer }
    }
    async fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError> {
        self.inner.watch(prefix, after).await
    }
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.grant_lease(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        if self.leases_silent.load(Ordering::SeqCst) {
            return Err(unavailable());
        }
        self.inner.keep_alive(lease).await
    }
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        if self.leases_silent.load(Ordering::SeqCst) {
            return Err(unavailable());
        }
        self.inner.revoke_lease(lease).await
    }
}
