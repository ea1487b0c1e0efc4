//! What the planner answers: an immutable list of steps, and for each VM why it moves or stays.

use std::collections::BTreeMap;
use std::ops::Add;
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
    /// What the plan comes to. Empty in one that was written before there was a report.
    #[serde(default)]
    pub report: PlanReport,
}

impl Planning {
    /// How far the plan's end may be from the most level placement there is: an upper bound, since
    /// [`imbalance_bound`](PlanReport::imbalance_bound) knows neither rules nor what moves cost.
    pub fn gap(&self) -> Ratio {
        let gap = self.plan.imbalance_after.get() - self.report.imbalance_bound.get();
        Ratio::new(gap.max(0.0))
    }
}

/// What a plan comes to as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanReport {
    /// What moves buy: before the first step, then after each, in the order of the plan. What must be done comes first;
    /// of the rest, each step is the one that levels most of those possible at its time.
    pub curve: Vec<CurvePoint>,
    /// When each step is expected to run, by step.
    pub timings: Vec<StepTiming>,
    /// From the first start to the last end, if every step starts as soon as it may.
    pub makespan: Duration,
    /// No placement of the same VMs on the hosts that count for the imbalance has a lower one.
    pub imbalance_bound: Ratio,
}

impl PlanReport {
    /// The number of stages the plan takes.
    pub fn stages(&self) -> u32 {
        self.timings.iter().map(|timing| timing.stage + 1).max().unwrap_or(0)
    }
}

/// A point of the trade-off between moves and level load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Steps made.
    pub moves: usize,
    /// What they cost together: bytes on the wire, and the time they would take one after the other.
    pub cost: StepCost,
    /// The imbalance then.
    pub imbalance: Ratio,
}

/// When a step is expected to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTiming {
    /// The steps of a stage can run together once the stages before have ended.
    pub stage: u32,
    /// From the first step's start to this one's, without waiting for whole stages.
    pub start: Duration,
    /// How long it takes beside those that run at the same time.
    pub duration: Duration,
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCost {
    /// Bytes on the wire, dirty pages sent again included.
    pub bytes: Bytes,
    /// How long the move takes, alone on its links.
    pub duration: Duration,
}

impl StepCost {
    /// No move.
    pub const ZERO: Self = Self { bytes: Bytes::ZERO, duration: Duration::ZERO };
}

impl Add for StepCost {
    type Output = Self;

    /// Of both, one after the other; saturates.
    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            duration: self.duration.saturating_add(other.duration),
        }
    }
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
