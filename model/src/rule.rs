//! Placement rules: constraints with a name and a revision.
//!
//! A rule says what ([`RuleKind`]), how strictly ([`Strength`]) and when
//! ([`Hold`]). What a kind demands is said once, beside its variant; planner,
//! wire, command and documentation all refer to that.

mod domain;
mod file;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use domain::{DOMAIN_LEVELS_MAX, Domain};

use crate::{HostId, Refusal, RefusalCode, Revision, RuleId, VmId};

/// The greatest weight of a preference.
pub const WEIGHT_MAX: u32 = 1000;
/// The most groups an [`RuleKind::Among`] rule may name.
pub const GROUPS_MAX: usize = 1000;

/// A named constraint on placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "file::RuleFile", into = "file::RuleFile")]
pub struct Rule {
    /// The rule's name.
    pub id: RuleId,
    /// The store revision it was last written at; zero in a file.
    pub revision: Revision,
    /// Whether it may be broken.
    pub strength: Strength,
    /// When a hard rule has to hold.
    pub hold: Hold,
    /// What it demands.
    pub kind: RuleKind,
}

/// What a [`Rule`] demands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum RuleKind {
    /// At most so many of these VMs on one host.
    AntiAffinity {
        /// The VMs to keep apart.
        vms: BTreeSet<VmId>,
        /// The most of them one host may run, at least 1.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        per_host_max: u32,
    },
    /// All these VMs in one domain, by default on one host.
    Affinity {
        /// The VMs to keep together.
        vms: BTreeSet<VmId>,
        /// In how large a place.
        #[serde(default, skip_serializing_if = "Domain::is_host")]
        domain: Domain,
    },
    /// These VMs only on these hosts. Without hosts nothing satisfies it.
    VmHost {
        /// The VMs bound.
        vms: BTreeSet<VmId>,
        /// The hosts they may use.
        hosts: BTreeSet<HostId>,
    },
    /// These VMs on none of these hosts.
    VmNotHost {
        /// The VMs bound.
        vms: BTreeSet<VmId>,
        /// The hosts they may not use.
        hosts: BTreeSet<HostId>,
    },
    /// These VMs over several failure domains.
    Spread {
        /// The VMs to spread.
        vms: BTreeSet<VmId>,
        /// What fails together.
        domain: Domain,
        /// The fewest domains that must have one of them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        domains_min: Option<u32>,
        /// The most of them in one domain.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        per_domain_max: Option<u32>,
    },
    /// Wherever one of these VMs is, one of those it needs is in the same domain.
    Near {
        /// The VMs that depend on others.
        vms: BTreeSet<VmId>,
        /// The VMs they depend on.
        needs: BTreeSet<VmId>,
        /// How near.
        #[serde(default, skip_serializing_if = "Domain::is_host")]
        domain: Domain,
    },
    /// These VMs on at most so many of these hosts at once: a licence per host.
    HostCap {
        /// The VMs that need the licence.
        vms: BTreeSet<VmId>,
        /// The hosts that are counted.
        hosts: BTreeSet<HostId>,
        /// The most hosts of the group that may run one of the VMs.
        hosts_max: u32,
    },
    /// All these VMs on hosts of one and the same group.
    Among {
        /// The VMs bound.
        vms: BTreeSet<VmId>,
        /// The groups to choose one of.
        groups: Vec<BTreeSet<HostId>>,
    },
}

/// Whether a rule may be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strength {
    /// Never broken by Ballast.
    Must,
    /// Broken when nothing else fits; mended when something does.
    Should {
        /// How much it counts against other preferences, 1 to [`WEIGHT_MAX`].
        weight: u32,
    },
}

/// When a hard rule has to hold. Preferences are looked at when a plan has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// When the plan has ended; while it runs the rule may be broken.
    Discrete,
    /// At every moment; a VM that moves counts on both hosts.
    Continuous,
}

impl Strength {
    /// A preference that counts once.
    pub const SHOULD: Self = Self::Should { weight: 1 };

    /// Whether it is hard.
    pub const fn is_must(self) -> bool {
        matches!(self, Self::Must)
    }
}

