//! Agents with modelled VMs, from outside: what a controller sees and what survives.

#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests fail as tests do

mod common;

use ballast_model::RefusalCode;
use ballast_proto::v1::{self, MigrationState, VmState};
use common::*;

const CMDLINE: &str = "duty=30 ws_mib=8 dirty_mib_s=2 hb_ms=20";

fn vm(id: &str) -> v1::VmSpec {
    spec(id, "/nonexistent", CMDLINE)
}

#[tokio::test]
async fn an_agent_registers_and_reports() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Stub::start(Mood::Grant).await;
    let mut config = config("a", dir.path(), stub.address, "sim");
    config.offers = ["storage:san-1".to_owned()].into();
    let mut agent = Running::start(config).await;
    stub.until(|heard| heard.registrations.len() == 1).await;
    create(&mut agent.client, vm("web-1"), 5).await;
    let has_load = |report: &v1::LoadReport| {
        report.vms.iter().any(|vm| vm.load.is_some_and(|load| load.cpu_millicores == 300))
    };
    stub.until(|heard| heard.reports.get("a").is_some_and(|r| r.iter().any(has_load))).await;
    {
        let heard = stub.heard.borrow();
        let host = heard.registrations[0].host.clone().unwrap();
        assert_eq!(host.endpoint, agent.agent.as_ref().unwrap().listen.to_string());
        assert_eq!(host.capacity.unwrap().cpu_millicores, 1000);
        assert_eq!(host.offers, ["storage:san-1"]);
        assert!(host.cpu_baselines.is_empty() && host.numa.is_empty(), "a model is on no CPU");
        let sequences: Vec<u64> = heard.reports["a"].iter().map(|r| r.sequence).collect();
        assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
        let load = heard.reports["a"].last().unwrap().load.unwrap();
        assert!(load.cpu_used_millicores >= 300 && load.cpu_pressure_ratio.is_none());
    }
    agent.end().await;
}

#[tokio::test]
async fn a_controller_that_comes_back_is_registered_with_again() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Stub::start(Mood::Grant).await;
    let mut agent = Running::start(config("back-again", dir.path(), stub.address, "sim")).await;
    create(&mut agent.client, vm("web-1"), 5).await;
    stub.until(|heard| !heard.reports.is_empty()).await;
    stub.stop.cancel();
    // The same address again.
    let again = loop {
        if let Ok(listener) = tokio::net::TcpListener::bind(stub.address).await {
            break listener;
        }
        tokio::task::yield_now().await;
    };
    let fresh = Stub::start(Mood::Grant).await;
    let server = tonic::transport::Server::builder()
        .add_service(v1::registry_service_server::RegistryServiceServer::new(fresh.clone()))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(again));
    tokio::spawn(server);
    fresh.until(|heard| heard.registrations.iter().any(|r| r.vms.len() == 1)).await;
    fresh.until(|heard| heard.reports.get("back-again").is_some_and(|r| r[0].sequence == 1)).await;
    assert_eq!(list(&mut agent.client).await[0].state(), VmState::Running);
    agent.end().await;
}

#[tokio::test]
async fn create_and_destroy_are_idempotent_and_guarded_by_the_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Stub::start(Mood::Grant).await;
    let mut agent = Running::start(config("a", dir.path(), stub.address, "sim")).await;
    let client = &mut agent.client;
    for _ in 0..2 {
        let status = create(client, vm("web-1"), 5).await;
        assert_eq!((status.state(), status.epoch), (VmState::Running, 5));
    }
    let check = |result: Result<tonic::Response<_>, tonic::Status>, code| {
        assert_eq!(refusal(&result.map(|_| ()).unwrap_err()).code, code);
    };
    let request =
        |spec, epoch| v1::AgentCreateVmRequest { spec: Some(spec), epoch, ..Default::default() };
    check(client.create_vm(request(vm("web-1"), 4)).await, RefusalCode::StaleEpoch);
    let mut other = vm("web-1");
    other.vcpus = 2;
    check(client.create_vm(request(other, 5)).await, RefusalCode::AlreadyExists);
    let mut large = vm("large");
    large.memory_bytes = 1 << 30;
    check(client.create_vm(request(large, 5)).await, RefusalCode::CapacityExceeded);
    check(client.create_vm(request(vm("Bad"), 5)).await, RefusalCode::InvalidArgument);
    check(client.create_vm(request(vm("web-2"), 0)).await, RefusalCode::InvalidArgument);
    let broken = spec("web-2", "/k", "duty=1000");
    check(client.create_vm(request(broken, 5)).await, RefusalCode::InvalidArgument);
    assert_eq!(list(client).await.len(), 1);

    let destroy = |epoch| v1::DestroyVmRequest { vm: "web-1".into(), epoch };
    let stale = client.destroy_vm(destroy(4)).await.unwrap_err();
    assert_eq!(refusal(&stale).code, RefusalCode::StaleEpoch);
    for _ in 0..2 {
        client.destroy_vm(destroy(5)).await.unwrap();
    }
    assert!(list(client).await.is_empty());
    assert!(!dir.path().join("a/vms/web-1").exists());
    create(client, vm("web-1"), 9).await;
    agent.end().await;
}

/// Two agents with a VM on the first, and the stub in `mood`.
async fn pair(dir: &std::path::Path, mood: Mood) -> (Stub, Running, Running) {
    let stub = Stub::start(mood).await;
    let mut a = Running::start(config("a", dir, stub.address, "sim")).await;
    let b = Running::start(config("b", dir, stub.address, "sim")).await;
    create(&mut a.client, vm("web-1"), 5).await;
    (stub, a, b)
}

