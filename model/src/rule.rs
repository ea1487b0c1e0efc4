//! Placement rules: constraints with a name and a revision.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{HostId, Revision, RuleId, VmId};

/// A named constraint on placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The rule's name.
    pub id: RuleId,
    /// The store revision it was last written at; zero in a file.
    #[serde(default)]
    pub revision: Revision,
    /// What it demands.
    pub kind: RuleKind,
}

/// What a [`Rule`] demands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum RuleKind {
    /// No two of these VMs on one host. Hard.
    AntiAffinity {
        /// The VMs to keep apart.
        vms: BTreeSet<VmId>,
    },
    /// These VMs only on these hosts.
    VmHost {
        /// The VMs bound.
        vms: BTreeSet<VmId>,
        /// The hosts they may use.
        hosts: BTreeSet<HostId>,
        /// Hard, or a preference.
        strength: Strength,
    },
}

/// Whether a rule may be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    /// Never broken by Ballast.
    Must,
    /// Broken when nothing else fits; mended when something does.
    Should,
}
