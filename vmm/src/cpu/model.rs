//! A CPUID table.
//!
//! That of a host is what KVM supports, less what differs from one physical CPU
//! of the same machine to the next (APIC ids, topology of the CPU the question
//! was asked on). A vCPU gets it with its own APIC id and number of vCPUs.

use std::fmt;

use ballast_model::{Refusal, RefusalCode};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::features::Feature;
use crate::codec::{Decoder, Encoder, Malformed};
use crate::kvm::failed;

const LEAF_VENDOR: u32 = 0;
const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES: u32 = 4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_XSTATE: u32 = 0xd;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_BRAND: [u32; 3] = [0x8000_0002, 0x8000_0003, 0x8000_0004];
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
const FEATURES_ECX_HYPERVISOR: u32 = 1 << 31;
const FEATURES_ECX_TSC_DEADLINE: u32 = 1 << 24;
const FEATURES_EDX_HTT: u32 = 1 << 28;

/// A CPUID table, before a vCPU's own id is filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CpuModel {
    entries: Vec<Leaf>,
}

/// The answer to one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Leaf {
    /// EAX of the question.
    pub(crate) function: u32,
    /// ECX of the question.
    pub(crate) index: u32,
    /// KVM's: whether the index matters.
    pub(crate) flags: u32,
    /// EAX, EBX, ECX and EDX of the answer.
    pub(crate) registers: [u32; 4],
}

impl CpuModel {
    /// Asks KVM what it supports.
    pub(crate) fn of_host(kvm: &Kvm) -> Result<Self, Refusal> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| failed("tell which CPU features it supports", error))?;
        let mut model = Self::from_supported(supported.as_slice());
        // Emulated by KVM's local APIC whatever the CPU has; KVM leaves it to us to say so.
        if kvm.check_extension(Cap::TscDeadlineTimer)
            && let Some(leaf) = model.entries.iter_mut().find(|leaf| leaf.function == LEAF_FEATURES)
        {
            leaf.registers[2] |= FEATURES_ECX_TSC_DEADLINE;
        }
        Ok(model)
    }

    fn from_supported(supported: &[kvm_cpuid_entry2]) -> Self {
        Self::from_leaves(supported.iter().map(normalised).collect())
    }

    /// The table with these leaves.
    pub(super) fn from_leaves(mut entries: Vec<Leaf>) -> Self {
        entries.sort_unstable();
        Self { entries }
    }

    pub(super) fn leaves(&self) -> &[Leaf] {
        &self.entries
    }

    /// EAX to EDX of a leaf; zeroes when there is none.
    pub(super) fn leaf(&self, function: u32, index: u32) -> [u32; 4] {
        let place = (function, index);
        let found = self.entries.iter().find(|leaf| (leaf.function, leaf.index) == place);
        found.map_or([0; 4], |leaf| leaf.registers)
    }

    /// Whether it has a feature.
    pub(super) fn has(&self, feature: Feature) -> bool {
        let word = feature.word;
        let register = self.leaf(word.function, word.index)[word.register as usize];
        register >> feature.bit & 1 != 0
    }

    /// The maker, in its own twelve letters.
    pub(super) fn vendor(&self) -> String {
        let [_, ebx, ecx, edx] = self.leaf(LEAF_VENDOR, 0);
        text(&[ebx, edx, ecx], u8::is_ascii_alphanumeric)
    }

    /// What the CPU calls itself; empty when it does not.
    pub(super) fn brand(&self) -> String {
        let leaves = LEAF_BRAND.map(|function| self.leaf(function, 0));
        text(leaves.as_flattened(), |byte| byte.is_ascii_graphic() || *byte == b' ')
            .trim()
            .to_owned()
    }

    /// Display family, display model and stepping (Intel SDM volume 2A, CPUID; AMD APM volume 3).
    pub(super) fn family(&self) -> (u32, u32, u32) {
        let [eax, ..] = self.leaf(LEAF_FEATURES, 0);
        let base = eax >> 8 & 0xf;
        let family = if base == 0xf { base + (eax >> 20 & 0xff) } else { base };
        let extended = if matches!(base, 0x6 | 0xf) { eax >> 12 & 0xf0 } else { 0 };
        (family, extended | eax >> 4 & 0xf, eax & 0xf)
    }

    /// The table for vCPU `index` of `count`.
    pub(crate) fn for_vcpu(&self, index: u32, count: u32) -> Result<CpuId, Refusal> {
        let entries: Vec<kvm_cpuid_entry2> =
            self.entries.iter().map(|leaf| leaf.for_vcpu(index, count)).collect();
        CpuId::from_entries(&entries).map_err(|error| {
            Refusal::new(
                RefusalCode::Internal,
                format!("the CPUID table is too long: {error:?}"),
                "report a defect",
            )
        })
    }

    pub(crate) fn encode(&self, to: &mut Encoder) {
        to.count(self.entries.len());
        for leaf in &self.entries {
            to.u32(leaf.function).u32(leaf.index).u32(leaf.flags);
            for register in leaf.registers {
                to.u32(register);
            }
        }
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        const WHAT: &str = "the CPUID table";
        let count = from.count(KVM_MAX_CPUID_ENTRIES, WHAT)?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let (function, index, flags) = (from.u32(WHAT)?, from.u32(WHAT)?, from.u32(WHAT)?);
            let mut registers = [0; 4];
            for register in &mut registers {
                *register = from.u32(WHAT)?;
            }
            entries.push(Leaf { function, index, flags, registers });
        }
        Ok(Self { entries })
    }
}

