//! How a disk looked when the snapshot was taken: whether it was written to since.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use ballast_model::{DiskSpec, Refusal, RefusalCode};
use serde::{Deserialize, Serialize};

/// A writable disk at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fingerprint {
    /// As the VM's specification names it.
    path: PathBuf,
    bytes: u64,
    /// Seconds and nanoseconds of the last write; a block device does not keep them.
    modified: Option<(i64, i64)>,
}

impl Fingerprint {
    /// Of every disk the guest can write to; local ones are beneath `root`.
    ///
    /// # Errors
    /// `HostFailure` naming a disk that cannot be looked at.
    pub(super) fn of(disks: &[DiskSpec], root: &Path) -> Result<Vec<Self>, Refusal> {
        disks.iter().filter(|disk| !disk.readonly).map(|disk| Self::now(disk, root)).collect()
    }

    fn now(disk: &DiskSpec, root: &Path) -> Result<Self, Refusal> {
        let place = disk.place(root);
        let meta = std::fs::metadata(&place).map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot look at disk {}: {error}", place.display()),
                "check that the disk is there and may be read",
            )
        })?;
        let device = meta.file_type().is_block_device();
        let modified = (!device).then(|| (meta.mtime(), meta.mtime_nsec()));
        Ok(Self { path: disk.path.clone(), bytes: meta.len(), modified })
    }

    /// Whether every disk is as it was.
    ///
    /// # Errors
    /// `Conflict` naming the first one that is not, `HostFailure` one that cannot be looked at.
    pub(super) fn check(then: &[Self], disks: &[DiskSpec], root: &Path) -> Result<(), Refusal> {
        let now = Self::of(disks, root)?;
        for disk in then {
            if !now.contains(disk) {
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
        let disks = [disk(false), disk(true)];
        let root = Path::new("/");
        let then = Fingerprint::of(&disks, root).unwrap();
        assert_eq!(then.len(), 1, "a disk that cannot change need not be looked at");
        Fingerprint::check(&then, &disks, root).unwrap();
        std::fs::write(&path, [1; 1024]).unwrap();
        let refusal = Fingerprint::check(&then, &disks, root).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Conflict);
        assert!(refusal.reason.contains("disk was written to"), "{refusal}");
    }
}
