//! A problem of the solver as a [`Ground`]: hard resources and hard rules are
//! counters, each host and shape of an item is a place.
//!
//! Which rules hold at every moment is the caller's choice. By default all hard
//! ones do but [`RuleKind::MaxDomains`]: VMs that belong together cannot go
//! together at one instant. A rule that only holds at the end is looked at again
//! when not every move was possible.

use std::collections::BTreeSet;

use super::{Claim, Counter, Ground, Group, Key, Order, Place, Role, Transition, Vm, order};
use crate::core::{
    Assignment, Host, Item, Place as Spot, Problem, Resource, Rule, RuleKind, Strength,
};

/// How often an order is begun anew without the moves that a missing one makes wrong, at most.
const REPAIRS_MAX: usize = 4;
/// How many other places are tried for a VM that has to leave, at most.
const ALTERNATIVES_MAX: usize = 16;
/// What a move is worth that has to be made, and one that need not.
const WEIGHTS: [u32; 2] = [64, 1];

/// A problem, where its items are, and what must hold all the time.
pub struct Cluster<'p> {
    problem: &'p Problem,
    initial: &'p Assignment,
    /// Rules that hold at every moment.
    continuous: Vec<bool>,
    /// Per item, those of these rules that speak of it.
    rules_of: Vec<Vec<u32>>,
    /// Hosts × resources.
    used: Vec<u64>,
    shapes: u32,
    /// Hosts whose loss is provided for at every moment.
    failures: usize,
    /// Bytes a second, one an item, or empty.
    dirty_rates: Vec<u64>,
}

impl<'p> Cluster<'p> {
    /// Every hard rule is continuous but those that keep items together.
    pub fn new(problem: &'p Problem, initial: &'p Assignment) -> Self {
        let lasting = |rule: &crate::core::RuleSpec| {
            rule.strength == Strength::Hard && !matches!(rule.kind, RuleKind::MaxDomains(_))
        };
        let continuous = problem.rules().iter().map(lasting).collect();
        let mut used = vec![0_u64; problem.hosts() * problem.resources()];
        let mut shapes = 1;
        for (item, place) in initial.iter() {
            shapes = shapes.max(u32::from(problem.shapes(item)));
            let Some(place) = place else { continue };
            for (n, need) in problem.need(item, place.shape).iter().enumerate() {
                let used = &mut used[place.host.ix() * problem.resources() + n];
                *used = used.saturating_add(amount(*need));
            }
        }
        let cluster = Self {
            problem,
            initial,
            continuous,
            rules_of: Vec::new(),
            used,
            shapes,
            failures: 0,
            dirty_rates: Vec::new(),
        };
        cluster.indexed()
    }

    /// With the choice of rules that hold at every moment.
    #[must_use]
    pub fn with_continuous(mut self, holds: impl Fn(Rule) -> bool) -> Self {
        self.continuous = (0..self.problem.rules().len()).map(|n| holds(Rule::from(n))).collect();
        self.indexed()
    }

    /// With room kept at every moment for what is on the `failures` largest hosts.
    #[must_use]
    pub fn with_failures(mut self, failures: usize) -> Self {
        self.failures = failures;
        self
    }

    /// With the bytes a second that each item dirties.
    #[must_use]
    pub fn with_dirty_rates(mut self, rates: Vec<u64>) -> Self {
        self.dirty_rates = rates;
        self
    }

    /// The number of a spot as a place of an order.
    pub fn place(&self, spot: Spot) -> Place {
        spot.host.0 * self.shapes + u32::from(spot.shape)
    }

    /// The spot of a place.
    pub fn spot(&self, place: Place) -> Spot {
        let shape = u8::try_from(place % self.shapes).unwrap_or(0);
        Spot { host: Host(place / self.shapes), shape }
    }

    fn indexed(mut self) -> Self {
        let mut rules_of = vec![Vec::new(); self.problem.items()];
        for (n, rule) in (0_u32..).zip(self.problem.rules()) {
            if !self.continuous[n as usize] {
                continue;
            }
            for item in self.problem.members(rule.group) {
                rules_of[item.ix()].push(n);
            }
            for item in self.others(rule.kind) {
                if rules_of[item.ix()].last() != Some(&n) {
                    rules_of[item.ix()].push(n);
                }
            }
        }
        self.rules_of = rules_of;
        self
    }

