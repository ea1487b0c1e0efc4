//! Small clusters for unit tests.

use ballast_model::snapshot::PlacedVm;
use ballast_model::{
    Bytes, BytesPerSec, ClusterSnapshot, Host, HostState, Millicores, Resources, Revision, Rule,
    RuleId, RuleKind, Timestamp,
};

pub(crate) fn gib(count: u64) -> Bytes {
    Bytes::gib(count)
}

pub(crate) struct Cluster(pub(crate) ClusterSnapshot);

impl Cluster {
    /// Hosts `h0`, `h1`, … of equal capacity.
    pub(crate) fn new(hosts: usize, cores: u64, memory_gib: u64) -> Self {
        let mut snapshot = ClusterSnapshot::empty(Revision(1), Timestamp(0));
        for n in 0..hosts {
            let id: ballast_model::HostId = format!("h{n}").parse().unwrap();
            let capacity = Resources::new(Millicores::cores(cores), gib(memory_gib));
            let host = Host { link: BytesPerSec(125_000_000), ..Host::new(id.clone(), capacity) };
            snapshot.hosts.insert(id, host);
        }
        Self(snapshot)
    }

    pub(crate) fn vm(mut self, id: &str, host: &str, millicores: u64, memory_gib: u64) -> Self {
        let size = Resources::new(Millicores::cores(2), gib(memory_gib));
        let vm = PlacedVm {
            demand: Resources::new(Millicores(millicores), gib(memory_gib)),
            ..PlacedVm::new(id.parse().unwrap(), host.parse().unwrap(), size)
        };
        self.0.vms.insert(vm.id.clone(), vm);
        self
    }

    pub(crate) fn draining(mut self, host: &str) -> Self {
        self.0.hosts.get_mut(&host.parse().unwrap()).unwrap().state = HostState::Draining;
        self
    }
}

pub(crate) fn keep_apart(mut snapshot: ClusterSnapshot, vms: &[&str]) -> ClusterSnapshot {
    let id: RuleId = "apart".parse().unwrap();
    let vms = vms.iter().map(|vm| vm.parse().unwrap()).collect();
    let kind = RuleKind::AntiAffinity { vms, per_host_max: 1 };
    snapshot.rules.insert(id.clone(), Rule::must(id, kind));
    snapshot
}
