//! The changes of the recent past, and who waits for the next.
//!
//! A bounded queue of changes in memory. Watchers do not have queues of their
//! own: each remembers the revision it has seen and reads on from there, so a
//! slow watcher costs nothing and learns that it was too slow when what it
//! needs next has left the queue. The queue starts empty when the file is
//! opened: what was before that counts as compacted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ballast_model::Revision;
use futures::stream::{self, Stream};
use tokio::sync::watch;

use crate::store::{Change, StoreError};

/// How much of the past is kept.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    /// Changes kept at most. The newest transaction is always kept whole.
    pub changes_max: usize,
    /// Bytes of keys and values kept at most.
    pub bytes_max: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { changes_max: 16_384, bytes_max: 32 << 20 }
    }
}

#[derive(Debug)]
struct State {
    changes: VecDeque<Change>,
    bytes: usize,
    /// Changes up to and including this revision may be gone.
    compacted: Revision,
    closed: bool,
}

/// The change log of one open file.
#[derive(Debug)]
pub(super) struct ChangeLog {
    limits: LogLimits,
    state: Mutex<State>,
    grown: watch::Sender<()>,
}

fn size_of(change: &Change) -> usize {
    match change {
        Change::Put(entry) => entry.key.len() + entry.value.len(),
        Change::Deleted(key, _) => key.len(),
    }
}

impl ChangeLog {
    pub(super) fn new(limits: LogLimits, compacted: Revision) -> Self {
        let state = State { changes: VecDeque::new(), bytes: 0, compacted, closed: false };
        Self { limits, state: Mutex::new(state), grown: watch::Sender::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the changes of one transaction, all of one revision, later than every one before.
    pub(super) fn append(&self, changes: Vec<Change>) {
        let Some(revision) = changes.first().map(Change::revision) else { return };
        {
            let mut state = self.state();
            state.bytes += changes.iter().map(size_of).sum::<usize>();
            state.changes.extend(changes);
            self.trim(&mut state, revision);
        }
        self.grown.send_replace(());
    }

    /// Drops whole revisions from the front until the rest is within bounds.
    fn trim(&self, state: &mut State, newest: Revision) {
        while let Some(front) = state.changes.front() {
            let revision = front.revision();
            let over = state.changes.len() > self.limits.changes_max
                || state.bytes > self.limits.bytes_max;
            let begun = revision == state.compacted;
            if !(over || begun) || revision == newest {
                break;
            }
            state.bytes -= size_of(front);
            state.compacted = revision;
            state.changes.pop_front();
        }
    }

    /// Forgets everything: somebody else wrote in between, up to `revision`.
    pub(super) fn reset(&self, revision: Revision) {
        let mut state = self.state();
        state.changes.clear();
        state.bytes = 0;
        state.compacted = revision;
        drop(state);
        self.grown.send_replace(());
    }

    /// Ends every watch.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.grown.send_replace(());
    }

    /// The changes under `prefix` after `after`, and the revision they reach to.
    fn since(
        &self,
        prefix: &str,
        after: Revision,
        endpoint: &str,
    ) -> Result<(Vec<Change>, Revision), StoreError> {
        let state = self.state();
        if state.closed {
            return Err(StoreError::Unavailable {
                endpoint: endpoint.to_owned(),
                why: "it was closed".to_owned(),
            });
        }
        if after < state.compacted {
            return Err(StoreError::Compacted(after));
        }
        let start = state.changes.partition_point(|change| change.revision() <= after);
        let found =
            state.changes.range(start..).filter(|c| c.key().starts_with(prefix)).cloned().collect();
        let reached = state.changes.back().map_or(after, |last| last.revision().max(after));
        Ok((found, reached))
    }

    /// Fails at once when `after` is compacted; else every change after it, then live.
    pub(super) fn watch(
        self: Arc<Self>,
        prefix: String,
        after: Revision,
        endpoint: String,
    ) -> Result<impl Stream<Item = Result<Change, StoreError>> + Send + 'static, StoreError> {
        let mut grown = self.grown.subscribe();
        grown.mark_changed(); // the first pass looks without waiting
        self.since(&prefix, after, &endpoint)?;
        let start = Watcher {
            log: self,
            grown,
            prefix,
            endpoint,
            after,
            ready: VecDeque::new(),
            ended: false,
        };
        Ok(stream::unfold(start, |mut watcher| async move {
            let next = watcher.next().await?;
            Some((next, watcher))
        }))
    }
}

struct Watcher {
    log: Arc<ChangeLog>,
    grown: watch::Receiver<()>,
    prefix: String,
    endpoint: String,
    after: Revision,
    /// At most what the log held at one moment.
    ready: VecDeque<Change>,
    ended: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<Change, StoreError>> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(change) = self.ready.pop_front() {
                return Some(Ok(change));
            }
            // The sender lives as long as the log, which this watcher keeps.
            let _ = self.grown.changed().await;
            match self.log.since(&self.prefix, self.after, &self.endpoint) {
                Ok((found, reached)) => {
                    self.ready = found.into();
                    self.after = reached;
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }
}
