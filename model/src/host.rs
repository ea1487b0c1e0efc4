//! A host as the planner sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Bytes, BytesPerSec, HostId, Refusal, RefusalCode, Resources};

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
    /// What matters most when it is emptied; none: what the planner is asked for. It means nothing while the host does not
    /// drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_goal: Option<DrainGoal>,
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
            drain_goal: None,
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

/// What matters most when hosts are emptied.
///
/// Whatever it is, hard rules, memory and the failures to tolerate are kept as ever, no preference is given up that another
/// target keeps, and what breaks a hard rule or a capacity is mended beside the drain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrainGoal {
    /// The cluster as it is afterwards: each VM goes where that is best for all, and the load is levelled in the same plan.
    #[default]
    Balanced,
    /// The time until the hosts are empty, by the planner's estimate of when steps run
    /// ([`PlanReport::emptied`](crate::plan::PlanReport::emptied)): the longest transfers first, each to where it
    /// ends first on the links, above the CPU ceiling if need be, but on a host that is out of CPU only when no other can
    /// take it. What can wait (balance, preferences) begins when the hosts are empty. It never takes longer than
    /// [`Balanced`](Self::Balanced) does: where that plan empties hosts sooner, it is taken.
    Fastest,
    /// The VMs that could stay. None of another host moves unless one could not leave otherwise; each goes once where an
    /// order allows that, by the shortest transfer, then to where the least load comes above the CPU ceiling, then to
    /// where the load is most level. As long as a host drains, empty or not, nothing moves for balance or a preference:
    /// that waits until the hosts are back, and may not be needed then.
    LeastDisturbing,
}

impl DrainGoal {
    /// Every goal.
    pub const ALL: [Self; 3] = [Self::Balanced, Self::Fastest, Self::LeastDisturbing];

    /// As it is written in files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Balanced => "balanced",
            Self::Fastest => "fastest",
            Self::LeastDisturbing => "least-disturbing",
        }
    }
}

impl fmt::Display for DrainGoal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DrainGoal {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        Self::ALL.into_iter().find(|goal| goal.name() == text).ok_or_else(|| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("'{text}' is no goal of a drain"),
                "use balanced, fastest or least-disturbing",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_of_a_drain_are_read_as_they_are_written() {
        for goal in DrainGoal::ALL {
            assert_eq!(goal.to_string().parse::<DrainGoal>().unwrap(), goal);
        }
        let refusal = "quickest".parse::<DrainGoal>().unwrap_err();
        assert!(refusal.remedy.contains("fastest"), "{refusal}");
    }
}
