//! Builds a [`Problem`], and refuses what is malformed or could overflow.

use std::collections::HashMap;

use ballast_model::{Refusal, RefusalCode};

use super::ids::{Group, Host, HostSet, Item, NONE, Partition, Place, Resource, Rule};
use super::objective::{DEVIATION_MAX, LEVELS_MAX, ObjectiveTable, Term, UTILISATION_ONE};
use super::problem::{
    BalanceSpec, HostBits, Limit, Problem, ResourceSpec, Rows, RuleKind, RuleSpec, Strength,
    TallySpec, TermLevels, UNLIMITED, Weighted,
};

/// Hosts, items, groups or rules a problem may have.
pub const COUNT_MAX: usize = 4_000_000;

/// The largest need, capacity or safety level.
pub const AMOUNT_MAX: i64 = 1 << 52;

/// Cells of all counters and matrices together.
const CELLS_MAX: usize = 1 << 28;

/// A group with at most this many members is counted when asked, in partitions of many domains.
const SCANNED_MEMBERS_MAX: usize = 8;
const SCANNED_DOMAINS_MIN: usize = 64;

/// The most any level may come to, so that sums and differences stay in `i64`.
const LEVEL_MAX: i128 = 1 << 61;

/// A host to add.
#[derive(Debug, Clone, Default)]
pub struct HostSpec {
    /// One a resource. For resources without hard capacity: what utilisation refers to.
    pub capacity: Vec<i64>,
    /// One a resource, or empty: no safety levels.
    pub safety: Vec<i64>,
    /// Nothing may arrive (maintenance, unknown). What is there may stay.
    pub closed: bool,
    /// What is there must leave. Implies closed.
    pub drained: bool,
    /// Leave it out of the imbalance. Drained hosts always are.
    pub unbalanced: bool,
    /// What using it costs, in [`Term::HostsInUse`].
    pub activation: i64,
}

/// An item to add.
#[derive(Debug, Clone, Default)]
pub struct ItemSpec {
    /// What it needs in each of its shapes, one a resource. At least one shape.
    pub shapes: Vec<Vec<i64>>,
    /// Where it is; `None` for a new one.
    pub home: Option<Place>,
    /// Whether it must stay at home.
    pub pinned: bool,
    /// Cost of moving it, in [`Term::ItemMoves`].
    pub move_cost: i64,
    /// Bytes its move carries.
    pub move_bytes: u64,
    /// The hosts it may use; `None`: all.
    pub allowed: Option<HostSet>,
}

/// Collects a problem. Ids count up from 0 in the order of calls.
#[derive(Debug)]
pub struct ProblemBuilder {
    table: ObjectiveTable,
    resources: Vec<ResourceSpec>,
    balances: Vec<(Resource, Resource, i64, i64)>,
    hosts: Vec<HostSpec>,
    items: Vec<ItemSpec>,
    sets: Vec<Vec<Host>>,
    groups: Vec<Vec<Item>>,
    partitions: Vec<Vec<Option<u32>>>,
    rules: Vec<RuleSpec>,
    preferences: Vec<(Item, HostSet, i64)>,
    move_groups: Vec<Group>,
    way_cost: Vec<u32>,
}

impl ProblemBuilder {
    /// A problem with nothing in it.
    pub fn new(table: ObjectiveTable) -> Self {
        Self {
            table,
            resources: Vec::new(),
            balances: Vec::new(),
            hosts: Vec::new(),
            items: Vec::new(),
            sets: Vec::new(),
            groups: Vec::new(),
            partitions: Vec::new(),
            rules: Vec::new(),
            preferences: Vec::new(),
            move_groups: Vec::new(),
            way_cost: Vec::new(),
        }
    }

    /// Adds a resource.
    pub fn resource(&mut self, spec: ResourceSpec) -> Resource {
        self.resources.push(spec);
        Resource::from(self.resources.len() - 1)
    }

    /// Adds a host.
    pub fn host(&mut self, spec: HostSpec) -> Host {
        self.hosts.push(spec);
        Host::from(self.hosts.len() - 1)
    }

    /// Adds an item.
    pub fn item(&mut self, spec: ItemSpec) -> Item {
        self.items.push(spec);
        Item::from(self.items.len() - 1)
    }

