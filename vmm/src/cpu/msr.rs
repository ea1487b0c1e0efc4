//! Registers that a baseline has no features for: a guest that touches one gets
//! a general protection fault, as on a CPU without it.
//!
//! KVM itself ties most registers to CPUID. The ranges here it gives to any
//! guest, or to more guests than it should: performance counters, tracing,
//! virtualisation, and the registers that tell one stepping from another. What
//! a guest cannot reach need not be the same after a move.

use ballast_model::hardware::CpuBaseline;
use kvm_bindings::KVM_CAP_X86_MSR_FILTER;
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use ballast_model::Refusal;

use crate::kvm::failed;

/// First register and number of registers.
const DENIED: [(u32, u32); 14] = [
    (0x8c, 4),           // SGX launch key
    (0xc1, 8),           // performance counters
    (0xcf, 1),           // core capabilities
    (0x10a, 1),          // architectural capabilities
    (0x186, 8),          // performance event selection
    (0x1c4, 2),          // extended feature disable
    (0x309, 4),          // fixed performance counters
    (0x345, 1),          // performance capabilities
    (0x38d, 4),          // performance control
    (0x480, 0x12),       // VMX capabilities
    (0x560, 0x30),       // processor trace
    (0xda0, 1),          // supervisor state of XSAVES
    (0xc001_0000, 8),    // AMD: performance events and counters
    (0xc001_0200, 0x10), // AMD: extended performance events and counters
];
const BITMAP_BYTES: usize = 8;

/// Denies them to guests of named baselines. Before the first vCPU runs.
///
/// # Errors
/// `HostFailure` when KVM refuses.
pub(crate) fn filter(vm: &VmFd, baseline: CpuBaseline) -> Result<(), Refusal> {
    if baseline == CpuBaseline::Host {
        return Ok(());
    }
    if vm.check_extension_raw(KVM_CAP_X86_MSR_FILTER.into()) <= 0 {
        tracing::warn!(%baseline, "this KVM cannot deny registers to a guest; CPUID alone hides them");
        return Ok(());
    }
    let nothing = [0; BITMAP_BYTES];
    let ranges = DENIED.map(|(base, msr_count)| MsrFilterRange {
        flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        base,
        msr_count,
        bitmap: &nothing,
    });
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
        .map_err(|error| failed("deny registers to the guest", error))
}

/// Whether a guest of this baseline can see a register. What it cannot see is no part of its state.
pub(crate) fn is_visible(baseline: CpuBaseline, index: u32) -> bool {
    let denied = |&(base, count): &(u32, u32)| (base..base + count).contains(&index);
    baseline == CpuBaseline::Host || !DENIED.iter().any(denied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_fit_the_bitmap_and_do_not_overlap() {
        for (base, count) in DENIED {
            assert!(count as usize <= BITMAP_BYTES * 8, "{base:#x}");
        }
        for pair in DENIED.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }

    #[test]
    fn what_is_denied_is_no_part_of_a_guests_state() {
        for index in [0x8f, 0x10a, 0xda0] {
            assert!(!is_visible(CpuBaseline::X86_64V3, index), "{index:#x}");
            assert!(is_visible(CpuBaseline::Host, index), "{index:#x}");
        }
        for index in [0x10, 0x8b, 0x90, 0x6e0, 0xc000_0080] {
            assert!(is_visible(CpuBaseline::X86_64V3, index), "{index:#x}");
        }
    }
}
