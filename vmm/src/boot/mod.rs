//! Turns a kernel image into a machine that is about to run its first instruction.
//!
//! [`load`] puts the image, its command line and a description of memory into
//! guest memory and answers with the state each vCPU starts in, as plain data.
//! The image is somebody else's file: nothing in it is trusted.
//!
//! One kind of image is known today, a program with a ring-3 entry ([`ring3`]).
//! Another kind (an operating system's kernel entered by PVH) would be a sibling
//! of that file: [`elf`] and [`start_info`] know nothing of how a guest is entered.
//!
//! ```text
//!   file ──elf──▶ segments in guest memory, notes
//!                       │ ring3: entry, tables      start_info: memory map, command line
//!                       ▼                                  │
//!                   BootState { vCPU 0 } ◀─── rdi ─────────┘
//! ```

mod elf;
mod ring3;
mod start_info;

use std::path::Path;

use ballast_model::{Refusal, RefusalCode};
use kvm_bindings::{KVM_MP_STATE_UNINITIALIZED, kvm_mp_state, kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::memory::GuestRam;

/// What [`load`] found out: how the vCPUs start.
///
/// vCPU 0 starts at the image's entry. All others wait for a start-up IPI in
/// KVM's interrupt controller, as on a real machine.
#[derive(Debug, Clone)]
pub struct BootState {
    entry: ring3::Entry,
    start_info: u64,
}

/// Loads the kernel at `path` into guest memory, with `cmdline` and, appended
/// to it, ` tsc_khz=<tsc_khz>`: a guest that sees no CPUID leaf with the
/// frequency of its time stamp counter needs to be told.
///
/// # Errors
/// `NotFound` or `HostFailure` for the file; `InvalidArgument` for one that is
/// not a well-formed x86-64 ELF program or a command line that is too long;
/// `CapacityExceeded` when guest memory is too small; `Unsupported` for a
/// program that does not say how to enter it in ring 3.
pub fn load(
    memory: &GuestRam,
    path: &Path,
    cmdline: &str,
    tsc_khz: u32,
) -> Result<BootState, Refusal> {
    let image = elf::load(memory, path)?;
    let entry = ring3::Entry::find(&image, path)?;
    let separator = if cmdline.is_empty() { "" } else { " " };
    let cmdline = format!("{cmdline}{separator}tsc_khz={tsc_khz}");
    let start_info = start_info::write(memory, &cmdline)?;
    Ok(BootState { entry, start_info })
}

impl BootState {
    /// Sets the state vCPU `index` starts in.
    ///
    /// Call it once per vCPU, after the in-kernel interrupt controller and the
    /// guest's memory slots exist and after `KVM_SET_CPUID2` on this vCPU: KVM
    /// checks CR4, EFER and the x2APIC bit against CPUID. On vCPU 0 it sets
    /// special registers first and general registers last. The local APIC needs
    /// nothing: the guest enables it.
    ///
    /// # Errors
    /// `HostFailure` when KVM refuses.
    pub fn apply(&self, vcpu: &VcpuFd, index: u32) -> Result<(), Refusal> {
        if index > 0 {
            let waiting = kvm_mp_state { mp_state: KVM_MP_STATE_UNINITIALIZED };
            return vcpu.set_mp_state(waiting).map_err(|error| kvm("set the run state", error));
        }
        let reset = vcpu.get_sregs().map_err(|error| kvm("read special registers", error))?;
        vcpu.set_sregs(&self.sregs(reset)).map_err(|error| kvm("set special registers", error))?;
        vcpu.set_regs(&self.regs()).map_err(|error| kvm("set general registers", error))
    }

    /// The general registers vCPU 0 starts with.
    pub fn regs(&self) -> kvm_regs {
        self.entry.regs(self.start_info)
    }

    /// The special registers vCPU 0 starts with; what the guest has no say in
    /// (the APIC's base address) is taken over from `reset`.
    pub fn sregs(&self, reset: kvm_sregs) -> kvm_sregs {
        self.entry.sregs(reset)
    }
}

fn kvm(what: &str, error: kvm_ioctls::Error) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("KVM did not {what} of a new vCPU: {error}"),
        "check the kernel log of the host; its KVM may lack a feature the guest's CPU model needs",
    )
}