    /// Adds a set of hosts.
    pub fn host_set(&mut self, hosts: Vec<Host>) -> HostSet {
        self.sets.push(hosts);
        HostSet::from(self.sets.len() - 1)
    }

    /// Adds a group of items.
    pub fn group(&mut self, items: Vec<Item>) -> Group {
        self.groups.push(items);
        Group::from(self.groups.len() - 1)
    }

    /// Adds a partition: one domain a host, or none. Domains are small numbers from 0.
    pub fn partition(&mut self, domains: Vec<Option<u32>>) -> Partition {
        self.partitions.push(domains);
        Partition::from(self.partitions.len() - 1)
    }

    /// Adds the partition in which every host is a domain of its own. Hosts come first.
    pub fn host_partition(&mut self) -> Partition {
        self.partition((0..self.hosts.len()).map(|ix| Some(ix as u32)).collect())
    }

    /// Adds a rule over a group.
    pub fn rule(&mut self, spec: RuleSpec) -> Rule {
        self.rules.push(spec);
        Rule::from(self.rules.len() - 1)
    }

    /// An item should be in a set of hosts; elsewhere costs `weight` in [`Term::SoftRules`].
    pub fn prefer(&mut self, item: Item, set: HostSet, weight: i64) {
        self.preferences.push((item, set, weight));
    }

    /// Adds a balance between two resources, see [`Term::Balance`].
    pub fn balance(&mut self, first: Resource, second: Resource, target: i64, weight: i64) {
        self.balances.push((first, second, target, weight));
    }

    /// Makes a group count in [`Term::GroupMoves`]. An item is in at most one such group.
    pub fn move_group(&mut self, group: Group) {
        self.move_groups.push(group);
    }

    /// What the way from host to host costs, hosts × hosts, in [`Term::HostMoves`].
    pub fn way_costs(&mut self, costs: Vec<u32>) {
        self.way_cost = costs;
    }

    /// Validates and makes the dense arrays.
    ///
    /// # Errors
    /// `InvalidArgument` for what is malformed (an id nobody gave out, a
    /// negative amount, a row of the wrong length) or so large that the
    /// objective could leave 64 bits.
    pub fn build(self) -> Result<Problem, Refusal> {
        self.check_counts()?;
        self.check_hosts()?;
        self.check_items()?;
        self.check_groups()?;
        self.check_weights()?;
        let problem = Assembly { builder: self }.assemble()?;
        check_levels(&problem)?;
        Ok(problem)
    }

    fn check_counts(&self) -> Result<(), Refusal> {
        for (what, count, max) in [
            ("hosts", self.hosts.len(), COUNT_MAX),
            ("items", self.items.len(), COUNT_MAX),
            ("groups", self.groups.len(), COUNT_MAX),
            ("rules", self.rules.len(), COUNT_MAX),
            ("host sets", self.sets.len(), COUNT_MAX),
            ("resources", self.resources.len(), 1024),
            ("partitions", self.partitions.len(), 1024),
            ("cells of hosts and resources", self.hosts.len() * self.resources.len(), CELLS_MAX),
        ] {
            if count > max {
                return refuse(format!("there are {count} {what}, at most {max} are possible"));
            }
        }
        let ways = self.hosts.len() * self.hosts.len();
        if !self.way_cost.is_empty() && (self.way_cost.len() != ways || ways > CELLS_MAX) {
            return refuse(format!(
                "the matrix of way costs has {} entries for {} hosts",
                self.way_cost.len(),
                self.hosts.len()
            ));
        }
        Ok(())
    }

    fn check_hosts(&self) -> Result<(), Refusal> {
        for (ix, host) in self.hosts.iter().enumerate() {
            let what = || format!("host {ix}");
            self.check_amounts(&host.capacity, what)?;
            if !host.safety.is_empty() {
                self.check_amounts(&host.safety, || format!("safety of host {ix}"))?;
            }
            check_weight(host.activation, || format!("activation of host {ix}"))?;
        }
        for (ix, set) in self.sets.iter().enumerate() {
            check_ids(set.iter().map(|host| host.0), self.hosts.len(), || {
                format!("host set {ix}")
            })?;
        }
        for (ix, domains) in self.partitions.iter().enumerate() {
            if domains.len() != self.hosts.len() {
                return refuse(format!(
                    "partition {ix} names {} domains for {} hosts",
                    domains.len(),
                    self.hosts.len()
                ));
            }
            check_ids(domains.iter().flatten().copied(), self.hosts.len().max(1), || {
                format!("domains of partition {ix}")
            })?;
        }
        Ok(())
    }

