//! One daemon as a child process, with its log in a file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use ballast_model::{Refusal, RefusalCode};
use rustix::process::{Pid, Signal, kill_process};

use super::POLL;

/// How much of a log's end is looked at for last words, in bytes.
const TAIL_BYTES: u64 = 4096;

/// A child process that can be ended and started again.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    log_level: String,
    env: Vec<(String, String)>,
    child: Option<Child>,
}

impl Process {
    /// A daemon of `dir`, not yet started.
    pub(super) fn new(
        dir: &Path,
        program: &str,
        name: &str,
        config: &Path,
        log_level: &str,
        env: &[(String, String)],
    ) -> Self {
        Self {
            name: name.to_owned(),
            program: dir.join("bin").join(program),
            config: config.to_owned(),
            log: dir.join("log").join(format!("{name}.log")),
            log_level: log_level.to_owned(),
            env: env.to_owned(),
            child: None,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it. Its process group is its own, so that a Ctrl-C on the terminal reaches only the
    /// one who knows in which order to end things.
    pub(super) fn spawn(&mut self) -> Result<(), Refusal> {
        let start = || -> std::io::Result<Child> {
            let log = File::options().create(true).append(true).open(&self.log)?;
            Command::new(&self.program)
                .arg("--config")
                .arg(&self.config)
                .env("RUST_LOG", &self.log_level)
                .envs(self.env.iter().map(|(name, value)| (name, value)))
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .process_group(0)
                .spawn()
        };
        let child = start().map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot start {} ({}): {error}", self.name, self.program.display()),
                "check that the program is there and may be executed",
            )
        })?;
        self.child = Some(child);
        Ok(())
    }

    /// Refuses, with the process's last words, when it has ended by itself.
    pub(super) fn check_alive(&mut self) -> Result<(), Refusal> {
        let Some(status) = self.reap() else { return Ok(()) };
        Err(Refusal::new(
            RefusalCode::HostFailure,
            format!("{} ended with {status}: {}", self.name, self.last_words()),
            "correct what it says and start again",
        ))
    }

    pub(super) fn ask_to_end(&mut self) {
        self.signal(Signal::TERM);
    }

    /// Waits until it has ended; kills it at the deadline.
    pub(super) async fn end_by(&mut self, deadline: Instant) {
        while self.child.is_some() && self.reap().is_none() {
            if Instant::now() >= deadline {
                self.signal(Signal::KILL);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub(super) async fn kill(&mut self) -> Result<(), Refusal> {
        self.signal(Signal::KILL);
        let deadline = Instant::now() + super::END_LIMIT;
        while self.child.is_some() && self.reap().is_none() {
            if Instant::now() >= deadline {
                return Err(Refusal::new(
                    RefusalCode::HostFailure,
                    format!("{} does not end by SIGKILL", self.name),
                    "look for a process that hangs in the kernel",
                ));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The exit status, once it has ended; afterwards there is no child.
    fn reap(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        self.child = None;
        Some(status)
    }

    /// Lets it go on without an owner.
    pub(super) fn release(&mut self) {
        self.child = None;
    }

    fn signal(&self, signal: Signal) {
        // Not yet waited for, so the id is still this child's.
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed()));
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }

    /// The last line it printed.
    fn last_words(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let tail = read().unwrap_or_default();
        tail.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
    }
}

impl Drop for Process {
    /// Kills it and waits, so that no zombie is left to a parent that does not care.
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
