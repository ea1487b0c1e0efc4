//! Processes stopped at a named point, and the connections between two of them.
//!
//! The points are the calls of `ballast_service::holdpoint::hold`. The links are
//! hurt by the kernel's own means, on the very sockets the processes have:
//! pidfd_getfd(2) hands us a copy of a descriptor, shutdown(2) cuts the
//! connection, a socket filter that takes no packet stalls it.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use ballast_service::holdpoint::VARIABLE;
use rustix::net::{AddressFamily, Shutdown, getpeername, shutdown};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// The file that says who is to stop where.
#[derive(Debug)]
pub struct HoldFile(PathBuf);

impl HoldFile {
    /// An empty one in `dir`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(dir: &Path) -> Self {
        let file = Self(dir.join("hold"));
        file.clear();
        file
    }

    /// What tells a cluster's processes of it.
    pub fn env(&self) -> Vec<(String, String)> {
        vec![(VARIABLE.to_owned(), self.0.to_string_lossy().into_owned())]
    }

    /// Whoever comes to `point` for `vm` stops there.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn arm(&self, vm: &str, point: &str) {
        fs::write(&self.0, format!("{vm} {point}\n")).expect("the hold file");
    }

    /// Nobody stops any more; who has stopped already goes on by SIGCONT.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn clear(&self) {
        fs::write(&self.0, "").expect("the hold file");
    }
}

/// Whether a process is stopped by a signal.
pub fn is_stopped(pid: u32) -> bool {
    // The state is the first field after the name, which is in brackets (proc(5)).
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
}

/// The process of `vm` whose socket is under `state_dir`, whether its agent lives or not.
pub fn vmm_of(state_dir: &Path, vm: &str) -> Option<u32> {
    let entries = fs::read_dir("/proc").ok()?;
    let mut pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.find(|pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let mut words = line.split('\0');
        let here = words.any(|word| word == "--socket")
            && words.next().is_some_and(|path| Path::new(path).starts_with(state_dir));
        here && words.any(|word| word == "--vm") && words.next() == Some(vm)
    })
}

/// The TCP connections of a process: a VM's process has no others than its migration's.
///
/// # Panics
/// When this process may not look into that one.
pub fn connections(pid: u32) -> Vec<OwnedFd> {
    let connected = |fd: &OwnedFd| match getpeername(fd) {
        Ok(Some(peer)) => peer.address_family() == AddressFamily::INET,
        _ => false,
    };
    sockets(pid).into_iter().filter(connected).collect()
}

/// Copies of all descriptors of a process.
fn sockets(pid: u32) -> Vec<OwnedFd> {
    let number = Pid::from_raw(pid.cast_signed()).expect("a pid");
    let process = pidfd_open(number, PidfdFlags::empty()).expect("it runs");
    let listed = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").flatten();
    let numbers = listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let copies = numbers.filter_map(|fd: c_int| {
        // One that was closed meanwhile is none.
        pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok()
    });
    copies.collect()
}

/// The socket on which a VM's process waits for its source.
///
/// # Panics
/// When it waits for none, or this process may not look into that one.
pub fn listener(pid: u32) -> OwnedFd {
    sockets(pid)
        .into_iter()
        .find(|fd| {
            rustix::net::sockopt::socket_acceptconn(fd).unwrap_or(false)
                && rustix::net::sockopt::socket_domain(fd) == Ok(AddressFamily::INET)
        })
        .expect("it listens")
}

/// Cuts them.
pub fn cut(connections: &[OwnedFd]) {
    for connection in connections {
        let _ = shutdown(connection, Shutdown::Both); // one that is cut already stays so
    }
}

/// Lets nothing arrive on them any more.
///
/// # Panics
/// When the kernel does not take the filter.
pub fn stall(connections: &[OwnedFd]) {
    // BPF_RET | BPF_K, 0: no byte of any packet is taken (socket(7), SO_ATTACH_FILTER).
    let mut nothing = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
    for connection in connections {
        set_option(connection, libc::SO_ATTACH_FILTER, &program).expect("a filter");
    }
}

/// Lets everything arrive again; what was lost is sent again by TCP.
///
/// # Panics
/// When the kernel does not give the filter back.
pub fn heal(connections: &[OwnedFd]) {
    for connection in connections {
        match set_option(connection, libc::SO_DETACH_FILTER, &0) {
            // Two descriptors of one socket have one filter.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            healed => healed.expect("no filter"),
        }
    }
}

fn set_option<T>(socket: &OwnedFd, option: c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open; the kernel reads `length` bytes of `value`, which has them,
    // and for a filter the one instruction it points to, which the caller keeps.
    let done = unsafe {
        let value = std::ptr::from_ref(value).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, length)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
