//! What each kind of rule demands, in numbers, and how far a state is from it.
//!
//! Most kinds count their VMs by domain, so one table of counts a rule is all
//! that a move has to keep up to date. A rule's *fault* is how much would have
//! to change for it to hold: zero when it does.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ballast_model::rule::{Domain, Hold, Strength};
use ballast_model::{ClusterSnapshot, HostId, Rule, RuleId, RuleKind, VmId};

use super::problem::{HostIx, VmIx};

/// A rule, or one of the two bounds of a spread rule, which are told apart nowhere but here.
pub(crate) struct RuleInfo<'a> {
    pub(crate) id: &'a RuleId,
    pub(crate) strength: Strength,
    pub(crate) hold: Hold,
    pub(crate) body: RuleBody,
    /// The VMs it binds.
    pub(crate) vms: Vec<VmIx>,
    /// The VMs that those need; only of a `Near` rule.
    pub(crate) needs: Vec<VmIx>,
    /// By host, the domain it counts in; [`NO_DOMAIN`]: it does not count. Rules that count alike share one list.
    pub(crate) domain: Arc<[u32]>,
    /// Whether every host is a domain of its own.
    pub(crate) is_by_host: bool,
}

/// The domain of a host that a rule does not count.
pub(crate) const NO_DOMAIN: u32 = u32::MAX;

pub(crate) enum RuleBody {
    /// Only where the flag of the host is set.
    Hosts { allowed: Vec<bool> },
    /// At most so many in a domain.
    Apart { most: u32 },
    /// In at least so many domains.
    Distinct { least: u32 },
    /// In at most so many domains: one for affinity, as many hosts as are licensed for a cap.
    Within { most: u32 },
    /// Each in a domain with one of those it needs.
    Near,
    /// All in one group; by group a flag a host.
    Among { groups: Vec<Vec<bool>> },
}

impl RuleInfo<'_> {
    pub(crate) fn is_must(&self) -> bool {
        self.strength.is_must()
    }

    /// How much a broken preference counts.
    pub(crate) fn weight(&self) -> u64 {
        match self.strength {
            Strength::Must => 0,
            Strength::Should { weight } => u64::from(weight),
        }
    }

    /// Whether it has to hold while a plan runs.
    pub(crate) fn is_continuous(&self) -> bool {
        self.is_must() && self.hold == Hold::Continuous
    }
}

/// The rules of a snapshot in numbers. Newcomers without a host are numbered like the others.
pub(crate) fn number<'a>(
    snapshot: &'a ClusterSnapshot,
    hosts: &HashMap<&HostId, HostIx>,
    vms: &HashMap<&VmId, VmIx>,
) -> Vec<RuleInfo<'a>> {
    let mut rules = Vec::with_capacity(snapshot.rules.len());
    let mut shared: BTreeMap<&Domain, Arc<[u32]>> = BTreeMap::new();
    let each_its_own = Domain::default();
    for rule in snapshot.rules.values() {
        for body in bodies(rule, hosts) {
            let by = match &rule.kind {
                RuleKind::Affinity { domain, .. }
                | RuleKind::Spread { domain, .. }
                | RuleKind::Near { domain, .. } => domain,
                _ => &each_its_own,
            };
            let all = shared.entry(by).or_insert_with(|| domains(snapshot, by));
            let domain = counted(snapshot, rule, &body, all);
            let numbers = |names: &mut dyn Iterator<Item = &VmId>| -> Vec<VmIx> {
                names.filter_map(|vm| vms.get(vm).copied()).collect()
            };
            let needs = match &rule.kind {
                RuleKind::Near { needs, .. } => numbers(&mut needs.iter()),
                _ => Vec::new(),
            };
            rules.push(RuleInfo {
                id: &rule.id,
                strength: rule.strength,
                hold: rule.hold,
                vms: numbers(&mut rule.kind.vms().iter()),
                needs,
                domain,
                is_by_host: by.is_host(),
                body,
            });
        }
    }
    rules
}

