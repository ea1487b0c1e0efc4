//! Hosts made of memory: they keep to the agents' contract, and fail when told to.
//!
//! ```text
//!  source:       Sending ─▶ Ready (VM paused) ─▶ superseded: VM gone │ abort: VM runs on
//!  destination:  Listening (VM incoming) ─▶ Ready ─▶ granted: VM runs │ refused: VM gone
//! ```
//!
//! A VM that would run twice is noted the moment it happens.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use ballast_controller::agents::{Agent, Agents, Prepared, Start};
use ballast_controller::controller::Controller;
use ballast_controller::migration::commit::CommitAsked;
use ballast_model::{Bytes, Epoch, HostId, MigrationId, Refusal, RefusalCode, VmId, VmSpec};
use ballast_proto::v1::{self, MigrationRole, MigrationState, MigrationVerdict, VmState};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::watch;

use crate::cluster::spec;

const POLL: Duration = Duration::from_millis(2);

/// A call of the agents' contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Create,
    Save,
    Describe,
    Destroy,
    List,
    Prepare,
    Start,
    Watch,
    Resolve,
    /// Asked of the controller, not of the agent.
    Commit,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is refused.
    Refused,
    /// It does not arrive.
    Lost,
    /// It is done, and its answer does not arrive.
    AnswerLost,
}

#[derive(Debug, Clone)]
struct Vm {
    epoch: Epoch,
    state: VmState,
}

#[derive(Debug, Clone)]
struct Side {
    vm: VmId,
    role: MigrationRole,
    state: MigrationState,
    epoch: Epoch,
}

#[derive(Debug, Default)]
struct Host {
    vms: BTreeMap<VmId, Vm>,
    sides: BTreeMap<MigrationId, Side>,
    silent: bool,
    reports: u64,
    /// When the last report was measured.
    reported_at: u64,
}

#[derive(Default)]
struct Inner {
    hosts: BTreeMap<HostId, Host>,
    faults: BTreeMap<(HostId, Call), Vec<Fault>>,
    /// VMs whose transfer does not get to READY.
    stuck: BTreeSet<VmId>,
    /// Destinations that are READY do not ask.
    mute: bool,
    violations: Vec<String>,
    controller: Option<Arc<Controller>>,
    sends: BTreeMap<MigrationId, HostId>,
    /// Snapshots, on a disk that all hosts share.
    files: BTreeMap<PathBuf, VmSpec>,
}

