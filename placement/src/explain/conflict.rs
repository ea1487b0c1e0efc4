//! Rules that cannot be kept together, whatever is done: a small core of them.
//!
//! What counts are the hosts as they are built: capacity, labels, what they
//! offer. Whether one drains or is silent today does not count, and VMs that no
//! rule names can go elsewhere. So what is refused here is refused for good.

use std::collections::BTreeSet;

use ballast_model::{ClusterSnapshot, HostId, Refusal, RefusalCode, Rule, RuleId, VmId};

use super::search::{Answer, Demand, Effort, search};

/// The most rules that are looked at together; more are cut to those next to the rule in question.
const RULES_MAX: usize = 200;

/// Hard rules that cannot all be kept, none of which could be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The rules, in order of names. Empty when a VM fits no host even without rules.
    pub rules: Vec<RuleId>,
    /// Why, in words.
    pub why: String,
}

/// Hard rules of the snapshot that cannot all be kept by any placement; `None` when there are none, or none are found
/// within a bounded search.
///
/// # Errors
/// `InvalidArgument`: the snapshot does not fit together.
pub fn conflict(snapshot: &ClusterSnapshot) -> Result<Option<Conflict>, Refusal> {
    snapshot.validate()?;
    let hard: Vec<&Rule> = snapshot.rules.values().filter(|rule| rule.strength.is_must()).collect();
    let mut left: BTreeSet<&RuleId> = hard.iter().map(|rule| &rule.id).collect();
    while let Some(first) = left.first() {
        let group = neighbourhood(&hard, first);
        left.retain(|id| group.iter().all(|rule| rule.id != **id));
        if let Some(conflict) = core(snapshot, group) {
            return Ok(Some(conflict));
        }
    }
    Ok(None)
}

/// Whether `rule`, written into the snapshot, can be kept together with the hard rules that are there.
///
/// # Errors
/// - `InvalidArgument`: the snapshot, or the rule in it, does not fit together
/// - `RuleViolation`: no placement on the present hosts keeps it and the rules that the reason names
pub fn check_rule(snapshot: &ClusterSnapshot, rule: &Rule) -> Result<(), Refusal> {
    rule.validate()?;
    if !rule.strength.is_must() {
        return Ok(());
    }
    let hard = snapshot.rules.values().filter(|other| other.strength.is_must());
    let others = hard.filter(|other| other.id != rule.id);
    let all: Vec<&Rule> = others.chain([rule]).collect();
    match core(snapshot, neighbourhood(&all, &rule.id)) {
        // Rules that were in conflict before are not this one's fault.
        Some(conflict) if conflict.rules.contains(&rule.id) || conflict.rules.is_empty() => {
            let others: Vec<String> =
                conflict.rules.iter().filter(|id| **id != rule.id).map(RuleId::to_string).collect();
            let with = match others.is_empty() {
                true => "on the present hosts".to_owned(),
                false => format!("together with {}", others.join(", ")),
            };
            Err(Refusal::new(
                RefusalCode::RuleViolation,
                format!("rule {} cannot be kept {with}: {}", rule.id, conflict.why),
                "change one of these rules, make it a preference, or write it with --force",
            ))
        }
        _ => Ok(()),
    }
}

/// The rules that share a VM or a named host with `first`, directly or over others.
pub(super) fn neighbourhood<'r>(rules: &[&'r Rule], first: &RuleId) -> Vec<&'r Rule> {
    let (mut vms, mut hosts) = (BTreeSet::<&VmId>::new(), BTreeSet::<&HostId>::new());
    let mut found: Vec<&Rule> = Vec::new();
    let mut rest: Vec<&Rule> = rules.to_vec();
    loop {
        let touches = |rule: &&Rule| {
            rule.id == *first
                || rule.kind.vms_named().any(|vm| vms.contains(vm))
                || rule.kind.hosts_named().any(|host| hosts.contains(host))
        };
        let (near, far): (Vec<&Rule>, Vec<&Rule>) = rest.into_iter().partition(touches);
        rest = far;
        if near.is_empty() || found.len() >= RULES_MAX {
            found.truncate(RULES_MAX);
            return found;
        }
        for rule in &near {
            vms.extend(rule.kind.vms_named());
            hosts.extend(rule.kind.hosts_named());
        }
        found.extend(near);
    }
}

