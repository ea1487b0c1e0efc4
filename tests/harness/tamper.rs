//! A proxy between two VMs' processes that changes a byte when it is told to.
//!
//! Neither side is told of it. While the destination's process stands still, its
//! listening socket (a copy by pidfd_getfd(2)) yields the source's connection to us; we
//! connect to the same address, and that is what the destination finds when it goes on.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};

use crate::hold;

const PIECE_BYTES: usize = 64 << 10;
/// How long the source may take to connect, in seconds.
const CONNECT_SECS_MAX: i64 = 20;

/// The connection of one migration, carried by two threads that end with it.
#[derive(Debug)]
pub struct Tamper {
    source: TcpStream,
    armed: Arc<AtomicBool>,
}

impl Tamper {
    /// Takes the connection that the source makes to the process `destination`, which stands
    /// still. Blocks until it is there.
    ///
    /// # Panics
    /// When there is none, or it cannot be taken.
    pub fn take(destination: u32) -> Self {
        let listener = TcpListener::from(hold::listener(destination));
        let mut waits = [PollFd::new(&listener, PollFlags::IN)];
        let patience = rustix::event::Timespec { tv_sec: CONNECT_SECS_MAX, tv_nsec: 0 };
        assert_eq!(poll(&mut waits, Some(&patience)).expect("poll"), 1, "the source connects");
        let (source, _) = listener.accept().expect("the source's connection");
        source.set_nonblocking(false).expect("a connection");
        let there = TcpStream::connect(listener.local_addr().expect("its address"));
        let there = there.expect("the destination listens");
        let armed = Arc::new(AtomicBool::new(false));
        let copy = |stream: &TcpStream| stream.try_clone().expect("a copy");
        let (from, to, change) = (copy(&source), copy(&there), Arc::clone(&armed));
        std::thread::spawn(move || carry(from, to, Some(&change)));
        let (from, to) = (there, copy(&source));
        std::thread::spawn(move || carry(from, to, None));
        Self { source, armed }
    }

    /// Whether everything that `source`, which stands still, has sent is on its way beyond us.
    pub fn is_idle(&self, source: &[OwnedFd]) -> bool {
        let queued = |fd: &dyn AsRawFd, what| {
            let mut bytes = 0;
            // SAFETY: the descriptor is open; the kernel writes one int.
            let asked = unsafe { libc::ioctl(fd.as_raw_fd(), what, &raw mut bytes) };
            assert_eq!(asked, 0, "an ioctl");
            bytes
        };
        source.iter().all(|fd| queued(fd, libc::TIOCOUTQ) == 0)
            && queued(&self.source, libc::FIONREAD) == 0
    }

    /// The next byte of the source arrives as another one.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, change: Option<&AtomicBool>) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(bytes @ 1..) = from.read(&mut piece) {
        if change.is_some_and(|armed| armed.swap(false, Ordering::SeqCst)) {
            piece[0] ^= 0x40;
        }
        if to.write_all(&piece[..bytes]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Read); // either end may be gone
    let _ = to.shutdown(Shutdown::Write);
}
