//! The store in a file, for one controller on one machine.
//!
//! redb keeps the keys; every write is one redb transaction, on disk before the
//! answer. [`file`] owns the tables, [`log`] the recent changes that watches
//! read, [`lease`] how long leases last. All work on the file happens on
//! blocking threads:
//!
//! ```text
//!  transact ─▶ permit ─▶ blocking thread: writer lock ─▶ compare, write, fsync ─▶ log ─▶ answer
//!  watch  ◀── log (memory)                 reaper task: a lease ends ─▶ the same way
//! ```
//!
//! A disk error (a full disk, say) leaves the file at the transaction before:
//! the database is opened again from what is on disk, which also tells whether
//! the failed transaction had happened after all.

mod file;
mod lease;
mod log;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use async_trait::async_trait;
use ballast_model::{Refusal, Revision};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use self::file::{KEYS, Opener, Tables};
use self::lease::Leases;
use self::log::ChangeLog;
pub use self::log::LogLimits;
use super::{Change, Entry, LeaseId, Listing, Store, StoreError, Transacted, Transaction, Write};

/// How long a call may take, waiting for its turn included.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls that may work on the file at a time; more wait.
const JOBS_MAX: usize = 32;
/// How soon the removal of ended leases' keys is tried again after it failed.
const REAP_RETRY: Duration = Duration::from_secs(1);

/// A store in one file.
#[derive(Debug)]
pub struct EmbeddedStore {
    inner: Arc<Inner>,
    reaper: JoinHandle<()>,
}

struct Inner {
    path: PathBuf,
    opener: Box<Opener>,
    /// `None` while it could not be opened again after a disk error.
    database: RwLock<Option<Database>>,
    /// Held from the compares to the log, so that the log grows in the order of revisions.
    writer: Mutex<Writer>,
    log: Arc<ChangeLog>,
    leases: Arc<Leases>,
    jobs: Arc<Semaphore>,
}

/// What only the one who writes knows.
struct Writer {
    /// The revision up to which the log tells.
    logged: Revision,
    /// A commit that was begun and has not been heard of: what it would change, and at which revision.
    begun: Option<(Revision, Vec<Change>)>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("path", &self.path).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the file, or creates it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When another process uses it, when it is no store of ours, when the disk fails.
    pub async fn open(path: &Path) -> Result<Self, Refusal> {
        Self::open_with(path, LogLimits::default()).await
    }

    /// [`open`](Self::open), keeping another amount of the past for watches.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(path: &Path, limits: LogLimits) -> Result<Self, Refusal> {
        let target = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let (database, opener) = file::open(&target)?;
            let revision = file::check(&target, &database)?;
            Ok::<_, Refusal>((database, opener, revision))
        });
        // The library panics on some kinds of corruption.
        let (database, opener, revision) =
            opened.await.map_err(|panic| file::corrupt(path, &panic))??;
        let store = Self::start(path, database, opener, revision, limits);
        store.end_former_leases().await?;
        Ok(store)
    }

    fn start(
        path: &Path,
        database: Database,
        opener: Box<Opener>,
        revision: Revision,
        limits: LogLimits,
    ) -> Self {
        // Nothing was ever written at the first revision, so nothing is missing.
        let fresh = revision == file::FIRST_REVISION;
        let compacted = if fresh { Revision(0) } else { revision };
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            opener,
            database: RwLock::new(Some(database)),
            writer: Mutex::new(Writer { logged: revision, begun: None }),
            log: Arc::new(ChangeLog::new(limits, compacted)),
            leases: Arc::default(),
            jobs: Arc::new(Semaphore::new(JOBS_MAX)),
        });
        let reaper = tokio::spawn(reap(Arc::downgrade(&inner), Arc::clone(&inner.leases)));
        Self { inner, reaper }
    }

    /// Their holders lived in the process that had the file before us.
    async fn end_former_leases(&self) -> Result<(), StoreError> {
        self.inner.clone().run(|inner| inner.remove_keys_on(&[None])).await
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.reaper.abort();
        self.inner.log.close();
    }
}

/// Removes the keys of leases that end, until the store is dropped.
async fn reap(store: std::sync::Weak<Inner>, leases: Arc<Leases>) {
    loop {
        leases.wait_for_end(REAP_RETRY).await;
        let Some(inner) = store.upgrade() else { return };
        if let Err(error) = inner.run(Inner::remove_ended).await {
            tracing::warn!(%error, "cannot remove the keys of ended leases; trying again");
            tokio::time::sleep(REAP_RETRY).await;
        }
    }
}

/// What a write wants to leave behind.
enum Decision {
    /// Nothing; answer this.
    Leave(Result<Transacted, StoreError>),
    /// These changes, at the revision they name.
    Commit(Vec<Change>),
}

