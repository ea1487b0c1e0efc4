//! What the guest finds at its ports and addresses.
//!
//! | device | ports | interrupt |
//! | --- | --- | --- |
//! | COM1, a 16550A ([`serial`]) | 0x3f8–0x3ff | 4 |
//!
//! Interrupt controllers and the PIT are KVM's. Every other port and address
//! reads as all ones and swallows what is written, as on a machine without a
//! device there.

pub(crate) mod console;
#[allow(dead_code, reason = "its users, the virtio devices, come next")]
pub(crate) mod rate_limit;
pub(crate) mod serial;

use std::sync::Arc;

use ballast_model::Refusal;
use kvm_ioctls::VmFd;

use crate::codec::{Decoder, Encoder, Malformed};
use serial::{Com1, Com1State};

/// Every device this program emulates.
#[derive(Debug)]
pub(crate) struct Devices {
    pub(crate) com1: Com1,
}

/// What of them a migration carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevicesState {
    pub(crate) com1: Com1State,
}

impl Devices {
    pub(crate) fn new(vm: &Arc<VmFd>) -> Self {
        Self { com1: Com1::new(vm) }
    }

    /// The guest reads from a port.
    pub(crate) fn port_read(&self, port: u16, data: &mut [u8]) {
        match serial::register(port) {
            Some(register) => self.com1.read(register, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes to a port.
    pub(crate) fn port_write(&self, port: u16, data: &[u8]) {
        if let Some(register) = serial::register(port) {
            self.com1.write(register, data);
        }
    }

    /// The guest reads from an address that is not memory.
    pub(crate) fn mmio_read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// The guest writes to an address that is not memory.
    pub(crate) fn mmio_write(&self, _address: u64, _data: &[u8]) {}

    pub(crate) fn save(&self) -> DevicesState {
        DevicesState { com1: self.com1.save() }
    }

    /// Before the interrupt controllers are loaded: a device may raise its line while it is.
    ///
    /// # Errors
    /// `InvalidArgument` for a state no device can be in.
    pub(crate) fn load(&self, state: &DevicesState) -> Result<(), Refusal> {
        self.com1.load(&state.com1)
    }
}

impl DevicesState {
    pub(crate) fn encode(&self, to: &mut Encoder) {
        self.com1.encode(to);
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(Self { com1: Com1State::decode(from)? })
    }
}
