//! Where a VM is kept on disk: `<state_dir>/vms/<vm>/`.
//!
//! What came by a migration and was called off here is kept as `<state_dir>/aborted/<migration>`
//! until the controller has heard of it ([`super::aborted`]).
//!
//! | file | what it is | who writes it |
//! | --- | --- | --- |
//! | `vm.json` | [`Record`](super::record::Record): what must be known after a restart of the agent | the VM's task |
//! | `vmm.sock`, `vmm.log` | socket and output of the VMM process (`kvm`) | the VMM |
//! | `console.log`, `console.log.1` | the guest's console since it came here, of bounded size | the VMM |
//! | `sim.json` | the modelled machine (`sim`) | the sim driver |

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ballast_model::{Refusal, RefusalCode, VmId};
use rustix::fs::FlockOperation;

/// The longest path of a Unix socket, in bytes: `sun_path` without its NUL (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// What comes around a VM's name in the path of its socket.
const SOCKET_PATH_REST: usize = "/vms/".len() + "/vmm.sock".len();
/// The part with the migrations that were called off.
const ABORTED: &str = "aborted";
/// The mode of a directory that others may go through, but not look into.
const THROUGH: u32 = 0o711;
/// Names up to this long always fit, whatever the state directory.
const NAME_BYTES_SURE: usize = 32;
/// The longest state directory, in bytes.
pub const STATE_DIR_BYTES_MAX: usize = SOCKET_PATH_BYTES_MAX - SOCKET_PATH_REST - NAME_BYTES_SURE;

/// Whether sockets fit beneath this state directory.
pub fn socket_fits(state_dir: &Path) -> bool {
    state_dir.as_os_str().len() <= STATE_DIR_BYTES_MAX
}

/// The state directory, locked for this agent until it is dropped.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    _lock: fs::File,
}

impl StateDir {
    /// Makes it where it is missing, and locks it.
    ///
    /// # Errors
    /// `Conflict` when another agent has it; `HostFailure` when it cannot be made.
    pub fn open(root: &Path) -> Result<Self, Refusal> {
        let open = || -> io::Result<fs::File> {
            let make = |dir: &Path, mode: u32| {
                fs::DirBuilder::new().recursive(true).mode(mode).create(dir)
            };
            // A VMM that is another user finds its own directory, and sees no other.
            make(root, THROUGH)?;
            make(&root.join("vms"), THROUGH)?;
            fs::set_permissions(root.join("vms"), fs::Permissions::from_mode(THROUGH))?;
            make(&root.join(ABORTED), 0o700)?;
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            options.open(root.join("agent.lock"))
        };
        let shown = root.display();
        let lock = open().map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot use state_dir {shown}: {error}"),
                "give the agent a directory that it can write to",
            )
        })?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            Refusal::new(
                RefusalCode::Conflict,
                format!("state_dir {shown} is in use by another agent ({error})"),
                "end the other agent, or configure another state_dir",
            )
        })?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// The directory of a VM, which need not be there yet.
    pub fn vm(&self, vm: &VmId) -> VmDir {
        VmDir { path: self.root.join("vms").join(vm.as_str()) }
    }

    /// The directory of what [`super::aborted`] keeps.
    pub(super) fn aborted_dir(&self) -> VmDir {
        VmDir { path: self.root.join(ABORTED) }
    }

    /// Every VM that has a directory. What has no valid name is left alone.
    ///
    /// # Errors
    /// `HostFailure` when it cannot be read.
    pub fn vms(&self) -> Result<Vec<VmId>, Refusal> {
        let failed = |error| host_failure("cannot list the VMs", &self.root, &error);
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root.join("vms")).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(Ok(vm)) = name.to_str().map(str::parse) {
                found.push(vm);
            }
        }
        Ok(found)
    }
}

/// One VM's directory.
#[derive(Debug, Clone)]
pub struct VmDir {
    path: PathBuf,
}

