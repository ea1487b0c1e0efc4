//! From the guest to the host: each chain is one frame, written as it lies in guest memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;

use vm_memory::GuestMemory;

use super::tap::HEADER_BYTES;
use super::{FRAME_BYTES_MAX, Turn, Turned};
use crate::devices::rate_limit::RateLimiter;
use crate::devices::ring::{Broken, Buffer, Direction, Ring};

/// Frames taken before other work gets its turn.
const BATCH: usize = 64;
/// An Ethernet header, and one empty virtio header in front.
const FRAME_BYTES_MIN: usize = HEADER_BYTES + 14;

/// The sending queue at work.
#[derive(Debug)]
pub(super) struct Tx {
    ring: Ring,
    limiter: RateLimiter,
    buffers: Vec<Buffer>,
    iovecs: Vec<libc::iovec>,
    /// Frames that went nowhere: no link, no sense, or no room at the host.
    dropped: u64,
}

impl Tx {
    pub(super) fn new(ring: Ring, limiter: RateLimiter) -> Self {
        Self { ring, limiter, buffers: Vec::new(), iovecs: Vec::new(), dropped: 0 }
    }

    /// Sends what the guest has queued, as far as its limit lets it. Without a tap
    /// the cable is unplugged: frames are taken and lost.
    ///
    /// # Errors
    /// [`Broken`] when the guest's queue makes no sense.
    pub(super) fn turn<M: GuestMemory>(
        &mut self,
        memory: &M,
        tap: Option<BorrowedFd<'_>>,
        now: Instant,
    ) -> Result<Turned, Broken> {
        self.ring.stop_listening(memory)?;
        let mut turn = Turn::Again;
        for _ in 0..BATCH {
            if let Err(wait) = self.limiter.ready(now) {
                turn = Turn::NotBefore(now + wait);
                break;
            }
            self.buffers.clear();
            let chain = self.ring.take(memory, Some(Direction::ToDevice), &mut self.buffers)?;
            let Some(chain) = chain else {
                if self.ring.listen(memory)? {
                    continue;
                }
                turn = Turn::Idle;
                break;
            };
            let frame = chain.bytes.saturating_sub(HEADER_BYTES) as u64;
            if !self.send(chain.bytes, tap) {
                self.dropped += 1;
            }
            self.limiter.charge(frame);
            self.ring.put(memory, chain.head, 0)?;
        }
        Ok(Turned { turn, interrupt: self.ring.publish(memory)? })
    }

    /// Whether the host took the frame.
    fn send(&mut self, bytes: usize, tap: Option<BorrowedFd<'_>>) -> bool {
        let Some(tap) = tap else { return false };
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&bytes) {
            return false;
        }
        self.iovecs.clear();
        self.iovecs.extend(self.buffers.iter().map(Buffer::iovec));
        let Ok(count) = libc::c_int::try_from(self.iovecs.len()) else { return false };
        loop {
            // SAFETY: the buffers were looked up in guest memory, which outlives this call; the
            // guest may change them meanwhile, which changes the frame and nothing else.
            let written = unsafe { libc::writev(tap.as_raw_fd(), self.iovecs.as_ptr(), count) };
            if written >= 0 {
                return true;
            }
            if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return false;
            }
        }
    }

    /// The end: where the queue stands.
    pub(super) fn finish(self) -> (Ring, u64) {
        (self.ring, self.dropped)
    }
}
