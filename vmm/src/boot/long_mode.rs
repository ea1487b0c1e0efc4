//! The CPU as the 64-bit boot protocol wants it: 64-bit mode in ring 0, flat
//! segments, paging on with the first 4 GiB mapped to themselves, interrupts off.

use ballast_model::Refusal;
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use super::low::{self, GDT, PAGE_TABLES};
use crate::memory::GuestRam;

/// Linux's `__BOOT_CS`, `__BOOT_DS`, and the task state segment behind them.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;
const DESCRIPTORS: [u64; 5] =
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];

const CR0: u64 = 0x8005_0033; // PG AM WP NE ET MP PE
const CR4: u64 = 0x20; // PAE
const EFER: u64 = 0x500; // LMA LME
const RFLAGS_INTERRUPTS_OFF: u64 = 2;

const TABLE_BYTES: u64 = 4096;
const ENTRIES: u64 = 512;
const PRESENT_WRITABLE: u64 = 0x3;
const HUGE: u64 = 0x80;
const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Page directories, of 1 GiB each.
const DIRECTORIES: u64 = 4;

/// Writes descriptors and page tables.
pub(super) fn write(memory: &GuestRam) -> Result<(), Refusal> {
    let words =
        |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let pointers = PAGE_TABLES + TABLE_BYTES;
    let directories = pointers + TABLE_BYTES;
    let to = |directory: u64| (directories + directory * TABLE_BYTES) | PRESENT_WRITABLE;
    let huge = |page: u64| (page * HUGE_PAGE_BYTES) | HUGE | PRESENT_WRITABLE;
    low::write(memory, &words(&DESCRIPTORS), GDT)?;
    low::write(memory, &words(&[pointers | PRESENT_WRITABLE]), PAGE_TABLES)?;
    low::write(memory, &words(&(0..DIRECTORIES).map(to).collect::<Vec<_>>()), pointers)?;
    let pages: Vec<u64> = (0..DIRECTORIES * ENTRIES).map(huge).collect();
    low::write(memory, &words(&pages), directories)
}

/// General registers at `entry`, with the boot parameters in RSI.
pub(super) fn regs(entry: u64, boot_params: u64) -> kvm_regs {
    kvm_regs { rip: entry, rsi: boot_params, rflags: RFLAGS_INTERRUPTS_OFF, ..Default::default() }
}

/// Special registers; what the guest has no say in comes from `reset`.
pub(super) fn sregs(reset: kvm_sregs) -> kvm_sregs {
    let data = segment(DATA, 3);
    kvm_sregs {
        cs: kvm_segment { l: 1, db: 0, ..segment(CODE, 11) },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task_segment(TASK),
        gdt: kvm_dtable { base: GDT, limit: 39, padding: [0; 3] },
        idt: kvm_dtable::default(),
        cr0: CR0,
        cr3: PAGE_TABLES,
        cr4: CR4,
        efer: EFER,
        ..reset
    }
}

/// A flat 4 GiB segment of ring 0.
pub(super) fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// A busy task state segment nobody will look into.
pub(super) fn task_segment(selector: u16) -> kvm_segment {
    kvm_segment { limit: 0x67, selector, type_: 11, present: 1, ..Default::default() }
}
