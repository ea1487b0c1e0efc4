//! virtio-console (virtio 1.2, 5.3) with its one port: `hvc0` of a Linux guest.
//!
//! Output goes where COM1's goes. Input waits in a queue as short as a serial
//! port's until the guest has a buffer for it; the queue goes along when the VM
//! moves, so that no key is lost.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ballast_model::hardware::RateLimit;
use ballast_model::{BytesPerSec, Refusal, RefusalCode};
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Output, Source};
use crate::codec::{Decoder, Encoder, Malformed};
use crate::devices::rate_limit::RateLimiter;
use crate::devices::ring::{self, Broken, Buffer, Direction, Ring};
use crate::devices::virtio::{Activation, DeviceKind, VirtioDevice};
use crate::devices::wait::wait;
use crate::jail::{self, ThreadKind};

const QUEUE_SIZES: [u16; 2] = [64, 64];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// What waits for the guest at most, in bytes: as much as at COM1.
const INPUT_BYTES_MAX: usize = 64;
/// What is taken of one chain, in bytes; the rest of a longer one is lost.
const CHAIN_BYTES_MAX: usize = 64 << 10;
/// More is nobody's to read.
const OUTPUT_LIMIT: RateLimit = RateLimit { bytes: BytesPerSec(4 << 20), ops_per_sec: 0 };

const SAVED_VERSION: u16 = 1;
const SAVED_WHAT: &str = "the virtio console's state";

/// The device.
#[derive(Debug)]
pub(crate) struct VirtioConsole {
    shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Shared {
    output: Arc<Output>,
    input: Mutex<VecDeque<u8>>,
    /// There is input.
    typed: EventFd,
}

#[derive(Debug)]
struct Running {
    stop: EventFd,
    worker: JoinHandle<Vec<QueueState>>,
    /// Where the queues stood at the start, should the worker not be able to tell.
    began: Vec<QueueState>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(error: io::Error) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("the virtio console cannot work: {error}"),
        "raise the limits on tasks and open files of this service",
    )
}

impl VirtioConsole {
    /// A console whose output goes to `output`.
    ///
    /// # Errors
    /// `HostFailure` when the process has no file descriptors left.
    pub(crate) fn new(output: &Arc<Output>) -> Result<Self, Refusal> {
        let shared = Shared {
            output: Arc::clone(output),
            input: Mutex::default(),
            typed: EventFd::new(EFD_NONBLOCK).map_err(failed)?,
        };
        Ok(Self { shared: Arc::new(shared), running: Mutex::default() })
    }

    /// Types at the port; how many bytes there was room for.
    pub(crate) fn input(&self, bytes: &[u8]) -> usize {
        let mut input = lock(&self.shared.input);
        let room = bytes.len().min(INPUT_BYTES_MAX.saturating_sub(input.len()));
        input.extend(&bytes[..room]);
        drop(input);
        if let Err(error) = self.shared.typed.write(1) {
            tracing::debug!(%error, "the virtio console was told of input often enough");
        }
        room
    }
}

impl VirtioDevice for VirtioConsole {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
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
        let stop = EventFd::new(EFD_NONBLOCK).map_err(failed)?;
        let heard = stop.try_clone().map_err(failed)?;
        let began = context.queues.iter().map(Queue::state).collect();
        let shared = Arc::clone(&self.shared);
        let run = move || work(context, &shared, &heard);
        let worker = jail::spawn(ThreadKind::Device, "console".to_owned(), run).map_err(failed)?;
        *lock(&self.running) = Some(Running { stop, worker, began });
        Ok(())
    }

    fn stop(&self) -> Vec<QueueState> {
        let Some(running) = lock(&self.running).take() else { return Vec::new() };
        if let Err(error) = running.stop.write(1) {
            tracing::error!(%error, "cannot tell the virtio console to stop");
        }
        running.worker.join().unwrap_or_else(|_| {
            tracing::error!("the virtio console's thread panicked");
            running.began
        })
    }

    fn save(&self) -> Vec<u8> {
        let mut encoder = Encoder::default();
        let input: Vec<u8> = lock(&self.shared.input).iter().copied().collect();
        encoder.u16(SAVED_VERSION).bytes(&input);
        encoder.finish()
    }

    fn load(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let input = decode(bytes).map_err(|malformed| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                malformed.to_string(),
                "bring source and destination to the same version",
            )
        })?;
        *lock(&self.shared.input) = input;
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Result<VecDeque<u8>, Malformed> {
    let mut decoder = Decoder::new(bytes);
    if decoder.u16(SAVED_WHAT)? != SAVED_VERSION {
        return Err(Malformed(SAVED_WHAT));
    }
    let input = decoder.bytes(INPUT_BYTES_MAX, SAVED_WHAT)?.to_vec();
    decoder.finish(SAVED_WHAT)?;
    Ok(input.into())
}