    fn check_items(&self) -> Result<(), Refusal> {
        let mut rows = 0_usize;
        for (ix, item) in self.items.iter().enumerate() {
            let what = || format!("item {ix}");
            if item.shapes.is_empty() || item.shapes.len() > usize::from(u8::MAX) {
                return refuse(format!(
                    "item {ix} has {} shapes, 1 to 255 are possible",
                    item.shapes.len()
                ));
            }
            rows += item.shapes.len();
            for shape in &item.shapes {
                self.check_amounts(shape, what)?;
            }
            if let Some(home) = item.home {
                check_ids([home.host.0], self.hosts.len(), || format!("home of item {ix}"))?;
                check_ids([u32::from(home.shape)], item.shapes.len(), || {
                    format!("home shape of item {ix}")
                })?;
            }
            check_weight(item.move_cost, || format!("move cost of item {ix}"))?;
            if item.move_bytes > AMOUNT_MAX.unsigned_abs() {
                return refuse(format!("item {ix} carries {} bytes", item.move_bytes));
            }
            check_ids(item.allowed.map(|set| set.0), self.sets.len(), what)?;
        }
        if rows * self.resources.len() > CELLS_MAX {
            return refuse(format!("{rows} shapes of items are too many"));
        }
        for (item, set, weight) in &self.preferences {
            check_ids([item.0], self.items.len(), || "preference".into())?;
            check_ids([set.0], self.sets.len(), || "preference".into())?;
            check_weight(*weight, || "preference".into())?;
        }
        Ok(())
    }

    fn check_groups(&self) -> Result<(), Refusal> {
        let mut seen = vec![NONE; self.items.len()];
        for (ix, group) in self.groups.iter().enumerate() {
            check_ids(group.iter().map(|item| item.0), self.items.len(), || format!("group {ix}"))?;
            for item in group {
                if std::mem::replace(&mut seen[item.ix()], ix as u32) == ix as u32 {
                    return refuse(format!("group {ix} names item {} twice", item.0));
                }
            }
        }
        let mut moved = vec![false; self.items.len()];
        check_ids(self.move_groups.iter().map(|group| group.0), self.groups.len(), || {
            "move group".into()
        })?;
        for group in &self.move_groups {
            for item in &self.groups[group.ix()] {
                if std::mem::replace(&mut moved[item.ix()], true) {
                    return refuse(format!("item {} is in two move groups", item.0));
                }
            }
        }
        for (ix, rule) in self.rules.iter().enumerate() {
            let what = || format!("rule {ix}");
            check_ids([rule.group.0], self.groups.len(), what)?;
            check_ids([rule.partition.0], self.partitions.len(), what)?;
            if let RuleKind::Requires(other) | RuleKind::Excludes(other) = rule.kind {
                check_ids([other.0], self.groups.len(), what)?;
            }
            if let Strength::Soft(weight) = rule.strength {
                if weight == 0 {
                    return refuse(format!("rule {ix} is soft and weighs nothing"));
                }
                check_weight(weight, what)?;
            }
        }
        Ok(())
    }

    fn check_weights(&self) -> Result<(), Refusal> {
        for (ix, resource) in self.resources.iter().enumerate() {
            let what = || format!("resource {ix}");
            for weight in [resource.safety_weight, resource.unmet_weight, resource.imbalance_weight]
            {
                check_weight(weight, what)?;
            }
            if let Some((unit, weight)) = resource.fragment {
                check_weight(weight, what)?;
                if !(1..=AMOUNT_MAX).contains(&unit) {
                    return refuse(format!("the unit {unit} of resource {ix} is not positive"));
                }
            }
        }
        for (first, second, target, weight) in &self.balances {
            check_ids([first.0, second.0], self.resources.len(), || "balance".into())?;
            check_weight(*weight, || "balance".into())?;
            check_weight(*target, || "target of a balance".into())?;
        }
        for term in Term::ALL {
            check_weight(self.table.weight(term), || format!("term {}", term.name()))?;
        }
        Ok(())
    }

