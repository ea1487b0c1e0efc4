//! virtio-net (virtio 1.2, section 5.1): frames in and out, as a device of smoltcp's.
//!
//! Every buffer belongs to the descriptor of its number and holds a header and
//! one frame. No offloads are agreed on, so headers are zeroes.

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use super::Once;
use super::mmio::{self, DeviceKind, EVENT_INDEX, Registers, Window};
use super::queue::{Piece, Queue, Rings};

const BUFFERS: usize = 32;
const HEADER_BYTES: usize = 12;
/// Header and the longest Ethernet frame.
const BUFFER_BYTES: usize = HEADER_BYTES + FRAME_BYTES_MAX;
const FRAME_BYTES_MAX: usize = 1514;

const MAC_GIVEN: u64 = 1 << 5;
const RECEIVE: u32 = 0;
const SEND: u32 = 1;

type Buffer = [u8; BUFFER_BYTES];

struct Memory {
    rings: Rings<BUFFERS>,
    buffers: [Buffer; BUFFERS],
}

impl Memory {
    const fn new() -> Self {
        Self { rings: Rings::new(), buffers: [[0; BUFFER_BYTES]; BUFFERS] }
    }
}

static RECEIVED: Once<Memory> = Once::new(Memory::new());
static SENT: Once<Memory> = Once::new(Memory::new());

/// A network card.
pub struct Net {
    mac: [u8; 6],
    receiver: Receiver,
    sender: Sender,
}

struct Receiver {
    queue: Queue<BUFFERS>,
    buffers: &'static mut [Buffer; BUFFERS],
}

struct Sender {
    queue: Queue<BUFFERS>,
    buffers: &'static mut [Buffer; BUFFERS],
    /// A bit for each buffer that is the guest's.
    free: u32,
}

impl Net {
    /// Finds and starts the machine's first network card.
    pub fn start(window: Window) -> Result<Self, &'static str> {
        let registers = mmio::find(window, DeviceKind::Net).ok_or("is not there")?;
        let agreed = registers.negotiate(MAC_GIVEN | EVENT_INDEX)?;
        if agreed & MAC_GIVEN == 0 {
            return Err("has no address");
        }
        let event_index = agreed & EVENT_INDEX != 0;
        let received = RECEIVED.take().ok_or("is in use")?;
        let sent = SENT.take().ok_or("is in use")?;
        let mut net = Self {
            mac: core::array::from_fn(|at| registers.config_u8(at as u64)),
            receiver: Receiver::new(registers, received, event_index)?,
            sender: Sender::new(registers, sent, event_index)?,
        };
        registers.start();
        net.kick();
        Ok(net)
    }

    /// Its hardware address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Whether a frame has come in.
    pub fn has_received(&self) -> bool {
        self.receiver.queue.has_completions()
    }

    /// Tells the device of what changed since the last call.
    pub fn kick(&mut self) {
        self.receiver.queue.kick();
        self.sender.queue.kick();
    }

    /// Times the device completed what it did not have.
    pub fn faults(&self) -> u64 {
        self.receiver.queue.faults() + self.sender.queue.faults()
    }
}

impl Receiver {
    fn new(
        registers: Registers,
        memory: &'static mut Memory,
        event_index: bool,
    ) -> Result<Self, &'static str> {
        let Memory { rings, buffers } = memory;
        let mut queue = Queue::new(rings, registers, RECEIVE, event_index)?;
        for (at, buffer) in (0..).zip(buffers.iter_mut()) {
            queue.describe(at, &Piece::written_by_device(buffer, BUFFER_BYTES), None);
            queue.offer(at);
        }
        Ok(Self { queue, buffers })
    }
}

impl Sender {
    fn new(
        registers: Registers,
        memory: &'static mut Memory,
        event_index: bool,
    ) -> Result<Self, &'static str> {
        let Memory { rings, buffers } = memory;
        let queue = Queue::new(rings, registers, SEND, event_index)?;
        Ok(Self { queue, buffers, free: u32::MAX })
    }

    /// Takes back what was sent. False when all buffers are on their way.
    fn has_room(&mut self) -> bool {
        while let Some(sent) = self.queue.take() {
            self.free |= 1 << sent.head;
        }
        self.free != 0
    }
}

/// A frame that came in; its buffer goes back to the device when it was read.
pub struct RxToken<'a> {
    receiver: &'a mut Receiver,
    head: u16,
    length: usize,
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        let buffer = &self.receiver.buffers[usize::from(self.head)];
        let end = self.length.clamp(HEADER_BYTES, BUFFER_BYTES);
        let result = read(&buffer[HEADER_BYTES..end]);
        self.receiver.queue.offer(self.head);
        result
    }
}

/// Room for a frame to go out.
pub struct TxToken<'a>(&'a mut Sender);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let sender = self.0;
        // There is one: tokens are given out while there is, and one at a time.
        let at = sender.free.trailing_zeros().min(BUFFERS as u32 - 1) as u16;
        let end = HEADER_BYTES + length.min(FRAME_BYTES_MAX);
        let buffer = &mut sender.buffers[usize::from(at)];
        buffer[..HEADER_BYTES].fill(0);
        let result = write(&mut buffer[HEADER_BYTES..end]);
        sender.queue.describe(at, &Piece::read_by_device(buffer, end), None);
        if sender.queue.offer(at) {
            sender.free &= !(1 << at);
        }
        result
    }
}

impl phy::Device for Net {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        if !self.sender.has_room() {
            return None;
        }
        let frame = self.receiver.queue.take()?;
        let (head, length) = (frame.head, frame.length as usize);
        let received = RxToken { receiver: &mut self.receiver, head, length };
        Some((received, TxToken(&mut self.sender)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        self.sender.has_room().then_some(TxToken(&mut self.sender))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES_MAX;
        capabilities.max_burst_size = Some(BUFFERS);
        capabilities
    }
}
