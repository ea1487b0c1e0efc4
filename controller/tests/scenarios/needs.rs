//! What VMs need and hosts offer: words, CPUs, NUMA nodes.

use std::sync::Arc;

use ballast_controller::service::operators::Operators;
use ballast_controller::vms::Creation;
use ballast_model::{Bytes, CpuBaseline, Refusal, RefusalCode, VmId, VmSpec};
use ballast_proto::v1;
use ballast_proto::v1::controller_service_server::ControllerService;
use tonic::Request;

use crate::cluster::{Cluster, reasons, spec};

/// Registers the host again, which tells this of itself besides.
async fn tell(cluster: &Cluster, host: &str, tell: impl FnOnce(&mut v1::HostDescription)) {
    cluster.register_telling(&host.parse().unwrap(), tell).await.unwrap();
    cluster.report();
}

async fn create(cluster: &Cluster, spec: VmSpec, host: Option<&str>) -> Result<VmId, Refusal> {
    let host = host.map(|host| host.parse().unwrap());
    let created = cluster.controller.create_vm(Creation::boot(spec, host), reasons()).await;
    cluster.report();
    created
}

fn needing(vm: &str, word: &str) -> VmSpec {
    VmSpec { needs: [word.to_owned()].into(), ..spec(vm) }
}

fn check_incompatible<T: std::fmt::Debug>(answer: Result<T, Refusal>, expected: &str) {
    let refusal = answer.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Incompatible, "{refusal}");
    assert!(refusal.reason.contains(expected), "{refusal}");
    assert!(refusal.remedy.contains("a host that offers it"), "{refusal}");
}

#[tokio::test]
async fn a_vm_goes_only_where_what_it_needs_is_offered() {
    let cluster = Cluster::start().await;
    for host in ["h2", "h3"] {
        tell(&cluster, host, |told| told.offers = vec!["storage:san-1".into()]).await;
    }
    let lacks = "VM a needs storage:san-1, which host h1 does not offer";
    check_incompatible(create(&cluster, needing("a", "storage:san-1"), Some("h1")).await, lacks);
    create(&cluster, needing("a", "storage:san-1"), None).await.unwrap();
    let first = cluster.settled().await["a"].clone();
    let other = if first == "h2" { "h3" } else { "h2" };
    check_incompatible(cluster.migrate("a", "h1").await, lacks);
    let id = cluster.migrate("a", "").await.unwrap();
    cluster.ended(id).await;
    assert_eq!(cluster.settled().await["a"], other);

    // A drain, too, has only one place for it, however much h1 has free.
    cluster.create("b", &first).await;
    cluster.controller.drain_host(&other.parse().unwrap(), None, reasons()).await.unwrap();
    cluster.controller.round().await.unwrap();
    assert_eq!(cluster.settled().await["a"], first);
    let refusal = create(&cluster, needing("c", "network:dmz"), None).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Incompatible, "{refusal}");
}

#[tokio::test]
async fn a_vm_leaves_a_host_that_no_longer_offers_what_it_needs() {
    let cluster = Cluster::start().await;
    for host in ["h1", "h2"] {
        tell(&cluster, host, |told| told.offers = vec!["storage:san-1".into()]).await;
    }
    create(&cluster, needing("a", "storage:san-1"), Some("h1")).await.unwrap();
    tell(&cluster, "h1", |_| {}).await;
    cluster.controller.round().await.unwrap();
    assert_eq!(cluster.settled().await["a"], "h2");
}