/// All hosts.
pub(crate) struct World {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

fn silent(host: &HostId) -> Refusal {
    Refusal::new(RefusalCode::Unavailable, format!("host {host} does not answer"), "wait")
}

fn unknown(what: impl std::fmt::Display) -> Refusal {
    Refusal::new(RefusalCode::NotFound, format!("no {what} here"), "look elsewhere")
}

impl World {
    pub(crate) fn new(hosts: &[&str]) -> Arc<Self> {
        let mut inner = Inner::default();
        for host in hosts {
            inner.hosts.insert(host.parse().unwrap(), Host::default());
        }
        Arc::new(Self { inner: Mutex::new(inner), changed: watch::channel(0).0 })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn hosts(&self) -> Vec<HostId> {
        self.lock().hosts.keys().cloned().collect()
    }

    /// Whom destinations and sources ask.
    pub(crate) fn set_controller(&self, controller: Option<Arc<Controller>>) {
        self.lock().controller = controller;
    }

    /// The next calls of this kind to this host go wrong like this, one after the other.
    pub(crate) fn fail(&self, host: &str, call: Call, faults: &[Fault]) {
        self.lock().faults.insert((host.parse().unwrap(), call), faults.to_vec());
    }

    /// The host answers nothing, or answers again.
    pub(crate) fn set_silent(&self, host: &str, silent: bool) {
        self.lock().hosts.get_mut(&host.parse().unwrap()).unwrap().silent = silent;
    }

    /// Transfers of the VM stay short of READY, or go on.
    pub(crate) fn set_stuck(&self, vm: &str, stuck: bool) {
        let vm = vm.parse().unwrap();
        let set = &mut self.lock().stuck;
        if stuck {
            set.insert(vm)
        } else {
            set.remove(&vm)
        };
    }

    /// Destinations that are READY wait before they ask, or ask.
    pub(crate) fn set_mute(&self, mute: bool) {
        self.lock().mute = mute;
    }

    /// The VMM of an incoming VM dies: the destination discards it.
    pub(crate) fn kill_incoming(&self, host: &str) {
        let mut inner = self.lock();
        let host = inner.hosts.get_mut(&host.parse().unwrap()).unwrap();
        host.vms.retain(|_, vm| vm.state != VmState::Incoming);
        for side in host.sides.values_mut().filter(|s| s.role == MigrationRole::Destination) {
            side.state = MigrationState::Aborted;
        }
        drop(inner);
        self.touch();
    }

    /// A copy that should not be there.
    pub(crate) fn plant(&self, host: &str, vm: &str, epoch: Epoch) {
        let vm_id: VmId = vm.parse().unwrap();
        let planted = Vm { epoch, state: VmState::Paused };
        let mut inner = self.lock();
        inner.hosts.get_mut(&host.parse().unwrap()).unwrap().vms.insert(vm_id, planted);
    }

    /// Every (host, epoch) where the VM runs.
    pub(crate) fn runs(&self, vm: &VmId) -> Vec<(HostId, Epoch)> {
        let inner = self.lock();
        let running =
            |host: &Host| host.vms.get(vm).filter(|vm| vm.state == VmState::Running).cloned();
        inner.hosts.iter().filter_map(|(id, h)| Some((id.clone(), running(h)?.epoch))).collect()
    }

    /// Every host that holds anything of the VM.
    pub(crate) fn holds(&self, vm: &VmId) -> Vec<HostId> {
        let inner = self.lock();
        let holds = |(id, host): (&HostId, &Host)| host.vms.contains_key(vm).then(|| id.clone());
        inner.hosts.iter().filter_map(holds).collect()
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// What the host would say of itself in a load report, with `millicores` for each VM.
    pub(crate) fn report(
        &self,
        host: &HostId,
        millicores: impl Fn(&VmId) -> u64,
    ) -> v1::LoadReport {
        let mut inner = self.lock();
        let entry = inner.hosts.get_mut(host).unwrap();
        entry.reports += 1;
        let now = ballast_model::Timestamp::from(std::time::SystemTime::now()).0;
        entry.reported_at = now.max(entry.reported_at + 1);
        let mut statuses = Vec::new();
        for (id, vm) in &entry.vms {
            let load = v1::VmLoad {
                cpu_millicores: millicores(id),
                resident_bytes: 64 << 20,
                cpu_time_nanos: entry.reports,
                ..Default::default()
            };
            statuses.push(v1::VmStatus { load: Some(load), ..status(id, vm) });
        }
        let used: u64 = statuses.iter().filter_map(|s| s.load).map(|l| l.cpu_millicores).sum();
        let memory = 64 << 20;
        v1::LoadReport {
            host: host.to_string(),
            sequence: entry.reports,
            at_unix_millis: entry.reported_at,
            load: Some(v1::HostLoad {
                cpu_used_millicores: used + 10,
                memory_used_bytes: memory * (statuses.len() as u64 + 1),
                memory_available_bytes: 8 << 30,
                ..Default::default()
            }),
            vms: statuses,
        }
    }

    pub(crate) fn statuses(&self, host: &HostId) -> Vec<v1::VmStatus> {
        let inner = self.lock();
        inner.hosts[host].vms.iter().map(|(id, vm)| status(id, vm)).collect()
    }

    /// A new stream begins: reports count from one again.
    pub(crate) fn stream_begins(&self, host: &HostId) {
        self.lock().hosts.get_mut(host).unwrap().reports = 0;
    }

    fn fault(&self, host: &HostId, call: Call) -> Option<Fault> {
        let mut inner = self.lock();
        let faults = inner.faults.get_mut(&(host.clone(), call))?;
        (!faults.is_empty()).then(|| faults.remove(0))
    }

    /// Does a call with whatever is to go wrong with it.
    fn call<T>(
        &self,
        host: &HostId,
        call: Call,
        does: impl FnOnce(&mut Inner) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let fault = self.fault(host, call);
        if self.lock().hosts[host].silent || fault == Some(Fault::Lost) {
            return Err(silent(host));
        }
        if fault == Some(Fault::Refused) {
            let reason = format!("host {host} refuses {call:?}");
            return Err(Refusal::new(RefusalCode::HostFailure, reason, "nothing"));
        }
        let answer = does(&mut self.lock());
        self.touch();
        if fault == Some(Fault::AnswerLost) { Err(silent(host)) } else { answer }
    }
}

impl Inner {
    fn run(&mut self, host: &HostId, vm: &VmId, epoch: Epoch) {
        for (other, at) in &self.hosts {
            if other != host && at.vms.get(vm).is_some_and(|vm| vm.state == VmState::Running) {
                self.violations.push(format!("VM {vm} runs on {other} and {host}"));
            }
        }
        let running = Vm { epoch, state: VmState::Running };
        self.hosts.get_mut(host).unwrap().vms.insert(vm.clone(), running);
    }

    fn side(&mut self, host: &HostId, id: MigrationId) -> Option<&mut Side> {
        self.hosts.get_mut(host).unwrap().sides.get_mut(&id)
    }

    /// What either side is told, by the controller or by the answer to its own question.
    fn resolve(
        &mut self,
        host: &HostId,
        id: MigrationId,
        verdict: MigrationVerdict,
        epoch: Epoch,
    ) -> Result<(), Refusal> {
        let Some(side) = self.side(host, id).map(|side| side.clone()) else {
            return Err(unknown(format!("migration {id}")));
        };
        if matches!(side.state, MigrationState::Finished | MigrationState::Aborted) {
            return Ok(());
        }
        let (state, runs_at) = match (side.role, verdict) {
            (MigrationRole::Source, MigrationVerdict::Superseded) => {
                (MigrationState::Finished, None)
            }
            (MigrationRole::Source, MigrationVerdict::Abort) => {
                (MigrationState::Aborted, Some(side.epoch.max(epoch)))
            }
            (MigrationRole::Destination, MigrationVerdict::Commit) => {
                (MigrationState::Finished, Some(epoch))
            }
            (MigrationRole::Destination, MigrationVerdict::Abort) => {
                (MigrationState::Aborted, None)
            }
            _ => return Ok(()),
        };
        self.side(host, id).unwrap().state = state;
        match runs_at {
            Some(epoch) => self.run(host, &side.vm, epoch),
            None => drop(self.hosts.get_mut(host).unwrap().vms.remove(&side.vm)),
        }
        Ok(())
    }
}

fn status(id: &VmId, vm: &Vm) -> v1::VmStatus {
    v1::VmStatus {
        vm: id.to_string(),
        epoch: vm.epoch.0,
        state: vm.state.into(),
        ..Default::default()
    }
}

/// The agent of one host.
pub(crate) struct MemoryAgent {
    world: Arc<World>,
    host: HostId,
}

/// Finds agents in the world.
pub(crate) struct MemoryAgents(pub(crate) Arc<World>);

impl Agents for MemoryAgents {
    fn agent(&self, host: &HostId, _: &str) -> Result<Arc<dyn Agent>, Refusal> {
        Ok(Arc::new(MemoryAgent { world: Arc::clone(&self.0), host: host.clone() }))
    }
}

#[async_trait]
impl Agent for MemoryAgent {
    async fn create_vm(&self, start: &Start) -> Result<v1::VmStatus, Refusal> {
        let vm = &start.spec.id;
        self.world.call(&self.host, Call::Create, |inner| {
            if let Some(path) = &start.restore_from {
                assert_eq!(inner.files.get(path), Some(&start.spec), "the VM of the file");
            }
            inner.run(&self.host, vm, start.epoch);
            Ok(status(vm, &inner.hosts[&self.host].vms[vm]))
        })
    }

    async fn save_snapshot(
        &self,
        request: v1::AgentSaveSnapshotRequest,
        _: Bytes,
    ) -> Result<v1::SaveSnapshotResponse, Refusal> {
        let vm: VmId = request.vm.parse().unwrap();
        self.world.call(&self.host, Call::Save, |inner| {
            let vms = &mut inner.hosts.get_mut(&self.host).unwrap().vms;
            let found = vms.get_mut(&vm).ok_or_else(|| unknown(&vm))?;
            assert_eq!(found.epoch.0, request.epoch);
            if request.stop {
                found.state = VmState::Stopped;
            }
            inner.files.insert(request.path.into(), spec(vm.as_str()));
            Ok(v1::SaveSnapshotResponse { bytes: 1, paused_micros: 1 })
        })
    }

    async fn describe_snapshot(&self, path: &Path) -> Result<VmSpec, Refusal> {
        self.world.call(&self.host, Call::Describe, |inner| {
            inner.files.get(path).cloned().ok_or_else(|| unknown(path.display()))
        })
    }

    async fn destroy_vm(&self, vm: &VmId, epoch: Epoch) -> Result<(), Refusal> {
        self.world.call(&self.host, Call::Destroy, |inner| {
            let vms = &mut inner.hosts.get_mut(&self.host).unwrap().vms;
            match vms.get(vm) {
                None => Err(unknown(vm)),
                Some(found) if found.epoch > epoch => {
                    Err(Refusal::new(RefusalCode::StaleEpoch, "a later epoch runs", "nothing"))
                }
                Some(_) => {
                    vms.remove(vm);
                    Ok(())
                }
            }
        })
    }

    async fn list_vms(&self) -> Result<Vec<v1::VmStatus>, Refusal> {
        self.world.call(&self.host, Call::List, |inner| {
            Ok(inner.hosts[&self.host].vms.iter().map(|(id, vm)| status(id, vm)).collect())
        })
    }

    async fn read_console(
        &self,
        request: v1::ReadConsoleRequest,
    ) -> Result<v1::ReadConsoleResponse, Refusal> {
        Ok(v1::ReadConsoleResponse { offset: request.offset, data: Vec::new() })
    }

    async fn write_console(
        &self,
        request: v1::WriteConsoleRequest,
    ) -> Result<v1::WriteConsoleResponse, Refusal> {
        let accepted = request.data.len().try_into().unwrap();
        Ok(v1::WriteConsoleResponse { accepted })
    }

    async fn prepare(&self, request: v1::PrepareMigrationRequest) -> Result<Prepared, Refusal> {
        self.world.call(&self.host, Call::Prepare, |inner| {
            let id: MigrationId = request.migration.parse().unwrap();
            let vm: VmId = request.spec.unwrap().id.parse().unwrap();
            let epoch = Epoch(request.source_epoch);
            let host = inner.hosts.get_mut(&self.host).unwrap();
            if let std::collections::btree_map::Entry::Vacant(entry) = host.sides.entry(id) {
                let (role, state) = (MigrationRole::Destination, MigrationState::Listening);
                entry.insert(Side { vm: vm.clone(), role, state, epoch });
                host.vms.insert(vm, Vm { epoch, state: VmState::Incoming });
            }
            inner.sends.insert(id, self.host.clone());
            Ok(Prepared {
                address: format!("{}:1", self.host),
                token: vec![1; 32],
                public_key: vec![],
            })
        })
    }

    async fn start(&self, request: v1::StartMigrationRequest) -> Result<(), Refusal> {
        let id: MigrationId = request.migration.parse().unwrap();
        let vm: VmId = request.vm.parse().unwrap();
        assert_eq!(request.token, vec![1; 32], "the token of the destination");
        self.world.call(&self.host, Call::Start, |inner| {
            let to = inner.sends.get(&id).cloned().ok_or_else(|| unknown("destination"))?;
            let host = inner.hosts.get_mut(&self.host).unwrap();
            if host.sides.contains_key(&id) {
                return Ok(());
            }
            let (role, state) = (MigrationRole::Source, MigrationState::Transferring);
            let epoch = Epoch(request.source_epoch);
            host.sides.insert(id, Side { vm: vm.clone(), role, state, epoch });
            let world = Arc::clone(&self.world);
            tokio::spawn(transfer(world, id, vm.clone(), self.host.clone(), to));
            Ok(())
        })
    }

    async fn watch(
        &self,
        migration: MigrationId,
    ) -> Result<BoxStream<'static, Result<v1::MigrationStatus, Refusal>>, Refusal> {
        let (world, host) = (Arc::clone(&self.world), self.host.clone());
        world.call(&host, Call::Watch, |inner| {
            inner.side(&host, migration).map(drop).ok_or_else(|| unknown(migration))
        })?;
        let changes = world.changed.subscribe();
        let state = (world, host, changes, None::<MigrationState>);
        let stream =
            futures::stream::unfold(state, move |(world, host, mut changes, last)| async move {
                loop {
                    if last.is_some_and(|s| {
                        matches!(s, MigrationState::Finished | MigrationState::Aborted)
                    }) {
                        return None;
                    }
                    let now = world.lock().side(&host, migration).map(|side| side.clone());
                    let side = now?;
                    if last != Some(side.state) {
                        let item = Ok(said(migration, &side));
                        return Some((item, (world, host, changes, Some(side.state))));
                    }
                    changes.changed().await.ok()?;
                }
            });
        Ok(stream.boxed())
    }

    async fn resolve(
        &self,
        migration: MigrationId,
        vm: &VmId,
        verdict: MigrationVerdict,
        epoch: Epoch,
    ) -> Result<Option<v1::VmStatus>, Refusal> {
        self.world.call(&self.host, Call::Resolve, |inner| {
            inner.resolve(&self.host, migration, verdict, epoch)?;
            Ok(inner.hosts[&self.host].vms.get(vm).map(|found| status(vm, found)))
        })
    }
}

/// Each side's own figures.
fn said(id: MigrationId, side: &Side) -> v1::MigrationStatus {
    let downtime = match side.role {
        MigrationRole::Source => v1::Downtime { last_pass_micros: 7_000, ..Default::default() },
        _ => v1::Downtime { resume_micros: 3_000, ..Default::default() },
    };
    let progress = v1::MigrationProgress {
        rounds: 2,
        bytes_sent: 1_000_000,
        downtime: Some(downtime),
        ..Default::default()
    };
    let refusal = (side.state == MigrationState::Aborted).then(|| v1::Refusal {
        code: RefusalCode::HostFailure.name().into(),
        reason: "the peer went away".into(),
        remedy: "try again".into(),
    });
    v1::MigrationStatus {
        migration: id.to_string(),
        vm: side.vm.to_string(),
        role: side.role.into(),
        state: side.state.into(),
        progress: Some(progress),
        refusal,
    }
}

impl World {
    /// One look at the data path: whether both sides are ready, if that is decided.
    fn step(&self, id: MigrationId, vm: &VmId, from: &HostId, to: &HostId) -> Option<bool> {
        let mut inner = self.lock();
        let source = inner.side(from, id).unwrap().state;
        let destination = inner.side(to, id).map(|side| side.state);
        if source != MigrationState::Transferring {
            return Some(false);
        }
        if destination != Some(MigrationState::Listening) {
            // The connection broke before READY: the source goes on by itself.
            inner.side(from, id).unwrap().state = MigrationState::Aborted;
            return Some(false);
        }
        if inner.stuck.contains(vm) {
            return None;
        }
        inner.side(from, id).unwrap().state = MigrationState::Ready;
        inner.side(to, id).unwrap().state = MigrationState::Ready;
        let source = inner.hosts.get_mut(from).unwrap();
        source.vms.get_mut(vm).unwrap().state = VmState::Paused;
        Some(true)
    }
}

/// The data path between two hosts, and what each does at its end of it.
async fn transfer(world: Arc<World>, id: MigrationId, vm: VmId, from: HostId, to: HostId) {
    let ready = loop {
        match world.step(id, &vm, &from, &to) {
            Some(ready) => break ready,
            None => tokio::time::sleep(POLL).await,
        }
    };
    world.touch();
    if ready {
        tokio::join!(ask_to_commit(&world, id, &vm, &to), ask_for_verdict(&world, id, &vm, &from));
    }
}

/// The destination's question, until it has an answer.
async fn ask_to_commit(world: &World, id: MigrationId, vm: &VmId, host: &HostId) {
    loop {
        let (controller, side, silent) = {
            let mut inner = world.lock();
            let side = inner.side(host, id).unwrap().clone();
            (inner.controller.clone(), side, inner.hosts[host].silent || inner.mute)
        };
        if side.state != MigrationState::Ready {
            return;
        }
        let fault = world.fault(host, Call::Commit);
        if let Some(controller) = controller.filter(|_| !silent && fault != Some(Fault::Lost)) {
            let asked = CommitAsked {
                migration: id,
                vm: vm.clone(),
                host: host.clone(),
                source_epoch: side.epoch,
            };
            let answer = controller.commit_migration(&asked).await;
            let verdict = match answer {
                _ if fault == Some(Fault::AnswerLost) => None,
                Ok(epoch) => Some((MigrationVerdict::Commit, epoch)),
                Err(refusal) if refusal.code == RefusalCode::Unavailable => None,
                Err(_) => Some((MigrationVerdict::Abort, side.epoch)),
            };
            if let Some((verdict, epoch)) = verdict {
                let _ = world.lock().resolve(host, id, verdict, epoch);
                return world.touch();
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The source's question, until it has an answer.
async fn ask_for_verdict(world: &World, id: MigrationId, vm: &VmId, host: &HostId) {
    loop {
        let (controller, side, silent) = {
            let mut inner = world.lock();
            let side = inner.side(host, id).unwrap().clone();
            (inner.controller.clone(), side, inner.hosts[host].silent)
        };
        if side.state != MigrationState::Ready {
            return;
        }
        if let Some(controller) = controller.filter(|_| !silent) {
            let answer = controller.query_migration(id, vm, host).await;
            if let Ok((verdict, epoch)) = answer {
                let _ = world.lock().resolve(host, id, verdict, epoch);
                world.touch();
            }
        }
        tokio::time::sleep(POLL).await;
    }
}
