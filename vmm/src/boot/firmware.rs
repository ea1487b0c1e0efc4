//! What firmware would have done before a kernel starts.

use ballast_model::{Refusal, RefusalCode};
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::kvm;

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_EXTINT: u32 = 7 << 8;
const DELIVER_NMI: u32 = 4 << 8;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, all memory write-back.
const WRITE_BACK: u64 = 0x806;

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
