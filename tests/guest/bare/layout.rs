//! Where in guest memory the guest keeps what it checks.
//!
//! From 2 MiB on, one after the other: the table of generations (one u32 for
//! each page that is rewritten, in whole pages), the working set, the static
//! pages, the zero pages. From 4 GiB on, behind the hole for devices: the high
//! pages, which are rewritten like the working set.

use core::ops::Range;

/// Size of a page, in bytes.
pub const PAGE_BYTES: u64 = 4096;
const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_BYTES;
/// The first MiB is the loader's, the second holds the program.
const START: u64 = 2 << 20;
/// Where memory goes on behind the hole for devices.
const HIGH_START: u64 = 4 << 30;

/// Guest physical addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// How often each page of the working set was rewritten.
    pub generations: Range<u64>,
    /// Pages that are rewritten again and again.
    pub working_set: Range<u64>,
    /// More of them, at and above 4 GiB.
    pub high: Range<u64>,
    /// Pages that are written once.
    pub unchanging: Range<u64>,
    /// Pages that are never written.
    pub zero: Range<u64>,
}

impl Layout {
    /// The layout for these sizes, each in MiB.
    pub const fn new(working_set_mib: u32, static_mib: u32, zero_mib: u32, high_mib: u32) -> Self {
        let rewritten_mib = working_set_mib as u64 + high_mib as u64;
        let table = (rewritten_mib * PAGES_PER_MIB * 4).next_multiple_of(PAGE_BYTES);
        let generations = START..START + table;
        let working_set = after(&generations, working_set_mib);
        let unchanging = after(&working_set, static_mib);
        let zero = after(&unchanging, zero_mib);
        let high = HIGH_START..HIGH_START + ((high_mib as u64) << 20);
        Self { generations, working_set, high, unchanging, zero }
    }

    /// The first address behind all of it but the high pages: the memory the guest needs below
    /// the hole for devices, in bytes.
    pub const fn end(&self) -> u64 {
        self.zero.end
    }
}

const fn after(range: &Range<u64>, mib: u32) -> Range<u64> {
    range.end..range.end + ((mib as u64) << 20)
}
