//! Record, act, close: the audit trail in the store.
//!
//! ```text
//!  open ──▶ one transaction: head unchanged? entry + head + open mark ──▶ act ──▶ close
//!                                                                          │
//!  sweep: an open mark older than the bound, nothing running behind it ────┴──▶ Closed(Timeout)
//! ```
//!
//! - No record, no action: [`Audit::open`] returns once the entry is durable;
//!   on an error the caller must not act.
//! - A finished action never becomes an error: [`Audit::close`] cannot fail; it
//!   goes on trying in the background, and what it cannot write within its bound
//!   the sweep closes as `timeout`.
//! - An action whose state lives in the store too is opened, or closed, in the
//!   same transaction as its state: [`Audit::open_with`], [`Audit::close_with`].
//!
//! Entries are written one after the other; [`chain`] owns the head and the
//! retries. The marks under `audit-open/` say which records are open without
//! reading the trail; a record is closed by removing its mark in the same
//! transaction, so that exactly one closing entry is ever written.

mod chain;
mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ballast_model::audit::{AuditOutcome, AuditRecord};
use ballast_model::{
    AuditEntry, AuditHead, ReasonTrail, Refusal, RefusalCode, Revision, Timestamp,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::chain::{Appended, Chain, Draft};
use crate::store::{Compare, Store, StoreError, Transaction, keys};

/// The most entries of one page.
pub const PAGE_MAX: usize = 1000;
/// How often the last page is read again because the trail grew meanwhile.
const PAGE_ATTEMPTS_MAX: u32 = 64;
/// Records whose closing is tried again in the background at a time; more are left to the sweep.
const CLOSING_MAX: usize = 1024;
/// The first wait before a closing is tried again; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Attempts to close a record, some five minutes in all.
const CLOSE_ATTEMPTS_MAX: u32 = 36;
/// The longest text of an entry, in bytes; the rest is cut.
const TEXT_BYTES_MAX: usize = 4096;
/// The most details of an entry.
const DETAILS_MAX: usize = 32;

/// What is about to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// One of [`ballast_model::audit::action`].
    pub action: &'static str,
    /// A VM, host, rule or migration id.
    pub subject: String,
    /// What else identifies it.
    pub details: BTreeMap<String, String>,
    /// Who and why.
    pub reasons: ReasonTrail,
}

/// An action that is recorded and not yet closed. Also the value of its mark in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenRecord {
    /// Its entry's sequence number.
    pub sequence: u64,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// What is done.
    pub action: String,
    /// To what.
    pub subject: String,
    /// What else identifies it.
    pub details: BTreeMap<String, String>,
}

/// How [`Audit::open_with`] and [`Audit::close_with`] ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded<T> {
    /// Record and state are written, at this revision.
    Committed(T, Revision),
    /// A compare of the caller's transaction did not hold; nothing happened.
    CompareFailed,
}

/// Entries as they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditPage {
    /// Store key and raw JSON, in order.
    pub entries: Vec<(String, String)>,
    /// The head when the page was read; it names an entry beyond the page when there are more.
    pub head: AuditHead,
}

/// The audit trail. Cheap to clone; clones share the chain.
#[derive(Debug, Clone)]
pub struct Audit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    chain: Chain,
    /// Records whose closing is under way in this process; the sweep leaves them alone.
    closing: Mutex<BTreeSet<u64>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    now: fn() -> Timestamp,
}

fn wall_clock() -> Timestamp {
    SystemTime::now().into()
}

impl Audit {
    /// The trail in `store`. Every transaction also compares `fence`: that this controller still leads.
    pub fn new(store: Arc<dyn Store>, fence: Vec<Compare>) -> Self {
        Self::with_clock(store, fence, wall_clock)
    }

    /// [`new`](Self::new) with another clock.
    pub fn with_clock(store: Arc<dyn Store>, fence: Vec<Compare>, now: fn() -> Timestamp) -> Self {
        Self(Arc::new(Shared {
            chain: Chain::new(store, fence),
            closing: Mutex::default(),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            now,
        }))
    }

    /// Records what is about to be done. Durable when it returns.
    ///
    /// # Errors
    /// When the record is not known to be durable: the caller must not act.
    pub async fn open(&self, opening: Opening) -> Result<OpenRecord, Refusal> {
        match self.open_with(opening, Transaction::default()).await? {
            Recorded::Committed(record, _) => Ok(record),
            Recorded::CompareFailed => Err(not_leading()),
        }
    }

