//! Rules that hold at every moment, counted with every VM wherever it may be while a step runs.
//!
//! A rule that was broken before the first step may be mended, and must not get worse.

use std::collections::BTreeSet;

use super::Checker;
use crate::door::problem::{HostIx, RuleIx, VmIx};
use crate::door::rules::{NO_DOMAIN, RuleBody, RuleInfo};

impl Checker<'_, '_> {
    /// Every rule that binds the VM of step `n`, or that the VM serves, holds or is no worse than before the first step.
    pub(super) fn check_rules(&self, n: usize) -> Result<(), String> {
        let (vm, from, to) = self.moves[n];
        for (ix, _) in &self.problem.vm(vm).rules {
            let rule = self.problem.rule(*ix);
            let is_apart = matches!(rule.body, RuleBody::Apart { .. });
            let stays = is_apart && rule.domain[from.0] == rule.domain[to.0];
            if !rule.is_continuous() || stays {
                continue;
            }
            let now = |vm: VmIx| self.hosts_of(vm, n);
            let before = |vm: VmIx| {
                let info = self.problem.vm(vm);
                [Some(info.host), info.bound_for].into_iter().flatten().collect()
            };
            if fault(rule, to, &now) > fault(rule, to, &before) {
                return Err(format!("rule {}: {}", rule.id, self.what_may_be(n, *ix)));
            }
        }
        Ok(())
    }

    /// How the rule may be broken, in words.
    fn what_may_be(&self, n: usize, rule: RuleIx) -> String {
        let ((vm, _, to), info) = (self.moves[n], self.problem.rule(rule));
        let near = |host: &HostIx| info.domain[host.0] == info.domain[to.0];
        let there = |other: &&VmIx| **other != vm && self.hosts_of(**other, n).iter().any(near);
        match (&info.body, info.vms.iter().find(there)) {
            (RuleBody::Apart { .. }, Some(other)) => {
                format!("VM {} may still be there", self.problem.vm(*other).id)
            }
            _ => "it may be broken meanwhile".to_owned(),
        }
    }
}

/// How far a rule may be from holding when each VM is on any of the hosts that `hosts_of` names, or on all. VMs to be kept
/// apart are counted where the step leads: other domains are the business of the steps that lead there.
fn fault(rule: &RuleInfo<'_>, to: HostIx, hosts_of: &dyn Fn(VmIx) -> Vec<HostIx>) -> usize {
    let domains = |vm: &VmIx| -> BTreeSet<u32> {
        let domains = hosts_of(*vm).into_iter().map(|host| rule.domain[host.0]);
        domains.filter(|domain| *domain != NO_DOMAIN).collect()
    };
    match &rule.body {
        RuleBody::Hosts { allowed } => {
            let astray = |vm: &VmIx| hosts_of(*vm).iter().filter(|host| !allowed[host.0]).count();
            rule.vms.iter().map(astray).sum()
        }
        RuleBody::Apart { most } => {
            let there = |vm: &&VmIx| domains(vm).contains(&rule.domain[to.0]);
            rule.vms.iter().filter(there).count().saturating_sub(*most as usize)
        }
        RuleBody::Within { most } => {
            let all: BTreeSet<u32> = rule.vms.iter().flat_map(domains).collect();
            all.len().saturating_sub(*most as usize)
        }
        RuleBody::Distinct { least } => {
            let possible = rule.vms.len().min(*least as usize);
            possible.saturating_sub(surely_distinct(rule.vms.iter().map(domains)))
        }
        RuleBody::Near => {
            let sure = |vm: &VmIx| Some(domains(vm)).filter(|all| all.len() == 1);
            let company: BTreeSet<u32> = rule.needs.iter().filter_map(sure).flatten().collect();
            rule.vms.iter().flat_map(domains).filter(|domain| !company.contains(domain)).count()
        }
        RuleBody::Among { groups } => {
            let all: Vec<HostIx> = rule.vms.iter().flat_map(|vm| hosts_of(*vm)).collect();
            let inside = |group: &Vec<bool>| all.iter().filter(|host| group[host.0]).count();
            all.len() - groups.iter().map(inside).max().unwrap_or(0)
        }
    }
}

/// So many domains have a VM at least, whichever of its own each is in: VMs that cannot leave theirs first, then those
/// that have no domain in common with the ones counted.
fn surely_distinct(vms: impl Iterator<Item = BTreeSet<u32>>) -> usize {
    let mut all: Vec<BTreeSet<u32>> = vms.collect();
    all.sort_by_key(BTreeSet::len);
    let (mut counted, mut sure) = (BTreeSet::new(), 0);
    for domains in all.into_iter().filter(|domains| !domains.is_empty()) {
        if domains.is_disjoint(&counted) {
            counted.extend(domains);
            sure += 1;
        }
    }
    sure
}