/// A core of the rules.
fn core<'a>(snapshot: &'a ClusterSnapshot, rules: Vec<&'a Rule>) -> Option<Conflict> {
    let demands = rules.into_iter().map(Demand::Rule).collect();
    let (core, why) = by_deletion(snapshot, demands, &mut Effort::unbounded())?;
    let id = |demand: Demand<'_>| match demand {
        Demand::Rule(rule) => Some(rule.id.clone()),
        Demand::Closed(_) | Demand::Stays(_) => None,
    };
    let mut rules: Vec<RuleId> = core.into_iter().filter_map(id).collect();
    rules.sort();
    Some(Conflict { rules, why })
}

/// A core by deletion: what can be left out while the rest stays impossible is left out. With why the core is impossible.
pub(super) fn by_deletion<'a>(
    snapshot: &'a ClusterSnapshot,
    mut demands: Vec<Demand<'a>>,
    effort: &mut Effort,
) -> Option<(Vec<Demand<'a>>, String)> {
    let Answer::Impossible(mut why) = search(snapshot, &demands, effort) else { return None };
    let mut n = 0;
    while n < demands.len() {
        let mut fewer = demands.clone();
        fewer.remove(n);
        if let Answer::Impossible(reason) = search(snapshot, &fewer, effort) {
            (demands, why) = (fewer, reason);
        } else {
            n += 1;
        }
    }
    Some((demands, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;

    /// A cluster of three 16 GiB hosts in two racks with VMs a to e of 4 GiB, `big` of 12 GiB, and these rules.
    fn found(rules: &str) -> Option<(String, String)> {
        let hosts = "host h1 8 16G rack=r1 : a 1 4G, b 1 4G, c 1 4G\n\
             host h2 8 16G rack=r1 offers=ssd : d 1 4G, e 1 4G\nhost h3 8 16G rack=r2 : big 1 12G\n";
        let snapshot = parse(&format!("{hosts}{rules}")).unwrap().snapshot;
        conflict(&snapshot).unwrap().map(|conflict| {
            let names: Vec<String> = conflict.rules.iter().map(RuleId::to_string).collect();
            (names.join(" "), conflict.why)
        })
    }

    fn check(rules: &str, core: &str, words: &str) {
        let (names, why) = found(rules).unwrap();
        assert_eq!(names, core, "{why}");
        assert!(why.contains(words), "{why}");
    }

    #[test]
    fn what_can_be_kept_is_no_conflict() {
        assert_eq!(found("rule x: a b c apart\nrule y: a only on h1 h2\n"), None);
        assert_eq!(found("rule x: a b c d e big together on rack\n"), None);
        let both = "rule x: a b spread over rack min 2 max 1\nrule y: a near b on rack\n";
        check(both, "x y", "");
    }

    #[test]
    fn more_vms_than_hosts_cannot_be_apart() {
        check("rule x: a b c d apart\nrule y: e only on h1\n", "x", "4 VMs");
        check("rule x: a b c apart\nrule y: a b c never on h3\n", "x y", "3 VMs");
        assert_eq!(found("rule x: a b c d apart max 2\n"), None);
    }

    #[test]
    fn a_vm_with_nowhere_to_go_is_named() {
        check("rule x: a only on h1\nrule y: a never on h1\n", "x y", "VM a");
        check("rule x: big d together\nrule y: e only on h2\nrule z: a d together\n", "x z", "");
    }

    #[test]
    fn together_needs_room_for_all() {
        check("rule x: a b c d e together\n", "x", "");
        check("rule x: a b together\nrule y: a b apart\n", "x y", "");
    }

    #[test]
    fn spread_and_caps_count_domains_and_hosts() {
        check("rule x: a b c spread over rack min 3\n", "x", "");
        check("rule x: a b c spread over rack max 1\n", "x", "3 VMs");
        check("rule x: a b c apart\nrule y: a b c at most 2 of h1 h2 h3\n", "x y", "");
        check("rule x: a d among h1 | h3\nrule y: d only on h2\n", "x y", "");
    }

    #[test]
    fn a_new_rule_is_refused_with_those_it_conflicts_with() {
        let text = "host h1 8 16G : a 1 4G, b 1 4G\nhost h2 8 16G\nrule pin: a b only on h1\n";
        let snapshot = parse(text).unwrap().snapshot;
        let rule = parse(&format!("{text}rule apart: a b apart\n")).unwrap().snapshot.rules;
        let rule = &rule[&"apart".parse().unwrap()];
        let refusal = check_rule(&snapshot, rule).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::RuleViolation);
        assert!(refusal.reason.contains("together with pin"), "{refusal}");
        let soft = Rule { strength: ballast_model::rule::Strength::SHOULD, ..rule.clone() };
        check_rule(&snapshot, &soft).unwrap();
    }
}
