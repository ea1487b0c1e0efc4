//! An instance as a problem of the solver, and the plan that meets it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use ballast_model::Refusal;
use ballast_placement::core::{
    Host, HostSet, HostSpec, Item, ItemSpec, ObjectiveTable, Partition, Place, Problem,
    ProblemBuilder, ResourceSpec, Rule, RuleKind, RuleSpec, Strength,
};
use ballast_placement::mend::mend;
use ballast_placement::order::{Cluster, HostLimits, Ordered, Timing, order_moves};

use super::file::{Constraint, Instance};

/// What starting a VM is taken for.
const BOOT: Duration = Duration::from_secs(1);
/// Amounts of memory in these files are megabytes.
const MEMORY_UNIT: u64 = 1 << 20;

/// A plan and where it leads.
pub(super) struct Solved {
    /// The VMs that run or shall run; items of the problem in this order.
    pub(super) items: Vec<u32>,
    /// Places are nodes, VMs are items.
    pub(super) ordered: Ordered,
    pub(super) timing: Timing,
    /// Per VM of the instance, where it runs afterwards.
    pub(super) running: Vec<Option<u32>>,
}

/// Meets what can be met with few moves, in an order.
///
/// # Errors
/// If the instance is more than the solver can number.
pub(super) fn solve(instance: &Instance) -> Result<Solved, Refusal> {
    let Built { problem, items, continuous } = Build::new(instance).build()?;
    let initial = problem.initial();
    let target = mend(&problem, &initial);
    let cluster =
        Cluster::new(&problem, &initial).with_continuous(|rule| continuous.contains(&rule));
    let ordered = order_moves(&cluster, &target);
    let timing = Timing::estimate(&cluster, &ordered.order, &|_| HostLimits::default(), BOOT);
    let mut running = instance.running.clone();
    for (item, place) in ordered.reached.iter() {
        running[items[item.ix()] as usize] = place.map(|place| place.host.0);
    }
    Ok(Solved { items, ordered, timing, running })
}

struct Built {
    problem: Problem,
    items: Vec<u32>,
    continuous: BTreeSet<Rule>,
}

struct Build<'a> {
    instance: &'a Instance,
    builder: ProblemBuilder,
    /// VM to item.
    item_of: HashMap<u32, Item>,
    items: Vec<u32>,
    sets: HashMap<Vec<u32>, HostSet>,
    partitions: HashMap<usize, Partition>,
    hosts: Option<Partition>,
    continuous: BTreeSet<Rule>,
}

impl<'a> Build<'a> {
    fn new(instance: &'a Instance) -> Self {
        Self {
            instance,
            builder: ProblemBuilder::new(ObjectiveTable::cluster()),
            item_of: HashMap::new(),
            items: Vec::new(),
            sets: HashMap::new(),
            partitions: HashMap::new(),
            hosts: None,
            continuous: BTreeSet::new(),
        }
    }

    fn build(mut self) -> Result<Built, Refusal> {
        for _ in &self.instance.resources {
            self.builder.resource(ResourceSpec::allocation());
        }
        self.add_hosts();
        self.add_items();
        for constraint in &self.instance.constraints {
            match constraint {
                Constraint::Spread { vms, continuous } => {
                    let partition = self.host_partition();
                    self.rule(vms, partition, RuleKind::AtMostPerDomain(1), *continuous);
                }
                Constraint::Gather { vms } => {
                    let partition = self.host_partition();
                    self.rule(vms, partition, RuleKind::MaxDomains(1), false);
                }
                Constraint::Among { vms, parts, continuous } => {
                    let partition = self.partition(*parts);
                    self.rule(vms, partition, RuleKind::MaxDomains(1), *continuous);
                }
                _ => {}
            }
        }
        Ok(Built { problem: self.builder.build()?, items: self.items, continuous: self.continuous })
    }

    fn add_hosts(&mut self) {
        let mut drained = vec![false; self.instance.nodes.len()];
        for constraint in &self.instance.constraints {
            if let Constraint::Offline { node } = constraint {
                drained[*node as usize] = true;
            }
        }
        for (node, drained) in drained.into_iter().enumerate() {
            let capacity = self.instance.capacity.iter().map(|capacity| amount(capacity[node]));
            self.builder.host(HostSpec {
                capacity: capacity.collect(),
                drained,
                closed: !self.instance.online[node],
                ..HostSpec::default()
            });
        }
    }

