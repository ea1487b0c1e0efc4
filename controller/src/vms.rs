//! Creating and removing VMs: the record first, then the host, then the record again.
//!
//! ```text
//!  create:  Creating + owner + audit ──▶ agent ──┬─▶ Settled, audit closed
//!                                                └─▶ destroyed there, records gone, audit closed as failed
//!  remove:  Removing + audit ──▶ agent ──▶ records gone, audit closed
//! ```
//!
//! What was begun and not ended, because the controller died or the host did
//! not answer, [`Controller::repair_vms`] ends in a later round.

use std::path::PathBuf;
use std::sync::Arc;

use ballast_model::audit::action;
use ballast_model::{
    ClusterSnapshot, Epoch, HostId, Owner, ReasonTrail, Refusal, RefusalCode, VmId, VmSpec,
};
use ballast_proto::v1;

use crate::agents::Start;
use crate::controller::Controller;
use crate::journal::{Act, outcome_of};
use crate::snapshot::Purpose;
use crate::state::{VmChange, VmEntry, VmRecord, json, not_found, unchanged};
use crate::store::{Compare, Transaction, keys};

/// A VM to be created.
#[derive(Debug, Clone)]
pub struct Creation {
    /// What its owner asked for.
    pub spec: VmSpec,
    /// Where; the planner chooses when it is not said.
    pub host: Option<HostId>,
    /// A snapshot on that host to go on from, instead of booting.
    pub restore_from: Option<PathBuf>,
}

impl Creation {
    /// One that boots.
    pub fn boot(spec: VmSpec, host: Option<HostId>) -> Self {
        Self { spec, host, restore_from: None }
    }
}

impl Controller {
    /// Creates a VM on its host, or where the planner puts it.
    ///
    /// # Errors
    /// `InvalidArgument`, `AlreadyExists`, `NotFound` (host), `CapacityExceeded`, `RuleViolation`,
    /// `WrongState`, `Unavailable`; or what the host refused, after everything was undone.
    pub async fn create_vm(
        self: &Arc<Self>,
        creation: Creation,
        reasons: ReasonTrail,
    ) -> Result<VmId, Refusal> {
        let Creation { spec, host, restore_from } = creation;
        spec.validate()?;
        let id = spec.id.clone();
        let _busy = self.hold(&id).ok_or_else(|| changing(&id))?;
        let (owner, opened) = {
            let _turn = self.deciding.lock().await;
            let inventory = self.repository.inventory().await?;
            if inventory.vms.contains_key(&id) {
                return Err(Refusal::new(
                    RefusalCode::AlreadyExists,
                    format!("there is a VM {id} already"),
                    "choose another name, or remove that one first",
                ));
            }
            let snapshot = self.snapshot_of(&inventory, Purpose::Order, Some(&spec));
            let host = self.choose_host(&snapshot, &spec, host)?;
            let owner = Owner { vm: id.clone(), host, epoch: Epoch::first(inventory.revision) };
            let record = VmRecord { spec: spec.clone(), change: VmChange::Creating };
            let announced = Transaction::when(Compare::Absent(keys::vm_spec(&id)))
                .and(Compare::Absent(keys::vm_owner(&id)))
                .put(keys::vm_spec(&id), json(&record))
                .put(keys::vm_owner(&id), json(&owner));
            let mut act = Act::new(action::VM_CREATE, &id, reasons)
                .with("host", &owner.host)
                .with("epoch", owner.epoch.0)
                .with("memory_bytes", spec.memory.get())
                .with("vcpus", spec.vcpus);
            if let Some(path) = &restore_from {
                act = act.with("restore_from", path.display());
            }
            let opened = self.journal.open(&act, announced).await?;
            (owner, opened)
        };
        let start = Start { spec, epoch: owner.epoch, restore_from };
        let answer = match self.agent(&owner.host).await {
            Ok(agent) => agent.create_vm(&start).await,
            Err(refusal) => Err(refusal),
        };
        match answer {
            Ok(status) => self.live.vm_seen(&owner.host, &id, status),
            Err(refusal) => {
                return Err(self.undo_creation(&id, &owner, opened, refusal).await);
            }
        }
        self.settle(&id, Some(opened)).await?;
        tracing::info!(vm = %id, host = %owner.host, epoch = %owner.epoch, "a VM is created");
        Ok(id)
    }

