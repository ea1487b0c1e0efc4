//! CPU baselines: CPUID tables that unlike hosts of one maker can all give.
//!
//! A baseline is a list of features: those its level of the x86-64 psABI
//! requires, what any operating system expects of a 64-bit CPU, and what KVM
//! itself provides whatever the host. A guest sees these and no others, with a
//! family, a model, a name and address widths that say nothing about the host.
//! Left of the host are its maker (the two differ in too much that a running
//! kernel has decided upon), and where XSAVE puts the registers of each
//! feature, which differs between makers only.
//!
//! Not in any: the interfaces to mitigations of speculative execution, which
//! differ from stepping to stepping. A guest then uses those that need none.

use ballast_model::hardware::CpuBaseline;
use ballast_model::{Bytes, Refusal, RefusalCode};

use super::features::{self, Feature};
use super::model::{CpuModel, Leaf};

/// What every 64-bit operating system expects.
const COMMON: &[&str] = &[
    "fpu", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge", "mca",
    "cmov", "pat", "pse36", "clflush", "mmx", "fxsr", "sse", "sse2", "syscall", "nx", "lm",
];
/// What KVM provides, on any host.
const FROM_KVM: &[&str] = &["x2apic", "hypervisor"];
/// What newer KVMs provide; left out where it is missing.
const FROM_KVM_IF_THERE: &[&str] = &[
    "tsc_deadline_timer",
    "kvmclock",
    "kvm_nop_io_delay",
    "kvmclock2",
    "kvm_pv_eoi",
    "kvmclock_stable",
];
const LEVEL_2: &[&str] = &["sse3", "ssse3", "cx16", "sse4_1", "sse4_2", "popcnt", "lahf_lm"];
const LEVEL_3: &[&str] = &["xsave", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"];
const LEVEL_4: &[&str] = &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];

/// XCR0: x87 and SSE; AVX; opmask and both halves of ZMM.
const XCR0_BASE: u32 = 0x3;
const XCR0_AVX: u32 = 0x4;
const XCR0_AVX512: u32 = 0xe0;
/// The area of x87 and SSE, with the header behind it, in bytes.
const XSAVE_BASE_BYTES: u32 = 576;

/// Family 15, model 107, stepping 1: what QEMU has used for its generic CPU for
/// many years, so that every guest has met it.
const SIGNATURE: u32 = 0x0006_0fb1;
/// The size of a cache line for CLFLUSH, in units of 8 bytes.
const CLFLUSH: u32 = 8 << 8;
const MAX_BASIC: u32 = 0xd;
const MAX_KVM: u32 = 0x4000_0001;
const MAX_EXTENDED: u32 = 0x8000_0008;
/// 40 bits of physical address, 48 of linear.
const ADDRESS_BITS: u32 = 0x3028;
/// The most memory that fits 40 bits, with the hole below 4 GiB.
pub(crate) const MEMORY_MAX: Bytes = Bytes::gib(1023);
const INDEXED: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

const LEAF_KVM: u32 = 0x4000_0000;
const LEAF_EXTENDED: u32 = 0x8000_0000;
const LEAF_BRAND: u32 = 0x8000_0002;

/// The features a baseline demands of a host, in groups.
fn levels(baseline: CpuBaseline) -> &'static [&'static [&'static str]] {
    match baseline {
        CpuBaseline::Host => &[],
        CpuBaseline::X86_64V2 => &[COMMON, FROM_KVM, LEVEL_2],
        CpuBaseline::X86_64V3 => &[COMMON, FROM_KVM, LEVEL_2, LEVEL_3],
        CpuBaseline::X86_64V4 => &[COMMON, FROM_KVM, LEVEL_2, LEVEL_3, LEVEL_4],
    }
}

fn demanded(baseline: CpuBaseline) -> impl Iterator<Item = &'static str> {
    levels(baseline).iter().flat_map(|level| level.iter().copied())
}

/// What a host lacks for a baseline.
pub(crate) fn missing(host: &CpuModel, baseline: CpuBaseline) -> Vec<&'static str> {
    demanded(baseline).filter(|name| !features::find(name).is_some_and(|f| host.has(f))).collect()
}

