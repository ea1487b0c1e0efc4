//! Placement rules.

use std::collections::BTreeSet;

use ballast_model::rule::{Domain, Hold, Strength};
use ballast_model::{HostId, Refusal, Revision, Rule, RuleKind, VmId};

use super::field::{host_id, invalid, required, rule_id, vm_id};
use crate::v1;
use crate::v1::rule::Kind;

/// The most VMs or hosts one rule may name.
pub const RULE_MEMBERS_MAX: usize = 10_000;

impl From<&Rule> for v1::Rule {
    fn from(rule: &Rule) -> Self {
        let (strength, weight) = match rule.strength {
            Strength::Must => (v1::RuleStrength::Must, 0),
            Strength::Should { weight } => (v1::RuleStrength::Should, weight),
        };
        let hold = match rule.hold {
            Hold::Discrete => v1::RuleHold::Discrete,
            Hold::Continuous => v1::RuleHold::Continuous,
        };
        Self {
            id: rule.id.to_string(),
            revision: rule.revision.0,
            kind: Some(kind_to_wire(&rule.kind)),
            strength: strength.into(),
            weight,
            hold: hold.into(),
        }
    }
}

fn kind_to_wire(kind: &RuleKind) -> Kind {
    match kind {
        RuleKind::AntiAffinity { vms, per_host_max } => {
            Kind::AntiAffinity(v1::AntiAffinity { vms: texts(vms), per_host_max: *per_host_max })
        }
        RuleKind::Affinity { vms, domain } => {
            Kind::Affinity(v1::Affinity { vms: texts(vms), domain: domain.to_string() })
        }
        RuleKind::VmHost { vms, hosts } => {
            Kind::VmHost(v1::VmHost { vms: texts(vms), hosts: texts(hosts) })
        }
        RuleKind::VmNotHost { vms, hosts } => {
            Kind::VmNotHost(v1::VmNotHost { vms: texts(vms), hosts: texts(hosts) })
        }
        RuleKind::Spread { vms, domain, domains_min, per_domain_max } => Kind::Spread(v1::Spread {
            vms: texts(vms),
            domain: domain.to_string(),
            domains_min: domains_min.unwrap_or(0),
            per_domain_max: per_domain_max.unwrap_or(0),
        }),
        RuleKind::Near { vms, needs, domain } => Kind::Near(v1::Near {
            vms: texts(vms),
            needs: texts(needs),
            domain: domain.to_string(),
        }),
        RuleKind::HostCap { vms, hosts, hosts_max } => Kind::HostCap(v1::HostCap {
            vms: texts(vms),
            hosts: texts(hosts),
            hosts_max: *hosts_max,
        }),
        RuleKind::Among { vms, groups } => Kind::Among(v1::Among {
            vms: texts(vms),
            groups: groups.iter().map(|hosts| v1::HostGroup { hosts: texts(hosts) }).collect(),
        }),
    }
}

impl TryFrom<v1::Rule> for Rule {
    type Error = Refusal;

    /// Checks names and bounds, and that the rule names enough VMs and hosts to mean something.
    fn try_from(message: v1::Rule) -> Result<Self, Refusal> {
        let kind = kind_from_wire(required(message.kind, "rule.kind")?)?;
        let strength = match v1::RuleStrength::try_from(message.strength) {
            Ok(v1::RuleStrength::Should) => Strength::Should { weight: message.weight.max(1) },
            Ok(v1::RuleStrength::Must | v1::RuleStrength::Unspecified) if message.weight == 0 => {
                Strength::Must
            }
            Ok(_) => {
                return Err(invalid(
                    "rule.weight",
                    "belongs to a rule that should hold, not to one that must",
                    "leave the weight out, or make the rule a preference",
                ));
            }
            Err(_) => return Err(unknown("rule.strength", message.strength)),
        };
        let hold = match v1::RuleHold::try_from(message.hold) {
            Ok(v1::RuleHold::Unspecified) => kind.hold_default(),
            Ok(v1::RuleHold::Discrete) => Hold::Discrete,
            Ok(v1::RuleHold::Continuous) => Hold::Continuous,
            Err(_) => return Err(unknown("rule.hold", message.hold)),
        };
        let id = rule_id(&message.id, "rule.id")?;
        let rule = Self { id, revision: Revision(message.revision), strength, hold, kind };
        rule.validate()?;
        Ok(rule)
    }
}