    fn check_amounts(&self, amounts: &[i64], what: impl Fn() -> String) -> Result<(), Refusal> {
        if amounts.len() != self.resources.len() {
            return refuse(format!(
                "{} has {} amounts for {} resources",
                what(),
                amounts.len(),
                self.resources.len()
            ));
        }
        match amounts.iter().find(|amount| !(0..=AMOUNT_MAX).contains(*amount)) {
            Some(amount) => refuse(format!("{} has the amount {amount}", what())),
            None => Ok(()),
        }
    }
}

fn refuse<T>(reason: String) -> Result<T, Refusal> {
    Err(Refusal::new(
        RefusalCode::InvalidArgument,
        reason,
        "correct the input; amounts and weights lie between 0 and 2^52",
    ))
}

fn check_weight(weight: i64, what: impl Fn() -> String) -> Result<(), Refusal> {
    if (0..=AMOUNT_MAX).contains(&weight) {
        return Ok(());
    }
    refuse(format!("{} has the weight {weight}", what()))
}

fn check_ids(
    ids: impl IntoIterator<Item = u32>,
    count: usize,
    what: impl Fn() -> String,
) -> Result<(), Refusal> {
    match ids.into_iter().find(|id| *id as usize >= count) {
        Some(id) => refuse(format!("{} names number {id} of {count}", what())),
        None => Ok(()),
    }
}

/// Refuses when a level could leave 64 bits, whatever the assignment.
fn check_levels(problem: &Problem) -> Result<(), Refusal> {
    let mut sums = [0_i128; LEVELS_MAX];
    for (level, most) in super::bound::worst_case(problem) {
        sums[usize::from(level)] = sums[usize::from(level)].saturating_add(most);
    }
    let hard = super::bound::worst_hard(problem);
    if hard > LEVEL_MAX || sums.iter().any(|sum| *sum > LEVEL_MAX) {
        return refuse("the objective could leave 64 bits".into());
    }
    Ok(())
}

/// Turns what was checked into dense arrays.
struct Assembly {
    builder: ProblemBuilder,
}

