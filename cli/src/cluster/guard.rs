//! Nothing is left behind, however the owner of a cluster dies.
//!
//! The guard is a small process of its own that waits for the end of a pipe.
//! The kernel ends the pipe when the owner is gone, even by SIGKILL. Then the
//! guard ends every process of the cluster and removes its directory. VMMs
//! outlive their agents by design, so a parent-death signal would not do.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use ballast_model::{Refusal, RefusalCode};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The name under which the multi-call program is a guard.
pub const PROGRAM: &str = "ballast-guard";

/// How long a sweep goes on looking for processes that do not end.
const SWEEP_LIMIT: Duration = Duration::from_secs(10);
/// So many looks in a row must find nothing: for a moment within its exec a process has no
/// command line and is not seen.
const EMPTY_LOOKS: u32 = 3;
/// How often a sweep looks.
const SWEEP_POLL: Duration = Duration::from_millis(50);

/// The owner's end of the pipe.
#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// Starts the guard of `dir`.
    pub(super) fn start(dir: &Path) -> Result<Self, Refusal> {
        let mut child = Command::new(dir.join("bin").join(PROGRAM))
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| {
                Refusal::new(
                    RefusalCode::HostFailure,
                    format!("cannot start the guard of {}: {error}", dir.display()),
                    "check that the directory allows programs to be run from it",
                )
            })?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe })
    }

    /// Lets the guard go without a deed: everything is in order, or meant to stay.
    pub(super) fn release(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // A guard that is gone already needs no word.
            let _ = pipe.write_all(b"released");
        }
        let _ = self.child.wait();
    }
}

impl Drop for Guard {
    /// Waits for the guard's work, so that whoever drops a cluster finds nothing of it afterwards.
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.child.wait();
    }
}

/// The program `ballast-guard`: waits for the end of standard input, then cleans up.
pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Some(dir) = args.into_iter().nth(1).map(PathBuf::from) else {
        return ExitCode::from(2);
    };
    let mut words = Vec::new();
    let read = std::io::stdin().lock().take(64).read_to_end(&mut words);
    if read.is_ok() && !words.is_empty() {
        return ExitCode::SUCCESS;
    }
    let swept = sweep(&dir);
    let removed = std::fs::remove_dir_all(&dir);
    if swept.is_ok() && removed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Kills every process of the cluster in `dir` until there is none.
///
/// # Errors
/// `HostFailure` naming the processes that do not end.
pub fn sweep(dir: &Path) -> Result<(), Refusal> {
    let deadline = Instant::now() + SWEEP_LIMIT;
    let mut empty_looks = 0;
    loop {
        let found = members(dir);
        empty_looks = if found.is_empty() { empty_looks + 1 } else { 0 };
        if empty_looks == EMPTY_LOOKS {
            return Ok(());
        }
        if Instant::now() > deadline {
            let pids: Vec<_> = found.iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
            return Err(Refusal::new(
                RefusalCode::HostFailure,
                format!("processes {} do not end", pids.join(", ")),
                "end them by hand",
            ));
        }
        for pid in found {
            kill_member(dir, pid);
        }
        std::thread::sleep(SWEEP_POLL);
    }
}

/// Kills `pid` if it still is what it was: the descriptor pins the process between look and kill.
fn kill_member(dir: &Path, pid: Pid) {
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if is_member(dir, pid) {
        let _ = pidfd_send_signal(descriptor, Signal::KILL);
    }
}

fn members(dir: &Path) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pid =
        |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw);
    let own = rustix::process::getpid();
    entries
        .filter_map(|entry| pid(entry.ok()?))
        .filter(|pid| *pid != own && is_member(dir, *pid))
        .collect()
}

/// A process is the cluster's when it was started through one of the links in `bin/`, or is an
/// etcd that keeps its data in the directory. Nobody else can be: the directory's name is random.
fn is_member(dir: &Path, pid: Pid) -> bool {
    let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
    let Ok(line) = std::fs::read(path) else { return false };
    let mut args = line.split(|byte| *byte == 0);
    let program = args.next().unwrap_or_default();
    let bin = dir.join("bin");
    if program.starts_with(bin.as_os_str().as_bytes()) {
        return !program.ends_with(PROGRAM.as_bytes());
    }
    let needle = dir.as_os_str().as_bytes();
    let is_etcd = program == b"etcd" || program.ends_with(b"/etcd");
    is_etcd && args.any(|arg| arg.windows(needle.len()).any(|part| part == needle))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process of `dir`, as a daemon would be: started through a link in `bin/`.
    fn start_member(dir: &Path) -> Child {
        std::fs::create_dir_all(dir.join("bin")).unwrap();
        let link = dir.join("bin").join("ballast-agent");
        let _ = std::os::unix::fs::symlink("/bin/sleep", &link);
        Command::new(link).arg("600").spawn().unwrap()
    }

    #[test]
    fn a_sweep_ends_the_members_and_nobody_else() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut member = start_member(dir.path());
        let mut stranger = start_member(other.path());
        // The sweep waits until there is no member; a zombie has no command line and is none.
        sweep(dir.path()).unwrap();
        assert!(!member.wait().unwrap().success());
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[test]
    fn an_empty_directory_needs_no_sweep() {
        sweep(tempfile::tempdir().unwrap().path()).unwrap();
    }
}