    /// The items of the other group a rule speaks of.
    fn others(&self, kind: RuleKind) -> impl Iterator<Item = Item> + '_ {
        let group = match kind {
            RuleKind::Requires(other) | RuleKind::Excludes(other) => Some(other),
            _ => None,
        };
        group.into_iter().flat_map(|group| self.problem.members(group))
    }

    /// How many items of the rule's group, or of the other one, are in a domain at first.
    fn count(&self, rule: u32, second: bool, domain: u32) -> u64 {
        let spec = &self.problem.rules()[rule as usize];
        let here = |item: &Item| {
            let host = self.initial.host(*item);
            host.and_then(|host| self.problem.domain(spec.partition, host)) == Some(domain)
        };
        let count = if second {
            self.others(spec.kind).filter(here).count()
        } else {
            self.problem.members(spec.group).filter(here).count()
        };
        count as u64
    }

    fn rule_key(&self, rule: u32, part: Part, scope: u32) -> Key {
        key(2 * self.problem.resources() + 3 * rule as usize + part as usize, scope)
    }

    fn rule_counter(&self, rule: u32, second: bool, domain: u32) -> Counter {
        let used = self.count(rule, second, domain);
        let group = |scope| Some(self.rule_key(rule, Part::Group, scope));
        let (limit, group) = match self.problem.rules()[rule as usize].kind {
            RuleKind::AtMostPerDomain(most) => (u64::from(most), None),
            RuleKind::MinDomains(_) | RuleKind::MaxDomains(_) => (u64::MAX, group(0)),
            RuleKind::Requires(_) => (u64::MAX, None),
            RuleKind::Excludes(_) => (u64::MAX, group(domain)),
        };
        Counter { once: true, group, ..Counter::at_most(used, limit) }
    }

    /// All of a resource but what the largest hosts have.
    fn total_limit(&self, resource: usize) -> u64 {
        let hosts = (0..self.problem.hosts()).map(Host::from);
        let open = hosts.filter(|host| !self.problem.closed(*host));
        let mut capacity: Vec<u64> =
            open.map(|host| amount(self.problem.capacity(host)[resource])).collect();
        capacity.sort_unstable();
        let kept = capacity.len().saturating_sub(self.failures);
        capacity[..kept].iter().fold(0, |sum, capacity| sum.saturating_add(*capacity))
    }

    fn hard(&self, resource: usize) -> bool {
        self.problem.resource(Resource::from(resource)).hard
    }

    /// The counter on the other side of a rule of company, if `key` is on the side asked for.
    fn bound(&self, of: Key, second: bool, out: &mut Vec<Key>) {
        let (what, domain) = split(of);
        let Some(what) = what.checked_sub(2 * self.problem.resources()) else { return };
        let (rule, part) = (what / 3, what % 3);
        let Some(spec) = self.problem.rules().get(rule) else { return };
        let here = part == usize::from(second);
        if here && matches!(spec.kind, RuleKind::Requires(_)) {
            let rule = u32::try_from(rule).unwrap_or(u32::MAX);
            let other = if second { Part::First } else { Part::Second };
            out.push(self.rule_key(rule, other, domain));
        }
    }
}

/// What of a rule is counted.
#[derive(Clone, Copy)]
enum Part {
    /// Items of its group in a domain.
    First,
    /// Items of the other group in a domain.
    Second,
    /// Domains in use.
    Group,
}

fn key(what: usize, scope: u32) -> Key {
    (what as u64) << 32 | u64::from(scope)
}

#[allow(clippy::cast_possible_truncation)] // both halves have 32 bits
fn split(key: Key) -> (usize, u32) {
    ((key >> 32) as usize, key as u32)
}

/// Amounts of a problem are not negative.
fn amount(amount: i64) -> u64 {
    u64::try_from(amount).unwrap_or(0)
}

