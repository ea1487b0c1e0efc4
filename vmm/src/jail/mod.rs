//! What this process may still do once it serves a guest.
//!
//! A guest that takes over its VMM gets what the VMM has, so the VMM gives away
//! what it does not need before it builds a machine, while it has one thread:
//! every later thread inherits the jail.
//!
//! ```text
//!   user ──▶ capabilities ──▶ paths (landlock) ──▶ system calls (seccomp) ──▶ threads ──▶ calls of their kind
//! ```
//!
//! | wall | what is left | module |
//! | --- | --- | --- |
//! | user, capabilities | an unprivileged user where one is named; of root's powers those that open disks and taps | [`rights`] |
//! | paths | what the VM is built of, as its agent listed it; the directory of the socket; `/dev/net/tun` | [`paths`] |
//! | system calls | no new program, no tracing, no mounts, no modules…; a vCPU's thread has far fewer | [`calls`] |
//!
//! A forbidden path is refused like a missing right. A forbidden system call
//! ends the process: its number and thread are the last line of its log, where
//! the agent looks for why a VM ended.
//!
//! Kernels without landlock leave that wall out, with a warning.

mod calls;
mod paths;
mod rights;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, mpsc};
use std::thread::JoinHandle;

use ballast_model::{Refusal, RefusalCode};
use clap::{Args, ValueEnum};

use crate::panic::EndsProcess;

pub(crate) use calls::ThreadKind;

/// How strict the jail is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// There is none
    #[default]
    Off,
    /// Forbidden system calls are logged by the kernel and done; paths are free
    Log,
    /// What is forbidden is not done
    Enforce,
}

/// The walls, as the command line names them.
#[derive(Debug, Clone, Args)]
pub(crate) struct JailArgs {
    /// How strict the jail is that this process puts itself in
    #[arg(long = "jail", value_enum, default_value_t)]
    mode: Mode,
    /// A file or directory it may read; may be repeated
    #[arg(long = "allow-read", value_name = "PATH")]
    read: Vec<PathBuf>,
    /// A file or directory it may read and write; may be repeated
    #[arg(long = "allow-write", value_name = "PATH")]
    write: Vec<PathBuf>,
    /// The user and group to become, as numbers; needs root
    #[arg(long, value_name = "UID:GID", value_parser = rights::parse_user)]
    user: Option<rights::User>,
}

/// The mode this process is in, for threads to come.
static MODE: OnceLock<Mode> = OnceLock::new();

/// Enters the jail. There is one thread; `own` is the directory that belongs to this process.
///
/// # Errors
/// `InvalidArgument` for a user that cannot be become, `HostFailure` when the kernel refuses a wall.
pub(crate) fn enter(args: &JailArgs, own: &Path) -> Result<(), Refusal> {
    if let Some(user) = args.user {
        rights::become_user(user)?;
    }
    let _ = MODE.set(args.mode);
    match args.mode {
        Mode::Off => return Ok(()),
        Mode::Log => {
            tracing::warn!("the jail only watches: paths are free, system calls are logged")
        }
        Mode::Enforce => {
            rights::drop_capabilities()?;
            paths::restrict(&args.read, &args.write, own)?;
        }
    }
    calls::restrict_process(args.mode)
}

/// Starts a thread that is left with what threads of its kind need, and answers once it is. The
/// guest cannot do without it: its panic ends the process.
///
/// # Errors
/// When there can be no thread, or the kernel refuses its jail: then it has done nothing.
pub(crate) fn spawn<T: Default + Send + 'static>(
    kind: ThreadKind,
    name: String,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let (tell, entered) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let _fatal = EndsProcess;
        let outcome = enter_thread(kind);
        let closed = outcome.is_ok();
        let _ = tell.send(outcome);
        if closed { work() } else { T::default() }
    })?;
    entered.recv().map_err(io::Error::other)?.map_err(io::Error::other)?;
    Ok(thread)
}

/// Leaves the calling thread with what threads of its kind need.
///
/// # Errors
/// `HostFailure` when the kernel refuses: the thread must not go on then.
fn enter_thread(kind: ThreadKind) -> Result<(), Refusal> {
    match MODE.get() {
        None | Some(Mode::Off) => Ok(()),
        Some(mode) => calls::restrict_thread(kind, *mode),
    }
}

fn refused(what: &str, error: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("the jail cannot be closed: {what}: {error}"),
        "update the host's kernel, or set jail = \"off\" in the agent's configuration",
    )
}
