//! The other side of a virtqueue, for tests: a driver that plays by the rules, or not.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestRam;

use crate::devices::ring::Ring;

pub(in super::super) const MEMORY_BYTES: usize = 4 << 20;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

/// One buffer of a chain: where, how long, and whether the device writes it.
pub(in super::super) type Part = (u64, u32, bool);

/// A queue of its own somewhere in guest memory.
#[derive(Debug)]
pub(in super::super) struct Driver<'a> {
    pub(in super::super) memory: &'a GuestRam,
    base: u64,
    size: u16,
    shown: u16,
    descriptor: u16,
    seen: u16,
}

impl<'a> Driver<'a> {
    /// A queue of `size` entries whose rings begin at `base`.
    pub(in super::super) fn new(memory: &'a GuestRam, base: u64, size: u16) -> Self {
        Self { memory, base, size, shown: 0, descriptor: 0, seen: 0 }
    }

    pub(in super::super) fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_size(self.size);
        let at = |offset: u64| u32::try_from(self.base + offset).ok();
        queue.set_desc_table_address(at(DESCRIPTORS), None);
        queue.set_avail_ring_address(at(AVAILABLE), None);
        queue.set_used_ring_address(at(USED), None);
        queue.set_ready(true);
        queue
    }

    pub(in super::super) fn ring(&self) -> Ring {
        Ring::new(self.queue())
    }

    /// Makes a chain of these buffers available.
    pub(in super::super) fn offer(&mut self, parts: &[Part]) -> u16 {
        let head = self.descriptor;
        for (place, &(address, len, writable)) in parts.iter().enumerate() {
            let this = self.descriptor;
            self.descriptor = (this + 1) % self.size;
            let more = u16::from(place + 1 < parts.len());
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&(more | u16::from(writable) << 1).to_le_bytes());
            bytes[14..].copy_from_slice(&self.descriptor.to_le_bytes());
            let at = self.base + DESCRIPTORS + u64::from(this) * 16;
            self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        }
        let entry = self.base + AVAILABLE + 4 + u64::from(self.shown % self.size) * 2;
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.shown = self.shown.wrapping_add(1);
        self.show(self.shown);
        head
    }

    /// Fills descriptors and available entries with bytes of any content, but for
    /// the high bits of addresses and lengths where the flags leave room to say so.
    pub(in super::super) fn fill(&self, bytes: &[u8]) {
        let (table, entries) = bytes.split_at(bytes.len().min(16 * usize::from(self.size)));
        let mut table = table.to_vec();
        for descriptor in table.chunks_exact_mut(16) {
            if descriptor[13] & 1 == 0 {
                descriptor[3..8].fill(0);
                descriptor[2] &= 0x3f;
                descriptor[10..12].fill(0);
            }
        }
        self.memory.write_slice(&table, GuestAddress(self.base + DESCRIPTORS)).unwrap();
        let mut entries = entries.to_vec();
        for entry in entries.chunks_exact_mut(2) {
            entry[1] &= 1;
            entry[0] &= 0x1f;
        }
        self.memory.write_slice(&entries, GuestAddress(self.base + AVAILABLE + 4)).unwrap();
    }

    /// Sets the index of available buffers, whatever is behind it.
    pub(in super::super) fn show(&self, index: u16) {
        let at = GuestAddress(self.base + AVAILABLE + 2);
        self.memory.store(index, at, Ordering::Release).unwrap();
    }

    /// The used buffers not seen yet: head and length.
    pub(in super::super) fn used(&mut self) -> Vec<(u32, u32)> {
        let at = |offset: u64| GuestAddress(self.base + USED + offset);
        let index: u16 = self.memory.load(at(2), Ordering::Acquire).unwrap();
        let mut used = Vec::new();
        while self.seen != index {
            let entry = 4 + u64::from(self.seen % self.size) * 8;
            let head = self.memory.read_obj(at(entry)).unwrap();
            used.push((head, self.memory.read_obj(at(entry + 4)).unwrap()));
            self.seen = self.seen.wrapping_add(1);
        }
        used
    }
}
