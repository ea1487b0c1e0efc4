//! Audit entries and their hash chain.
//!
//! Every entry carries the SHA-256 of its predecessor, so that an entry that
//! was changed, removed or moved breaks the chain at a place that can be named.
//! The hash covers the compact JSON of all fields but the hash itself, in the
//! order they are declared in. The newest entry's sequence and hash stand in a
//! record of their own, the [`AuditHead`], so that a cut tail is found too.
//! [`verify`] checks a whole trail.

pub mod verify;

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{ReasonTrail, Timestamp};

/// SHA-256 of an entry, in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AuditHash(String);

impl AuditHash {
    /// What the first entry names as its predecessor.
    pub fn genesis() -> Self {
        Self("0".repeat(64))
    }

    /// The hash as lower-case hex.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The newest entry of the trail, stored under `audit/head`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditHead {
    /// Its sequence number; 0 while there is no entry.
    pub sequence: u64,
    /// Its hash; [`AuditHash::genesis`] while there is no entry.
    pub hash: AuditHash,
}

impl AuditHead {
    /// The head of an empty trail.
    pub fn empty() -> Self {
        Self { sequence: 0, hash: AuditHash::genesis() }
    }
}

/// Which half of record–act–close an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "record", deny_unknown_fields)]
pub enum AuditRecord {
    /// Durable before the action starts.
    Opened,
    /// The action's end; `opened` is the sequence number of the entry it closes.
    Closed {
        /// Sequence number of the opening entry.
        opened: u64,
        /// How it ended.
        outcome: AuditOutcome,
    },
}

/// How an audited action ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome", deny_unknown_fields)]
pub enum AuditOutcome {
    /// As asked.
    Succeeded,
    /// Not as asked.
    Failed {
        /// Why.
        why: String,
    },
    /// Nobody knows: the record was never closed and its time has passed.
    Timeout,
}

/// One entry of the audit trail, stored under `audit/<sequence>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// 1, 2, 3, …
    pub sequence: u64,
    /// The hash of entry `sequence - 1`.
    pub previous: AuditHash,
    /// When it was written.
    pub at: Timestamp,
    /// Opening or closing.
    pub record: AuditRecord,
    /// What is done, e.g. `vm.create` or `migration`. A closed set, see [`action`].
    pub action: String,
    /// To what: a VM, host, rule or migration id.
    pub subject: String,
    /// What else identifies it, e.g. `from` and `to`.
    pub details: std::collections::BTreeMap<String, String>,
    /// Who and why.
    pub reasons: ReasonTrail,
    /// SHA-256 over all of the above.
    pub hash: AuditHash,
}

/// The names an [`AuditEntry::action`] may have.
pub mod action {
    /// A host registered for the first time or with another capacity.
    pub const HOST_REGISTER: &str = "host.register";
    /// A host is to be emptied.
    pub const HOST_DRAIN: &str = "host.drain";
    /// A drained host takes VMs again.
    pub const HOST_UNCORDON: &str = "host.uncordon";
    /// A VM is created.
    pub const VM_CREATE: &str = "vm.create";
    /// A VM is removed.
    pub const VM_REMOVE: &str = "vm.remove";
    /// A VM is written to a file.
    pub const VM_SNAPSHOT: &str = "vm.snapshot";
    /// A rule is written.
    pub const RULE_SET: &str = "rule.set";
    /// A rule is removed.
    pub const RULE_REMOVE: &str = "rule.remove";
    /// A VM moves.
    pub const MIGRATION: &str = "migration";
    /// A migration is cancelled.
    pub const MIGRATION_CANCEL: &str = "migration.cancel";
    /// A committed migration whose destination is gone for good is settled at an operator's word.
    pub const MIGRATION_SETTLE: &str = "migration.settle";
    /// A recommended plan is applied.
    pub const PLAN_APPLY: &str = "plan.apply";
    /// How much the balancer may do is set.
    pub const AUTOMATION_SET: &str = "automation.set";
}

impl AuditEntry {
    /// The hash the entry ought to have.
    pub fn computed_hash(&self) -> AuditHash {
        #[derive(Serialize)]
        struct Covered<'a> {
            sequence: u64,
            previous: &'a AuditHash,
            at: Timestamp,
            record: &'a AuditRecord,
            action: &'a str,
            subject: &'a str,
            details: &'a std::collections::BTreeMap<String, String>,
            reasons: &'a ReasonTrail,
        }
        let covered = Covered {
            sequence: self.sequence,
            previous: &self.previous,
            at: self.at,
            record: &self.record,
            action: &self.action,
            subject: &self.subject,
            details: &self.details,
            reasons: &self.reasons,
        };
        // Plain strings, numbers and string-keyed maps always serialise.
        let bytes = serde_json::to_vec(&covered).unwrap_or_default();
        AuditHash(Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The head of a trail that ends with this entry.
    pub fn head(&self) -> AuditHead {
        AuditHead { sequence: self.sequence, hash: self.hash.clone() }
    }

    /// The entry with its hash filled in.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.hash = self.computed_hash();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_covers_every_field() {
        let entry = AuditEntry {
            sequence: 1,
            previous: AuditHash::genesis(),
            at: Timestamp(5),
            record: AuditRecord::Opened,
            action: action::VM_CREATE.into(),
            subject: "web-1".into(),
            details: [("host".to_owned(), "a".to_owned())].into(),
            reasons: ReasonTrail::new("operator:root", "asked", Timestamp(5)),
            hash: AuditHash::genesis(),
        }
        .sealed();
        assert_eq!(entry.hash, entry.computed_hash());
        let spoils: [fn(&mut AuditEntry); 8] = [
            |e| e.sequence = 2,
            |e| e.previous = e.hash.clone(),
            |e| e.at = Timestamp(6),
            |e| e.record = AuditRecord::Closed { opened: 1, outcome: AuditOutcome::Timeout },
            |e| e.action = action::VM_REMOVE.into(),
            |e| e.subject = "web-2".into(),
            |e| e.details.clear(),
            |e| e.reasons = ReasonTrail::default(),
        ];
        for spoil in spoils {
            let mut changed = entry.clone();
            spoil(&mut changed);
            assert_ne!(changed.hash, changed.computed_hash());
        }
    }
}
