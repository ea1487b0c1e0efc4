//! Placement rules.

use std::collections::BTreeSet;

use ballast_model::rule::Strength;
use ballast_model::{HostId, Refusal, Revision, Rule, RuleKind, VmId};

use super::field::{host_id, invalid, required, rule_id, vm_id};
use crate::v1;

/// The most VMs or hosts one rule may name.
pub const RULE_MEMBERS_MAX: usize = 10_000;

impl From<&Rule> for v1::Rule {
    fn from(rule: &Rule) -> Self {
        let kind = match &rule.kind {
            RuleKind::AntiAffinity { vms } => {
                v1::rule::Kind::AntiAffinity(v1::AntiAffinity { vms: texts(vms) })
            }
            RuleKind::VmHost { vms, hosts, strength } => v1::rule::Kind::VmHost(v1::VmHost {
                vms: texts(vms),
                hosts: texts(hosts),
                must: *strength == Strength::Must,
            }),
        };
        Self { id: rule.id.to_string(), revision: rule.revision.0, kind: Some(kind) }
    }
}

impl TryFrom<v1::Rule> for Rule {
    type Error = Refusal;

    /// Checks names, and that the rule names enough VMs and hosts to mean something.
    fn try_from(message: v1::Rule) -> Result<Self, Refusal> {
        let kind = match required(message.kind, "rule.kind")? {
            v1::rule::Kind::AntiAffinity(rule) => {
                RuleKind::AntiAffinity { vms: vms(&rule.vms, "rule.anti_affinity.vms", 2)? }
            }
            v1::rule::Kind::VmHost(rule) => RuleKind::VmHost {
                vms: vms(&rule.vms, "rule.vm_host.vms", 1)?,
                hosts: hosts(&rule.hosts, "rule.vm_host.hosts")?,
                strength: if rule.must { Strength::Must } else { Strength::Should },
            },
        };
        Ok(Self {
            id: rule_id(&message.id, "rule.id")?,
            revision: Revision(message.revision),
            kind,
        })
    }
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

    fn any_kind() -> impl Strategy<Value = RuleKind> {
        prop_oneof![
            names(2).prop_map(|vms| RuleKind::AntiAffinity { vms }),
            (names(1), names(1), any::<bool>()).prop_map(|(vms, hosts, must)| {
                let strength = if must { Strength::Must } else { Strength::Should };
                RuleKind::VmHost { vms, hosts, strength }
            }),
        ]
    }

    proptest! {
        #[test]
        fn rules_survive_the_wire(kind in any_kind(), revision: u64) {
            let rule = Rule { id: "apart".parse().unwrap(), revision: Revision(revision), kind };
            prop_assert_eq!(Rule::try_from(v1::Rule::from(&rule)), Ok(rule));
        }
    }

    fn check_refused(kind: Option<v1::rule::Kind>, expected: &str) {
        let refusal = Rule::try_from(v1::Rule { id: "r".into(), revision: 0, kind }).unwrap_err();
        assert!(refusal.reason.contains(expected), "{refusal}");
    }

    #[test]
    fn rules_that_mean_nothing_are_refused() {
        use v1::rule::Kind;
        check_refused(None, "field rule.kind: is missing");
        let twice = v1::AntiAffinity { vms: vec!["a".into(), "a".into()] };
        check_refused(Some(Kind::AntiAffinity(twice)), "lists 2 names, 1 of them different");
        let nowhere = v1::VmHost { vms: vec!["a".into()], hosts: vec![], must: true };
        check_refused(Some(Kind::VmHost(nowhere)), "field rule.vm_host.hosts");
        let bad = v1::VmHost { vms: vec!["A".into()], hosts: vec!["h".into()], must: true };
        check_refused(Some(Kind::VmHost(bad)), "\"A\" is not a VM name");
    }
}