    /// Records what is about to be done and does the caller's `transaction`, as one.
    ///
    /// # Errors
    /// When it is not known whether both happened: the caller must not act, and look again.
    pub async fn open_with(
        &self,
        opening: Opening,
        transaction: Transaction,
    ) -> Result<Recorded<OpenRecord>, Refusal> {
        let at = (self.0.now)();
        let draft = Draft {
            at,
            record: AuditRecord::Opened,
            action: opening.action.to_owned(),
            subject: bounded(opening.subject),
            details: bounded_details(opening.details),
            reasons: bounded_reasons(&opening.reasons),
        };
        let appended = self.0.chain.append(&draft, |entry| {
            let mark = mark_of(entry);
            // Plain strings and numbers always serialise.
            let json = serde_json::to_vec(&mark).unwrap_or_default();
            transaction.clone().put(keys::audit_open(entry.sequence), json)
        });
        Ok(match appended.await.map_err(|error| refused(opening.action, error))? {
            Appended::Done(entry, revision) => Recorded::Committed(mark_of(&entry), revision),
            Appended::CompareFailed => Recorded::CompareFailed,
        })
    }

    /// Records how the action ended. Returns after the first attempt; further ones are made in the
    /// background, and what never gets through the sweep closes as `timeout`.
    pub async fn close(&self, record: OpenRecord, outcome: AuditOutcome) {
        if !self.begin_closing(record.sequence) {
            return;
        }
        match self.try_close(&record, &outcome).await {
            Ok(()) => self.end_closing(record.sequence),
            Err(error) => {
                tracing::warn!(
                    sequence = record.sequence, action = %record.action, %error,
                    "cannot close an audit record; trying again in the background"
                );
                let audit = self.clone();
                self.0.tasks.spawn(async move { audit.keep_closing(record, outcome).await });
            }
        }
    }

    /// Records how the action ended and does the caller's `transaction`, as one.
    ///
    /// A record that is closed already stays as it is, and only the transaction happens.
    ///
    /// # Errors
    /// When it is not known whether both happened; the record is then still the caller's to close.
    pub async fn close_with(
        &self,
        record: &OpenRecord,
        outcome: AuditOutcome,
        transaction: Transaction,
    ) -> Result<Recorded<()>, Refusal> {
        self.append_closing(record, &outcome, &transaction)
            .await
            .map_err(|error| refused(&record.action, error))
    }

    async fn append_closing(
        &self,
        record: &OpenRecord,
        outcome: &AuditOutcome,
        transaction: &Transaction,
    ) -> Result<Recorded<()>, StoreError> {
        let mark = keys::audit_open(record.sequence);
        let draft = Draft {
            at: (self.0.now)(),
            record: AuditRecord::Closed { opened: record.sequence, outcome: outcome.clone() }
                .bounded(),
            action: record.action.clone(),
            subject: record.subject.clone(),
            details: record.details.clone(),
            reasons: ReasonTrail::default(),
        };
        // A closing entry is wanted once; the second round finds the mark gone and goes without.
        loop {
            let Some(open) = self.0.chain.store().get(&mark).await? else {
                let answer = self.0.chain.transact(transaction.clone()).await?;
                return Ok(answer.map_or(Recorded::CompareFailed, |at| Recorded::Committed((), at)));
            };
            let appended = self.0.chain.append(&draft, |_| {
                let compare = Compare::CreatedAt(mark.clone(), open.created);
                transaction.clone().and(compare).delete(mark.clone())
            });
            match appended.await? {
                Appended::Done(_, revision) => return Ok(Recorded::Committed((), revision)),
                Appended::CompareFailed => {
                    if self.0.chain.store().get(&mark).await?.is_some() {
                        return Ok(Recorded::CompareFailed);
                    }
                }
            }
        }
    }

    async fn try_close(
        &self,
        record: &OpenRecord,
        outcome: &AuditOutcome,
    ) -> Result<(), StoreError> {
        match self.append_closing(record, outcome, &Transaction::default()).await? {
            Recorded::Committed((), _) => Ok(()),
            Recorded::CompareFailed => {
                Err(StoreError::Failed("this controller does not lead any more".to_owned()))
            }
        }
    }