impl Hold {
    /// Its name in files and commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Continuous => "continuous",
        }
    }
}

impl Rule {
    /// A hard rule, never written, that holds as rules of its kind do.
    pub fn must(id: RuleId, kind: RuleKind) -> Self {
        let hold = kind.hold_default();
        Self { id, revision: Revision(0), strength: Strength::Must, hold, kind }
    }

    /// A preference of weight 1, never written.
    pub fn should(id: RuleId, kind: RuleKind) -> Self {
        Self { strength: Strength::SHOULD, ..Self::must(id, kind) }
    }

    /// Checks that it means something, whatever exists: enough names, bounds in range.
    ///
    /// # Errors
    /// `InvalidArgument` naming the rule and what is wrong with it.
    pub fn validate(&self) -> Result<(), Refusal> {
        let invalid = |reason: String, remedy: &str| {
            let reason = format!("rule {}: {reason}", self.id);
            Err(Refusal::new(RefusalCode::InvalidArgument, reason, remedy))
        };
        if let Strength::Should { weight } = self.strength
            && !(1..=WEIGHT_MAX).contains(&weight)
        {
            return invalid(format!("its weight is {weight}"), "use a weight of 1 to 1000");
        }
        let vms = self.kind.vms().len();
        if vms == 0 {
            return invalid("it names no VM".into(), "name the VMs it binds");
        }
        match &self.kind {
            RuleKind::AntiAffinity { per_host_max: 0, .. } => {
                invalid("at most 0 VMs on a host".into(), "allow at least one on a host")
            }
            RuleKind::Spread { domains_min: None, per_domain_max: None, .. } => invalid(
                "it sets no bound".into(),
                "say in how many domains at least, or how many in one domain at most",
            ),
            RuleKind::Spread { per_domain_max: Some(0), .. } => {
                invalid("at most 0 VMs in a domain".into(), "allow at least one in a domain")
            }
            RuleKind::Spread { domains_min: Some(min), .. } if *min as usize > vms => invalid(
                format!("{vms} VMs cannot be in {min} domains"),
                "ask for no more domains than VMs",
            ),
            RuleKind::Near { needs, .. } if needs.is_empty() => {
                invalid("it names nothing to be near to".into(), "name the VMs that are needed")
            }
            RuleKind::Among { groups, .. } if groups.is_empty() || groups.len() > GROUPS_MAX => {
                invalid(format!("it names {} groups", groups.len()), "name 1 to 1000 groups")
            }
            _ => Ok(()),
        }
    }
}

