//! Guest memory: its layout, its mapping, and pages by number.
//!
//! Pages are numbered without gaps through all of guest memory: page 0 is the
//! first page of the first range. The layout follows from the size alone, so
//! two hosts agree on it when they agree on the size; they compare it anyway.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`layout`] | where memory lies in the guest's address space |
//! | [`backing`] | the host's pages behind it |
//! | [`prefault`] | taking them before the guest starts, or before they arrive |
//! | [`userfault`] | pages that come when somebody touches them |
//! | [`zero`] | whether a page holds only zeroes |

mod backing;
mod layout;
mod prefault;
pub(crate) mod userfault;
mod zero;

use std::num::NonZeroUsize;
use std::sync::atomic::AtomicBool;

use ballast_model::hardware::{MemoryBacking, PageSize};
use ballast_model::{Bytes, Refusal, RefusalCode};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use backing::Mapping;
pub(crate) use layout::Layout;
pub(crate) use prefault::Taken;

/// The unit of transfer and of dirty tracking, in bytes.
pub(crate) const PAGE_BYTES: usize = 4096;
const PAGE: NonZeroUsize = NonZeroUsize::new(PAGE_BYTES).unwrap();

/// Guest memory by guest address, as devices use it.
///
/// KVM's dirty log knows what vCPUs wrote, not what this process wrote for the
/// guest's devices. So each region has a bitmap of its own, always on, in which
/// every write through this type sets its pages' bits *after* the data. Who
/// writes by address (a `preadv` into guest memory, say) marks the range itself
/// when the write is complete. See [`Memory::take_device_writes`].
pub type GuestRam = GuestMemoryMmap<AtomicBitmap>;
type GuestRegion = GuestRegionMmap<AtomicBitmap>;

