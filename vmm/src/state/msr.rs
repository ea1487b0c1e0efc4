//! Model-specific registers.
//!
//! KVM lists the MSRs that belong to a vCPU's state (api.rst 4.3), but leaves
//! out the MTRRs and IA32_XSS, which a guest can see as well: they are added
//! here. Both `KVM_GET_MSRS` and `KVM_SET_MSRS` stop at the first register they
//! do not take and answer with how many they did (api.rst 4.18, 4.19): that
//! count is checked. A register that cannot be read is not saved. One that
//! cannot be set must already hold the value, else loading fails.

use ballast_model::{Refusal, RefusalCode};
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::codec::{Decoder, Encoder, Malformed};
use crate::kvm::failed;

const IA32_TSC: u32 = 0x10;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
const IA32_XSS: u32 = 0xda0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Eight pairs of base and mask, as KVM emulates (KVM_NR_VAR_MTRR).
const IA32_MTRR_VARIABLE: std::ops::Range<u32> = 0x200..0x210;
const IA32_MTRR_FIXED: [u32; 11] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// The most registers a saved state may have.
const MSRS_MAX: usize = 1024;
/// The most registers in one call (MAX_IO_MSRS is 256).
const CHUNK: usize = 128;

/// The registers to save, in the order they are to be loaded in: the TSC first,
/// the deadline that is compared with it last.
pub(crate) fn saved_indices(kvm: &Kvm) -> Result<Vec<u32>, Refusal> {
    let listed = kvm.get_msr_index_list().map_err(|error| failed("list the MSRs", error))?;
    let mut indices: Vec<u32> = listed
        .as_slice()
        .iter()
        .copied()
        .chain(IA32_MTRR_FIXED)
        .chain(IA32_MTRR_VARIABLE)
        .chain([IA32_MTRR_DEF_TYPE, IA32_XSS])
        .collect();
    indices.sort_unstable_by_key(|&index| {
        let turn = match index {
            IA32_TSC => 0,
            // Enables the ranges set before it.
            IA32_MTRR_DEF_TYPE => 2,
            IA32_TSC_DEADLINE => 3,
            _ => 1,
        };
        (turn, index)
    });
    indices.dedup();
    Ok(indices)
}

/// Registers and their values, in the order they are loaded in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MsrState {
    values: Vec<(u32, u64)>,
}

impl MsrState {
    pub(crate) fn save(vcpu: &VcpuFd, indices: &[u32]) -> Result<Self, Refusal> {
        let mut values = Vec::with_capacity(indices.len());
        let mut rest = indices;
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(CHUNK)];
            let read = read(vcpu, chunk)?;
            // The one after the last that was read cannot be read: step over it.
            let unreadable = usize::from(read.len() < chunk.len());
            rest = &rest[read.len() + unreadable..];
            values.extend(read);
        }
        Ok(Self { values })
    }

    pub(crate) fn load(&self, vcpu: &VcpuFd) -> Result<(), Refusal> {
        let mut rest = self.values.as_slice();
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(CHUNK)];
            let set = write(vcpu, chunk)?;
            if let Some(&(index, value)) = chunk.get(set) {
                let here = read(vcpu, &[index])?;
                if here.first() != Some(&(index, value)) {
                    return Err(Refusal::new(
                        RefusalCode::Incompatible,
                        format!("this host's KVM does not take {value:#x} for MSR {index:#x}"),
                        "move the VM to a host with the same CPU and kernel",
                    ));
                }
            }
            rest = &rest[(set + 1).min(chunk.len())..];
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn forget_tsc(&mut self) {
        self.values.retain(|&(index, _)| index != IA32_TSC);
    }

    pub(crate) fn encode(&self, to: &mut Encoder) {
        to.count(self.values.len());
        for &(index, value) in &self.values {
            to.u32(index).u64(value);
        }
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        const WHAT: &str = "the MSRs of a vCPU";
        let count = from.count(MSRS_MAX, WHAT)?;
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push((from.u32(WHAT)?, from.u64(WHAT)?));
        }
        Ok(Self { values })
    }
}

fn entries(values: impl Iterator<Item = (u32, u64)>) -> Result<Msrs, Refusal> {
    let entries: Vec<kvm_msr_entry> =
        values.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    Msrs::from_entries(&entries).map_err(|error| {
        Refusal::new(RefusalCode::Internal, format!("MSR list: {error:?}"), "report a defect")
    })
}

/// The registers up to the first that cannot be read.
fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, Refusal> {
    let mut msrs = entries(indices.iter().map(|&index| (index, 0)))?;
    let count = vcpu.get_msrs(&mut msrs).map_err(|error| failed("read MSRs", error))?;
    Ok(msrs.as_slice().iter().take(count).map(|entry| (entry.index, entry.data)).collect())
}

/// How many were set, before one that was not.
fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<usize, Refusal> {
    let msrs = entries(values.iter().copied())?;
    vcpu.set_msrs(&msrs).map_err(|error| failed("set MSRs", error))
}
