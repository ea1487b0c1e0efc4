//! For tests: the guest's side of a transport, and of a queue in guest memory.

use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes, GuestAddress};

use super::mmio::Transport;
use crate::memory::GuestRam;

/// Flags of a descriptor.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Guest memory from address 0 on.
pub(crate) fn memory(bytes: usize) -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), bytes)]).unwrap()
}

pub(crate) fn read(transport: &Transport, offset: u64) -> u32 {
    let mut data = [0xee; 4];
    transport.read(offset, &mut data);
    u32::from_le_bytes(data)
}

pub(crate) fn write(transport: &Transport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}

/// A queue as its driver sees it: descriptors, available and used ring, one after
/// the other from `base`, which is a page.
#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) memory: GuestRam,
    pub(crate) base: u64,
    pub(crate) size: u16,
    /// The next available index.
    pub(crate) avail: u16,
    /// The next used index not looked at.
    pub(crate) used: u16,
}

impl Ring {
    pub(crate) fn new(memory: &GuestRam, base: u64, size: u16) -> Self {
        Self { memory: memory.clone(), base, size, avail: 0, used: 0 }
    }

    /// The queue as the device gets it.
    pub(crate) fn queue(&self, event_idx: bool) -> Queue {
        let state = QueueState {
            max_size: self.size,
            size: self.size,
            ready: true,
            event_idx_enabled: event_idx,
            desc_table: self.base,
            avail_ring: self.avail_base(),
            used_ring: self.used_base(),
            ..QueueState::default()
        };
        Queue::try_from(state).unwrap()
    }

    fn avail_base(&self) -> u64 {
        self.base.wrapping_add(16 * u64::from(self.size))
    }

    fn used_base(&self) -> u64 {
        (self.avail_base() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// Writes descriptor `index` of the table at `table`.
    pub(crate) fn describe(
        &self,
        table: u64,
        index: u16,
        (address, bytes, flags, next): (u64, u32, u16, u16),
    ) {
        let at = |offset| GuestAddress(table + 16 * u64::from(index) + offset);
        self.memory.write_obj(address, at(0)).unwrap();
        self.memory.write_obj(bytes, at(8)).unwrap();
        self.memory.write_obj(flags, at(12)).unwrap();
        self.memory.write_obj(next, at(14)).unwrap();
    }

    /// Makes a chain available from descriptor `head` on: (address, bytes, device writes).
    pub(crate) fn chain(&mut self, head: u16, parts: &[(u64, u32, bool)]) {
        for (place, &(address, bytes, writes)) in (0u16..).zip(parts) {
            let more = usize::from(place) + 1 < parts.len();
            let flags = if writes { WRITE } else { 0 } | if more { NEXT } else { 0 };
            let index = head + place;
            self.describe(self.base, index, (address, bytes, flags, index + 1));
        }
        self.offer(head);
    }

    /// Makes what is at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let place = u64::from(self.avail % self.size);
        let ring = GuestAddress(self.avail_base() + 4 + 2 * place);
        self.memory.write_obj(head, ring).unwrap();
        self.avail = self.avail.wrapping_add(1);
        let index = GuestAddress(self.avail_base() + 2);
        self.memory.store(self.avail, index, std::sync::atomic::Ordering::SeqCst).unwrap();
    }

    /// Sets the available index, whatever it means.
    pub(crate) fn set_avail_index(&mut self, index: u16) {
        self.avail = index;
        self.memory.write_obj(index, GuestAddress(self.avail_base() + 2)).unwrap();
    }

    /// The next chain the device has used: its head and how many bytes were written.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        let index = GuestAddress(self.used_base() + 2);
        let end: u16 = self.memory.load(index, std::sync::atomic::Ordering::SeqCst).unwrap();
        if end == self.used {
            return None;
        }
        let at = self.used_base() + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
        let bytes = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        Some((head.try_into().unwrap(), bytes))
    }

    /// Waits until the device has used a chain.
    pub(crate) fn wait_used(&mut self) -> (u16, u32) {
        wait_for("a used chain", || self.take_used())
    }
}

/// Waits for a condition; a minute is for machines starved of CPU.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begin = std::time::Instant::now();
    loop {
        if let Some(met) = condition() {
            return met;
        }
        assert!(begin.elapsed().as_secs() < 60, "{what} does not come");
        std::thread::yield_now();
    }
}

/// Takes a transport from reset to DRIVER_OK, as a driver does, with all its
/// offered features but `without`, and the queues given.
pub(crate) fn drive(transport: &Transport, without: u64, queues: &[&Ring]) {
    write(transport, 0x70, 0);
    write(transport, 0x70, 1);
    write(transport, 0x70, 3);
    for half in 0..2 {
        write(transport, 0x14, half);
        let offered = read(transport, 0x10);
        write(transport, 0x24, half);
        let refused = u32::try_from(without >> (32 * half) & u64::from(u32::MAX)).unwrap();
        write(transport, 0x20, offered & !refused);
    }
    write(transport, 0x70, 11);
    assert_eq!(read(transport, 0x70), 11, "the features are agreed on");
    for (number, ring) in (0..).zip(queues) {
        set_up_queue(transport, number, ring);
        assert_eq!(read(transport, 0x44), 1, "queue {number} is ready");
    }
    write(transport, 0x70, 15);
    assert_eq!(read(transport, 0x70), 15, "the device works");
}

/// Hands a queue to the device; whether it took it is in QueueReady.
pub(crate) fn set_up_queue(transport: &Transport, number: u32, ring: &Ring) {
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap();
    write(transport, 0x30, number);
    write(transport, 0x38, ring.size.into());
    for (register, address) in
        [(0x80, ring.base), (0x90, ring.avail_base()), (0xa0, ring.used_base())]
    {
        write(transport, register, half(address));
        write(transport, register + 4, half(address >> 32));
    }
    write(transport, 0x44, 1);
}

/// Tells the device about its queue, as a driver does without KVM between.
pub(crate) fn notify(transport: &Transport, queue: u32) {
    write(transport, 0x50, queue);
}