fn bodies(rule: &Rule, hosts: &HashMap<&HostId, HostIx>) -> Vec<RuleBody> {
    let flags = |names: &std::collections::BTreeSet<HostId>, wanted: bool| {
        let mut flags = vec![!wanted; hosts.len()];
        names.iter().filter_map(|host| hosts.get(host)).for_each(|host| flags[host.0] = wanted);
        flags
    };
    match &rule.kind {
        RuleKind::AntiAffinity { per_host_max, .. } => {
            vec![RuleBody::Apart { most: *per_host_max }]
        }
        RuleKind::Affinity { .. } => vec![RuleBody::Within { most: 1 }],
        RuleKind::VmHost { hosts, .. } => vec![RuleBody::Hosts { allowed: flags(hosts, true) }],
        RuleKind::VmNotHost { hosts, .. } => vec![RuleBody::Hosts { allowed: flags(hosts, false) }],
        RuleKind::Spread { domains_min, per_domain_max, .. } => {
            let most = per_domain_max.map(|most| RuleBody::Apart { most });
            let least = domains_min.map(|least| RuleBody::Distinct { least });
            most.into_iter().chain(least).collect()
        }
        RuleKind::Near { .. } => vec![RuleBody::Near],
        RuleKind::HostCap { hosts_max, .. } => vec![RuleBody::Within { most: *hosts_max }],
        RuleKind::Among { groups, .. } => {
            let groups = groups.iter().map(|group| flags(group, true)).collect();
            vec![RuleBody::Among { groups }]
        }
    }
}

/// By host, in order of names, the number of its domain.
fn domains(snapshot: &ClusterSnapshot, by: &Domain) -> Arc<[u32]> {
    let mut numbers: HashMap<String, u32> = HashMap::new();
    let of_host = |(id, host): (&HostId, &ballast_model::Host)| {
        let next = u32::try_from(numbers.len()).unwrap_or(NO_DOMAIN - 1);
        *numbers.entry(by.of(id, &host.labels)).or_insert(next)
    };
    snapshot.hosts.iter().map(of_host).collect()
}

/// The same without the hosts that the rule does not count.
fn counted(
    snapshot: &ClusterSnapshot,
    rule: &Rule,
    body: &RuleBody,
    all: &Arc<[u32]>,
) -> Arc<[u32]> {
    match (&rule.kind, body) {
        (RuleKind::HostCap { hosts, .. }, _) => {
            let counts = |host: &HostId| hosts.contains(host);
            let only = |(id, domain): (&HostId, &u32)| {
                if counts(id) { *domain } else { NO_DOMAIN }
            };
            snapshot.hosts.keys().zip(all.iter()).map(only).collect()
        }
        (_, RuleBody::Hosts { .. } | RuleBody::Among { .. }) => {
            all.iter().map(|_| NO_DOMAIN).collect()
        }
        _ => Arc::clone(all),
    }
}

/// The counts a rule needs, kept up to date move by move. A VM in flight counts in the domains of both hosts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// By domain, how many of the VMs bound are in it.
    count: BTreeMap<u32, u32>,
    /// By domain, how many of the VMs needed are in it.
    needed: BTreeMap<u32, u32>,
    /// By group, how many of the VMs bound are on its hosts.
    inside: Vec<u32>,
    /// VMs bound that are anywhere.
    placed: u32,
    /// VMs where they must not be: on hosts not allowed, too many in a domain, or without one they need.
    astray: u32,
}

impl Tally {
    pub(crate) fn new(rule: &RuleInfo<'_>) -> Self {
        let groups = match &rule.body {
            RuleBody::Among { groups } => groups.len(),
            _ => 0,
        };
        Self { inside: vec![0; groups], ..Self::default() }
    }

