//! The guest on the network: TCP by smoltcp, an echo service, a request counter.
//!
//! The echo service gives bytes back. The counter answers each line, a number
//! of the client's own, with that number and a count that goes up by one for
//! every line anybody sent since the guest began: `17\n` → `17 4711\n`. So a
//! client can tell a lost, a repeated and a forgotten request apart.
//!
//! Nobody waits: frames are looked for whenever the guest passes by, every
//! half millisecond while there is traffic and every ten without.

use core::fmt::Write;

use smoltcp::iface::SocketStorage;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address};

use crate::params::Params;
use crate::timeline::Nanos;
use crate::virtio::Once;
use crate::virtio::mmio::Window;
use crate::virtio::net::Net;

/// Connections of each service at a time.
const CONNECTIONS: usize = 4;
const SOCKETS: usize = 2 * CONNECTIONS;
const BUFFER_BYTES: usize = 16 << 10;
/// A number has at most 20 digits, and then comes the end of the line.
const LINE_BYTES_MAX: usize = 21;
/// Two numbers of 20 digits, a space, the end of the line.
const ANSWER_BYTES_MAX: usize = 42;

const LOOK_AGAIN: Nanos = 500_000;
const LOOK_AGAIN_IDLE: Nanos = 10_000_000;
/// After a frame, more may follow.
const BUSY_FOR: Nanos = 200_000_000;
/// Frames to take, and rounds of sending, before the rest of the guest has its turn.
const FRAMES_MAX: usize = 4;
/// A client that is gone without a word frees its connection after this time. Far longer than
/// any switchover.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const GONE_AFTER: Duration = Duration::from_secs(600);

/// Receive and send buffer of each connection; apart, because zeroes take no room in the file.
static BUFFERS: Once<[[[u8; BUFFER_BYTES]; 2]; SOCKETS]> =
    Once::new([[[0; BUFFER_BYTES]; 2]; SOCKETS]);