fn kind_from_wire(kind: Kind) -> Result<RuleKind, Refusal> {
    Ok(match kind {
        Kind::AntiAffinity(rule) => RuleKind::AntiAffinity {
            vms: vms(&rule.vms, "rule.anti_affinity.vms", 2)?,
            per_host_max: rule.per_host_max.max(1),
        },
        Kind::Affinity(rule) => RuleKind::Affinity {
            vms: vms(&rule.vms, "rule.affinity.vms", 2)?,
            domain: domain(&rule.domain, "rule.affinity.domain")?,
        },
        Kind::VmHost(rule) => RuleKind::VmHost {
            vms: vms(&rule.vms, "rule.vm_host.vms", 1)?,
            hosts: hosts(&rule.hosts, "rule.vm_host.hosts")?,
        },
        Kind::VmNotHost(rule) => RuleKind::VmNotHost {
            vms: vms(&rule.vms, "rule.vm_not_host.vms", 1)?,
            hosts: hosts(&rule.hosts, "rule.vm_not_host.hosts")?,
        },
        Kind::Spread(rule) => RuleKind::Spread {
            vms: vms(&rule.vms, "rule.spread.vms", 2)?,
            domain: domain(&rule.domain, "rule.spread.domain")?,
            domains_min: (rule.domains_min > 0).then_some(rule.domains_min),
            per_domain_max: (rule.per_domain_max > 0).then_some(rule.per_domain_max),
        },
        Kind::Near(rule) => RuleKind::Near {
            vms: vms(&rule.vms, "rule.near.vms", 1)?,
            needs: vms(&rule.needs, "rule.near.needs", 1)?,
            domain: domain(&rule.domain, "rule.near.domain")?,
        },
        Kind::HostCap(rule) => RuleKind::HostCap {
            vms: vms(&rule.vms, "rule.host_cap.vms", 1)?,
            hosts: hosts(&rule.hosts, "rule.host_cap.hosts")?,
            hosts_max: rule.hosts_max,
        },
        Kind::Among(rule) => RuleKind::Among {
            vms: vms(&rule.vms, "rule.among.vms", 1)?,
            groups: groups(&rule.groups)?,
        },
    })
}

fn unknown(field: &str, value: i32) -> Refusal {
    invalid(field, format!("has the unknown value {value}"), "bring both ends to the same version")
}

fn domain(text: &str, field: &str) -> Result<Domain, Refusal> {
    if text.is_empty() {
        return Ok(Domain::default());
    }
    text.parse().map_err(|refusal: Refusal| invalid(field, refusal.reason, refusal.remedy))
}

fn groups(groups: &[v1::HostGroup]) -> Result<Vec<BTreeSet<HostId>>, Refusal> {
    let field = "rule.among.groups";
    let all: usize = groups.iter().map(|group| group.hosts.len()).sum();
    if groups.len() > ballast_model::rule::GROUPS_MAX || all > RULE_MEMBERS_MAX {
        return Err(invalid(
            field,
            format!("lists {} groups with {all} names", groups.len()),
            format!("list at most {RULE_MEMBERS_MAX} names in all"),
        ));
    }
    groups.iter().map(|group| hosts(&group.hosts, field)).collect()
}

fn texts<T: ToString>(names: &BTreeSet<T>) -> Vec<String> {
    names.iter().map(T::to_string).collect()
}

fn vms(names: &[String], field: &str, least: usize) -> Result<BTreeSet<VmId>, Refusal> {
    members(names, field, least, vm_id)
}

fn hosts(names: &[String], field: &str) -> Result<BTreeSet<HostId>, Refusal> {
    members(names, field, 1, host_id)
}

