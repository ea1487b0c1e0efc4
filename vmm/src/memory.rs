//! Guest memory: its layout, its mapping, and pages by number.
//!
//! Pages are numbered without gaps through all of guest memory: page 0 is the
//! first page of the first range. The layout follows from the size alone, so
//! two hosts agree on it when they agree on the size; they compare it anyway.
//!
//! The mapping is private anonymous memory, aligned to 2 MiB and advised to use
//! huge pages: after dirty logging ends such memory is back at full speed at
//! once, and a page that arrives faults in 512 of its neighbours with it.

use std::num::NonZeroUsize;

use ballast_model::{Bytes, Refusal, RefusalCode};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use crate::codec::{Decoder, Encoder, Malformed};

/// The unit of transfer and of dirty tracking, in bytes.
pub(crate) const PAGE_BYTES: usize = 4096;
const PAGE: NonZeroUsize = NonZeroUsize::new(PAGE_BYTES).unwrap();
/// x86 keeps the gigabyte below 4 GiB for devices and interrupt controllers.
const GAP_START: u64 = 3 << 30;
const GAP_END: u64 = 4 << 30;
const RANGES_MAX: usize = 16;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Guest memory by guest address, as devices use it.
///
/// KVM's dirty log knows what vCPUs wrote, not what this process wrote for the
/// guest's devices. So each region has a bitmap of its own, always on, in which
/// every write through this type sets its pages' bits *after* the data. Who
/// writes by address (a `preadv` into guest memory, say) marks the range itself
/// when the write is complete. See [`Memory::take_device_writes`].
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;
type GuestRegion = GuestRegionMmap<AtomicBitmap>;

/// Where guest memory lies in the guest's physical address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    ranges: Vec<Range>,
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

/// Guest memory, mapped for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Memory {
    layout: Layout,
    slots: Vec<Slot>,
    // Before the mappings it points into: fields are dropped in this order.
    mmap: GuestRam,
    _mappings: Vec<Mapping>,
}

/// One range, as KVM's memory slot of the same number knows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    /// KVM's number of the slot.
    pub(crate) number: u32,
    /// Number of its first page.
    pub(crate) first_page: u64,
    /// Size in pages.
    pub(crate) pages: u64,
    /// Guest physical address.
    pub(crate) guest: u64,
    /// Where it is mapped here.
    pub(crate) host: HostAddress,
}

/// An address in this process that stays mapped as long as the [`Memory`] it came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostAddress(*mut u8);

// SAFETY: a number until somebody uses it in an unsafe block of their own; guest memory is
// shared by nature.
unsafe impl Send for HostAddress {}
// SAFETY: as above.
unsafe impl Sync for HostAddress {}

impl HostAddress {
    pub(crate) fn as_ptr(self) -> *mut u8 {
        self.0
    }
}

impl Memory {
    /// Maps memory for this layout.
    ///
    /// # Errors
    /// `CapacityExceeded` when the machine has not that much available.
    pub(crate) fn map(layout: Layout) -> Result<Self, Refusal> {
        check_available(layout.bytes())?;
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        let mut slots = Vec::new();
        let mut first_page = 0;
        for (range, number) in layout.ranges.iter().zip(0..) {
            let bytes = usize::try_from(range.pages * PAGE_BYTES as u64)
                .map_err(|_| no_room(layout.bytes(), "it does not fit the address space"))?;
            let mapping = Mapping::new(bytes).map_err(|error| no_room(layout.bytes(), error))?;
            let host = mapping.start();
            regions.push(guest_region(host, bytes, range.start)?);
            slots.push(Slot {
                number,
                first_page,
                pages: range.pages,
                guest: range.start,
                host: HostAddress(host),
            });
            first_page += range.pages;
            mappings.push(mapping);
        }
        let mmap = GuestRam::from_regions(regions).map_err(|error| {
            Refusal::new(RefusalCode::Internal, format!("guest memory: {error}"), "report a defect")
        })?;
        Ok(Self { layout, slots, mmap, _mappings: mappings })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// For what works on guest addresses.
    pub(crate) fn mmap(&self) -> &GuestRam {
        &self.mmap
    }

    /// The pages of a slot this process wrote to for the guest's devices since the call
    /// before, one bit each, and forgets them. Whoever reads a page after this call has
    /// every write that set its bit; a later write sets it again.
    pub(crate) fn take_device_writes(&self, slot: &Slot) -> Vec<u64> {
        let region = self.mmap.find_region(GuestAddress(slot.guest));
        region.map(|region| MmapRegion::bitmap(region).get_and_reset()).unwrap_or_default()
    }

    /// Where page `page` is mapped; none when guest memory has no such page.
    pub(crate) fn page(&self, page: u64) -> Option<HostAddress> {
        let slot = self.slots.iter().rfind(|slot| slot.first_page <= page)?;
        let offset = page - slot.first_page;
        if offset >= slot.pages {
            return None;
        }
        let bytes = usize::try_from(offset).ok()? * PAGE_BYTES;
        // SAFETY: `offset` lies within the slot, which is mapped in one piece.
        Some(HostAddress(unsafe { slot.host.0.add(bytes) }))
    }

    /// A copy of page `page`, taken while the guest may be writing to it.
    pub(crate) fn read_page(&self, page: u64, into: &mut [u8; PAGE_BYTES]) -> bool {
        let Some(host) = self.page(page) else { return false };
        // SAFETY: the page is mapped and `into` is as long. The guest may write at the same
        // time; then the copy holds a mix of old and new bytes, which every caller can live with.
        unsafe { std::ptr::copy_nonoverlapping(host.0, into.as_mut_ptr(), PAGE_BYTES) };
        true
    }

    /// Whether page `page` held only zeroes when it was looked at.
    pub(crate) fn is_zero(&self, page: u64) -> bool {
        let Some(host) = self.page(page) else { return false };
        let words = host.0.cast::<u64>();
        (0..PAGE_BYTES / 8).step_by(8).all(|first| {
            (first..first + 8)
                // SAFETY: the page is mapped and aligned. Volatile, because the guest may be writing.
                .map(|word| unsafe { words.add(word).read_volatile() })
                .fold(0, |all, word| all | word)
                == 0
        })
    }

    /// Fills page `page` with zeroes.
    pub(crate) fn clear_page(&self, page: u64) {
        if let Some(host) = self.page(page) {
            // SAFETY: the page is mapped; the guest does not run on a machine that is being filled.
            unsafe { std::ptr::write_bytes(host.0, 0, PAGE_BYTES) };
        }
    }
}

fn guest_region(host: *mut u8, bytes: usize, guest: u64) -> Result<GuestRegion, Refusal> {
    let defect = |what: String| Refusal::new(RefusalCode::Internal, what, "report a defect");
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let bitmap = AtomicBitmap::new(bytes, PAGE);
    let builder = MmapRegionBuilder::new_with_bitmap(bytes, bitmap);
    let builder = builder.with_mmap_prot(prot).with_mmap_flags(flags);
    // SAFETY: `host` is a mapping of `bytes` bytes that lives longer than the region: both are
    // fields of `Memory`, the region's before the mapping's.
    let region = unsafe { builder.with_raw_mmap_pointer(host) }.build();
    let region = region.map_err(|error| defect(format!("guest memory: {error}")))?;
    GuestRegionMmap::new(region, GuestAddress(guest))
        .ok_or_else(|| defect("guest memory ends beyond the address space".to_owned()))
}

fn no_room(memory: Bytes, why: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        RefusalCode::CapacityExceeded,
        format!("no room for {memory} of guest memory: {why}"),
        "give the VM less memory, or place it on a host with more available",
    )
}