static STORAGE: Once<[SocketStorage<'static>; SOCKETS]> =
    Once::new([SocketStorage::EMPTY; SOCKETS]);

/// The network card with everything above it.
pub struct Network {
    card: Net,
    interface: Interface,
    sockets: SocketSet<'static>,
    services: [(SocketHandle, Service); SOCKETS],
    busy_until: Nanos,
    /// When the protocols have something to do without any frame coming in.
    due: Nanos,
    requests: u64,
    faults_seen: u64,
}

#[derive(Debug, Clone, Copy)]
enum Service {
    Echo { port: u16 },
    Count { port: u16 },
}

impl Network {
    /// Finds the network card and takes its place in the network.
    pub fn start(params: &Params<'_>, window: Window, now: Nanos) -> Result<Self, &'static str> {
        let (address, prefix) = params.ip.ok_or("has no address: give ip=")?;
        let mut card = Net::start(window)?;
        let mac = card.mac();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        config.random_seed = params.seed
            ^ u64::from_be_bytes([0, 0, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]]);
        let mut interface = Interface::new(config, &mut card, instant(now));
        interface.update_ip_addrs(|addresses| {
            // There is room for one.
            let _ = addresses.push(IpCidr::new(address.into(), prefix));
        });
        if let Some(gateway) = params.gateway {
            let gateway: Ipv4Address = gateway;
            interface
                .routes_mut()
                .add_default_ipv4_route(gateway)
                .map_err(|_| "has no room for a route")?;
        }
        let mut sockets = SocketSet::new(&mut STORAGE.take().ok_or("is in use")?[..]);
        let mut buffers = BUFFERS.take().ok_or("is in use")?.iter_mut();
        let mut socket = |service| {
            let [receive, send] = buffers.next()?;
            let buffers = (SocketBuffer::new(&mut receive[..]), SocketBuffer::new(&mut send[..]));
            let mut socket = Socket::new(buffers.0, buffers.1);
            socket.set_nagle_enabled(false);
            socket.set_ack_delay(None);
            socket.set_keep_alive(Some(KEEP_ALIVE));
            socket.set_timeout(Some(GONE_AFTER));
            Some((sockets.add(socket), service))
        };
        let mut services = [None; SOCKETS];
        for (at, slot) in services.iter_mut().enumerate() {
            *slot = socket(if at < CONNECTIONS {
                Service::Echo { port: params.echo_port }
            } else {
                Service::Count { port: params.count_port }
            });
        }
        let services = flatten(services).ok_or("has too few buffers")?;
        Ok(Self {
            card,
            interface,
            sockets,
            services,
            busy_until: now + BUSY_FOR,
            due: now,
            requests: 0,
            faults_seen: 0,
        })
    }

    /// The card's hardware address.
    pub fn mac(&self) -> [u8; 6] {
        self.card.mac()
    }

    /// Requests counted since the guest began.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Whether the card did something twice since the last call.
    pub fn take_fault(&mut self) -> bool {
        let faults = self.card.faults();
        core::mem::replace(&mut self.faults_seen, faults) != faults
    }

    /// When to step again at the latest.
    pub fn wake(&self, now: Nanos) -> Nanos {
        let look = if now < self.busy_until { LOOK_AGAIN } else { LOOK_AGAIN_IDLE };
        self.due.min(now + look)
    }

    /// Takes some frames that have come in, serves, and sends. True when there may be more to do
    /// at once.
    pub fn step(&mut self, now: Nanos) -> bool {
        let received = self.card.has_received();
        if !received && now < self.due {
            return false;
        }
        if received {
            self.busy_until = now + BUSY_FOR;
        }
        let instant = instant(now);
        for _ in 0..FRAMES_MAX {
            let result =
                self.interface.poll_ingress_single(instant, &mut self.card, &mut self.sockets);
            if matches!(result, PollIngressSingleResult::None) {
                break;
            }
        }
        for (handle, service) in self.services {
            serve(self.sockets.get_mut(handle), service, &mut self.requests);
        }
        self.interface.poll_egress(instant, &mut self.card, &mut self.sockets);
        self.card.kick();
        let delay = self.interface.poll_delay(instant, &self.sockets);
        self.due = delay.map_or(Nanos::MAX, |delay| now + delay.total_micros() * 1_000);
        self.card.has_received()
    }
}

fn serve(socket: &mut Socket<'_>, service: Service, requests: &mut u64) {
    let (Service::Echo { port } | Service::Count { port }) = service;
    if socket.state() == State::Closed {
        // The port is not 0 and the socket is closed: it cannot fail.
        let _ = socket.listen(port);
        return;
    }
    match service {
        Service::Echo { .. } => echo(socket),
        Service::Count { .. } => count(socket, requests),
    }
    // The client has said all it had to say, and has its answers.
    if socket.state() == State::CloseWait && !socket.can_recv() {
        socket.close();
    }
}

fn echo(socket: &mut Socket<'_>) {
    let mut bytes = [0; 1024];
    let room = socket.send_capacity() - socket.send_queue();
    let piece = &mut bytes[..room.min(1024)];
    if let Ok(length @ 1..) = socket.recv_slice(piece) {
        // It fits: there was room for as much.
        let _ = socket.send_slice(&piece[..length]);
    }
}

/// Answers whole lines, as many as there is room for.
fn count(socket: &mut Socket<'_>, requests: &mut u64) {
    while socket.send_capacity() - socket.send_queue() >= ANSWER_BYTES_MAX {
        let mut line = [0; LINE_BYTES_MAX];
        let Ok(seen) = socket.peek_slice(&mut line) else { return };
        let Some(end) = line[..seen].iter().position(|&byte| byte == b'\n') else {
            // Too long, or it will never end.
            if seen == LINE_BYTES_MAX || socket.state() == State::CloseWait {
                socket.abort();
            }
            return;
        };
        let number =
            core::str::from_utf8(&line[..end]).ok().and_then(|text| text.parse::<u64>().ok());
        let Some(number) = number else {
            socket.abort();
            return;
        };
        *requests += 1;
        let mut answer = Answer::default();
        // It fits: two numbers have at most 40 digits.
        let _ = writeln!(answer, "{number} {requests}");
        let _ = socket.recv_slice(&mut line[..=end]);
        let _ = socket.send_slice(&answer.bytes[..answer.used]);
    }
}

struct Answer {
    bytes: [u8; ANSWER_BYTES_MAX],
    used: usize,
}

impl Default for Answer {
    fn default() -> Self {
        Self { bytes: [0; ANSWER_BYTES_MAX], used: 0 }
    }
}

impl Write for Answer {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.get_mut(self.used..self.used + text.len()).ok_or(core::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.used += text.len();
        Ok(())
    }
}

fn flatten<T: Copy, const N: usize>(options: [Option<T>; N]) -> Option<[T; N]> {
    let first = options[0]?;
    let mut values = [first; N];
    for (value, option) in values.iter_mut().zip(options) {
        *value = option?;
    }
    Some(values)
}

fn instant(now: Nanos) -> Instant {
    Instant::from_micros((now / 1_000) as i64)
}
