//! virtio-blk (virtio 1.2, section 5.2): a few requests at a time, each in a slot of its own.
//!
//! A slot has a header, a page of data and a status byte, and the three
//! descriptors 3n to 3n + 2. Whoever asks chooses the slot.

use super::Once;
use super::mmio::{self, DeviceKind, EVENT_INDEX, Window};
use super::queue::{Piece, Queue, Rings};

/// Requests that can be in flight at a time.
pub const SLOTS: usize = 21;
/// The most data of one request in a slot's own memory, in bytes.
pub const DATA_BYTES: usize = 4096;
pub const SECTOR_BYTES: u64 = 512;

const DESCRIPTORS: usize = 64;
const READ_ONLY: u64 = 1 << 5;
const FLUSHES: u64 = 1 << 9;

/// What is asked of the device; positions in sectors of 512 bytes, lengths in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Read { sector: u64, length: usize },
    Write { sector: u64, length: usize },
    Flush,
}

/// Not an answer of any device's.
const UNANSWERED: u8 = 0xff;
const DONE: u8 = 0;

#[repr(C, align(16))]
struct Slot {
    data: [u8; DATA_BYTES],
    header: [u8; 16],
    status: u8,
}

struct Memory {
    rings: Rings<DESCRIPTORS>,
    slots: [Slot; SLOTS],
}

static MEMORY: Once<Memory> = Once::new(Memory {
    rings: Rings::new(),
    slots: [const { Slot { data: [0; DATA_BYTES], header: [0; 16], status: 0 } }; SLOTS],
});

/// A disk.
pub struct Blk {
    queue: Queue<DESCRIPTORS>,
    slots: &'static mut [Slot; SLOTS],
    sectors: u64,
    flushes: bool,
}

impl Blk {
    /// Finds and starts the machine's first disk.
    pub fn start(window: Window) -> Result<Self, &'static str> {
        let registers = mmio::find(window, DeviceKind::Block).ok_or("is not there")?;
        let agreed = registers.negotiate(EVENT_INDEX | READ_ONLY | FLUSHES)?;
        if agreed & READ_ONLY != 0 {
            return Err("is read-only");
        }
        let Memory { rings, slots } = MEMORY.take().ok_or("is in use")?;
        let queue = Queue::new(rings, registers, 0, agreed & EVENT_INDEX != 0)?;
        let sectors = registers.config_u64(0);
        registers.start();
        Ok(Self { queue, slots, sectors, flushes: agreed & FLUSHES != 0 })
    }

    /// Its size, in bytes.
    pub fn bytes(&self) -> u64 {
        self.sectors.saturating_mul(SECTOR_BYTES)
    }

    /// Whether it has a cache to be flushed. If not, what is written is durable.
    pub fn flushes(&self) -> bool {
        self.flushes
    }

    /// A slot's data, to be filled or read while the slot is not in flight.
    pub fn data(&mut self, slot: usize) -> &mut [u8; DATA_BYTES] {
        &mut self.slots[slot].data
    }

    /// Asks the device for something; [`kick`](Self::kick) tells it. False when the slot is in
    /// flight already.
    pub fn submit(&mut self, slot: usize, request: Request) -> bool {
        let data = &raw mut self.slots[slot].data;
        let fits = |length: usize| length.min(DATA_BYTES);
        let request = match request {
            Request::Read { sector, length } => Request::Read { sector, length: fits(length) },
            Request::Write { sector, length } => Request::Write { sector, length: fits(length) },
            Request::Flush => Request::Flush,
        };
        self.submit_at(slot, request, data.cast())
    }

    /// As [`submit`](Self::submit), with data anywhere in memory that stays the device's until the
    /// request is complete.
    pub fn submit_at(&mut self, slot: usize, request: Request, memory_of_data: *mut u8) -> bool {
        let head = 3 * slot as u16;
        if self.queue.has(head) {
            return false;
        }
        let memory = &mut self.slots[slot];
        let (kind, sector) = match request {
            Request::Read { sector, .. } => (0u64, sector),
            Request::Write { sector, .. } => (1, sector),
            Request::Flush => (4, 0),
        };
        memory.header[..8].copy_from_slice(&kind.to_le_bytes());
        memory.header[8..].copy_from_slice(&sector.to_le_bytes());
        memory.status = UNANSWERED;
        let (data, status) = (head + 1, head + 2);
        let queue = &mut self.queue;
        let header = Piece::read_by_device(&raw const memory.header, 16);
        let after = match request {
            Request::Read { length, .. } => {
                let piece = Piece::written_by_device(memory_of_data, length);
                queue.describe(data, &piece, Some(status));
                data
            }
            Request::Write { length, .. } => {
                let piece = Piece::read_by_device(memory_of_data, length);
                queue.describe(data, &piece, Some(status));
                data
            }
            Request::Flush => status,
        };
        queue.describe(head, &header, Some(after));
        queue.describe(status, &Piece::written_by_device(&raw mut memory.status, 1), None);
        queue.offer(head)
    }

    /// Tells the device of what was submitted.
    pub fn kick(&mut self) {
        self.queue.kick();
    }

    /// The next slot whose request is done: `Err` has the device's status.
    pub fn complete(&mut self) -> Option<(usize, Result<(), u8>)> {
        let slot = usize::from(self.queue.take()?.head) / 3;
        // SAFETY: a valid reference to a byte; volatile, because the device wrote it.
        let status = unsafe { (&raw const self.slots[slot].status).read_volatile() };
        Some((slot, if status == DONE { Ok(()) } else { Err(status) }))
    }

    /// Requests the device has.
    pub fn in_flight(&self) -> u32 {
        self.queue.in_flight()
    }

    /// Times the device completed what it did not have.
    pub fn faults(&self) -> u64 {
        self.queue.faults()
    }
}
