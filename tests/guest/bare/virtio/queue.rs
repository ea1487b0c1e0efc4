//! A split virtqueue (virtio 1.2, section 2.7), from the driver's side.
//!
//! The rings are memory both sides use at the same time, so every field is an
//! atomic: nothing here is unsafe but the addresses the device is told. Which
//! descriptors form a chain is the caller's affair and never changes while the
//! chain is in flight; the queue knows only heads.
//!
//! ```text
//! describe(…)  offer(head)          kick()                  take() → head, length
//!    driver ──────────▶ available ring ─▶ device ─▶ used ring ──────────▶ driver
//! ```

use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use super::mmio::Registers;

/// Continues at the descriptor named next.
pub const NEXT: u16 = 1;
/// The device writes it; otherwise it reads it.
pub const DEVICE_WRITES: u16 = 2;

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

#[repr(C)]
struct Descriptor {
    address: AtomicU64,
    length: AtomicU32,
    flags: AtomicU16,
    next: AtomicU16,
}

#[repr(C)]
struct Available<const N: usize> {
    flags: AtomicU16,
    index: AtomicU16,
    heads: [AtomicU16; N],
    used_event: AtomicU16,
}

#[repr(C)]
struct UsedElement {
    head: AtomicU32,
    length: AtomicU32,
}

#[repr(C)]
struct Used<const N: usize> {
    flags: AtomicU16,
    index: AtomicU16,
    elements: [UsedElement; N],
    available_event: AtomicU16,
}

/// The memory of a queue of `N` descriptors, a power of two up to 64.
#[repr(C, align(4096))]
pub struct Rings<const N: usize> {
    descriptors: [Descriptor; N],
    available: Available<N>,
    used: Used<N>,
}

impl<const N: usize> Rings<N> {
    /// Rings at rest: zeroes, which take no room in the program's file.
    pub const fn new() -> Self {
        const { assert!(N.is_power_of_two() && N <= 64) };
        Self {
            descriptors: [const {
                Descriptor {
                    address: AtomicU64::new(0),
                    length: AtomicU32::new(0),
                    flags: AtomicU16::new(0),
                    next: AtomicU16::new(0),
                }
            }; N],
            available: Available {
                flags: AtomicU16::new(0),
                index: AtomicU16::new(0),
                heads: [const { AtomicU16::new(0) }; N],
                used_event: AtomicU16::new(0),
            },
            used: Used {
                flags: AtomicU16::new(0),
                index: AtomicU16::new(0),
                elements: [const { UsedElement { head: AtomicU32::new(0), length: AtomicU32::new(0) } };
                    N],
                available_event: AtomicU16::new(0),
            },
        }
    }
}

/// A chain the device is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Its first descriptor.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub length: u32,
}

/// A queue that a device has been told of.
pub struct Queue<const N: usize> {
    rings: &'static Rings<N>,
    registers: Registers,
    number: u32,
    event_index: bool,
    available_index: u16,
    /// The index of the available ring at the last look at whether to kick.
    announced: u16,
    used_index: u16,
    /// A bit for each head that is the device's.
    in_flight: u64,
    faults: u64,
}

