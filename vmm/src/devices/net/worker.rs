//! The device's one thread: waits for the tap, the guest, the clock and the end.
//!
//! Descriptors are watched edge-triggered: an event only says that a queue is
//! worth a turn, and a queue has turns until it says that it is idle. So no
//! event needs to be read away, and none that came early is lost.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ballast_model::hardware::RateLimit;
use virtio_bindings::virtio_net as v;
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::announce::{self, Rounds};
use super::backlog::Backlog;
use super::control::Control;
use super::rx::Rx;
use super::tap::{HEADER_BYTES, Tap};
use super::tx::Tx;
use super::{
    CONTROL, FRAME_BYTES_MAX, RECEIVE, Shared, TRANSMIT, Turn, Turned, has, lock, offloads,
};
use crate::devices::rate_limit::RateLimiter;
use crate::devices::ring::{Broken, Ring};
use crate::devices::virtio::Activation;

/// How long until a tap that could not be had is tried again.
const RECONNECT: Duration = Duration::from_millis(200);
const EVENTS_MAX: usize = 8;
const STOP: u64 = 100;
const TAP: u64 = 101;
/// An Ethernet header with a VLAN tag.
const ETHERNET_BYTES: usize = 18;

/// What the thread is given.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) context: Activation,
    pub(super) shared: Arc<Shared>,
    pub(super) limit: RateLimit,
    pub(super) stop: EventFd,
    /// The guest's address may be elsewhere in the eyes of the bridges.
    pub(super) announce: bool,
}

/// When a queue has its next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    OnEvent,
    At(Instant),
}

/// The thread's own.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    context: &'a Activation,
    shared: &'a Shared,
    epoll: Epoll,
    tap: Option<Arc<Tap>>,
    reconnect: Option<Instant>,
    rounds: Rounds,
    rx: Option<Rx>,
    tx: Option<Tx>,
    control: Option<Control>,
    /// By the queue's number.
    due: [Due; 3],
}

impl Worker<'_> {
    /// Works until told to stop; where the queues stand then.
    pub(super) fn run(mut work: Work) -> Vec<QueueState> {
        let mut states: Vec<_> = work.context.queues.iter().map(Queue::state).collect();
        let queues = std::mem::take(&mut work.context.queues);
        let worker = Worker::new(&work, queues);
        match worker {
            Ok(mut worker) => {
                if let Err(why) = worker.work() {
                    work.context.interrupt.broken(why);
                    wait_for(&work.stop);
                }
                worker.finish(&mut states);
            }
            Err(error) => {
                work.context.interrupt.broken(error);
                wait_for(&work.stop);
            }
        }
        states
    }
}

impl<'a> Worker<'a> {
    fn new(work: &'a Work, queues: Vec<Queue>) -> io::Result<Self> {
        let now = Instant::now();
        let features = work.context.features;
        let epoll = Epoll::new()?;
        watch(&epoll, work.stop.as_raw_fd(), STOP)?;
        for (kick, number) in work.context.kicks.iter().zip(0..) {
            watch(&epoll, kick.as_raw_fd(), number)?;
        }
        let limiter = || RateLimiter::new(&work.limit, now);
        let mut rings = queues.into_iter().map(|queue| queue.ready().then(|| Ring::new(queue)));
        let mut ring = || rings.next().flatten();
        let (receive, transmit, control) = (ring(), ring(), ring());
        let mergeable = has(features, v::VIRTIO_NET_F_MRG_RXBUF);
        let mut worker = Self {
            context: &work.context,
            shared: &work.shared,
            epoll,
            tap: None,
            reconnect: None,
            rounds: if work.announce { Rounds::begin(now) } else { Rounds::default() },
            rx: receive.map(|ring| Rx::new(ring, limiter(), mergeable)),
            tx: transmit.map(|ring| Tx::new(ring, limiter())),
            control: control.map(Control::new),
            due: [Due::At(now); 3],
        };
        if let Some(rx) = &mut worker.rx {
            rx.deliver_first(lock(&work.shared.backlog).take(features));
        }
        worker.connect(now)?;
        if work.announce && has(features, v::VIRTIO_NET_F_GUEST_ANNOUNCE) {
            worker.shared.announce.store(true, Ordering::Release);
            worker.context.interrupt.config();
        }
        Ok(worker)
    }

