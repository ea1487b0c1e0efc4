//! What the guest finds at its ports and addresses.
//!
//! | device | ports | interrupt |
//! | --- | --- | --- |
//! | COM1, a 16550A ([`serial`]) | 0x3f8–0x3ff | 4 |
//!
//! Virtio devices ([`virtio`]) have a page of registers each, where
//! [`virtio::slots`] puts them. Interrupt controllers and the PIT are KVM's.
//! Every other port and address reads as all ones and swallows what is written,
//! as on a machine without a device there.
//!
//! Devices that work by themselves rest while the machine is paused: they are
//! stopped after the vCPUs ([`Devices::pause`]) and go on before them
//! ([`Devices::resume`]).

pub(crate) mod block;
pub(crate) mod console;
mod net;
pub(crate) mod rate_limit;
mod ring;
mod rng;
pub(crate) mod serial;
mod steward;
pub(crate) mod virtio;
mod wait;

use std::path::Path;
use std::sync::Arc;

use ballast_model::{Refusal, RefusalCode, VmSpec};
use kvm_ioctls::VmFd;

use crate::codec::{Decoder, Encoder, Malformed};
use crate::memory::GuestRam;
use block::{Block, Disk, Origin};
use console::port::VirtioConsole;
use console::{Output, Source};
use net::Net;
use rng::Rng;
use serial::{Com1, Com1State};
use steward::Steward;
use virtio::VirtioDevice;
use virtio::mmio::{Transport, starts_or_stops};
use virtio::slots::{SLOTS, Slot, find, slot};
use virtio::state::TransportState;

/// Every device this program emulates.
#[derive(Debug)]
pub(crate) struct Devices {
    pub(crate) com1: Com1,
    /// What COM1 and the virtio console have written.
    pub(crate) console: Arc<Output>,
    hvc: Arc<VirtioConsole>,
    disks: Vec<Arc<Block>>,
    steward: Steward,
    /// By slot.
    virtio: Vec<Arc<Transport>>,
}

/// What of them a migration carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevicesState {
    pub(crate) com1: Com1State,
    /// By slot; empty in states of before there were any.
    virtio: Vec<TransportState>,
}

/// How a machine comes to its first instruction here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// At its kernel's entry: everything it needs must be free now.
    Boot,
    /// By loading a state that was saved here or elsewhere: who saved it may still have what only
    /// one can have, and gives it up before the state is loaded.
    Restore,
    /// The same, with a state that a migration brings: local disks come with it.
    Arrival,
}

/// The virtio devices of a VM, in the order of their slots: disks, networks,
/// entropy source, console. What each stands on is opened here, so that what
/// cannot be had is known before anything starts.
fn virtio_devices(
    spec: &VmSpec,
    disks: &[Arc<Block>],
    console: &Arc<VirtioConsole>,
    beginning: Beginning,
) -> Result<Vec<Arc<dyn VirtioDevice>>, Refusal> {
    let mut devices: Vec<Arc<dyn VirtioDevice>> = Vec::new();
    devices.extend(disks.iter().map(|disk| Arc::clone(disk) as _));
    for (network, index) in spec.networks.iter().zip(0..) {
        devices.push(Arc::new(Net::new(&spec.id, index, network, beginning)?));
    }
    devices.push(Arc::new(Rng::default()));
    devices.push(Arc::clone(console) as _);
    Ok(devices)
}

impl Devices {
    /// All devices of a VM, in reset. Its local disks are beneath `disk_root`.
    ///
    /// # Errors
    /// Those of the devices, naming what they lack; `HostFailure` for KVM.
    pub(crate) fn new(
        vm: &Arc<VmFd>,
        memory: &GuestRam,
        spec: &VmSpec,
        disk_root: &Path,
        beginning: Beginning,
    ) -> Result<Self, Refusal> {
        let disks = spec.disks.iter().enumerate();
        let origin = match beginning {
            Beginning::Arrival => Origin::Arriving(&spec.id),
            Beginning::Boot | Beginning::Restore => Origin::Here,
        };
        let disks = disks
            .map(|(number, disk)| {
                Block::open(&spec.id, number, disk, disk_root, origin).map(Arc::new)
            })
            .collect::<Result<Vec<_>, _>>()?;
        if beginning == Beginning::Boot {
            disks.iter().try_for_each(|disk| disk.acquire())?;
        }
        let console = Arc::new(Output::default());
        let hvc = Arc::new(VirtioConsole::new(&console)?);
        let devices = virtio_devices(spec, &disks, &hvc, beginning)?;
        if devices.len() > SLOTS {
            return Err(Refusal::new(
                RefusalCode::InvalidArgument,
                format!("VM {} has {} devices", spec.id, devices.len()),
                "give it fewer disks or networks",
            ));
        }
        let mut virtio = Vec::with_capacity(devices.len());
        for (number, device) in devices.into_iter().enumerate() {
            let transport = Transport::new(device, slot(number), memory.clone())?;
            transport.connect(vm)?;
            virtio.push(Arc::new(transport));
        }
        let com1 = Com1::new(vm, &console);
        Ok(Self { com1, console, hvc, disks, steward: Steward::start()?, virtio })
    }

