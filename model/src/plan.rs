//! What the planner answers: an immutable list of steps, and for each VM why it moves or stays.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Bytes, HostId, Millicores, Ratio, Revision, RuleId, VmId};

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
    /// When the last VM has arrived that leaves a host that is being emptied, counted as
    /// [`makespan`](Self::makespan) is; none when no VM leaves one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emptied: Option<Duration>,
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
    /// What it is for, in words; a step to a host that a VM only passes through says whom it makes room for.
    #[serde(default)]
    pub reason: String,
    /// What of the objective it changes, the most important first; what stays as it is, is left out.
    #[serde(default)]
    pub terms: Vec<TermChange>,
}

/// A term of the planner's objective, before and after a step. Less is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TermChange {
    /// Which, and in what it is measured.
    pub term: Term,
    /// Before the step.
    pub before: f64,
    /// After it.
    pub after: f64,
}

/// The terms of the objective. The order is that of their importance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Term {
    /// Faults of hard rules: how many VMs, or domains, each is away from holding.
    RuleFaults,
    /// VMs on hosts that do not offer what they need.
    NeedsUnmet,
    /// VMs on hosts that are being emptied.
    VmsToDrain,
    /// Memory beyond what the step's two hosts have, in bytes.
    MemoryOverBytes,
    /// Weight of the preferences that are missed.
    PreferencesMissed,
    /// Demand of CPU beyond what the step's two hosts have, in millicores: what guests do not get.
    CpuUnmetMillicores,
    /// Demand of CPU above the ceiling of the step's two hosts, in millicores.
    CpuOverCeilingMillicores,
    /// VMs on hosts under suspicion.
    VmsInQuarantine,
    /// Standard deviation of the hosts' CPU load, as a share of a host.
    CpuDeviation,
    /// Standard deviation of the hosts' memory load, as a share of a host.
    MemoryDeviation,
}

impl fmt::Display for TermChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // amounts are not negative; casts saturate
        let whole = |amount: f64| amount.round() as u64;
        let shown = |amount: f64| match self.term {
            Term::RuleFaults
            | Term::NeedsUnmet
            | Term::VmsToDrain
            | Term::PreferencesMissed
            | Term::VmsInQuarantine => whole(amount).to_string(),
            Term::MemoryOverBytes => Bytes(whole(amount)).to_string(),
            Term::CpuUnmetMillicores | Term::CpuOverCeilingMillicores => {
                Millicores(whole(amount)).to_string()
            }
            Term::CpuDeviation | Term::MemoryDeviation => format!("{:.2} %", amount * 100.0),
        };
        write!(f, "{} {} → {}", self.term.name(), shown(self.before), shown(self.after))
    }
}

impl Term {
    /// In words, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::RuleFaults => "faults of rules",
            Self::NeedsUnmet => "VMs without what they need",
            Self::VmsToDrain => "VMs to drain",
            Self::MemoryOverBytes => "memory over capacity",
            Self::PreferencesMissed => "preferences missed",
            Self::CpuUnmetMillicores => "CPU demand not met",
            Self::CpuOverCeilingMillicores => "CPU over the ceiling",
            Self::VmsInQuarantine => "VMs in quarantine",
            Self::CpuDeviation => "CPU deviation",
            Self::MemoryDeviation => "memory deviation",
        }
    }
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
    /// Its host does not offer what it needs.
    Needs,
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
        /// The move that would level the load most, and that the reason speaks of.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alternative: Option<Alternative>,
    },
    /// It ought to move and cannot.
    Stuck {
        /// Why not, in words.
        reason: String,
        /// What would change that.
        remedy: String,
        /// What no placement can meet all of, while any one of them could be left out; empty when no such set was found.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        core: Vec<Constraint>,
    },
}

/// A move that is not made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// Where to.
    pub to: HostId,
    /// By how much the imbalance would fall; negative if it would rise.
    pub gain: f64,
    /// What the move is worth: as much as bringing a host back to the mean that is off it by this share of its capacity.
    pub worth: f64,
    /// What it would have to be worth.
    pub worth_min: f64,
    /// Bytes it would send.
    pub cost_bytes: u64,
    /// How long it would take, in microseconds.
    pub cost_micros: u64,
}

/// What a placement has to meet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Constraint {
    /// A hard rule holds.
    Rule {
        /// The rule.
        rule: RuleId,
    },
    /// A host takes no VMs: it drains, is under suspicion, or its load is unknown.
    Closed {
        /// The host.
        host: HostId,
    },
    /// A VM stays where it is: it cannot move, or only an operator moves it.
    Stays {
        /// The VM.
        vm: VmId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_shown_in_its_unit() {
        let shown = |term, before, after| TermChange { term, before, after }.to_string();
        assert_eq!(shown(Term::CpuDeviation, 0.125, 0.03), "CPU deviation 12.50 % → 3.00 %");
        assert_eq!(shown(Term::VmsToDrain, 2.0, 1.0), "VMs to drain 2 → 1");
        let over = shown(Term::MemoryOverBytes, 4_294_967_296.0, 0.0);
        assert!(over.starts_with("memory over capacity 4.0 GiB → 0"), "{over}");
    }

    #[test]
    fn a_verdict_is_tagged_in_json() {
        let verdict = Verdict::Stuck { reason: "r".into(), remedy: "m".into(), core: Vec::new() };
        let json = r#"{"verdict":"stuck","reason":"r","remedy":"m"}"#;
        assert_eq!(serde_json::to_string(&verdict).unwrap(), json);
        assert_eq!(serde_json::from_str::<Verdict>(json).unwrap(), verdict);
    }
}
