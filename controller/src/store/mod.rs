//! The store: one small trait over revisioned keys.
//!
//! Two implementations pass the same test-suite: `etcd` for production and
//! `embedded` (redb in a file) for one machine.
//!
//! Every transaction that changes something raises the store's [`Revision`] by
//! one; a transaction that changes nothing (it only deletes what is not there)
//! answers with the present one. A key remembers the revision it was created at
//! and the one it was last modified at; a transaction names what it compares
//! and happens entirely or not at all.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`config`] | which store to use, from the configuration file; [`open`] |
//! | [`keys`] | every key Ballast writes, one function per kind |
//! | [`embedded`] | the store in a file |
//! | [`etcd`] | the store in an etcd cluster |
//! | [`etcd_process`] | an etcd of our own, for demonstrations and tests |
//! | [`leader`] | which of several controllers acts |

pub mod config;
pub mod embedded;
pub mod etcd;
pub mod etcd_process;
pub mod keys;
pub mod leader;

pub use config::{StoreConfig, open};

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use ballast_model::{Refusal, Revision};
use bytes::Bytes;
use futures::stream::BoxStream;

/// One key with its value and revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// When the key came into being.
    pub created: Revision,
    /// When its value was last written.
    pub modified: Revision,
}

/// What a listing saw: a consistent view at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The store's revision at the time.
    pub revision: Revision,
    /// In the order of their keys.
    pub entries: Vec<Entry>,
}

/// What must hold for a transaction to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written at this revision.
    ModifiedAt(String, Revision),
    /// The key exists and came into being at this revision.
    CreatedAt(String, Revision),
}

/// What a transaction writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key. With a lease, the key goes when the lease does.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Bytes,
        /// The lease it hangs on.
        lease: Option<LeaseId>,
    },
    /// Removes a key; nothing happens when it is not there.
    Delete {
        /// The key.
        key: String,
    },
}

/// Compares, then writes, as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// All happen at one revision.
    pub writes: Vec<Write>,
}

impl Transaction {
    /// The most compares, and the most writes, of one transaction: etcd's own default.
    pub const OPERATIONS_MAX: usize = 128;
    /// The most bytes of all keys and values together: a little below etcd's own default.
    pub const BYTES_MAX: usize = 1 << 20;

    /// A transaction that happens when `compare` holds. [`Transaction::default`] happens always.
    #[must_use]
    pub fn when(compare: Compare) -> Self {
        Self::default().and(compare)
    }

    /// Adds a compare.
    #[must_use]
    pub fn and(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds the setting of a key.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.writes.push(Write::Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Adds the setting of a key that goes when `lease` does.
    #[must_use]
    pub fn put_leased(
        mut self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: LeaseId,
    ) -> Self {
        self.writes.push(Write::Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }

    /// Adds the removal of a key.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete { key: key.into() });
        self
    }

    /// Checks what every store must refuse: no key, a key written twice, too much at once.
    ///
    /// # Errors
    /// [`StoreError::Invalid`], before anything was sent or written.
    pub fn validate(&self) -> Result<(), StoreError> {
        let invalid = |why: String| Err(StoreError::Invalid(why));
        if self.compares.len().max(self.writes.len()) > Self::OPERATIONS_MAX {
            return invalid(format!("it has more than {} operations", Self::OPERATIONS_MAX));
        }
        let mut bytes = 0;
        for compare in &self.compares {
            match compare {
                Compare::Absent(key) => bytes += key.len(),
                Compare::ModifiedAt(key, revision) | Compare::CreatedAt(key, revision) => {
                    if *revision == Revision(0) {
                        return invalid(format!("no key has revision 0; compare {key} as absent"));
                    }
                    bytes += key.len();
                }
            }
        }
        let mut written = BTreeSet::new();
        for write in &self.writes {
            bytes += write.key().len() + write.value_bytes();
            if write.key().is_empty() {
                return invalid("it writes a key without a name".to_owned());
            }
            if !written.insert(write.key()) {
                return invalid(format!("it writes {} twice", write.key()));
            }
        }
        if bytes > Self::BYTES_MAX {
            return invalid(format!("it is {bytes} bytes long; the limit is {}", Self::BYTES_MAX));
        }
        Ok(())
    }
}

impl Write {
    /// The key it sets or removes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    fn value_bytes(&self) -> usize {
        match self {
            Self::Put { value, .. } => value.len(),
            Self::Delete { .. } => 0,
        }
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transacted {
    /// It happened, at this revision.
    Committed(Revision),
    /// A compare did not hold; nothing happened.
    CompareFailed,
}

/// A change seen by a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key was set.
    Put(Entry),
    /// The key was removed or its lease ended, at this revision.
    Deleted(String, Revision),
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Deleted(key, _) => key,
        }
    }

    /// The revision at which it changed.
    pub const fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.modified,
            Self::Deleted(_, revision) => *revision,
        }
    }
}

/// A lease: keys that hang on it go when it is neither kept alive nor revoked in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached or did not answer in time. A transaction may or may not have happened.
    #[error("the store at {endpoint} does not answer: {why}")]
    Unavailable {
        /// Where it should be.
        endpoint: String,
        /// What happened.
        why: String,
    },
    /// The revision asked for is no longer kept; list again and watch from there.
    #[error("revision {0} is no longer kept")]
    Compacted(Revision),
    /// The lease has ended.
    #[error("the lease has ended")]
    LeaseLost,
    /// The transaction is not one; nothing happened.
    #[error("the store cannot take such a transaction: {0}")]
    Invalid(String),
    /// The store itself failed: disk, corruption, a bound of its own.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// Revisioned keys. Every call has a time bound of its own and answers `Unavailable` past it.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// A short name for status and logs: `etcd` or `embedded`.
    fn kind(&self) -> &'static str;

    /// One key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Every key that starts with `prefix`, however many there are.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// At most `limit` keys in `[from, to)`, in order. For long tails such as the audit.
    async fn range(&self, from: &str, to: &str, limit: usize) -> Result<Listing, StoreError>;

    /// Compares and writes as one.
    async fn transact(&self, transaction: Transaction) -> Result<Transacted, StoreError>;

    /// Every change to a key that starts with `prefix` after revision `after`, in order, then live. The stream ends with the first error.
    async fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError>;

    /// A lease that lasts `ttl` unless kept alive. Whole seconds, at least one.
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Lets it last its time to live from now on again.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends it, and the keys that hang on it.
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError>;
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        use ballast_model::RefusalCode as Code;
        let (code, remedy) = match &error {
            StoreError::Unavailable { .. } => {
                (Code::Unavailable, "check that the store runs and can be reached, then try again")
            }
            StoreError::Compacted(_) => {
                (Code::Conflict, "list again and watch from the new revision")
            }
            StoreError::LeaseLost => (Code::Conflict, "acquire the lease again"),
            StoreError::Invalid(_) => (Code::Internal, "report a defect"),
            StoreError::Failed(_) => (Code::HostFailure, "check the store's disk and its log"),
        };
        Self::new(code, error.to_string(), remedy)
    }
}
