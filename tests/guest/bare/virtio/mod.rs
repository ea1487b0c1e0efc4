//! Drivers for virtio 1.x devices behind MMIO transports, without interrupts.
//!
//! | module | what it is |
//! | --- | --- |
//! | `mmio` | finding devices, their registers, agreeing on features |
//! | `queue` | the split virtqueue |
//! | `net` | Ethernet frames in and out, as smoltcp wants them |
//! | `blk` | reads, writes and flushes |
//!
//! Nothing is allocated: each device's rings and buffers are a static of fixed
//! size, handed out once. Devices tell of their work in the used rings alone,
//! which the guest looks at whenever it passes by; they are kicked only when
//! they ask for it.

pub mod blk;
pub mod mmio;
pub mod net;
pub mod queue;

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

/// Static memory that is handed out once.
pub struct Once<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `take` gives the value to the first caller only.
unsafe impl<T> Sync for Once<T> {}

impl<T> Once<T> {
    /// Memory nobody has taken.
    pub const fn new(value: T) -> Self {
        Self { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// The memory, for the first caller.
    #[allow(clippy::mut_from_ref)] // there is only ever one
    pub fn take(&'static self) -> Option<&'static mut T> {
        if self.taken.swap(true, Ordering::Acquire) {
            return None;
        }
        // SAFETY: `taken` was false, so this is the only reference there will ever be.
        Some(unsafe { &mut *self.value.get() })
    }
}
