//! What runs VMs, behind one trait.
//!
//! A [`Driver`] makes [`Machine`]s; a machine is the mechanism of one VM and
//! knows nothing of owners. Which request is accepted when, under which epoch,
//! and what is written to disk before is decided above, by the one task that
//! owns the VM ([`crate::vm`]). A machine outlives the agent: dropping a
//! [`Machine`] ends nothing, and [`Driver::adopt`] finds it again.
//!
//! ```text
//!  spawn ──▶ empty machine ──boot──▶ running ◀──────────── resolve(ABORT), source
//!                 │                     │ send                   ▲
//!                 └──receive──▶ incoming│──▶ ready ──────────────┤
//!                                  │    └───────▲                └─ resolve(SUPERSEDED): ended
//!                                  └── resolve(COMMIT): running; resolve(ABORT): ended
//! ```

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use ballast_model::vm::MigrationPolicy;
use ballast_model::{Bytes, BytesPerSec, CpuBaseline, Epoch, MigrationId, Refusal, VmId, VmSpec};
use ballast_proto::v1;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::vm::dir::VmDir;

pub mod kvm;
pub mod sim;

/// The token a source must show, in bytes.
pub const TOKEN_BYTES: usize = 32;

/// A process, named so that another one that got its number later is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessId {
    /// The process number.
    pub pid: u32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
    pub start_ticks: u64,
}

/// What a machine is doing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MachineView {
    /// False once it is gone for good; nothing changes after that.
    pub alive: bool,
    /// The guest.
    pub state: v1::VmState,
    /// In words, where the state alone does not say enough.
    pub detail: String,
    /// The migration it takes part in or took part in last.
    pub migration: Option<v1::MigrationStatus>,
}

/// What a destination waits for.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The migration.
    pub migration: MigrationId,
    /// The address to listen on; the port is the machine's choice.
    pub listen: IpAddr,
    /// What the source must show.
    pub token: [u8; TOKEN_BYTES],
    /// The VM.
    pub spec: VmSpec,
    /// The epoch under which the source owns it.
    pub source_epoch: Epoch,
    /// On what terms.
    pub terms: Terms,
}

/// On what terms a machine receives a VM.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Take only connections with TLS 1.3.
    pub tls: bool,
    /// Post-copy: how long a guest waits for a source that has gone away, in milliseconds; 0 for the machine's default.
    pub post_copy_patience_ms: u32,
}

/// Where a machine listens.
#[derive(Debug, Clone)]
pub struct Received {
    /// `ip:port`.
    pub address: String,
    /// What the source knows it by; empty where connections are in the clear.
    pub public_key: Vec<u8>,
}

/// Where a source sends to.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The migration.
    pub migration: MigrationId,
    /// `ip:port` the destination listens on.
    pub address: String,
    /// What it wants to be shown.
    pub token: Vec<u8>,
    /// How the VM wants to be moved.
    pub policy: MigrationPolicy,
    /// Limit of all connections together; zero for none.
    pub bandwidth: BytesPerSec,
    /// What the destination is known by; empty where connections are in the clear.
    pub public_key: Vec<u8>,
    /// Connections; zero for as many as link and CPUs ask for.
    pub streams: u32,
    /// Rather give up than slow the guest down.
    pub never_throttle: bool,
    /// Never compress memory.
    pub never_compress: bool,
    /// How far the downtime limit may be raised for such a guest; zero to leave it.
    pub downtime_limit_max_ms: u32,
}

/// A snapshot to be taken.
#[derive(Debug, Clone)]
pub struct Save {
    /// The file; it is not there yet.
    pub path: PathBuf,
    /// End the guest once the file is whole.
    pub stop: bool,
    /// The memory that may have to be written: the call's bound follows from it.
    pub memory: Bytes,
}

/// Which VM a snapshot file is of.
#[derive(Debug, Clone, Deserialize)]
pub struct SnapshotHead {
    /// The VM.
    pub spec: VmSpec,
    /// When it was taken.
    pub taken_unix_millis: u64,
}

