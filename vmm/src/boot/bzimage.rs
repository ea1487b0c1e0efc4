//! Linux bzImages, entered by the 64-bit boot protocol.
//!
//! The source is Linux `Documentation/arch/x86/boot.rst`. A bzImage is a
//! real-mode part, which is not used, with the setup header in it, and behind it
//! the protected-mode part: a small program that unpacks the kernel. That part
//! goes to [`IMAGE_START`], is entered 0x200 bytes in, in 64-bit mode with an
//! identity map, and finds the boot parameters where RSI points: a page with a
//! copy of the setup header, filled in, and the memory map.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use super::fault::{Fault, u8_at, u16_at, u32_at, u64_at};
use super::initrd::{Initrd, Room};
use super::low::{self, BOOT_PARAMS, CMDLINE, Entry, IMAGE_START};
use crate::memory::GuestRam;

/// What is read of the file's start: everything the setup header can reach.
const HEAD_BYTES: usize = 0x290;
const SECTOR: u64 = 512;
/// The first version with 64-bit entry points said in `xloadflags`.
const VERSION_MIN: u16 = 0x020c;
const ENTRY_64: u64 = 0x200;

/// Offsets of the setup header's fields, in the file and in the boot parameters alike.
mod at {
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const SYSSIZE: usize = 0x1f4;
    pub(super) const JUMP: usize = 0x201;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const CODE32_START: usize = 0x214;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const RELOCATABLE: usize = 0x234;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
}
/// Offsets in the boot parameters only.
const ACPI_RSDP_ADDR: usize = 0x70;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_BYTES: usize = 20;
const E820_ENTRIES_MAX: usize = 128;

const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
const LOADER_UNKNOWN: u8 = 0xff;

/// A bzImage whose protected-mode part is in guest memory.
#[derive(Debug)]
pub(super) struct BzImage {
    /// The start of the file, the setup header in it.
    head: Vec<u8>,
    /// Where the kernel, unpacked, may end.
    end: u64,
}

/// Whether a file with this start claims to be one.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.get(at::MAGIC..at::MAGIC + 4) == Some(b"HdrS")
}

impl BzImage {
    /// Checks the header and loads the protected-mode part.
    pub(super) fn load(memory: &GuestRam, file: &mut File) -> Result<Self, Fault> {
        let mut head = vec![0; HEAD_BYTES];
        file.read_exact_at(&mut head, 0).map_err(|_| Fault::Malformed("setup header"))?;
        if u16_at(&head, at::VERSION) < VERSION_MIN
            || u8_at(&head, at::LOADFLAGS) & LOADED_HIGH == 0
            || u16_at(&head, at::XLOADFLAGS) & XLF_KERNEL_64 == 0
            || u8_at(&head, at::RELOCATABLE) == 0
        {
            return Err(Fault::NoEntry64);
        }
        let setup_sectors = match u8_at(&head, at::SETUP_SECTS) {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let start = (setup_sectors + 1) * SECTOR;
        let bytes = u64::from(u32_at(&head, at::SYSSIZE)) * 16;
        let there = file.metadata()?.len().saturating_sub(start);
        if bytes <= ENTRY_64 || there < bytes {
            return Err(Fault::CutShort { there, bytes });
        }
        let end = unpacked_end(&head, bytes);
        let memory_end = low::low_end(memory);
        if end > memory_end {
            return Err(Fault::NoRoom { end, memory_end });
        }
        let bytes = usize::try_from(bytes).map_err(|_| Fault::NoRoom { end, memory_end })?;
        file.seek(SeekFrom::Start(start))?;
        memory
            .read_exact_volatile_from(GuestAddress(IMAGE_START), file, bytes)
            .map_err(|_| Fault::Malformed("kernel"))?;
        Ok(Self { head, end })
    }

    /// Where an initial RAM disk may be.
    pub(super) fn initrd_room(&self) -> Room {
        let last = u64::from(u32_at(&self.head, at::INITRD_ADDR_MAX));
        Room { start: self.end, end: last.saturating_add(1) }
    }

    /// The longest command line it takes, in bytes.
    pub(super) fn cmdline_bytes_max(&self) -> usize {
        usize::try_from(u32_at(&self.head, at::CMDLINE_SIZE)).unwrap_or(usize::MAX)
    }

    /// The address of its first instruction.
    pub(super) fn entry(&self) -> u64 {
        IMAGE_START + ENTRY_64
    }

    /// The page RSI points to.
    pub(super) fn boot_params(&self, map: &[Entry], initrd: Option<Initrd>, rsdp: u64) -> Vec<u8> {
        let mut page = vec![0; 4096];
        // The header ends where the jump over it leads to.
        let end = at::MAGIC + usize::from(u8_at(&self.head, at::JUMP));
        let header = at::SETUP_SECTS..end.min(HEAD_BYTES);
        page[header.clone()].copy_from_slice(&self.head[header]);
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        let low_half = |address: u64| u32::try_from(address).unwrap_or(0).to_le_bytes();
        put(at::TYPE_OF_LOADER, &[LOADER_UNKNOWN]);
        put(at::CODE32_START, &low_half(IMAGE_START));
        put(at::CMD_LINE_PTR, &low_half(CMDLINE));
        if let Some(initrd) = initrd {
            put(at::RAMDISK_IMAGE, &low_half(initrd.address));
            put(at::RAMDISK_SIZE, &low_half(initrd.bytes));
        }
        put(ACPI_RSDP_ADDR, &rsdp.to_le_bytes());
        let map = &map[..map.len().min(E820_ENTRIES_MAX)];
        put(E820_ENTRIES, &[u8::try_from(map.len()).unwrap_or(0)]);
        for (place, entry) in map.iter().enumerate() {
            let at = E820_TABLE + place * E820_ENTRY_BYTES;
            put(at, &entry.start.to_le_bytes());
            put(at + 8, &entry.bytes.to_le_bytes());
            put(at + 16, &(entry.kind as u32).to_le_bytes());
        }
        page
    }

    /// Writes that page and answers with its address.
    pub(super) fn write_boot_params(
        &self,
        memory: &GuestRam,
        map: &[Entry],
        initrd: Option<Initrd>,
        rsdp: u64,
    ) -> Result<u64, ballast_model::Refusal> {
        low::write(memory, &self.boot_params(map, initrd, rsdp), BOOT_PARAMS)?;
        Ok(BOOT_PARAMS)
    }
}

/// Where the kernel may end while it unpacks itself: `init_size` bytes behind
/// the address it prefers, or behind the packed one.
fn unpacked_end(head: &[u8], packed_bytes: u64) -> u64 {
    let start = u64_at(head, at::PREF_ADDRESS).max(IMAGE_START);
    let unpacked = start.saturating_add(u64::from(u32_at(head, at::INIT_SIZE)));
    unpacked.max(IMAGE_START + packed_bytes)
}