/// Refuses a guest that the machine could only run by killing something: the
/// kernel itself would promise any amount.
fn check_available(memory: Bytes) -> Result<(), Refusal> {
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else { return Ok(()) };
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    match available.map(|kib| Bytes(kib.saturating_mul(1024))) {
        Some(available) if available < memory => {
            Err(no_room(memory, format_args!("the machine has {available} available")))
        }
        _ => Ok(()),
    }
}

/// Anonymous memory whose start is aligned to a huge page.
#[derive(Debug)]
struct Mapping {
    base: *mut libc::c_void,
    mapped: usize,
    start: *mut u8,
}

// SAFETY: owns its mapping; the pointers are used by nobody but through `Memory`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: usize) -> std::io::Result<Self> {
        let mapped = bytes
            .checked_add(HUGE_PAGE_BYTES)
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), mapped, prot, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let ahead = base.cast::<u8>().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: at most one huge page ahead, which the mapping has to spare.
        let start = unsafe { base.cast::<u8>().add(ahead) };
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
            // Advice only: without huge pages everything works, slower.
            // SAFETY: the range lies within the mapping just made.
            let _ = unsafe { libc::madvise(start.cast(), bytes, advice) };
        }
        Ok(Self { base, mapped, start })
    }

    fn start(&self) -> *mut u8 {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nobody uses any more: its users are fields
        // of the same `Memory`, dropped before.
        let _ = unsafe { libc::munmap(self.base, self.mapped) };
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

    #[test]
    fn pages_are_found_by_number() {
        let memory = Memory::map(Layout::of_size(Bytes::mib(1))).unwrap();
        assert!(memory.page(255).is_some());
        assert!(memory.page(256).is_none());
        assert!(memory.is_zero(7));
        let host = memory.page(7).unwrap();
        // SAFETY: page 7 is mapped and nobody else uses it.
        unsafe { host.as_ptr().add(4095).write(1) };
        assert!(!memory.is_zero(7));
        let mut copy = [0; PAGE_BYTES];
        assert!(memory.read_page(7, &mut copy));
        assert_eq!(copy[4095], 1);
        memory.clear_page(7);
        assert!(memory.is_zero(7));
    }

    #[test]
    fn what_devices_write_is_noticed_once() {
        use vm_memory::Bytes as _;
        let memory = Memory::map(Layout::of_size(Bytes::mib(1))).unwrap();
        let slot = memory.slots()[0];
        let [first, rest @ ..] = [0, 1, 2, 3].map(|_| {
            memory.mmap().write_slice(b"two pages", GuestAddress(0x3ffc)).unwrap();
            memory.take_device_writes(&slot)
        });
        assert_eq!(first, [0b1_1000, 0, 0, 0]);
        assert!(rest.iter().all(|again| *again == first));
        memory.mmap().read_slice(&mut [0; 64], GuestAddress(0x8000)).unwrap();
        assert_eq!(memory.take_device_writes(&slot), [0; 4]);
    }

    #[test]
    fn more_memory_than_the_machine_has_is_refused() {
        let refusal = Memory::map(Layout::of_size(Bytes::gib(4096))).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::CapacityExceeded);
        assert!(refusal.reason.contains("available"), "{refusal}");
    }
}
