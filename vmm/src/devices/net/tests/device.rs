//! The whole device behind its transport, with a pair of sockets in place of a tap.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ballast_model::hardware::{Attach, RateLimit};
use ballast_model::{MacAddress, NetworkSpec, VmId};
use rustix::net::{SendFlags, send};
use virtio_bindings::virtio_net as v;
use vm_memory::{Bytes, GuestAddress};

use super::{cable, frame, receive};
use crate::devices::net::port::Port;
use crate::devices::net::tap::{HEADER_BYTES, Tap};
use crate::devices::net::{Net, announce};
use crate::devices::virtio::mmio::Transport;
use crate::devices::virtio::slots::slot;
use crate::devices::virtio::testing::{Ring, drive, memory, notify, read, wait_for};
use crate::memory::GuestRam;

const BUFFERS: u64 = 0x10_0000;
const MEMORY_BYTES: usize = 4 << 20;

struct Guest {
    memory: GuestRam,
    transport: Transport,
    receive: Ring,
    transmit: Ring,
    control: Ring,
}

fn vm() -> VmId {
    "web-1".parse().unwrap()
}

fn mac() -> MacAddress {
    MacAddress::derived(&vm(), 0)
}

fn guest() -> (Guest, OwnedFd) {
    let memory = memory(MEMORY_BYTES);
    let (tap, host) = cable();
    let attach = Attach::Bridge("test".to_owned());
    let spec = NetworkSpec { attach, mac: mac(), limit: RateLimit::default() };
    let net = Net::on(Port::of_tap(&vm(), Tap::of_socket(tap)), 0, &spec);
    let transport = Transport::new(Arc::new(net), slot(0), memory.clone()).unwrap();
    let ring = |number: u64| Ring::new(&memory, 0x1_0000 + number * 0x4000, 64);
    let (receive, transmit, control) = (ring(0), ring(1), ring(2));
    (Guest { memory, transport, receive, transmit, control }, host)
}

impl Guest {
    fn drive(&self, without: u64) {
        drive(&self.transport, without, &[&self.receive, &self.transmit, &self.control]);
    }

    /// Gives the device `count` buffers of 2 KiB.
    fn offer(&mut self, count: u16) {
        for number in 0..count {
            let address = BUFFERS + u64::from(number) * 2048;
            self.receive.chain(number, &[(address, 2048, true)]);
        }
        notify(&self.transport, 0);
    }

    fn send(&mut self, bytes: &[u8]) {
        let at = BUFFERS + 0x10_0000;
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        self.transmit.chain(0, &[(at, bytes.len().try_into().unwrap(), false)]);
        notify(&self.transport, 1);
        assert_eq!(self.transmit.wait_used(), (0, 0));
    }
}

fn wait_frame(host: &OwnedFd) -> Vec<u8> {
    wait_for("a frame", || receive(host))
}

#[test]
fn frames_go_both_ways_also_after_a_stop() {
    let (mut guest, host) = guest();
    guest.drive(0);
    guest.offer(8);
    let sent = frame(500);
    guest.send(&sent);
    assert_eq!(wait_frame(&host), sent);
    send(&host, &sent, SendFlags::empty()).unwrap();
    assert_eq!(guest.receive.wait_used(), (0, 500));
    guest.transport.pause();
    // What comes now waits at the host.
    send(&host, &frame(60), SendFlags::empty()).unwrap();
    assert_eq!(guest.receive.take_used(), None);
    guest.transport.resume();
    assert_eq!(guest.receive.wait_used(), (1, 60), "in the next buffer");
    guest.send(&frame(61));
    assert_eq!(wait_frame(&host).len(), 61);
}

