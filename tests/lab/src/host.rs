//! One host: a QEMU process, its console log and the way to its agent.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ballast_model::{Refusal, RefusalCode};

use crate::control::{self, FileRequest, Frame, RunEnd, RunRequest};
use crate::refuse;
use crate::warden::Warden;

/// How long a host may take from its start to its agent's first word. It
/// takes 3 s on a quiet machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How much longer than a script's own time its answer may take.
const ANSWER_GRACE: Duration = Duration::from_secs(60);
/// How long a file may take to be moved.
const FILE_LIMIT: Duration = Duration::from_secs(120);
/// How long a host may take to power off.
const OFF_LIMIT: Duration = Duration::from_secs(30);
/// How long a script of [`Host::sh`] may take.
const SCRIPT_LIMIT: Duration = Duration::from_secs(60);
/// How often a process is asked whether it has ended.
const POLL: Duration = Duration::from_millis(20);
/// How much of a console's end is shown with an error, in lines and bytes.
const CONSOLE_LINES: usize = 80;
const CONSOLE_BYTES: u64 = 16 << 10;

/// What a script did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 + the number of a signal that ended it.
    pub code: i32,
    /// The end of what it wrote to standard output, at most 4 MiB.
    pub stdout: String,
    /// The same of standard error.
    pub stderr: String,
}

impl Output {
    /// What was printed, without the last line's end, when the script succeeded.
    pub(crate) fn ok(self, host: &Host, script: &str) -> Result<String, Refusal> {
        if self.code != 0 {
            return Err(host.failed(script, &self));
        }
        Ok(self.stdout.trim_end().to_owned())
    }
}

/// Something that goes on in a host; see [`Host::spawn`].
#[derive(Debug, Clone)]
pub struct Task {
    /// Its process, and its process group, in the host.
    pub pid: u32,
    /// Where it writes what it prints, in the host.
    pub log: String,
}

/// A KVM host that runs.
#[derive(Debug)]
pub struct Host {
    name: String,
    address: Option<String>,
    console: PathBuf,
    child: Mutex<Child>,
    port: Mutex<UnixStream>,
}

/// What a host is started with.
pub(crate) struct Start<'a> {
    pub(crate) name: String,
    pub(crate) address: Option<String>,
    /// The QEMU process, but for console and control port.
    pub(crate) command: Command,
    /// Where its console log and sockets are.
    pub(crate) dir: &'a Path,
}

/// A host that boots; [`Booting::ready`] waits for it.
pub(crate) struct Booting {
    host: Host,
    began: Instant,
}

