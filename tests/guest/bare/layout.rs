//! Where in guest memory the guest keeps what it checks.
//!
//! From 2 MiB on, one after the other: the table of generations (one u32 for
//! each page of the working set, in whole pages), the working set, the static
//! pages, the zero pages.

use core::ops::Range;

/// Size of a page, in bytes.
pub const PAGE_BYTES: u64 = 4096;
const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_BYTES;
/// The first MiB is the loader's, the second holds the program.
const START: u64 = 2 << 20;

/// Guest physical addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// How often each page of the working set was rewritten.
    pub generations: Range<u64>,
    /// Pages that are rewritten again and again.
    pub working_set: Range<u64>,
    /// Pages that are written once.
    pub unchanging: Range<u64>,
    /// Pages that are never written.
    pub zero: Range<u64>,
}

impl Layout {
    /// The layout for these sizes, each in MiB.
    pub const fn new(working_set_mib: u32, static_mib: u32, zero_mib: u32) -> Self {
        let table = (working_set_mib as u64 * PAGES_PER_MIB * 4).next_multiple_of(PAGE_BYTES);
        let generations = START..START + table;
        let working_set = after(&generations, working_set_mib);
        let unchanging = after(&working_set, static_mib);
        let zero = after(&unchanging, zero_mib);
        Self { generations, working_set, unchanging, zero }
    }

    /// The first address behind all of it: the memory the guest needs, in bytes.
    pub const fn end(&self) -> u64 {
        self.zero.end
    }
}

const fn after(range: &Range<u64>, mib: u32) -> Range<u64> {
    range.end..range.end + ((mib as u64) << 20)
}
