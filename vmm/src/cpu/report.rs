//! In words: how two CPUID tables differ, and what a host can give.

use std::fmt::Write as _;

use ballast_model::hardware::CpuBaseline;
use ballast_model::{Refusal, RefusalCode};
use serde::{Deserialize, Serialize};

use super::baseline;
use super::features::{self, WORDS};
use super::model::{CpuModel, Leaf};

/// The longest list of words in one sentence.
const NAMED_MAX: usize = 40;
/// The names of XCR0's bits.
const COMPONENTS: [&str; 10] = [
    "x87",
    "SSE",
    "AVX",
    "MPX bounds",
    "MPX configuration",
    "AVX-512 masks",
    "AVX-512 upper halves",
    "AVX-512 upper registers",
    "processor trace",
    "protection keys",
];
const LEAF_ADDRESSES: u32 = 0x8000_0008;

/// What a host's CPU is, for people and for comparing it with another host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostCpu {
    /// The model's name: equal on two hosts when their guests of baseline `host` see the same CPU.
    pub(crate) model: String,
    /// What the CPU calls itself.
    brand: String,
    features: Vec<String>,
    baselines: Vec<BaselineReport>,
    table: Vec<Leaf>,
}

/// Whether a host can give a baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BaselineReport {
    name: String,
    /// What the host lacks; empty when it can give it.
    missing: Vec<String>,
}

impl HostCpu {
    pub(crate) fn of(host: &CpuModel) -> Self {
        let words = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        Self {
            model: host.to_string(),
            brand: host.brand(),
            features: words(features_of(host)),
            baselines: CpuBaseline::ALL
                .into_iter()
                .map(|baseline| BaselineReport {
                    name: baseline.name().to_owned(),
                    missing: words(baseline::missing(host, baseline)),
                })
                .collect(),
            table: host.leaves().to_vec(),
        }
    }

    /// For each baseline, whether a VM of it can move from `self` to `there`, and why not.
    pub(crate) fn compare(&self, there: &Self) -> String {
        let (here, there) =
            (CpuModel::from_leaves(self.table.clone()), CpuModel::from_leaves(there.table.clone()));
        let mut text = String::new();
        for baseline in CpuBaseline::ALL {
            let verdict =
                match (baseline::apply(&here, baseline), baseline::apply(&there, baseline)) {
                    (Ok(here), Ok(there)) => {
                        here.difference(&there).unwrap_or_else(|| "VMs can move".to_owned())
                    }
                    (Err(refusal), _) => format!("not on the source: {}", refusal.reason),
                    (_, Err(refusal)) => format!("not on the destination: {}", refusal.reason),
                };
            let _ = writeln!(text, "{baseline}: {verdict}");
        }
        text
    }

    /// Reads what `--cpu-report` printed on another host.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(text).map_err(|error| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("this is no CPU report: {error}"),
                "give the file that ballast-vmm --cpu-report printed on the other host",
            )
        })
    }
}

fn features_of(model: &CpuModel) -> Vec<&'static str> {
    let bits =
        WORDS.iter().flat_map(|word| (0..32).map(move |bit| features::Feature { word, bit }));
    bits.filter(|feature| model.has(*feature)).filter_map(|f| f.word.name(f.bit)).collect()
}

