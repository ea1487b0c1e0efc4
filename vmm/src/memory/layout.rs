//! Where guest memory lies, told by its size alone.

use ballast_model::Bytes;

use super::PAGE_BYTES;
use crate::codec::{Decoder, Encoder, Malformed};

/// x86 keeps the gigabyte below 4 GiB for devices and interrupt controllers.
const GAP_START: u64 = 3 << 30;
const GAP_END: u64 = 4 << 30;
const RANGES_MAX: usize = 16;

/// Where guest memory lies in the guest's physical address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(super) ranges: Vec<Range>,
}

/// One range of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    /// Guest physical address, in bytes.
    pub(crate) start: u64,
    /// Size in pages.
    pub(crate) pages: u64,
}

impl Layout {
    /// The layout of a guest with this much memory.
    pub(crate) fn of_size(memory: Bytes) -> Self {
        let low = memory.get().min(GAP_START);
        let high = memory.get() - low;
        let pages = |bytes: u64| bytes / PAGE_BYTES as u64;
        let mut ranges = vec![Range { start: 0, pages: pages(low) }];
        if high > 0 {
            ranges.push(Range { start: GAP_END, pages: pages(high) });
        }
        Self { ranges }
    }

    /// Guest memory in all, in pages.
    pub(crate) fn pages(&self) -> u64 {
        self.ranges.iter().map(|range| range.pages).sum()
    }

    /// Guest memory in all.
    pub(crate) fn bytes(&self) -> Bytes {
        Bytes(self.pages() * PAGE_BYTES as u64)
    }

    pub(crate) fn encode(&self, to: &mut Encoder) {
        to.count(self.ranges.len());
        for range in &self.ranges {
            to.u64(range.start).u64(range.pages);
        }
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        const WHAT: &str = "the memory layout";
        let count = from.count(RANGES_MAX, WHAT)?;
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            ranges.push(Range { start: from.u64(WHAT)?, pages: from.u64(WHAT)? });
        }
        Ok(Self { ranges })
    }
}

impl std::fmt::Display for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (place, range) in self.ranges.iter().enumerate() {
            let gap = if place > 0 { ", " } else { "" };
            write!(f, "{gap}{} pages at {:#x}", range.pages, range.start)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_layout(memory: Bytes, expected: &str) {
        let layout = Layout::of_size(memory);
        assert_eq!(layout.to_string(), expected);
        assert_eq!(layout.bytes(), memory);
    }

    #[test]
    fn memory_leaves_the_device_gap_free() {
        check_layout(Bytes::mib(64), "16384 pages at 0x0");
        check_layout(Bytes::gib(3), "786432 pages at 0x0");
        check_layout(Bytes::gib(5), "786432 pages at 0x0, 524288 pages at 0x100000000");
    }
}
