//! From the host to the guest: frames are read straight into the guest's buffers.
//!
//! How long a frame is shows only once it has been read. So buffers for the
//! longest one the guest has agreed to are gathered first; the rest stays for
//! the next frame. When the guest has given fewer, the frame is read aside and
//! waits until it fits: nothing is cut off, and nothing lies half in guest
//! memory when the device stops.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;

use vm_memory::GuestMemory;

use super::tap::HEADER_BYTES;
use super::{FRAME_BYTES_MAX, Turn, Turned};
use crate::devices::rate_limit::RateLimiter;
use crate::devices::ring::{self, Broken, Buffer, Chain, Direction, Ring};

/// Frames taken before other work gets its turn.
const BATCH: usize = 64;
/// Where a frame's header says how many buffers it fills (virtio 1.2, 5.1.6).
const NUM_BUFFERS_OFFSET: usize = 10;

/// The receiving queue at work.
#[derive(Debug)]
pub(super) struct Rx {
    ring: Ring,
    limiter: RateLimiter,
    /// A frame may fill several chains.
    mergeable: bool,
    /// The longest frame to expect, in bytes, with its header.
    longest: usize,
    /// Taken from the queue, not filled yet.
    chains: VecDeque<Chain>,
    buffers: Vec<Buffer>,
    iovecs: Vec<libc::iovec>,
    /// A frame that did not fit, and its length.
    aside: Box<[u8]>,
    waits: Option<usize>,
    /// Frames that came before this queue worked; they go first.
    earlier: VecDeque<Vec<u8>>,
    dropped: u64,
}

/// What came of an attempt to read a frame.
enum Arrival {
    /// It is in the guest's buffers, this many bytes.
    Here(usize),
    /// It has been put aside.
    Aside,
    /// It was longer than any frame should be.
    Dropped,
    None,
}

impl Rx {
    pub(super) fn new(ring: Ring, limiter: RateLimiter, mergeable: bool) -> Self {
        Self {
            ring,
            limiter,
            mergeable,
            longest: FRAME_BYTES_MAX,
            chains: VecDeque::new(),
            buffers: Vec::new(),
            iovecs: Vec::new(),
            // One byte more than any frame: what fills it is too long.
            aside: vec![0; FRAME_BYTES_MAX + 1].into(),
            waits: None,
            earlier: VecDeque::new(),
            dropped: 0,
        }
    }

    /// Hands these frames over before any from the tap.
    pub(super) fn deliver_first(&mut self, frames: VecDeque<Vec<u8>>) {
        self.earlier = frames;
    }

    /// Takes back what has come and is not the guest's yet, but for what is still at the tap.
    pub(super) fn take_undelivered(&mut self) -> VecDeque<Vec<u8>> {
        let mut frames = std::mem::take(&mut self.earlier);
        if let Some(bytes) = self.waits.take() {
            frames.push_front(self.aside[..bytes].to_vec());
        }
        frames
    }

    /// No longer frame is to be expected, in bytes, with its header.
    pub(super) fn expect(&mut self, longest: usize) {
        self.longest = longest.min(FRAME_BYTES_MAX);
    }

    /// Hands over what has arrived, as far as the guest's buffers and its limit let it.
    ///
    /// # Errors
    /// [`Broken`] when the guest's queue makes no sense, an [`io::Error`] when the tap is gone.
    pub(super) fn turn<M: GuestMemory>(
        &mut self,
        memory: &M,
        tap: Option<BorrowedFd<'_>>,
        now: Instant,
    ) -> Result<io::Result<Turned>, Broken> {
        self.ring.stop_listening(memory)?;
        let mut lost = None;
        let mut turn = Turn::Again;
        for _ in 0..BATCH {
            if let Err(wait) = self.limiter.ready(now) {
                turn = Turn::NotBefore(now + wait);
                break;
            }
            match self.receive(memory, tap) {
                Ok(Step::Done) => {}
                Ok(Step::NoBuffers) => {
                    if !self.ring.listen(memory)? {
                        turn = Turn::Idle;
                        break;
                    }
                    self.ring.stop_listening(memory)?;
                }
                Ok(Step::NoFrame) => {
                    turn = Turn::Idle;
                    break;
                }
                Err(Trouble::Tap(error)) => {
                    lost = Some(error);
                    break;
                }
                Err(Trouble::Queue(broken)) => return Err(broken),
            }
        }
        let interrupt = self.ring.publish(memory)?;
        Ok(lost.map_or(Ok(Turned { turn, interrupt }), Err))
    }

    fn receive<M: GuestMemory>(
        &mut self,
        memory: &M,
        tap: Option<BorrowedFd<'_>>,
    ) -> Result<Step, Trouble> {
        self.gather(memory)?;
        if self.chains.is_empty() {
            return Ok(Step::NoBuffers);
        }
        if let Some(bytes) = self.waits {
            return Ok(self.deliver_waiting(memory, bytes)?);
        }
        if let Some(frame) = self.earlier.pop_front() {
            self.aside[..frame.len()].copy_from_slice(&frame);
            self.waits = Some(frame.len());
            return Ok(Step::Done);
        }
        let Some(tap) = tap else { return Ok(Step::NoFrame) };
        match self.read(tap).map_err(Trouble::Tap)? {
            Arrival::None => Ok(Step::NoFrame),
            Arrival::Here(bytes) => {
                ring::mark_written(memory, &self.buffers, bytes);
                self.hand_over(memory, bytes)?;
                Ok(Step::Done)
            }
            Arrival::Dropped => {
                self.dropped += 1;
                Ok(Step::Done)
            }
            Arrival::Aside => Ok(Step::Done),
        }
    }

