//! virtio-net (virtio 1.2, 5.1): one pair of queues, plugged into a tap of the host.
//!
//! ```text
//!  guest ── transmit queue ──▶ tx ──writev──▶ ┌─────┐
//!        ── receive queue  ◀── rx ◀──readv─── │ tap │ ── bridge, host
//!        ── control queue  ◀─▶ control        └─────┘
//!                              announce ──RARP──▲
//! ```
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`port`] | which tap, and when it is held |
//! | [`tap`], [`link`] | the tap's and the interfaces' ioctls |
//! | [`ring`](super::ring) | a virtqueue, distrusted |
//! | [`rx`], [`tx`], [`control`] | the three queues at work |
//! | [`announce`] | where the guest's address is now |
//! | [`backlog`] | frames that came while the guest stood still |
//! | [`worker`] | the device's one thread, which owns all of the above but the port |
//!
//! Frames go between tap and guest memory without a copy. While the guest is
//! stopped nothing is written to the tap, and nothing read but what goes along. What a
//! migration carries is in the queues and their positions; the device's own
//! part is whether the guest still owes an announcement of its own, and the backlog.

mod announce;
mod backlog;
mod control;
mod link;
mod port;
mod rx;
mod tap;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::fuzz_net;
mod tx;
mod worker;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use ballast_model::hardware::RateLimit;
use ballast_model::{MacAddress, NetworkSpec, Refusal, RefusalCode, VmId};
use virtio_bindings::virtio_net as v;
use virtio_queue::{Queue, QueueState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::backlog::Backlog;
use self::port::Port;
use self::tap::{HEADER_BYTES, Offloads};
use self::worker::{Work, Worker};
use crate::codec::{Decoder, Encoder, Malformed};
use crate::devices::Beginning;
use crate::devices::virtio::{Activation, DeviceKind, VirtioDevice};
use crate::jail::{self, ThreadKind};

/// The longest frame either way, in bytes: a full segment, Ethernet with a VLAN tag, virtio's header.
pub(crate) const FRAME_BYTES_MAX: usize = HEADER_BYTES + 18 + (64 << 10);
const QUEUE_SIZES: [u16; 3] = [256, 256, 64];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL: usize = 2;

/// Without a backlog, and with one.
const SAVED_VERSIONS: [u16; 2] = [1, 2];
const SAVED_WHAT: &str = "a network device's state";

/// Every feature offered. The kernel's tap does all of it on every host.
const FEATURES: [u32; 13] = [
    v::VIRTIO_NET_F_CSUM,
    v::VIRTIO_NET_F_GUEST_CSUM,
    v::VIRTIO_NET_F_MAC,
    v::VIRTIO_NET_F_GUEST_TSO4,
    v::VIRTIO_NET_F_GUEST_TSO6,
    v::VIRTIO_NET_F_GUEST_ECN,
    v::VIRTIO_NET_F_HOST_TSO4,
    v::VIRTIO_NET_F_HOST_TSO6,
    v::VIRTIO_NET_F_HOST_ECN,
    v::VIRTIO_NET_F_MRG_RXBUF,
    v::VIRTIO_NET_F_STATUS,
    v::VIRTIO_NET_F_CTRL_VQ,
    v::VIRTIO_NET_F_GUEST_ANNOUNCE,
];

/// How far a queue's turn got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// There is nothing to do until somebody says so.
    Idle,
    /// There may be more; others first.
    Again,
    /// The limit is used up until then.
    NotBefore(Instant),
}

/// A turn, and whether the guest wants to hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turned {
    turn: Turn,
    interrupt: bool,
}

/// A network device.
#[derive(Debug)]
pub(crate) struct Net {
    name: String,
    limit: RateLimit,
    shared: Arc<Shared>,
    /// The state was loaded and has not been started from.
    arrived: AtomicBool,
    running: Mutex<Option<Running>>,
}

/// What the worker and the vCPUs both look at.
#[derive(Debug)]
struct Shared {
    mac: MacAddress,
    port: Port,
    link_up: AtomicBool,
    /// The guest is asked to announce itself and has not said that it did.
    announce: AtomicBool,
    /// For the next start.
    backlog: Mutex<Backlog>,
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

impl Net {
    /// Network number `index` of a VM.
    ///
    /// # Errors
    /// See [`Port::open`].
    pub(crate) fn new(
        vm: &VmId,
        index: u8,
        spec: &NetworkSpec,
        beginning: Beginning,
    ) -> Result<Self, Refusal> {
        let port = match beginning {
            Beginning::Boot => Port::open(vm, index, spec)?,
            Beginning::Restore | Beginning::Arrival => Port::expect(vm, index, spec)?,
        };
        Ok(Self::on(port, index, spec))
    }

    fn on(port: Port, index: u8, spec: &NetworkSpec) -> Self {
        let shared = Shared {
            mac: spec.mac,
            link_up: AtomicBool::new(true),
            announce: AtomicBool::new(false),
            backlog: Mutex::default(),
            port,
        };
        Self {
            name: format!("net{index}"),
            limit: spec.limit,
            shared: Arc::new(shared),
            arrived: AtomicBool::new(false),
            running: Mutex::new(None),
        }
    }

