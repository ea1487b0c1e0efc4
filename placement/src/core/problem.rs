//! The problem as dense arrays: what the search reads and never writes.
//!
//! A superset of Google's machine reassignment problem. Names, units and
//! snapshots are the business of the doors; here is arithmetic only. Built
//! and validated by [`ProblemBuilder`](super::ProblemBuilder).

use super::assignment::Assignment;
use super::ids::{Group, Host, HostSet, Item, NONE, Partition, Place, Resource, Rule};
use super::objective::{Objective, ObjectiveTable, Score, Term};

/// No limit, in arrays of levels and capacities.
pub(crate) const UNLIMITED: i64 = i64::MAX >> 2;

/// How much a rule binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strength {
    /// Never broken by a move; counted in [`Score::hard`] while broken from the start.
    Hard,
    /// Costs this much for each unit it is broken by.
    Soft(i64),
}

/// What a rule over groups asks for. Domains are those of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleKind {
    /// At most this many items of the group in any one domain: anti-affinity, caps. Broken by each item beyond.
    AtMostPerDomain(u32),
    /// The group's items in at least this many domains: spread. Broken by each domain missing.
    MinDomains(u32),
    /// The group's items in at most this many domains: affinity, licence caps. Broken by each domain beyond.
    MaxDomains(u32),
    /// Where the group has an item, this other group has one too. Broken by each domain without.
    Requires(Group),
    /// Where the group has an item, this other group has none. Broken by each domain with both.
    Excludes(Group),
}

/// A rule over a group in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleSpec {
    /// Whose items.
    pub group: Group,
    /// Which domains. Hosts outside every domain are outside the rule.
    pub partition: Partition,
    /// What is asked.
    pub kind: RuleKind,
    /// How much it binds.
    pub strength: Strength,
}

/// What a resource is. All weights are per unit of the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceSpec {
    /// Whether use above capacity is forbidden (allocation) or only costs (demand).
    pub hard: bool,
    /// Whether a moved item also holds it at home, until all moves are done.
    pub transient: bool,
    /// Cost of use above the safety level of a host ([`Term::Safety`]).
    pub safety_weight: i64,
    /// Cost of use above the capacity of a host ([`Term::Unmet`]), for demand.
    pub unmet_weight: i64,
    /// Weight of the squared deviation of utilisation ([`Term::Imbalance`]).
    pub imbalance_weight: i64,
    /// Unit and weight of what is too small to be of use ([`Term::Fragments`]).
    pub fragment: Option<(i64, i64)>,
}

impl ResourceSpec {
    /// Something allocated: use above capacity is forbidden.
    pub const fn allocation() -> Self {
        Self {
            hard: true,
            transient: false,
            safety_weight: 0,
            unmet_weight: 0,
            imbalance_weight: 0,
            fragment: None,
        }
    }

    /// Something demanded: use above capacity is possible, and costs.
    pub const fn demand() -> Self {
        Self { hard: false, unmet_weight: 1, ..Self::allocation() }
    }
}

/// Rows of rows in one array.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rows<T> {
    start: Vec<u32>,
    values: Vec<T>,
}

impl<T> Rows<T> {
    pub(crate) fn collect<R: IntoIterator<Item = T>>(rows: impl IntoIterator<Item = R>) -> Self {
        let mut all = Self { start: vec![0], values: Vec::new() };
        for row in rows {
            all.values.extend(row);
            all.start.push(all.values.len() as u32);
        }
        all
    }

    #[inline]
    pub(crate) fn row(&self, ix: usize) -> &[T] {
        &self.values[self.start[ix] as usize..self.start[ix + 1] as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.start.len() - 1
    }
}

/// A limit of a tally and what breaking it costs. `weight` 0 means hard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) value: u32,
    pub(crate) weight: i64,
}

/// The counter all rules of one group in one partition share: how many of the
/// group's items are in each domain.
#[derive(Debug, Clone)]
pub(crate) struct TallySpec {
    pub(crate) group: u32,
    pub(crate) partition: u32,
    pub(crate) at_most: Option<Limit>,
    pub(crate) min_domains: Option<Limit>,
    pub(crate) max_domains: Option<Limit>,
    /// (other tally, weight): rules this group has, and rules others have about it.
    pub(crate) requires: Vec<(u32, i64)>,
    pub(crate) required_by: Vec<(u32, i64)>,
    pub(crate) excludes: Vec<(u32, i64)>,
    /// Where its row of counters starts; `NONE`: few members, counted when asked.
    pub(crate) row: u32,
}

impl TallySpec {
    /// Whether its rules speak of another group.
    pub(crate) fn linked(&self) -> bool {
        !(self.requires.is_empty() && self.required_by.is_empty() && self.excludes.is_empty())
    }

    /// Whether the number of domains in use matters.
    pub(crate) fn counts_domains(&self) -> bool {
        self.min_domains.is_some() || self.max_domains.is_some()
    }
}

/// `max(0, target · free(first) − free(second))`, weighted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BalanceSpec {
    pub(crate) first: u32,
    pub(crate) second: u32,
    pub(crate) target: i64,
    pub(crate) weight: i64,
}