impl CpuModel {
    /// How a guest would notice that it has come from `self` to `there`; none when it would not.
    pub(crate) fn difference(&self, there: &Self) -> Option<String> {
        let mut parts = Vec::new();
        if self.vendor() != there.vendor() {
            parts.push(format!(
                "the CPU is made by {} on the source and by {} on the destination",
                self.vendor(),
                there.vendor()
            ));
        }
        if self.family() != there.family() {
            parts.push(format!(
                "the CPU is {} on the source and {} on the destination",
                shown_family(self),
                shown_family(there)
            ));
        }
        parts.extend(lacking("the destination lacks", self, there));
        parts.extend(lacking("only the destination has", there, self));
        parts.extend(xsave_difference(self, there));
        let addresses = |model: &Self| model.leaf(LEAF_ADDRESSES, 0)[0];
        if addresses(self) != addresses(there) {
            let bits = |eax: u32| format!("{} and {}", eax & 0xff, eax >> 8 & 0xff);
            parts.push(format!(
                "physical and linear addresses have {} bits on the source, {} on the destination",
                bits(addresses(self)),
                bits(addresses(there))
            ));
        }
        if parts.is_empty() {
            parts.extend(other_difference(self, there));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

fn shown_family(model: &CpuModel) -> String {
    let (family, number, stepping) = model.family();
    let brand = model.brand();
    let space = if brand.is_empty() { "" } else { " " };
    format!("{brand}{space}(family {family} model {number} stepping {stepping})")
}

/// The features `one` has and `other` has not.
fn lacking(what: &str, one: &CpuModel, other: &CpuModel) -> Option<String> {
    let mut names = Vec::new();
    for word in &WORDS {
        let register = word.register as usize;
        let of = |model: &CpuModel| model.leaf(word.function, word.index)[register];
        let bits = of(one) & !of(other);
        for bit in (0..32).filter(|bit| bits >> bit & 1 != 0) {
            let place = (word.function, word.index, word.register);
            let unnamed = || format!("bit {bit} of CPUID {:#x}.{} {:?}", place.0, place.1, place.2);
            names.push(word.name(bit).map_or_else(unnamed, str::to_owned));
        }
    }
    if names.is_empty() {
        return None;
    }
    let rest = names.len().saturating_sub(NAMED_MAX);
    names.truncate(NAMED_MAX);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    Some(format!("{what} {}{more}", names.join(", ")))
}

fn xsave_difference(one: &CpuModel, other: &CpuModel) -> Option<String> {
    let (here, there) = (one.leaf(0xd, 0)[0], other.leaf(0xd, 0)[0]);
    let place = |model: &CpuModel, component: u32| {
        let [size, offset, ..] = model.leaf(0xd, component);
        (size, offset)
    };
    let names = |matches: &dyn Fn(u32) -> bool| {
        let bits = (0..32u32).filter(|&bit| matches(bit));
        let name = |bit: u32| COMPONENTS.get(bit as usize).map_or("unnamed state", |name| *name);
        bits.map(name).collect::<Vec<_>>().join(", ")
    };
    if here != there {
        let only = |a: u32, b: u32| names(&|bit| a & !b & 1 << bit != 0);
        return Some(format!(
            "XSAVE saves other registers: only on the source [{}], only on the destination [{}]",
            only(here, there),
            only(there, here)
        ));
    }
    let moved = |bit: u32| bit > 1 && here & 1 << bit != 0 && place(one, bit) != place(other, bit);
    let moved = names(&moved);
    (!moved.is_empty()).then(|| format!("XSAVE puts {moved} at another place"))
}

/// What has no words of its own: caches, topology, what is reserved.
fn other_difference(one: &CpuModel, other: &CpuModel) -> Option<String> {
    let differs = |leaf: &&Leaf| other.leaf(leaf.function, leaf.index) != leaf.registers;
    let leaf = one.leaves().iter().find(differs);
    let extra = || {
        let differs = |leaf: &&Leaf| one.leaf(leaf.function, leaf.index) != leaf.registers;
        other.leaves().iter().find(differs)
    };
    let leaf = leaf.or_else(extra)?;
    let what = match leaf.function {
        2 | 4 | 0x18 | 0x8000_0005 | 0x8000_0006 | 0x8000_0019 | 0x8000_001d => "caches and TLBs",
        0xb | 0x1f | 0x8000_001e => "topology",
        0xa | 0x8000_0022 => "performance counters",
        0x8000_0002..=0x8000_0004 => "the CPU's name",
        0x4000_0000..=0x4fff_ffff => "what KVM offers guests",
        _ => "details",
    };
    Some(format!(
        "{what} differ (CPUID {:#x}.{} is {:x?} on the source and {:x?} on the destination)",
        leaf.function,
        leaf.index,
        one.leaf(leaf.function, leaf.index),
        other.leaf(leaf.function, leaf.index)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{AMD, INTEL, host};
    use super::*;

    #[test]
    fn a_difference_names_features_and_makers() {
        let one = host(INTEL, 0x506e3, &["sse3", "avx", "avx2", "lm"]);
        let two = host(INTEL, 0x806f8, &["sse3", "avx", "lm", "amx_tile"]);
        let words = one.difference(&two).unwrap();
        assert!(words.contains("family 6 model 94 stepping 3"), "{words}");
        assert!(words.contains("family 6 model 143 stepping 8"), "{words}");
        assert!(words.contains("the destination lacks avx2"), "{words}");
        assert!(words.contains("only the destination has amx_tile"), "{words}");
        let words = one.difference(&host(AMD, 0x80_0f11, &["sse3"])).unwrap();
        assert!(words.contains("GenuineIntel on the source and by AuthenticAMD"), "{words}");
        assert_eq!(one.difference(&one.clone()), None);
    }

    #[test]
    fn what_has_no_name_is_told_as_well() {
        let one = host(INTEL, 0x506e3, &[]);
        let mut leaves = one.leaves().to_vec();
        leaves.push(Leaf::new(0x8000_0006, 0, [1, 2, 3, 4]));
        let two = CpuModel::from_leaves(leaves);
        for (one, two) in [(&one, &two), (&two, &one)] {
            let words = one.difference(two).unwrap();
            assert!(words.starts_with("caches and TLBs differ"), "{words}");
        }
    }

    #[test]
    fn the_registers_xsave_saves_are_named() {
        let layout = |xcr0: u32, offset: u32| {
            let mut leaves = host(INTEL, 0x506e3, &[]).leaves().to_vec();
            leaves.retain(|leaf| leaf.function != 0xd);
            leaves.push(Leaf::new(0xd, 0, [xcr0, 0, 832, 0]));
            leaves.push(Leaf::new(0xd, 2, [256, offset, 0, 0]));
            CpuModel::from_leaves(leaves)
        };
        let words = layout(7, 576).difference(&layout(3, 576)).unwrap();
        assert!(words.contains("only on the source [AVX]"), "{words}");
        let words = layout(7, 576).difference(&layout(7, 640)).unwrap();
        assert!(words.contains("XSAVE puts AVX at another place"), "{words}");
    }

    #[test]
    fn a_pair_of_hosts_is_compared_by_baseline() {
        let v2: Vec<_> = (0..40).flat_map(|_| ["lm"]).collect();
        let one = HostCpu::of(&host(INTEL, 0x506e3, &v2));
        let text = serde_json::to_vec(&one).unwrap();
        let two = HostCpu::parse(&text).unwrap();
        assert_eq!(one, two);
        let compared = one.compare(&two);
        assert!(compared.contains("host: VMs can move"), "{compared}");
        assert!(compared.contains("x86-64-v2: not on the source: this host cannot"), "{compared}");
        assert!(HostCpu::parse(b"{}").is_err());
    }
}
