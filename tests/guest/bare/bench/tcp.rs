//! One TCP connection, by smoltcp: bytes one way.

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use super::{Done, Load};
use crate::layout::Layout;
use crate::params::Params;
use crate::timeline::Nanos;
use crate::virtio::Once;
use crate::virtio::mmio::Window;
use crate::virtio::net::Net;

/// Receive and send buffer.
const BUFFER_BYTES: usize = 1 << 20;

static STORAGE: Once<[SocketStorage<'static>; 1]> = Once::new([SocketStorage::EMPTY]);

/// A connection under load.
pub struct Tcp {
    card: Net,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    send: bool,
    done: Done,
}

impl Tcp {
    pub fn start(
        send: bool,
        params: &Params<'_>,
        window: Window,
        layout: &Layout,
        now: Nanos,
    ) -> Result<Self, &'static str> {
        let (address, prefix) = params.ip.ok_or("has no address: give ip=")?;
        let mut card = Net::start(window)?;
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(card.mac())));
        let mut interface = Interface::new(config, &mut card, instant(now));
        interface.update_ip_addrs(|addresses| {
            // There is room for one.
            let _ = addresses.push(IpCidr::new(address.into(), prefix));
        });
        let memory = layout.generations.start as usize;
        if memory + 2 * BUFFER_BYTES > layout.end() as usize {
            return Err("needs more memory: give ws_mib=");
        }
        let buffer = |number: usize| {
            let start = core::ptr::with_exposed_provenance_mut(memory + number * BUFFER_BYTES);
            // SAFETY: memory behind the program, which nobody else uses while it measures; each
            // half is taken once.
            SocketBuffer::new(unsafe { core::slice::from_raw_parts_mut(start, BUFFER_BYTES) })
        };
        let mut socket = Socket::new(buffer(0), buffer(1));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.listen(params.echo_port).map_err(|_| "has no such port")?;
        let mut sockets = SocketSet::new(&mut STORAGE.take().ok_or("is in use")?[..]);
        let socket = sockets.add(socket);
        Ok(Self { card, interface, sockets, socket, send, done: Done::default() })
    }
}

impl Load for Tcp {
    fn step(&mut self, now: Nanos) -> Result<Done, &'static str> {
        self.interface.poll(instant(now), &mut self.card, &mut self.sockets);
        let socket = self.sockets.get_mut::<Socket<'_>>(self.socket);
        let moved = if self.send {
            // What is in the buffer is as good as anything.
            socket.send(|room| (room.len(), room.len())).ok()
        } else {
            socket.recv(|bytes| (bytes.len(), bytes.len())).ok()
        };
        if let Some(bytes @ 1..) = moved {
            self.done.operations += 1;
            self.done.bytes += bytes as u64;
        }
        self.card.kick();
        Ok(self.done)
    }
}

fn instant(now: Nanos) -> Instant {
    Instant::from_micros((now / 1_000) as i64)
}