impl VmDir {
    /// Makes the directory.
    ///
    /// # Errors
    /// `InvalidArgument` when the VM's socket would not fit; `HostFailure`.
    pub fn create(&self) -> Result<(), Refusal> {
        if self.socket().as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(Refusal::new(
                RefusalCode::InvalidArgument,
                format!("{} is too long for a Unix socket", self.socket().display()),
                "use a shorter VM name, or a shorter state_dir on this host",
            ));
        }
        // Only where nothing is: what could not be adopted must not be written over.
        let made = fs::DirBuilder::new().mode(0o700).create(&self.path);
        made.map_err(|error| host_failure("cannot make", &self.path, &error))
    }

    /// Removes it with all that is in it. Nothing there is no error.
    ///
    /// # Errors
    /// `HostFailure`.
    pub fn remove(&self) -> Result<(), Refusal> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(host_failure("cannot remove", &self.path, &error))
            }
            _ => Ok(()),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of its VMM.
    pub fn socket(&self) -> PathBuf {
        self.path.join("vmm.sock")
    }

    /// The mark its VMM removes before an incoming guest runs for the first time.
    pub fn unrun(&self) -> PathBuf {
        ballast_proto::socket::unrun_mark(&self.socket())
    }

    /// What its VMM prints.
    pub fn log(&self) -> PathBuf {
        self.path.join("vmm.log")
    }

    /// What the guest has written to its console here.
    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// Reads a file of at most `bytes_max`; none when it is not there.
    ///
    /// # Errors
    /// `HostFailure` when it cannot be read or is longer.
    pub fn read(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, Refusal> {
        let path = self.path.join(name);
        let read = || -> io::Result<Vec<u8>> {
            if fs::metadata(&path)?.len() > bytes_max {
                return Err(io::Error::other(format!("longer than {bytes_max} bytes")));
            }
            fs::read(&path)
        };
        match read() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(host_failure("cannot read", &path, &error)),
        }
    }

    /// Replaces a file so that after a crash it holds the old or the new content, never a part:
    /// write beside it, fsync, rename, fsync the directory.
    ///
    /// # Errors
    /// `HostFailure`.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Refusal> {
        let (path, beside) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let write = || -> io::Result<()> {
            let mut options = fs::OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            fs::File::open(&self.path)?.sync_all()
        };
        write().map_err(|error| host_failure("cannot write", &path, &error))
    }
}

pub(super) fn host_failure(what: &str, path: &Path, error: &io::Error) -> Refusal {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room in the agent's state_dir"
        }
        _ => "check the disk and the rights of the agent's state_dir",
    };
    let reason = format!("{what} {}: {error}", path.display());
    Refusal::new(RefusalCode::HostFailure, reason, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let refusal = StateDir::open(dir.path()).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Conflict);
        assert!(refusal.reason.contains("in use by another agent"), "{refusal}");
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn others_get_to_their_own_directory_and_no_further() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("state");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let state = StateDir::open(&root).unwrap();
        let vm = state.vm(&"web-1".parse().unwrap());
        vm.create().unwrap();
        assert_eq!((mode(&root), mode(&root.join("vms")), mode(vm.path())), (0o711, 0o711, 0o700));
        // Also where an earlier release made it.
        drop(state);
        fs::set_permissions(root.join("vms"), fs::Permissions::from_mode(0o700)).unwrap();
        StateDir::open(&root).unwrap();
        assert_eq!(mode(&root.join("vms")), 0o711);
    }

    #[test]
    fn files_are_replaced_whole_and_bounded() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let dir = state.vm(&"web-1".parse().unwrap());
        dir.create().unwrap();
        assert_eq!(dir.read("a", 10).unwrap(), None);
        dir.write("a", b"old").unwrap();
        dir.write("a", b"new").unwrap();
        assert_eq!(dir.read("a", 10).unwrap().as_deref(), Some(&b"new"[..]));
        assert!(dir.read("a", 2).unwrap_err().reason.contains("longer than 2"));
        assert_eq!(state.vms().unwrap(), ["web-1".parse().unwrap()]);
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(state.vms().unwrap().is_empty());
    }

    #[test]
    fn a_name_that_makes_the_socket_too_long_is_refused() {
        let root = PathBuf::from(format!("/{}", "d".repeat(STATE_DIR_BYTES_MAX - 1)));
        assert!(socket_fits(&root) && !socket_fits(&root.join("d")));
        let dir = VmDir { path: root.join("vms").join("x".repeat(NAME_BYTES_SURE + 1)) };
        assert!(dir.create().unwrap_err().remedy.contains("shorter VM name"));
        let dir = VmDir { path: root.join("vms").join("x".repeat(NAME_BYTES_SURE)) };
        assert_eq!(dir.socket().as_os_str().len(), SOCKET_PATH_BYTES_MAX);
    }
}