/// The table guests of this baseline see on this host.
///
/// # Errors
/// `Unsupported`, naming what the host lacks.
pub(crate) fn apply(host: &CpuModel, baseline: CpuBaseline) -> Result<CpuModel, Refusal> {
    if baseline == CpuBaseline::Host {
        return Ok(host.clone());
    }
    let missing = missing(host, baseline);
    if !missing.is_empty() {
        return Err(Refusal::new(
            RefusalCode::Unsupported,
            format!(
                "this host cannot give the CPU baseline {baseline}: it lacks {}",
                missing.join(", ")
            ),
            "give the VM a lower baseline, or place it on a host with these features",
        ));
    }
    let mut table = fixed_leaves(host, baseline);
    let optional = FROM_KVM_IF_THERE.iter().copied();
    let optional = optional.filter(|name| features::find(name).is_some_and(|f| host.has(f)));
    for feature in demanded(baseline).chain(optional).filter_map(features::find) {
        set(&mut table, feature);
    }
    Ok(CpuModel::from_leaves(table))
}

fn set(table: &mut Vec<Leaf>, feature: Feature) {
    let word = feature.word;
    let place = (word.function, word.index);
    let leaf = match table.iter_mut().position(|leaf| (leaf.function, leaf.index) == place) {
        Some(at) => &mut table[at],
        None => {
            table.push(Leaf { flags: flags(word.function), ..Leaf::new(place.0, place.1, [0; 4]) });
            let last = table.len() - 1;
            &mut table[last]
        }
    };
    leaf.registers[word.register as usize] |= 1 << feature.bit;
}

fn flags(function: u32) -> u32 {
    if matches!(function, 7 | 0xb | 0xd) { INDEXED } else { 0 }
}

/// Everything but features.
fn fixed_leaves(host: &CpuModel, baseline: CpuBaseline) -> Vec<Leaf> {
    let [_, ebx, ecx, edx] = host.leaf(0, 0);
    let [_, kvm_ebx, kvm_ecx, kvm_edx] = host.leaf(LEAF_KVM, 0);
    let [_, ext_ebx, ext_ecx, ext_edx] = host.leaf(LEAF_EXTENDED, 0);
    let indexed = |function, index, registers| Leaf {
        flags: flags(function),
        ..Leaf::new(function, index, registers)
    };
    let mut table = vec![
        Leaf::new(0, 0, [MAX_BASIC, ebx, ecx, edx]),
        Leaf::new(1, 0, [SIGNATURE, CLFLUSH, 0, 0]),
        indexed(7, 0, [0; 4]),
        indexed(0xb, 0, [0; 4]),
        indexed(0xb, 1, [0, 0, 1, 0]),
        Leaf::new(LEAF_KVM, 0, [MAX_KVM, kvm_ebx, kvm_ecx, kvm_edx]),
        Leaf::new(LEAF_EXTENDED, 0, [MAX_EXTENDED, ext_ebx, ext_ecx, ext_edx]),
        Leaf::new(0x8000_0001, 0, [if ext_ebx == 0 { 0 } else { SIGNATURE }, 0, 0, 0]),
        Leaf::new(0x8000_0008, 0, [ADDRESS_BITS, 0, 0, 0]),
    ];
    table.extend(brand(baseline));
    table.extend(xsave(host, baseline).into_iter().map(|(index, regs)| indexed(0xd, index, regs)));
    // Several vCPUs are several cores, not threads of one (AMD only).
    if ext_ebx != 0
        && let Some(feature) = features::find("cmp_legacy")
    {
        set(&mut table, feature);
    }
    table
}

