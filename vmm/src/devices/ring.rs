//! One virtqueue as devices of streams and frames use it: buffers in, all accounted, nothing shown half.
//!
//! A frame may fill several buffers. The driver looks for all of them as soon
//! as it sees the first, so used buffers are written ahead and shown together
//! ([`Ring::publish`]); interrupts are asked for once a batch.
//!
//! The driver is not trusted: every buffer is looked up in guest memory before
//! its address is used, chains are bounded, and what makes no sense ends the
//! device's work with [`Broken`], not the process.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// The most buffers one chain may have: what readv and writev take at once, less one for our own use.
pub(crate) const CHAIN_BUFFERS_MAX: usize = 1023;

const AVAIL_RING_HEADER: u64 = 4;
const AVAIL_ENTRY: u64 = 2;
const USED_RING_HEADER: u64 = 4;
const USED_ENTRY: u64 = 8;
const USED_INDEX: u64 = 2;
const AVAIL_FLAG_NO_INTERRUPT: u16 = 1;

/// The driver has put something into its queue that cannot be worked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest's driver broke its queue: {0}")]
pub(crate) struct Broken(pub(crate) &'static str);

/// Which way the data of a queue goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The device reads what the driver wrote.
    ToDevice,
    /// The device writes what the driver will read.
    ToDriver,
}

/// A piece of guest memory, looked up: inside one region, and mapped here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) address: GuestAddress,
    pub(crate) host: *mut u8,
    pub(crate) len: usize,
    /// Which way it is for.
    pub(crate) direction: Direction,
}

impl Buffer {
    /// What readv and writev take. The buffer must not be used any more when guest memory goes.
    pub(crate) fn iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.host.cast(), iov_len: self.len }
    }
}

/// One chain taken from the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    /// How many buffers it added to the list.
    pub(crate) buffers: usize,
    /// What they hold together, in bytes.
    pub(crate) bytes: usize,
}

/// A queue and what of it the driver has not been shown.
#[derive(Debug)]
pub(crate) struct Ring {
    queue: Queue,
    /// Used buffers written behind the index the driver sees.
    ahead: u16,
    /// The index as of the last decision about an interrupt.
    told: Wrapping<u16>,
}

impl Ring {
    pub(crate) fn new(queue: Queue) -> Self {
        let told = Wrapping(queue.next_used());
        Self { queue, ahead: 0, told }
    }

    /// Takes the next chain and adds its buffers to `buffers`: those of one direction, or all.
    ///
    /// # Errors
    /// [`Broken`] for a ring or a buffer outside guest memory, and for a chain of too many buffers.
    pub(crate) fn take<M: GuestMemory>(
        &mut self,
        memory: &M,
        only: Option<Direction>,
        buffers: &mut Vec<Buffer>,
    ) -> Result<Option<Chain>, Broken> {
        const RING: Broken = Broken("its ring of available buffers");
        let shown = self.queue.avail_idx(memory, Ordering::Relaxed).map_err(|_| RING)?;
        if shown.0 == self.queue.next_avail() {
            return Ok(None);
        }
        // There is one: not to find it is no end, and to look again would be none either.
        let mut available = self.queue.iter(memory).map_err(|_| RING)?;
        let descriptors = available.next().ok_or(RING)?;
        let head = descriptors.head_index();
        let before = buffers.len();
        let mut bytes = 0;
        for descriptor in descriptors {
            let (direction, access) = if descriptor.is_write_only() {
                (Direction::ToDriver, Permissions::Write)
            } else {
                (Direction::ToDevice, Permissions::Read)
            };
            if only.is_some_and(|only| only != direction) {
                continue;
            }
            let len = descriptor.len() as usize;
            let slices = memory.get_slices(descriptor.addr(), len, access);
            let mut address = descriptor.addr();
            for slice in slices.map_err(|_| Broken("a buffer outside memory"))? {
                let slice = slice.map_err(|_| Broken("a buffer outside memory"))?;
                if buffers.len() - before == CHAIN_BUFFERS_MAX {
                    return Err(Broken("a chain of too many buffers"));
                }
                let host = slice.ptr_guard_mut().as_ptr();
                buffers.push(Buffer { address, host, len: slice.len(), direction });
                // Within the range that was just looked up.
                address = GuestAddress(address.0.wrapping_add(slice.len() as u64));
            }
            bytes += len;
        }
        Ok(Some(Chain { head, buffers: buffers.len() - before, bytes }))
    }

