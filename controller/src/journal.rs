//! The audit trail as the rest of the controller uses it: an [`Act`] is opened, done, closed.
//!
//! The trail itself, its chain and its retries are in [`crate::audit`]. One
//! trail lasts for one term of leadership, because the fence is part of it.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use ballast_model::audit::AuditOutcome;
use ballast_model::{ReasonTrail, Refusal, RefusalCode};

use crate::audit::{Audit, OpenRecord, Opening, Recorded};
use crate::store::Transaction;

/// What is done, to what, by whom and why.
#[derive(Debug, Clone)]
pub struct Act(Opening);

impl Act {
    /// An act without details; `action` is one of [`ballast_model::audit::action`].
    pub fn new(action: &'static str, subject: impl ToString, reasons: ReasonTrail) -> Self {
        Self(Opening { action, subject: subject.to_string(), details: BTreeMap::new(), reasons })
    }

    /// The act with one more detail.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.0.details.insert(name.to_owned(), value.to_string());
        self
    }
}

/// The trail of the present term.
#[derive(Debug, Default)]
pub struct Journal(RwLock<Option<Audit>>);

impl Journal {
    /// A term of leadership begins.
    pub fn begin_term(&self, audit: Audit) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(audit);
    }

    /// The term is over; closings under way get `patience`.
    pub async fn end_term(&self, patience: Duration) {
        let audit = self.0.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(audit) = audit {
            audit.shutdown(patience).await;
        }
    }

    /// The trail.
    ///
    /// # Errors
    /// `Unavailable` while this controller does not lead.
    pub fn audit(&self) -> Result<Audit, Refusal> {
        let audit = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        audit.ok_or_else(|| {
            Refusal::new(
                RefusalCode::Unavailable,
                "this controller does not lead and so writes no audit record",
                "ask the leading controller, or try again in a few seconds",
            )
        })
    }

    /// Opens `act` together with `writes`, as one transaction.
    ///
    /// # Errors
    /// `Conflict` when a compare of `writes` did not hold; `Unavailable` when the store does not
    /// answer. The caller must not act then.
    pub async fn open(&self, act: &Act, writes: Transaction) -> Result<OpenRecord, Refusal> {
        match self.audit()?.open_with(act.0.clone(), writes).await? {
            Recorded::Committed(record, _) => Ok(record),
            Recorded::CompareFailed => Err(conflict()),
        }
    }

    /// Closes a record. Never fails: what cannot be written now is tried again, then swept.
    pub async fn close(&self, record: OpenRecord, outcome: AuditOutcome) {
        match self.audit() {
            Ok(audit) => audit.close(record, outcome).await,
            Err(_) => tracing::warn!(
                sequence = record.sequence,
                "an audit record is left to the next leader to close"
            ),
        }
    }

    /// Closes a record together with `writes`, as one transaction.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn close_with(
        &self,
        record: &OpenRecord,
        outcome: AuditOutcome,
        writes: Transaction,
    ) -> Result<(), Refusal> {
        match self.audit()?.close_with(record, outcome, writes).await? {
            Recorded::Committed((), _) => Ok(()),
            Recorded::CompareFailed => Err(conflict()),
        }
    }

    /// An act that `writes` alone do: opened with them, closed at once.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn record(&self, act: &Act, writes: Transaction) -> Result<(), Refusal> {
        let opened = self.open(act, writes).await?;
        self.close(opened, AuditOutcome::Succeeded).await;
        Ok(())
    }
}

/// How an answer reads in the audit.
pub fn outcome_of<T>(answer: &Result<T, Refusal>) -> AuditOutcome {
    match answer {
        Ok(_) => AuditOutcome::Succeeded,
        Err(refusal) => AuditOutcome::Failed { why: refusal.to_string() },
    }
}

fn conflict() -> Refusal {
    Refusal::new(
        RefusalCode::Conflict,
        "somebody else changed the same thing first",
        "look at the present state and try again",
    )
}
