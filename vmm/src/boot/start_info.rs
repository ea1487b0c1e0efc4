//! The `hvm_start_info` of the x86/HVM direct boot ABI: command line and memory map.
//!
//! Layout: Xen, `xen/include/public/arch-x86/hvm/start_info.h`, version 1. The
//! page at [`START_INFO`] holds the structure and the memory map behind it; the
//! command line has pages of its own. All of it lies in low memory, which no
//! image may occupy ([`super::elf::IMAGE_START`]).

use ballast_model::vm::CMDLINE_BYTES_MAX;
use ballast_model::{Refusal, RefusalCode};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::GuestRam;

/// Guest physical address of the structure.
const START_INFO: u64 = 0x6000;
const MEMORY_MAP: u64 = START_INFO + 56;
const CMDLINE: u64 = 0x7000;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const E820_RAM: u32 = 1;
/// More memory slots than any machine of ours has.
const REGIONS_MAX: usize = 16;

/// The longest command line with everything appended, its closing NUL included.
const CMDLINE_ROOM: usize = CMDLINE_BYTES_MAX + 64;

/// Writes the structure, the memory map and the command line, and answers with
/// the structure's address.
pub(super) fn write(memory: &GuestRam, cmdline: &str) -> Result<u64, Refusal> {
    if cmdline.len() >= CMDLINE_ROOM || cmdline.contains('\0') {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            "the kernel command line is too long or holds a NUL byte",
            format!("use at most {CMDLINE_BYTES_MAX} bytes of text"),
        ));
    }
    let mut map = Vec::new();
    let mut regions = 0u32;
    for region in memory.iter().take(REGIONS_MAX) {
        map.extend_from_slice(&region.start_addr().0.to_le_bytes());
        map.extend_from_slice(&region.len().to_le_bytes());
        map.extend_from_slice(&E820_RAM.to_le_bytes());
        map.extend_from_slice(&0u32.to_le_bytes());
        regions += 1;
    }
    let mut info = Vec::with_capacity(56);
    info.extend_from_slice(&MAGIC.to_le_bytes());
    info.extend_from_slice(&VERSION.to_le_bytes());
    info.extend_from_slice(&[0; 8]); // flags, number of modules
    info.extend_from_slice(&0u64.to_le_bytes()); // modules
    info.extend_from_slice(&CMDLINE.to_le_bytes());
    info.extend_from_slice(&0u64.to_le_bytes()); // ACPI tables
    info.extend_from_slice(&MEMORY_MAP.to_le_bytes());
    info.extend_from_slice(&regions.to_le_bytes());
    info.extend_from_slice(&[0; 4]);

    let mut text = cmdline.as_bytes().to_vec();
    text.push(0);
    for (bytes, address) in [(&info, START_INFO), (&map, MEMORY_MAP), (&text, CMDLINE)] {
        memory.write_slice(bytes, GuestAddress(address)).map_err(|error| {
            Refusal::new(
                RefusalCode::CapacityExceeded,
                format!("guest memory has no room for the boot information: {error}"),
                "give the VM at least 4 MiB of memory, from guest address 0 on",
            )
        })?;
    }
    Ok(START_INFO)
}
