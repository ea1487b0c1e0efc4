//! All VMs of this host: who gets room, and which task a request goes to.
//!
//! The table and the room are changed together under one lock, which is never
//! held while waiting.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ballast_model::{Bytes, Epoch, MigrationId, Refusal, RefusalCode, Resources, VmId, VmSpec};
use ballast_proto::v1::MigrationVerdict;
use tracing::{error, info};

use crate::driver::{Outgoing, Terms};
use crate::vm::accept::{Phase, not_found};
use crate::vm::{Context, Listening, Request, VmHandle, VmView, owner};

/// The most VMs on one host.
pub const VMS_MAX: usize = 256;
/// The most VMs that may be coming here at once.
pub const INCOMING_MAX: usize = 8;
/// How often a request that met a VM on its way out looks again.
const TRIES_MAX: usize = 3;

/// See the module.
pub struct Host {
    context: Arc<Context>,
    capacity: Resources,
    vms: Mutex<BTreeMap<VmId, VmHandle>>,
}

impl Host {
    /// A host that has found again what an earlier agent left.
    ///
    /// # Errors
    /// When the state directory cannot be read. A VM that cannot be adopted is logged and left alone.
    pub async fn adopt(context: Arc<Context>, capacity: Resources) -> Result<Arc<Self>, Refusal> {
        let found = context.state.vms()?;
        let host = Arc::new(Self { context, capacity, vms: Mutex::default() });
        for vm in found {
            match owner::adopt(host.context.clone(), vm.clone(), host.on_end(&vm)).await {
                Ok(Some(handle)) => {
                    host.lock().insert(vm, handle);
                }
                Ok(None) => info!(%vm, "nothing is left of the VM"),
                Err(refusal) => error!(%vm, %refusal, "cannot adopt the VM; it is left alone"),
            }
        }
        Ok(host)
    }

    /// What is shared with the VMs' tasks.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// What it offers to VMs.
    pub fn capacity(&self) -> Resources {
        self.capacity
    }

    /// Every VM here, by name.
    pub fn vms(&self) -> Vec<(VmId, VmView)> {
        let vms = self.lock();
        vms.iter()
            .map(|(vm, handle)| (vm.clone(), handle.view()))
            .filter(|(_, view)| view.phase != Phase::Empty)
            .collect()
    }

    /// One VM.
    pub fn vm(&self, vm: &VmId) -> Option<VmView> {
        let view = self.lock().get(vm)?.view();
        (view.phase != Phase::Empty).then_some(view)
    }

    /// Starts a VM, or lets one go on from a snapshot.
    ///
    /// # Errors
    /// `CapacityExceeded`, or as the VM's task or its machine says.
    pub async fn create(
        self: &Arc<Self>,
        spec: VmSpec,
        epoch: Epoch,
        restore_from: Option<PathBuf>,
    ) -> Result<(), Refusal> {
        for _ in 0..TRIES_MAX {
            let handle = self.slot(&spec, false)?;
            let asked = handle.ask(|reply| {
                Request::Create(Box::new(spec.clone()), epoch, restore_from.clone(), reply)
            });
            if let Some(answer) = asked.await {
                return answer;
            }
        }
        Err(busy(&spec.id))
    }

    /// Gets ready to receive a VM.
    ///
    /// # Errors
    /// `CapacityExceeded`, or as the VM's task or its machine says.
    pub async fn prepare(
        self: &Arc<Self>,
        migration: MigrationId,
        spec: VmSpec,
        source_epoch: Epoch,
        terms: Terms,
    ) -> Result<Listening, Refusal> {
        for _ in 0..TRIES_MAX {
            let handle = self.slot(&spec, true)?;
            let asked = handle.ask(|reply| {
                Request::Prepare(migration, Box::new(spec.clone()), source_epoch, terms, reply)
            });
            if let Some(answer) = asked.await {
                return answer;
            }
        }
        Err(busy(&spec.id))
    }

    /// Ends a VM. One that is not here is ended.
    ///
    /// # Errors
    /// As the VM's task says.
    pub async fn destroy(&self, vm: &VmId, epoch: Epoch) -> Result<(), Refusal> {
        let Some(handle) = self.handle(vm) else { return Ok(()) };
        handle.ask(|reply| Request::Destroy(epoch, reply)).await.unwrap_or(Ok(()))
    }

