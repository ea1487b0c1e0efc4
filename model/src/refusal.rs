//! A "no" with its reason and its remedy.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of "no" a [`Refusal`] is. A closed set: it is a metric label, and
/// `ballast-proto` maps each to a gRPC status in one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The request itself is malformed or out of range.
    InvalidArgument,
    /// No such host, VM, plan, migration or rule.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// No room: larger than any host, or every host is full.
    CapacityExceeded,
    /// A hard rule forbids it.
    RuleViolation,
    /// Right request, wrong moment: the VM moves already, the host drains.
    WrongState,
    /// Somebody else changed the same thing first; look again and retry.
    Conflict,
    /// The caller acts under an epoch of ownership that has passed.
    StaleEpoch,
    /// Source and destination do not fit each other.
    Incompatible,
    /// This build, driver or host cannot do it.
    Unsupported,
    /// A cap, a cooldown or a queue bound: later it may pass.
    RateLimited,
    /// A peer (store, agent, VMM) does not answer.
    Unavailable,
    /// It took longer than its bound.
    Timeout,
    /// The caller cancelled it.
    Cancelled,
    /// The local machine failed us: disk, memory, KVM.
    HostFailure,
    /// A defect in Ballast.
    Internal,
}

impl RefusalCode {
    /// Every code, for tables and tests.
    pub const ALL: [Self; 16] = [
        Self::InvalidArgument,
        Self::NotFound,
        Self::AlreadyExists,
        Self::CapacityExceeded,
        Self::RuleViolation,
        Self::WrongState,
        Self::Conflict,
        Self::StaleEpoch,
        Self::Incompatible,
        Self::Unsupported,
        Self::RateLimited,
        Self::Unavailable,
        Self::Timeout,
        Self::Cancelled,
        Self::HostFailure,
        Self::Internal,
    ];

    /// The stable machine-readable name, e.g. `CAPACITY_EXCEEDED`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::CapacityExceeded => "CAPACITY_EXCEEDED",
            Self::RuleViolation => "RULE_VIOLATION",
            Self::WrongState => "WRONG_STATE",
            Self::Conflict => "CONFLICT",
            Self::StaleEpoch => "STALE_EPOCH",
            Self::Incompatible => "INCOMPATIBLE",
            Self::Unsupported => "UNSUPPORTED",
            Self::RateLimited => "RATE_LIMITED",
            Self::Unavailable => "UNAVAILABLE",
            Self::Timeout => "TIMEOUT",
            Self::Cancelled => "CANCELLED",
            Self::HostFailure => "HOST_FAILURE",
            Self::Internal => "INTERNAL",
        }
    }

    /// The code with this [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.name() == name)
    }
}

/// A "no" that says why and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Refusal {
    /// What kind of "no".
    pub code: RefusalCode,
    /// Why, as one sentence without a full stop, naming the things involved.
    pub reason: String,
    /// What the reader can do, as one imperative sentence without a full stop.
    pub remedy: String,
}

impl Refusal {
    /// A refusal from its three parts.
    pub fn new(code: RefusalCode, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Refusal {
    /// One line: `reason; remedy`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.reason, self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_name_of_its_own() {
        for code in RefusalCode::ALL {
            assert_eq!(RefusalCode::from_name(code.name()), Some(code));
        }
        assert_eq!(RefusalCode::from_name("NO_SUCH"), None);
    }
}
