//! An etcd of our own: one member on loopback ports, for demonstrations and tests.
//!
//! ```text
//!  EtcdProcess ──owns──▶ thread ──owns──▶ etcd
//!      drop: the thread ends etcd and reaps it;  our process dies: the kernel ends etcd
//! ```
//!
//! A thread of its own starts the process and stays until its end, because the
//! kernel's "parent died" signal follows the thread that started a process, and
//! threads of a pool come and go.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ballast_model::{Refusal, RefusalCode};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

const PROGRAM: &str = "etcd";
/// How long etcd may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long etcd may take to end when asked, before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
/// How often other ports are tried because somebody took the chosen ones.
const PORTS_ATTEMPTS_MAX: u32 = 5;
/// How much of the end of its log is shown when it does not start.
const LOG_TAIL_BYTES: usize = 400;

/// A running etcd. Ends with this value.
#[derive(Debug)]
pub struct EtcdProcess {
    client: SocketAddr,
    pid: u32,
    /// Dropped to end the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Whether there is an etcd on this machine.
pub fn is_installed() -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).any(|dir| dir.join(PROGRAM).is_file())
}

impl EtcdProcess {
    /// Starts etcd with its data under `dir`, which must exist, and waits until it answers. Data of
    /// an earlier run is taken up. Blocks for up to [`START_TIMEOUT`].
    ///
    /// # Errors
    /// `Unsupported` when there is no etcd, `HostFailure` with its last words when it does not start.
    pub fn start(dir: &Path) -> Result<Self, Refusal> {
        let mut attempt = 1;
        loop {
            let client = free_address()?;
            match Self::start_at(dir, client) {
                Err(refusal)
                    if refusal.reason.contains("address already in use")
                        && attempt < PORTS_ATTEMPTS_MAX =>
                {
                    attempt += 1;
                }
                answer => return answer,
            }
        }
    }

    /// [`start`](Self::start) on a given address for clients, for example the one of an earlier run.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_at(dir: &Path, client: SocketAddr) -> Result<Self, Refusal> {
        let peer = free_address()?;
        let (answer, started) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let dir = dir.to_owned();
        let owner = move || {
            let mut child = match launch(&dir, client, peer) {
                Ok(child) => child,
                Err(refusal) => {
                    let _ = answer.send(Err(refusal)); // nobody waits: nothing to tell
                    return;
                }
            };
            let ready = wait_ready(&mut child, &dir, client);
            let failed = ready.is_err();
            let _ = answer.send(ready.map(|()| child.id()));
            if !failed {
                let _ = stopped.recv(); // an error means dropped, which is how it is asked to stop
            }
            end(&mut child);
        };
        let thread = std::thread::Builder::new()
            .name("etcd".to_owned())
            .spawn(owner)
            .map_err(|error| host_failure(format!("cannot start a thread for etcd: {error}")))?;
        let mut process = Self { client, pid: 0, stop: Some(stop), thread: Some(thread) };
        process.pid = started
            .recv()
            .map_err(|_| host_failure("the thread that starts etcd ended".to_owned()))??;
        Ok(process)
    }

    /// `ip:port` for clients.
    pub fn endpoint(&self) -> String {
        self.client.to_string()
    }

    /// The address for clients.
    pub const fn address(&self) -> SocketAddr {
        self.client
    }

    /// The process id.
    pub const fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it ends etcd in any case; a panic there has said so
        }
    }
}

fn host_failure(reason: String) -> Refusal {
    Refusal::new(RefusalCode::HostFailure, reason, "check the directory, its disk and etcd.log")
}

/// A loopback address that nobody uses at this moment.
fn free_address() -> Result<SocketAddr, Refusal> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(|error| host_failure(format!("no free port on 127.0.0.1: {error}")))
}

fn log_path(dir: &Path) -> PathBuf {
    dir.join("etcd.log")
}

fn launch(dir: &Path, client: SocketAddr, peer: SocketAddr) -> Result<Child, Refusal> {
    let log = File::create(log_path(dir))
        .map_err(|error| host_failure(format!("cannot write {}: {error}", dir.display())))?;
    let parent = rustix::process::getpid();
    let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
    let mut command = Command::new(PROGRAM);
    command
        .args(["--name", "ballast", "--log-level", "warn"])
        .arg("--data-dir")
        .arg(dir.join("etcd-data"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("ballast={peer}")])
        .args(["--auto-compaction-mode", "revision", "--auto-compaction-retention", "10000"])
        .process_group(0) // a Ctrl-C on the terminal is for us, who know in which order to end things
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if rustix::process::getppid() != Some(parent) {
                return Err(std::io::ErrorKind::BrokenPipe.into()); // it died before the call
            }
            Ok(())
        });
    }
    command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Refusal::new(
            RefusalCode::Unsupported,
            "there is no etcd on this machine",
            "install it (Debian: apt-get install etcd-server), or use the embedded store",
        ),
        _ => host_failure(format!("cannot start etcd: {error}")),
    })
}

fn wait_ready(child: &mut Child, dir: &Path, client: SocketAddr) -> Result<(), Refusal> {
    let by = Instant::now() + START_TIMEOUT;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(host_failure(format!("etcd ended ({status}): {}", last_words(dir))));
        }
        // Somebody else's server on a taken port would answer, too.
        if listens(child.id(), client) && is_healthy(client) {
            return Ok(());
        }
        if Instant::now() > by {
            let waited = START_TIMEOUT.as_secs();
            return Err(host_failure(format!(
                "etcd is not ready after {waited} s: {}",
                last_words(dir)
            )));
        }
        std::thread::sleep(POLL);
    }
}

/// Whether it is this process that listens on `address`, by the kernel's own tables.
fn listens(pid: u32, address: SocketAddr) -> bool {
    let SocketAddr::V4(address) = address else { return false };
    // As /proc/net/tcp writes it: the address as a native integer, and LISTEN as 0A.
    let local = u32::from_ne_bytes(address.ip().octets());
    let local = format!("{local:08X}:{:04X}", address.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let socket = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let found = *fields.get(1)? == local && *fields.get(3)? == "0A";
        found.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
    });
    let Some(socket) = socket else { return false };
    let open = fs::read_dir(format!("/proc/{pid}/fd"));
    open.into_iter().flatten().flatten().any(|file| {
        fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == socket.as_str())
    })
}

/// Asks `/health`: whether it has a leader and takes writes.
fn is_healthy(client: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&client, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /health HTTP/1.0\r\nHost: {client}\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains(r#""health":"true""#))
}

/// The end of its log, in one line.
fn last_words(dir: &Path) -> String {
    let log = fs::read(log_path(dir)).unwrap_or_default();
    let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
    String::from_utf8_lossy(tail).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Asks it to end, kills it when it does not, and reaps it.
fn end(child: &mut Child) {
    if let Ok(Some(_)) = child.try_wait() {
        return;
    }
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::TERM); // it is our child and not reaped: the id is its own
    }
    let by = Instant::now() + STOP_TIMEOUT;
    while Instant::now() < by {
        if let Ok(Some(_)) = child.try_wait() {
            return;
        }
        std::thread::sleep(POLL);
    }
    let _ = child.kill();
    let _ = child.wait();
}
