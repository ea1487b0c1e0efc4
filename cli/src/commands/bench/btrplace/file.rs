//! A BtrPlace instance as it stands in the file, numbered and checked.
//!
//! What is not understood is refused by name: a constraint left out in silence
//! would be broken in silence.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;
use serde::de::IgnoredAny;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileView {
    model: ModelView,
    constraints: Vec<ConstraintView>,
    /// What BtrPlace minimises; here it is always few moves.
    #[serde(default)]
    #[allow(dead_code)] // named, so that any other field is refused
    objective: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelView {
    mapping: MappingView,
    /// Names and durations; nothing that constrains.
    #[serde(default)]
    #[allow(dead_code)] // as above
    attributes: Option<IgnoredAny>,
    #[serde(default)]
    views: Vec<ViewView>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MappingView {
    #[serde(rename = "readyVMs", default)]
    ready: Vec<u32>,
    online_nodes: BTreeMap<u32, NodeView>,
    #[serde(default)]
    offline_nodes: Vec<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeView {
    #[serde(rename = "sleepingVMs", default)]
    sleeping: Vec<u32>,
    #[serde(rename = "runningVMs", default)]
    running: Vec<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ViewView {
    id: String,
    rc_id: Option<String>,
    #[serde(default)]
    def_consumption: u64,
    #[serde(default)]
    def_capacity: u64,
    #[serde(default)]
    vms: HashMap<u32, u64>,
    #[serde(default)]
    nodes: HashMap<u32, u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConstraintView {
    id: String,
    #[serde(default)]
    continuous: bool,
    vm: Option<u32>,
    vms: Option<Vec<u32>>,
    node: Option<u32>,
    nodes: Option<Vec<u32>>,
    parts: Option<Vec<Vec<u32>>>,
    rc: Option<String>,
    amount: Option<u64>,
}

/// A constraint. VMs and nodes are numbers of the instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Constraint {
    /// Those that run are on distinct nodes.
    Spread { vms: Vec<u32>, continuous: bool },
    /// Those that run are all in one of the parts; an index into [`Instance::parts`].
    Among { vms: Vec<u32>, parts: usize, continuous: bool },
    /// Those that run are on one node.
    Gather { vms: Vec<u32> },
    /// If it runs, on one of these nodes; an index into [`Instance::parts`], of one part.
    Fence { vm: u32, nodes: usize },
    /// If it runs, on none of these nodes.
    Ban { vm: u32, nodes: usize },
    /// It stays where it is.
    Root { vm: u32 },
    /// It runs.
    Running { vm: u32 },
    /// It does not run.
    Ready { vm: u32 },
    /// It has so much of a resource; the need of the VM says so too.
    Preserve { vm: u32, resource: usize },
    /// Nothing runs there.
    Offline { node: u32 },
    /// It is there to run something.
    Online { node: u32 },
}

/// An instance.
#[derive(Debug, Default)]
pub(super) struct Instance {
    /// The nodes' numbers in the file, ascending.
    pub(super) nodes: Vec<u32>,
    /// Whether a node is online.
    pub(super) online: Vec<bool>,
    /// The VMs' numbers in the file, ascending.
    pub(super) vms: Vec<u32>,
    /// The node each VM runs on.
    pub(super) running: Vec<Option<u32>>,
    /// Resources.
    pub(super) resources: Vec<String>,
    /// Per resource, per node.
    pub(super) capacity: Vec<Vec<u64>>,
    /// Per VM, per resource; what is to be preserved included.
    pub(super) need: Vec<Vec<u64>>,
    /// Partitions of nodes, each once.
    pub(super) parts: Vec<Vec<Vec<u32>>>,
    pub(super) constraints: Vec<Constraint>,
}

impl Instance {
    /// Numbers everything, or says what is wrong and where.
    pub(super) fn new(view: FileView) -> Result<Self, String> {
        let mut build = Build::default();
        build.mapping(view.model.mapping)?;
        for (n, view) in view.model.views.into_iter().enumerate() {
            build.view(view).map_err(|what| format!("model.views[{n}]: {what}"))?;
        }
        for (n, constraint) in view.constraints.into_iter().enumerate() {
            let id = constraint.id.clone();
            build
                .constraint(constraint)
                .map_err(|what| format!("constraints[{n}] ({id:?}): {what}"))?;
        }
        Ok(build.instance)
    }

    /// Whether a constraint holds if VMs run there.
    pub(super) fn holds(&self, constraint: &Constraint, running: &[Option<u32>]) -> bool {
        let at = |vm: &u32| running[*vm as usize];
        let inside = |vm: &u32, nodes: usize| {
            at(vm).map(|node| self.parts[nodes][0].binary_search(&node).is_ok())
        };
        match constraint {
            Constraint::Spread { vms, .. } => {
                let mut seen = BTreeSet::new();
                vms.iter().filter_map(at).all(|node| seen.insert(node))
            }
            Constraint::Among { vms, parts, .. } => {
                let nodes: BTreeSet<u32> = vms.iter().filter_map(at).collect();
                let holds = |part: &Vec<u32>| nodes.iter().all(|n| part.binary_search(n).is_ok());
                nodes.is_empty() || self.parts[*parts].iter().any(holds)
            }
            Constraint::Gather { vms } => {
                vms.iter().filter_map(at).collect::<BTreeSet<u32>>().len() <= 1
            }
            Constraint::Fence { vm, nodes } => inside(vm, *nodes) != Some(false),
            Constraint::Ban { vm, nodes } => inside(vm, *nodes) != Some(true),
            Constraint::Root { vm } => at(vm) == self.running[*vm as usize],
            Constraint::Running { vm } => at(vm).is_some(),
            Constraint::Ready { vm } => at(vm).is_none(),
            // That the node has what its VMs need is counted per node.
            Constraint::Preserve { vm, resource } => {
                let need = self.need[*vm as usize][*resource];
                at(vm).is_none_or(|node| self.capacity[*resource][node as usize] >= need)
            }
            Constraint::Offline { node } => running.iter().all(|at| *at != Some(*node)),
            Constraint::Online { node } => self.online[*node as usize],
        }
    }
}

#[derive(Default)]
struct Build {
    instance: Instance,
    node_numbers: HashMap<u32, u32>,
    vm_numbers: HashMap<u32, u32>,
    sleeping: BTreeSet<u32>,
    part_numbers: HashMap<Vec<Vec<u32>>, usize>,
}

impl Build {
    fn mapping(&mut self, view: MappingView) -> Result<(), String> {
        let instance = &mut self.instance;
        let mut nodes: Vec<u32> = view.online_nodes.keys().copied().collect();
        nodes.extend(&view.offline_nodes);
        nodes.sort_unstable();
        let mut vms: Vec<u32> = view.ready.clone();
        for node in view.online_nodes.values() {
            vms.extend(node.running.iter().chain(&node.sleeping));
        }
        vms.sort_unstable();
        if let Some(twice) = nodes.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("model.mapping: node {} twice", twice[0]));
        }
        if let Some(twice) = vms.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("model.mapping: VM {} twice", twice[0]));
        }
        self.node_numbers = nodes.iter().copied().zip(0..).collect();
        self.vm_numbers = vms.iter().copied().zip(0..).collect();
        instance.online = nodes.iter().map(|n| view.online_nodes.contains_key(n)).collect();
        instance.running = vec![None; vms.len()];
        for (node, on) in &view.online_nodes {
            for vm in &on.running {
                instance.running[self.vm_numbers[vm] as usize] = Some(self.node_numbers[node]);
            }
            self.sleeping.extend(on.sleeping.iter().map(|vm| self.vm_numbers[vm]));
        }
        instance.need = vec![Vec::new(); vms.len()];
        (instance.nodes, instance.vms) = (nodes, vms);
        Ok(())
    }

    fn view(&mut self, view: ViewView) -> Result<(), String> {
        match (view.id.as_str(), view.rc_id) {
            // Names of nodes and VMs.
            ("ns", _) => Ok(()),
            ("shareableResource", Some(name)) => {
                let instance = &mut self.instance;
                if instance.resources.contains(&name) {
                    return Err(format!("resource {name:?} twice"));
                }
                let capacity = |n: &u32| view.nodes.get(n).copied().unwrap_or(view.def_capacity);
                instance.capacity.push(instance.nodes.iter().map(capacity).collect());
                for (vm, need) in instance.vms.iter().zip(&mut instance.need) {
                    need.push(view.vms.get(vm).copied().unwrap_or(view.def_consumption));
                }
                instance.resources.push(name);
                Ok(())
            }
            ("shareableResource", None) => Err("rcId is missing".to_owned()),
            (other, _) => Err(format!("a view of kind {other:?} is not understood")),
        }
    }

    fn constraint(&mut self, view: ConstraintView) -> Result<(), String> {
        let continuous = view.continuous;
        let constraint = match view.id.as_str() {
            "spread" => Constraint::Spread { vms: self.vms(view.vms)?, continuous },
            "gather" => Constraint::Gather { vms: self.vms(view.vms)? },
            "among" => {
                let parts = view.parts.ok_or("parts are missing")?;
                let parts = self.partition(parts)?;
                Constraint::Among { vms: self.vms(view.vms)?, parts, continuous }
            }
            "fence" | "ban" => {
                let nodes = view.nodes.ok_or("nodes are missing")?;
                let nodes = self.partition(vec![nodes])?;
                let vm = self.vm(view.vm)?;
                match view.id.as_str() {
                    "fence" => Constraint::Fence { vm, nodes },
                    _ => Constraint::Ban { vm, nodes },
                }
            }
            "root" => Constraint::Root { vm: self.vm(view.vm)? },
            "running" => Constraint::Running { vm: self.running(view.vm)? },
            "ready" => Constraint::Ready { vm: self.ready(view.vm)? },
            "online" => Constraint::Online { node: self.online(view.node)? },
            "offline" => Constraint::Offline { node: self.node(view.node)? },
            "preserve" => {
                let vm = self.vm(view.vm)?;
                let name = view.rc.ok_or("rc is missing")?;
                let resource = self.instance.resources.iter().position(|known| *known == name);
                let resource = resource.ok_or_else(|| format!("no resource {name:?}"))?;
                let amount = view.amount.ok_or("amount is missing")?;
                let need = &mut self.instance.need[vm as usize][resource];
                *need = (*need).max(amount);
                Constraint::Preserve { vm, resource }
            }
            _ => return Err("a constraint of this kind is not understood".to_owned()),
        };
        self.instance.constraints.push(constraint);
        Ok(())
    }

    fn vm(&self, vm: Option<u32>) -> Result<u32, String> {
        let vm = vm.ok_or("vm is missing")?;
        self.vm_numbers.get(&vm).copied().ok_or_else(|| format!("no VM {vm}"))
    }

    fn running(&self, vm: Option<u32>) -> Result<u32, String> {
        match self.vm(vm)? {
            vm if self.sleeping.contains(&vm) => Err("a VM to be woken is not understood".into()),
            vm => Ok(vm),
        }
    }

    fn ready(&self, vm: Option<u32>) -> Result<u32, String> {
        match self.vm(vm)? {
            vm if self.instance.running[vm as usize].is_some() => {
                Err("a VM to be stopped is not understood".into())
            }
            vm => Ok(vm),
        }
    }

    fn node(&self, node: Option<u32>) -> Result<u32, String> {
        let node = node.ok_or("node is missing")?;
        self.node_numbers.get(&node).copied().ok_or_else(|| format!("no node {node}"))
    }

    fn online(&self, node: Option<u32>) -> Result<u32, String> {
        match self.node(node)? {
            node if !self.instance.online[node as usize] => {
                Err("a node to be switched on is not understood".into())
            }
            node => Ok(node),
        }
    }

    fn vms(&self, vms: Option<Vec<u32>>) -> Result<Vec<u32>, String> {
        let vms = vms.ok_or("vms are missing")?;
        let mut known: Vec<u32> =
            vms.into_iter().map(|vm| self.vm(Some(vm))).collect::<Result<_, _>>()?;
        known.sort_unstable();
        known.dedup();
        Ok(known)
    }

    /// The number of a partition; most constraints share theirs.
    fn partition(&mut self, parts: Vec<Vec<u32>>) -> Result<usize, String> {
        let mut known = Vec::with_capacity(parts.len());
        for part in parts {
            let mut nodes: Vec<u32> =
                part.into_iter().map(|node| self.node(Some(node))).collect::<Result<_, _>>()?;
            nodes.sort_unstable();
            nodes.dedup();
            known.push(nodes);
        }
        if let Some(number) = self.part_numbers.get(&known) {
            return Ok(*number);
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = known.iter().flatten().find(|node| !seen.insert(**node)) {
            return Err(format!("node {} in two parts", self.instance.nodes[*twice as usize]));
        }
        self.instance.parts.push(known.clone());
        self.part_numbers.insert(known, self.instance.parts.len() - 1);
        Ok(self.instance.parts.len() - 1)
    }
}
