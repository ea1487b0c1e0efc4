//! Closes what nobody closed, and finds what is open.

use std::time::Duration;

use ballast_model::Refusal;
use ballast_model::audit::AuditOutcome;

use super::{Audit, OpenRecord};
use crate::store::keys;

impl Audit {
    /// Every record that is open, oldest first.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn open_records(&self) -> Result<Vec<OpenRecord>, Refusal> {
        let listing = self.0.chain.store().list(keys::AUDIT_OPEN).await?;
        let read = |entry: &crate::store::Entry| match serde_json::from_slice(&entry.value) {
            Ok(record) => Some(record),
            Err(error) => {
                tracing::error!(key = %entry.key, %error, "the mark of an open audit record cannot be read");
                None
            }
        };
        Ok(listing.entries.iter().filter_map(read).collect())
    }

    /// The newest open record of this action on this subject: how a restarted controller finds the
    /// record of an action it takes up again.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn find_open(
        &self,
        action: &str,
        subject: &str,
    ) -> Result<Option<OpenRecord>, Refusal> {
        let open = self.open_records().await?;
        Ok(open
            .into_iter()
            .rev()
            .find(|record| record.action == action && record.subject == subject))
    }

    /// Closes every record that has been open for longer than `bound` as `timeout`, except those
    /// for which `still_running` answers yes and those being closed right now. How many it closed.
    ///
    /// # Errors
    /// When the store does not answer; what was closed until then stays closed.
    pub async fn sweep(
        &self,
        bound: Duration,
        still_running: impl Fn(&OpenRecord) -> bool,
    ) -> Result<usize, Refusal> {
        let now = (self.0.now)();
        let mut closed = 0;
        for record in self.open_records().await? {
            let due = now.since(record.opened_at) > bound && !still_running(&record);
            if !due || !self.begin_closing(record.sequence) {
                continue;
            }
            let answer = self.try_close(&record, &AuditOutcome::Timeout).await;
            self.end_closing(record.sequence);
            answer?;
            closed += 1;
            tracing::warn!(
                sequence = record.sequence, action = %record.action, subject = %record.subject,
                "closed an audit record as timeout: nobody said how it ended"
            );
        }
        Ok(closed)
    }
}