impl Inner {
    /// Runs `job` on a blocking thread, within bounds of number and time.
    async fn run<T: Send + 'static>(
        self: Arc<Self>,
        job: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let endpoint = self.endpoint();
        let work = async move {
            let permit = Arc::clone(&self.jobs).acquire_owned().await;
            let finished = tokio::task::spawn_blocking(move || {
                let _permit = permit; // held until the work is done, even when nobody waits any more
                job(&self)
            });
            finished.await.map_err(|panic| StoreError::Failed(panic.to_string()))?
        };
        tokio::time::timeout(CALL_TIMEOUT, work).await.unwrap_or_else(|_| {
            let why = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
            Err(StoreError::Unavailable { endpoint, why })
        })
    }

    fn endpoint(&self) -> String {
        self.path.display().to_string()
    }

    fn database(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the database again after a disk error. What is on disk then decides whether the
    /// commit that was begun has happened; its revision, if so.
    fn reopen(&self, writer: &mut Writer) -> Result<Option<Revision>, StoreError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *database = None; // releases the lock on the file
        let unavailable = |why: String| StoreError::Unavailable { endpoint: self.endpoint(), why };
        let opened = (self.opener)().map_err(|error| unavailable(error.to_string()))?;
        let revision = file::revision(&opened).map_err(|error| unavailable(error.to_string()))?;
        *database = Some(opened);
        tracing::warn!(path = %self.path.display(), %revision, "opened the store again after an error");
        let happened = match writer.begun.take() {
            Some((at, changes)) if at == revision => {
                self.log.append(changes);
                Some(at)
            }
            _ => {
                if revision != writer.logged {
                    // Somebody else had the file while it was closed.
                    self.log.reset(revision);
                }
                None
            }
        };
        writer.logged = revision;
        Ok(happened)
    }

    /// Works on a consistent view. After a disk error the database is opened again and `job` run once more.
    fn read<T>(
        &self,
        job: impl Fn(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let attempt = || -> Result<T, redb::Error> {
            let guard = self.database();
            let Some(database) = guard.as_ref() else { return Err(redb::Error::PreviousIo) };
            job(&database.begin_read()?)
        };
        attempt().or_else(|error| {
            if !is_disk_error(&error) {
                return Err(failed(&error));
            }
            self.reopen(&mut self.writer())?;
            attempt().map_err(|error| failed(&error))
        })
    }

    /// Compares and writes as one: `decide` sees the tables and the revision its changes will have.
    fn write(
        &self,
        decide: impl Fn(&mut Tables<'_>, Revision) -> Result<Decision, redb::Error>,
    ) -> Result<Transacted, StoreError> {
        let mut writer = self.writer();
        if self.database().is_none() {
            self.reopen(&mut writer)?; // also settles a commit begun by an earlier call
        }
        let mut retried = false;
        loop {
            let error = match self.attempt(&decide, &mut writer) {
                Ok(answer) => return answer,
                Err(error) => error,
            };
            let begun = writer.begun.is_some();
            if let Some(revision) = self.reopen(&mut writer)? {
                return Ok(Transacted::Committed(revision));
            }
            // When an earlier call broke the database, this one had not begun and may.
            if begun || retried || !matches!(error, redb::Error::PreviousIo) {
                return Err(failed(&error));
            }
            retried = true;
        }
    }

    /// One attempt to write. Leaves `writer.begun` set when the commit failed.
    fn attempt(
        &self,
        decide: impl Fn(&mut Tables<'_>, Revision) -> Result<Decision, redb::Error>,
        writer: &mut Writer,
    ) -> Result<Result<Transacted, StoreError>, redb::Error> {
        let guard = self.database();
        let Some(database) = guard.as_ref() else { return Err(redb::Error::PreviousIo) };
        let transaction = database.begin_write()?;
        let mut tables = Tables::open(&transaction)?;
        let now = tables.meta.get("revision")?.map_or(file::FIRST_REVISION.0, |v| v.value());
        let next = Revision(now + 1);
        let changes = match decide(&mut tables, next)? {
            Decision::Commit(changes) => changes,
            Decision::Leave(answer) => {
                drop(tables);
                transaction.abort()?;
                return Ok(answer);
            }
        };
        if changes.is_empty() {
            drop(tables);
            transaction.abort()?;
            return Ok(Ok(Transacted::Committed(Revision(now))));
        }
        tables.meta.insert("revision", next.0)?;
        drop(tables);
        writer.begun = Some((next, changes));
        transaction.commit()?;
        writer.logged = next;
        if let Some((_, changes)) = writer.begun.take() {
            self.log.append(changes);
        }
        Ok(Ok(Transacted::Committed(next)))
    }

    fn transact(&self, transaction: &Transaction) -> Result<Transacted, StoreError> {
        self.write(|tables, at| {
            for compare in &transaction.compares {
                if !tables.holds(compare)? {
                    return Ok(Decision::Leave(Ok(Transacted::CompareFailed)));
                }
            }
            let leases = transaction.writes.iter().filter_map(|write| match write {
                Write::Put { lease, .. } => *lease,
                Write::Delete { .. } => None,
            });
            if leases.into_iter().any(|lease| !self.leases.is_running(lease)) {
                return Ok(Decision::Leave(Err(StoreError::LeaseLost)));
            }
            let mut changes = Vec::with_capacity(transaction.writes.len());
            for write in &transaction.writes {
                match write {
                    Write::Put { key, value, lease } => {
                        let entry = tables.put(key, value, lease.map_or(0, |id| id.0), at)?;
                        changes.push(Change::Put(entry));
                    }
                    Write::Delete { key } => {
                        if tables.delete(key)? {
                            changes.push(Change::Deleted(key.clone(), at));
                        }
                    }
                }
            }
            Ok(Decision::Commit(changes))
        })
    }

    /// Removes the keys that hang on each of `leases`, each lease at a revision of its own; `None` means any lease.
    fn remove_keys_on(&self, leases: &[Option<i64>]) -> Result<(), StoreError> {
        for &lease in leases {
            self.write(|tables, at| {
                let mut changes = Vec::new();
                for key in tables.keys_on(lease)? {
                    if tables.delete(&key)? {
                        changes.push(Change::Deleted(key, at));
                    }
                }
                Ok(Decision::Commit(changes))
            })?;
        }
        Ok(())
    }

    fn remove_ended(&self) -> Result<(), StoreError> {
        let ended = self.leases.take_stock();
        let ids: Vec<Option<i64>> = ended.iter().map(|id| Some(id.0)).collect();
        self.remove_keys_on(&ids)?;
        self.leases.forget(&ended);
        Ok(())
    }

    /// Keys from `from` for as long as `within` holds, at most `limit`.
    fn scan(
        &self,
        from: &str,
        within: impl Fn(&str) -> bool,
        limit: usize,
    ) -> Result<Listing, StoreError> {
        self.read(|view| {
            let meta = view.open_table(file::META)?;
            let revision =
                meta.get("revision")?.map_or(file::FIRST_REVISION, |value| Revision(value.value()));
            let keys = view.open_table(KEYS)?;
            let mut entries = Vec::new();
            for item in keys.range(from..)?.take(limit) {
                let (key, record) = item?;
                if !within(key.value()) {
                    break;
                }
                entries.push(entry(key.value(), record.value()));
            }
            Ok(Listing { revision, entries })
        })
    }
}

fn entry(key: &str, record: (u64, u64, i64, &[u8])) -> Entry {
    let (created, modified, _, value) = record;
    Entry {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value),
        created: Revision(created),
        modified: Revision(modified),
    }
}

const fn is_disk_error(error: &redb::Error) -> bool {
    matches!(error, redb::Error::Io(_) | redb::Error::PreviousIo)
}

fn failed(error: &redb::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

#[async_trait]
impl Store for EmbeddedStore {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        let job = move |inner: &Inner| {
            inner.read(|view| {
                let keys = view.open_table(KEYS)?;
                Ok(keys.get(key.as_str())?.map(|record| entry(&key, record.value())))
            })
        };
        Arc::clone(&self.inner).run(job).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let prefix = prefix.to_owned();
        let job = move |inner: &Inner| {
            inner.scan(&prefix, |key| key.starts_with(prefix.as_str()), usize::MAX)
        };
        Arc::clone(&self.inner).run(job).await
    }

    async fn range(&self, from: &str, to: &str, limit: usize) -> Result<Listing, StoreError> {
        let (from, to) = (from.to_owned(), to.to_owned());
        let job = move |inner: &Inner| inner.scan(&from, |key| key < to.as_str(), limit);
        Arc::clone(&self.inner).run(job).await
    }

    async fn transact(&self, transaction: Transaction) -> Result<Transacted, StoreError> {
        transaction.validate()?;
        Arc::clone(&self.inner).run(move |inner| inner.transact(&transaction)).await
    }

    async fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<Change, StoreError>>, StoreError> {
        let log = Arc::clone(&self.inner.log);
        Ok(log.watch(prefix.to_owned(), after, self.inner.endpoint())?.boxed())
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.leases.grant(ttl)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.leases.keep_alive(lease)
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.leases.end(lease)?;
        let job = move |inner: &Inner| {
            inner.remove_keys_on(&[Some(lease.0)])?;
            inner.leases.forget(&[lease]);
            Ok(())
        };
        Arc::clone(&self.inner).run(job).await
    }
}

#[cfg(test)]
mod tests;
