//! One VM's move: its phases, its progress, its outcome.
//!
//! The record lives in the store under `migrations/<id>` and is written by the
//! controller alone, each phase before what it announces happens:
//!
//! ```text
//!  Preparing ──▶ Transferring ──▶ Committed ──▶ Ended(Completed)
//!      │              │               │               the source is discarded between the two
//!      └──────┬───────┘               │
//!             ▼                       │ given back
//!          Aborting ◀─────────────────┘
//!             │                                       the destination is discarded between the two
//!             └──▶ Ended(Cancelled | Failed)
//! ```
//!
//! The step to `Committed` is one store transaction that also hands the owner
//! record over; it and the step to `Aborting` compare the record's revision, so
//! exactly one of them happens.
//!
//! Committed is given back (owner record to the source, epoch + 1, `Aborting`,
//! again in one transaction) only when the destination's copy is gone and
//! certainly never ran, while the source still holds its own.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Bytes, BytesPerSec, Epoch, HostId, MigrationId, ReasonTrail, Timestamp, VmId};

/// The record of one migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Migration {
    /// Its id.
    pub id: MigrationId,
    /// The VM that moves.
    pub vm: VmId,
    /// The source host.
    pub from: HostId,
    /// The destination host.
    pub to: HostId,
    /// The epoch under which the source owns the VM; a commit makes it the next one.
    pub source_epoch: Epoch,
    /// Why it moves.
    pub reasons: ReasonTrail,
    /// When the record was written first.
    pub created_at: Timestamp,
    /// When the record was written last.
    pub updated_at: Timestamp,
    /// Where it stands.
    pub phase: MigrationPhase,
    /// The last figures heard from source and destination.
    pub progress: Progress,
}

/// Where a migration stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase", deny_unknown_fields)]
pub enum MigrationPhase {
    /// The destination reserves room and gets ready to listen.
    Preparing,
    /// The source sends to the destination.
    Transferring {
        /// `ip:port` the destination listens on.
        address: String,
    },
    /// The owner record names the destination. The point of no return is behind.
    Committed {
        /// The destination's epoch.
        epoch: Epoch,
    },
    /// It is being undone: the source goes on, the destination is discarded.
    Aborting {
        /// Why.
        why: String,
        /// Whether somebody asked for it.
        cancelled: bool,
    },
    /// It is over.
    Ended {
        /// How.
        outcome: MigrationOutcome,
    },
}

/// How a migration ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome", deny_unknown_fields)]
pub enum MigrationOutcome {
    /// The VM runs on the destination.
    Completed,
    /// Somebody cancelled it; the VM runs on the source.
    Cancelled {
        /// Why.
        why: String,
    },
    /// It went wrong; the VM runs on the source.
    Failed {
        /// Why.
        why: String,
    },
}

impl MigrationPhase {
    /// The phase's name: a closed set, fit for a metric label.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Transferring { .. } => "transferring",
            Self::Committed { .. } => "committed",
            Self::Aborting { .. } => "aborting",
            Self::Ended { outcome } => outcome.name(),
        }
    }

    /// Whether nothing is left to do.
    pub const fn is_ended(&self) -> bool {
        matches!(self, Self::Ended { .. })
    }

    /// Whether it can still be undone.
    pub const fn is_before_commit(&self) -> bool {
        matches!(self, Self::Preparing | Self::Transferring { .. })
    }
}

impl MigrationOutcome {
    /// The outcome's name: a closed set, fit for a metric label.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Cancelled { .. } => "cancelled",
            Self::Failed { .. } => "failed",
        }
    }
}

impl fmt::Display for MigrationPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What the two sides said last of a migration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Progress {
    /// Pre-copy rounds begun, the stop-and-copy pass included.
    pub rounds: u32,
    /// Bytes on the wire so far.
    pub bytes_sent: Bytes,
    /// What did not have to be sent because pages went compressed.
    pub bytes_saved: Bytes,
    /// Whether pages go compressed now.
    pub compresses: bool,
    /// Memory still to be sent, as known at the last look at the dirty log.
    pub bytes_remaining: Bytes,
    /// Guest memory in all.
    pub bytes_total: Bytes,
    /// What the disks that go along held at the beginning; zero when none does.
    pub disk_bytes_total: Bytes,
    /// Contents of disks sent so far, those written meanwhile counted again.
    pub disk_bytes_sent: Bytes,
    /// Contents of disks still to be sent.
    pub disk_bytes_remaining: Bytes,
    /// Pages that held only zeroes and went as a mark.
    pub pages_zero: u64,
    /// Since the source began to send.
    pub elapsed: Duration,
    /// What goes over the link now; zero until known.
    pub rate: BytesPerSec,
    /// What the guest wrote during the last round, to memory and to disks that go along, what was
    /// written twice counted once.
    pub dirty_rate: BytesPerSec,
    /// What the switchover would take after the last round; zero until known.
    pub expected_downtime: Duration,
    /// The share of time the guest is kept from running, in percent, because it writes too fast.
    pub throttle_percent: u8,
    /// Connections.
    pub streams: u32,
    /// With post-copy: memory that was missing when the destination was READY; zero without. What
    /// still is stands in [`bytes_remaining`](Self::bytes_remaining).
    pub post_copy_bytes: Bytes,
    /// With post-copy: how often the guest has waited for a page since.
    pub faults: u64,
    /// The parts of the switchover; zero until known.
    pub downtime: Downtime,
}

impl Progress {
    /// How long it takes until the rest is small enough for the switchover, at the present rates.
    /// None when that is not known, or never at these rates.
    pub fn eta(&self) -> Option<Duration> {
        let gain = self.rate.get().checked_sub(self.dirty_rate.get()).filter(|gain| *gain > 0)?;
        (self.bytes_remaining + self.disk_bytes_remaining).time_at(BytesPerSec(gain))
    }
}

/// The switchover, from the source's pause to the destination's resume, in its parts.
/// This is the only definition of downtime in Ballast.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Downtime {
    /// Source: pause the vCPUs and send the last dirty pages.
    pub last_pass: Duration,
    /// Source: save vCPU, interrupt controller and device state.
    pub state_save: Duration,
    /// Source: send that state, until the destination said READY, its load time taken off.
    pub send: Duration,
    /// Destination: load the state and, in verify mode, compare page hashes.
    pub load: Duration,
    /// Destination: from READY until the commit was granted.
    pub commit: Duration,
    /// Destination: from the grant until the vCPUs ran.
    pub resume: Duration,
}

impl Downtime {
    /// All parts together.
    pub fn total(&self) -> Duration {
        self.last_pass + self.state_save + self.send + self.load + self.commit + self.resume
    }
}