/// A weight that belongs to one resource.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weighted {
    pub(crate) resource: u32,
    pub(crate) unit: i64,
    pub(crate) weight: i64,
}

/// Level of each term among the levels in use.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TermLevels {
    pub(crate) soft_rules: u8,
    pub(crate) unmet: u8,
    pub(crate) safety: u8,
    pub(crate) balance: u8,
    pub(crate) imbalance: u8,
    pub(crate) fragments: u8,
    pub(crate) hosts_in_use: u8,
    pub(crate) item_moves: u8,
    pub(crate) group_moves: u8,
    pub(crate) host_moves: u8,
}

/// A validated problem. Immutable; shared between threads by reference.
#[derive(Debug, Clone)]
pub struct Problem {
    pub(crate) table: ObjectiveTable,
    pub(crate) levels: TermLevels,
    pub(crate) levels_used: usize,

    pub(crate) resources: Vec<ResourceSpec>,
    pub(crate) has_transient: bool,
    /// What use above capacity costs a relaxed walk, per unit: the inverse of the mean capacity. 0 where
    /// capacity is not hard.
    pub(crate) overload_weight: Vec<f64>,
    /// Weighted with the term's weight already, like all that follow.
    pub(crate) safety_weight: Vec<i64>,
    pub(crate) balances: Vec<BalanceSpec>,
    pub(crate) unmet: Vec<Weighted>,
    pub(crate) imbalance: Vec<Weighted>,
    pub(crate) fragments: Vec<Weighted>,
    /// Utilisation of the whole cluster, per entry of `imbalance`.
    pub(crate) mean_utilisation: Vec<i64>,

    pub(crate) hosts: usize,
    /// Hosts × resources.
    pub(crate) capacity: Vec<i64>,
    /// Hosts × resources; [`UNLIMITED`] where there is no level.
    pub(crate) safety: Vec<i64>,
    /// Hosts × entries of `imbalance`: 2³² · [`UTILISATION_ONE`](super::UTILISATION_ONE) / capacity; 0: not counted.
    pub(crate) reciprocal: Vec<i64>,
    pub(crate) closed: Vec<bool>,
    pub(crate) drained: Vec<bool>,
    pub(crate) activation: Vec<i64>,
    /// Hosts × hosts, from home to target, or empty.
    pub(crate) way_cost: Vec<u32>,
    pub(crate) way_weight: i64,

    pub(crate) items: usize,
    /// First row of needs of each item, and one past the last.
    pub(crate) first_row: Vec<u32>,
    /// Rows × resources.
    pub(crate) need: Vec<i64>,
    /// What each item takes from the room of its home when it comes back: nothing of what it held there
    /// all the time. Items × resources, or empty without transient resources.
    pub(crate) home_claim: Vec<i64>,
    pub(crate) home: Vec<Place>,
    pub(crate) pinned: Vec<bool>,
    pub(crate) move_cost: Vec<i64>,
    pub(crate) move_bytes: Vec<u64>,
    pub(crate) move_group: Vec<u32>,
    pub(crate) move_groups: usize,
    pub(crate) move_group_weight: i64,
    /// Host set an item may use; `NONE`: all.
    pub(crate) allowed: Vec<u32>,
    /// Sets items should be in: index into `preferences`.
    pub(crate) preferred: Rows<(u32, i64)>,
    pub(crate) sets: Vec<HostBits>,
    /// Hosts of each set that are open for arrivals; the last row is of all hosts.
    pub(crate) open_hosts: Rows<u32>,

    pub(crate) groups: Rows<u32>,
    pub(crate) partitions: Vec<Vec<u32>>,
    pub(crate) domains: Vec<u32>,
    pub(crate) rules: Vec<RuleSpec>,
    pub(crate) tallies: Vec<TallySpec>,
    pub(crate) tally_cells: usize,
    /// Items with the same tallies share a class.
    pub(crate) class: Vec<u32>,
    pub(crate) class_tallies: Rows<u32>,
    /// Classes with rules that speak of other groups.
    pub(crate) class_linked: Vec<bool>,
    /// Classes two tallies of which speak of each other.
    pub(crate) class_entangled: Vec<bool>,
}

/// A set of hosts as bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostBits(Vec<u64>);

impl HostBits {
    pub(crate) fn new(hosts: usize, members: &[Host]) -> Self {
        let mut words = vec![0_u64; hosts.div_ceil(64)];
        for host in members {
            words[host.ix() / 64] |= 1 << (host.ix() % 64);
        }
        Self(words)
    }

    #[inline]
    pub(crate) fn contains(&self, host: usize) -> bool {
        self.0[host / 64] >> (host % 64) & 1 == 1
    }
}

impl Problem {
    /// How many hosts there are.
    pub fn hosts(&self) -> usize {
        self.hosts
    }

    /// How many items there are.
    pub fn items(&self) -> usize {
        self.items
    }

    /// How many resources there are.
    pub fn resources(&self) -> usize {
        self.resources.len()
    }

    /// What a resource is.
    pub fn resource(&self, resource: Resource) -> &ResourceSpec {
        &self.resources[resource.ix()]
    }

