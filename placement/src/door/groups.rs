//! VMs that hard rules hold together: where one of them goes, others may have to follow.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::problem::{Problem, RuleIx, VmIx};
use super::rules::{RuleBody, RuleInfo};
use super::state::State;

/// Some VMs in groups: two are in one when a hard rule that ties names both, or a chain of such rules leads from one to
/// the other.
pub(crate) struct Groups {
    groups: Vec<Vec<VmIx>>,
    /// The number of each VM's group.
    of: HashMap<VmIx, usize>,
}

impl Groups {
    /// The groups of `vms`, each in their order; VMs that are not among them join nothing.
    pub(crate) fn new(problem: &Problem<'_>, vms: &[VmIx]) -> Self {
        let among: HashSet<VmIx> = vms.iter().copied().collect();
        let mut of = HashMap::new();
        let mut followed: HashSet<RuleIx> = HashSet::new();
        let mut count = 0;
        for vm in vms {
            if of.contains_key(vm) {
                continue;
            }
            let mut open = vec![*vm];
            of.insert(*vm, count);
            while let Some(vm) = open.pop() {
                for (ix, _) in &problem.vm(vm).rules {
                    let rule = problem.rule(*ix);
                    if !ties(rule) || !followed.insert(*ix) {
                        continue;
                    }
                    let named = rule.vms.iter().chain(&rule.needs);
                    for other in named.filter(|other| among.contains(other)) {
                        if !of.contains_key(other) {
                            of.insert(*other, count);
                            open.push(*other);
                        }
                    }
                }
            }
            count += 1;
        }
        let mut groups = vec![Vec::new(); count];
        vms.iter().for_each(|vm| groups[of[vm]].push(*vm));
        Self { groups, of }
    }

    /// The VMs that are in one group with this one, itself included; none when it is not among those grouped.
    pub(crate) fn with(&self, vm: VmIx) -> &[VmIx] {
        self.of.get(&vm).map_or(&[], |group| &self.groups[*group])
    }

    /// All groups, in the order of their first VMs.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[VmIx]> {
        self.groups.iter().map(Vec::as_slice)
    }
}

/// Whether the rule forbids VMs to part.
fn ties(rule: &RuleInfo<'_>) -> bool {
    let ties =
        matches!(rule.body, RuleBody::Within { .. } | RuleBody::Near | RuleBody::Among { .. });
    rule.is_must() && ties
}

/// Whether a rule that has to hold only in the end ties the VM to others: with them it may go where it cannot go alone.
pub(crate) fn is_tied(problem: &Problem<'_>, vm: VmIx) -> bool {
    let mut rules = problem.vm(vm).rules.iter().map(|(ix, _)| problem.rule(*ix));
    rules.any(|rule| ties(rule) && !rule.is_continuous())
}

/// Whether a rule holds the VM where it is as long as the others stay that the rule ties to it: wherever it went alone,
/// they would be parted.
pub(crate) fn is_held(state: &State<'_, '_>, vm: VmIx) -> bool {
    let problem = state.problem;
    problem.vm(vm).rules.iter().any(|(ix, _)| {
        let rule = problem.rule(*ix);
        let is_one = matches!(rule.body, RuleBody::Within { most: 1 }) && rule.is_by_host;
        let are_here = || {
            let tally = state.tally(*ix);
            tally.domains() == 1 && tally.near(rule, state.at(vm)) > 1
        };
        is_one && rule.is_must() && are_here()
    })
}

/// Whether a rule that ties these VMs is about more than single hosts: they may be on different ones of a rack, or of a
/// group of hosts.
pub(crate) fn may_spread(problem: &Problem<'_>, vms: &[VmIx]) -> bool {
    rules_of(problem, vms)
        .into_iter()
        .map(|ix| problem.rule(ix))
        .any(|rule| ties(rule) && (matches!(rule.body, RuleBody::Among { .. }) || !rule.is_by_host))
}

/// The rules that name one of these VMs.
fn rules_of(problem: &Problem<'_>, vms: &[VmIx]) -> BTreeSet<RuleIx> {
    vms.iter().flat_map(|vm| problem.vm(*vm).rules.iter().map(|(ix, _)| *ix)).collect()
}

/// How far each hard rule that names one of these VMs is from holding.
pub(crate) fn hard_faults(state: &State<'_, '_>, vms: &[VmIx]) -> Vec<(RuleIx, u32)> {
    let problem = state.problem;
    let hard = rules_of(problem, vms).into_iter().filter(|ix| problem.rule(*ix).is_must());
    hard.map(|rule| (rule, state.fault(rule))).collect()
}

/// The weight of the preferences that name one of these VMs and are not met.
pub(crate) fn weight_missed(state: &State<'_, '_>, vms: &[VmIx]) -> u64 {
    let weight = |ix: RuleIx| u64::from(state.fault(ix)) * state.problem.rule(ix).weight();
    rules_of(state.problem, vms).into_iter().map(weight).sum()
}

/// Whether no rule is further from holding than it was.
pub(crate) fn is_as_whole(state: &State<'_, '_>, faults: &[(RuleIx, u32)]) -> bool {
    faults.iter().all(|(rule, fault)| state.fault(*rule) <= *fault)
}