    /// A VM comes to (`+1`) or leaves (`-1`) a host; `bound` and `needed` say what it is to the rule.
    pub(crate) fn note(&mut self, rule: &RuleInfo<'_>, host: HostIx, role: Role, by: i32) {
        let domain = rule.domain[host.0];
        let before = self.astray_in(rule, domain);
        if role.bound {
            self.placed = self.placed.saturating_add_signed(by);
            match &rule.body {
                RuleBody::Hosts { allowed } if !allowed[host.0] => {
                    self.astray = self.astray.saturating_add_signed(by);
                }
                RuleBody::Among { groups } => {
                    for (inside, group) in self.inside.iter_mut().zip(groups) {
                        if group[host.0] {
                            *inside = inside.saturating_add_signed(by);
                        }
                    }
                }
                _ => {}
            }
            bump(&mut self.count, domain, by);
        }
        if role.needed {
            bump(&mut self.needed, domain, by);
        }
        self.astray = (self.astray + self.astray_in(rule, domain)).saturating_sub(before);
    }

    /// How many of the VMs in a domain are there wrongly, by what is in that domain alone.
    fn astray_in(&self, rule: &RuleInfo<'_>, domain: u32) -> u32 {
        let count = || self.count.get(&domain).copied().unwrap_or(0);
        match &rule.body {
            RuleBody::Apart { most } => count().saturating_sub(*most),
            RuleBody::Near if !self.needed.contains_key(&domain) => count(),
            _ => 0,
        }
    }

    /// VMs in a domain: those bound, or those needed.
    pub(crate) fn in_domain(&self, domain: u32, needed: bool) -> u32 {
        let counts = if needed { &self.needed } else { &self.count };
        counts.get(&domain).copied().unwrap_or(0)
    }

    /// Domains with at least one of the VMs bound.
    pub(crate) fn domains(&self) -> u32 {
        u32::try_from(self.count.len()).unwrap_or(u32::MAX)
    }

    /// VMs bound that are anywhere; one in flight is twice.
    pub(crate) fn placed(&self) -> u32 {
        self.placed
    }

    /// VMs bound in the domain of `host`.
    pub(crate) fn near(&self, rule: &RuleInfo<'_>, host: HostIx) -> u32 {
        self.count.get(&rule.domain[host.0]).copied().unwrap_or(0)
    }

    /// VMs needed in the domain of `host`.
    pub(crate) fn needed_near(&self, rule: &RuleInfo<'_>, host: HostIx) -> u32 {
        self.needed.get(&rule.domain[host.0]).copied().unwrap_or(0)
    }

    /// Whether `host` is in a domain that counts, and `most` others have more of the VMs bound; of equal ones the first
    /// come first.
    pub(crate) fn is_beyond_fullest(&self, rule: &RuleInfo<'_>, host: HostIx, most: u32) -> bool {
        let own = rule.domain[host.0];
        let Some(count) = self.count.get(&own) else { return false };
        let is_before =
            |(domain, other): &(&u32, &u32)| (Reverse(*other), *domain) < (Reverse(count), &own);
        self.count.iter().filter(is_before).count() >= most as usize
    }

    /// The group that has most of the VMs.
    pub(crate) fn best_group(&self) -> Option<usize> {
        let most = self.inside.iter().max()?;
        self.inside.iter().position(|inside| inside == most)
    }

    /// How far the rule is from holding.
    pub(crate) fn fault(&self, rule: &RuleInfo<'_>) -> u32 {
        match &rule.body {
            RuleBody::Hosts { .. } | RuleBody::Apart { .. } | RuleBody::Near => self.astray,
            RuleBody::Distinct { least } => {
                let possible = (*least).min(self.placed);
                possible.saturating_sub(self.domains())
            }
            RuleBody::Within { most } => self.domains().saturating_sub(*most),
            RuleBody::Among { .. } => {
                self.placed - self.inside.iter().max().copied().unwrap_or(0).min(self.placed)
            }
        }
    }
}

/// What a VM is to a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Role {
    /// The rule binds it.
    pub(crate) bound: bool,
    /// Those bound need it.
    pub(crate) needed: bool,
}

fn bump(counts: &mut BTreeMap<u32, u32>, domain: u32, by: i32) {
    if domain == NO_DOMAIN {
        return;
    }
    let count = counts.entry(domain).or_default();
    *count = count.saturating_add_signed(by);
    if *count == 0 {
        counts.remove(&domain);
    }
}