impl Assembly {
    fn assemble(self) -> Result<Problem, Refusal> {
        let (levels, levels_used) = self.levels()?;
        let tallies = Tallies::new(&self.builder)?;
        let b = &self.builder;
        let weight = |term| b.table.weight(term);
        let product = |a: i64, b: i64| {
            a.checked_mul(b)
                .filter(|w| *w <= UNLIMITED)
                .map_or_else(|| refuse(format!("the weight {a} times {b} leaves 64 bits")), Ok)
        };
        let mut unmet = Vec::new();
        let mut imbalance = Vec::new();
        let mut fragments = Vec::new();
        let mut safety_weight = Vec::new();
        for (ix, spec) in b.resources.iter().enumerate() {
            let resource = ix as u32;
            safety_weight.push(product(weight(Term::Safety), spec.safety_weight)?);
            let unmet_weight = product(weight(Term::Unmet), spec.unmet_weight)?;
            if unmet_weight > 0 && !spec.hard {
                unmet.push(Weighted { resource, unit: 1, weight: unmet_weight });
            }
            let imbalance_weight = product(weight(Term::Imbalance), spec.imbalance_weight)?;
            if imbalance_weight > 0 {
                imbalance.push(Weighted { resource, unit: 1, weight: imbalance_weight });
            }
            if let Some((unit, of)) = spec.fragment {
                let weight = product(weight(Term::Fragments), of)?;
                fragments.push(Weighted { resource, unit, weight });
            }
        }
        let balances = b
            .balances
            .iter()
            .map(|(first, second, target, of)| {
                let weight = product(weight(Term::Balance), *of)?;
                Ok(BalanceSpec { first: first.0, second: second.0, target: *target, weight })
            })
            .collect::<Result<Vec<_>, Refusal>>()?;
        let activation = b
            .hosts
            .iter()
            .map(|host| product(weight(Term::HostsInUse), host.activation))
            .collect::<Result<_, _>>()?;
        let move_cost = b
            .items
            .iter()
            .map(|item| product(weight(Term::ItemMoves), item.move_cost))
            .collect::<Result<_, _>>()?;
        let mut preferences = vec![Vec::new(); b.items.len()];
        for (item, set, of) in &b.preferences {
            preferences[item.ix()].push((set.0, product(weight(Term::SoftRules), *of)?));
        }
        let (reciprocal, mean_utilisation) = self.utilisation(&imbalance);
        let mut move_group = vec![NONE; b.items.len()];
        for (ix, group) in b.move_groups.iter().enumerate() {
            for item in &b.groups[group.ix()] {
                move_group[item.ix()] = ix as u32;
            }
        }
        Ok(Problem {
            levels,
            levels_used,
            overload_weight: self.overload_weights(),
            has_transient: b.resources.iter().any(|spec| spec.transient),
            safety_weight,
            balances,
            unmet,
            imbalance,
            fragments,
            mean_utilisation,
            hosts: b.hosts.len(),
            capacity: b.hosts.iter().flat_map(|host| host.capacity.iter().copied()).collect(),
            safety: self.safety(),
            reciprocal,
            closed: b.hosts.iter().map(|host| host.closed || host.drained).collect(),
            drained: b.hosts.iter().map(|host| host.drained).collect(),
            activation,
            way_weight: weight(Term::HostMoves),
            items: b.items.len(),
            first_row: first_rows(&b.items),
            need: b.items.iter().flat_map(|item| item.shapes.iter().flatten().copied()).collect(),
            home_claim: self.home_claims(),
            home: b.items.iter().map(|item| item.home.unwrap_or(Place::NOWHERE)).collect(),
            pinned: b.items.iter().map(|item| item.pinned && item.home.is_some()).collect(),
            move_cost,
            move_bytes: b.items.iter().map(|item| item.move_bytes).collect(),
            move_group,
            move_groups: b.move_groups.len(),
            move_group_weight: weight(Term::GroupMoves),
            allowed: b.items.iter().map(|item| item.allowed.map_or(NONE, |set| set.0)).collect(),
            preferred: Rows::collect(preferences),
            sets: b.sets.iter().map(|set| HostBits::new(b.hosts.len(), set)).collect(),
            open_hosts: self.open_hosts(),
            groups: Rows::collect(b.groups.iter().map(|group| group.iter().map(|item| item.0))),
            partitions: tallies.partitions,
            domains: tallies.domains,
            tallies: tallies.specs,
            tally_cells: tallies.cells,
            class: tallies.class,
            class_linked: tallies.class_linked,
            class_entangled: tallies.class_entangled,
            class_tallies: tallies.class_tallies,
            rules: self.builder.rules,
            resources: self.builder.resources,
            way_cost: self.builder.way_cost,
            table: self.builder.table,
        })
    }

    /// Numbers the levels in use without gaps.
    fn levels(&self) -> Result<(TermLevels, usize), Refusal> {
        let table = &self.builder.table;
        let mut used: Vec<u8> = Term::ALL
            .into_iter()
            .filter(|term| table.weight(*term) > 0)
            .map(|term| table.level(term))
            .collect();
        used.sort_unstable();
        used.dedup();
        if used.len() > LEVELS_MAX {
            return refuse(format!(
                "the objective has {} levels, at most {LEVELS_MAX} are possible",
                used.len()
            ));
        }
        let of =
            |term| used.iter().position(|level| *level == table.level(term)).unwrap_or(0) as u8;
        let levels = TermLevels {
            soft_rules: of(Term::SoftRules),
            unmet: of(Term::Unmet),
            safety: of(Term::Safety),
            balance: of(Term::Balance),
            imbalance: of(Term::Imbalance),
            fragments: of(Term::Fragments),
            hosts_in_use: of(Term::HostsInUse),
            item_moves: of(Term::ItemMoves),
            group_moves: of(Term::GroupMoves),
            host_moves: of(Term::HostMoves),
        };
        Ok((levels, used.len().max(1)))
    }

    fn home_claims(&self) -> Vec<i64> {
        let b = &self.builder;
        if !b.resources.iter().any(|spec| spec.transient) {
            return Vec::new();
        }
        let row = |item: &ItemSpec| -> Vec<i64> {
            let need = &item.shapes[item.home.map_or(0, |home| usize::from(home.shape))];
            let claims = need.iter().zip(&b.resources);
            claims.map(|(need, spec)| if spec.transient { 0 } else { *need }).collect()
        };
        b.items.iter().flat_map(row).collect()
    }

