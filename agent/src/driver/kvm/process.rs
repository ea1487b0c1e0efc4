//! VMM processes: started, found again, watched, ended.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use ballast_model::{Refusal, RefusalCode, VmSpec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tracing::error;

use super::confine;
use crate::config::VmmConfig;
use crate::driver::ProcessId;
use crate::load::{proc, sampler};
use crate::vm::dir::VmDir;

/// How much of the end of a log is looked at.
const LAST_WORDS_BYTES: u64 = 2048;

/// A VMM process, held by its pidfd: never another one with the same number.
#[derive(Debug)]
pub(super) struct Process {
    id: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Starts the program in a session of its own, its output in the VM's log.
    pub(super) fn spawn(
        program: &Path,
        config: &VmmConfig,
        spec: &VmSpec,
        restore_from: Option<&Path>,
        dir: &VmDir,
    ) -> Result<Self, Refusal> {
        let vm = &spec.id;
        let started = || -> io::Result<Self> {
            let log = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.log())?;
            confine::hand_over(config, dir)?;
            let cpus = confine::cpu_set(config);
            let mut command = Command::new(program);
            command.arg("--socket").arg(dir.socket()).arg("--vm").arg(vm.as_str());
            command.arg("--console-log").arg(dir.console_log());
            command.arg("--disk-root").arg(&config.disk_root);
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir("/");
            command.args(confine::jail_args(config, spec, restore_from));
            let set_apart = move || {
                rustix::process::setsid()?;
                if let Some(cpus) = &cpus {
                    rustix::thread::sched_setaffinity(None, cpus)?;
                }
                Ok(())
            };
            // SAFETY: both system calls are async-signal-safe, and nothing is allocated.
            unsafe { command.pre_exec(set_apart) };
            // Tokio reaps a child whose handle was dropped.
            let child = tokio::process::Command::from(command).spawn()?;
            let pid = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
            let pidfd = open(pid)?;
            let start_ticks = stat(pid).map_or(0, |process| process.start_ticks);
            Ok(Self { id: ProcessId { pid, start_ticks }, pidfd })
        };
        started().map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot start {} for VM {vm}: {error}", program.display()),
                "check vmm.binary, vmm.cpus and the machine's limits on processes and files",
            )
        })
    }

    /// The process, if it is still the one that was recorded.
    pub(super) fn open(id: ProcessId) -> Result<Option<Self>, Refusal> {
        // First the handle, then the look: what is looked at cannot be replaced any more.
        let pidfd = match open(id.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => {
                return Err(Refusal::new(
                    RefusalCode::HostFailure,
                    format!("cannot watch process {}: {error}", id.pid),
                    "check the agent's rights and its limit on files",
                ));
            }
        };
        let same = stat(id.pid).is_some_and(|process| process.start_ticks == id.start_ticks);
        Ok(same.then_some(Self { id, pidfd }))
    }

    /// The process that was started for this socket, whatever its number.
    pub(super) fn find(socket: &Path) -> Option<Self> {
        let wanted = socket.as_os_str().as_encoded_bytes();
        for entry in std::fs::read_dir("/proc").ok()?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            let Ok(cmdline) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let mut words = cmdline.split(|&byte| byte == 0);
            if words.any(|word| word == b"--socket") && words.next() == Some(wanted) {
                let start_ticks = stat(pid)?.start_ticks;
                return Self::open(ProcessId { pid, start_ticks }).ok().flatten();
            }
        }
        None
    }

    pub(super) fn id(&self) -> ProcessId {
        self.id
    }

    /// Until it has ended.
    pub(super) async fn ended(&self) {
        // A pidfd is readable once its process has ended (pidfd_open(2)).
        if let Err(error) = self.pidfd.readable().await {
            error!(pid = self.id.pid, %error, "cannot watch a process");
            std::future::pending::<()>().await;
        }
    }

    /// Ends it at once. One that has ended is ended.
    pub(super) fn kill(&self) {
        if let Err(error) = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            error!(pid = self.id.pid, %error, "cannot end a process");
        }
    }
}

fn open(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| io::Error::other(format!("{pid} is no process number")))?;
    let pidfd = pidfd_open(number, PidfdFlags::NONBLOCK)?;
    // SAFETY: an OwnedFd is an open descriptor, stays the same one, and is nobody else's; nothing
    // takes it out of the AsyncFd.
    unsafe { AsyncFd::register(pidfd) }.map_err(Into::into)
}

fn stat(pid: u32) -> Option<proc::Process> {
    proc::process(&sampler::read_proc(&format!("{pid}/stat"))?)
}

/// The last line of the VM's log.
pub(super) fn last_words(dir: &VmDir) -> String {
    let read = || -> io::Result<String> {
        let mut file = std::fs::File::open(dir.log())?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned())
    };
    match read() {
        Ok(line) if !line.is_empty() => line,
        _ => "it said nothing".to_owned(),
    }
}