impl<const N: usize> Queue<N> {
    /// Sets queue `number` up at the device. The rings must be at rest.
    pub fn new(
        rings: &'static Rings<N>,
        registers: Registers,
        number: u32,
        event_index: bool,
    ) -> Result<Self, &'static str> {
        rings.available.flags.store(NO_INTERRUPT, Ordering::Relaxed);
        rings.available.used_event.store(u16::MAX, Ordering::Relaxed);
        let size = u32::try_from(N).map_err(|_| "queue too long")?;
        let address = |part: *const ()| part.expose_provenance() as u64;
        registers.set_up_queue(
            number,
            size,
            address((&raw const rings.descriptors).cast()),
            address((&raw const rings.available).cast()),
            address((&raw const rings.used).cast()),
        )?;
        Ok(Self {
            rings,
            registers,
            number,
            event_index,
            available_index: 0,
            announced: 0,
            used_index: 0,
            in_flight: 0,
            faults: 0,
        })
    }

    /// Says what descriptor `at` is: memory of the guest, and `DEVICE_WRITES` or nothing. `next`
    /// continues its chain.
    pub fn describe(&self, at: u16, memory: &Piece, next: Option<u16>) {
        let descriptor = &self.rings.descriptors[usize::from(at)];
        let flags = memory.flags | if next.is_some() { NEXT } else { 0 };
        descriptor.address.store(memory.address, Ordering::Relaxed);
        descriptor.length.store(memory.length, Ordering::Relaxed);
        descriptor.flags.store(flags, Ordering::Relaxed);
        descriptor.next.store(next.unwrap_or(0), Ordering::Relaxed);
    }

    /// Gives the chain at `head` to the device. False when it has it already.
    pub fn offer(&mut self, head: u16) -> bool {
        if self.has(head) {
            return false;
        }
        self.in_flight |= 1 << head;
        let available = &self.rings.available;
        let slot = usize::from(self.available_index) % N;
        available.heads[slot].store(head, Ordering::Relaxed);
        self.available_index = self.available_index.wrapping_add(1);
        available.index.store(self.available_index, Ordering::Release);
        true
    }

    /// Tells the device of what was offered since the last call, if it wants to be told: that
    /// costs an exit.
    pub fn kick(&mut self) {
        if self.announced == self.available_index {
            return;
        }
        // What the device asks for is read after it can see what it is offered: one of both sides
        // notices, whichever was first.
        fence(Ordering::SeqCst);
        let used = &self.rings.used;
        let wanted = if self.event_index {
            let event = used.available_event.load(Ordering::Relaxed);
            let new = self.available_index.wrapping_sub(self.announced);
            self.available_index.wrapping_sub(event).wrapping_sub(1) < new
        } else {
            used.flags.load(Ordering::Relaxed) & NO_NOTIFY == 0
        };
        self.announced = self.available_index;
        if wanted {
            self.registers.notify(self.number);
        }
    }

    /// Whether the device has completed something.
    pub fn has_completions(&self) -> bool {
        self.rings.used.index.load(Ordering::Acquire) != self.used_index
    }

    /// The next chain the device is done with. What it says of chains it does not have is a
    /// fault, counted and skipped.
    pub fn take(&mut self) -> Option<Completion> {
        for _ in 0..N {
            if !self.has_completions() {
                return None;
            }
            let element = &self.rings.used.elements[usize::from(self.used_index) % N];
            let head = element.head.load(Ordering::Relaxed);
            let length = element.length.load(Ordering::Relaxed);
            self.used_index = self.used_index.wrapping_add(1);
            if self.event_index {
                // As far away as can be: nobody waits for interrupts.
                let event = self.used_index.wrapping_sub(1);
                self.rings.available.used_event.store(event, Ordering::Relaxed);
            }
            if let Ok(head) = u16::try_from(head)
                && usize::from(head) < N
                && self.has(head)
            {
                self.in_flight &= !(1 << head);
                return Some(Completion { head, length });
            }
            self.faults += 1;
        }
        None
    }

    /// Whether the device has the chain at `head`.
    pub fn has(&self, head: u16) -> bool {
        self.in_flight & (1 << head) != 0
    }

    /// How many chains the device has.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.count_ones()
    }

    /// Completions of chains that the device did not have: it did something twice.
    pub fn faults(&self) -> u64 {
        self.faults
    }
}

/// A piece of the guest's memory, as a device is told of it.
pub struct Piece {
    address: u64,
    length: u32,
    flags: u16,
}

impl Piece {
    /// Memory the device reads.
    pub fn read_by_device<T: ?Sized>(memory: *const T, length: usize) -> Self {
        Self::new(memory.cast(), length, 0)
    }

    /// Memory the device writes.
    pub fn written_by_device<T: ?Sized>(memory: *mut T, length: usize) -> Self {
        Self::new(memory.cast_const().cast(), length, DEVICE_WRITES)
    }

    fn new(memory: *const u8, length: usize, flags: u16) -> Self {
        // The program's own memory or the memory behind it, all of which ends below 3 GiB.
        Self { address: memory.expose_provenance() as u64, length: length as u32, flags }
    }
}