    /// Sends a VM away.
    ///
    /// # Errors
    /// As the VM's task says.
    pub async fn start(&self, vm: &VmId, outgoing: Outgoing, epoch: Epoch) -> Result<(), Refusal> {
        let handle = self.handle(vm).ok_or_else(|| not_found(vm))?;
        let asked = handle.ask(|reply| Request::Start(Box::new(outgoing), epoch, reply)).await;
        asked.unwrap_or_else(|| Err(not_found(vm)))
    }

    /// What the owner record says of a migration.
    ///
    /// # Errors
    /// As the VM's task says; `NotFound` for a commit of what is not here.
    pub async fn resolve(
        &self,
        vm: &VmId,
        migration: MigrationId,
        verdict: MigrationVerdict,
        epoch: Epoch,
    ) -> Result<(), Refusal> {
        if let Some(handle) = self.handle(vm) {
            let ask = handle.ask(|reply| Request::Resolve(migration, verdict, epoch, reply));
            if let Some(answer) = ask.await {
                return answer;
            }
        }
        let absent = crate::vm::accept::Standing { vm, phase: Phase::Empty, epoch: Epoch(0) };
        absent.resolve(migration, verdict, epoch)?;
        if verdict == MigrationVerdict::Abort {
            self.context.migrations.acknowledged(migration);
            self.context.state.forget_aborted(migration);
        }
        Ok(())
    }

    fn handle(&self, vm: &VmId) -> Option<VmHandle> {
        self.lock().get(vm).filter(|handle| !handle.is_gone()).cloned()
    }

    /// The VM's entry, or a new one if there is room.
    fn slot(self: &Arc<Self>, spec: &VmSpec, incoming: bool) -> Result<VmHandle, Refusal> {
        let vm = &spec.id;
        let mut vms = self.lock();
        if let Some(handle) = vms.get(vm).filter(|handle| !handle.is_gone()) {
            return Ok(handle.clone());
        }
        vms.remove(vm);
        self.check_room(&vms, spec, incoming)?;
        let handle = owner::start(self.context.clone(), vm.clone(), spec.memory, self.on_end(vm));
        vms.insert(vm.clone(), handle.clone());
        Ok(handle)
    }

    fn check_room(
        &self,
        vms: &BTreeMap<VmId, VmHandle>,
        spec: &VmSpec,
        incoming: bool,
    ) -> Result<(), Refusal> {
        let (vm, size) = (&spec.id, spec.memory);
        if vms.len() >= VMS_MAX {
            return Err(Refusal::new(
                RefusalCode::CapacityExceeded,
                format!("no room for VM {vm}: {VMS_MAX} VMs are here"),
                "use another host",
            ));
        }
        let is_incoming = |handle: &&VmHandle| matches!(handle.view().phase, Phase::Incoming(_));
        if incoming && vms.values().filter(is_incoming).count() >= INCOMING_MAX {
            return Err(Refusal::new(
                RefusalCode::RateLimited,
                format!("{INCOMING_MAX} VMs are coming here already"),
                "wait until one of them has arrived",
            ));
        }
        let taken: Bytes = vms.values().map(VmHandle::memory).sum();
        let room = self.capacity.memory - taken;
        if size > room {
            return Err(Refusal::new(
                RefusalCode::CapacityExceeded,
                format!(
                    "no room for VM {vm}: it has {size} of memory, {room} of {} are free",
                    self.capacity.memory
                ),
                "use a host with more room",
            ));
        }
        Ok(())
    }

    /// Takes the VM out of the table once its task has ended, unless a new one is there.
    fn on_end(self: &Arc<Self>, vm: &VmId) -> Box<dyn FnOnce() + Send> {
        let (host, vm): (Weak<Self>, VmId) = (Arc::downgrade(self), vm.clone());
        Box::new(move || {
            if let Some(host) = host.upgrade() {
                let mut vms = host.lock();
                if vms.get(&vm).is_some_and(VmHandle::is_gone) {
                    vms.remove(&vm);
                }
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, VmHandle>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn busy(vm: &VmId) -> Refusal {
    Refusal::new(
        RefusalCode::RateLimited,
        format!("VM {vm} comes and goes on this host"),
        "try again",
    )
}
