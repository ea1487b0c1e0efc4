//! Networks of a test's own to run guests in.
//!
//! ```text
//!   host                                client
//!   bridge br0 ── veth ──────────────── eth0
//!   192.0.2.1     ╲                     192.0.2.2
//!                  ╲── taps of the VMs
//! ```
//!
//! A second host ([`Lan::add_host`]) has a bridge of its own, joined to the first one's.
//!
//! All are network namespaces without a name, held by a file descriptor: they
//! and everything in them are gone when the [`Lan`] is dropped and what was
//! started in it has ended, however the test ends. They need root.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// The bridge on the host, to which VMs are attached.
pub const BRIDGE: &str = "br0";
/// The host's address on the bridge.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The second host's.
pub const OTHER_HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// An address for a guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The length of the network's prefix.
pub const PREFIX: u8 = 24;

/// A network namespace.
#[derive(Debug)]
pub struct Namespace(OwnedFd);

impl Namespace {
    /// A new one, in which only the loopback is up.
    ///
    /// # Errors
    /// This process may not make one: it is not root's.
    pub fn new() -> io::Result<Self> {
        let made = std::thread::spawn(|| -> io::Result<Self> {
            // SAFETY: this thread alone moves, and ends: nobody else's files or stack are touched.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            let file = std::fs::File::open("/proc/thread-self/ns/net")?;
            Ok(Self(file.into()))
        });
        let namespace = made.join().map_err(|_| io::Error::other("the thread panicked"))??;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Does something on a thread in it. Sockets made and processes started there stay there.
    ///
    /// # Errors
    /// The thread cannot move.
    ///
    /// # Panics
    /// When `work` panics.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(self.0.as_fd(), kind)?;
                Ok(work())
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` in it with these words. Returns what it says.
    ///
    /// # Errors
    /// `ip` cannot be run, or fails: then the error has what it says.
    pub fn ip(&self, words: &str) -> io::Result<String> {
        let output = self.within(|| Command::new("ip").args(words.split(' ')).output())??;
        let Output { status, stdout, stderr } = output;
        if status.success() {
            return Ok(String::from_utf8_lossy(&stdout).into_owned());
        }
        let why = String::from_utf8_lossy(&stderr);
        Err(io::Error::other(format!("ip {words}: {status}: {}", why.trim())))
    }

    /// A name for it that `ip` takes, good while this value is there.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// A host with a bridge, and a client on it.
#[derive(Debug)]
pub struct Lan {
    /// Where VMs run.
    pub host: Namespace,
    /// Where those are who talk to them.
    pub client: Namespace,
}

impl Lan {
    /// A new one.
    ///
    /// # Errors
    /// Why it cannot be made here.
    pub fn new() -> io::Result<Self> {
        let lan = Self { host: Namespace::new()?, client: Namespace::new()? };
        let host = |words: &str| lan.host.ip(words);
        host(&format!("link add {BRIDGE} type bridge"))?;
        host(&format!("link set {BRIDGE} up"))?;
        host(&format!("addr add {HOST}/{PREFIX} dev {BRIDGE}"))?;
        let client = lan.client.path();
        host(&format!("link add port0 type veth peer name eth0 netns {client}"))?;
        host(&format!("link set port0 master {BRIDGE} up"))?;
        lan.client.ip(&format!("addr add {CLIENT}/{PREFIX} dev eth0"))?;
        lan.client.ip("link set eth0 up")?;
        Ok(lan)
    }

    /// Another host on the same network, with a bridge of its own.
    ///
    /// # Errors
    /// As [`Namespace::ip`].
    pub fn add_host(&self) -> io::Result<Namespace> {
        let other = Namespace::new()?;
        other.ip(&format!("link add {BRIDGE} type bridge"))?;
        other.ip(&format!("link set {BRIDGE} up"))?;
        let there = other.path();
        self.host.ip(&format!("link add trunk0 type veth peer name trunk0 netns {there}"))?;
        for host in [&self.host, &other] {
            host.ip(&format!("link set trunk0 master {BRIDGE} up"))?;
        }
        other.ip(&format!("addr add {OTHER_HOST}/{PREFIX} dev {BRIDGE}"))?;
        Ok(other)
    }

    /// A tap on the bridge, up, for one process to open.
    ///
    /// # Errors
    /// As [`Namespace::ip`].
    pub fn add_tap(&self, name: &str) -> io::Result<()> {
        self.host.ip(&format!("tuntap add dev {name} mode tap"))?;
        self.host.ip(&format!("link set {name} master {BRIDGE} up")).map(|_| ())
    }

    /// Connects from the client, again and again until somebody answers: a guest that has just
    /// begun takes a moment.
    ///
    /// # Errors
    /// The last one, after `patience`.
    pub fn connect(&self, to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
        let deadline = Instant::now() + patience;
        self.client.within(|| {
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match TcpStream::connect_timeout(&to, left.max(Duration::from_millis(1))) {
                    Err(error) if !left.is_zero() => {
                        // Refused at once, or no such host after a second of asking for it.
                        let _ = error;
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    other => return other,
                }
            }
        })?
    }
}
