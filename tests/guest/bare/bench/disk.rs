//! So many requests in flight, each from memory of its own, to any place of the disk.

use super::{Done, Load};
use crate::layout::Layout;
use crate::params::Bench;
use crate::timeline::Nanos;
use crate::virtio::blk::{Blk, Request, SECTOR_BYTES, SLOTS};
use crate::virtio::mmio::Window;

/// What the requests are.
#[derive(Clone, Copy)]
pub struct Kind {
    pub write: bool,
    /// Each write is one operation with the flush that follows it.
    pub flush: bool,
    pub in_order: bool,
}

/// A disk under load.
pub struct Disk {
    disk: Blk,
    kind: Kind,
    bytes: u64,
    /// Of that length, on the disk.
    places: u64,
    next: u64,
    memory: u64,
    /// The slot's write is done, its flush is not.
    flushing: [bool; SLOTS],
    done: Done,
}

impl Disk {
    pub fn start(
        kind: Kind,
        task: &Bench,
        window: Window,
        layout: &Layout,
    ) -> Result<Self, &'static str> {
        let disk = Blk::start(window)?;
        let bytes = u64::from(task.bytes);
        let memory = layout.generations.start.next_multiple_of(4096);
        if memory + bytes * u64::from(task.depth) > layout.end() {
            return Err("needs more memory: give ws_mib=");
        }
        let places = disk.bytes() / bytes;
        if places == 0 {
            return Err("the disk is smaller than one operation");
        }
        let (next, done) = (0x2545_f491_4f6c_dd1d, Done::default());
        let next = if kind.in_order { 0 } else { next };
        let flushing = [false; SLOTS];
        let mut this = Self { disk, kind, bytes, places, next, memory, flushing, done };
        (0..task.depth as usize).for_each(|slot| this.submit(slot));
        this.disk.kick();
        Ok(this)
    }

    fn submit(&mut self, slot: usize) {
        let place = self.place();
        let (sector, length) = (place * (self.bytes / SECTOR_BYTES), self.bytes as usize);
        let request = if self.kind.write {
            Request::Write { sector, length }
        } else {
            Request::Read { sector, length }
        };
        let data = core::ptr::with_exposed_provenance_mut(
            (self.memory + self.bytes * slot as u64) as usize,
        );
        self.disk.submit_at(slot, request, data);
    }

    /// The next one in order, or any (xorshift).
    fn place(&mut self) -> u64 {
        if self.kind.in_order {
            self.next += 1;
        } else {
            self.next ^= self.next << 13;
            self.next ^= self.next >> 7;
            self.next ^= self.next << 17;
        }
        self.next % self.places
    }
}

impl Load for Disk {
    fn step(&mut self, _: Nanos) -> Result<Done, &'static str> {
        while let Some((slot, outcome)) = self.disk.complete() {
            outcome.map_err(|_| "the disk refused a request")?;
            if self.kind.flush && !self.flushing[slot] {
                self.flushing[slot] = true;
                self.disk.submit(slot, Request::Flush);
                continue;
            }
            self.flushing[slot] = false;
            self.done.operations += 1;
            self.done.bytes += self.bytes;
            self.submit(slot);
        }
        self.disk.kick();
        if self.disk.faults() > 0 {
            return Err("the disk completed what it did not have");
        }
        Ok(self.done)
    }
}
