//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2).
//!
//! One per device. It owns what the driver has set up (status, features,
//! queues) and starts and stops the device accordingly; see the picture in the
//! module above. Registers are four bytes wide and aligned; any other access to
//! them reads zero and changes nothing. The configuration may be read in any
//! width.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ballast_model::{Refusal, RefusalCode};
use kvm_ioctls::{IoEventAddress, VmFd};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::slots::Slot;
use super::state::TransportState;
use super::{Activation, Interrupt, QUEUE_SIZE_MAX, QUEUES_MAX, VirtioDevice};
use crate::kvm::failed;
use crate::memory::GuestRam;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"BLST");
/// The feature bits every device here has. Drivers without the first are not served.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

/// A device with its registers.
#[derive(Debug)]
pub(crate) struct Transport {
    device: Arc<dyn VirtioDevice>,
    slot: Slot,
    memory: GuestRam,
    interrupt: Interrupt,
    kicks: Vec<EventFd>,
    registers: Mutex<Registers>,
}

/// What the driver has set up.
#[derive(Debug)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    /// As set up, with positions as of the last stop.
    queues: Vec<QueueState>,
    /// Between `start` and `stop` of the device.
    works: bool,
}

impl Registers {
    fn new(sizes: &[u16]) -> Self {
        let queue = |&size| QueueState { max_size: size, size, ..QueueState::default() };
        Self {
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: sizes.iter().map(queue).collect(),
            works: false,
        }
    }

    fn has(&self, status: u32) -> bool {
        self.status & status != 0
    }

    fn queue(&self) -> Option<&QueueState> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// The selected queue while its driver may set it up.
    fn queue_mut(&mut self) -> Option<&mut QueueState> {
        if !self.has(VIRTIO_CONFIG_S_FEATURES_OK) || self.has(VIRTIO_CONFIG_S_DRIVER_OK) {
            return None;
        }
        self.queues.get_mut(usize::try_from(self.queue_sel).ok()?)
    }
}

/// Whether such a write may start or stop a device: not for the thread of a vCPU.
pub(crate) fn starts_or_stops(offset: u64, data: &[u8]) -> bool {
    offset == u64::from(reg::VIRTIO_MMIO_STATUS) && data.len() == 4
}