#[test]
fn a_loaded_device_announces_itself_and_a_resumed_one_does_not() {
    let (mut source, _) = guest();
    source.drive(0);
    source.offer(8);
    source.transport.pause();
    let state = source.transport.save();

    let (destination, host) = guest();
    let mut memory = vec![0; MEMORY_BYTES];
    source.memory.read_slice(&mut memory, GuestAddress(0)).unwrap();
    destination.memory.write_slice(&memory, GuestAddress(0)).unwrap();
    send(&host, &frame(99), SendFlags::empty()).unwrap();
    destination.transport.load(&state).unwrap();
    assert!(receive(&host).is_none(), "not before it goes on");
    destination.transport.resume();
    assert_eq!(wait_frame(&host), announce::frame(mac()));
    assert_eq!(wait_frame(&host), announce::frame(mac()), "in several rounds");
    let config = |transport: &Transport| read(transport, 0x104).to_le_bytes();
    let announce = u8::try_from(v::VIRTIO_NET_S_ANNOUNCE | v::VIRTIO_NET_S_LINK_UP).unwrap();
    assert_eq!(config(&destination.transport)[2], announce, "and its guest is asked to");
    // The guest has done so.
    let mut control = Ring { avail: 0, ..destination.control };
    destination.memory.write_slice(&[3, 0], GuestAddress(0x8000)).unwrap();
    control.chain(0, &[(0x8000, 2, false), (0x9000, 1, true)]);
    notify(&destination.transport, 2);
    assert_eq!(control.wait_used(), (0, 1));
    assert_eq!(config(&destination.transport)[2], 1);
    let mut receive_ring = Ring { used: 0, ..source.receive };
    receive_ring.memory = destination.memory.clone();
    send(&host, &frame(70), SendFlags::empty()).unwrap();
    assert_eq!(receive_ring.wait_used().1, 70, "what came before was the source's");
}

/// The guest's memory, and what it knows of its receive queue, at another device.
fn arrives(source: &Guest, destination: &Guest) -> Ring {
    let mut memory = vec![0; MEMORY_BYTES];
    source.memory.read_slice(&mut memory, GuestAddress(0)).unwrap();
    destination.memory.write_slice(&memory, GuestAddress(0)).unwrap();
    let Ring { base, size, avail, .. } = source.receive;
    Ring { memory: destination.memory.clone(), base, size, avail, used: 0 }
}

#[test]
fn what_comes_while_the_guest_stands_still_goes_where_it_goes_on() {
    let (mut source, at_source) = guest();
    source.drive(0);
    source.offer(8);
    source.transport.pause();
    let mut state = source.transport.save();
    let early = state.clone();
    for bytes in [60, 61, 62] {
        send(&at_source, &frame(bytes), SendFlags::empty()).unwrap();
    }
    source.transport.save_arrived(&mut state);

    let (destination, host) = guest();
    let mut receive_ring = arrives(&source, &destination);
    send(&host, &frame(99), SendFlags::empty()).unwrap();
    destination.transport.load(&state).unwrap();
    destination.transport.resume();
    send(&host, &frame(63), SendFlags::empty()).unwrap();
    for (number, bytes) in [60, 61, 62, 63].into_iter().enumerate() {
        assert_eq!(receive_ring.wait_used(), (number.try_into().unwrap(), bytes));
    }

    // The migration has failed: its source goes on with the same.
    source.transport.resume();
    send(&at_source, &frame(64), SendFlags::empty()).unwrap();
    for bytes in [60, 61, 62, 64] {
        assert_eq!(source.receive.wait_used().1, bytes);
    }
    let (elsewhere, _host) = guest();
    arrives(&source, &elsewhere);
    elsewhere.transport.load(&early).unwrap();
}

#[test]
fn the_guest_reads_its_address_and_its_link() {
    let (guest, _host) = guest();
    let mut config = [0xee; 12];
    guest.transport.read(0x100, &mut config);
    assert_eq!(config[..6], mac().0);
    assert_eq!(config[6..], [1, 0, 1, 0, 0, 0]);
}

#[test]
fn a_guest_that_breaks_its_queue_breaks_the_device_only() {
    let (mut guest, host) = guest();
    guest.drive(1 << v::VIRTIO_NET_F_MRG_RXBUF);
    guest.receive.chain(0, &[(MEMORY_BYTES as u64, 100, true)]);
    notify(&guest.transport, 0);
    send(&host, &frame(HEADER_BYTES + 60), SendFlags::empty()).unwrap();
    wait_for("DEVICE_NEEDS_RESET", || (read(&guest.transport, 0x70) & 64 != 0).then_some(()));
    guest.receive = Ring::new(&guest.memory, 0x1_0000, 64);
    guest.memory.write_slice(&[0; 0x1_0000], GuestAddress(0x1_0000)).unwrap();
    guest.drive(0);
    guest.transmit = Ring::new(&guest.memory, 0x1_4000, 64);
    guest.send(&frame(60));
    assert_eq!(wait_frame(&host).len(), 60, "after a reset it works again");
}
