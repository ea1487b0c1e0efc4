//! What the agent must know of a VM after its own restart.
//!
//! Written before what it announces happens: the process before the guest
//! starts, a granted epoch before the guest resumes.

use ballast_model::{Epoch, MigrationId, Refusal, RefusalCode, VmSpec};
use serde::{Deserialize, Serialize};

use super::dir::VmDir;
use crate::driver::{ProcessId, TOKEN_BYTES};

const FILE: &str = "vm.json";
const BYTES_MAX: u64 = 1 << 20;
const VERSION: u32 = 1;

/// The content of `vm.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// What its owner asked for.
    pub spec: VmSpec,
    /// The epoch under which it is here: while incoming, the source's.
    pub epoch: Epoch,
    /// Its process; none until it is known, and for drivers without one.
    pub process: Option<ProcessId>,
    /// Set until the VM is this host's.
    pub incoming: Option<IncomingRecord>,
    /// The migration by which it came, as long as a part of its memory is at the source alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetching: Option<MigrationId>,
    /// Set once it ended, with how.
    pub ended: Option<String>,
}

/// The destination's half of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IncomingRecord {
    /// The migration.
    pub migration: MigrationId,
    /// The epoch under which the source owns the VM.
    pub source_epoch: Epoch,
    /// `ip:port` the machine listens on; empty until it does.
    pub address: String,
    /// What the source must show.
    pub token: [u8; TOKEN_BYTES],
    /// What the source knows the machine by; empty where connections are in the clear.
    #[serde(default)]
    pub public_key: Vec<u8>,
}

impl Record {
    /// The record of a VM that is about to come into being.
    pub fn new(spec: VmSpec, epoch: Epoch, incoming: Option<IncomingRecord>) -> Self {
        Self { version: VERSION, spec, epoch, process: None, incoming, fetching: None, ended: None }
    }

    /// The record in `dir`; none when there is none, or none that can be read.
    ///
    /// # Errors
    /// `HostFailure` when the file cannot be read; `Unsupported` when a later version wrote it.
    pub fn load(dir: &VmDir) -> Result<Option<Self>, Refusal> {
        let Some(bytes) = dir.read(FILE, BYTES_MAX)? else { return Ok(None) };
        let record: Self = serde_json::from_slice(&bytes).map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("the record of a VM cannot be understood: {error}"),
                "look at vm.json in the VM's directory; end its process and remove the directory if \
                 the VM is not wanted",
            )
        })?;
        if record.version != VERSION {
            return Err(Refusal::new(
                RefusalCode::Unsupported,
                format!("the record of VM {} has version {}", record.spec.id, record.version),
                "run the version of the agent that wrote it",
            ));
        }
        Ok(Some(record))
    }

    /// Writes it, durably.
    ///
    /// # Errors
    /// `HostFailure`.
    pub fn store(&self, dir: &VmDir) -> Result<(), Refusal> {
        let bytes = serde_json::to_vec(self).map_err(|error| {
            Refusal::new(
                RefusalCode::Internal,
                format!("cannot write the record of VM {}: {error}", self.spec.id),
                "report a defect",
            )
        })?;
        dir.write(FILE, &bytes)
    }
}