#[tokio::test]
async fn a_running_vm_moves_only_where_its_guest_finds_its_cpu() {
    use v1::CpuBaseline::{Host, X8664V2, X8664V3};
    let cluster = Cluster::start().await;
    let cpu = |model: &'static str, baselines: &'static [v1::CpuBaseline]| {
        move |told: &mut v1::HostDescription| {
            told.cpu_model = model.to_owned();
            told.cpu_baselines = baselines.iter().map(|baseline| (*baseline).into()).collect();
        }
    };
    tell(&cluster, "h1", cpu("AuthenticAMD-25-1-91f3c0", &[Host, X8664V2, X8664V3])).await;
    tell(&cluster, "h2", cpu("AuthenticAMD-23-8-7be001", &[Host, X8664V2])).await;
    tell(&cluster, "h3", cpu("GenuineIntel-6-85-20aa01", &[Host, X8664V2, X8664V3])).await;

    cluster.create("host-cpu", "h1").await;
    let lacks = "needs cpu-model:AuthenticAMD-25-1-91f3c0 to move while it runs";
    check_incompatible(cluster.migrate("host-cpu", "h2").await, lacks);
    check_incompatible(
        create(&cluster, VmSpec { cpu: CpuBaseline::X86_64V3, ..spec("v3") }, Some("h2")).await,
        "needs cpu:x86-64-v3, which host h2 does not offer",
    );
    let v2 = VmSpec { cpu: CpuBaseline::X86_64V2, ..spec("v2") };
    create(&cluster, v2, Some("h1")).await.unwrap();
    check_incompatible(cluster.migrate("v2", "h3").await, "needs cpu-vendor:AuthenticAMD to move");
    let id = cluster.migrate("v2", "h2").await.unwrap();
    cluster.ended(id).await;
    assert_eq!(cluster.settled().await["v2"], "h2");
}

#[tokio::test]
async fn a_vm_for_one_numa_node_goes_where_one_is_large_enough() {
    let cluster = Cluster::start().await;
    let node = v1::Resources { cpu_millicores: 2_000, memory_bytes: 4 << 30 };
    for host in ["h1", "h2"] {
        tell(&cluster, host, |told| told.numa = vec![node; 2]).await;
    }
    let large = VmSpec { memory: Bytes::gib(6), one_numa_node: true, ..spec("large") };
    let refusal = create(&cluster, large.clone(), Some("h1")).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::CapacityExceeded, "{refusal}");
    assert!(refusal.reason.contains("must fit one NUMA node"), "{refusal}");
    create(&cluster, large, None).await.unwrap();
    assert_eq!(cluster.settled().await["large"], "h3", "which tells of no nodes");
    let spans = VmSpec { memory: Bytes::gib(6), ..spec("spans") };
    create(&cluster, spans, Some("h1")).await.unwrap();
}

#[tokio::test]
async fn operators_see_what_a_host_offers_and_a_vm_needs() {
    let cluster = Cluster::start().await;
    let node = v1::Resources { cpu_millicores: 2_000, memory_bytes: 4 << 30 };
    let v2 = i32::from(v1::CpuBaseline::X8664V2);
    tell(&cluster, "h1", |told| {
        told.offers = vec!["storage:san-1".into()];
        told.cpu_baselines = vec![v2, 77];
        told.numa = vec![node; 2];
    })
    .await;
    let spec = VmSpec { one_numa_node: true, ..needing("a", "storage:san-1") };
    create(&cluster, spec, None).await.unwrap();
    let operators = Operators(Arc::clone(&cluster.controller));
    let host = operators.get_host(Request::new(v1::GetHostRequest { host: "h1".into() })).await;
    let host = host.unwrap().into_inner().description.unwrap();
    assert_eq!(host.offers, ["storage:san-1"]);
    assert_eq!(host.cpu_baselines, [v2], "what a later version knows is left out");
    assert_eq!(host.numa, [node; 2]);
    let vm = operators.get_vm(Request::new(v1::GetVmRequest { vm: "a".into() })).await;
    let vm = vm.unwrap().into_inner().spec.unwrap();
    assert_eq!((vm.needs, vm.one_numa_node), (vec!["storage:san-1".to_owned()], true));
}

#[tokio::test]
async fn a_host_that_offers_what_is_no_word_is_not_taken_in() {
    let cluster = Cluster::start().await;
    let host = "h1".parse().unwrap();
    let two = |told: &mut v1::HostDescription| told.offers = vec!["san 1".into()];
    let refusal = cluster.register_telling(&host, two).await.unwrap_err();
    assert_eq!(refusal.code, RefusalCode::InvalidArgument);
    assert!(refusal.reason.contains("host h1 offers \"san 1\""), "{refusal}");
}
