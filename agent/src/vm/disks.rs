//! The files of local disks on this host: made, given their names, removed.
//!
//! ```text
//!              expect                    the VM runs here: keep
//!   (nothing) ────────▶ disk.img.web-1.arriving ────────▶ disk.img ──┐
//!                          │ it never ran here: forget               │ the VM has been seen to run
//!                          └──▶ (nothing)                (nothing) ◀─┘ elsewhere: remove
//! ```
//!
//! The VMM fills a file and knows nothing of names. A file has its own name only
//! when the VM runs here, and what this agent removes is either a copy of which it
//! is certain that no guest ever ran on it, or one that the owner record has
//! overtaken. Whatever is under the arriving name is this VM's: made by its task,
//! after its record, and gone before it. So an agent that died on the way finds
//! in the record what has to be done, and nothing is left that nobody knows of.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use ballast_model::{Bytes, DiskSpec, Refusal, RefusalCode, VmSpec};

use crate::config::User;

/// Where local disks are, and whose.
#[derive(Debug, Clone)]
pub struct LocalDisks {
    /// Where their paths begin.
    pub root: PathBuf,
    /// Whose their files are; this program's user when none.
    pub user: Option<User>,
}

/// The disks of a VM that belong to their host.
fn local(spec: &VmSpec) -> impl Iterator<Item = &DiskSpec> {
    spec.disks.iter().filter(|disk| !disk.shared)
}

impl LocalDisks {
    /// What is free where they are; none when they may be anywhere.
    pub fn room(&self) -> Option<Bytes> {
        if self.root == Path::new("/") {
            return None;
        }
        let found = rustix::fs::statvfs(&self.root).ok()?;
        Some(Bytes(found.f_bavail.saturating_mul(found.f_frsize)))
    }

    /// Makes the files that the VM's disks will arrive in.
    ///
    /// # Errors
    /// `AlreadyExists` when something is where a disk is to be; `HostFailure` when a file cannot
    /// be made.
    pub fn expect(&self, spec: &VmSpec) -> Result<(), Refusal> {
        for disk in local(spec) {
            let (place, arrival) = (disk.place(&self.root), disk.arrival(&self.root, &spec.id));
            match fs::symlink_metadata(&place) {
                Ok(_) => return Err(in_the_way(&place)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(failed("look at", &place, &error)),
            }
            let make = || -> io::Result<()> {
                let mut options = OpenOptions::new();
                options.write(true).create_new(true).mode(0o600).open(&arrival)?;
                if let Some(user) = self.user {
                    chown(&arrival, Some(user.uid), Some(user.gid))?;
                }
                sync_directory(&arrival)
            };
            make().map_err(|error| failed("make", &arrival, &error))?;
        }
        Ok(())
    }

    /// The VM runs here: gives what has arrived its name. What has it already is left alone.
    ///
    /// # Errors
    /// `AlreadyExists` when something else has the name by now; the VM goes on with what has arrived.
    pub fn keep(&self, spec: &VmSpec) -> Result<(), Refusal> {
        for disk in local(spec) {
            let (place, arrival) = (disk.place(&self.root), disk.arrival(&self.root, &spec.id));
            match rename_new(&arrival, &place) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    return Err(in_the_way(&place));
                }
                Err(error) => return Err(failed("rename", &arrival, &error)),
            }
        }
        Ok(())
    }

    /// The VM never ran here and will not: removes what has arrived.
    ///
    /// # Errors
    /// `HostFailure`.
    pub fn forget(&self, spec: &VmSpec) -> Result<(), Refusal> {
        local(spec).try_for_each(|disk| remove(&disk.arrival(&self.root, &spec.id)).map(drop))
    }

    /// The VM has been seen to run elsewhere, with disks of its own: removes those here.
    ///
    /// # Errors
    /// `HostFailure`.
    pub fn remove(&self, spec: &VmSpec) -> Result<(), Refusal> {
        // A read-only disk may be others' too, and does not go along.
        for disk in local(spec).filter(|disk| !disk.readonly) {
            // One that never got its name is the VM's disk; what has the name is somebody else's.
            if !remove(&disk.arrival(&self.root, &spec.id))? {
                remove(&disk.place(&self.root))?;
            }
        }
        Ok(())
    }
}

/// Removes a file; whether it was there. Nothing but a file is removed.
fn remove(path: &Path) -> Result<bool, Refusal> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("look at", path, &error)),
    }
    fs::remove_file(path).map_err(|error| failed("remove", path, &error))?;
    Ok(true)
}

