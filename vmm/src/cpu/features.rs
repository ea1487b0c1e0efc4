//! The names of feature bits, as Linux's /proc/cpuinfo has them.
//!
//! Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; KVM's own
//! leaves: Linux Documentation/virt/kvm/x86/cpuid.rst.

/// EAX to EDX, as CPUID answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// One register full of feature bits.
#[derive(Debug)]
pub(crate) struct Word {
    pub(crate) function: u32,
    pub(crate) index: u32,
    pub(crate) register: Register,
    /// From bit 0 on; `-` for a bit without a name.
    names: &'static str,
}

/// One feature: a bit of a register.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Feature {
    pub(crate) word: &'static Word,
    pub(crate) bit: u32,
}

impl Word {
    /// The name of a bit.
    pub(crate) fn name(&self, bit: u32) -> Option<&'static str> {
        let bit = usize::try_from(bit).ok()?;
        self.names.split(' ').nth(bit).filter(|name| *name != "-")
    }
}

/// The feature of this name.
pub(crate) fn find(name: &str) -> Option<Feature> {
    WORDS.iter().find_map(|word| {
        let bit = word.names.split(' ').position(|known| known == name)?;
        Some(Feature { word, bit: u32::try_from(bit).ok()? })
    })
}

use Register::{Eax, Ebx, Ecx, Edx};

const fn word(function: u32, index: u32, register: Register, names: &'static str) -> Word {
    Word { function, index, register, names }
}

/// Every register whose bits are features.
pub(crate) static WORDS: [Word; 14] = [
    word(
        1,
        0,
        Ecx,
        "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - \
         pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c \
         rdrand hypervisor",
    ),
    word(
        1,
        0,
        Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - \
         dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    word(
        7,
        0,
        Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a \
         avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel_pt avx512pf \
         avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    word(
        7,
        0,
        Ecx,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq \
         avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid key_locker \
         bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    ),
    word(
        7,
        0,
        Edx,
        "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear \
         rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - \
         amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities \
         core_capabilities spec_ctrl_ssbd",
    ),
    word(
        7,
        1,
        Eax,
        "- - - - avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - - - - - amx_fp16 - \
         avx_ifma - - lam",
    ),
    word(0xd, 1, Eax, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    word(
        0x4000_0001,
        0,
        Eax,
        "kvmclock kvm_nop_io_delay kvm_mmu_op kvmclock2 kvm_async_pf kvm_steal_time kvm_pv_eoi \
         kvm_pv_unhalt - kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control \
         kvm_pv_sched_yield kvm_async_pf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range \
         kvm_migration_control - - - - - - kvmclock_stable",
    ),
    word(
        0x8000_0001,
        0,
        Ecx,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs \
         xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext \
         ptsc perfctr_llc mwaitx",
    ),
    word(
        0x8000_0001,
        0,
        Edx,
        "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - \
         lm 3dnowext 3dnow",
    ),
    word(0x8000_0007, 0, Edx, "- - - - - - - - invtsc"),
    word(
        0x8000_0008,
        0,
        Ebx,
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - - - \
         - - - - - amd_ssbd virt_ssbd amd_ssb_no - amd_psfd",
    ),
    word(
        0x8000_000a,
        0,
        Edx,
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - \
         pausefilter - pfthreshold avic - v_vmsave_vmload vgif",
    ),
    word(
        0x8000_0021,
        0,
        Eax,
        "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - autoibrs",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_back_to_their_bits() {
        let mut seen = std::collections::BTreeSet::new();
        for word in &WORDS {
            assert!(word.names.split(' ').count() <= 32, "{:#x}", word.function);
            for bit in 0..32 {
                let Some(name) = word.name(bit) else { continue };
                assert!(seen.insert(name), "{name} twice");
                let found = find(name).unwrap();
                assert_eq!((found.word.function, found.bit), (word.function, bit), "{name}");
            }
        }
    }

    #[test]
    fn well_known_bits_are_where_the_manuals_have_them() {
        for (name, function, register, bit) in [
            ("cx16", 1, Ecx, 13),
            ("hypervisor", 1, Ecx, 31),
            ("sse2", 1, Edx, 26),
            ("avx2", 7, Ebx, 5),
            ("avx512vl", 7, Ebx, 31),
            ("la57", 7, Ecx, 16),
            ("spec_ctrl_ssbd", 7, Edx, 31),
            ("lm", 0x8000_0001, Edx, 29),
            ("abm", 0x8000_0001, Ecx, 5),
            ("kvmclock_stable", 0x4000_0001, Eax, 24),
            ("amd_psfd", 0x8000_0008, Ebx, 28),
        ] {
            let found = find(name).unwrap();
            let place = (found.word.function, found.word.register, found.bit);
            assert_eq!(place, (function, register, bit), "{name}");
        }
    }
}
