//! VMs in files: taking snapshots and going on from them.
//!
//! ```text
//!  snapshot: audit ──▶ agent writes the file ──▶ audit closed ──(stop)──▶ the VM is removed
//!  restore:  agent tells which VM the file is of ──▶ created, from the file
//! ```
//!
//! The controller never sees a file: it stands on the VM's host, and the host
//! it is restored on must find it at the same path. A VM exists once (I1), so
//! one that is still there is not restored.

use std::path::PathBuf;
use std::sync::Arc;

use ballast_model::audit::action;
use ballast_model::{HostId, ReasonTrail, Refusal, VmId};
use ballast_proto::v1;

use crate::controller::Controller;
use crate::journal::{Act, outcome_of};
use crate::state::VmChange;
use crate::store::Transaction;
use crate::vms::{Creation, changing};

impl Controller {
    /// Writes `vm` to the file `path` of its host; with `stop` the VM ends and is removed.
    ///
    /// # Errors
    /// `NotFound`; `WrongState` while it is created, moved or removed, or what its host says. With
    /// `stop`, an error after the file is whole says so.
    pub async fn snapshot_vm(
        self: &Arc<Self>,
        vm: &VmId,
        path: PathBuf,
        stop: bool,
        reasons: ReasonTrail,
    ) -> Result<v1::SnapshotVmResponse, Refusal> {
        let (owner, saved) = {
            let _busy = self.hold(vm).ok_or_else(|| changing(vm))?;
            let entry = self.repository.known_vm(vm).await?;
            let owner = entry.owner.value;
            if entry.record.value.change != VmChange::Settled {
                return Err(changing(vm));
            }
            let act = Act::new(action::VM_SNAPSHOT, vm, reasons.clone())
                .with("host", &owner.host)
                .with("path", path.display())
                .with("stop", stop);
            let opened = self.journal.open(&act, Transaction::default()).await?;
            let request = v1::AgentSaveSnapshotRequest {
                vm: vm.to_string(),
                epoch: owner.epoch.0,
                path: path.to_string_lossy().into_owned(),
                stop,
            };
            let saved = match self.agent(&owner.host).await {
                Ok(agent) => agent.save_snapshot(request, entry.record.value.spec.memory).await,
                Err(refusal) => Err(refusal),
            };
            self.journal.close(opened, outcome_of(&saved)).await;
            (owner, saved?)
        };
        tracing::info!(%vm, host = %owner.host, path = %path.display(), "a VM is in a file");
        if stop {
            self.delete_vm(vm, reasons).await.map_err(|refusal| {
                let reason = format!(
                    "VM {vm} has ended and is whole in {} on host {}, but not removed yet: {}",
                    path.display(),
                    owner.host,
                    refusal.reason
                );
                Refusal::new(refusal.code, reason, refusal.remedy)
            })?;
        }
        Ok(v1::SnapshotVmResponse {
            host: owner.host.to_string(),
            bytes: saved.bytes,
            paused_micros: saved.paused_micros,
        })
    }

    /// Lets the VM of the file `path` on `host` go on there.
    ///
    /// # Errors
    /// `AlreadyExists` while the VM is there; what the host says of the file; those of
    /// [`create_vm`](Self::create_vm).
    pub async fn restore_vm(
        self: &Arc<Self>,
        path: PathBuf,
        host: HostId,
        reasons: ReasonTrail,
    ) -> Result<VmId, Refusal> {
        let spec = self.agent(&host).await?.describe_snapshot(&path).await?;
        let creation = Creation { spec, host: Some(host), restore_from: Some(path) };
        self.create_vm(creation, reasons).await
    }
}
