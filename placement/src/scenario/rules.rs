//! Rules as sentences: `rule NAME (should 3): a b apart`.

use std::collections::BTreeSet;

use ballast_model::rule::{Domain, Hold, Strength};
use ballast_model::{HostId, Rule, RuleKind, VmId};

use super::words::Words;

/// The words that end the list of VMs a rule begins with.
const VERBS: [&str; 8] = ["apart", "together", "only", "never", "spread", "near", "at", "among"];

/// Reads what stands after `rule`.
pub(super) fn rule(text: &str) -> Result<Rule, String> {
    let (head, sentence) = text.split_once(':').ok_or("expected ':' after the rule's name")?;
    let (name, manner) = match head.split_once('(') {
        Some((name, rest)) => (name, rest.trim_end().strip_suffix(')').ok_or("expected ')'")?),
        None => (head, ""),
    };
    let id = name.trim().parse().map_err(|error| format!("{error}"))?;
    let mut rule = Rule::must(id, kind(&mut Words::of(sentence))?);
    for part in manner.split(',') {
        let mut words = Words::of(part);
        match words.peek() {
            None => {}
            Some("must") => drop(words.word("strength")?),
            Some("should") => {
                words.word("strength")?;
                let weight = if words.peek().is_some() { words.parse("weight")? } else { 1 };
                rule.strength = Strength::Should { weight };
            }
            Some("discrete") => {
                words.word("hold")?;
                rule.hold = Hold::Discrete;
            }
            Some("continuous") => {
                words.word("hold")?;
                rule.hold = Hold::Continuous;
            }
            Some(other) => return Err(format!("'{other}' is no manner of a rule")),
        }
        words.end()?;
    }
    Ok(rule)
}

fn kind(words: &mut Words<'_>) -> Result<RuleKind, String> {
    let vms: BTreeSet<VmId> = words.names(&VERBS)?.into_iter().collect();
    let kind = match words.word("what the rule demands, e.g. 'apart'")? {
        "apart" => {
            let per_host_max = if words.take("max") { words.parse("a count")? } else { 1 };
            RuleKind::AntiAffinity { vms, per_host_max }
        }
        "together" => RuleKind::Affinity { vms, domain: domain(words)? },
        "only" => {
            words.expect("on")?;
            RuleKind::VmHost { vms, hosts: hosts(words)? }
        }
        "never" => {
            words.expect("on")?;
            RuleKind::VmNotHost { vms, hosts: hosts(words)? }
        }
        "spread" => {
            words.expect("over")?;
            let domain = words.parse("a domain")?;
            let domains_min = if words.take("min") { Some(words.parse("a count")?) } else { None };
            let per_domain_max =
                if words.take("max") { Some(words.parse("a count")?) } else { None };
            RuleKind::Spread { vms, domain, domains_min, per_domain_max }
        }
        "near" => {
            let needs = words.names(&["on"])?.into_iter().collect();
            RuleKind::Near { vms, needs, domain: domain(words)? }
        }
        "at" => {
            words.expect("most")?;
            let hosts_max = words.parse("a count")?;
            words.expect("of")?;
            RuleKind::HostCap { vms, hosts: hosts(words)?, hosts_max }
        }
        _ => {
            let mut groups = vec![words.names(&["|"])?.into_iter().collect()];
            while words.take("|") {
                groups.push(words.names(&["|"])?.into_iter().collect());
            }
            RuleKind::Among { vms, groups }
        }
    };
    words.end()?;
    Ok(kind)
}

fn hosts(words: &mut Words<'_>) -> Result<BTreeSet<HostId>, String> {
    Ok(words.names(&[])?.into_iter().collect())
}

/// `on rack`, or nothing for hosts.
fn domain(words: &mut Words<'_>) -> Result<Domain, String> {
    if words.take("on") { words.parse("a domain") } else { Ok(Domain::default()) }
}