impl Host {
    /// Starts the process and lets it connect.
    pub(crate) fn start(warden: &Warden, start: Start<'_>) -> Result<Booting, Refusal> {
        let Start { name, address, mut command, dir } = start;
        let socket = dir.join(format!("{name}.sock"));
        let console = dir.join(format!("{name}.console"));
        let errors = dir.join(format!("{name}.qemu"));
        let listener =
            UnixListener::bind(&socket).map_err(|e| refuse::file("listen on", &socket, e))?;
        let stderr = File::create(&errors).map_err(|e| refuse::file("create", &errors, e))?;
        command
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("socket,id=control,path={}", socket.display())])
            .args(["-device", &format!("virtserialport,chardev=control,name={}", control::PORT)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let began = Instant::now();
        let mut child = warden.spawn(command)?;
        let port = match accept(&listener, &mut child, began + BOOT_LIMIT) {
            Ok(port) => port,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = fs::read_to_string(&errors).unwrap_or_default();
                return Err(refuse::machine(
                    format_args!("QEMU does not start host {name}"),
                    format_args!("{error}: {}", said.trim()),
                    "correct what QEMU says",
                ));
            }
        };
        let (child, port) = (Mutex::new(child), Mutex::new(port));
        Ok(Booting { host: Self { name, address, console, child, port }, began })
    }

    /// Its name, `h0`, `h1` or `h2`, which is also its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address in the lab's network, without a prefix length.
    ///
    /// # Errors
    /// `InvalidArgument` in a lab without a network.
    pub fn address(&self) -> Result<&str, Refusal> {
        self.address.as_deref().ok_or_else(|| {
            refuse::argument("the lab has no network", "build the lab with Net::Bridge")
        })
    }

    /// Runs `script` in a shell and waits for its end, whatever that is.
    ///
    /// One script at a time runs on a host; others wait. What the script
    /// leaves in the background goes on: see [`spawn`](Self::spawn).
    ///
    /// # Errors
    /// `Timeout` when it takes longer than `timeout`, with what it printed;
    /// `Unavailable` when the host is gone, with the end of its console.
    pub fn run(&self, script: &str, timeout: Duration) -> Result<Output, Refusal> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let request = RunRequest { script: script.to_owned(), timeout_ms };
        let (output, end) = self.talk(timeout + ANSWER_GRACE, |port| {
            control::send_value(port, control::RUN, &request)?;
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            loop {
                let frame = Frame::read(port)?;
                match frame.kind {
                    control::STDOUT => stdout.extend_from_slice(&frame.payload),
                    control::STDERR => stderr.extend_from_slice(&frame.payload),
                    control::EXIT => {
                        let end: RunEnd = frame.value()?;
                        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                        let (stdout, stderr) = (text(&stdout), text(&stderr));
                        return Ok((Output { code: end.code, stdout, stderr }, end));
                    }
                    kind => return Err(unexpected(kind)),
                }
            }
        })?;
        if end.timed_out {
            return Err(Refusal::new(
                RefusalCode::Timeout,
                format!(
                    "on {} a script took longer than {timeout:?}: {script}\n{}{}",
                    self.name, output.stdout, output.stderr
                ),
                "give it more time, or see what it waits for",
            ));
        }
        Ok(output)
    }

    /// Runs `script` for at most a minute; what it printed, without the last line's end.
    ///
    /// # Errors
    /// As [`run`](Self::run), and `HostFailure` when the script fails.
    pub fn sh(&self, script: &str) -> Result<String, Refusal> {
        self.run(script, SCRIPT_LIMIT)?.ok(self, script)
    }

    /// Runs `script` again and again until it succeeds; what it printed then.
    ///
    /// # Errors
    /// `Timeout` when it has not succeeded within `limit`, with its last words.
    pub fn until(&self, script: &str, limit: Duration) -> Result<String, Refusal> {
        let deadline = Instant::now() + limit;
        loop {
            let output = self.run(script, limit)?;
            if output.code == 0 {
                return Ok(output.stdout.trim_end().to_owned());
            }
            if Instant::now() >= deadline {
                return Err(Refusal { code: RefusalCode::Timeout, ..self.failed(script, &output) });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Starts something that goes on, in a process group of its own, with its output in a file.
    ///
    /// `name` names that file and is the caller's to choose; a `command` of one
    /// program is that process itself, not a shell around it.
    ///
    /// # Errors
    /// As [`sh`](Self::sh).
    pub fn spawn(&self, name: &str, command: &str) -> Result<Task, Refusal> {
        let log = format!("/run/lab/{name}.log");
        let quoted = command.replace('\'', r"'\''");
        let script = format!("setsid /bin/sh -c 'exec {quoted}' </dev/null >>{log} 2>&1 & echo $!");
        let pid = self.sh(&script)?;
        let pid = pid.parse().map_err(|error| {
            refuse::machine(format_args!("no process id {pid:?}"), error, "report a defect")
        })?;
        Ok(Task { pid, log })
    }

    /// What a task printed so far.
    ///
    /// # Errors
    /// As [`sh`](Self::sh).
    pub fn log_of(&self, task: &Task) -> Result<String, Refusal> {
        self.sh(&format!("cat {}", task.log))
    }

    /// Copies the file `from` of this machine to `to` in the host, with its permissions.
    ///
    /// # Errors
    /// `HostFailure` for either file; `Unavailable` when the host is gone.
    pub fn push(&self, from: &Path, to: &str) -> Result<(), Refusal> {
        use std::os::unix::fs::PermissionsExt;
        let open = || -> io::Result<_> {
            let file = File::open(from)?;
            let mode = file.metadata()?.permissions().mode() & 0o7777;
            Ok((file, mode))
        };
        let (file, mode) = open().map_err(|error| refuse::file("read", from, error))?;
        let answer = self.talk(FILE_LIMIT, |port| {
            control::send_value(port, control::PUSH, &FileRequest { path: to.into(), mode })?;
            control::send_all(port, control::DATA, file)?;
            control::send(port, control::END, &[])?;
            Frame::read(port)
        })?;
        self.done(&answer, "write", to)
    }

    /// Copies the file `from` in the host to `to` of this machine.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn pull(&self, from: &str, to: &Path) -> Result<(), Refusal> {
        let mut file = File::create(to).map_err(|error| refuse::file("create", to, error))?;
        let answer = self.talk(FILE_LIMIT, |port| {
            control::send_value(port, control::PULL, &FileRequest { path: from.into(), mode: 0 })?;
            loop {
                let frame = Frame::read(port)?;
                if frame.kind != control::DATA {
                    return Ok(frame);
                }
                io::Write::write_all(&mut file, &frame.payload)?;
            }
        })?;
        self.done(&answer, "read", from)
    }

    /// The end of its console: the kernel's and the init script's words.
    pub fn console_tail(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.console)?;
            let start = file.metadata()?.len().saturating_sub(CONSOLE_BYTES);
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.take(CONSOLE_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
    }

    /// Powers the host off and waits until its process has ended.
    ///
    /// # Errors
    /// `Timeout` when it does not end; it is killed when it is dropped.
    pub fn power_off(&self) -> Result<(), Refusal> {
        control::send(&mut *self.port(), control::POWER_OFF, &[]).map_err(|e| self.lost(&e))?;
        let deadline = Instant::now() + OFF_LIMIT;
        while self.child().try_wait().map_err(|error| self.lost(&error))?.is_none() {
            if Instant::now() >= deadline {
                return Err(Refusal::new(
                    RefusalCode::Timeout,
                    format!("{} does not power off:\n{}", self.name, self.console_tail()),
                    "see what it waits for",
                ));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Ends the host as a power cut does: nothing in it can do anything about it.
    ///
    /// # Errors
    /// `Unavailable` when its process cannot be ended.
    pub fn power_cut(&self) -> Result<(), Refusal> {
        let mut child = self.child();
        child.kill().and_then(|()| child.wait()).map(drop).map_err(|error| self.lost(&error))
    }

    /// One request and its answer.
    fn talk<T>(
        &self,
        limit: Duration,
        exchange: impl FnOnce(&mut UnixStream) -> io::Result<T>,
    ) -> Result<T, Refusal> {
        let mut port = self.port();
        let outcome = port
            .set_read_timeout(Some(limit))
            .and_then(|()| port.set_write_timeout(Some(limit)))
            .and_then(|()| exchange(&mut port));
        // After half an exchange nothing that follows would be understood.
        if outcome.is_err() {
            let _ = port.shutdown(std::net::Shutdown::Both);
        }
        outcome.map_err(|error| self.lost(&error))
    }

    fn done(&self, answer: &Frame, what: &str, path: &str) -> Result<(), Refusal> {
        if matches!(answer.kind, control::DONE | control::END) {
            return Ok(());
        }
        let path = PathBuf::from(format!("{}:{path}", self.name));
        Err(refuse::file(what, &path, answer.text()))
    }

    fn failed(&self, script: &str, output: &Output) -> Refusal {
        let Output { code, stdout, stderr } = output;
        let mut reason = format!("on {} a script ended with {code}: {script}", self.name);
        for text in [stdout, stderr] {
            if !text.trim().is_empty() {
                let _ = write!(reason, "\n{}", text.trim_end());
            }
        }
        Refusal::new(RefusalCode::HostFailure, reason, "see what it says")
    }

    fn lost(&self, error: &io::Error) -> Refusal {
        let state = match self.child().try_wait() {
            Ok(Some(status)) => format!("its QEMU ended with {status}"),
            _ => "its QEMU runs".to_owned(),
        };
        Refusal::new(
            RefusalCode::Unavailable,
            format!(
                "host {} does not answer: {error}; {state}; the end of its console:\n{}\n",
                self.name,
                self.console_tail()
            ),
            "see its console; a lab's hosts do not come back by themselves",
        )
    }

    fn port(&self) -> MutexGuard<'_, UnixStream> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Booting {
    /// Waits until the agent is up; the host and how long it took.
    pub(crate) fn ready(self) -> Result<(Host, Duration), Refusal> {
        let Self { host, began } = self;
        let limit = BOOT_LIMIT.saturating_sub(began.elapsed()).max(POLL);
        let frame = host.talk(limit, Frame::read)?;
        if frame.kind != control::HELLO {
            return Err(host.lost(&unexpected(frame.kind)));
        }
        Ok((host, began.elapsed()))
    }
}

fn unexpected(kind: u8) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("an answer of kind {kind}"))
}

/// Waits for QEMU to connect, but not for one that has ended.
fn accept(listener: &UnixListener, child: &mut Child, deadline: Instant) -> io::Result<UnixStream> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((port, _)) => {
                port.set_nonblocking(false)?;
                return Ok(port);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(status.to_string()));
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(POLL);
    }
}