/// The half of 64 feature bits that a selector means.
fn half(features: u64, selector: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match selector {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
}

/// Whether a driver may hand over a queue like this: size, alignment, and every range in memory.
pub(super) fn is_usable(queue: &QueueState, memory: &GuestRam) -> bool {
    let size = usize::from(queue.size);
    let within = |address, bytes, access| {
        address != 0 && memory.check_range(GuestAddress(address), bytes, access)
    };
    // Sizes of virtio 1.2, section 2.7; the event fields included, used or not.
    Queue::try_from(*queue).is_ok()
        && within(queue.desc_table, 16 * size, Permissions::Read)
        && within(queue.avail_ring, 6 + 2 * size, Permissions::Read)
        && within(queue.used_ring, 6 + 8 * size, Permissions::Write)
}

impl Transport {
    /// A transport in reset. Nothing reaches the guest before [`connect`](Self::connect).
    ///
    /// # Errors
    /// `HostFailure` when the process has no file descriptors left, `Internal`
    /// for a device out of this module's bounds.
    pub(crate) fn new(
        device: Arc<dyn VirtioDevice>,
        slot: Slot,
        memory: GuestRam,
    ) -> Result<Self, Refusal> {
        let sizes = device.queue_sizes();
        let fits = |&size: &u16| size.is_power_of_two() && size <= QUEUE_SIZE_MAX;
        if sizes.len() > QUEUES_MAX || !sizes.iter().all(fits) {
            let what = format!("the queues of {device:?} are out of bounds: {sizes:?}");
            return Err(Refusal::new(RefusalCode::Internal, what, "report a defect"));
        }
        let eventfd = || EventFd::new(EFD_NONBLOCK).map_err(|error| no_descriptor(&error));
        let kicks = sizes.iter().map(|_| eventfd()).collect::<Result<_, _>>()?;
        let registers = Mutex::new(Registers::new(sizes));
        let interrupt = Interrupt::new(eventfd()?);
        Ok(Self { device, slot, memory, interrupt, kicks, registers })
    }

    /// Has KVM turn notifications of the driver into kicks and the device's interrupts into edges.
    ///
    /// # Errors
    /// `HostFailure` when KVM cannot.
    pub(crate) fn connect(&self, vm: &VmFd) -> Result<(), Refusal> {
        vm.register_irqfd(self.interrupt.irqfd(), self.slot.gsi)
            .map_err(|error| failed("connect the interrupt of a virtio device", error))?;
        let notify = self.slot.address + u64::from(reg::VIRTIO_MMIO_QUEUE_NOTIFY);
        for (kick, queue) in self.kicks.iter().zip(0u32..) {
            vm.register_ioevent(kick, &IoEventAddress::Mmio(notify), queue)
                .map_err(|error| failed("connect the notifications of a virtio device", error))?;
        }
        Ok(())
    }

    pub(crate) fn slot(&self) -> Slot {
        self.slot
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    /// The driver reads at this offset into the device's page.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= CONFIG {
            return self.device.read_config(offset - CONFIG, data);
        }
        if let (Ok(data), Ok(offset)) = (<&mut [u8; 4]>::try_from(data), u32::try_from(offset)) {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    /// The driver writes at this offset into the device's page.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            return self.device.write_config(offset - CONFIG, data);
        }
        if let (Ok(data), Ok(offset)) = (<[u8; 4]>::try_from(data), u32::try_from(offset)) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        let registers = self.lock();
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device.kind() as u32,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.features(), registers.device_features_sel)
            }
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                registers.queue().map_or(0, |queue| queue.max_size.into())
            }
            reg::VIRTIO_MMIO_QUEUE_READY => registers.queue().map_or(0, |queue| queue.ready.into()),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            reg::VIRTIO_MMIO_STATUS if self.interrupt.is_broken() => {
                registers.status | VIRTIO_CONFIG_S_NEEDS_RESET
            }
            reg::VIRTIO_MMIO_STATUS => registers.status,
            // No shared memory: of a length that does not exist, at no address.
            reg::VIRTIO_MMIO_SHM_LEN_LOW..=reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        let mut registers = self.lock();
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES if !registers.has(VIRTIO_CONFIG_S_FEATURES_OK) => {
                match registers.driver_features_sel {
                    0 => set_low(&mut registers.driver_features, value),
                    1 => set_high(&mut registers.driver_features, value),
                    _ => {}
                }
            }
            reg::VIRTIO_MMIO_QUEUE_SEL => registers.queue_sel = value,
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => self.kick(value),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::VIRTIO_MMIO_STATUS => self.write_status(&mut registers, value),
            reg::VIRTIO_MMIO_QUEUE_READY => {
                let memory = &self.memory;
                if let Some(queue) = registers.queue_mut() {
                    queue.ready = value == 1 && is_usable(queue, memory);
                }
            }
            // The place of a queue that is ready no longer changes.
            _ => {
                if let Some(queue) = registers.queue_mut().filter(|queue| !queue.ready) {
                    place_queue(queue, offset, value);
                }
            }
        }
    }

    /// What KVM did not turn into a kick itself.
    fn kick(&self, queue: u32) {
        let kick = usize::try_from(queue).ok().and_then(|queue| self.kicks.get(queue));
        if let Some(Err(error)) = kick.map(|kick| kick.write(1)) {
            tracing::debug!(%error, "a device has more kicks than it can count");
        }
    }

    fn write_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            return self.reset(registers);
        }
        // A driver must not take a bit back but by a reset; the device's own bit is not its to write.
        let value = (registers.status | value) & !VIRTIO_CONFIG_S_NEEDS_RESET;
        let new = value & !registers.status;
        registers.status |= value & !(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
        if new & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            let (offered, wanted) = (self.features(), registers.driver_features);
            if wanted & !offered == 0 && wanted & 1 << VIRTIO_F_VERSION_1 != 0 {
                registers.status |= VIRTIO_CONFIG_S_FEATURES_OK;
            }
        }
        if new & VIRTIO_CONFIG_S_DRIVER_OK != 0 && registers.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            registers.status |= VIRTIO_CONFIG_S_DRIVER_OK;
            let event_idx = registers.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
            for queue in &mut registers.queues {
                queue.event_idx_enabled = event_idx;
            }
            self.start(registers);
        }
    }

    fn reset(&self, registers: &mut Registers) {
        if registers.works {
            self.device.stop();
        }
        *registers = Registers::new(self.device.queue_sizes());
        self.interrupt.reset();
    }

    /// Has the device work on the queues where they stand. One that cannot is broken.
    fn start(&self, registers: &mut Registers) {
        let started = self.activation(registers).and_then(|with| self.device.start(with));
        match started {
            Ok(()) => registers.works = true,
            Err(refusal) => self.interrupt.broken(refusal),
        }
    }

    fn activation(&self, registers: &Registers) -> Result<Activation, Refusal> {
        let defect = |error: virtio_queue::Error| {
            Refusal::new(RefusalCode::Internal, format!("a queue: {error}"), "report a defect")
        };
        let mut kicks = Vec::with_capacity(self.kicks.len());
        for kick in &self.kicks {
            kicks.push(kick.try_clone().map_err(|error| no_descriptor(&error))?);
        }
        // What is in a queue already is found, and a kick lost on the way is made up for.
        (0u32..).zip(&kicks).for_each(|(queue, _)| self.kick(queue));
        let queue = |&queue: &QueueState| {
            // What was written for a queue that is not used may be anything.
            if queue.ready { Queue::try_from(queue) } else { Queue::new(queue.max_size) }
        };
        let queues = registers.queues.iter().map(queue).collect::<Result<_, _>>();
        Ok(Activation {
            memory: self.memory.clone(),
            queues: queues.map_err(defect)?,
            kicks,
            interrupt: self.interrupt.clone(),
            features: registers.driver_features,
        })
    }

    /// Has the device finish what it has taken and rest. The vCPUs are parked. Idempotent.
    pub(crate) fn pause(&self) {
        let mut registers = self.lock();
        if !std::mem::take(&mut registers.works) {
            return;
        }
        let queues = self.device.stop();
        if queues.len() == registers.queues.len() {
            registers.queues = queues;
        } else {
            self.interrupt.broken("it lost its place in its queues");
        }
    }

    /// Has a device that worked go on where it stood. Idempotent.
    pub(crate) fn resume(&self) {
        let mut registers = self.lock();
        if registers.has(VIRTIO_CONFIG_S_DRIVER_OK)
            && !registers.works
            && !self.interrupt.is_broken()
        {
            self.start(&mut registers);
        }
        self.interrupt.remind();
    }

    /// Everything of a device that rests.
    pub(crate) fn save(&self) -> TransportState {
        let registers = self.lock();
        TransportState {
            kind: self.device.kind() as u16,
            status: registers.status,
            device_features_sel: registers.device_features_sel,
            driver_features_sel: registers.driver_features_sel,
            driver_features: registers.driver_features,
            queue_sel: registers.queue_sel,
            interrupt_status: self.interrupt.status(),
            generation: self.interrupt.generation(),
            broken: self.interrupt.is_broken(),
            queues: registers.queues.clone(),
            device: self.device.save(),
        }
    }

    /// Adds to what [`save`](Self::save) took what has come for the guest since.
    pub(crate) fn save_arrived(&self, state: &mut TransportState) {
        state.device = self.device.save_arrived();
    }

    /// Loads what [`save`](Self::save) took; the device rests until [`resume`](Self::resume).
    ///
    /// # Errors
    /// `Incompatible` for the state of another device or of one with features
    /// that this one has not, `InvalidArgument` for one that cannot be.
    pub(crate) fn load(&self, state: &TransportState) -> Result<(), Refusal> {
        state.check(self.device.as_ref(), self.features(), &self.memory)?;
        self.device.load(&state.device)?;
        let mut registers = self.lock();
        *registers = Registers {
            status: state.status,
            device_features_sel: state.device_features_sel,
            driver_features_sel: state.driver_features_sel,
            driver_features: state.driver_features,
            queue_sel: state.queue_sel,
            queues: state.queues.clone(),
            works: false,
        };
        self.interrupt.restore(state.interrupt_status, state.generation, state.broken);
        Ok(())
    }
}

impl Drop for Transport {
    /// No thread of the device outlives the machine whose memory it uses.
    fn drop(&mut self) {
        self.pause();
    }
}

fn place_queue(queue: &mut QueueState, offset: u32, value: u32) {
    match offset {
        reg::VIRTIO_MMIO_QUEUE_NUM => {
            // A size that cannot be is refused when the queue is made ready.
            queue.size = u16::try_from(value).unwrap_or(0);
        }
        reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.desc_table, value),
        reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.desc_table, value),
        reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.avail_ring, value),
        reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.avail_ring, value),
        reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used_ring, value),
        reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used_ring, value),
        _ => {}
    }
}

fn no_descriptor(error: &std::io::Error) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("no file descriptor for a virtio device: {error}"),
        "raise the limit on open files of this service",
    )
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