    fn work(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        loop {
            let count = match self.epoll.wait(self.patience(Instant::now()), &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            let now = Instant::now();
            for event in &events[..count] {
                match event.data() {
                    STOP => return Ok(()),
                    TAP => self.wake(RECEIVE, now),
                    number => self.wake(usize::try_from(number).unwrap_or(CONTROL), now),
                }
            }
            if self.reconnect.is_some_and(|at| at <= now) {
                self.connect(now)?;
            }
            if self.rounds.due(now) {
                self.announce();
            }
            self.turns(now).map_err(io::Error::other)?;
        }
    }

    /// How long to wait for events, in milliseconds; -1 for ever.
    fn patience(&self, now: Instant) -> i32 {
        let turns = self.due.iter().filter_map(|due| match due {
            Due::At(at) => Some(*at),
            Due::OnEvent => None,
        });
        let next = turns.chain(self.reconnect).chain(self.rounds.next()).min();
        next.map_or(-1, |at| {
            // Rounded up: to wake early would only be to wait again.
            let wait = at.saturating_duration_since(now).as_micros().div_ceil(1000);
            i32::try_from(wait).unwrap_or(i32::MAX)
        })
    }

    /// A queue that waits for an event has had one.
    fn wake(&mut self, queue: usize, now: Instant) {
        if self.due[queue] == Due::OnEvent {
            self.due[queue] = Due::At(now);
        }
    }

    fn turns(&mut self, now: Instant) -> Result<(), Broken> {
        let memory = &self.context.memory;
        let tap = self.tap.clone();
        let tap = tap.as_ref().map(|tap| tap.as_fd());
        let is_due = |due: Due| matches!(due, Due::At(at) if at <= now);
        if is_due(self.due[RECEIVE]) {
            let turned = match &mut self.rx {
                Some(rx) => rx.turn(memory, tap, now)?,
                None => Ok(Turned::NOTHING),
            };
            match turned {
                Ok(turned) => self.took(RECEIVE, turned, now),
                Err(error) => self.lost(&error, now),
            }
        }
        if is_due(self.due[TRANSMIT]) {
            let turned = self.tx.as_mut().map(|tx| tx.turn(memory, tap, now)).transpose()?;
            self.took(TRANSMIT, turned.unwrap_or(Turned::NOTHING), now);
        }
        if is_due(self.due[CONTROL]) {
            let announce = &self.shared.announce;
            let turned = self.control.as_mut().map(|it| it.turn(memory, announce)).transpose()?;
            self.took(CONTROL, turned.unwrap_or(Turned::NOTHING), now);
        }
        Ok(())
    }

    fn took(&mut self, queue: usize, turned: Turned, now: Instant) {
        self.due[queue] = match turned.turn {
            Turn::Idle => Due::OnEvent,
            Turn::Again => Due::At(now),
            Turn::NotBefore(at) => Due::At(at),
        };
        if turned.interrupt {
            self.context.interrupt.used(queue);
        }
    }

    fn connect(&mut self, now: Instant) -> io::Result<()> {
        self.reconnect = None;
        match self.shared.port.connect() {
            Ok(tap) => {
                if let Err(error) = tap.set_offloads(offloads(self.context.features)) {
                    tracing::warn!(%error, "the tap does not take the guest's offloads");
                }
                if let Some(rx) = &mut self.rx {
                    rx.expect(longest(self.context.features, tap.mtu()));
                }
                watch(&self.epoll, tap.as_fd().as_raw_fd(), TAP)?;
                self.tap = Some(tap);
                self.wake(RECEIVE, now);
                self.link(true);
            }
            Err(why) => {
                tracing::debug!(%why, "a network device is unplugged");
                self.reconnect = Some(now + RECONNECT);
                self.link(false);
            }
        }
        Ok(())
    }

    /// The tap is gone: somebody has removed the interface.
    fn lost(&mut self, error: &io::Error, now: Instant) {
        tracing::warn!(%error, "a network device has lost its tap");
        self.tap = None;
        self.shared.port.lost();
        self.due[RECEIVE] = Due::OnEvent;
        self.reconnect = Some(now + RECONNECT);
        self.link(false);
    }

    fn link(&self, up: bool) {
        let before = self.shared.link_up.swap(up, Ordering::AcqRel);
        if before != up && has(self.context.features, v::VIRTIO_NET_F_STATUS) {
            self.context.interrupt.config();
        }
    }

    fn announce(&self) {
        let Some(tap) = &self.tap else { return };
        let frame = announce::frame(self.shared.mac);
        // The next round is the answer to a tap that does not take it.
        if let Err(error) = rustix::io::write(tap, &frame) {
            tracing::debug!(%error, "an announcement was not sent");
        }
    }

    fn finish(mut self, states: &mut [QueueState]) {
        if let Some(rx) = &mut self.rx {
            let undelivered = rx.take_undelivered();
            *lock(&self.shared.backlog) = Backlog::new(self.context.features, undelivered);
        }
        let rx = self.rx.map(Rx::finish);
        let tx = self.tx.map(Tx::finish);
        let dropped = |side: &Option<(Ring, u64)>| side.as_ref().map_or(0, |(_, dropped)| *dropped);
        tracing::debug!(rx_dropped = dropped(&rx), tx_dropped = dropped(&tx), "network stopped");
        let rings =
            [rx.map(|(ring, _)| ring), tx.map(|(ring, _)| ring), self.control.map(Control::finish)];
        for (state, ring) in states.iter_mut().zip(rings) {
            if let Some(ring) = ring {
                *state = ring.state();
            }
        }
    }
}

impl Turned {
    const NOTHING: Self = Self { turn: Turn::Idle, interrupt: false };
}

/// The longest frame the host will hand over, in bytes, with its header.
fn longest(features: u64, mtu: usize) -> usize {
    let segments = [v::VIRTIO_NET_F_GUEST_TSO4, v::VIRTIO_NET_F_GUEST_TSO6];
    if segments.into_iter().any(|feature| has(features, feature)) {
        FRAME_BYTES_MAX
    } else {
        HEADER_BYTES + ETHERNET_BYTES + mtu
    }
}

fn watch(epoll: &Epoll, fd: RawFd, data: u64) -> io::Result<()> {
    let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, data);
    epoll.ctl(ControlOperation::Add, fd, event)
}

/// Blocks until the event has happened.
fn wait_for(event: &EventFd) {
    // SAFETY: the descriptor is open as long as `event` lives.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut polled = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    while matches!(rustix::event::poll(&mut polled, None), Err(rustix::io::Errno::INTR)) {}
}
