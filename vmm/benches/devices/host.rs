//! What guests are given here: a disk of random bytes, a tap, and somebody at its other end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use ballast_guest::Params;
use ballast_guest::net::{GUEST, HOST, Namespace, PREFIX};

use crate::case::{Case, Load, PATIENCE};

pub(crate) const TAP: &str = "tap0";
pub(crate) const MAC: &str = "52:54:00:00:00:10";
const DISK_BYTES: usize = 256 << 20;
/// Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;

pub(crate) struct Host {
    /// Where the tap is.
    pub(crate) network: Namespace,
    dir: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new() -> io::Result<Self> {
        let network = Namespace::new()?;
        network.ip(&format!("tuntap add dev {TAP} mode tap"))?;
        network.ip(&format!("addr add {HOST}/{PREFIX} dev {TAP}"))?;
        network.ip(&format!("link set {TAP} up"))?;
        network.ip(&format!("neigh add {GUEST} lladdr {MAC} dev {TAP} nud permanent"))?;
        let dir = tempfile::tempdir()?;
        let mut disk = File::create(dir.path().join("disk"))?;
        let piece: Vec<u8> =
            (0..1_u32 << 18).flat_map(|it| (it.wrapping_mul(0x9e37_79b9)).to_le_bytes()).collect();
        for _ in 0..DISK_BYTES / piece.len() {
            disk.write_all(&piece)?;
        }
        Ok(Self { network, dir })
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// What the guest before has written is on the disk and not in the host's memory, so that it is
    /// not the next one's burden or help.
    pub(crate) fn settle(&self) {
        let disk = File::open(self.disk()).unwrap();
        disk.sync_all().unwrap();
        rustix::fs::fadvise(&disk, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }

    /// Does the host's part on a thread until `stop`.
    pub(crate) fn load<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        case: &'static Case,
        stop: &'scope AtomicBool,
    ) {
        let going = || !stop.load(Ordering::Relaxed);
        let work = move || match case.load {
            Load::Cold | Load::Quiet => {}
            Load::Warm => {
                let mut disk = File::open(self.disk()).unwrap();
                io::copy(&mut disk, &mut io::sink()).unwrap();
            }
            Load::Flood(bytes) => flood(bytes, going),
            Load::Swallow => {
                let mut bytes = vec![0; 1 << 20];
                let mut stream = connect(going);
                while going() && stream.as_mut().is_some_and(|it| it.read(&mut bytes).is_ok()) {}
            }
            Load::Pour => {
                let bytes = vec![42; 1 << 18];
                let mut stream = connect(going);
                while going() && stream.as_mut().is_some_and(|it| it.write(&bytes).is_ok()) {}
            }
        };
        scope.spawn(move || self.network.within(work).unwrap());
    }
}

/// A full tap drops them, which is no error.
fn flood(bytes: usize, going: impl Fn() -> bool) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.connect((GUEST, 9)).unwrap();
    let datagram = vec![42; bytes - HEADERS];
    while going() {
        let _ = socket.send(&datagram);
    }
}

fn connect(going: impl Fn() -> bool) -> Option<TcpStream> {
    let to = (GUEST, Params::default().echo_port).into();
    let end = Instant::now() + PATIENCE;
    while going() {
        if let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_secs(1)) {
            // So that it looks whether to go on.
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            return Some(stream);
        }
        assert!(Instant::now() < end, "the guest takes no connection");
    }
    None
}