impl fmt::Display for CpuModel {
    /// `vendor-family-model-hash`, e.g. `AuthenticAMD-25-1-91f3c0…`. Equal for
    /// two hosts exactly when their guests see the same CPU.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (family, model, _) = self.family();
        let mut encoder = Encoder::default();
        self.encode(&mut encoder);
        let hash = xxh3_64(&encoder.finish());
        write!(f, "{}-{family}-{model}-{hash:016x}", self.vendor())
    }
}

/// The letters in registers, in order.
fn text(registers: &[u32], keep: impl Fn(&u8) -> bool) -> String {
    let bytes = registers.iter().flat_map(|register| register.to_le_bytes());
    bytes.filter(keep).map(char::from).collect()
}

/// The leaf without what depends on the physical CPU that answered.
fn normalised(entry: &kvm_cpuid_entry2) -> Leaf {
    let mut registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
    match (entry.function, entry.index) {
        (LEAF_FEATURES, _) => {
            registers[1] &= 0x0000_ffff; // APIC id, logical CPU count
            registers[2] |= FEATURES_ECX_HYPERVISOR;
        }
        (LEAF_CACHES, _) => registers[0] &= 0x0000_3fff, // CPUs sharing the cache, cores
        (LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2, _) => registers = [0, 0, entry.index, 0],
        // The size of the area for what is enabled in the asking thread's XCR0.
        (LEAF_XSTATE, 0 | 1) => registers[1] = 0,
        (LEAF_AMD_SIZES, _) => registers[2] = 0,
        (LEAF_AMD_TOPOLOGY, _) => registers = [0; 4],
        _ => {}
    }
    Leaf { function: entry.function, index: entry.index, flags: entry.flags, registers }
}

impl Leaf {
    pub(super) fn new(function: u32, index: u32, registers: [u32; 4]) -> Self {
        Self { function, index, flags: 0, registers }
    }

