//! A host as the planner sees it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Bytes, BytesPerSec, HostId, Resources};

/// The link rate assumed for a host that does not tell its own: 1 Gbit/s.
pub const LINK_ASSUMED: BytesPerSec = BytesPerSec(125_000_000);

/// One host of the snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// The host's name.
    pub id: HostId,
    /// What it offers to VMs.
    pub capacity: Resources,
    /// What an operator lets it do.
    pub state: HostState,
    /// Whether its load is known.
    pub telemetry: Telemetry,
    /// The rate at which it can send or receive a migration; zero: not known, [`LINK_ASSUMED`].
    #[serde(rename = "link_bytes_per_sec")]
    pub link: BytesPerSec,
    /// Free-form labels, e.g. `rack`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What VMs can find on it: storage and networks it reaches, CPU features it has. Free-form words; see
    /// [`PlacedVm::needs`](crate::snapshot::PlacedVm::needs).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub offers: BTreeSet<String>,
    /// What is free where it keeps local disks; none when that is not known.
    #[serde(rename = "local_disk_free_bytes", default, skip_serializing_if = "Option::is_none")]
    pub local_disk_room: Option<Bytes>,
    /// What each of its NUMA nodes has; empty when that is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub numa: Vec<Resources>,
}

impl Host {
    /// An active host with nothing on it besides VMs, and nothing else known of it.
    pub fn new(id: HostId, capacity: Resources) -> Self {
        Self {
            id,
            capacity,
            state: HostState::Active,
            telemetry: Telemetry::Known { overhead: Resources::default() },
            link: BytesPerSec::ZERO,
            labels: BTreeMap::new(),
            offers: BTreeSet::new(),
            local_disk_room: None,
            numa: Vec::new(),
        }
    }
}

/// What an operator lets a host do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Runs VMs and takes new ones.
    #[default]
    Active,
    /// Being emptied, or empty, for maintenance: takes no VM and gives all away.
    Draining,
    /// Under suspicion: takes no VM, and gives away those that fit elsewhere without harm.
    Quarantined,
}

/// Whether a host's load is known. A host whose load is unknown is neither source nor target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "status", deny_unknown_fields)]
pub enum Telemetry {
    /// The samples passed the telemetry gate.
    Known {
        /// What the host uses besides its VMs.
        overhead: Resources,
    },
    /// They did not.
    Unknown {
        /// Why, in words.
        why: String,
    },
}