impl Ground for Cluster<'_> {
    fn places(&self) -> Place {
        u32::try_from(self.problem.hosts()).unwrap_or(u32::MAX).saturating_mul(self.shapes)
    }

    fn counter(&self, key: Key) -> Counter {
        let (what, scope) = split(key);
        let resources = self.problem.resources();
        if what < resources {
            let used = self.used[scope as usize * resources + what];
            Counter::at_most(used, amount(self.problem.capacity(Host(scope))[what]))
        } else if what < 2 * resources {
            let what = what - resources;
            let used = self.used.iter().skip(what).step_by(resources).zip(0..);
            let used =
                used.filter(|(_, host)| !self.problem.closed(Host(*host))).map(|(used, _)| used);
            let used = used.fold(0_u64, |sum, used| sum.saturating_add(*used));
            Counter::at_most(used, self.total_limit(what))
        } else {
            let what = what - 2 * resources;
            self.rule_counter(u32::try_from(what / 3).unwrap_or(u32::MAX), what % 3 == 1, scope)
        }
    }

    fn group(&self, group: Key) -> Group {
        let (what, domain) = split(group);
        let rule = (what - 2 * self.problem.resources()) / 3;
        let spec = &self.problem.rules()[rule];
        let rule = u32::try_from(rule).unwrap_or(u32::MAX);
        let domains = || {
            let hosts = self.problem.members(spec.group).filter_map(|item| self.initial.host(item));
            let open: BTreeSet<u32> =
                hosts.filter_map(|host| self.problem.domain(spec.partition, host)).collect();
            u32::try_from(open.len()).unwrap_or(u32::MAX)
        };
        match spec.kind {
            RuleKind::MinDomains(least) => {
                Group { open: domains(), open_max: u32::MAX, open_min: least }
            }
            RuleKind::MaxDomains(most) => Group { open: domains(), open_max: most, open_min: 0 },
            RuleKind::Excludes(_) => {
                let both = [false, true].map(|second| self.count(rule, second, domain) > 0);
                Group { open: both.map(u32::from).iter().sum(), open_max: 1, open_min: 0 }
            }
            RuleKind::AtMostPerDomain(_) | RuleKind::Requires(_) => {
                Group { open: 0, open_max: u32::MAX, open_min: 0 }
            }
        }
    }

    fn claims(&self, vm: Vm, place: Place, out: &mut Vec<Claim>) {
        let spot = self.spot(place);
        let needs = self.problem.need(Item(vm), spot.shape).iter().enumerate();
        for (n, need) in needs.filter(|(n, need)| **need > 0 && self.hard(*n)) {
            out.push(Claim { key: key(n, spot.host.0), amount: amount(*need) });
            if self.failures > 0 && !self.problem.closed(spot.host) {
                out.push(Claim {
                    key: key(self.problem.resources() + n, 0),
                    amount: amount(*need),
                });
            }
        }
        for rule in &self.rules_of[vm as usize] {
            let spec = &self.problem.rules()[*rule as usize];
            let Some(domain) = self.problem.domain(spec.partition, spot.host) else { continue };
            if self.problem.members(spec.group).any(|item| item.0 == vm) {
                out.push(Claim { key: self.rule_key(*rule, Part::First, domain), amount: 1 });
            }
            if self.others(spec.kind).any(|item| item.0 == vm) {
                out.push(Claim { key: self.rule_key(*rule, Part::Second, domain), amount: 1 });
            }
        }
    }

    fn needs(&self, key: Key, out: &mut Vec<Key>) {
        self.bound(key, false, out);
    }

    fn needed_by(&self, key: Key, out: &mut Vec<Key>) {
        self.bound(key, true, out);
    }

    fn allows(&self, vm: Vm, place: Place) -> bool {
        let (item, spot) = (Item(vm), self.spot(place));
        let home = self.initial.place(item);
        let open = !self.problem.closed(spot.host)
            || home.is_some_and(|home| home.host == spot.host && !self.problem.drained(home.host));
        open && spot.shape < self.problem.shapes(item)
            && self.problem.allowed(item, spot.host)
            && (!self.problem.pinned(item) || home.is_none() || home == Some(spot))
    }

    fn host(&self, place: Place) -> u32 {
        self.spot(place).host.0
    }

    fn bytes(&self, vm: Vm) -> u64 {
        self.problem.move_bytes(Item(vm))
    }

    fn dirty_rate(&self, vm: Vm) -> u64 {
        self.dirty_rates.get(vm as usize).copied().unwrap_or(0)
    }

    /// Only a VM that cannot stay is sent anywhere.
    fn alternatives(&self, vm: Vm) -> Vec<Place> {
        if !forced(self.problem, self.initial, Item(vm)) {
            return Vec::new();
        }
        let hosts = self.problem.open_hosts(Item(vm));
        let first = (vm as usize * 7) % hosts.len().max(1);
        let around = hosts[first..].iter().chain(&hosts[..first]).take(ALTERNATIVES_MAX);
        around.map(|host| self.place(Spot::on(Host(*host)))).collect()
    }
}

