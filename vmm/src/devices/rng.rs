//! virtio-rng (virtio 1.2, 5.4): random bytes of the host's kernel for the guest's.
//!
//! One queue; every chain is filled and given back. A guest seeds itself with a
//! few hundred bytes and tops up now and then: it gets a bounded amount a chain
//! and a second, so that it cannot keep a core of the host busy. There is no
//! state: the device is the same on every host.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ballast_model::hardware::RateLimit;
use ballast_model::{BytesPerSec, Refusal, RefusalCode};
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::rate_limit::RateLimiter;
use super::ring::{self, Broken, Direction, Ring};
use super::virtio::{Activation, DeviceKind, VirtioDevice};
use super::wait::wait;
use crate::jail::{self, ThreadKind};

const QUEUE_SIZES: [u16; 1] = [64];
/// What one chain is given at most, in bytes.
const CHAIN_BYTES_MAX: usize = 4096;
const LIMIT: RateLimit = RateLimit { bytes: BytesPerSec(1 << 20), ops_per_sec: 1000 };

/// The entropy source.
#[derive(Debug, Default)]
pub(crate) struct Rng {
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    stop: EventFd,
    worker: JoinHandle<Vec<QueueState>>,
    /// Where the queue stood at the start, should the worker not be able to tell.
    began: Vec<QueueState>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn start(&self, context: Activation) -> Result<(), Refusal> {
        let failed = |error: io::Error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("the entropy source cannot work: {error}"),
                "raise the limits on tasks and open files of this service",
            )
        };
        let stop = EventFd::new(EFD_NONBLOCK).map_err(failed)?;
        let heard = stop.try_clone().map_err(failed)?;
        let began = context.queues.iter().map(Queue::state).collect();
        let run = move || work(context, &heard);
        let worker = jail::spawn(ThreadKind::Device, "rng".to_owned(), run).map_err(failed)?;
        *lock(&self.running) = Some(Running { stop, worker, began });
        Ok(())
    }

    fn stop(&self) -> Vec<QueueState> {
        let Some(running) = lock(&self.running).take() else { return Vec::new() };
        if let Err(error) = running.stop.write(1) {
            tracing::error!(%error, "cannot tell the entropy source to stop");
        }
        running.worker.join().unwrap_or_else(|_| {
            tracing::error!("the entropy source's thread panicked");
            running.began
        })
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn load(&self, bytes: &[u8]) -> Result<(), Refusal> {
        if bytes.is_empty() {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("the entropy source's state has {} bytes, and should have none", bytes.len()),
            "bring source and destination to the same version",
        ))
    }
}

impl Drop for Rng {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Works until told to stop; where the queue stands then.
fn work(mut context: Activation, stop: &EventFd) -> Vec<QueueState> {
    let mut states: Vec<_> = context.queues.iter().map(Queue::state).collect();
    let (Some(queue), Some(kick)) = (context.queues.pop(), context.kicks.pop()) else {
        return states;
    };
    let mut ring = queue.ready().then(|| Ring::new(queue));
    let mut limiter = RateLimiter::new(&LIMIT, Instant::now());
    let mut patience = None;
    while wait(stop, &[&kick], patience) {
        let Some(ring) = &mut ring else { continue };
        patience = match fill(ring, &context, &mut limiter) {
            Ok(later) => later,
            Err(broken) => {
                context.interrupt.broken(broken);
                let _ = wait(stop, &[], None);
                break;
            }
        };
    }
    if let (Some(ring), Some(state)) = (ring, states.first_mut()) {
        *state = ring.state();
    }
    states
}

/// Fills every chain there is; how long until more may be filled, when the limit is used up.
fn fill(
    ring: &mut Ring,
    context: &Activation,
    limiter: &mut RateLimiter,
) -> Result<Option<Duration>, Broken> {
    let memory = &context.memory;
    let mut buffers = Vec::new();
    let mut bytes = [0; CHAIN_BYTES_MAX];
    let mut later = None;
    ring.stop_listening(memory)?;
    loop {
        if let Err(wait) = limiter.ready(Instant::now()) {
            later = Some(wait);
            break;
        }
        buffers.clear();
        let Some(chain) = ring.take(memory, Some(Direction::ToDriver), &mut buffers)? else {
            if ring.listen(memory)? {
                continue;
            }
            break;
        };
        let wanted = &mut bytes[..chain.bytes.min(CHAIN_BYTES_MAX)];
        let given = random(wanted);
        ring::write(memory, &buffers, 0, &wanted[..given])?;
        limiter.charge(given as u64);
        ring.put(memory, chain.head, u32::try_from(given).unwrap_or_default())?;
    }
    if ring.publish(memory)? {
        context.interrupt.used(0);
    }
    Ok(later)
}

/// Fills with random bytes; how many. The kernel's source never ends once it has been seeded.
fn random(into: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < into.len() {
        match rustix::rand::getrandom(&mut into[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "the host gives no random bytes");
                break;
            }
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::virtio::mmio::Transport;
    use crate::devices::virtio::slots::slot;
    use crate::devices::virtio::testing::{Ring as Driver, drive, memory, notify, read, wait_for};

    const BUFFERS: u64 = 0x8000;

    #[test]
    fn every_chain_is_filled_and_bounded() {
        let memory = memory(1 << 20);
        let transport = Transport::new(Arc::new(Rng::default()), slot(0), memory.clone()).unwrap();
        let mut driver = Driver::new(&memory, 0x1000, 64);
        drive(&transport, 0, &[&driver]);
        driver.chain(0, &[(BUFFERS, 16, true), (BUFFERS + 32, 16, true)]);
        driver.chain(2, &[(BUFFERS + 64, 0x1_0000, true)]);
        notify(&transport, 0);
        assert_eq!(driver.wait_used(), (0, 32));
        assert_eq!(driver.wait_used(), (2, 4096));
        let mut got = [0; 48];
        memory.read_slice(&mut got, GuestAddress(BUFFERS)).unwrap();
        assert_ne!(got[..16], [0; 16]);
        assert_eq!(got[16..32], [0; 16], "nothing beside the buffers");
        transport.pause();
        driver.chain(3, &[(BUFFERS, 8, true)]);
        transport.resume();
        assert_eq!(driver.wait_used(), (3, 8), "what came while it rested");
    }

    #[test]
    fn a_broken_queue_breaks_the_device_only() {
        let memory = memory(1 << 20);
        let transport = Transport::new(Arc::new(Rng::default()), slot(0), memory.clone()).unwrap();
        let mut driver = Driver::new(&memory, 0x1000, 64);
        drive(&transport, 0, &[&driver]);
        driver.chain(0, &[(1 << 20, 16, true)]);
        notify(&transport, 0);
        wait_for("DEVICE_NEEDS_RESET", || (read(&transport, 0x70) & 64 != 0).then_some(()));
        transport.pause();
    }
}
