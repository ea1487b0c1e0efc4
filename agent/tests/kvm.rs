//! Agents with real VMs: the probe guest says whether anything was lost.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests fail as tests do

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use ballast_guest::{Console, Params};
use ballast_proto::v1::{self, MigrationState, VmState};
use common::*;
use rustix::process::{Pid, Signal, kill_process};

/// A directory for agents; what still runs in it at the end of the test is ended.
struct Lab(tempfile::TempDir);

impl Lab {
    /// None, and said so, where there is no KVM.
    fn new() -> Option<Self> {
        if std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
            eprintln!("skipped: /dev/kvm cannot be used");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("guest"), ballast_guest::IMAGE).unwrap();
        Some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn vm(&self) -> v1::VmSpec {
        let params = Params {
            heartbeat_ms: 50,
            duty_percent: 10,
            dirty_mib_per_sec: 2,
            ..Params::default()
        };
        let kernel = self.path().join("guest");
        spec("web-1", kernel.to_str().unwrap(), &params.to_cmdline())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let own = self.path().as_os_str().as_encoded_bytes().to_owned();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(cmdline) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            if cmdline.windows(own.len()).any(|part| part == own) {
                kill(pid);
            }
        }
    }
}

fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

/// An agent as a process of its own.
fn agent_process(lab: &Lab, stub: &Stub) -> Child {
    let file = lab.path().join("a.toml");
    std::fs::write(&file, config_text("a", lab.path(), stub.address, "kvm")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_ballast-agent"))
        .arg("--config")
        .arg(file)
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// The agent that registered as the `nth`.
async fn registered(stub: &Stub, nth: usize) -> Client {
    stub.until(|heard| heard.registrations.len() >= nth).await;
    let host = stub.heard.borrow().registrations[nth - 1].host.clone().unwrap();
    assert!(!host.cpu_model.is_empty());
    assert!(host.cpu_baselines.contains(&v1::CpuBaseline::Host.into()));
    connect(host.endpoint.parse().unwrap()).await
}

/// Reads the console until the guest has said so many heartbeats. No fault may show.
async fn heartbeats_until(client: &mut Client, reader: &mut Console, count: u64) {
    let read = async {
        while reader.report().heartbeats < count {
            let request = v1::ReadConsoleRequest {
                vm: "web-1".into(),
                offset: reader.next_offset(),
                wait_ms: 0,
            };
            let answer = client.read_console(request).await.unwrap().into_inner();
            reader.push(answer.offset, &answer.data);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the guest does not go on");
    assert_eq!(reader.report().faults(), Vec::<String>::new());
}

#[tokio::test]
async fn vms_outlive_a_killed_agent_and_a_killed_vmm_is_reported() {
    let Some(lab) = Lab::new() else { return };
    let stub = Stub::start(Mood::Grant).await;
    let mut agent = agent_process(&lab, &stub);
    let mut client = registered(&stub, 1).await;
    let before = create(&mut client, lab.vm(), 5).await;
    assert_eq!(before.state(), VmState::Running);
    let mut reader = Console::new();
    heartbeats_until(&mut client, &mut reader, 5).await;
    agent.kill().unwrap();
    agent.wait().unwrap();

    let mut agent = agent_process(&lab, &stub);
    let mut client = registered(&stub, 2).await;
    let adopted = stub.heard.borrow().registrations[1].vms[0].clone();
    assert_eq!((adopted.state(), adopted.epoch, adopted.pid), (VmState::Running, 5, before.pid));
    let count = reader.report().heartbeats;
    heartbeats_until(&mut client, &mut reader, count + 5).await;
    let busy = |vm: Option<&v1::VmStatus>| {
        let load = vm.and_then(|vm| vm.load);
        load.is_some_and(|load| load.cpu_time_nanos > 0 && load.resident_bytes > 1 << 20)
    };
    vm_until(&mut client, "web-1", busy).await;

    kill(before.pid);
    let stopped =
        vm_until(&mut client, "web-1", |vm| vm.is_some_and(|vm| vm.state() == VmState::Stopped));
    assert!(stopped.await.unwrap().detail.contains("ended"));
    let destroy = v1::DestroyVmRequest { vm: "web-1".into(), epoch: 5 };
    client.destroy_vm(destroy).await.unwrap();
    assert!(list(&mut client).await.is_empty());
    agent.kill().unwrap();
    agent.wait().unwrap();
}

/// A process that does not answer is waited for; what it is worth shows when it ends.
#[tokio::test]
async fn a_vm_that_dies_while_an_agent_looks_for_it_is_reported() {
    let Some(lab) = Lab::new() else { return };
    let stub = Stub::start(Mood::Grant).await;
    let mut agent = agent_process(&lab, &stub);
    let mut client = registered(&stub, 1).await;
    let vm = create(&mut client, lab.vm(), 5).await;
    agent.kill().unwrap();
    agent.wait().unwrap();

    signal(vm.pid, Signal::STOP);
    let mut agent = agent_process(&lab, &stub);
    // Long enough for it to ask the process, which cannot answer.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    kill(vm.pid);
    registered(&stub, 2).await;
    let found = stub.heard.borrow().registrations[1].vms.clone();
    assert_eq!(found.iter().map(v1::VmStatus::state).collect::<Vec<_>>(), [VmState::Stopped]);
    assert!(found[0].detail.contains("ended while no agent was there"), "{found:?}");
    agent.kill().unwrap();
    agent.wait().unwrap();
}

/// Two agents with a VM that has said something on the first.
async fn pair(lab: &Lab, mood: Mood) -> (Stub, Running, Running, Console) {
    let stub = Stub::start(mood).await;
    let mut a = Running::start(config("a", lab.path(), stub.address, "kvm")).await;
    let b = Running::start(config("b", lab.path(), stub.address, "kvm")).await;
    create(&mut a.client, lab.vm(), 5).await;
    let mut reader = Console::new();
    heartbeats_until(&mut a.client, &mut reader, 3).await;
    (stub, a, b, reader)
}

#[tokio::test]
async fn a_vm_moves_between_hosts() {
    let Some(lab) = Lab::new() else { return };
    let (_stub, mut a, mut b, mut reader) = pair(&lab, Mood::Grant).await;
    let id = migration(1);
    start_migration(&mut a.client, &mut b.client, &id, lab.vm()).await;
    migration_until(&mut b.client, &id, MigrationState::Finished).await;
    let left = migration_until(&mut a.client, &id, MigrationState::Finished).await;
    assert!(left.progress.unwrap().bytes_sent > 0);
    vm_until(&mut a.client, "web-1", |vm| vm.is_none()).await;
    let here = vm_until(&mut b.client, "web-1", |vm| {
        vm.is_some_and(|vm| vm.state() == VmState::Running && vm.epoch == 6)
    });
    assert!(here.await.unwrap().pid > 0);
    let count = reader.report().heartbeats;
    heartbeats_until(&mut b.client, &mut reader, count + 5).await;
    b.client.destroy_vm(v1::DestroyVmRequest { vm: "web-1".into(), epoch: 6 }).await.unwrap();
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn a_destination_killed_before_the_commit_costs_the_source_nothing() {
    let Some(lab) = Lab::new() else { return };
    let (_stub, mut a, mut b, mut reader) = pair(&lab, Mood::Unavailable).await;
    let id = migration(2);
    start_migration(&mut a.client, &mut b.client, &id, lab.vm()).await;
    migration_until(&mut b.client, &id, MigrationState::Ready).await;
    migration_until(&mut a.client, &id, MigrationState::Ready).await;
    let waiting = vm_until(&mut b.client, "web-1", |vm| vm.is_some()).await.unwrap();
    kill(waiting.pid);
    migration_until(&mut b.client, &id, MigrationState::Aborted).await;
    vm_until(&mut b.client, "web-1", |vm| vm.is_none()).await;
    let abort = v1::AgentResolveMigrationRequest {
        migration: id.clone(),
        vm: "web-1".into(),
        verdict: v1::MigrationVerdict::Abort.into(),
        epoch: 5,
    };
    let after = a.client.resolve_migration(abort).await.unwrap().into_inner().status.unwrap();
    assert_eq!((after.state(), after.epoch), (VmState::Running, 5));
    let count = reader.report().heartbeats;
    heartbeats_until(&mut a.client, &mut reader, count + 5).await;
    a.client.destroy_vm(v1::DestroyVmRequest { vm: "web-1".into(), epoch: 5 }).await.unwrap();
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn a_vm_that_cannot_start_leaves_nothing() {
    let Some(lab) = Lab::new() else { return };
    let stub = Stub::start(Mood::Grant).await;
    let mut agent = Running::start(config("a", lab.path(), stub.address, "kvm")).await;
    let missing = spec("web-1", "/nonexistent/kernel", "");
    let request = v1::AgentCreateVmRequest { spec: Some(missing), epoch: 5, ..Default::default() };
    let refusal = refusal(&agent.client.create_vm(request).await.unwrap_err());
    assert!(refusal.reason.contains("/nonexistent/kernel"), "{refusal}");
    assert!(list(&mut agent.client).await.is_empty());
    assert!(!lab.path().join("a/vms/web-1").exists());
    agent.end().await;
}