/// Makes machines.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// Which it is.
    fn kind(&self) -> v1::DriverKind;

    /// What must match for a VM to move here; empty when anything goes.
    fn cpu_model(&self) -> String;

    /// The CPU baselines its VMs can have; empty when anything goes.
    fn cpu_baselines(&self) -> Vec<CpuBaseline>;

    /// What stands in front of a snapshot file.
    ///
    /// # Errors
    /// `InvalidArgument` when it is none, `Unsupported` where there are no snapshots.
    async fn describe_snapshot(&self, path: &Path) -> Result<SnapshotHead, Refusal>;

    /// An empty machine for this VM, which may go on from a snapshot: nothing runs in it, and it
    /// may be dropped without loss.
    ///
    /// # Errors
    /// `HostFailure` with what the machine said.
    async fn spawn(
        &self,
        spec: &VmSpec,
        restore_from: Option<&Path>,
        dir: &VmDir,
    ) -> Result<Arc<dyn Machine>, Refusal>;

    /// The machine that an earlier agent left in `dir`; none when it is gone.
    /// `process` is what was recorded of it; without that it never ran a guest, and is ended here.
    ///
    /// # Errors
    /// `HostFailure` when it is there but cannot be talked to.
    async fn adopt(
        &self,
        vm: &VmId,
        dir: &VmDir,
        process: Option<ProcessId>,
    ) -> Result<Option<Arc<dyn Machine>>, Refusal>;
}

/// The mechanism of one VM. All calls are bounded in time.
#[async_trait]
pub trait Machine: Send + Sync + 'static {
    /// Its process, where it has one.
    fn process(&self) -> Option<ProcessId>;

    /// Whether it is certain that the guest of an incoming machine never ran in it, also when the
    /// machine is gone. False in doubt.
    fn never_ran(&self) -> bool;

    /// What it is doing, kept up to date.
    fn view(&self) -> watch::Receiver<MachineView>;

    /// Starts a guest, or lets one go on from a snapshot. Only in an empty machine.
    ///
    /// # Errors
    /// As the machine says: a missing kernel, too little memory, a damaged file.
    async fn boot(
        &self,
        spec: &VmSpec,
        epoch: Epoch,
        restore_from: Option<&Path>,
    ) -> Result<(), Refusal>;

    /// Writes the VM to a file; with `stop` the guest has ended when this returns well.
    ///
    /// # Errors
    /// As the machine says: a disk without room, a migration under way. The guest goes on then.
    async fn save(&self, order: &Save) -> Result<v1::SaveSnapshotResponse, Refusal>;

    /// Gets ready to be filled. Only in an empty machine. Returns `ip:port` it listens on.
    ///
    /// # Errors
    /// As the machine says.
    async fn receive(&self, incoming: &Incoming) -> Result<Received, Refusal>;

    /// Begins to send. The guest goes on.
    ///
    /// # Errors
    /// As the machine says: no connection, another migration.
    async fn send(&self, outgoing: &Outgoing) -> Result<(), Refusal>;

    /// What the owner record says of the migration. Idempotent. When it returns, [`Self::view`] shows it.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be known whether the machine heard it.
    async fn resolve(
        &self,
        migration: MigrationId,
        verdict: v1::MigrationVerdict,
        epoch: Epoch,
    ) -> Result<(), Refusal>;

    /// Load since the previous call.
    ///
    /// # Errors
    /// `Unavailable` when the machine does not answer.
    async fn sample(&self) -> Result<v1::VmLoad, Refusal>;

    /// What the guest said, as asked for.
    ///
    /// # Errors
    /// `Unavailable` when the machine does not answer.
    async fn read_console(
        &self,
        request: v1::ReadConsoleRequest,
    ) -> Result<v1::ReadConsoleResponse, Refusal>;

    /// Types at the guest's console.
    ///
    /// # Errors
    /// `Unavailable` when the machine does not answer, `WrongState` when no guest
    /// runs on it, `Unsupported` when there is nobody to read it.
    async fn write_console(
        &self,
        request: v1::WriteConsoleRequest,
    ) -> Result<v1::WriteConsoleResponse, Refusal>;

    /// Ends guest and machine for good. Returns once both are gone.
    ///
    /// # Errors
    /// `HostFailure` when it could not be ended.
    async fn shutdown(&self) -> Result<(), Refusal>;
}
