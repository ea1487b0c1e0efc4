//! Guests that are entered in ring 3, in 64-bit mode, with paging on.
//!
//! Such an image brings its own page tables and descriptor tables and names
//! them in an ELF note of owner `Ballast`, type 1. It needs no ring-0 code to
//! start, and so starts fast on any KVM, also where ring 0 is emulated. The
//! contract stands in docs/probe-guest.md; this file is its host side.

use std::path::Path;

use ballast_model::{Refusal, RefusalCode};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use super::elf::Image;

const OWNER: &[u8] = b"Ballast";
const NOTE_TYPE: u32 = 1;
const VERSION: u64 = 2;

/// Selectors every image's GDT must have.
const RING3_DATA: u16 = 0x1b;
const RING3_CODE: u16 = 0x23;
const TSS: u16 = 0x28;

const SEGMENT_DATA_RW_ACCESSED: u8 = 3;
const SEGMENT_CODE_RX_ACCESSED: u8 = 11;
const SEGMENT_TSS_BUSY: u8 = 11;

const CR0: u64 = 0x8005_0033; // PG AM WP NE ET MP PE
const CR4: u64 = 0x620; // OSXMMEXCPT OSFXSR PAE
const EFER: u64 = 0x500; // LMA LME
const APIC_BASE_X2APIC: u64 = 0xc00; // enabled, x2APIC mode
const RFLAGS_INTERRUPTS_OFF: u64 = 2;

/// The note, read and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    instruction: u64,
    page_tables: u64,
    gdt: Table,
    idt: Table,
    /// vCPU 0's.
    tss: Table,
    /// From one vCPU's TSS to the next one's, in bytes.
    tss_stride: u64,
    /// How many vCPUs it can be entered on.
    vcpus_max: u64,
}

/// A descriptor table or the TSS: where it is, and the offset of its last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Table {
    base: u64,
    limit: u16,
}

impl Entry {
    /// The entry the image has; none when it has none.
    pub(super) fn find(image: &Image, path: &Path) -> Result<Option<Self>, Refusal> {
        let Some(note) = image.note(OWNER, NOTE_TYPE) else { return Ok(None) };
        Self::parse(note).map(Some).ok_or_else(|| {
            Refusal::new(
                RefusalCode::Unsupported,
                format!(
                    "kernel {} has a ring-3 entry note this version cannot read",
                    path.display()
                ),
                "rebuild it against the boot contract in docs/probe-guest.md, version 2",
            )
        })
    }

    fn parse(note: &[u8]) -> Option<Self> {
        let mut words = note.chunks_exact(8).map(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_le_bytes(bytes)
        });
        let mut next = || words.next();
        if next()? != VERSION {
            return None;
        }
        let instruction = next()?;
        let page_tables = next()?;
        let mut table = || Some(Table { base: next()?, limit: u16::try_from(next()?).ok()? });
        let (gdt, idt, tss) = (table()?, table()?, table()?);
        let (tss_stride, vcpus_max) = (next()?, next()?);
        let entry = Self { instruction, page_tables, gdt, idt, tss, tss_stride, vcpus_max };
        page_tables.is_multiple_of(4096).then_some(entry)
    }

    /// Whether it can be entered on vCPU `index`; if not, that one waits for ever.
    pub(super) fn takes(&self, index: u32) -> bool {
        u64::from(index) < self.vcpus_max
    }

    pub(super) fn regs(&self, index: u32, start_info: u64) -> kvm_regs {
        kvm_regs {
            rip: self.instruction,
            rdi: start_info,
            rsi: index.into(),
            rflags: RFLAGS_INTERRUPTS_OFF,
            ..Default::default()
        }
    }

    pub(super) fn sregs(&self, index: u32, reset: kvm_sregs) -> kvm_sregs {
        let data = segment(RING3_DATA, SEGMENT_DATA_RW_ACCESSED);
        let code = kvm_segment { l: 1, db: 0, ..segment(RING3_CODE, SEGMENT_CODE_RX_ACCESSED) };
        let tr = kvm_segment {
            base: self.tss.base.wrapping_add(self.tss_stride.wrapping_mul(index.into())),
            limit: u32::from(self.tss.limit),
            selector: TSS,
            type_: SEGMENT_TSS_BUSY,
            present: 1,
            ..Default::default()
        };
        kvm_sregs {
            cs: code,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr,
            ldt: kvm_segment { unusable: 1, ..Default::default() },
            gdt: self.gdt.into(),
            idt: self.idt.into(),
            cr0: CR0,
            cr3: self.page_tables,
            cr4: CR4,
            efer: EFER,
            apic_base: reset.apic_base | APIC_BASE_X2APIC,
            ..reset
        }
    }
}

impl From<Table> for kvm_dtable {
    fn from(table: Table) -> Self {
        Self { base: table.base, limit: table.limit, padding: [0; 3] }
    }
}

/// A flat 4 GiB segment of ring 3.
fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    }
}
