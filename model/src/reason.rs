//! The trail of reasons carried with an operation from its cause to the audit.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// The most reasons a trail keeps; later ones are dropped, because the cause comes first.
pub const REASONS_MAX: usize = 16;

/// One link of a [`ReasonTrail`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// The operator or component that acted, e.g. `operator:root` or `balancer`.
    pub who: String,
    /// Why, in words.
    pub why: String,
    /// When.
    pub when: Timestamp,
}

/// Who did what led to this, first cause first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReasonTrail(Vec<Reason>);

impl ReasonTrail {
    /// A trail that starts with one reason.
    pub fn new(who: impl Into<String>, why: impl Into<String>, when: Timestamp) -> Self {
        Self(vec![Reason { who: who.into(), why: why.into(), when }])
    }

    /// Adds a reason; dropped when the trail already holds [`REASONS_MAX`].
    pub fn push(&mut self, who: impl Into<String>, why: impl Into<String>, when: Timestamp) {
        if self.0.len() < REASONS_MAX {
            self.0.push(Reason { who: who.into(), why: why.into(), when });
        }
    }

    /// The reasons, first cause first.
    pub fn reasons(&self) -> &[Reason] {
        &self.0
    }
}

impl FromIterator<Reason> for ReasonTrail {
    /// Keeps the first [`REASONS_MAX`].
    fn from_iter<I: IntoIterator<Item = Reason>>(reasons: I) -> Self {
        Self(reasons.into_iter().take(REASONS_MAX).collect())
    }
}

impl fmt::Display for ReasonTrail {
    /// `who: why → who: why`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reason) in self.0.iter().enumerate() {
            let arrow = if index == 0 { "" } else { " → " };
            write!(f, "{arrow}{}: {}", reason.who, reason.why)?;
        }
        Ok(())
    }
}
