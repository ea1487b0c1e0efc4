//! The control queue: the one command offered is the guest's word that it has
//! announced itself; every other is answered with an error.

use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use vm_memory::GuestMemory;

use super::{Turn, Turned};
use crate::devices::ring::{self, Broken, Buffer, Direction, Ring};

/// Commands answered before other work gets its turn.
const BATCH: usize = 16;

/// The control queue at work.
#[derive(Debug)]
pub(super) struct Control {
    ring: Ring,
    buffers: Vec<Buffer>,
}

impl Control {
    pub(super) fn new(ring: Ring) -> Self {
        Self { ring, buffers: Vec::new() }
    }

    /// Answers what the guest has asked. `announce` is whether it is being asked to announce itself.
    ///
    /// # Errors
    /// [`Broken`] when the guest's queue makes no sense.
    pub(super) fn turn<M: GuestMemory>(
        &mut self,
        memory: &M,
        announce: &AtomicBool,
    ) -> Result<Turned, Broken> {
        let mut turn = Turn::Again;
        for _ in 0..BATCH {
            self.buffers.clear();
            let Some(chain) = self.ring.take(memory, None, &mut self.buffers)? else {
                if self.ring.listen(memory)? {
                    continue;
                }
                turn = Turn::Idle;
                break;
            };
            let first = self.buffers.iter().position(|it| it.direction == Direction::ToDriver);
            let first = first.unwrap_or(self.buffers.len());
            let (command, answer) = self.buffers.split_at(first);
            let mut words = [0u8; 2];
            let known = ring::read(memory, command, &mut words)? == words.len()
                && words.map(u32::from) == [VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK];
            if known {
                announce.store(false, Ordering::Release);
            }
            let word = if known { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            ring::write(memory, answer, 0, &word.to_le_bytes()[..1])?;
            self.ring.put(memory, chain.head, u32::from(!answer.is_empty()))?;
        }
        Ok(Turned { turn, interrupt: self.ring.publish(memory)? })
    }

    pub(super) fn finish(self) -> Ring {
        self.ring
    }
}