/// Guest memory, mapped for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Memory {
    layout: Layout,
    slots: Vec<Slot>,
    /// Whether its pages are from the pool of huge ones.
    pooled: bool,
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
    /// Maps memory for this layout, and takes all of it at once where the backing says so; `taken`
    /// tells meanwhile how far it is.
    ///
    /// # Errors
    /// `CapacityExceeded` when the machine has not that much available;
    /// `InvalidArgument` for a size that huge pages do not make up.
    pub(crate) fn map_watched(
        layout: Layout,
        backing: MemoryBacking,
        taken: &Taken,
    ) -> Result<Self, Refusal> {
        backing::check_available(&layout, backing.pages)?;
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        let mut slots = Vec::new();
        let mut first_page = 0;
        for (range, number) in layout.ranges.iter().zip(0..) {
            let bytes = usize::try_from(range.pages * PAGE_BYTES as u64)
                .map_err(|_| no_room(layout.bytes(), "it does not fit the address space"))?;
            let mapping = Mapping::new(bytes, backing.pages)
                .map_err(|error| no_room(layout.bytes(), error))?;
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
        if backing.prefault {
            prefault::take(&slots, taken)?;
        }
        let mmap = GuestRam::from_regions(regions).map_err(|error| {
            Refusal::new(RefusalCode::Internal, format!("guest memory: {error}"), "report a defect")
        })?;
        let pooled = backing.pages == PageSize::Huge;
        Ok(Self { layout, slots, pooled, mmap, _mappings: mappings })
    }

    /// The same when nobody looks.
    #[cfg(test)]
    pub(crate) fn map(layout: Layout, backing: MemoryBacking) -> Result<Self, Refusal> {
        Self::map_watched(layout, backing, &Taken::default())
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether its pages are reserved ones of 2 MiB.
    pub(crate) fn is_pooled(&self) -> bool {
        self.pooled
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

    /// Where `count` pages from `first` on are mapped, and their length in bytes; none when guest
    /// memory has not all of them in one piece.
    pub(crate) fn run(&self, first: u64, count: u64) -> Option<(HostAddress, usize)> {
        let slot = self.slots.iter().rfind(|slot| slot.first_page <= first)?;
        let end = first.checked_add(count)?;
        if end > slot.first_page + slot.pages {
            return None;
        }
        Some((self.page(first)?, usize::try_from(count).ok()?.checked_mul(PAGE_BYTES)?))
    }

    /// Whether page `page` held only zeroes when it was looked at.
    pub(crate) fn is_zero(&self, page: u64) -> bool {
        // SAFETY: the page is mapped and aligned.
        self.page(page).is_some_and(|host| unsafe { zero::is_zero(host.as_ptr()) })
    }

    /// Which blocks of 2 MiB have pages, one bit each, by number: a hint.
    pub(crate) fn blocks_present(&self) -> Vec<u8> {
        prefault::blocks_present(&self.slots, self.layout.pages())
    }

    /// Takes the pages of these blocks, in order, until `over`.
    pub(crate) fn take_blocks(&self, blocks: &[u8], over: &AtomicBool) {
        prefault::take_blocks(self, blocks, over);
    }

    /// Gives page `page` this content.
    pub(crate) fn write_page(&self, page: u64, content: &[u8; PAGE_BYTES]) {
        if let Some(host) = self.page(page) {
            // SAFETY: the page is mapped and `content` is as long and elsewhere; the guest does not
            // run on a machine that is being filled.
            unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), host.0, PAGE_BYTES) };
        }
    }

    /// Gives `count` pages from `first` on back to the host: they are as fresh memory is. Not for
    /// memory from the pool of huge pages.
    ///
    /// # Errors
    /// When they are not all mapped in one piece, and what the system says.
    pub(crate) fn drop_pages(&self, first: u64, count: u64) -> std::io::Result<()> {
        let Some((start, bytes)) = self.run(first, count) else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: mapped guest memory that is private and anonymous; nobody but the guest, which
        // does not run yet, means anything by its contents.
        match unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// Which page of guest memory is mapped at an address of this process, if one is.
    pub(crate) fn page_at(&self, address: u64) -> Option<u64> {
        self.slots.iter().find_map(|slot| {
            let offset = address.checked_sub(slot.host.as_ptr() as u64)?;
            let page = offset / PAGE_BYTES as u64;
            (page < slot.pages).then_some(slot.first_page + page)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_found_by_number() {
        let memory = Memory::map(Layout::of_size(Bytes::mib(1)), MemoryBacking::default()).unwrap();
        assert!(memory.page(255).is_some());
        assert!(memory.page(256).is_none());
        assert_eq!(memory.run(250, 6).unwrap().1, 6 * PAGE_BYTES);
        assert!(memory.run(250, 7).is_none() && memory.run(1, u64::MAX).is_none());
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
        let memory = Memory::map(Layout::of_size(Bytes::mib(1)), MemoryBacking::default()).unwrap();
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
        let refusal =
            Memory::map(Layout::of_size(Bytes::gib(4096)), MemoryBacking::default()).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::CapacityExceeded);
        assert!(refusal.reason.contains("available"), "{refusal}");
    }

    #[test]
    fn memory_above_the_hole_is_memory_like_any_other() {
        use vm_memory::Bytes as _;
        let memory = Memory::map(Layout::of_size(Bytes::gib(5)), MemoryBacking::default()).unwrap();
        let [low, high] = memory.slots() else { panic!("{:?}", memory.slots()) };
        assert_eq!((low.guest, low.pages), (0, 3 << 18));
        assert_eq!((high.guest, high.first_page, high.pages), (4 << 30, 3 << 18, 2 << 18));
        for (guest, page) in [(0, 0), ((3 << 30) - 4096, (3 << 18) - 1), (4 << 30, 3 << 18)] {
            memory.mmap().write_slice(b"here", GuestAddress(guest)).unwrap();
            assert!(!memory.is_zero(page), "{guest:#x}");
        }
        assert!(memory.mmap().write_slice(b"here", GuestAddress((3 << 30) - 2)).is_err());
        assert!(memory.mmap().write_slice(b"here", GuestAddress(7 << 29)).is_err());
        assert_eq!(memory.take_device_writes(high)[0], 1);
        assert!(memory.page(5 << 18).is_none());
        assert!(memory.run((3 << 18) - 1, 1).is_some(), "the last below the hole");
        assert!(memory.run((3 << 18) - 1, 2).is_none(), "not in one piece");
    }

    #[test]
    fn prefaulted_memory_is_there_whatever_its_pages() {
        for pages in [PageSize::Auto, PageSize::Small] {
            let backing = MemoryBacking { pages, prefault: true };
            let (layout, taken) = (Layout::of_size(Bytes::mib(48)), Taken::default());
            assert_eq!(taken.percent(), None);
            let memory = Memory::map_watched(layout, backing, &taken).unwrap();
            assert_eq!(taken.percent(), Some(100));
            let slot = memory.slots()[0];
            let mut present = vec![0u8; usize::try_from(slot.pages).unwrap()];
            // SAFETY: asks about a mapping of this process; one byte a page is written.
            let answer =
                unsafe { libc::mincore(slot.host.as_ptr().cast(), 48 << 20, present.as_mut_ptr()) };
            assert_eq!(answer, 0);
            assert!(present.iter().all(|page| page & 1 == 1), "{pages:?}");
            assert!(memory.is_zero(0) && memory.is_zero(slot.pages - 1));
        }
    }

    #[test]
    fn huge_pages_come_from_the_pool_or_not_at_all() {
        let backing = MemoryBacking { pages: PageSize::Huge, prefault: false };
        let refusal = Memory::map(Layout::of_size(Bytes::mib(3)), backing).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidArgument, "{refusal}");
        let size = Bytes::gib(16);
        match Memory::map(Layout::of_size(size), backing) {
            Ok(memory) => assert_eq!(memory.layout().bytes(), size),
            Err(refusal) => {
                assert_eq!(refusal.code, RefusalCode::CapacityExceeded, "{refusal}");
                assert!(refusal.remedy.contains("nr_hugepages"), "{refusal}");
            }
        }
    }
}
