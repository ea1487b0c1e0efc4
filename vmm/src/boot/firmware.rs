//! What firmware would have done before a kernel starts.

use ballast_model::{Refusal, RefusalCode};
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::kvm;
use super::low::{self, RESET_VECTOR};
use crate::memory::GuestRam;
use crate::power::{RESET_PORT, RESET_VALUE};

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_EXTINT: u32 = 7 << 8;
const DELIVER_NMI: u32 = 4 << 8;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, all memory write-back.
const WRITE_BACK: u64 = 0x806;

/// Puts the code of a PC's reset into its place: Linux on hardware-reduced ACPI
/// jumps there in real mode to restart (`reboot_init` and `machine_real_restart`
/// in arch/x86/kernel/reboot.c), before it would use the reset register itself.
pub(super) fn write_reset_vector(memory: &GuestRam) -> Result<(), Refusal> {
    let [low, high] = RESET_PORT.to_le_bytes();
    let code = [
        0xba,
        low,
        high, // mov dx, RESET_PORT
        0xb0,
        RESET_VALUE, // mov al, RESET_VALUE
        0xee,        // out dx, al
        0xf4,        // hlt
        0xeb,
        0xfd, // jmp to hlt
    ];
    low::write(memory, &code, RESET_VECTOR)
}

/// Sets what a kernel expects of a vCPU: interrupt pins and memory types.
pub(super) fn set_up(vcpu: &VcpuFd) -> Result<(), Refusal> {
    let mut lapic = vcpu.get_lapic().map_err(|error| kvm("read the local APIC", error))?;
    for (at, value) in [(LVT_LINT0, DELIVER_EXTINT), (LVT_LINT1, DELIVER_NMI)] {
        for (register, byte) in lapic.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
            *register = i8::from_le_bytes([byte]);
        }
    }
    vcpu.set_lapic(&lapic).map_err(|error| kvm("set the local APIC", error))?;
    let memory_type =
        kvm_msr_entry { index: IA32_MTRR_DEF_TYPE, data: WRITE_BACK, ..Default::default() };
    let msrs = Msrs::from_entries(&[memory_type]).map_err(|error| {
        Refusal::new(RefusalCode::Internal, format!("MSR list: {error:?}"), "report a defect")
    })?;
    // A KVM without MTRRs has all memory write-back anyway.
    let _ = vcpu.set_msrs(&msrs).map_err(|error| kvm("set MSRs", error))?;
    Ok(())
}
