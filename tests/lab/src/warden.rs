//! The thread that every process of a lab is a child of.
//!
//! A network namespace belongs to threads, and the kernel can end a child when
//! the *thread* that started it ends. One thread for both means: whatever is
//! started here is in the lab's own network, and when the lab goes, be it by
//! `drop`, by a panic or by SIGKILL, its processes and its network go with it.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use ballast_model::Refusal;
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::refuse;

type Job = Box<dyn FnOnce() + Send>;

/// Owns the thread; ends it, and with it all children, when dropped.
#[derive(Debug)]
pub(crate) struct Warden {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Warden {
    /// Starts the thread, with a network of its own if wanted.
    pub(crate) fn start(own_network: bool) -> Result<Self, Refusal> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("lab-warden".into())
            .spawn(move || todo.into_iter().for_each(|job| job()))
            .map_err(|error| refuse::machine("cannot start a thread", error, "end processes"))?;
        let warden = Self { jobs: Some(jobs), thread: Some(thread) };
        if own_network {
            warden.call(enter_own_network)??;
        }
        Ok(warden)
    }

    /// Does `work` in the thread and waits for it.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (answer, result) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || {
            // Whoever asked has gone if this fails; then nobody misses the answer.
            let _ = answer.send(work());
        });
        let gone = || refuse::machine("the lab's thread", "has ended", "report a defect");
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())
    }

    /// Starts a process that does not outlive the lab.
    pub(crate) fn spawn(&self, mut command: Command) -> Result<Child, Refusal> {
        let name = command.get_program().to_string_lossy().into_owned();
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        self.call(move || command.spawn())?.map_err(|error| {
            refuse::machine(
                format_args!("cannot start {name}"),
                error,
                "run deploy/bootstrap.sh lab, which installs the lab's tools",
            )
        })
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn enter_own_network() -> Result<(), Refusal> {
    // SAFETY: only the network namespace is unshared, which no other thread's memory or files depend on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(|error| {
        refuse::machine(
            "cannot make a network namespace for the lab",
            error,
            "run as root, or build the lab with Net::None",
        )
    })
}
