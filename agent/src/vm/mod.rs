//! One VM on this host, and the one task that owns it.
//!
//! Only [`owner`] changes a VM; others queue a [`Request`] and wait for the
//! answer. What is accepted when is decided in [`accept`], as plain data.
//! Reading (load, console) goes to the machine directly and waits for nobody.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`owner`] | the task: requests, what the machine does by itself, what the owner record says |
//! | [`accept`] | which request is accepted where a VM stands |
//! | [`react`] | what follows from what its machine does by itself |
//! | [`aborted`] | what was called off here, kept until the controller has heard of it |
//! | [`record`] | what must be known after a restart |
//! | [`dir`] | where it is kept on disk |
//! | [`disks`] | the files of its local disks |

use std::path::PathBuf;
use std::sync::Arc;

use ballast_model::{Bytes, BytesPerSec, Epoch, MigrationId, Refusal, RefusalCode, VmId, VmSpec};
use ballast_proto::v1;
use tokio::sync::{mpsc, oneshot, watch};

use crate::driver::{Driver, Machine, Outgoing, Terms};
use crate::migrations::Migrations;
use crate::registry::Registry;
use dir::StateDir;

pub mod aborted;
pub mod accept;
pub mod dir;
pub mod disks;
pub mod owner;
pub mod react;
pub mod record;

/// Requests that may wait for one VM.
const QUEUE_MAX: usize = 16;

/// What every VM's task needs.
pub struct Context {
    /// Makes machines.
    pub driver: Arc<dyn Driver>,
    /// Where VMs are kept.
    pub state: StateDir,
    /// Who decides.
    pub registry: Registry,
    /// Where the status of migrations goes.
    pub migrations: Migrations,
    /// On which address migrations are received.
    pub migration_address: std::net::IpAddr,
    /// The host's link.
    pub link: BytesPerSec,
    /// The files of local disks; none where VMs have no files.
    pub disks: Option<disks::LocalDisks>,
}

/// Where a destination listens, and what it wants to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// `ip:port`.
    pub address: String,
    /// The token.
    pub token: Vec<u8>,
    /// What the source knows it by; empty where connections are in the clear.
    pub public_key: Vec<u8>,
}

type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// What a VM's task is asked to do.
pub enum Request {
    /// Start it, from a snapshot if one is named.
    Create(Box<VmSpec>, Epoch, Option<PathBuf>, Reply<()>),
    /// Wait for it, over encrypted connections or in the clear.
    Prepare(MigrationId, Box<VmSpec>, Epoch, Terms, Reply<Listening>),
    /// End it.
    Destroy(Epoch, Reply<()>),
    /// Send it away.
    Start(Box<Outgoing>, Epoch, Reply<()>),
    /// What the owner record says.
    Resolve(MigrationId, v1::MigrationVerdict, Epoch, Reply<()>),
}

/// A VM as others see it.
#[derive(Clone)]
pub struct VmView {
    /// What its owner asked for; none until it is known.
    pub spec: Option<Arc<VmSpec>>,
    /// Under which epoch it is here.
    pub epoch: Epoch,
    /// Where it stands.
    pub phase: accept::Phase,
    /// The guest.
    pub state: v1::VmState,
    /// In words.
    pub detail: String,
    /// The migration it takes part in.
    pub migration: Option<v1::MigrationStatus>,
    /// What runs it.
    pub machine: Option<Arc<dyn Machine>>,
}

impl VmView {
    /// The status without load.
    pub fn status(&self, vm: &VmId) -> v1::VmStatus {
        let process = self.machine.as_ref().and_then(|machine| machine.process());
        v1::VmStatus {
            vm: vm.to_string(),
            epoch: self.epoch.0,
            state: self.state.into(),
            detail: self.detail.clone(),
            pid: process.map_or(0, |process| process.pid),
            spec: self.spec.as_deref().map(Into::into),
            migration: self.migration.clone(),
            load: None,
        }
    }
}

/// A VM's entry in the host's table.
#[derive(Clone)]
pub struct VmHandle {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<VmView>,
    /// Memory set aside for it while its task does not know its size yet.
    pub reserved: Bytes,
}

impl VmHandle {
    /// Queues a request and waits for its answer. None when the VM's task has ended meanwhile:
    /// the VM is gone, and the caller looks again.
    ///
    /// # Errors
    /// What the task answers; `RateLimited` when too many requests wait.
    pub async fn ask<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Option<Result<T, Refusal>> {
        let (reply, answer) = oneshot::channel();
        match self.requests.try_send(request(reply)) {
            Ok(()) => answer.await.ok(),
            Err(mpsc::error::TrySendError::Closed(_)) => None,
            Err(mpsc::error::TrySendError::Full(_)) => Some(Err(Refusal::new(
                RefusalCode::RateLimited,
                format!("{QUEUE_MAX} requests wait for this VM already"),
                "wait for their answers, then try again",
            ))),
        }
    }

    /// Whether the VM's task has ended: the VM is gone.
    pub fn is_gone(&self) -> bool {
        self.requests.is_closed()
    }

    /// Whether both are entries of the same task.
    pub fn is_same(&self, other: &Self) -> bool {
        self.requests.same_channel(&other.requests)
    }

    /// The VM as it is.
    pub fn view(&self) -> VmView {
        self.view.borrow().clone()
    }

    /// Memory that it takes or may take here.
    pub fn memory(&self) -> Bytes {
        let view = self.view.borrow();
        match (&view.spec, view.phase) {
            (_, accept::Phase::Stopped) => Bytes::ZERO,
            (Some(spec), _) => spec.memory,
            (None, _) => self.reserved,
        }
    }
}