impl Drop for VirtioConsole {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Works until told to stop; where the queues stand then.
fn work(mut context: Activation, shared: &Shared, stop: &EventFd) -> Vec<QueueState> {
    let mut states: Vec<_> = context.queues.iter().map(Queue::state).collect();
    let mut rings = std::mem::take(&mut context.queues)
        .into_iter()
        .map(|queue| queue.ready().then(|| Ring::new(queue)));
    let [receive, transmit] = [rings.next().flatten(), rings.next().flatten()];
    let limiter = RateLimiter::new(&OUTPUT_LIMIT, Instant::now());
    let mut port = Port { context, shared, receive, transmit, limiter };
    let kicks = std::mem::take(&mut port.context.kicks);
    let events: Vec<_> = kicks.iter().chain([&shared.typed]).collect();
    // What was typed while nobody worked is there already.
    let mut patience = Some(Duration::ZERO);
    while wait(stop, &events, patience) {
        patience = match port.output().and_then(|later| port.input().map(|()| later)) {
            Ok(later) => later,
            Err(broken) => {
                port.context.interrupt.broken(broken);
                let _ = wait(stop, &[], None);
                break;
            }
        };
    }
    for (state, ring) in states.iter_mut().zip([port.receive, port.transmit]) {
        if let Some(ring) = ring {
            *state = ring.state();
        }
    }
    states
}

struct Port<'a> {
    context: Activation,
    shared: &'a Shared,
    receive: Option<Ring>,
    transmit: Option<Ring>,
    limiter: RateLimiter,
}