    async fn keep_closing(&self, record: OpenRecord, outcome: AuditOutcome) {
        let mut wait = RETRY_MIN;
        for _ in 1..CLOSE_ATTEMPTS_MAX {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.0.shutdown.cancelled() => break,
            }
            wait = (wait * 2).min(RETRY_MAX);
            match self.try_close(&record, &outcome).await {
                Ok(()) => return self.end_closing(record.sequence),
                Err(error) => tracing::debug!(sequence = record.sequence, %error, "not closed yet"),
            }
        }
        tracing::warn!(
            sequence = record.sequence,
            "left an audit record open; the sweep will close it"
        );
        self.end_closing(record.sequence);
    }

    /// Gives pending closings `patience` to get through and stops trying.
    pub async fn shutdown(&self, patience: Duration) {
        self.0.tasks.close();
        if tokio::time::timeout(patience, self.0.tasks.wait()).await.is_err() {
            self.0.shutdown.cancel();
            self.0.tasks.wait().await;
        }
    }

    fn closing(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.0.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when it is being closed already, or too many are.
    fn begin_closing(&self, sequence: u64) -> bool {
        let mut closing = self.closing();
        if closing.len() >= CLOSING_MAX {
            tracing::warn!(sequence, "too many audit records to close; left to the sweep");
            return false;
        }
        closing.insert(sequence)
    }

    fn end_closing(&self, sequence: u64) {
        self.closing().remove(&sequence);
    }

    /// The newest entry.
    ///
    /// # Errors
    /// When the store does not answer, or what stands there is no head.
    pub async fn head(&self) -> Result<AuditHead, Refusal> {
        Ok(self.0.chain.head().await?.0)
    }

    /// At most `limit` (and [`PAGE_MAX`]) entries from number `from` on, and the head.
    ///
    /// # Errors
    /// When the store does not answer, or what stands there is no text.
    pub async fn page(&self, from: u64, limit: usize) -> Result<AuditPage, Refusal> {
        let first = keys::audit_entry(from.max(1));
        let limit = limit.clamp(1, PAGE_MAX);
        for _ in 0..PAGE_ATTEMPTS_MAX {
            let listing = self.0.chain.store().range(&first, keys::AUDIT_HEAD, limit).await?;
            let (head, written) = self.0.chain.head().await?;
            let complete = listing.entries.len() < limit;
            if complete && written.is_some_and(|at| at > listing.revision) {
                continue; // appended in between: the page would look cut
            }
            let entries = listing.entries.into_iter().map(|entry| {
                let json = String::from_utf8_lossy(&entry.value).into_owned();
                (entry.key, json)
            });
            return Ok(AuditPage { entries: entries.collect(), head });
        }
        Err(Refusal::new(
            RefusalCode::Conflict,
            "the audit trail grew faster than its end could be read",
            "try again",
        ))
    }
}

fn mark_of(entry: &AuditEntry) -> OpenRecord {
    OpenRecord {
        sequence: entry.sequence,
        opened_at: entry.at,
        action: entry.action.clone(),
        subject: entry.subject.clone(),
        details: entry.details.clone(),
    }
}

fn not_leading() -> Refusal {
    Refusal::new(
        RefusalCode::Conflict,
        "this controller does not lead any more",
        "ask the controller that leads now",
    )
}

fn refused(action: &str, error: StoreError) -> Refusal {
    let mut refusal = Refusal::from(error);
    refusal.reason = format!("cannot record {action} in the audit trail: {}", refusal.reason);
    refusal
}

/// The text, cut at [`TEXT_BYTES_MAX`].
fn bounded(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX - '…'.len_utf8()));
        text.push('…');
    }
    text
}

fn bounded_details(details: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let pairs = details.into_iter().take(DETAILS_MAX);
    pairs.map(|(name, value)| (bounded(name), bounded(value))).collect()
}

fn bounded_reasons(reasons: &ReasonTrail) -> ReasonTrail {
    let cut = reasons.reasons().iter().cloned().map(|mut reason| {
        reason.who = bounded(reason.who);
        reason.why = bounded(reason.why);
        reason
    });
    cut.collect()
}

trait Bounded {
    fn bounded(self) -> Self;
}

impl Bounded for AuditRecord {
    fn bounded(self) -> Self {
        match self {
            Self::Closed { opened, outcome: AuditOutcome::Failed { why } } => {
                Self::Closed { opened, outcome: AuditOutcome::Failed { why: bounded(why) } }
            }
            other => other,
        }
    }
}
