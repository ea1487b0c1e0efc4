//! Kernels entered by PVH: 32-bit protected mode, paging off, EBX at the start information.
//!
//! The entry stands in an ELF note of owner `Xen`, type 18 (`XEN_ELFNOTE_PHYS32_ENTRY`);
//! the state of the CPU is told in Xen, `docs/misc/pvh.pandoc`.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_sregs};

use super::elf::Image;
use super::long_mode::{segment, task_segment};

const OWNER: &[u8] = b"Xen";
const NOTE_TYPE: u32 = 18;

const CR0: u64 = 0x11; // ET PE
const RFLAGS_INTERRUPTS_OFF: u64 = 2;

/// The physical address of the entry, where the image has one.
pub(super) fn entry(image: &Image) -> Option<u64> {
    let note = image.note(OWNER, NOTE_TYPE)?;
    match note.len() {
        4 => Some(u32::from_le_bytes(note.try_into().ok()?).into()),
        8 => u32::try_from(u64::from_le_bytes(note.try_into().ok()?)).ok().map(u64::from),
        _ => None,
    }
}

pub(super) fn regs(entry: u64, start_info: u64) -> kvm_regs {
    kvm_regs { rip: entry, rbx: start_info, rflags: RFLAGS_INTERRUPTS_OFF, ..Default::default() }
}

pub(super) fn sregs(reset: kvm_sregs) -> kvm_sregs {
    // Selectors are the loader's choice: the kernel loads its own before it uses one.
    let data = segment(0x10, 3);
    kvm_sregs {
        cs: segment(0x8, 11),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task_segment(0x18),
        gdt: kvm_dtable::default(),
        idt: kvm_dtable::default(),
        cr0: CR0,
        cr4: 0,
        efer: 0,
        ..reset
    }
}
