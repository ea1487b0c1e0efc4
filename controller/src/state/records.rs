//! What stands under each key of the store, beside the model's own records.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ballast_model::plan::StepCause;
use ballast_model::vm::Automation;
use ballast_model::{
    Bytes, BytesPerSec, ClusterSnapshot, CpuBaseline, DrainGoal, HostId, HostState, Migration,
    MigrationId, PlanId, Planning, ReasonTrail, Resources, Timestamp, VmSpec,
};
use serde::{Deserialize, Serialize};

/// A host: `hosts/<host>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRecord {
    /// Its name.
    pub id: HostId,
    /// `ip:port` of its agent.
    pub endpoint: String,
    /// `DriverKind` as its protocol number.
    pub driver: i32,
    /// What it offers to VMs.
    pub capacity: Resources,
    /// The rate at which it can send or receive a migration.
    pub link: BytesPerSec,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// The agent's version.
    pub version: String,
    /// What must match for a VM to move here; empty for sim.
    pub cpu_model: String,
    /// Words of what VMs can find on it, as its owner says.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub offers: BTreeSet<String>,
    /// The CPU baselines its VMs can have; empty: it does not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu_baselines: Vec<CpuBaseline>,
    /// What each of its NUMA nodes has; empty: there is only one, or it does not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub numa: Vec<Resources>,
    /// What an operator lets it do.
    pub state: HostState,
    /// Why it drains, while it does.
    #[serde(default)]
    pub drain: ReasonTrail,
    /// What matters most while it drains; none: what the configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_goal: Option<DrainGoal>,
}

/// A VM: `vms/<vm>/spec`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmRecord {
    /// What its owner asked for.
    pub spec: VmSpec,
    /// What is being done to it.
    pub change: VmChange,
}

/// What is being done to a VM. One thing at a time: each starts by compare-and-swap from `Settled`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "change", deny_unknown_fields)]
pub enum VmChange {
    /// Nothing.
    Settled,
    /// It is being created.
    Creating,
    /// It is being removed.
    Removing,
    /// It is being migrated.
    Moving {
        /// By this migration.
        migration: MigrationId,
    },
}

/// A migration with what only the controller needs: `migrations/<id>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationRecord {
    /// The migration.
    pub migration: Migration,
    /// Why, as the planner sorts it; absent for an operator's order.
    pub cause: Option<StepCause>,
    /// What the planner expected of it.
    pub predicted: Option<Predicted>,
    /// The cluster's imbalance when it began.
    pub imbalance_before: f64,
}

/// What the planner expected of a move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicted {
    /// By how much the imbalance falls.
    pub gain: f64,
    /// Bytes on the wire.
    pub bytes: Bytes,
    /// From start to end.
    pub duration: Duration,
}

/// A plan shown to operators: `plans/<plan>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRecord {
    /// Its id.
    pub id: PlanId,
    /// When it was made.
    pub at: Timestamp,
    /// Plan and report.
    pub planning: Planning,
    /// What it was made from.
    pub snapshot: ClusterSnapshot,
}

/// Cluster-wide settings: `settings`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How much the balancer may do, once an operator said so.
    pub automation: Option<Automation>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_an_older_controller_wrote_is_read() {
        let written = r#"{"id":"h1","endpoint":"127.0.0.1:9","driver":1,
            "capacity":{"cpu_millicores":4000,"memory_bytes":8589934592},"link":125000000,"labels":{},
            "version":"0.1.0","cpu_model":"AuthenticAMD-25-1-91f3c0","state":"active"}"#;
        let host: HostRecord = serde_json::from_str(written).unwrap();
        assert!(host.offers.is_empty() && host.cpu_baselines.is_empty() && host.numa.is_empty());
        // And what tells nothing new can still be read there.
        let again = serde_json::to_value(&host).unwrap();
        assert!(["offers", "cpu_baselines", "numa"].iter().all(|key| again.get(key).is_none()));
    }
}
