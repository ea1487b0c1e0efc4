//! How a disk looked when the snapshot was taken: whether it was written to since.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use ballast_model::{DiskSpec, Refusal, RefusalCode};
use serde::{Deserialize, Serialize};

/// A writable disk at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fingerprint {
    path: PathBuf,
    bytes: u64,
    /// Seconds and nanoseconds of the last write; a block device does not keep them.
    modified: Option<(i64, i64)>,
}

impl Fingerprint {
    /// Of every disk the guest can write to.
    ///
    /// # Errors
    /// `HostFailure` naming a disk that cannot be looked at.
    pub(super) fn of(disks: &[DiskSpec]) -> Result<Vec<Self>, Refusal> {
        disks.iter().filter(|disk| !disk.readonly).map(|disk| Self::now(&disk.path)).collect()
    }

    fn now(path: &PathBuf) -> Result<Self, Refusal> {
        let meta = std::fs::metadata(path).map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot look at disk {}: {error}", path.display()),
                "check that the disk is there and may be read",
            )
        })?;
        let device = meta.file_type().is_block_device();
        let modified = (!device).then(|| (meta.mtime(), meta.mtime_nsec()));
        Ok(Self { path: path.clone(), bytes: meta.len(), modified })
    }

    /// Whether every disk is as it was.
    ///
    /// # Errors
    /// `Conflict` naming the first one that is not, `HostFailure` one that cannot be looked at.
    pub(super) fn check(then: &[Self]) -> Result<(), Refusal> {
        for disk in then {
            if *disk != Self::now(&disk.path)? {
                return Err(Refusal::new(
                    RefusalCode::Conflict,
                    format!("disk {} was written to since the snapshot", disk.path.display()),
                    "bring back the disk as it was then; a guest that goes on beside a changed disk destroys it",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_was_written_to_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [0; 512]).unwrap();
        let disk = |readonly| DiskSpec {
            path: path.clone(),
            readonly,
            shared: true,
            limit: Default::default(),
        };
        let then = Fingerprint::of(&[disk(false), disk(true)]).unwrap();
        assert_eq!(then.len(), 1, "a disk that cannot change need not be looked at");
        Fingerprint::check(&then).unwrap();
        std::fs::write(&path, [1; 1024]).unwrap();
        let refusal = Fingerprint::check(&then).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Conflict);
        assert!(refusal.reason.contains("disk was written to"), "{refusal}");
    }
}
