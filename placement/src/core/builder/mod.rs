//! Builds a [`Problem`], and refuses what is malformed or could overflow.
//!
//! ```text
//!  ProblemBuilder ──▶ check ──▶ assemble ──▶ levels ──▶ Problem
//!  what was added     ids,      dense        none can
//!                     amounts   arrays       leave i64
//! ```

mod assemble;
mod check;
mod tallies;

use ballast_model::Refusal;

use super::ids::{Group, Host, HostSet, Item, Partition, Place, Resource, Rule};
use super::objective::ObjectiveTable;
use super::problem::{Problem, ResourceSpec, RuleSpec};

/// Hosts, items, groups or rules a problem may have.
pub const COUNT_MAX: usize = 4_000_000;

/// The largest need, capacity or safety level.
pub const AMOUNT_MAX: i64 = 1 << 52;

/// Cells of all counters and matrices together.
const CELLS_MAX: usize = 1 << 28;
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
        self.check()?;
        let problem = self.assemble()?;
        check::levels(&problem)?;
        Ok(problem)
    }
}
