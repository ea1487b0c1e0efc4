//! The `hvm_start_info` of the x86/HVM direct boot ABI: command line, memory map, initial RAM disk.
//!
//! Layout: Xen, `xen/include/public/arch-x86/hvm/start_info.h`, version 1. The
//! memory map stands behind the structure; see [`super::low`] for the addresses.

use ballast_model::Refusal;
use vm_memory::GuestAddress;

use super::initrd::Initrd;
use super::low::{self, Entry, MODULES, START_INFO};
use crate::memory::GuestRam;

const MEMORY_MAP: u64 = START_INFO + 56;
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;

/// What the structure tells, beside the command line at [`low::CMDLINE`].
#[derive(Debug)]
pub(super) struct StartInfo<'a> {
    pub(super) map: &'a [Entry],
    pub(super) initrd: Option<Initrd>,
    /// Address of the ACPI root pointer; 0 for none.
    pub(super) rsdp: u64,
}

impl StartInfo<'_> {
    /// Writes it and answers with its address.
    pub(super) fn write(&self, memory: &GuestRam) -> Result<GuestAddress, Refusal> {
        let mut map = Vec::new();
        for entry in self.map {
            map.extend_from_slice(&entry.start.to_le_bytes());
            map.extend_from_slice(&entry.bytes.to_le_bytes());
            map.extend_from_slice(&(entry.kind as u32).to_le_bytes());
            map.extend_from_slice(&0u32.to_le_bytes());
        }
        let entries = u32::try_from(self.map.len()).unwrap_or(u32::MAX);
        let modules = if self.initrd.is_some() { (1u32, MODULES) } else { (0, 0) };
        let mut info = Vec::with_capacity(56);
        info.extend_from_slice(&MAGIC.to_le_bytes());
        info.extend_from_slice(&VERSION.to_le_bytes());
        info.extend_from_slice(&0u32.to_le_bytes()); // flags
        info.extend_from_slice(&modules.0.to_le_bytes());
        info.extend_from_slice(&modules.1.to_le_bytes());
        info.extend_from_slice(&low::CMDLINE.to_le_bytes());
        info.extend_from_slice(&self.rsdp.to_le_bytes());
        info.extend_from_slice(&MEMORY_MAP.to_le_bytes());
        info.extend_from_slice(&entries.to_le_bytes());
        info.extend_from_slice(&[0; 4]);
        low::write(memory, &info, START_INFO)?;
        low::write(memory, &map, MEMORY_MAP)?;
        if let Some(initrd) = self.initrd {
            let mut module = Vec::with_capacity(32);
            module.extend_from_slice(&initrd.address.to_le_bytes());
            module.extend_from_slice(&initrd.bytes.to_le_bytes());
            module.extend_from_slice(&[0; 16]); // no command line of its own, reserved
            low::write(memory, &module, MODULES)?;
        }
        Ok(GuestAddress(START_INFO))
    }
}
