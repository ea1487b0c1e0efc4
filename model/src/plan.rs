//! What the planner answers: an immutable list of steps, and for each VM why it moves or stays.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Bytes, HostId, Ratio, Revision, RuleId, VmId};

/// A plan and the report that explains it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Planning {
    /// What to do.
    pub plan: Plan,
    /// For every VM of the snapshot, why it moves or stays.
    pub verdicts: BTreeMap<VmId, Verdict>,
}

/// A complete list of steps; execution has nothing left to choose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The revision of the snapshot it was made from.
    pub snapshot: Revision,
    /// In order of execution; a step may start when all in its `after` have ended well.
    pub steps: Vec<Step>,
    /// The cluster's imbalance before the first step.
    pub imbalance_before: Ratio,
    /// The imbalance predicted after the last step.
    pub imbalance_after: Ratio,
}

/// One VM's move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The VM to move.
    pub vm: VmId,
    /// From its present host,
    pub from: HostId,
    /// to this one.
    pub to: HostId,
    /// Why.
    pub cause: StepCause,
    /// Indices of earlier steps that must have ended before this one starts, because they make the room it needs.
    pub after: Vec<usize>,
    /// By how much the imbalance falls with this step; negative when it rises (a drain may).
    pub gain: f64,
    /// What the move is predicted to cost.
    pub cost: StepCost,
}

/// Why a step is in the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum StepCause {
    /// Its host is being emptied.
    Drain,
    /// It breaks a rule where it is.
    Rule {
        /// The rule it breaks.
        rule: RuleId,
    },
    /// Its host holds more than its capacity.
    Capacity,
    /// The load is more level afterwards.
    Balance,
}

/// The predicted cost of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCost {
    /// Bytes on the wire, dirty pages sent again included.
    pub bytes: Bytes,
    /// How long the move takes.
    pub duration: Duration,
}

/// Why a VM moves or stays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    /// It moves.
    Moves {
        /// Index into [`Plan::steps`].
        step: usize,
        /// In words.
        reason: String,
    },
    /// It stays, and that is well.
    Stays {
        /// In words.
        reason: String,
    },
    /// It ought to move and cannot.
    Stuck {
        /// Why not, in words.
        reason: String,
        /// What would change that.
        remedy: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_tagged_in_json() {
        let verdict = Verdict::Stuck { reason: "r".into(), remedy: "m".into() };
        assert_eq!(
            serde_json::to_string(&verdict).unwrap(),
            r#"{"verdict":"stuck","reason":"r","remedy":"m"}"#
        );
    }
}