/// The name the guest shows its users.
fn brand(baseline: CpuBaseline) -> impl Iterator<Item = Leaf> {
    let mut text = format!("Ballast {baseline}").into_bytes();
    text.resize(48, 0);
    let words: Vec<u32> = text
        .chunks_exact(4)
        .map(|word| word.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
        .collect();
    (0..3u32).zip(words.chunks_exact(4).map(<[u32]>::to_vec).collect::<Vec<_>>()).map(
        |(part, words)| Leaf::new(LEAF_BRAND + part, 0, [words[0], words[1], words[2], words[3]]),
    )
}

/// Leaf 0xd: which registers XSAVE saves, and where.
fn xsave(host: &CpuModel, baseline: CpuBaseline) -> Vec<(u32, [u32; 4])> {
    let xcr0 = match baseline {
        CpuBaseline::Host | CpuBaseline::X86_64V2 => return Vec::new(),
        CpuBaseline::X86_64V3 => XCR0_BASE | XCR0_AVX,
        CpuBaseline::X86_64V4 => XCR0_BASE | XCR0_AVX | XCR0_AVX512,
    };
    let mut leaves = Vec::new();
    let mut bytes = XSAVE_BASE_BYTES;
    for component in (2..32).filter(|component| xcr0 >> component & 1 != 0) {
        let [size, offset, ..] = host.leaf(0xd, component);
        bytes = bytes.max(offset.saturating_add(size));
        leaves.push((component, [size, offset, 0, 0]));
    }
    leaves.push((0, [xcr0, 0, bytes, 0]));
    leaves.push((1, [0; 4]));
    leaves
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{AMD, INTEL, host};
    use super::*;

    #[test]
    fn every_feature_has_a_name_that_is_known() {
        for baseline in CpuBaseline::ALL {
            for name in demanded(baseline).chain(FROM_KVM_IF_THERE.iter().copied()) {
                assert!(features::find(name).is_some(), "{name}");
            }
        }
    }

    #[test]
    fn unlike_hosts_of_one_maker_give_the_same_baseline() {
        let all: Vec<_> = demanded(CpuBaseline::X86_64V4).collect();
        let old = host(INTEL, 0x506e3, &all);
        let more: Vec<_> = all.iter().copied().chain(["amx_tile", "vmx", "spec_ctrl"]).collect();
        let new = host(INTEL, 0x806f8, &more);
        assert_ne!(old, new);
        for baseline in [CpuBaseline::X86_64V2, CpuBaseline::X86_64V3, CpuBaseline::X86_64V4] {
            assert_eq!(apply(&old, baseline).unwrap(), apply(&new, baseline).unwrap());
            let guest = apply(&new, baseline).unwrap();
            assert!(!guest.has(features::find("vmx").unwrap()));
            assert!(guest.has(features::find("cx16").unwrap()));
        }
        assert_eq!(apply(&new, CpuBaseline::Host).unwrap(), new);
    }

    #[test]
    fn makers_stay_apart() {
        let all: Vec<_> = demanded(CpuBaseline::X86_64V2).collect();
        let intel = apply(&host(INTEL, 0x506e3, &all), CpuBaseline::X86_64V2).unwrap();
        let amd = apply(&host(AMD, 0x80_0f11, &all), CpuBaseline::X86_64V2).unwrap();
        let words = intel.difference(&amd).unwrap();
        assert!(words.contains("GenuineIntel") && words.contains("AuthenticAMD"), "{words}");
    }

    #[test]
    fn what_a_host_lacks_is_named() {
        let all: Vec<_> = demanded(CpuBaseline::X86_64V2).collect();
        let host = host(AMD, 0x80_0f11, &all);
        assert!(missing(&host, CpuBaseline::X86_64V2).is_empty());
        let refusal = apply(&host, CpuBaseline::X86_64V3).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Unsupported);
        assert!(refusal.reason.contains("x86-64-v3: it lacks xsave, avx, avx2"), "{refusal}");
        assert!(!refusal.reason.contains("avx512f"), "{refusal}");
    }

    #[test]
    fn the_xsave_area_covers_what_the_baseline_has() {
        let all: Vec<_> = demanded(CpuBaseline::X86_64V4).collect();
        let host = host(INTEL, 0x806f8, &all);
        let area = |baseline| apply(&host, baseline).unwrap().leaf(0xd, 0);
        assert_eq!(area(CpuBaseline::X86_64V2), [0; 4]);
        assert_eq!(area(CpuBaseline::X86_64V3), [7, 0, 832, 0]);
        assert_eq!(area(CpuBaseline::X86_64V4), [0xe7, 0, 2688, 0]);
    }
}