    /// Takes chains until the longest frame fits, or there are no more.
    fn gather<M: GuestMemory>(&mut self, memory: &M) -> Result<(), Broken> {
        let wanted = self.waits.unwrap_or(0).max(self.longest);
        while self.chains.is_empty() || (self.mergeable && self.room() < wanted) {
            let only = Some(Direction::ToDriver);
            let Some(chain) = self.ring.take(memory, only, &mut self.buffers)? else { break };
            if chain.bytes < HEADER_BYTES {
                return Err(Broken("a receive buffer shorter than a frame's header"));
            }
            if self.chains.len() == self.ring.size() {
                return Err(Broken("more buffers than its queue has room for"));
            }
            self.chains.push_back(chain);
        }
        Ok(())
    }

    /// What fits into the buffers at hand, in bytes.
    fn room(&self) -> usize {
        self.chains.iter().map(|chain| chain.bytes).sum()
    }

    fn read(&mut self, tap: BorrowedFd<'_>) -> io::Result<Arrival> {
        let room = self.room();
        self.iovecs.clear();
        let direct = room >= self.longest && self.buffers.len() <= ring::CHAIN_BUFFERS_MAX;
        let capacity = if direct {
            self.iovecs.extend(self.buffers.iter().map(Buffer::iovec));
            // One byte more: what fills it did not fit.
            let spare = libc::iovec { iov_base: self.aside.as_mut_ptr().cast(), iov_len: 1 };
            self.iovecs.push(spare);
            room
        } else {
            let iov_len = self.aside.len();
            self.iovecs.push(libc::iovec { iov_base: self.aside.as_mut_ptr().cast(), iov_len });
            iov_len - 1
        };
        let count = libc::c_int::try_from(self.iovecs.len()).unwrap_or(libc::c_int::MAX);
        loop {
            // SAFETY: the buffers were looked up in guest memory, which outlives this call, and
            // `aside` is this value's own; nobody else in this process refers to either.
            let read = unsafe { libc::readv(tap.as_raw_fd(), self.iovecs.as_ptr(), count) };
            let Ok(bytes) = usize::try_from(read) else {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock => return Ok(Arrival::None),
                    _ => return Err(error),
                }
            };
            return Ok(match bytes {
                // A tap never says so; the other end of a socket does when it is closed.
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes if bytes > capacity || bytes <= HEADER_BYTES => Arrival::Dropped,
                bytes if direct => Arrival::Here(bytes),
                bytes => {
                    self.waits = Some(bytes);
                    Arrival::Aside
                }
            });
        }
    }

    fn deliver_waiting<M: GuestMemory>(
        &mut self,
        memory: &M,
        bytes: usize,
    ) -> Result<Step, Broken> {
        if self.room() >= bytes {
            ring::write(memory, &self.buffers, 0, &self.aside[..bytes])?;
            self.hand_over(memory, bytes)?;
        } else if self.mergeable && self.chains.len() < self.ring.size() {
            return Ok(Step::NoBuffers);
        } else {
            // It will never fit.
            self.dropped += 1;
        }
        self.waits = None;
        Ok(Step::Done)
    }

    /// The frame lies in the first buffers: notes them as used.
    fn hand_over<M: GuestMemory>(&mut self, memory: &M, bytes: usize) -> Result<(), Broken> {
        let mut left = bytes;
        let mut used: u16 = 0;
        let mut buffers = 0;
        while left > 0
            && let Some(chain) = self.chains.pop_front()
        {
            let part = left.min(chain.bytes);
            self.ring.put(memory, chain.head, u32::try_from(part).unwrap_or(u32::MAX))?;
            left -= part;
            used += 1;
            buffers += chain.buffers;
        }
        ring::write(memory, &self.buffers, NUM_BUFFERS_OFFSET, &used.to_le_bytes())?;
        self.buffers.drain(..buffers);
        self.limiter.charge((bytes - HEADER_BYTES) as u64);
        Ok(())
    }

    /// The end: buffers not filled are the guest's again; a frame that waits still is lost, whole.
    pub(super) fn finish(mut self) -> (Ring, u64) {
        self.ring.untake(u16::try_from(self.chains.len()).unwrap_or(u16::MAX));
        (self.ring, self.dropped + u64::from(self.waits.is_some()))
    }
}

enum Step {
    /// A frame was dealt with.
    Done,
    NoBuffers,
    NoFrame,
}

enum Trouble {
    Tap(io::Error),
    Queue(Broken),
}

impl From<Broken> for Trouble {
    fn from(broken: Broken) -> Self {
        Self::Queue(broken)
    }
}
