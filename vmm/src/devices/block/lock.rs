//! Who may use a disk: a lock on its file, and the name of the one who has it.
//!
//! The lock is an open-file-description lock (fcntl(2), `F_OFD_SETLK`) over the
//! whole file: shared by readers, exclusive for a writer. It goes with the open
//! file, so a process that dies gives it back whatever it died of. Between hosts
//! it is as good as the file system they share (NFS and cluster file systems
//! pass it on); on a block device it is between processes of one host.
//!
//! Such a lock tells nobody who holds it. So its holder leaves a name beside
//! it, in the extended attribute `user.ballast.holder` of the file. The name is
//! never needed to take the lock, and never believed without the lock being
//! held: what a crash leaves behind is overwritten by the next holder. Where it
//! cannot be left (block devices, file systems without attributes), whoever is
//! refused learns only that the disk is in use.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::Path;

use ballast_model::{Refusal, RefusalCode, VmId};

use super::disk::Disk;

const ATTRIBUTE: &CStr = c"user.ballast.holder";
/// The longest name that is read.
const HOLDER_BYTES_MAX: usize = 512;

/// The lock on a disk's file, held until it is dropped or the file closed.
#[derive(Debug)]
pub(super) struct DiskLock {
    file: File,
}

impl DiskLock {
    /// Takes the lock, shared for a reader. Never waits.
    ///
    /// # Errors
    /// `Conflict` when somebody else has it, naming them where they left a name;
    /// `HostFailure` when the file system has no locks.
    pub(super) fn take(disk: &Disk, vm: &VmId) -> Result<Self, Refusal> {
        let (path, readonly) = (disk.path(), disk.is_readonly());
        // Of the same open file: the lock is that file's, whoever closes this descriptor.
        let file = disk.file().try_clone().map_err(|error| cannot_lock(path, &error))?;
        let kind = if readonly { libc::F_RDLCK } else { libc::F_WRLCK };
        match set(&file, libc::F_OFD_SETLK, kind) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Err(in_use(&file, path, kind));
            }
            Err(error) => return Err(cannot_lock(path, &error)),
        }
        if let Err(error) = leave_name(&file, &Holder::me(vm, readonly)) {
            tracing::debug!(disk = %path.display(), %error, "nobody will learn who uses this disk");
        }
        Ok(Self { file })
    }
}

impl Drop for DiskLock {
    fn drop(&mut self) {
        if let Err(error) = set(&self.file, libc::F_OFD_SETLK, libc::F_UNLCK) {
            tracing::error!(%error, "a disk stays locked until this process ends");
        }
    }
}

/// Sets or asks for a lock over the whole file; what came back.
fn set(file: &File, command: libc::c_int, kind: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: plain numbers, for which zero is a value; OFD locks want a pid of zero.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(kind).unwrap_or_default();
    lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default();
    // SAFETY: `lock` lives through the call and is of the type these commands take.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock.l_type.into())
}

/// The name a holder leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    vm: String,
    host: String,
    pid: u32,
    readonly: bool,
}

impl Holder {
    fn me(vm: &VmId, readonly: bool) -> Self {
        Self { vm: vm.to_string(), host: hostname(), pid: std::process::id(), readonly }
    }

    fn to_text(&self) -> String {
        let how = if self.readonly { "read" } else { "write" };
        format!("vm={} host={} pid={} use={how}\n", self.vm, self.host, self.pid)
    }

    /// What somebody left, if it is such a name. Anybody may have written it.
    fn from_text(text: &str) -> Option<Self> {
        let clean = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
        if !text.trim_end().bytes().all(clean) {
            return None;
        }
        let field = |name: &str| {
            text.split_ascii_whitespace()
                .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Self {
            vm: field("vm")?.to_owned(),
            host: field("host")?.to_owned(),
            pid: field("pid")?.parse().ok()?,
            readonly: field("use")? == "read",
        })
    }

    /// Whether the one who left it may still be there. Of other hosts nobody can tell.
    fn may_live(&self) -> bool {
        self.host != hostname() || Path::new("/proc").join(self.pid.to_string()).exists()
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VM {} on host {} (process {})", self.vm, self.host, self.pid)
    }
}

fn hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "unknown".to_owned() } else { name.replace(char::is_whitespace, "-") }
}

fn leave_name(file: &File, holder: &Holder) -> io::Result<()> {
    let (text, flags) = (holder.to_text(), rustix::fs::XattrFlags::empty());
    Ok(rustix::fs::fsetxattr(file, ATTRIBUTE, text.as_bytes(), flags)?)
}