/// Whether an item has to be elsewhere, whatever the others do.
fn forced(problem: &Problem, initial: &Assignment, item: Item) -> bool {
    initial.host(item).is_none_or(|host| problem.drained(host) || !problem.allowed(item, host))
}

/// An order with the assignment it leads to.
#[derive(Debug, Clone)]
pub struct Ordered {
    /// The steps; their places are those of [`Cluster::place`].
    pub order: Order,
    /// Where every item is afterwards: the target, unless something was dropped or rerouted.
    pub reached: Assignment,
}

/// The order of the moves that lead from the initial assignment to `target`, or as near to it as an order leads.
///
/// What is reached breaks no more than the initial assignment, also of the rules that hold at the end only: where a
/// move is missing, those that are wrong without it are left out too.
pub fn order_moves(cluster: &Cluster<'_>, target: &Assignment) -> Ordered {
    let (problem, initial) = (cluster.problem, cluster.initial);
    let mut wanted: Vec<Transition> = target
        .moves_from(initial)
        .iter()
        .filter_map(|step| {
            Some(Transition {
                vm: step.item.0,
                from: step.from.map(|from| cluster.place(from)),
                to: cluster.place(step.to?),
                weight: WEIGHTS[usize::from(!forced(problem, initial, step.item))],
            })
        })
        .collect();
    let before = problem.evaluate(initial).score.hard;
    for round in 0..=REPAIRS_MAX {
        let order = order(cluster, &wanted);
        let mut reached = initial.clone();
        for step in &order.steps {
            reached.set(Item(step.vm), Some(cluster.spot(step.to)));
        }
        let complete = order.dropped.is_empty();
        if complete || problem.evaluate(&reached).score.hard <= before {
            return Ordered { order, reached };
        }
        let gone: BTreeSet<u32> = order.dropped.iter().map(|dropped| dropped.vm).collect();
        let bound = if round + 1 < REPAIRS_MAX { bound_to(problem, &gone) } else { all(&wanted) };
        wanted.retain(|wanted| !bound.contains(&wanted.vm));
    }
    Ordered { order: Order::default(), reached: initial.clone() }
}

fn all(wanted: &[Transition]) -> BTreeSet<u32> {
    wanted.iter().map(|wanted| wanted.vm).collect()
}

/// The items that share a rule with one of these.
fn bound_to(problem: &Problem, gone: &BTreeSet<u32>) -> BTreeSet<u32> {
    let mut bound = gone.clone();
    for rule in problem.rules().iter().filter(|rule| rule.strength == Strength::Hard) {
        let other = match rule.kind {
            RuleKind::Requires(other) | RuleKind::Excludes(other) => Some(other),
            _ => None,
        };
        let items = || {
            problem
                .members(rule.group)
                .chain(other.into_iter().flat_map(|other| problem.members(other)))
                .map(|item| item.0)
        };
        if items().any(|item| gone.contains(&item)) {
            bound.extend(items());
        }
    }
    bound
}

impl Ordered {
    /// How many steps are there only to break circles or to take a parked VM back.
    pub fn extra(&self) -> usize {
        let extra = |role: Role| matches!(role, Role::Parking | Role::Back);
        self.order.steps.iter().filter(|step| extra(step.role)).count()
    }
}