    /// The given host if it can take the VM, else the planner's choice.
    fn choose_host(
        &self,
        snapshot: &ClusterSnapshot,
        spec: &VmSpec,
        host: Option<HostId>,
    ) -> Result<HostId, Refusal> {
        let options = self.config.plan_options();
        let Some(host) = host else {
            return ballast_placement::place(snapshot, &spec.id, spec.size(), &options);
        };
        if !snapshot.hosts.contains_key(&host) {
            return Err(not_found("host", host.as_str(), "ballast host ls"));
        }
        ballast_placement::check_start(snapshot, &spec.id, &host)?;
        Ok(host)
    }

    /// Takes back what a failed creation left; answers with what the operator is told.
    async fn undo_creation(
        &self,
        id: &VmId,
        owner: &Owner,
        opened: crate::audit::OpenRecord,
        refusal: Refusal,
    ) -> Refusal {
        let gone = match self.agent(&owner.host).await {
            Ok(agent) => gone(agent.destroy_vm(id, owner.epoch).await),
            Err(refusal) => Err(refusal),
        };
        let undone = match gone {
            Ok(()) => {
                let failed: Result<(), _> = Err(refusal.clone());
                let remove = removal(id);
                self.journal.close_with(&opened, outcome_of(&failed), remove).await
            }
            Err(refusal) => Err(refusal),
        };
        match undone {
            Ok(()) => refusal,
            Err(later) => {
                tracing::warn!(vm = %id, refusal = %later, "a failed creation is undone later");
                let reason = format!("{}; it is being undone", refusal.reason);
                Refusal::new(refusal.code, reason, refusal.remedy)
            }
        }
    }

    /// Writes that nothing is being done to the VM any more.
    async fn settle(
        &self,
        id: &VmId,
        opened: Option<crate::audit::OpenRecord>,
    ) -> Result<(), Refusal> {
        let vm = self.repository.known_vm(id).await?;
        let record = VmRecord { spec: vm.record.value.spec, change: VmChange::Settled };
        let key = keys::vm_spec(id);
        let settled =
            Transaction::when(unchanged(key.clone(), vm.record.revision)).put(key, json(&record));
        match opened {
            Some(opened) => self.journal.close_with(&opened, outcome_of(&Ok(())), settled).await,
            None => self.repository.transact(settled).await.map(drop),
        }
    }

    /// Removes a VM.
    ///
    /// # Errors
    /// `NotFound`; `WrongState` while it is created, moved or removed; `Unavailable` when the store
    /// or the host does not answer, then it is removed as soon as the host does.
    pub async fn delete_vm(
        self: &Arc<Self>,
        id: &VmId,
        reasons: ReasonTrail,
    ) -> Result<(), Refusal> {
        let _busy = self.hold(id).ok_or_else(|| changing(id))?;
        let vm = self.repository.known_vm(id).await?;
        let owner = vm.owner.value.clone();
        match vm.record.value.change {
            VmChange::Settled => {}
            VmChange::Moving { migration } => {
                return Err(Refusal::new(
                    RefusalCode::WrongState,
                    format!("VM {id} is being migrated"),
                    format!("wait for migration {migration} to end, or cancel it"),
                ));
            }
            VmChange::Creating | VmChange::Removing => return Err(changing(id)),
        }
        let record = VmRecord { spec: vm.record.value.spec, change: VmChange::Removing };
        let key = keys::vm_spec(id);
        let announced = Transaction::when(unchanged(key.clone(), vm.record.revision))
            .and(unchanged(keys::vm_owner(id), vm.owner.revision))
            .put(key, json(&record));
        let act = Act::new(action::VM_REMOVE, id, reasons)
            .with("host", &owner.host)
            .with("epoch", owner.epoch.0);
        let opened = self.journal.open(&act, announced).await?;
        self.finish_removal(id, &owner, Some(opened)).await
    }