    /// Takes what has come for a guest that stands still.
    fn collect(&self) {
        if let Some(tap) = self.shared.port.held() {
            lock(&self.shared.backlog).collect(&tap);
        }
    }

    fn encode(&self, backlog: Option<&Backlog>) -> Vec<u8> {
        let announce = self.shared.announce.load(Ordering::Acquire);
        let [without, with] = SAVED_VERSIONS;
        let backlog = backlog.filter(|backlog| !backlog.is_empty());
        let mut encoder = Encoder::default();
        encoder.u16(if backlog.is_some() { with } else { without }).u16(u16::from(announce));
        if let Some(backlog) = backlog {
            backlog.encode(&mut encoder);
        }
        encoder.finish()
    }

    fn config(&self) -> [u8; 10] {
        let link =
            if self.shared.link_up.load(Ordering::Acquire) { v::VIRTIO_NET_S_LINK_UP } else { 0 };
        let announce =
            if self.shared.announce.load(Ordering::Acquire) { v::VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let [status, ..] = (link | announce).to_le_bytes();
        let mut config = [0; 10];
        config[..6].copy_from_slice(&self.shared.mac.0);
        config[6] = status;
        config[8] = 1; // one pair of queues
        config
    }
}

/// What the guest takes unfinished, as the tap is told.
fn offloads(features: u64) -> Offloads {
    let pairs = [
        (v::VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
        (v::VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
        (v::VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
        (v::VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    ];
    let bits = pairs.into_iter().filter(|&(feature, _)| has(features, feature));
    let bits = bits.fold(0, |bits, (_, offload)| bits | offload);
    // Segments without their checksum done make no sense; the kernel refuses them too.
    Offloads(if bits & libc::TUN_F_CSUM == 0 { 0 } else { bits })
}

fn has(features: u64, feature: u32) -> bool {
    features & 1 << feature != 0
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        FEATURES.iter().fold(0, |bits, feature| bits | 1 << feature)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = usize::try_from(at).ok().and_then(|at| config.get(at).copied()).unwrap_or(0);
        }
    }

    fn start(&self, context: Activation) -> Result<(), Refusal> {
        let failed = |error: io::Error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("network device {} cannot work: {error}", self.name),
                "raise the limits on tasks and open files of this service",
            )
        };
        let mut running = lock(&self.running);
        let moved = !self.shared.port.is_connected();
        // Here, where files may be opened. Without a tap the worker begins unplugged.
        let plugged = self.shared.port.prepare().and_then(|()| self.shared.port.connect());
        if let Err(why) = plugged {
            tracing::warn!(device = self.name, %why, "a network device is unplugged");
        }
        let arrived = self.arrived.swap(false, Ordering::AcqRel);
        let stop = EventFd::new(EFD_NONBLOCK).map_err(failed)?;
        let began = context.queues.iter().map(Queue::state).collect();
        let work = Work {
            context,
            shared: Arc::clone(&self.shared),
            limit: self.limit,
            stop: stop.try_clone().map_err(failed)?,
            announce: moved || arrived,
        };
        let run = move || Worker::run(work);
        let worker = jail::spawn(ThreadKind::Device, self.name.clone(), run).map_err(failed)?;
        *running = Some(Running { stop, worker, began });
        Ok(())
    }

    fn stop(&self) -> Vec<QueueState> {
        let Some(running) = lock(&self.running).take() else { return Vec::new() };
        if let Err(error) = running.stop.write(1) {
            tracing::error!(device = self.name, %error, "cannot tell the device to stop");
        }
        let states = running.worker.join().unwrap_or_else(|_| {
            tracing::error!(device = self.name, "the device's thread panicked");
            running.began
        });
        if self.shared.port.is_given_up() {
            self.collect();
        }
        self.shared.port.release();
        states
    }

    fn save(&self) -> Vec<u8> {
        // Also where the guest has no driver for it: then nothing was stopped.
        self.shared.port.release();
        self.encode(None)
    }

    fn save_arrived(&self) -> Vec<u8> {
        self.collect();
        self.encode(Some(&lock(&self.shared.backlog)))
    }

    fn load(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let (announce, backlog) = decode(bytes).map_err(|malformed| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("{}: {malformed}", self.name),
                "bring source and destination to the same version",
            )
        })?;
        // Its source, if it is on this host, has given up the tap by now.
        self.shared.port.prepare()?;
        // What has come in until now was for the source's guest.
        self.shared.port.connect()?.discard();
        self.shared.announce.store(announce, Ordering::Release);
        *lock(&self.shared.backlog) = backlog;
        self.arrived.store(true, Ordering::Release);
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Result<(bool, Backlog), Malformed> {
    let mut decoder = Decoder::new(bytes);
    let [without, with] = SAVED_VERSIONS;
    let version = decoder.u16(SAVED_WHAT)?;
    if version != without && version != with {
        return Err(Malformed(SAVED_WHAT));
    }
    let announce = decoder.u16(SAVED_WHAT)? != 0;
    let backlog = match version == with {
        true => Backlog::decode(&mut decoder)?,
        false => Backlog::default(),
    };
    decoder.finish(SAVED_WHAT)?;
    Ok((announce, backlog))
}

impl Drop for Net {
    fn drop(&mut self) {
        self.stop();
    }
}
