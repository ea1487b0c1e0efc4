//! What of a transport a migration carries, and its encoding.
//!
//! Part of the machine's saved state from its version 2 on; the device's own
//! part is a byte string that only the device reads. Nothing of it is trusted:
//! [`TransportState::check`] accepts what a driver could have set up, and no more.

use ballast_model::{Refusal, RefusalCode};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueState;

use super::mmio::is_usable;
use super::{DEVICE_STATE_BYTES_MAX, QUEUES_MAX, VirtioDevice};
use crate::codec::{Decoder, Encoder, Malformed};
use crate::memory::GuestRam;

/// One transport with its device, at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransportState {
    pub(super) kind: u16,
    pub(super) status: u32,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    pub(super) queue_sel: u32,
    pub(super) interrupt_status: u32,
    pub(super) generation: u32,
    pub(super) broken: bool,
    pub(super) queues: Vec<QueueState>,
    pub(super) device: Vec<u8>,
}

impl TransportState {
    pub(crate) fn encode(&self, to: &mut Encoder) {
        to.u16(self.kind).u32(self.status);
        to.u32(self.device_features_sel).u32(self.driver_features_sel).u64(self.driver_features);
        to.u32(self.queue_sel).u32(self.interrupt_status).u32(self.generation);
        to.u16(self.broken.into()).count(self.queues.len());
        for queue in &self.queues {
            to.u16(queue.max_size).u16(queue.size).u16(queue.ready.into());
            to.u16(queue.event_idx_enabled.into()).u16(queue.next_avail).u16(queue.next_used);
            to.u64(queue.desc_table).u64(queue.avail_ring).u64(queue.used_ring);
        }
        to.bytes(&self.device);
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        const WHAT: &str = "the state of a virtio device";
        Ok(Self {
            kind: from.u16(WHAT)?,
            status: from.u32(WHAT)?,
            device_features_sel: from.u32(WHAT)?,
            driver_features_sel: from.u32(WHAT)?,
            driver_features: from.u64(WHAT)?,
            queue_sel: from.u32(WHAT)?,
            interrupt_status: from.u32(WHAT)?,
            generation: from.u32(WHAT)?,
            broken: flag(from, WHAT)?,
            queues: {
                let count = from.count(QUEUES_MAX, WHAT)?;
                (0..count).map(|_| queue(from)).collect::<Result<_, _>>()?
            },
            device: from.bytes(DEVICE_STATE_BYTES_MAX, WHAT)?.to_vec(),
        })
    }

    /// Whether this device can go on from here.
    pub(super) fn check(
        &self,
        device: &dyn VirtioDevice,
        features: u64,
        memory: &GuestRam,
    ) -> Result<(), Refusal> {
        let sizes: Vec<_> = self.queues.iter().map(|queue| queue.max_size).collect();
        if self.kind != device.kind() as u16 || sizes != device.queue_sizes() {
            return Err(incompatible(format!(
                "the saved state is of a device of type {} with queues of {sizes:?}, here is {:?} with {:?}",
                self.kind,
                device.kind(),
                device.queue_sizes()
            )));
        }
        let missing = self.driver_features & !features;
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 && missing != 0 {
            return Err(incompatible(format!(
                "the guest uses features {missing:#x} of its {:?} device that it has not here",
                device.kind()
            )));
        }
        let works = self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        let event_idx = works && self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let possible = |queue: &QueueState| {
            !queue.ready || is_usable(queue, memory) && queue.event_idx_enabled == event_idx
        };
        if self.queues.iter().all(possible) {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("the saved queues of the {:?} device are not in guest memory", device.kind()),
            "bring source and destination to the same version",
        ))
    }
}

fn flag(from: &mut Decoder<'_>, what: &'static str) -> Result<bool, Malformed> {
    match from.u16(what)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed(what)),
    }
}

fn queue(from: &mut Decoder<'_>) -> Result<QueueState, Malformed> {
    const WHAT: &str = "the state of a virtio queue";
    Ok(QueueState {
        max_size: from.u16(WHAT)?,
        size: from.u16(WHAT)?,
        ready: flag(from, WHAT)?,
        event_idx_enabled: flag(from, WHAT)?,
        next_avail: from.u16(WHAT)?,
        next_used: from.u16(WHAT)?,
        desc_table: from.u64(WHAT)?,
        avail_ring: from.u64(WHAT)?,
        used_ring: from.u64(WHAT)?,
    })
}

fn incompatible(reason: String) -> Refusal {
    Refusal::new(
        RefusalCode::Incompatible,
        reason,
        "give both sides the same VM specification and the same version",
    )
}
