//! What stands in the guest's first mebibyte, and the map of memory that says so.
//!
//! | address | what | who reads it |
//! | --- | --- | --- |
//! | 0x500 | descriptor table of the first code segment | a Linux kernel's first instructions |
//! | 0x6000 | start information, behind it memory map and modules | PVH and ring-3 guests |
//! | 0x7000 | command line | all |
//! | 0x8000 | boot parameters ("zero page") | a bzImage |
//! | 0x9000 | six pages of page tables | a bzImage's first instructions |
//! | 0x9fc00–0x100000 | not RAM, as on a PC | |
//! | 0xe0000 | ACPI tables | Linux, for as long as it runs |
//! | 0xffff0 | the first instruction after a reset, as on a PC ([`super::firmware`]) | Linux, when it restarts |
//!
//! All but the last two may be overwritten once the guest has read it.

use ballast_model::{Refusal, RefusalCode};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::GuestRam;

pub(super) const GDT: u64 = 0x500;
pub(super) const START_INFO: u64 = 0x6000;
pub(super) const MODULES: u64 = 0x6f00;
pub(super) const CMDLINE: u64 = 0x7000;
pub(super) const BOOT_PARAMS: u64 = 0x8000;
pub(super) const PAGE_TABLES: u64 = 0x9000;
/// Where RAM ends on a PC, below the area of firmware and adapters.
const BASE_RAM_END: u64 = 0x9_fc00;
/// Where the search for the ACPI root pointer begins on a PC.
pub(super) const ACPI: u64 = 0xe_0000;
/// Where a PC's CPU begins in real mode, at F000:FFF0.
pub(super) const RESET_VECTOR: u64 = 0xf_fff0;
/// The lowest address of a kernel, and the end of all the above: 1 MiB.
pub(super) const IMAGE_START: u64 = 0x10_0000;

/// The three pages of KVM's task state segment and its identity map; nothing may be placed there.
const KVM_PAGES: (u64, u64) = (0xfffb_c000, 0x4000);
/// More memory slots than any machine of ours has.
const REGIONS_MAX: usize = 16;

/// What a range of addresses is (ACPI 6.5, table 15.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Ram = 1,
    Reserved = 2,
}

/// One range of the memory map, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) kind: Kind,
}

/// The map as a PC's firmware would give it.
pub(super) fn memory_map(memory: &GuestRam) -> Vec<Entry> {
    let mut map = vec![
        Entry { start: 0, bytes: BASE_RAM_END, kind: Kind::Ram },
        Entry { start: BASE_RAM_END, bytes: IMAGE_START - BASE_RAM_END, kind: Kind::Reserved },
    ];
    for mut entry in regions(memory) {
        if entry.start == 0 {
            entry.start = IMAGE_START;
            entry.bytes = entry.bytes.saturating_sub(IMAGE_START);
        }
        map.push(entry);
    }
    map.push(Entry { start: KVM_PAGES.0, bytes: KVM_PAGES.1, kind: Kind::Reserved });
    map.sort_unstable_by_key(|entry| entry.start);
    map
}

/// Guest memory as it is, without the holes of a PC.
pub(super) fn regions(memory: &GuestRam) -> Vec<Entry> {
    let entry = |region: &vm_memory::GuestRegionMmap<_>| Entry {
        start: region.start_addr().0,
        bytes: region.len(),
        kind: Kind::Ram,
    };
    memory.iter().take(REGIONS_MAX).map(entry).collect()
}

/// The end of the range of memory that starts at address 0.
pub(super) fn low_end(memory: &GuestRam) -> u64 {
    regions(memory).iter().find(|entry| entry.start == 0).map_or(0, |entry| entry.bytes)
}

/// Writes boot information into low memory.
pub(super) fn write(memory: &GuestRam, bytes: &[u8], address: u64) -> Result<(), Refusal> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|error| {
        Refusal::new(
            RefusalCode::CapacityExceeded,
            format!("guest memory has no room for the boot information: {error}"),
            "give the VM at least 4 MiB of memory, from guest address 0 on",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_a_pcs() {
        let ranges = [(GuestAddress(0), 8 << 20), (GuestAddress(1 << 32), 2 << 20)];
        let memory = GuestRam::from_ranges(&ranges).unwrap();
        let map: Vec<_> =
            memory_map(&memory).iter().map(|e| (e.start, e.start + e.bytes, e.kind)).collect();
        assert_eq!(
            map,
            [
                (0, 0x9_fc00, Kind::Ram),
                (0x9_fc00, 0x10_0000, Kind::Reserved),
                (0x10_0000, 0x80_0000, Kind::Ram),
                (0xfffb_c000, 0xfffc_0000, Kind::Reserved),
                (0x1_0000_0000, 0x1_0020_0000, Kind::Ram),
            ]
        );
        assert_eq!(low_end(&memory), 8 << 20);
    }
}