    async fn finish_removal(
        &self,
        id: &VmId,
        owner: &Owner,
        opened: Option<crate::audit::OpenRecord>,
    ) -> Result<(), Refusal> {
        let agent = self.agent(&owner.host).await?;
        gone(agent.destroy_vm(id, owner.epoch).await).map_err(|refusal| {
            let reason = format!("VM {id} is not removed yet: {}", refusal.reason);
            let remedy = format!("{}; it is removed as soon as its host does it", refusal.remedy);
            Refusal::new(refusal.code, reason, remedy)
        })?;
        match opened {
            Some(opened) => {
                self.journal.close_with(&opened, outcome_of(&Ok(())), removal(id)).await?;
            }
            None => drop(self.repository.transact(removal(id)).await?),
        }
        tracing::info!(vm = %id, host = %owner.host, "a VM is removed");
        Ok(())
    }

    /// Ends creations and removals that nobody works on. A host that does not answer is asked again next time.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn repair_vms(self: &Arc<Self>) -> Result<(), Refusal> {
        for (id, vm) in self.repository.vms().await? {
            let begun = match vm.record.value.change {
                VmChange::Creating => action::VM_CREATE,
                VmChange::Removing => action::VM_REMOVE,
                VmChange::Settled | VmChange::Moving { .. } => continue,
            };
            let this = Arc::clone(self);
            // On its own task: one silent host must not hold up the others.
            let acting = self.acting();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = acting.cancelled() => {}
                    () = this.repair_vm(&id, vm, begun) => {}
                }
            });
        }
        Ok(())
    }

    async fn repair_vm(&self, id: &VmId, seen: VmEntry, begun: &'static str) {
        let Some(_busy) = self.hold(id) else { return };
        let answer = async {
            // It may have ended between the listing and the hold.
            let Some(vm) = self.repository.vm(id).await? else { return Ok(()) };
            if vm.record.revision != seen.record.revision {
                return Ok(());
            }
            let owner = vm.owner.value.clone();
            let opened = self.journal.audit()?.find_open(begun, id.as_str()).await?;
            if begun == action::VM_REMOVE {
                return self.finish_removal(id, &owner, opened).await;
            }
            let agent = self.agent(&owner.host).await?;
            let runs = |status: &v1::VmStatus| {
                status.vm == id.as_str()
                    && status.epoch == owner.epoch.0
                    && status.state == i32::from(v1::VmState::Running)
            };
            if agent.list_vms().await?.iter().any(runs) {
                return self.settle(id, opened).await;
            }
            gone(agent.destroy_vm(id, owner.epoch).await)?;
            let failed: Result<(), _> = Err(Refusal::new(
                RefusalCode::HostFailure,
                "the controller ended while it was created, and its host does not run it",
                "create it again",
            ));
            match opened {
                Some(opened) => {
                    self.journal.close_with(&opened, outcome_of(&failed), removal(id)).await
                }
                None => self.repository.transact(removal(id)).await.map(drop),
            }
        };
        match answer.await {
            Ok(()) => tracing::info!(vm = %id, "{begun} that was left unfinished has ended"),
            Err(refusal) => tracing::warn!(vm = %id, %refusal, "{begun} is still unfinished"),
        }
    }
}

/// A VM that is not there is as good as destroyed.
fn gone(answer: Result<(), Refusal>) -> Result<(), Refusal> {
    match answer {
        Err(refusal) if refusal.code == RefusalCode::NotFound => Ok(()),
        answer => answer,
    }
}

fn removal(id: &VmId) -> Transaction {
    Transaction::default().delete(keys::vm_spec(id)).delete(keys::vm_owner(id))
}

pub(crate) fn changing(id: &VmId) -> Refusal {
    Refusal::new(
        RefusalCode::WrongState,
        format!("VM {id} is being created, moved, saved or removed already"),
        "wait until that has ended",
    )
}
