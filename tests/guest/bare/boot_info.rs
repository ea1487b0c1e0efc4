//! What the loader says: the command line and the memory map, by way of Xen's
//! `hvm_start_info` (x86/HVM direct boot ABI, version 1).

use core::ptr;

const MAGIC: u32 = 0x336e_c578;
const CMDLINE_MAX: usize = 4096;
const MAP_ENTRIES_MAX: u32 = 128;
const RAM: u32 = 1;
/// Where memory goes on behind the hole for devices.
const HIGH_START: u64 = 4 << 30;

/// What of it the guest needs, copied out of memory that is not its own.
pub struct BootInfo {
    cmdline: [u8; CMDLINE_MAX],
    cmdline_len: usize,
    /// The end of the memory region that holds this program, as an address.
    pub memory_end: u64,
    /// The end of the region that begins behind the hole for devices; 0 when there is none.
    pub high_end: u64,
}

impl BootInfo {
    pub fn cmdline(&self) -> &[u8] {
        &self.cmdline[..self.cmdline_len]
    }
}

/// Reads the structure at a physical address.
pub fn read(start_info: u64) -> Result<BootInfo, &'static str> {
    if get::<u32>(start_info) != MAGIC || get::<u32>(start_info + 4) < 1 {
        return Err("no boot information with a memory map");
    }
    let mut info =
        BootInfo { cmdline: [0; CMDLINE_MAX], cmdline_len: 0, memory_end: 0, high_end: 0 };
    let cmdline = get::<u64>(start_info + 24);
    if cmdline != 0 {
        for (at, byte) in info.cmdline.iter_mut().enumerate() {
            *byte = get::<u8>(cmdline + at as u64);
            if *byte == 0 {
                break;
            }
            info.cmdline_len += 1;
        }
    }
    let map = get::<u64>(start_info + 40);
    let entries = get::<u32>(start_info + 48).min(MAP_ENTRIES_MAX);
    let here = ptr::from_ref(&MAGIC).addr() as u64;
    for entry in (0..entries).map(|entry| map + 24 * u64::from(entry)) {
        let (start, size) = (get::<u64>(entry), get::<u64>(entry + 8));
        if get::<u32>(entry + 16) != RAM {
            continue;
        }
        if start <= here && here - start < size {
            info.memory_end = start.saturating_add(size);
        }
        if start == HIGH_START {
            info.high_end = start.saturating_add(size);
        }
    }
    if info.memory_end == 0 { Err("memory map without this program") } else { Ok(info) }
}

fn get<T: Copy>(address: u64) -> T {
    // SAFETY: the loader gives physical addresses below 4 GiB, which are all mapped one to one.
    unsafe { ptr::with_exposed_provenance::<T>(address as usize).read_unaligned() }
}
