//! From a device to the guest: what has happened, and the interrupt that says so.
//!
//! An interrupt is an edge: KVM raises and lowers the line for every write to
//! the irqfd. It does so from a work queue of the kernel, so when vCPUs and
//! devices have stopped one may still be on its way and in nobody's saved
//! state. What is saved is the interrupt status; while it is not zero the
//! driver has not acknowledged, and [`Interrupt::remind`] gives the edge again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

/// The guest's side of a device: shared by its transport and its threads.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    irqfd: EventFd,
    /// InterruptStatus: what the driver has not acknowledged.
    status: AtomicU32,
    /// ConfigGeneration.
    generation: AtomicU32,
    /// The device does no more before a reset.
    broken: AtomicBool,
    /// How often it broke: a guest can do it again and again.
    breaks: AtomicU32,
}

/// How often a device's breaking is worth the operator's attention.
const BREAKS_LOGGED_MAX: u32 = 8;

impl Interrupt {
    /// `irqfd` is, or will be, connected to the device's GSI.
    pub(crate) fn new(irqfd: EventFd) -> Self {
        let shared = Shared {
            irqfd,
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            broken: AtomicBool::new(false),
            breaks: AtomicU32::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Queue number `queue` has used buffers. The transport has one interrupt for all of them.
    pub(crate) fn used(&self, _queue: usize) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The device's configuration has changed.
    pub(crate) fn config(&self) {
        self.shared.generation.fetch_add(1, Ordering::Release);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The driver did what no driver may do, or the device cannot go on: it
    /// does nothing more until it is reset. `why` is for the host's operator.
    pub(crate) fn broken(&self, why: impl std::fmt::Display) {
        if !self.shared.broken.swap(true, Ordering::AcqRel) {
            if self.shared.breaks.fetch_add(1, Ordering::Relaxed) < BREAKS_LOGGED_MAX {
                tracing::warn!(%why, "a virtio device stands still until the guest resets it");
            }
            self.config();
        }
    }

    fn raise(&self, what: u32) {
        self.shared.status.fetch_or(what, Ordering::AcqRel);
        self.pulse();
    }

    fn pulse(&self) {
        // The counter cannot be full: KVM takes it down with every write.
        if let Err(error) = self.shared.irqfd.write(1) {
            tracing::error!(%error, "an interrupt did not get through");
        }
    }

    /// Gives the edge again when the driver has not acknowledged.
    pub(super) fn remind(&self) {
        if self.status() != 0 {
            self.pulse();
        }
    }

    pub(super) fn status(&self) -> u32 {
        self.shared.status.load(Ordering::Acquire)
    }

    pub(super) fn acknowledge(&self, what: u32) {
        self.shared.status.fetch_and(!what, Ordering::AcqRel);
    }

    pub(super) fn generation(&self) -> u32 {
        self.shared.generation.load(Ordering::Acquire)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::Acquire)
    }

    /// As after a reset, but for the generation: a driver may compare it across one.
    pub(super) fn reset(&self) {
        self.shared.status.store(0, Ordering::Release);
        self.shared.broken.store(false, Ordering::Release);
    }

    /// As it was saved. Nothing is raised: see [`remind`](Self::remind).
    pub(super) fn restore(&self, status: u32, generation: u32, broken: bool) {
        self.shared.status.store(status, Ordering::Release);
        self.shared.generation.store(generation, Ordering::Release);
        self.shared.broken.store(broken, Ordering::Release);
    }

    /// The irqfd, to be connected.
    pub(super) fn irqfd(&self) -> &EventFd {
        &self.shared.irqfd
    }
}