    /// Gives the last `chains` taken back, as if they had never been.
    pub(crate) fn untake(&mut self, chains: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(chains));
    }

    /// Notes a chain as used, with `bytes` written into it; the driver does not see it yet.
    ///
    /// # Errors
    /// [`Broken`] when the used ring is not in guest memory.
    pub(crate) fn put<M: GuestMemory>(
        &mut self,
        memory: &M,
        head: u16,
        bytes: u32,
    ) -> Result<(), Broken> {
        let place = self.queue.next_used().wrapping_add(self.ahead) % self.queue.size().max(1);
        let offset = USED_RING_HEADER + u64::from(place) * USED_ENTRY;
        let entry = u64::from(head) | u64::from(bytes) << 32;
        memory
            .write_obj(entry.to_le(), self.used_address(offset)?)
            .map_err(|_| Broken("its ring of used buffers"))?;
        self.ahead = self.ahead.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver everything noted, and says whether it wants to be interrupted for it.
    ///
    /// # Errors
    /// [`Broken`] when the rings are not in guest memory.
    pub(crate) fn publish<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Broken> {
        if self.ahead == 0 {
            return Ok(false);
        }
        let now = self.queue.next_used().wrapping_add(self.ahead);
        memory
            .store(now.to_le(), self.used_address(USED_INDEX)?, Ordering::Release)
            .map_err(|_| Broken("its ring of used buffers"))?;
        self.queue.set_next_used(now);
        self.ahead = 0;
        // What was written must be visible before the driver's wishes are read (virtio 1.2, 2.7.7.2).
        fence(Ordering::SeqCst);
        let before = std::mem::replace(&mut self.told, Wrapping(now));
        if self.queue.event_idx_enabled() {
            let offset = AVAIL_RING_HEADER + u64::from(self.queue.size()) * AVAIL_ENTRY;
            let event = Wrapping(self.read_available(memory, offset)?);
            return Ok(Wrapping(now) - event - Wrapping(1) < Wrapping(now) - before);
        }
        Ok(self.read_available(memory, 0)? & AVAIL_FLAG_NO_INTERRUPT == 0)
    }

    /// Asks the driver to tell when it adds buffers; whether it has added some already.
    pub(crate) fn listen<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, Broken> {
        self.queue.enable_notification(memory).map_err(|_| Broken("its rings"))
    }

    /// Asks the driver to add buffers quietly.
    pub(crate) fn stop_listening<M: GuestMemory>(&mut self, memory: &M) -> Result<(), Broken> {
        self.queue.disable_notification(memory).map_err(|_| Broken("its rings"))
    }

    /// How many entries the driver gave the queue.
    pub(crate) fn size(&self) -> usize {
        usize::from(self.queue.size())
    }

    pub(crate) fn state(&self) -> QueueState {
        self.queue.state()
    }

    fn read_available<M: GuestMemory>(&self, memory: &M, offset: u64) -> Result<u16, Broken> {
        let address = self.queue.avail_ring().checked_add(offset).map(GuestAddress);
        let address = address.ok_or(Broken("its ring of available buffers"))?;
        memory
            .load::<u16>(address, Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|_| Broken("its ring of available buffers"))
    }

    fn used_address(&self, offset: u64) -> Result<GuestAddress, Broken> {
        let address = self.queue.used_ring().checked_add(offset).map(GuestAddress);
        address.ok_or(Broken("its ring of used buffers"))
    }
}

/// Writes `bytes` into the buffers, from `offset` on; what does not fit is left out.
pub(crate) fn write<M: GuestMemory>(
    memory: &M,
    buffers: &[Buffer],
    mut offset: usize,
    mut bytes: &[u8],
) -> Result<(), Broken> {
    for buffer in buffers {
        if offset >= buffer.len {
            offset -= buffer.len;
            continue;
        }
        let (now, later) = bytes.split_at(bytes.len().min(buffer.len - offset));
        let address = GuestAddress(buffer.address.0.wrapping_add(offset as u64));
        memory.write_slice(now, address).map_err(|_| Broken("a buffer outside memory"))?;
        (offset, bytes) = (0, later);
        if bytes.is_empty() {
            break;
        }
    }
    Ok(())
}

/// Reads from the start of the buffers; how many bytes there were.
pub(crate) fn read<M: GuestMemory>(
    memory: &M,
    buffers: &[Buffer],
    into: &mut [u8],
) -> Result<usize, Broken> {
    let mut filled = 0;
    for buffer in buffers {
        let end = into.len().min(filled + buffer.len);
        memory
            .read_slice(&mut into[filled..end], buffer.address)
            .map_err(|_| Broken("a buffer outside memory"))?;
        filled = end;
    }
    Ok(filled)
}

/// Marks the first `bytes` of the buffers as written by this process, past guest memory's own functions.
pub(crate) fn mark_written<M: GuestMemory>(memory: &M, buffers: &[Buffer], mut bytes: usize) {
    for buffer in buffers {
        let len = buffer.len.min(bytes);
        if len == 0 {
            continue;
        }
        let Ok(slices) = memory.get_slices(buffer.address, len, Permissions::Write) else {
            continue;
        };
        for slice in slices.flatten() {
            slice.bitmap().mark_dirty(0, slice.len());
        }
        bytes -= len;
    }
}
