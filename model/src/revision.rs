//! Counters that guard what two parties write.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A revision of the store: grows by one with every transaction that writes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// The epoch of a VM's ownership. Each change of owner adds one.
///
/// The first epoch of a VM is the store revision its creation saw. A change
/// of owner costs at least one revision, so a VM created again under an old
/// name starts above every epoch ever granted for that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch a newly created VM starts with.
    pub const fn first(seen: Revision) -> Self {
        Self(seen.0.saturating_add(1))
    }

    /// The epoch after the next change of owner.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.0)
    }
}
