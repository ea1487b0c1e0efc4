//! Virtio 1.x devices behind MMIO transports.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`slots`] | where a device stands: its registers' address and its interrupt |
//! | [`mmio`] | the registers, as a driver sees them; owns status, features and queue set-up |
//! | [`state`] | what of a transport a migration carries |
//! | [`interrupt`] | from a device to the guest |
//! | [`VirtioDevice`] | one device behind a transport: net, block, console, rng |
//!
//! ```text
//!              DRIVER_OK: start(queues)            pause: stop()
//!   configured ────────────────────────▶ works ───────────────────▶ rests, drained
//!       ▲                                 │  ▲                        │   │
//!       │                                 │  └── resume: start(where it stood)
//!       └──────── reset: stop() ──────────┴───────────────────────────┘
//! ```
//!
//! The transport alone knows that picture; a device knows only `start` and
//! `stop`. Between `stop` and the next `start` no thread of the device runs,
//! nothing is in flight, and guest memory is not touched: that is when state is
//! saved. Kicks and interrupts that were on their way then are given again at
//! `start`, so that none is lost; a driver must expect either to be spurious.
//!
//! The guest is hostile. Whatever it writes into registers, rings and
//! descriptors at worst breaks the device it wrote them for: the device stops,
//! says DEVICE_NEEDS_RESET ([`Interrupt::broken`]), and waits for a reset.

pub(crate) mod interrupt;
pub(crate) mod mmio;
pub(crate) mod slots;
pub(crate) mod state;
#[cfg(test)]
pub(crate) mod testing;

use ballast_model::Refusal;
use virtio_queue::{Queue, QueueState};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;
pub(crate) use interrupt::Interrupt;

/// The most queues any device here has.
pub(crate) const QUEUES_MAX: usize = 8;
/// The largest queue any device here offers, in descriptors.
pub(crate) const QUEUE_SIZE_MAX: u16 = 1024;
/// The most a device may [save](VirtioDevice::save), in bytes.
pub(crate) const DEVICE_STATE_BYTES_MAX: usize = 256 << 10;

/// What a device is; the numbers are the specification's (virtio 1.2, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum DeviceKind {
    Net = 1,
    Block = 2,
    Console = 3,
    Rng = 4,
}

/// One device behind a transport. Called by its transport only, never by two
/// threads at once; all of the device's own work is done on its own threads.
pub(crate) trait VirtioDevice: Send + Sync + std::fmt::Debug {
    fn kind(&self) -> DeviceKind;

    /// The device's own feature bits. The transport adds VERSION_1, INDIRECT_DESC and EVENT_IDX.
    fn features(&self) -> u64;

    /// The maximum size of each queue: powers of two, at most [`QUEUE_SIZE_MAX`];
    /// at most [`QUEUES_MAX`] of them.
    fn queue_sizes(&self) -> &[u16];

    /// Reads from the device's configuration; beyond its end it reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the device's configuration; what cannot be written is ignored.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready: starts working. Never called twice without a
    /// [`stop`](Self::stop) between.
    ///
    /// # Errors
    /// When there is no thread for it; the device is then marked broken.
    fn start(&self, context: Activation) -> Result<(), Refusal>;

    /// Takes no more requests, finishes those taken, tells the guest of them,
    /// and ends the device's threads. Answers with every queue as it stands, in
    /// the order given to [`start`](Self::start); nothing when it does not work.
    fn stop(&self) -> Vec<QueueState>;

    /// What the device itself takes along in a migration, besides queues,
    /// features and configuration: versioned by the device, at most
    /// [`DEVICE_STATE_BYTES_MAX`]. Called while the device rests.
    fn save(&self) -> Vec<u8>;

    /// The same for a guest that goes on elsewhere, as late as can be: with what has come for it since the device rests. Goes
    /// it on here after all, it has that as well.
    fn save_arrived(&self) -> Vec<u8> {
        self.save()
    }

    /// Loads what [`save`](Self::save) took, before any [`start`](Self::start).
    ///
    /// # Errors
    /// `InvalidArgument` for bytes that are no such state.
    fn load(&self, bytes: &[u8]) -> Result<(), Refusal>;
}

/// What a device gets to work with, until it is stopped.
#[derive(Debug)]
pub(crate) struct Activation {
    /// Guest memory. What is written through it is in the devices' dirty bitmap.
    pub(crate) memory: GuestRam,
    /// All queues, by number. A queue that is not `ready()` was left unused by the driver. Ranges
    /// of the others have been checked; what is in them has not.
    pub(crate) queues: Vec<Queue>,
    /// Becomes readable when the driver has put something into the queue of that number. Readable
    /// from the start, so that what is there already is found. Non-blocking.
    pub(crate) kicks: Vec<EventFd>,
    /// To the guest.
    pub(crate) interrupt: Interrupt,
    /// What driver and device agreed on, the transport's own bits included.
    pub(crate) features: u64,
}