    /// Where the guest's virtio devices stand.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.virtio.iter().map(|transport| transport.slot())
    }

    /// Has every device finish what it has begun and rest. The vCPUs are parked. Idempotent.
    pub(crate) fn pause(&self) {
        self.virtio.iter().for_each(|transport| transport.pause());
    }

    /// Has every device that worked go on where it stood. The vCPUs do not run yet. Idempotent.
    ///
    /// A device that cannot is marked broken, for its driver to see: the guest
    /// is better off with one device less than not at all.
    pub(crate) fn resume(&self) {
        self.virtio.iter().for_each(|transport| transport.resume());
    }

    /// The disks that go along when the VM moves, with their numbers.
    pub(crate) fn local_disks(&self) -> impl Iterator<Item = (u16, &Arc<Disk>)> {
        let numbered = (0..).zip(self.disks.iter().map(|block| block.disk()));
        numbered.filter(|(_, disk)| disk.is_local())
    }

    /// Makes the disks this machine's, before it runs. Idempotent.
    ///
    /// # Errors
    /// `Conflict` naming a disk and who has it; then those before it are this machine's.
    pub(crate) fn acquire_disks(&self) -> Result<(), Refusal> {
        self.disks.iter().try_for_each(|disk| disk.acquire())
    }

    /// Gives the disks away, with all that was written to them. The machine is paused. Idempotent.
    ///
    /// # Errors
    /// `HostFailure` naming a disk that does not take what was written; it is kept.
    pub(crate) fn release_disks(&self) -> Result<(), Refusal> {
        self.disks.iter().try_for_each(|disk| disk.release())
    }

    /// Writes out what the host still keeps for the disks, while the guest runs:
    /// what is left for [`release_disks`](Self::release_disks) is little then.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn flush_disks(&self) -> Result<(), Refusal> {
        self.disks.iter().try_for_each(|disk| disk.flush())
    }

    /// Types at the port the guest spoke from last; how many bytes it took.
    pub(crate) fn type_at_console(&self, bytes: &[u8]) -> usize {
        match self.console.last() {
            Source::Com1 => self.com1.input(bytes),
            Source::Virtio => self.hvc.input(bytes),
        }
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
    pub(crate) fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.transport(address) {
            Some((transport, offset)) => transport.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes to an address that is not memory.
    pub(crate) fn mmio_write(&self, address: u64, data: &[u8]) {
        let Some((transport, offset)) = self.transport(address) else { return };
        if starts_or_stops(offset, data) {
            let (transport, data) = (Arc::clone(transport), data.to_vec());
            self.steward.run(move || transport.write(offset, &data));
        } else {
            transport.write(offset, data);
        }
    }

    fn transport(&self, address: u64) -> Option<(&Arc<Transport>, u64)> {
        let (number, offset) = find(address)?;
        Some((self.virtio.get(number)?, offset))
    }

    /// The state of devices that rest.
    pub(crate) fn save(&self) -> DevicesState {
        let virtio = self.virtio.iter().map(|transport| transport.save()).collect();
        DevicesState { com1: self.com1.save(), virtio }
    }

    /// Adds what has come for the guest since they were saved.
    pub(crate) fn save_arrived(&self, state: &mut DevicesState) {
        for (transport, state) in self.virtio.iter().zip(&mut state.virtio) {
            transport.save_arrived(state);
        }
    }

    /// Before the interrupt controllers are loaded: a device may raise its line while it is.
    ///
    /// # Errors
    /// `InvalidArgument` for a state no device can be in, `Incompatible` for one of other devices.
    pub(crate) fn load(&self, state: &DevicesState) -> Result<(), Refusal> {
        self.com1.load(&state.com1)?;
        // A state of before there were virtio devices: its guest finds them in reset.
        if state.virtio.is_empty() {
            return Ok(());
        }
        if state.virtio.len() != self.virtio.len() {
            return Err(Refusal::new(
                RefusalCode::Incompatible,
                format!(
                    "the saved state has {} virtio devices, the machine {}",
                    state.virtio.len(),
                    self.virtio.len()
                ),
                "give both sides the same VM specification and the same version",
            ));
        }
        let mut pairs = self.virtio.iter().zip(&state.virtio);
        pairs.try_for_each(|(transport, state)| transport.load(state))
    }
}

impl DevicesState {
    pub(crate) fn encode(&self, to: &mut Encoder) {
        self.com1.encode(to);
        to.count(self.virtio.len());
        for transport in &self.virtio {
            transport.encode(to);
        }
    }

    /// Decodes a state of this version of the machine's state; virtio devices came with the second.
    pub(crate) fn decode(from: &mut Decoder<'_>, version: u16) -> Result<Self, Malformed> {
        let com1 = Com1State::decode(from)?;
        let count = if version < 2 { 0 } else { from.count(SLOTS, "the virtio devices")? };
        let virtio = (0..count).map(|_| TransportState::decode(from)).collect::<Result<_, _>>()?;
        Ok(Self { com1, virtio })
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