impl RuleKind {
    /// Its name in files and in the audit.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::AntiAffinity { .. } => "anti_affinity",
            Self::Affinity { .. } => "affinity",
            Self::VmHost { .. } => "vm_host",
            Self::VmNotHost { .. } => "vm_not_host",
            Self::Spread { .. } => "spread",
            Self::Near { .. } => "near",
            Self::HostCap { .. } => "host_cap",
            Self::Among { .. } => "among",
        }
    }

    /// What it demands of its VMs, in words that follow their names.
    pub fn demand(&self) -> String {
        match self {
            Self::AntiAffinity { per_host_max, .. } => format!("at most {per_host_max} on a host"),
            Self::Affinity { domain, .. } => format!("together on one {domain}"),
            Self::VmHost { hosts, .. } => format!("only on {}", list(hosts)),
            Self::VmNotHost { hosts, .. } => format!("never on {}", list(hosts)),
            Self::Spread { domain, domains_min, per_domain_max, .. } => {
                let min = domains_min.map(|min| format!("at least {min} different {domain}"));
                let max = per_domain_max.map(|max| format!("at most {max} on a {domain}"));
                [min, max].into_iter().flatten().collect::<Vec<_>>().join(", ")
            }
            Self::Near { needs, domain, .. } => {
                format!("where their {domain} has one of {}", list(needs))
            }
            Self::HostCap { hosts, hosts_max, .. } => {
                format!("on at most {hosts_max} of {}", list(hosts))
            }
            Self::Among { groups, .. } => {
                let groups: Vec<String> = groups.iter().map(list).collect();
                format!("all on one of {}", groups.join(" | "))
            }
        }
    }

    /// When a rule of this kind holds unless it says otherwise: at every moment where VMs can move one by one without
    /// breaking it, else when the plan has ended.
    pub const fn hold_default(&self) -> Hold {
        match self {
            Self::Affinity { .. } | Self::Near { .. } | Self::Among { .. } => Hold::Discrete,
            _ => Hold::Continuous,
        }
    }

    /// The VMs it binds.
    pub const fn vms(&self) -> &BTreeSet<VmId> {
        match self {
            Self::AntiAffinity { vms, .. }
            | Self::Affinity { vms, .. }
            | Self::VmHost { vms, .. }
            | Self::VmNotHost { vms, .. }
            | Self::Spread { vms, .. }
            | Self::Near { vms, .. }
            | Self::HostCap { vms, .. }
            | Self::Among { vms, .. } => vms,
        }
    }

    /// Every VM it names: those it binds and those they need.
    pub fn vms_named(&self) -> impl Iterator<Item = &VmId> {
        let needs = match self {
            Self::Near { needs, .. } => Some(needs),
            _ => None,
        };
        self.vms().iter().chain(needs.into_iter().flatten())
    }

    /// Every host it names.
    pub fn hosts_named(&self) -> impl Iterator<Item = &HostId> {
        let (one, many): (Option<&BTreeSet<HostId>>, &[BTreeSet<HostId>]) = match self {
            Self::VmHost { hosts, .. }
            | Self::VmNotHost { hosts, .. }
            | Self::HostCap { hosts, .. } => (Some(hosts), &[]),
            Self::Among { groups, .. } => (None, groups),
            _ => (None, &[]),
        };
        one.into_iter().chain(many).flatten()
    }

    /// The rule as far as it concerns VMs and hosts that exist; `None` when it binds none of them any more, or when
    /// everything that they need is gone. What is left of a valid rule is valid.
    ///
    /// VMs that are gone leave a rule that those still there can satisfy: they cannot be in more domains than there are
    /// VMs. Hosts that are gone leave a rule that is harder to satisfy, down to one that nothing satisfies: that is for
    /// the planner to report, not for anybody to drop.
    #[must_use]
    pub fn of_the_present(
        &self,
        is_vm: impl Fn(&VmId) -> bool,
        is_host: impl Fn(&HostId) -> bool,
    ) -> Option<Self> {
        let mut kind = self.clone();
        let keep_hosts = |hosts: &mut BTreeSet<HostId>| hosts.retain(&is_host);
        let vms = match &mut kind {
            Self::AntiAffinity { vms, .. }
            | Self::Affinity { vms, .. }
            | Self::Spread { vms, .. } => vms,
            Self::Near { vms, needs, .. } => {
                needs.retain(&is_vm);
                vms
            }
            Self::VmHost { vms, hosts }
            | Self::VmNotHost { vms, hosts }
            | Self::HostCap { vms, hosts, .. } => {
                keep_hosts(hosts);
                vms
            }
            Self::Among { vms, groups } => {
                groups.iter_mut().for_each(keep_hosts);
                vms
            }
        };
        vms.retain(is_vm);
        let left = u32::try_from(vms.len()).unwrap_or(u32::MAX);
        if let Self::Spread { domains_min: Some(min), .. } = &mut kind {
            *min = left.min(*min);
        }
        // One VM alone is apart from, and together with, the others that are gone.
        let concerns = match &kind {
            Self::AntiAffinity { vms, .. } | Self::Affinity { vms, .. } => vms.len() > 1,
            Self::Near { vms, needs, .. } => !vms.is_empty() && !needs.is_empty(),
            _ => !kind.vms().is_empty(),
        };
        concerns.then_some(kind)
    }
}

/// `a, b, c and 9 more`.
fn list<T: fmt::Display>(names: &BTreeSet<T>) -> String {
    const SHOWN_MAX: usize = 8;
    if names.is_empty() {
        return "nothing".to_owned();
    }
    let shown: Vec<String> = names.iter().take(SHOWN_MAX).map(T::to_string).collect();
    let more = names.len().saturating_sub(SHOWN_MAX);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    shown.join(", ") + &rest
}

const fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature serde asks for
const fn is_one(n: &u32) -> bool {
    *n == 1
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    fn names<T: FromStr<Err: fmt::Debug> + Ord>(names: &[&str]) -> BTreeSet<T> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn a_rule_whose_hosts_are_gone_stays_as_one_that_nothing_satisfies() {
        let kind = RuleKind::VmHost { vms: names(&["a", "gone"]), hosts: names(&["x"]) };
        let now = kind.of_the_present(|vm| vm.as_str() != "gone", |_| false).unwrap();
        assert_eq!(now, RuleKind::VmHost { vms: names(&["a"]), hosts: BTreeSet::new() });
        assert_eq!(kind.of_the_present(|_| false, |_| true), None);
    }

    #[test]
    fn one_vm_alone_is_apart_from_those_that_are_gone() {
        let kind = RuleKind::AntiAffinity { vms: names(&["a", "b"]), per_host_max: 1 };
        assert_eq!(kind.of_the_present(|vm| vm.as_str() == "a", |_| true), None);
    }

    #[test]
    fn what_is_left_of_a_valid_rule_is_valid() {
        let (vms, hosts) = (|| names::<VmId>(&["a", "b", "c"]), || names::<HostId>(&["x", "y"]));
        let domain = Domain::default();
        let kinds = [
            RuleKind::AntiAffinity { vms: vms(), per_host_max: 2 },
            RuleKind::Affinity { vms: vms(), domain: domain.clone() },
            RuleKind::VmHost { vms: vms(), hosts: hosts() },
            RuleKind::VmNotHost { vms: vms(), hosts: hosts() },
            RuleKind::Spread {
                vms: vms(),
                domain: domain.clone(),
                domains_min: Some(3),
                per_domain_max: None,
            },
            RuleKind::Near { vms: names(&["a"]), needs: names(&["b", "c"]), domain },
            RuleKind::HostCap { vms: vms(), hosts: hosts(), hosts_max: 1 },
            RuleKind::Among { vms: vms(), groups: vec![hosts()] },
        ];
        for kind in kinds {
            let id: RuleId = "r".parse().unwrap();
            Rule::must(id.clone(), kind.clone()).validate().unwrap();
            for present in 0..8_u32 {
                let is_vm = |vm: &VmId| {
                    ["a", "b", "c"]
                        .iter()
                        .position(|name| vm.as_str() == *name)
                        .is_some_and(|n| present & (1 << n) != 0)
                };
                for has_hosts in [true, false] {
                    if let Some(left) = kind.of_the_present(is_vm, |_| has_hosts) {
                        Rule::must(id.clone(), left).validate().unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn what_needs_only_what_is_gone_is_bound_to_nothing() {
        let kind = RuleKind::Near {
            vms: names(&["app"]),
            needs: names(&["db"]),
            domain: Domain::default(),
        };
        assert_eq!(kind.of_the_present(|vm| vm.as_str() == "app", |_| true), None);
    }

    #[test]
    fn rules_that_mean_nothing_are_named() {
        let id: RuleId = "r".parse().unwrap();
        let vms = || names::<VmId>(&["a", "b"]);
        let rack = || "rack".parse::<Domain>().unwrap();
        let bad = [
            (RuleKind::AntiAffinity { vms: vms(), per_host_max: 0 }, "at most 0"),
            (RuleKind::Affinity { vms: BTreeSet::new(), domain: rack() }, "no VM"),
            (
                RuleKind::Spread {
                    vms: vms(),
                    domain: rack(),
                    domains_min: None,
                    per_domain_max: None,
                },
                "no bound",
            ),
            (
                RuleKind::Spread {
                    vms: vms(),
                    domain: rack(),
                    domains_min: Some(3),
                    per_domain_max: None,
                },
                "2 VMs cannot be in 3 domains",
            ),
            (RuleKind::Among { vms: vms(), groups: vec![] }, "0 groups"),
        ];
        for (kind, words) in bad {
            let refusal = Rule::must(id.clone(), kind).validate().unwrap_err();
            assert!(refusal.reason.contains(words), "{refusal}");
        }
    }
}
