//! The saved state of a machine: everything but its memory.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`vcpu`] | registers of one vCPU, and the order they are read and set in |
//! | [`msr`] | model-specific registers |
//! | [`board`] | PIC, IOAPIC, PIT |
//! | [`time`] | the KVM clock and TSC offsets |
//! | [`MachineState`] | all of it with the devices, and its encoding |
//!
//! Saved is only what the guest can see. What the new host supplies itself is
//! not in here: file descriptors, the mapping of memory, memory slots, the
//! CPUID table (compared in the negotiation, so it is the same), the host's
//! TSC, the sizes of KVM's structures.
//!
//! # Order of loading
//!
//! 1. Devices. They may raise an interrupt line while they load; loading the
//!    interrupt controllers after them takes that back.
//! 2. Each vCPU ([`vcpu`]), its local APIC included.
//! 3. PIC and IOAPIC: loading the IOAPIC delivers what it has pending, so the
//!    local APICs must be there (Linux arch/x86/kvm/ioapic.c, `kvm_set_ioapic`;
//!    Firecracker and Cloud Hypervisor load the VM's part after the vCPUs too).
//! 4. PIT (its channel 0 starts to tick when loaded).
//! 5. When the guest is about to run, not before: clock and TSC offsets
//!    ([`time`]), because time goes on between loading and running.
//!
//! # Versioning
//!
//! The encoding starts with a magic number and [`VERSION`]. A field is never
//! changed in place: a new version adds to the end of its part, and this module
//! then reads both. Every size is bounded and checked, whoever sent it.

pub(crate) mod board;
pub(crate) mod msr;
pub(crate) mod time;
pub(crate) mod vcpu;

use ballast_model::vm::VCPUS_MAX;
use ballast_model::{Refusal, RefusalCode};

use crate::codec::{Decoder, Encoder, Malformed};
use crate::devices::DevicesState;
use crate::machine::Machine;
use board::BoardState;
use time::TimeState;
use vcpu::VcpuState;

const MAGIC: u32 = u32::from_le_bytes(*b"BLSM");
/// The version this build writes. It reads version 1 too, which had no virtio devices.
const VERSION: u16 = 2;
/// The most an encoded state may take, in bytes: 64 vCPUs with the largest
/// XSAVE area, and the devices.
pub(crate) const STATE_BYTES_MAX: usize = 16 << 20;

/// Everything of a paused machine but its memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MachineState {
    vcpus: Vec<VcpuState>,
    board: BoardState,
    devices: DevicesState,
    time: TimeState,
}

impl MachineState {
    /// Reads the state of a paused machine. The clock comes first, so that the
    /// time it takes to read the rest is not lost to the guest.
    pub(crate) fn save(machine: &Machine) -> Result<Self, Refusal> {
        let time = TimeState::save(machine)?;
        let mut vcpus = Vec::with_capacity(machine.vcpus.count());
        machine.vcpus.each(|_, fd| {
            vcpus.push(VcpuState::save(fd, &machine.traits)?);
            Ok::<(), Refusal>(())
        })?;
        let board = BoardState::save(&machine.vm)?;
        Ok(Self { vcpus, board, devices: machine.devices.save(), time })
    }

    /// Adds what has come for the guest since.
    pub(crate) fn save_arrived(&mut self, machine: &Machine) {
        machine.devices.save_arrived(&mut self.devices);
    }

    /// Loads it into a paused machine that has not run. Time is left out: see [`start_time`](Self::start_time).
    pub(crate) fn load(&self, machine: &Machine) -> Result<(), Refusal> {
        if self.vcpus.len() != machine.vcpus.count() {
            return Err(Refusal::new(
                RefusalCode::Incompatible,
                format!(
                    "the saved state has {} vCPUs, the machine {}",
                    self.vcpus.len(),
                    machine.vcpus.count()
                ),
                "give both sides the same VM specification",
            ));
        }
        machine.devices.load(&self.devices)?;
        machine.vcpus.each(|place, fd| self.vcpus[place].load(fd, &machine.traits))?;
        self.board.load(&machine.vm)
    }

    /// Sets clock and TSC for a guest that is about to run.
    pub(crate) fn start_time(&self, machine: &Machine) -> Result<(), Refusal> {
        self.time.load(machine)
    }

    /// Forgets how long ago it was saved: the guest's clock goes on where it stood.
    pub(crate) fn go_on_now(&mut self) {
        self.time.go_on_now();
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.u32(MAGIC).u16(VERSION);
        to.count(self.vcpus.len());
        for vcpu in &self.vcpus {
            vcpu.encode(&mut to);
        }
        self.board.encode(&mut to);
        self.devices.encode(&mut to);
        self.time.encode(&mut to);
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        const WHAT: &str = "the saved state's header";
        let mut from = Decoder::new(bytes);
        if from.u32(WHAT)? != MAGIC {
            return Err(Malformed(WHAT));
        }
        let version = from.u16(WHAT)?;
        if !(1..=VERSION).contains(&version) {
            return Err(Malformed("the version of the saved state"));
        }
        let count = from.count(VCPUS_MAX as usize, "the number of vCPUs")?;
        let vcpus = (0..count).map(|_| VcpuState::decode(&mut from)).collect::<Result<_, _>>()?;
        let board = BoardState::decode(&mut from)?;
        let devices = DevicesState::decode(&mut from, version)?;
        let time = TimeState::decode(&mut from, count)?;
        from.finish("the end of the saved state")?;
        Ok(Self { vcpus, board, devices, time })
    }
}

#[cfg(test)]
mod tests;
