//! Migrations to this host that were called off here, kept until the controller has heard of it.
//!
//! ABORTED, said of an incoming migration, is a promise: nothing of the VM ran
//! here, and nothing will. The VM may have been committed to this host just
//! before; it is then given back to its source on this word alone, so the word
//! must outlive the agent that said it.

use std::{fs, io};

use ballast_model::{MigrationId, Refusal, RefusalCode, VmId};
use ballast_proto::v1::{MigrationRole, MigrationState, MigrationStatus};
use serde::{Deserialize, Serialize};

use super::dir::{StateDir, host_failure};

/// The longest reason that is kept, in bytes.
const REASON_BYTES_MAX: usize = 4096;
/// The longest file: the reason, escaped, and what is around it.
const FILE_BYTES_MAX: u64 = 8 * REASON_BYTES_MAX as u64;

/// One that was called off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AbortedMigration {
    /// Which.
    pub migration: MigrationId,
    /// Its VM.
    pub vm: VmId,
    /// Why.
    pub reason: String,
}

impl AbortedMigration {
    /// As it is said to those who watch.
    pub fn status(&self) -> MigrationStatus {
        let why = Refusal::new(
            RefusalCode::HostFailure,
            self.reason.as_str(),
            "look into the log of the destination's agent",
        );
        let mut status = MigrationStatus {
            migration: self.migration.to_string(),
            vm: self.vm.to_string(),
            refusal: Some((&why).into()),
            ..MigrationStatus::default()
        };
        status.set_role(MigrationRole::Destination);
        status.set_state(MigrationState::Aborted);
        status
    }
}

impl StateDir {
    /// Keeps it, durably: from now on every agent here says ABORTED of it.
    ///
    /// # Errors
    /// `HostFailure`.
    pub fn keep_aborted(&self, aborted: &AbortedMigration) -> Result<(), Refusal> {
        let mut kept = aborted.clone();
        kept.reason.truncate(kept.reason.floor_char_boundary(REASON_BYTES_MAX));
        let bytes = serde_json::to_vec(&kept).map_err(|error| {
            Refusal::new(
                RefusalCode::Internal,
                format!("cannot write that migration {} was called off: {error}", kept.migration),
                "report a defect",
            )
        })?;
        self.aborted_dir().write(&kept.migration.to_string(), &bytes)
    }

    /// The controller has heard of it.
    pub fn forget_aborted(&self, migration: MigrationId) {
        let path = self.aborted_dir().path().join(migration.to_string());
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot be removed");
        }
    }

    /// Those that are kept. What cannot be understood is left alone, with a word in the log.
    ///
    /// # Errors
    /// `HostFailure` when they cannot be read.
    pub fn aborted(&self) -> Result<Vec<AbortedMigration>, Refusal> {
        let directory = self.aborted_dir();
        let failed = |error| host_failure("cannot list", directory.path(), &error);
        let mut found = Vec::new();
        for entry in fs::read_dir(directory.path()).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if name.parse::<MigrationId>().is_err() {
                continue;
            }
            let bytes = directory.read(&name, FILE_BYTES_MAX)?.unwrap_or_default();
            match serde_json::from_slice(&bytes) {
                Ok(aborted) => found.push(aborted),
                Err(error) => tracing::warn!(migration = name, %error, "cannot be understood"),
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_called_off_is_kept_until_it_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let aborted = AbortedMigration {
            migration: format!("{:032x}", 7).parse().unwrap(),
            vm: "web-1".parse().unwrap(),
            reason: "the machine ended".to_owned(),
        };
        StateDir::open(root.path()).unwrap().keep_aborted(&aborted).unwrap();
        let state = StateDir::open(root.path()).unwrap();
        fs::write(state.aborted_dir().path().join(format!("{:032x}", 8)), "{").unwrap();
        assert_eq!(state.aborted().unwrap(), std::slice::from_ref(&aborted));
        state.forget_aborted(aborted.migration);
        state.forget_aborted(aborted.migration);
        assert_eq!(state.aborted().unwrap(), []);
    }

    #[test]
    fn the_longest_reason_fits() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let aborted = AbortedMigration {
            migration: format!("{:032x}", 7).parse().unwrap(),
            vm: "web-1".parse().unwrap(),
            reason: "\u{1}".repeat(2 * REASON_BYTES_MAX),
        };
        state.keep_aborted(&aborted).unwrap();
        assert_eq!(state.aborted().unwrap()[0].reason.len(), REASON_BYTES_MAX);
    }
}