/// Renames durably, and never over something (renameat2(2), `RENAME_NOREPLACE`).
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    let (old, new) = (path(from)?, path(to)?);
    // SAFETY: both are strings that live through the call.
    let renamed = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            old.as_ptr(),
            libc::AT_FDCWD,
            new.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    };
    if renamed != 0 {
        return Err(io::Error::last_os_error());
    }
    sync_directory(to)
}

/// Puts the names beside this file on the disk.
fn sync_directory(file: &Path) -> io::Result<()> {
    File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn in_the_way(place: &Path) -> Refusal {
    Refusal::new(
        RefusalCode::AlreadyExists,
        format!("a local disk is to be {}, where something is already", place.display()),
        "remove or rename it if no VM needs it; hosts that share that directory need another \
         vmm.disk_root each, or a disk that is not marked local",
    )
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Refusal {
    let remedy = match error.kind() {
        ErrorKind::NotFound => "make its directory on this host",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room there",
        _ => "check the rights on its directory, and the disk it is on",
    };
    let reason = format!("cannot {what} {}: {error}", path.display());
    Refusal::new(RefusalCode::HostFailure, reason, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        dir: tempfile::TempDir,
        disks: LocalDisks,
        spec: VmSpec,
    }

    fn host() -> Host {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        let disks = LocalDisks { root: dir.path().to_owned(), user: None };
        let mut spec = VmSpec::new("web-1".parse().unwrap(), 1, Bytes::mib(1), "/k");
        let disk = |path: &str, shared, readonly| DiskSpec {
            path: path.into(),
            readonly,
            shared,
            limit: Default::default(),
        };
        let iso = disk("/d/tools.iso", false, true);
        spec.disks = vec![disk("/d/a", false, false), disk("/d/b", false, false), iso];
        spec.disks.push(disk("/nowhere/shared", true, false));
        Host { dir, disks, spec }
    }

    impl Host {
        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.dir.path().join("d")).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        fn put(&self, name: &str) {
            fs::write(self.dir.path().join("d").join(name), name).unwrap();
        }
    }

    #[test]
    fn what_arrives_is_kept_or_forgotten() {
        let host = host();
        host.disks.expect(&host.spec).unwrap();
        let arriving = ["a.web-1.arriving", "b.web-1.arriving", "tools.iso.web-1.arriving"];
        assert_eq!(host.names(), arriving);
        host.disks.forget(&host.spec).unwrap();
        host.disks.forget(&host.spec).unwrap();
        assert!(host.names().is_empty());
        host.disks.expect(&host.spec).unwrap();
        host.disks.keep(&host.spec).unwrap();
        host.disks.keep(&host.spec).unwrap();
        assert_eq!(host.names(), ["a", "b", "tools.iso"]);
        host.disks.forget(&host.spec).unwrap();
        assert_eq!(host.names(), ["a", "b", "tools.iso"], "they have arrived");
        host.disks.remove(&host.spec).unwrap();
        assert_eq!(host.names(), ["tools.iso"], "others may read it");
        host.disks.remove(&host.spec).unwrap();
    }

    #[test]
    fn nothing_is_written_over() {
        let host = host();
        host.put("b");
        let refusal = host.disks.expect(&host.spec).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::AlreadyExists);
        assert!(refusal.reason.contains("d/b") && refusal.remedy.contains("vmm.disk_root"));
        host.disks.forget(&host.spec).unwrap();
        assert_eq!(host.names(), ["b"]);
        fs::remove_file(host.dir.path().join("d/b")).unwrap();
        host.disks.expect(&host.spec).unwrap();
        // Somebody is faster.
        host.put("b");
        assert_eq!(host.disks.keep(&host.spec).unwrap_err().code, RefusalCode::AlreadyExists);
        assert_eq!(fs::read(host.dir.path().join("d/b")).unwrap(), b"b");
        host.disks.remove(&host.spec).unwrap();
        assert_eq!(host.names(), ["b", "tools.iso.web-1.arriving"], "it never was this VM's");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let mut host = host();
        host.spec.disks[0].path = "/missing/a".into();
        let refusal = host.disks.expect(&host.spec).unwrap_err();
        assert!(refusal.reason.contains("missing/a.web-1.arriving"), "{refusal}");
        assert_eq!(refusal.remedy, "make its directory on this host");
    }
}
