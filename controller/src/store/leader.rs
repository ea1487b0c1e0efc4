//! Which of several controllers acts.
//!
//! ```text
//!  Standby ──the key is absent: create it on a lease──▶ Leading ──keep alive──┐
//!     ▲  ▲                                                │  ▲────────────────┘
//!     │  └──── the key is there: watch until it goes      │ the lease was not confirmed in time,
//!     └───────────────────────────────────────────────────┘ or the key is not ours any more
//! ```
//!
//! Leading is a belief that may be late: a controller that was stopped for a
//! while goes on for a moment after another took over. Therefore every
//! transaction of a leader carries [`Leadership::fence`], which holds only while
//! the key it created is there.

use std::sync::Arc;
use std::time::Duration;

use ballast_model::{Refusal, RefusalCode, Revision};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Change, Compare, Entry, LeaseId, Store, StoreError, Transacted, Transaction, keys};

/// The wait after the store failed.
const RETRY: Duration = Duration::from_millis(500);

/// What stands under the leader's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaderRecord {
    /// Who leads, as operators know it.
    pub holder: String,
    /// The lease the key hangs on; tells two lives of one holder apart.
    pub lease: i64,
}

impl LeaderRecord {
    /// Reads the value of the leader's key.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(entry: &Entry) -> Result<Self, Refusal> {
        serde_json::from_slice(&entry.value).map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("{} cannot be read: {error}", entry.key),
                "remove the key when no controller runs",
            )
        })
    }
}

/// A candidate for leadership.
pub struct Candidate {
    store: Arc<dyn Store>,
    holder: String,
    ttl: Duration,
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidate").field("holder", &self.holder).finish_non_exhaustive()
    }
}

/// This controller leads, until [`lost`](Self::lost). Dropping it lets the lease run out.
#[derive(Debug)]
pub struct Leadership {
    created: Revision,
    lease: LeaseId,
    lost: CancellationToken,
    /// Ends the keeping alive.
    _keeper: DropGuard,
    revoke: Revoke,
}

struct Revoke(Arc<dyn Store>);

impl std::fmt::Debug for Revoke {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.kind())
    }
}

impl Candidate {
    /// `holder` is what operators see as the leader; `ttl` (whole seconds, at least one) is how long
    /// others wait for a leader that fell silent.
    pub fn new(store: Arc<dyn Store>, holder: impl Into<String>, ttl: Duration) -> Self {
        let ttl = Duration::from_secs(ttl.as_secs().max(1));
        Self { store, holder: holder.into(), ttl }
    }