impl Port<'_> {
    /// Takes what the guest has written; how long until more may be taken, when the limit is used up.
    fn output(&mut self) -> Result<Option<Duration>, Broken> {
        let Some(ring) = &mut self.transmit else { return Ok(None) };
        let memory = &self.context.memory;
        let mut buffers: Vec<Buffer> = Vec::new();
        let mut bytes = Vec::new();
        let mut later = None;
        ring.stop_listening(memory)?;
        loop {
            if let Err(wait) = self.limiter.ready(Instant::now()) {
                later = Some(wait);
                break;
            }
            buffers.clear();
            let Some(chain) = ring.take(memory, Some(Direction::ToDevice), &mut buffers)? else {
                if ring.listen(memory)? {
                    continue;
                }
                break;
            };
            bytes.resize(chain.bytes.min(CHAIN_BYTES_MAX), 0);
            ring::read(memory, &buffers, &mut bytes)?;
            self.shared.output.append(Source::Virtio, &bytes);
            self.limiter.charge(bytes.len() as u64);
            ring.put(memory, chain.head, 0)?;
        }
        if ring.publish(memory)? {
            self.context.interrupt.used(TRANSMIT);
        }
        Ok(later)
    }

    /// Hands over what was typed, as far as the guest has buffers for it.
    fn input(&mut self) -> Result<(), Broken> {
        let Some(ring) = &mut self.receive else { return Ok(()) };
        let memory = &self.context.memory;
        let mut input = lock(&self.shared.input);
        let mut buffers: Vec<Buffer> = Vec::new();
        while !input.is_empty() {
            buffers.clear();
            let Some(chain) = ring.take(memory, Some(Direction::ToDriver), &mut buffers)? else {
                if ring.listen(memory)? {
                    continue;
                }
                break;
            };
            let given = chain.bytes.min(input.len());
            let bytes: Vec<u8> = input.drain(..given).collect();
            ring::write(memory, &buffers, 0, &bytes)?;
            ring.put(memory, chain.head, u32::try_from(given).unwrap_or_default())?;
        }
        if ring.publish(memory)? {
            self.context.interrupt.used(RECEIVE);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::virtio::mmio::Transport;
    use crate::devices::virtio::slots::slot;
    use crate::devices::virtio::testing::{Ring as Driver, drive, memory, notify, read, wait_for};
    use crate::memory::GuestRam;

    const BUFFERS: u64 = 0x8000;

    struct Guest {
        memory: GuestRam,
        console: Arc<VirtioConsole>,
        transport: Arc<Transport>,
        output: Arc<Output>,
        receive: Driver,
        transmit: Driver,
    }

    fn guest() -> Guest {
        let memory = memory(1 << 20);
        let output = Arc::new(Output::default());
        let console = Arc::new(VirtioConsole::new(&output).unwrap());
        let transport = Transport::new(Arc::clone(&console) as _, slot(0), memory.clone()).unwrap();
        let [receive, transmit] = [0x1000, 0x4000].map(|base| Driver::new(&memory, base, 64));
        Guest { memory, console, transport: transport.into(), output, receive, transmit }
    }

    #[test]
    fn output_goes_to_the_console_and_input_follows_it() {
        let mut guest = guest();
        drive(&guest.transport, 0, &[&guest.receive, &guest.transmit]);
        guest.memory.write_slice(b"login: ", GuestAddress(BUFFERS)).unwrap();
        guest.transmit.chain(0, &[(BUFFERS, 3, false), (BUFFERS + 3, 4, false)]);
        notify(&guest.transport, 1);
        guest.transmit.wait_used();
        assert_eq!(guest.output.read(0), (0, b"login: ".to_vec()));
        assert_eq!(guest.output.last(), Source::Virtio);

        assert_eq!(guest.console.input(b"root\r"), 5);
        guest.receive.chain(0, &[(BUFFERS + 64, 3, true)]);
        guest.receive.chain(1, &[(BUFFERS + 96, 16, true)]);
        notify(&guest.transport, 0);
        assert_eq!(guest.receive.wait_used(), (0, 3));
        assert_eq!(guest.receive.wait_used(), (1, 2));
        let mut typed = [0; 3];
        guest.memory.read_slice(&mut typed, GuestAddress(BUFFERS + 64)).unwrap();
        assert_eq!(&typed, b"roo");
    }

    #[test]
    fn input_waits_bounded_and_goes_along() {
        let source = guest();
        assert_eq!(source.console.input(&[b'x'; 100]), INPUT_BYTES_MAX);
        assert_eq!(source.console.input(b"y"), 0);
        drive(&source.transport, 0, &[&source.receive, &source.transmit]);
        source.transport.pause();
        let state = source.transport.save();
        let mut destination = guest();
        let mut bytes = vec![0; 1 << 20];
        source.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        destination.memory.write_slice(&bytes, GuestAddress(0)).unwrap();
        destination.transport.load(&state).unwrap();
        destination.receive.chain(0, &[(BUFFERS, 100, true)]);
        destination.transport.resume();
        assert_eq!(destination.receive.wait_used(), (0, 64));
        assert!(destination.console.load(&[9, 9]).is_err());
    }

    #[test]
    fn a_broken_queue_breaks_the_device_only() {
        let mut guest = guest();
        drive(&guest.transport, 0, &[&guest.receive, &guest.transmit]);
        guest.transmit.chain(0, &[(1 << 20, 16, false)]);
        notify(&guest.transport, 1);
        wait_for("DEVICE_NEEDS_RESET", || (read(&guest.transport, 0x70) & 64 != 0).then_some(()));
        guest.transport.pause();
    }
}