    /// The table the objective is made of.
    pub fn table(&self) -> &ObjectiveTable {
        &self.table
    }

    /// Index of a term's level in [`Score::soft`]: levels nobody uses are left out.
    pub fn level_index(&self, term: Term) -> usize {
        let levels = &self.levels;
        usize::from(match term {
            Term::SoftRules => levels.soft_rules,
            Term::Unmet => levels.unmet,
            Term::Safety => levels.safety,
            Term::Balance => levels.balance,
            Term::Imbalance => levels.imbalance,
            Term::Fragments => levels.fragments,
            Term::HostsInUse => levels.hosts_in_use,
            Term::ItemMoves => levels.item_moves,
            Term::GroupMoves => levels.group_moves,
            Term::HostMoves => levels.host_moves,
        })
    }

    /// How many levels of [`Score::soft`] are in use, at least one.
    pub fn levels_used(&self) -> usize {
        self.levels_used
    }

    /// A host's capacities, one a resource.
    #[inline]
    pub fn capacity(&self, host: Host) -> &[i64] {
        let r = self.resources.len();
        &self.capacity[host.ix() * r..][..r]
    }

    /// What an item needs on a host in one of its shapes, one a resource.
    #[inline]
    pub fn need(&self, item: Item, shape: u8) -> &[i64] {
        let r = self.resources.len();
        let row = self.first_row[item.ix()] as usize + usize::from(shape);
        &self.need[row * r..][..r]
    }

    /// What an item takes from the room of a place: its need, without what it holds there anyway.
    #[inline]
    pub(crate) fn claim(&self, item: Item, place: Place) -> &[i64] {
        if self.has_transient && self.home[item.ix()] == place {
            let r = self.resources.len();
            return &self.home_claim[item.ix() * r..][..r];
        }
        self.need(item, place.shape)
    }

    /// How many shapes an item has, at least one.
    #[inline]
    pub fn shapes(&self, item: Item) -> u8 {
        (self.first_row[item.ix() + 1] - self.first_row[item.ix()]) as u8
    }

    /// Where an item was at first.
    #[inline]
    pub fn home(&self, item: Item) -> Option<Place> {
        let home = self.home[item.ix()];
        home.is_somewhere().then_some(home)
    }

    /// The assignment everything starts from.
    pub fn initial(&self) -> Assignment {
        Assignment::from_places((0..self.items).map(|ix| self.home(Item::from(ix))))
    }

    /// Whether an item may never move. One without a home may be placed.
    #[inline]
    pub fn pinned(&self, item: Item) -> bool {
        self.pinned[item.ix()]
    }

    /// Whether nothing may arrive on a host.
    #[inline]
    pub fn closed(&self, host: Host) -> bool {
        self.closed[host.ix()]
    }

    /// Whether a host is to be emptied.
    #[inline]
    pub fn drained(&self, host: Host) -> bool {
        self.drained[host.ix()]
    }

    /// Whether an item may be on a host by its host set, whatever is there.
    #[inline]
    pub fn allowed(&self, item: Item, host: Host) -> bool {
        let set = self.allowed[item.ix()];
        set == NONE || self.sets[set as usize].contains(host.ix())
    }

    /// Hosts that are open for arrivals and allowed for an item.
    #[inline]
    pub fn open_hosts(&self, item: Item) -> &[u32] {
        let set = self.allowed[item.ix()];
        self.open_hosts.row(if set == NONE { self.sets.len() } else { set as usize })
    }

    /// Bytes a move of the item carries.
    pub fn move_bytes(&self, item: Item) -> u64 {
        self.move_bytes[item.ix()]
    }

    /// The items of a group.
    pub fn members(&self, group: Group) -> impl Iterator<Item = Item> + '_ {
        self.groups.row(group.ix()).iter().map(|ix| Item(*ix))
    }

    /// A rule as it was given.
    pub fn rule(&self, rule: Rule) -> &RuleSpec {
        &self.rules[rule.ix()]
    }

    /// Every rule in the order given.
    pub fn rules(&self) -> &[RuleSpec] {
        &self.rules
    }

    /// The domain of a host in a partition, if it is in one.
    #[inline]
    pub fn domain(&self, partition: Partition, host: Host) -> Option<u32> {
        let domain = self.partitions[partition.ix()][host.ix()];
        (domain != NONE).then_some(domain)
    }

    /// Whether a host is in a host set.
    pub fn in_set(&self, set: HostSet, host: Host) -> bool {
        self.sets[set.ix()].contains(host.ix())
    }

    /// The objective of an assignment, computed from scratch and independently of the incremental state.
    pub fn evaluate(&self, assignment: &Assignment) -> Objective {
        super::evaluate::evaluate(self, assignment)
    }

    /// Hard and soft rules, capacities and places an assignment breaks, for people.
    pub fn violations(&self, assignment: &Assignment) -> Vec<super::Violation> {
        super::evaluate::violations(self, assignment)
    }

    /// A score no assignment of all items can be better than.
    pub fn lower_bound(&self) -> Score {
        super::bound::lower_bound(self)
    }
}