    /// Waits until this controller leads. `standing_by` hears who leads instead, each time it changes;
    /// trouble with the store is logged and waited out.
    ///
    /// # Errors
    /// `Cancelled` once `shutdown` is cancelled.
    pub async fn acquire(
        &self,
        shutdown: &CancellationToken,
        mut standing_by: impl FnMut(&str) + Send,
    ) -> Result<Leadership, Refusal> {
        let mut lease = None;
        let campaign = async {
            loop {
                match self.round(&mut lease, &mut standing_by).await {
                    Ok(Some(leadership)) => return leadership,
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot stand for leadership; trying again");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        };
        tokio::select! {
            leadership = campaign => Ok(leadership),
            () = shutdown.cancelled() => {
                Err(Refusal::new(RefusalCode::Cancelled, "asked to end while standing by", "start it again"))
            }
        }
    }

    /// One round: create the key, or wait until it goes. `lease` is one granted by an earlier round
    /// whose answer got lost: the key may be ours already.
    async fn round(
        &self,
        lease: &mut Option<(LeaseId, Instant)>,
        standing_by: &mut (impl FnMut(&str) + Send),
    ) -> Result<Option<Leadership>, Refusal> {
        if let Some(entry) = self.store.get(keys::LEADER).await? {
            let record = LeaderRecord::read(&entry)?;
            if let Some((id, granted)) = lease.take_if(|(id, _)| id.0 == record.lease) {
                return Ok(Some(self.lead(entry.created, id, granted)));
            }
            standing_by(&record.holder);
            self.wait_until_gone(entry.modified).await?;
            return Ok(None);
        }
        if let Some((unused, _)) = lease.take() {
            let _ = self.store.revoke_lease(unused).await; // it may have ended by itself
        }
        let granted = Instant::now();
        let id = self.store.grant_lease(self.ttl).await?;
        *lease = Some((id, granted));
        let record = LeaderRecord { holder: self.holder.clone(), lease: id.0 };
        let json = serde_json::to_vec(&record).unwrap_or_default(); // a string and a number always serialise
        let create = Transaction::when(Compare::Absent(keys::LEADER.to_owned())).put_leased(
            keys::LEADER,
            json,
            id,
        );
        match self.store.transact(create).await? {
            Transacted::Committed(created) => {
                *lease = None;
                Ok(Some(self.lead(created, id, granted)))
            }
            Transacted::CompareFailed => Ok(None),
        }
    }

    async fn wait_until_gone(&self, seen: Revision) -> Result<(), StoreError> {
        let mut changes = self.store.watch(keys::LEADER, seen).await?;
        while let Some(change) = changes.next().await {
            match change? {
                Change::Deleted(key, _) if key == keys::LEADER => break,
                _ => {}
            }
        }
        Ok(())
    }

    fn lead(&self, created: Revision, lease: LeaseId, granted: Instant) -> Leadership {
        let lost = CancellationToken::new();
        let stop = CancellationToken::new();
        let keeper = Keeper {
            store: Arc::clone(&self.store),
            ttl: self.ttl,
            created,
            lease,
            lost: lost.clone(),
        };
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = keeper.keep(granted) => {}
                () = stopped.cancelled() => {}
            }
        });
        let revoke = Revoke(Arc::clone(&self.store));
        Leadership { created, lease, lost, _keeper: stop.drop_guard(), revoke }
    }
}

impl Leadership {
    /// What every transaction of the leader must compare.
    pub fn fence(&self) -> Compare {
        Compare::CreatedAt(keys::LEADER.to_owned(), self.created)
    }

    /// The term: grows with every change of leader.
    pub const fn term(&self) -> Revision {
        self.created
    }

    /// Cancelled once this controller may not lead any more. It never leads again by itself.
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Lets another controller take over at once.
    pub async fn resign(self) {
        self.lost.cancel();
        if let Err(error) = self.revoke.0.revoke_lease(self.lease).await {
            tracing::info!(%error, "could not hand leadership over; others wait until the lease ends");
        }
    }
}

struct Keeper {
    store: Arc<dyn Store>,
    ttl: Duration,
    created: Revision,
    lease: LeaseId,
    lost: CancellationToken,
}

impl Keeper {
    /// Keeps the lease alive until that is known, or must be feared, to have failed. `confirmed` is
    /// the start of the last call that succeeded: the lease lasts at least its time to live from there.
    async fn keep(&self, mut confirmed: Instant) {
        let pause = self.ttl / 3;
        let why = loop {
            let ends = confirmed + self.ttl;
            tokio::time::sleep(pause.min(ends.saturating_duration_since(Instant::now()))).await;
            let started = Instant::now();
            match tokio::time::timeout_at(ends, self.confirm()).await {
                Ok(Ok(true)) => confirmed = started,
                Ok(Ok(false)) => break "the key is not ours any more".to_owned(),
                Ok(Err(StoreError::LeaseLost)) => break "the lease has ended".to_owned(),
                Ok(Err(error)) => tracing::warn!(%error, "cannot confirm leadership"),
                Err(_) => break "the store did not answer in time".to_owned(),
            }
            if Instant::now() >= confirmed + self.ttl {
                break "the lease could not be kept alive in time".to_owned();
            }
        };
        tracing::warn!(%why, "leadership is lost");
        self.lost.cancel();
    }

    async fn confirm(&self) -> Result<bool, StoreError> {
        self.store.keep_alive(self.lease).await?;
        let entry = self.store.get(keys::LEADER).await?;
        Ok(entry.is_some_and(|entry| entry.created == self.created))
    }
}