fn members<T: Ord>(
    names: &[String],
    field: &str,
    least: usize,
    parse: impl Fn(&str, &str) -> Result<T, Refusal>,
) -> Result<BTreeSet<T>, Refusal> {
    let parse = |name: &String| parse(name, field);
    let set: BTreeSet<T> =
        names.iter().take(RULE_MEMBERS_MAX).map(parse).collect::<Result<_, _>>()?;
    if names.len() > RULE_MEMBERS_MAX || set.len() < least {
        return Err(invalid(
            field,
            format!("lists {} names, {} of them different", names.len(), set.len()),
            format!("list {least} to {RULE_MEMBERS_MAX} different names"),
        ));
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names<T: std::str::FromStr<Err: std::fmt::Debug> + Ord + std::fmt::Debug>(
        least: usize,
    ) -> impl Strategy<Value = BTreeSet<T>> {
        prop::collection::btree_set("[a-z][a-z0-9-]{0,8}", least..6)
            .prop_map(|set| set.iter().map(|name| name.parse().unwrap()).collect())
    }

    fn any_domain() -> impl Strategy<Value = Domain> {
        prop_oneof![Just("host"), Just("rack"), Just("room/rack")]
            .prop_map(|text| text.parse().unwrap())
    }

    fn any_kind() -> impl Strategy<Value = RuleKind> {
        let bound = || prop::option::of(1_u32..3);
        prop_oneof![
            (names(2), 1_u32..4)
                .prop_map(|(vms, per_host_max)| RuleKind::AntiAffinity { vms, per_host_max }),
            (names(2), any_domain()).prop_map(|(vms, domain)| RuleKind::Affinity { vms, domain }),
            (names(1), names(1)).prop_map(|(vms, hosts)| RuleKind::VmHost { vms, hosts }),
            (names(1), names(1)).prop_map(|(vms, hosts)| RuleKind::VmNotHost { vms, hosts }),
            (names(2), any_domain(), 1_u32..3, bound()).prop_map(|(vms, domain, min, max)| {
                RuleKind::Spread { vms, domain, domains_min: Some(min), per_domain_max: max }
            }),
            (names(1), names(1), any_domain()).prop_map(|(vms, needs, domain)| RuleKind::Near {
                vms,
                needs,
                domain
            }),
            (names(1), names(1), any::<u32>())
                .prop_map(|(vms, hosts, hosts_max)| RuleKind::HostCap { vms, hosts, hosts_max }),
            (names(1), prop::collection::vec(names(1), 1..3))
                .prop_map(|(vms, groups)| RuleKind::Among { vms, groups }),
        ]
    }

    proptest! {
        #[test]
        fn rules_survive_the_wire(
            kind in any_kind(),
            revision: u64,
            weight in prop::option::of(1_u32..=1000),
            discrete: bool,
        ) {
            let strength = weight.map_or(Strength::Must, |weight| Strength::Should { weight });
            let hold = if discrete { Hold::Discrete } else { Hold::Continuous };
            let id = "apart".parse().unwrap();
            let rule = Rule { id, revision: Revision(revision), strength, hold, kind };
            prop_assert_eq!(Rule::try_from(v1::Rule::from(&rule)), Ok(rule));
        }
    }

    fn check_refused(rule: v1::Rule, expected: &str) {
        let refusal = Rule::try_from(v1::Rule { id: "r".into(), ..rule }).unwrap_err();
        assert!(refusal.reason.contains(expected), "{refusal}");
    }

    fn of_kind(kind: Kind) -> v1::Rule {
        v1::Rule { kind: Some(kind), ..v1::Rule::default() }
    }

    #[test]
    fn rules_that_mean_nothing_are_refused() {
        check_refused(v1::Rule::default(), "field rule.kind: is missing");
        let twice = v1::AntiAffinity { vms: vec!["a".into(), "a".into()], per_host_max: 0 };
        check_refused(of_kind(Kind::AntiAffinity(twice)), "lists 2 names, 1 of them different");
        let host = |vm: &str, hosts: &[&str]| {
            let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
            of_kind(Kind::VmHost(v1::VmHost { vms: vec![vm.into()], hosts }))
        };
        check_refused(host("a", &[]), "field rule.vm_host.hosts");
        check_refused(host("A", &["h"]), "\"A\" is not a VM name");
        check_refused(v1::Rule { weight: 3, ..host("a", &["h"]) }, "field rule.weight");
        check_refused(v1::Rule { hold: 9, ..host("a", &["h"]) }, "unknown value 9");
        let spread = v1::Spread { vms: vec!["a".into(), "b".into()], ..v1::Spread::default() };
        check_refused(of_kind(Kind::Spread(spread)), "rule r: it sets no bound");
    }

    #[test]
    fn what_is_left_out_is_as_usual() {
        let vms = vec!["a".into(), "b".into()];
        let rule = of_kind(Kind::Affinity(v1::Affinity { vms, domain: String::new() }));
        let rule = Rule::try_from(v1::Rule { id: "r".into(), ..rule }).unwrap();
        assert_eq!((rule.strength, rule.hold), (Strength::Must, Hold::Discrete));
    }
}
