//! Appends entries to the chain, one after the other.
//!
//! Within a process a lock orders the appends and remembers the head, so that
//! conflicts come only from another controller. An append whose answer got lost
//! is looked up before it is called failed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ballast_model::audit::{AuditHash, AuditRecord};
use ballast_model::{AuditEntry, AuditHead, ReasonTrail, Revision, Timestamp};
use tokio::sync::Mutex;

use crate::store::{Compare, Store, StoreError, Transacted, Transaction, keys};

/// How often an append is tried against a head that somebody else moved.
const CONFLICTS_MAX: u32 = 16;
/// The longest wait after a conflict.
const CONFLICT_PAUSE_MAX: Duration = Duration::from_millis(50);

/// An entry before it has its place in the chain.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) at: Timestamp,
    pub(super) record: AuditRecord,
    pub(super) action: String,
    pub(super) subject: String,
    pub(super) details: BTreeMap<String, String>,
    pub(super) reasons: ReasonTrail,
}

impl Draft {
    fn after(&self, head: &AuditHead) -> AuditEntry {
        let entry = AuditEntry {
            sequence: head.sequence + 1,
            previous: head.hash.clone(),
            at: self.at,
            record: self.record.clone(),
            action: self.action.clone(),
            subject: self.subject.clone(),
            details: self.details.clone(),
            reasons: self.reasons.clone(),
            hash: AuditHash::genesis(),
        };
        entry.sealed()
    }
}

/// How an append ended.
#[derive(Debug)]
pub(super) enum Appended {
    /// The entry is in the trail.
    Done(AuditEntry, Revision),
    /// A compare other than the head's did not hold.
    CompareFailed,
}

/// The head and when it was last written; `None` while there is none.
type Head = (AuditHead, Option<Revision>);

#[derive(Debug)]
pub(super) struct Chain {
    store: Stored,
    fence: Vec<Compare>,
    /// The head as this process left it; `None` when it must be read again.
    head: Mutex<Option<Head>>,
}

struct Stored(Arc<dyn Store>);

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.kind())
    }
}

impl Chain {
    pub(super) fn new(store: Arc<dyn Store>, fence: Vec<Compare>) -> Self {
        Self { store: Stored(store), fence, head: Mutex::new(None) }
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.store.0
    }

    pub(super) async fn head(&self) -> Result<Head, StoreError> {
        let Some(entry) = self.store().get(keys::AUDIT_HEAD).await? else {
            return Ok((AuditHead::empty(), None));
        };
        let head = serde_json::from_slice(&entry.value).map_err(|error| {
            StoreError::Failed(format!("the audit head cannot be read: {error}"))
        })?;
        Ok((head, Some(entry.modified)))
    }

    /// A transaction of the caller's own, fenced. The revision, or `None` when a compare did not hold.
    pub(super) async fn transact(
        &self,
        transaction: Transaction,
    ) -> Result<Option<Revision>, StoreError> {
        let fenced = self.fence.iter().cloned().fold(transaction, Transaction::and);
        Ok(match self.store().transact(fenced).await? {
            Transacted::Committed(revision) => Some(revision),
            Transacted::CompareFailed => None,
        })
    }

    /// Appends one entry together with the transaction that `with` makes for it.
    pub(super) async fn append(
        &self,
        draft: &Draft,
        with: impl Fn(&AuditEntry) -> Transaction,
    ) -> Result<Appended, StoreError> {
        let mut known = self.head.lock().await;
        for _ in 0..CONFLICTS_MAX {
            let (head, written) = match known.take() {
                Some(head) => head,
                None => self.head().await?,
            };
            let entry = draft.after(&head);
            let at_head = match written {
                Some(at) => Compare::ModifiedAt(keys::AUDIT_HEAD.to_owned(), at),
                None => Compare::Absent(keys::AUDIT_HEAD.to_owned()),
            };
            let transaction = with(&entry)
                .and(at_head)
                .put(keys::audit_entry(entry.sequence), json(&entry)?)
                .put(keys::AUDIT_HEAD, json(&entry.head())?);
            match self.transact(transaction).await {
                Ok(Some(revision)) => {
                    *known = Some((entry.head(), Some(revision)));
                    return Ok(Appended::Done(entry, revision));
                }
                Ok(None) => {
                    let now = self.head().await?;
                    if now.1 == written {
                        *known = Some(now);
                        return Ok(Appended::CompareFailed);
                    }
                    tokio::time::sleep(pause()).await;
                }
                Err(error) => {
                    return match self.happened(&entry).await {
                        Some(revision) => Ok(Appended::Done(entry, revision)),
                        None => Err(error),
                    };
                }
            }
        }
        Err(StoreError::Failed("another controller keeps writing to the audit trail".to_owned()))
    }

    /// Whether an append whose answer got lost has happened, as far as can be told now.
    async fn happened(&self, entry: &AuditEntry) -> Option<Revision> {
        let stored = self.store().get(&keys::audit_entry(entry.sequence)).await.ok()??;
        (stored.value == json(entry).ok()?).then_some(stored.modified)
    }
}

/// A short random wait, so that two who conflict do not do so again.
fn pause() -> Duration {
    CONFLICT_PAUSE_MAX.mul_f64(rand::random_range(0.0..1.0))
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Invalid(error.to_string()))
}
