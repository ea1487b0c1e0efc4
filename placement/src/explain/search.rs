//! Whether any placement keeps a set of rules: counting first, then a bounded search.
//!
//! Only VMs that the rules name take part. A host must have the memory of those
//! it gets, and what they need. The search is complete within its bound: it
//! answers [`Answer::Impossible`] only when it has seen that nothing works.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use ballast_model::plan::Constraint;
use ballast_model::{ClusterSnapshot, Host, HostId, Rule, RuleKind, VmId};

/// The most assignments tried for one question.
const TRIES_MAX: usize = 20_000;
/// The most VM-host pairs looked at; a larger question is not answered.
const PAIRS_MAX: usize = 2_000_000;
/// The most VMs that are placed one after the other; for more, counting has to do.
const DEPTH_MAX: usize = 500;

/// What a placement has to meet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Demand<'a> {
    /// A hard rule holds.
    Rule(&'a Rule),
    /// A host takes no VMs.
    Closed(&'a HostId),
    /// A VM stays where it is.
    Stays(&'a VmId),
}

impl Demand<'_> {
    pub(super) fn named(self) -> Constraint {
        match self {
            Self::Rule(rule) => Constraint::Rule { rule: rule.id.clone() },
            Self::Closed(host) => Constraint::Closed { host: host.clone() },
            Self::Stays(vm) => Constraint::Stays { vm: vm.clone() },
        }
    }
}

/// How much may be looked at in several searches together.
#[derive(Debug)]
pub(super) struct Effort {
    tries: usize,
    pairs: usize,
}

impl Effort {
    /// As much as each search allows itself.
    pub(super) fn unbounded() -> Self {
        Self { tries: usize::MAX, pairs: usize::MAX }
    }

    /// For all questions about one plan: some tens of milliseconds.
    pub(super) fn of_a_plan() -> Self {
        Self { tries: TRIES_MAX, pairs: PAIRS_MAX / 10 }
    }

    fn take_try(&mut self) -> bool {
        take(&mut self.tries, 1)
    }

    fn take_pairs(&mut self, pairs: usize) -> bool {
        pairs <= PAIRS_MAX && take(&mut self.pairs, pairs)
    }
}

/// Takes `some` of what is left; nothing is left when that is not enough.
fn take(left: &mut usize, some: usize) -> bool {
    let rest = left.checked_sub(some);
    *left = rest.unwrap_or(0);
    rest.is_some()
}

/// What is known about a set of demands.
pub(super) enum Answer {
    /// Some placement meets them, or none was found to be impossible within the bound.
    Perhaps,
    /// No placement does, and why.
    Impossible(String),
}

/// Whether the hosts can meet all these demands for the VMs that the rules among them name.
pub(super) fn search(
    snapshot: &ClusterSnapshot,
    demands: &[Demand<'_>],
    effort: &mut Effort,
) -> Answer {
    let Some(mut board) = Board::new(snapshot, demands, effort) else { return Answer::Perhaps };
    if let Some(why) = board.by_counting(effort) {
        return Answer::Impossible(why);
    }
    if board.vms.len() > DEPTH_MAX {
        return Answer::Perhaps;
    }
    match board.place(0, effort) {
        Some(false) => Answer::Impossible(
            "every way to place their VMs breaks one of them or takes more memory than a host has"
                .to_owned(),
        ),
        Some(true) | None => Answer::Perhaps,
    }
}

struct Board<'a> {
    rules: Vec<&'a Rule>,
    vms: Vec<&'a VmId>,
    memory: Vec<u64>,
    hosts: Vec<&'a HostId>,
    /// Hosts with the same number are the same to all rules, as long as both are empty.
    alike: Vec<usize>,
    /// Memory left, by host.
    room: Vec<u64>,
    /// By VM, hosts that it may use, alone.
    open: Vec<Vec<usize>>,
    /// By rule and host, the domain the rule sees it in.
    domain: Vec<Vec<usize>>,
    /// By rule, the VMs it binds and those they need.
    bound: Vec<Vec<usize>>,
    needed: Vec<Vec<usize>>,
    rules_of: Vec<Vec<usize>>,
    at: Vec<Option<usize>>,
    on: Vec<usize>,
    tries: usize,
}

impl<'a> Board<'a> {
    /// `None` when the question is too large to be answered.
    fn new(
        snapshot: &'a ClusterSnapshot,
        demands: &[Demand<'a>],
        effort: &mut Effort,
    ) -> Option<Self> {
        let (mut rules, mut closed, mut staying) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for demand in demands {
            match demand {
                Demand::Rule(rule) => rules.push(*rule),
                Demand::Closed(host) => drop(closed.insert(*host)),
                Demand::Stays(vm) => drop(staying.insert(*vm)),
            }
        }
        let named: BTreeSet<&VmId> = rules.iter().flat_map(|rule| rule.kind.vms_named()).collect();
        let hosts: Vec<&Host> =
            snapshot.hosts.values().filter(|host| !closed.contains(&host.id)).collect();
        if !effort.take_pairs(named.len().saturating_mul(hosts.len())) {
            return None;
        }
        let open = |vm: &VmId| {
            let mut open = open_hosts(snapshot, &rules, &hosts, vm);
            if let Some(at) = snapshot.vms.get(vm).filter(|_| staying.contains(vm)) {
                open.retain(|host| hosts[*host].id == at.host);
            }
            open
        };
        let mut vms: Vec<(Vec<usize>, &VmId)> =
            named.into_iter().map(|vm| (open(vm), vm)).collect();
        // The VMs with the fewest choices, then the largest, first: dead ends show early.
        let size = |vm: &VmId| snapshot.vms.get(vm).map_or(0, |vm| vm.size.memory.get());
        vms.sort_by_key(|(open, vm)| (open.len(), u64::MAX - size(vm), *vm));
        let (open, vms): (Vec<_>, Vec<&VmId>) = vms.into_iter().unzip();
        let number: HashMap<&VmId, usize> =
            vms.iter().enumerate().map(|(n, vm)| (*vm, n)).collect();
        let numbers = |set: &BTreeSet<VmId>| set.iter().map(|vm| number[vm]).collect::<Vec<_>>();
        let bound: Vec<Vec<usize>> = rules.iter().map(|rule| numbers(rule.kind.vms())).collect();
        let needed: Vec<Vec<usize>> = rules
            .iter()
            .map(|rule| match &rule.kind {
                RuleKind::Near { needs, .. } => numbers(needs),
                _ => Vec::new(),
            })
            .collect();
        let mut rules_of = vec![Vec::new(); vms.len()];
        for (n, (bound, needed)) in bound.iter().zip(&needed).enumerate() {
            for vm in bound.iter().chain(needed).copied().collect::<BTreeSet<usize>>() {
                rules_of[vm].push(n);
            }
        }
        let overcommit = snapshot.policy.memory_overcommit.get();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
        let room = |host: &&Host| (host.capacity.memory.get() as f64 * overcommit) as u64;
        Some(Self {
            memory: vms.iter().map(|vm| size(vm)).collect(),
            alike: alike(&hosts, &rules),
            room: hosts.iter().map(room).collect(),
            domain: rules.iter().map(|rule| domains(&hosts, rule)).collect(),
            at: vec![None; vms.len()],
            on: vec![0; hosts.len()],
            hosts: hosts.iter().map(|host| &host.id).collect(),
            vms,
            open,
            bound,
            needed,
            rules_of,
            rules,
            tries: 0,
        })
    }

    /// What cannot be for lack of hosts or domains, seen by counting.
    fn by_counting(&self, effort: &mut Effort) -> Option<String> {
        if let Some(vm) = self.open.iter().position(Vec::is_empty) {
            return Some(format!("no host may and can run VM {}", self.vms[vm]));
        }
        for (n, rule) in self.rules.iter().enumerate() {
            let (each, place) = match &rule.kind {
                RuleKind::AntiAffinity { per_host_max, .. } => (*per_host_max, "host"),
                RuleKind::Spread { per_domain_max: Some(max), .. } => (*max, "domain"),
                _ => continue,
            };
            let seated = self.seated(n, each as usize, effort)?;
            let wanted = self.bound[n].len();
            if seated < wanted {
                return Some(format!(
                    "of the {wanted} VMs of rule {} at most {seated} find a place with {each} on a {place}",
                    rule.id
                ));
            }
        }
        None
    }

    /// How many of the rule's VMs find a seat when each domain has so many: a maximum matching by augmenting paths.
    /// `None` when the effort ends before.
    fn seated(&self, rule: usize, seats: usize, effort: &mut Effort) -> Option<usize> {
        let mut taken: HashMap<usize, Vec<usize>> = HashMap::new();
        let wanted: HashMap<usize, BTreeSet<usize>> = self.bound[rule]
            .iter()
            .map(|vm| (*vm, self.open[*vm].iter().map(|host| self.domain[rule][*host]).collect()))
            .collect();
        let mut seated = 0;
        for vm in &self.bound[rule] {
            let mut visited = HashSet::new();
            seated += usize::from(augment(*vm, seats, &wanted, &mut taken, &mut visited));
            if !effort.take_pairs(visited.len()) {
                return None;
            }
        }
        Some(seated)
    }

    /// Places VM `n` and all after it: whether that can be done, `None` when the bound is reached.
    fn place(&mut self, n: usize, effort: &mut Effort) -> Option<bool> {
        if n == self.vms.len() {
            return Some(true);
        }
        let mut seen = HashSet::new();
        for choice in 0..self.open[n].len() {
            let host = self.open[n][choice];
            // Of empty hosts that are alike one is enough.
            if self.on[host] == 0 && !seen.insert(self.alike[host])
                || self.memory[n] > self.room[host]
            {
                continue;
            }
            self.tries += 1;
            if self.tries > TRIES_MAX || !effort.take_try() {
                return None;
            }
            self.put(n, host);
            let well = self.rules_of[n].iter().all(|rule| self.can_still_hold(*rule));
            let answer = if well { self.place(n + 1, effort) } else { Some(false) };
            self.take(n, host);
            if answer != Some(false) {
                return answer;
            }
        }
        Some(false)
    }

    fn put(&mut self, vm: usize, host: usize) {
        self.at[vm] = Some(host);
        self.room[host] -= self.memory[vm];
        self.on[host] += 1;
    }

    fn take(&mut self, vm: usize, host: usize) {
        self.at[vm] = None;
        self.room[host] += self.memory[vm];
        self.on[host] -= 1;
    }

    /// Whether the rule holds for the VMs placed, or can come to hold with those that are not.
    fn can_still_hold(&self, n: usize) -> bool {
        let rule = self.rules[n];
        let placed: Vec<usize> = self.bound[n].iter().filter_map(|vm| self.at[*vm]).collect();
        let open = self.bound[n].len() - placed.len();
        let mut in_domain: BTreeMap<usize, u32> = BTreeMap::new();
        for host in &placed {
            *in_domain.entry(self.domain[n][*host]).or_default() += 1;
        }
        let most = in_domain.values().copied().max().unwrap_or(0);
        match &rule.kind {
            // Where each VM may be, alone, is in `open` already.
            RuleKind::VmHost { .. } | RuleKind::VmNotHost { .. } => true,
            RuleKind::AntiAffinity { per_host_max, .. } => most <= *per_host_max,
            RuleKind::Affinity { .. } => in_domain.len() <= 1,
            RuleKind::Spread { domains_min, per_domain_max, .. } => {
                let min = domains_min.unwrap_or(0) as usize;
                most <= per_domain_max.unwrap_or(u32::MAX) && in_domain.len() + open >= min
            }
            RuleKind::Near { .. } => {
                let needs: Vec<Option<usize>> =
                    self.needed[n].iter().map(|vm| self.at[*vm]).collect();
                let undecided = needs.iter().any(Option::is_none);
                let there: BTreeSet<usize> =
                    needs.into_iter().flatten().map(|host| self.domain[n][host]).collect();
                undecided || in_domain.keys().all(|domain| there.contains(domain))
            }
            // Hosts outside the group share domain 0, which is not counted.
            RuleKind::HostCap { hosts_max, .. } => {
                in_domain.keys().filter(|domain| **domain > 0).count() <= *hosts_max as usize
            }
            RuleKind::Among { groups, .. } => groups
                .iter()
                .any(|group| placed.iter().all(|host| group.contains(self.hosts[*host]))),
        }
    }
}

/// Finds `vm` a seat, making others change theirs.
fn augment(
    vm: usize,
    seats: usize,
    wanted: &HashMap<usize, BTreeSet<usize>>,
    taken: &mut HashMap<usize, Vec<usize>>,
    visited: &mut HashSet<usize>,
) -> bool {
    let Some(domains) = wanted.get(&vm) else { return false };
    for domain in domains {
        if !visited.insert(*domain) {
            continue;
        }
        let sitting = taken.entry(*domain).or_default();
        if sitting.len() < seats {
            sitting.push(vm);
            return true;
        }
        for (seat, other) in sitting.clone().into_iter().enumerate() {
            if augment(other, seats, wanted, taken, visited) {
                if let Some(sitting) = taken.get_mut(domain) {
                    sitting[seat] = vm;
                }
                return true;
            }
        }
    }
    false
}

/// The hosts that may and can run the VM when it is alone.
fn open_hosts(
    snapshot: &ClusterSnapshot,
    rules: &[&Rule],
    hosts: &[&Host],
    vm: &VmId,
) -> Vec<usize> {
    let Some(placed) = snapshot.vms.get(vm) else { return (0..hosts.len()).collect() };
    let overcommit = snapshot.policy.memory_overcommit.get();
    let may = |host: &Host| {
        rules.iter().filter(|rule| rule.kind.vms().contains(vm)).all(|rule| match &rule.kind {
            RuleKind::VmHost { hosts, .. } => hosts.contains(&host.id),
            RuleKind::VmNotHost { hosts, .. } => !hosts.contains(&host.id),
            RuleKind::Among { groups, .. } => groups.iter().any(|group| group.contains(&host.id)),
            _ => true,
        })
    };
    let can = |host: &Host| {
        let memory = host.capacity.memory.get() as f64 * overcommit;
        placed.size.memory.get() as f64 <= memory && placed.needs.is_subset(&host.offers)
    };
    (0..hosts.len()).filter(|n| may(hosts[*n]) && can(hosts[*n])).collect()
}

/// By host, the number of the domain the rule sees it in.
fn domains(hosts: &[&Host], rule: &Rule) -> Vec<usize> {
    let name = |host: &Host| match &rule.kind {
        RuleKind::Affinity { domain, .. }
        | RuleKind::Spread { domain, .. }
        | RuleKind::Near { domain, .. } => domain.of(&host.id, &host.labels),
        _ => host.id.to_string(),
    };
    let mut numbers: HashMap<String, usize> = HashMap::new();
    hosts
        .iter()
        .map(|host| {
            if let RuleKind::HostCap { hosts: counted, .. } = &rule.kind
                && !counted.contains(&host.id)
            {
                return 0;
            }
            let next = numbers.len() + 1;
            *numbers.entry(name(host)).or_insert(next)
        })
        .collect()
}

/// Numbers hosts so that those with the same number are exchangeable while empty.
fn alike(hosts: &[&Host], rules: &[&Rule]) -> Vec<usize> {
    let mut numbers = HashMap::new();
    let labelled = |rule: &&&Rule| match &rule.kind {
        RuleKind::Affinity { domain, .. }
        | RuleKind::Spread { domain, .. }
        | RuleKind::Near { domain, .. } => !domain.is_host(),
        _ => false,
    };
    let by_label: Vec<Vec<usize>> =
        rules.iter().filter(labelled).map(|rule| domains(hosts, rule)).collect();
    hosts
        .iter()
        .enumerate()
        .map(|(n, host)| {
            let named: Vec<Vec<bool>> = rules.iter().map(|rule| named_in(rule, &host.id)).collect();
            let seen: Vec<usize> = by_label.iter().map(|domains| domains[n]).collect();
            let key = (host.capacity.memory, &host.offers, named, seen);
            let next = numbers.len();
            *numbers.entry(key).or_insert(next)
        })
        .collect()
}

fn named_in(rule: &Rule, host: &HostId) -> Vec<bool> {
    match &rule.kind {
        RuleKind::VmHost { hosts, .. }
        | RuleKind::VmNotHost { hosts, .. }
        | RuleKind::HostCap { hosts, .. } => vec![hosts.contains(host)],
        RuleKind::Among { groups, .. } => groups.iter().map(|group| group.contains(host)).collect(),
        _ => Vec::new(),
    }
}