    fn overload_weights(&self) -> Vec<f64> {
        let b = &self.builder;
        let weight = |(r, spec): (usize, &ResourceSpec)| {
            let sum: f64 = b.hosts.iter().map(|host| host.capacity[r] as f64).sum();
            if spec.hard { b.hosts.len() as f64 / sum.max(1.0) } else { 0.0 }
        };
        b.resources.iter().enumerate().map(weight).collect()
    }

    fn safety(&self) -> Vec<i64> {
        let resources = self.builder.resources.len();
        let row = |host: &HostSpec| {
            if host.safety.is_empty() { vec![UNLIMITED; resources] } else { host.safety.clone() }
        };
        self.builder.hosts.iter().flat_map(row).collect()
    }

    /// Reciprocals of capacities and the utilisation of the whole cluster.
    fn utilisation(&self, imbalance: &[Weighted]) -> (Vec<i64>, Vec<i64>) {
        let b = &self.builder;
        let counted = |host: &HostSpec| !host.unbalanced && !host.drained;
        let mut reciprocal = Vec::with_capacity(b.hosts.len() * imbalance.len());
        for host in &b.hosts {
            for entry in imbalance {
                let capacity = host.capacity[entry.resource as usize];
                let counts = counted(host) && capacity > 0;
                reciprocal.push(if counts { (UTILISATION_ONE << 32) / capacity } else { 0 });
            }
        }
        let mean = imbalance
            .iter()
            .map(|entry| {
                let r = entry.resource as usize;
                let capacity: i128 = b
                    .hosts
                    .iter()
                    .filter(|host| counted(host))
                    .map(|host| i128::from(host.capacity[r]))
                    .sum();
                // What sits on hosts that are left out, and stays there, is left out too.
                let stays = |item: &ItemSpec| {
                    item.home.is_some_and(|home| {
                        let host = &b.hosts[home.host.ix()];
                        item.pinned && !counted(host)
                    })
                };
                let need: i128 = b
                    .items
                    .iter()
                    .filter(|item| !stays(item))
                    .map(|item| i128::from(item.shapes[0][r]))
                    .sum();
                let mean = need * i128::from(UTILISATION_ONE) / capacity.max(1);
                i64::try_from(mean).unwrap_or(DEVIATION_MAX).min(DEVIATION_MAX)
            })
            .collect();
        (reciprocal, mean)
    }

    fn open_hosts(&self) -> Rows<u32> {
        let b = &self.builder;
        let open = |ix: &u32| {
            let host = &b.hosts[*ix as usize];
            !host.closed && !host.drained
        };
        let set = |set: &Vec<Host>| {
            let mut hosts: Vec<u32> = set.iter().map(|host| host.0).filter(open).collect();
            hosts.sort_unstable();
            hosts.dedup();
            hosts
        };
        let all = (0..b.hosts.len() as u32).filter(open).collect();
        Rows::collect(b.sets.iter().map(set).chain([all]))
    }
}

fn first_rows(items: &[ItemSpec]) -> Vec<u32> {
    let mut next = 0;
    let mut rows = vec![0];
    for item in items {
        next += item.shapes.len() as u32;
        rows.push(next);
    }
    rows
}

/// Rules gathered into counters, and items into classes.
struct Tallies {
    partitions: Vec<Vec<u32>>,
    domains: Vec<u32>,
    specs: Vec<TallySpec>,
    cells: usize,
    class: Vec<u32>,
    class_tallies: Rows<u32>,
    class_linked: Vec<bool>,
    class_entangled: Vec<bool>,
}

