//! Leases of the embedded store.
//!
//! Which keys hang on which lease stands in the file; how long a lease lasts
//! is kept in memory, on the monotonic clock. The file's lock lets one process
//! in at a time, so whoever held a lease in an earlier process is gone: opening
//! the file ends every lease it finds, and a controller that was killed can be
//! succeeded at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::store::{LeaseId, StoreError};

/// The most leases at a time.
const LEASES_MAX: usize = 1024;
/// The longest time to live.
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    ends: Instant,
}

#[derive(Debug, Default)]
struct State {
    running: HashMap<LeaseId, Lease>,
    /// Over, but their keys are still there.
    ended: BTreeSet<i64>,
}

/// All leases of one open file.
#[derive(Debug, Default)]
pub(super) struct Leases {
    state: Mutex<State>,
    /// A lease may now end earlier than whoever waits for the next end believes.
    changed: Notify,
}

impl Leases {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let whole = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let ttl = Duration::from_secs(whole.max(1)).min(TTL_MAX);
        let mut state = self.state();
        if state.running.len() >= LEASES_MAX {
            return Err(StoreError::Failed(format!("there are {LEASES_MAX} leases already")));
        }
        let id = loop {
            let id = LeaseId(rand::random_range(1..i64::MAX));
            if !state.running.contains_key(&id) && !state.ended.contains(&id.0) {
                break id;
            }
        };
        state.running.insert(id, Lease { ttl, ends: Instant::now() + ttl });
        drop(state);
        self.changed.notify_one();
        Ok(id)
    }

    pub(super) fn keep_alive(&self, id: LeaseId) -> Result<(), StoreError> {
        let now = Instant::now();
        let mut state = self.state();
        let lease = state.running.get_mut(&id).filter(|lease| lease.ends > now);
        let lease = lease.ok_or(StoreError::LeaseLost)?;
        lease.ends = now + lease.ttl;
        Ok(())
    }

    pub(super) fn is_running(&self, id: LeaseId) -> bool {
        self.state().running.get(&id).is_some_and(|lease| lease.ends > Instant::now())
    }

    /// Ends one lease; its keys are to be removed.
    pub(super) fn end(&self, id: LeaseId) -> Result<(), StoreError> {
        let mut state = self.state();
        state.running.remove(&id).ok_or(StoreError::LeaseLost)?;
        state.ended.insert(id.0);
        Ok(())
    }

    /// Every ended lease whose keys are still to be removed, those that ended by now included.
    pub(super) fn take_stock(&self) -> Vec<LeaseId> {
        let now = Instant::now();
        let mut state = self.state();
        let State { running, ended } = &mut *state;
        ended.extend(running.extract_if(|_, lease| lease.ends <= now).map(|(id, _)| id.0));
        ended.iter().map(|&id| LeaseId(id)).collect()
    }

    /// Their keys are gone.
    pub(super) fn forget(&self, ids: &[LeaseId]) {
        let mut state = self.state();
        for id in ids {
            state.ended.remove(&id.0);
        }
    }

    /// Waits until a lease ends, or at most until `retry` from now when ended ones wait for removal.
    pub(super) async fn wait_for_end(&self, retry: Duration) {
        loop {
            let next = {
                let state = self.state();
                let running = state.running.values().map(|lease| lease.ends).min();
                let again = (!state.ended.is_empty()).then(|| Instant::now() + retry);
                [running, again].into_iter().flatten().min()
            };
            match next {
                None => self.changed.notified().await,
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => return,
                    () = self.changed.notified() => {}
                },
            }
        }
    }
}
