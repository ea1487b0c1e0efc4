//! A store that dies at a chosen write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ballast_controller::store::{
    Change, Entry, LeaseId, Listing, Store, StoreError, Transacted, Transaction,
};
use ballast_model::Revision;
use futures::stream::BoxStream;

/// Passes everything on until it dies; answers nothing afterwards.
pub(crate) struct MortalStore {
    inner: Arc<dyn Store>,
    /// Writes until it dies; negative: it lives.
    left: AtomicI64,
    /// Whether the last write happens.
    last_happens: AtomicBool,
    dead: AtomicBool,
}

impl MortalStore {
    pub(crate) fn over(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            left: AtomicI64::new(-1),
            last_happens: AtomicBool::new(false),
            dead: AtomicBool::new(false),
        })
    }

    /// It dies at the write after `writes` more, which happens or not.
    pub(crate) fn dies_after(&self, writes: i64, last_happens: bool) {
        self.last_happens.store(last_happens, Ordering::SeqCst);
        self.left.store(writes, Ordering::SeqCst);
    }

    /// It has died.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    fn alive(&self) -> Result<(), StoreError> {
        if self.is_dead() {
            return Err(StoreError::Unavailable { endpoint: "mortal".into(), why: "dead".into() });
        }
        Ok(())
    }
}

#[async_trait]
impl Store for MortalStore {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.alive()?;
        self.inner.get(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.alive()?;
        self.inner.list(prefix).await
    }
    async fn range(&self, from: &str, to: &str, limit: usize) -> Result<Listing, StoreError> {
        self.alive()?;
        self.inner.range(from, to, limit).await
    }
    async fn transact(&self, transaction: Transaction) -> Result<Transacted, StoreError> {
        self.alive()?;
        if self.left.load(Ordering::SeqCst) >= 0 && self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.dead.store(true, Ordering::SeqCst);
            if self.last_happens.load(Ordering::SeqCst) {
                self.inner.transact(transaction).await?;
            }
            self.alive()?;
            unreachable!("it has just died");
        }
        self.inner.transact(transaction).await
    }
    async fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError> {
        self.alive()?;
        self.inner.watch(prefix, after).await
    }
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.alive()?;
        self.inner.grant_lease(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.alive()?;
        self.inner.keep_alive(lease).await
    }
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.alive()?;
        self.inner.revoke_lease(lease).await
    }
}