impl Tallies {
    fn new(b: &ProblemBuilder) -> Result<Self, Refusal> {
        let partitions: Vec<Vec<u32>> = b
            .partitions
            .iter()
            .map(|domains| domains.iter().map(|domain| domain.unwrap_or(NONE)).collect())
            .collect();
        let domains: Vec<u32> = b
            .partitions
            .iter()
            .map(|domains| domains.iter().flatten().max().map_or(0, |max| max + 1))
            .collect();
        let mut specs = gather(b)?;
        let mut cells = 0;
        for spec in &mut specs {
            let count = domains[spec.partition as usize] as usize;
            let members = b.groups[spec.group as usize].len();
            let scanned = !spec.linked() && !spec.counts_domains();
            if !scanned || members > SCANNED_MEMBERS_MAX || count < SCANNED_DOMAINS_MIN {
                spec.row = cells as u32;
                cells += count;
            }
            if cells > CELLS_MAX {
                return refuse("the rules need too many counters".into());
            }
        }
        let mut of_item = vec![Vec::new(); b.items.len()];
        for (ix, spec) in specs.iter().enumerate() {
            for item in &b.groups[spec.group as usize] {
                of_item[item.ix()].push(ix as u32);
            }
        }
        let mut numbers: HashMap<Vec<u32>, u32> = HashMap::new();
        let mut lists: Vec<Vec<u32>> = Vec::new();
        let class = of_item
            .into_iter()
            .map(|list| {
                *numbers.entry(list).or_insert_with_key(|list| {
                    lists.push(list.clone());
                    lists.len() as u32 - 1
                })
            })
            .collect();
        let class_linked =
            lists.iter().map(|list| list.iter().any(|t| specs[*t as usize].linked())).collect();
        let class_entangled = lists.iter().map(|list| entangled(list, &specs)).collect();
        let class_tallies = Rows::collect(lists);
        Ok(Self {
            partitions,
            domains,
            specs,
            cells,
            class,
            class_tallies,
            class_linked,
            class_entangled,
        })
    }
}

fn entangled(list: &[u32], specs: &[TallySpec]) -> bool {
    list.iter().any(|t| {
        let spec = &specs[*t as usize];
        spec.requires.iter().chain(&spec.excludes).any(|(other, _)| list.contains(other))
    })
}

fn gather(b: &ProblemBuilder) -> Result<Vec<TallySpec>, Refusal> {
    let mut specs: Vec<TallySpec> = Vec::new();
    let mut numbers: HashMap<(u32, u32), u32> = HashMap::new();
    let mut tally = |specs: &mut Vec<TallySpec>, group: u32, partition: u32| {
        *numbers.entry((group, partition)).or_insert_with(|| {
            specs.push(TallySpec {
                group,
                partition,
                at_most: None,
                min_domains: None,
                max_domains: None,
                requires: Vec::new(),
                required_by: Vec::new(),
                excludes: Vec::new(),
                row: NONE,
            });
            specs.len() as u32 - 1
        })
    };
    let term = b.table.weight(Term::SoftRules);
    for (ix, rule) in b.rules.iter().enumerate() {
        let weight = match rule.strength {
            Strength::Hard => 0,
            // A soft rule in a table without soft rules costs nothing: it is left out.
            Strength::Soft(_) if term == 0 => continue,
            Strength::Soft(weight) => match weight.checked_mul(term) {
                Some(weight) => weight,
                None => return refuse(format!("the weight of rule {ix} leaves 64 bits")),
            },
        };
        let mine = tally(&mut specs, rule.group.0, rule.partition.0);
        let spec = &mut specs[mine as usize];
        let set = |slot: &mut Option<Limit>, value: u32| match slot {
            Some(_) => refuse(format!(
                "rule {ix} repeats the kind of an earlier rule of its group and partition"
            )),
            None => {
                *slot = Some(Limit { value, weight });
                Ok(())
            }
        };
        match rule.kind {
            RuleKind::AtMostPerDomain(value) => set(&mut spec.at_most, value)?,
            RuleKind::MinDomains(value) => set(&mut spec.min_domains, value)?,
            RuleKind::MaxDomains(value) => set(&mut spec.max_domains, value)?,
            RuleKind::Requires(other) | RuleKind::Excludes(other) => {
                if other == rule.group {
                    continue; // where the group is, it is
                }
                let theirs = tally(&mut specs, other.0, rule.partition.0);
                if matches!(rule.kind, RuleKind::Requires(_)) {
                    specs[mine as usize].requires.push((theirs, weight));
                    specs[theirs as usize].required_by.push((mine, weight));
                } else {
                    specs[mine as usize].excludes.push((theirs, weight));
                    specs[theirs as usize].excludes.push((mine, weight));
                }
            }
        }
    }
    Ok(specs)
}
