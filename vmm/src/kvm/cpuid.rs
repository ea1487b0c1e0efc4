//! The CPU the guest sees.
//!
//! The guest gets what KVM supports, less what differs from one physical CPU of
//! the same machine to the next (APIC ids, topology of the CPU the question was
//! asked on), plus its own APIC id and number of vCPUs. Two hosts whose guests
//! see the same CPUID have the same [`CpuModel`]; only between such hosts does
//! a VM move.

use std::fmt;

use ballast_model::{Refusal, RefusalCode};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use xxhash_rust::xxh3::xxh3_64;

use super::failed;
use crate::codec::{Decoder, Encoder, Malformed};

const LEAF_VENDOR: u32 = 0;
const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES: u32 = 4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_XSTATE: u32 = 0xd;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;
const FEATURES_ECX_HYPERVISOR: u32 = 1 << 31;
const FEATURES_EDX_HTT: u32 = 1 << 28;

/// The CPUID table of every guest on this host, before a vCPU's own id is filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CpuModel {
    entries: Vec<Leaf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Leaf {
    function: u32,
    index: u32,
    flags: u32,
    registers: [u32; 4],
}

impl CpuModel {
    /// Asks KVM what it supports.
    pub(crate) fn of_host(kvm: &Kvm) -> Result<Self, Refusal> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| failed("tell which CPU features it supports", error))?;
        Ok(Self::from_supported(supported.as_slice()))
    }

    fn from_supported(supported: &[kvm_cpuid_entry2]) -> Self {
        let mut entries: Vec<Leaf> = supported.iter().map(normalised).collect();
        entries.sort_unstable();
        Self { entries }
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

    /// The first difference in words; none when they are the same.
    pub(crate) fn difference(&self, here: &Self) -> Option<String> {
        let of = |model: &Self, leaf: &Leaf| {
            model
                .entries
                .iter()
                .find(|other| (other.function, other.index) == (leaf.function, leaf.index))
                .copied()
        };
        for leaf in &self.entries {
            let name = format!("CPUID leaf {:#x} index {}", leaf.function, leaf.index);
            match of(here, leaf) {
                None => return Some(format!("{name} is missing on the destination")),
                Some(other) if other != *leaf => {
                    return Some(format!(
                        "{name} is {:x?} on the source and {:x?} on the destination",
                        leaf.registers, other.registers
                    ));
                }
                Some(_) => {}
            }
        }
        let extra = here.entries.iter().find(|leaf| of(self, leaf).is_none())?;
        Some(format!("CPUID leaf {:#x} is missing on the source", extra.function))
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

    fn leaf(&self, function: u32) -> [u32; 4] {
        let found = self.entries.iter().find(|leaf| leaf.function == function);
        found.map_or([0; 4], |leaf| leaf.registers)
    }
}

impl fmt::Display for CpuModel {
    /// `vendor-family-model-hash`, e.g. `AuthenticAMD-25-1-91f3c0…`. Equal for
    /// two hosts exactly when their guests see the same CPU.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, ebx, ecx, edx] = self.leaf(LEAF_VENDOR);
        let vendor: String = [ebx, edx, ecx]
            .iter()
            .flat_map(|register| register.to_le_bytes())
            .map(char::from)
            .filter(char::is_ascii_alphanumeric)
            .collect();
        let [eax, ..] = self.leaf(LEAF_FEATURES);
        let (family, model) = family_and_model(eax);
        let mut encoder = Encoder::default();
        self.encode(&mut encoder);
        write!(f, "{vendor}-{family}-{model}-{:016x}", xxh3_64(&encoder.finish()))
    }
}

/// Display family and model of CPUID leaf 1 (Intel SDM volume 2A, CPUID; AMD APM volume 3).
fn family_and_model(eax: u32) -> (u32, u32) {
    let base = eax >> 8 & 0xf;
    let family = if base == 0xf { base + (eax >> 20 & 0xff) } else { base };
    let extended = if matches!(base, 0x6 | 0xf) { eax >> 12 & 0xf0 } else { 0 };
    (family, extended | eax >> 4 & 0xf)
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
mod tests {
    use super::*;

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
        assert!(difference.starts_with("CPUID leaf 0x1 index 0 is"), "{difference}");
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