/// The name left by whoever holds the lock, when it can be theirs.
fn holder(file: &File, writes: bool) -> Option<Holder> {
    let mut attribute = [0; HOLDER_BYTES_MAX];
    let bytes = rustix::fs::fgetxattr(file, ATTRIBUTE, &mut attribute).ok()?;
    let text = std::str::from_utf8(attribute.get(..bytes)?).ok()?;
    // A name of before: a writer that could not leave its own, a reader's in front of it.
    Holder::from_text(text).filter(|holder| holder.readonly != writes && holder.may_live())
}

fn in_use(file: &File, path: &Path, wanted: libc::c_int) -> Refusal {
    // Who is in the way: readers, or a writer.
    let found = set(file, libc::F_OFD_GETLK, wanted);
    let writes = !matches!(found, Ok(libc::F_RDLCK));
    let who = match holder(file, writes) {
        Some(holder) => format!("by {holder}"),
        None if writes => "by another program, which left no name".to_owned(),
        None => "by readers, which left no name".to_owned(),
    };
    let reason = format!("disk {} is in use {who}", path.display());
    Refusal::new(RefusalCode::Conflict, reason, "stop that VM first, or give this one another disk")
}

fn cannot_lock(path: &Path, error: &io::Error) -> Refusal {
    let remedy = match error.kind() {
        ErrorKind::Unsupported => {
            "keep disks on a file system with locks (NFS: with its lock service)"
        }
        _ => "check the file system the disk is on, and its lock service",
    };
    Refusal::new(
        RefusalCode::HostFailure,
        format!("cannot lock disk {}: {error}", path.display()),
        remedy,
    )
}

#[cfg(test)]
mod tests {
    use ballast_model::DiskSpec;
    use ballast_model::hardware::RateLimit;

    use std::path::PathBuf;

    use super::super::Origin;
    use super::*;

    fn vm(name: &str) -> VmId {
        name.parse().unwrap()
    }

    fn disk() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [0; 512]).unwrap();
        (dir, path)
    }

    /// Each with an open file of its own, as processes have.
    fn take(path: &Path, readonly: bool, name: &str) -> Result<DiskLock, Refusal> {
        let path = path.to_owned();
        let spec = DiskSpec { path, readonly, shared: true, limit: RateLimit::default() };
        DiskLock::take(&Disk::open(&spec, Path::new("/"), Origin::Here).unwrap(), &vm(name))
    }

    #[test]
    fn a_second_writer_learns_who_the_first_is() {
        let (_dir, path) = disk();
        let first = take(&path, false, "web-1").unwrap();
        for readonly in [false, true] {
            let refusal = take(&path, readonly, "web-2").unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Conflict);
            let expected =
                format!("VM web-1 on host {} (process {})", hostname(), std::process::id());
            assert!(refusal.reason.contains(&expected), "{refusal}");
        }
        drop(first);
        let second = take(&path, false, "web-2").unwrap();
        let refusal = take(&path, false, "web-3").unwrap_err();
        assert!(refusal.reason.contains("VM web-2"), "{refusal}");
        drop(second);
    }

    #[test]
    fn readers_share_and_keep_writers_out() {
        let (_dir, path) = disk();
        let _one = take(&path, true, "web-1").unwrap();
        let _two = take(&path, true, "web-2").unwrap();
        let refusal = take(&path, false, "web-3").unwrap_err();
        assert!(refusal.reason.contains("in use by"), "{refusal}");
    }

    #[test]
    fn a_name_of_before_is_not_believed() {
        let (_dir, path) = disk();
        drop(take(&path, false, "web-1").unwrap());
        // A holder of another program's making.
        let file = File::options().read(true).write(true).open(&path).unwrap();
        set(&file, libc::F_OFD_SETLK, libc::F_WRLCK).unwrap();
        let dead = Holder { vm: "web-1".into(), host: hostname(), pid: u32::MAX, readonly: false };
        leave_name(&file, &dead).unwrap();
        let refusal = take(&path, false, "web-2").unwrap_err();
        assert!(refusal.reason.contains("left no name"), "{refusal}");
        // One who reads cannot be the writer in the way.
        leave_name(&file, &Holder { pid: std::process::id(), readonly: true, ..dead }).unwrap();
        let refusal = take(&path, false, "web-2").unwrap_err();
        assert!(refusal.reason.contains("left no name"), "{refusal}");
    }

    #[test]
    fn names_are_read_as_they_are_written_and_nothing_else_is() {
        let holder = Holder { vm: "web-1".into(), host: "north".into(), pid: 17, readonly: false };
        assert_eq!(Holder::from_text(&holder.to_text()), Some(holder));
        for text in
            ["", "vm=a", "vm=a host=b pid=c use=read", "vm=\u{1b}[2J host=b pid=1 use=write"]
        {
            assert_eq!(Holder::from_text(text), None, "{text}");
        }
    }
}