#[tokio::test]
async fn a_vm_moves_and_is_in_one_place() {
    let dir = tempfile::tempdir().unwrap();
    let (stub, mut a, mut b) = pair(dir.path(), Mood::Grant).await;
    let id = migration(1);
    let before = heartbeats(&console(&mut a.client, "web-1").await);
    start_migration(&mut a.client, &mut b.client, &id, vm("web-1")).await;
    let arrived = migration_until(&mut b.client, &id, MigrationState::Finished).await;
    let left = migration_until(&mut a.client, &id, MigrationState::Finished).await;
    let progress = left.progress.unwrap();
    assert!(progress.rounds >= 2 && progress.bytes_sent > 14 << 20, "{progress:?}");
    assert!(progress.downtime.unwrap().send_micros > 0);
    assert!(arrived.progress.unwrap().downtime.unwrap().commit_micros > 0);
    let here = vm_until(&mut b.client, "web-1", |vm| {
        vm.is_some_and(|vm| vm.state() == VmState::Running && vm.epoch == 6)
    });
    here.await;
    vm_until(&mut a.client, "web-1", |vm| vm.is_none()).await;
    assert!(!dir.path().join("a/vms/web-1").exists());
    assert!(heartbeats(&console(&mut b.client, "web-1").await) >= before);
    assert_eq!(stub.heard.borrow().granted.len(), 1);
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn a_refused_commit_leaves_the_vm_at_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let (_stub, mut a, mut b) = pair(dir.path(), Mood::Refuse).await;
    let id = migration(2);
    start_migration(&mut a.client, &mut b.client, &id, vm("web-1")).await;
    let status = migration_until(&mut b.client, &id, MigrationState::Aborted).await;
    assert_eq!(status.refusal.unwrap().code, "WRONG_STATE");
    migration_until(&mut a.client, &id, MigrationState::Aborted).await;
    vm_until(&mut a.client, "web-1", |vm| {
        vm.is_some_and(|vm| vm.state() == VmState::Running && vm.epoch == 5)
    })
    .await;
    vm_until(&mut b.client, "web-1", |vm| vm.is_none()).await;
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn both_sides_wait_while_the_record_cannot_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (stub, mut a, mut b) = pair(dir.path(), Mood::Unavailable).await;
    let id = migration(3);
    start_migration(&mut a.client, &mut b.client, &id, vm("web-1")).await;
    migration_until(&mut b.client, &id, MigrationState::Ready).await;
    migration_until(&mut a.client, &id, MigrationState::Ready).await;
    stub.until(|heard| heard.commits >= 3 && heard.queries >= 1).await;
    // What is no answer of the controller decides nothing either.
    stub.set(Mood::Foreign);
    let asked = stub.heard.borrow().commits;
    stub.until(|heard| heard.commits >= asked + 3).await;
    let at_a = vm_until(&mut a.client, "web-1", |vm| vm.is_some()).await.unwrap();
    let at_b = vm_until(&mut b.client, "web-1", |vm| vm.is_some()).await.unwrap();
    assert_eq!((at_a.state(), at_b.state()), (VmState::Paused, VmState::Incoming));

    // Both agents are started again and ask again.
    let (config_a, config_b) = (
        config("a", dir.path(), stub.address, "sim"),
        config("b", dir.path(), stub.address, "sim"),
    );
    a.end().await;
    b.end().await;
    stub.set(Mood::Grant);
    let mut b = Running::start(config_b).await;
    let mut a = Running::start(config_a).await;
    vm_until(&mut b.client, "web-1", |vm| {
        vm.is_some_and(|vm| vm.state() == VmState::Running && vm.epoch == 6)
    })
    .await;
    vm_until(&mut a.client, "web-1", |vm| vm.is_none()).await;
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn an_abort_before_the_switch_lets_the_source_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (_stub, mut a, mut b) = pair(dir.path(), Mood::Unavailable).await;
    let id = migration(4);
    start_migration(&mut a.client, &mut b.client, &id, vm("web-1")).await;
    for client in [&mut a.client, &mut b.client] {
        for _ in 0..2 {
            let abort = v1::AgentResolveMigrationRequest {
                migration: id.clone(),
                vm: "web-1".into(),
                verdict: v1::MigrationVerdict::Abort.into(),
                epoch: 5,
            };
            client.resolve_migration(abort).await.unwrap();
        }
        migration_until(client, &id, MigrationState::Aborted).await;
    }
    let vms = list(&mut a.client).await;
    assert_eq!((vms[0].state(), vms[0].epoch), (VmState::Running, 5));
    vm_until(&mut b.client, "web-1", |vm| vm.is_none()).await;
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn vms_outlive_their_agent() {
    let dir = tempfile::tempdir().unwrap();
    let stub = Stub::start(Mood::Grant).await;
    let mut a = Running::start(config("a", dir.path(), stub.address, "sim")).await;
    create(&mut a.client, vm("web-1"), 5).await;
    let before = heartbeats(&console(&mut a.client, "web-1").await);
    a.end().await;
    let mut a = Running::start(config("a", dir.path(), stub.address, "sim")).await;
    let vms = list(&mut a.client).await;
    assert_eq!((vms[0].state(), vms[0].epoch), (VmState::Running, 5));
    assert_eq!(vms[0].spec.as_ref(), Some(&vm("web-1")));
    assert!(heartbeats(&console(&mut a.client, "web-1").await) >= before);
    let unknown = v1::WatchMigrationRequest { migration: migration(9) };
    let status = a.client.watch_migration(unknown).await.unwrap_err();
    assert_eq!(refusal(&status).code, RefusalCode::NotFound);
    a.end().await;
}