    fn for_vcpu(&self, index: u32, count: u32) -> kvm_cpuid_entry2 {
        let [mut eax, mut ebx, mut ecx, mut edx] = self.registers;
        match (self.function, self.index) {
            (LEAF_FEATURES, _) => {
                ebx |= (index & 0xff) << 24 | (count & 0xff) << 16;
                if count > 1 {
                    edx |= FEATURES_EDX_HTT;
                }
            }
            // Every vCPU is a core of its own in one package: SMT level 0, core level.
            (LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2, level) => {
                edx = index;
                let core_bits = u32::BITS - (count.max(1) - 1).leading_zeros();
                (eax, ebx, ecx) = match level {
                    0 => (0, 1, 0x100),
                    1 => (core_bits, count, 0x201),
                    _ => (0, 0, level),
                };
            }
            (LEAF_AMD_SIZES, _) => ecx = count.max(1) - 1,
            (LEAF_AMD_TOPOLOGY, _) => (eax, ebx) = (index, index & 0xff),
            _ => {}
        }
        kvm_cpuid_entry2 {
            function: self.function,
            index: self.index,
            flags: self.flags,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::features;
    use super::*;

    pub(in super::super) const INTEL: &[u8; 12] = b"GenuineIntel";
    pub(in super::super) const AMD: &[u8; 12] = b"AuthenticAMD";

    /// A host of this maker, signature and features, with the XSAVE layout of Intel's.
    pub(in super::super) fn host(maker: &[u8; 12], signature: u32, names: &[&str]) -> CpuModel {
        let word = |at: usize| u32::from_le_bytes(maker[at..at + 4].try_into().unwrap());
        let maker_regs = |max| [max, word(0), word(8), word(4)];
        let extended = if maker == AMD { maker_regs(0x8000_001e) } else { [0x8000_0008, 0, 0, 0] };
        let mut leaves = vec![
            Leaf::new(0, 0, maker_regs(0x1f)),
            Leaf::new(1, 0, [signature, 0, 0, 0]),
            Leaf::new(0xd, 0, [0xe7, 0, 2688, 0]),
            Leaf::new(0xd, 2, [256, 576, 0, 0]),
            Leaf::new(0xd, 5, [64, 1088, 0, 0]),
            Leaf::new(0xd, 6, [512, 1152, 0, 0]),
            Leaf::new(0xd, 7, [1024, 1664, 0, 0]),
            Leaf::new(0x8000_0000, 0, extended),
            Leaf::new(0x8000_0008, 0, [0x302e, 0, 0, 0]),
        ];
        for name in names {
            let feature = features::find(name).unwrap();
            let place = (feature.word.function, feature.word.index);
            if !leaves.iter().any(|leaf| (leaf.function, leaf.index) == place) {
                leaves.push(Leaf::new(place.0, place.1, [0; 4]));
            }
            let leaf = leaves.iter_mut().find(|leaf| (leaf.function, leaf.index) == place).unwrap();
            leaf.registers[feature.word.register as usize] |= 1 << feature.bit;
        }
        CpuModel::from_leaves(leaves)
    }

    fn entry(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn model(features: u32, apic_id: u32) -> CpuModel {
        let vendor = |text: &[u8; 4]| u32::from_le_bytes(*text);
        CpuModel::from_supported(&[
            entry(0, [1, vendor(b"Auth"), vendor(b"cAMD"), vendor(b"enti")]),
            entry(1, [0x00a2_0f10, apic_id << 24, features, 0]),
        ])
    }

    #[test]
    fn the_name_is_vendor_family_model_and_hash() {
        let name = model(1, 0).to_string();
        assert!(name.starts_with("AuthenticAMD-25-33-"), "{name}");
    }

    #[test]
    fn the_cpu_that_was_asked_does_not_matter_and_features_do() {
        assert_eq!(model(1, 0).to_string(), model(1, 5).to_string());
        assert_eq!(model(1, 0).difference(&model(1, 5)), None);
        assert_ne!(model(1, 0).to_string(), model(3, 0).to_string());
        let difference = model(1, 0).difference(&model(3, 0)).unwrap();
        assert_eq!(difference, "only the destination has pclmulqdq");
    }

    #[test]
    fn each_vcpu_has_an_apic_id_of_its_own() {
        let ids: Vec<u32> = (0..3)
            .map(|index| model(1, 9).for_vcpu(index, 3).unwrap().as_slice()[1].ebx >> 24)
            .collect();
        assert_eq!(ids, [0, 1, 2]);
    }

    #[test]
    fn a_model_survives_the_wire() {
        let mut encoder = Encoder::default();
        model(7, 0).encode(&mut encoder);
        let bytes = encoder.finish();
        let mut decoder = Decoder::new(&bytes);
        assert_eq!(CpuModel::decode(&mut decoder).unwrap(), model(7, 0));
        decoder.finish("rest").unwrap();
    }
}