    /// Adds the VMs that run or shall run, each with the nodes it may use.
    fn add_items(&mut self) {
        let instance = self.instance;
        let mut wanted: Vec<bool> = instance.running.iter().map(Option::is_some).collect();
        let mut rooted = vec![false; wanted.len()];
        let mut allowed: Vec<Option<BTreeSet<u32>>> = vec![None; wanted.len()];
        for constraint in &instance.constraints {
            match constraint {
                Constraint::Running { vm } => wanted[*vm as usize] = true,
                Constraint::Root { vm } => rooted[*vm as usize] = true,
                Constraint::Fence { vm, nodes } => {
                    narrow(&mut allowed[*vm as usize], &instance.parts[*nodes][0], true, instance);
                }
                Constraint::Ban { vm, nodes } => {
                    narrow(&mut allowed[*vm as usize], &instance.parts[*nodes][0], false, instance);
                }
                Constraint::Among { vms, parts, .. } => {
                    let nodes = self.possible(vms, *parts);
                    for vm in vms {
                        narrow(&mut allowed[*vm as usize], &nodes, true, instance);
                    }
                }
                _ => {}
            }
        }
        let memory = instance.resources.iter().position(|name| name.starts_with("mem"));
        for (vm, _) in (0_u32..).zip(&wanted).filter(|(_, wanted)| **wanted) {
            let n = vm as usize;
            let set = allowed[n].take().map(|nodes| self.set(nodes.into_iter().collect()));
            let bytes = memory.map_or(0, |memory| instance.need[n][memory]);
            let item = self.builder.item(ItemSpec {
                shapes: vec![instance.need[n].iter().map(|need| amount(*need)).collect()],
                home: instance.running[n].map(|node| Place::on(Host(node))),
                pinned: rooted[n],
                move_cost: 1,
                move_bytes: bytes.saturating_mul(MEMORY_UNIT),
                allowed: set,
            });
            self.item_of.insert(vm, item);
            self.items.push(vm);
        }
    }

    /// The nodes that VMs which belong in one part may use: the part they are in, or any of them if none runs yet or
    /// if they are in several.
    fn possible(&self, vms: &[u32], parts: usize) -> Vec<u32> {
        let parts = &self.instance.parts[parts];
        let used: BTreeSet<u32> =
            vms.iter().filter_map(|vm| self.instance.running[*vm as usize]).collect();
        let inside = |part: &&Vec<u32>| used.iter().all(|node| part.binary_search(node).is_ok());
        match parts.iter().find(inside) {
            Some(part) if !used.is_empty() => part.clone(),
            _ => parts.iter().flatten().copied().collect(),
        }
    }

    fn set(&mut self, nodes: Vec<u32>) -> HostSet {
        if let Some(set) = self.sets.get(&nodes) {
            return *set;
        }
        let set = self.builder.host_set(nodes.iter().copied().map(Host).collect());
        self.sets.insert(nodes, set);
        set
    }

    fn host_partition(&mut self) -> Partition {
        *self.hosts.get_or_insert_with(|| self.builder.host_partition())
    }

    fn partition(&mut self, parts: usize) -> Partition {
        if let Some(partition) = self.partitions.get(&parts) {
            return *partition;
        }
        let mut domains = vec![None; self.instance.nodes.len()];
        for (n, part) in (0..).zip(&self.instance.parts[parts]) {
            part.iter().for_each(|node| domains[*node as usize] = Some(n));
        }
        let partition = self.builder.partition(domains);
        self.partitions.insert(parts, partition);
        partition
    }

    fn rule(&mut self, vms: &[u32], partition: Partition, kind: RuleKind, continuous: bool) {
        let items: Vec<Item> = vms.iter().filter_map(|vm| self.item_of.get(vm).copied()).collect();
        if items.len() < 2 {
            return;
        }
        let group = self.builder.group(items);
        let strength = Strength::Hard;
        let rule = self.builder.rule(RuleSpec { group, partition, kind, strength });
        if continuous {
            self.continuous.insert(rule);
        }
    }
}

/// Leaves of the nodes only those listed, or only the others.
fn narrow(allowed: &mut Option<BTreeSet<u32>>, nodes: &[u32], keep: bool, instance: &Instance) {
    let listed = |node: &u32| nodes.binary_search(node).is_ok() == keep;
    match allowed {
        Some(allowed) => allowed.retain(listed),
        None if keep => *allowed = Some(nodes.iter().copied().collect()),
        None => {
            let all = 0..u32::try_from(instance.nodes.len()).unwrap_or(u32::MAX);
            *allowed = Some(all.filter(listed).collect());
        }
    }
}

/// Beyond what the solver takes it refuses by itself.
fn amount(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}
