//! The host's pages behind guest memory.
//!
//! | pages | mapping |
//! | --- | --- |
//! | auto | private anonymous, advised to be huge, aligned to 2 MiB |
//! | small | private anonymous, advised not to be huge |
//! | huge | a memfd of the reserved pool of 2 MiB pages (hugetlb), shared |
//!
//! Private anonymous memory is the default because it alone gets transparent
//! huge pages on a host as it comes (files in memory need `shmem_enabled`), and
//! with them it is back at full speed at once when dirty logging ends, and a
//! page that arrives faults in 512 of its neighbours with it.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;

use ballast_model::hardware::PageSize;
use ballast_model::{Bytes, Refusal, RefusalCode};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{Layout, no_room};

const HUGE_PAGE_BYTES: usize = 2 << 20;
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
/// The name of the memfd, for people who look at the process.
const NAME: &CStr = c"guest-memory";

/// Refuses a guest that the machine could only run by killing something: the
/// kernel itself would promise any amount.
pub(super) fn check_available(layout: &Layout, pages: PageSize) -> Result<(), Refusal> {
    if pages == PageSize::Huge {
        return check_pool(layout);
    }
    let memory = layout.bytes();
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

/// The pool must have every page before the guest starts: one that is missing
/// later kills the process.
fn check_pool(layout: &Layout) -> Result<(), Refusal> {
    let memory = layout.bytes();
    let page = HUGE_PAGE_BYTES as u64;
    if !memory.get().is_multiple_of(page) {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("{} bytes of memory are not made up of pages of 2 MiB", memory.get()),
            "give the VM a multiple of 2 MiB, or other pages",
        ));
    }
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("{POOL}/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let free = read("free_hugepages")
        .map(|free| free.saturating_sub(read("resv_hugepages").unwrap_or(0)).saturating_mul(page));
    match free.map(Bytes) {
        Some(free) if free >= memory => Ok(()),
        Some(free) => Err(pool_too_small(memory, format_args!("{free} of them are free"))),
        None => Err(pool_too_small(memory, "this host has no such pool")),
    }
}

fn pool_too_small(memory: Bytes, why: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        RefusalCode::CapacityExceeded,
        format!("no room for {memory} of guest memory in reserved pages of 2 MiB: {why}"),
        format!(
            "reserve them with `sysctl vm.nr_hugepages={}` or more, or give the VM other pages",
            memory.get().div_ceil(HUGE_PAGE_BYTES as u64)
        ),
    )
}

/// A mapping whose start is aligned to a huge page.
#[derive(Debug)]
pub(super) struct Mapping {
    base: *mut libc::c_void,
    mapped: usize,
    start: *mut u8,
}

// SAFETY: owns its mapping; the pointers are used by nobody but through `Memory`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn new(bytes: usize, pages: PageSize) -> io::Result<Self> {
        let mapping = match pages {
            PageSize::Auto => Self::anonymous(bytes, libc::MADV_HUGEPAGE)?,
            PageSize::Small => Self::anonymous(bytes, libc::MADV_NOHUGEPAGE)?,
            PageSize::Huge => Self::pool(bytes)?,
        };
        mapping.advise(bytes, libc::MADV_DONTDUMP);
        Ok(mapping)
    }

    fn anonymous(bytes: usize, advice: libc::c_int) -> io::Result<Self> {
        let mapped = bytes
            .checked_add(HUGE_PAGE_BYTES)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let base = map(mapped, flags, -1)?;
        let ahead = base.cast::<u8>().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: at most one huge page ahead, which the mapping has to spare.
        let start = unsafe { base.cast::<u8>().add(ahead) };
        let mapping = Self { base, mapped, start };
        mapping.advise(bytes, advice);
        Ok(mapping)
    }

    /// The kernel aligns it, and reserves its pages now.
    fn pool(bytes: usize) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let file = memfd_create(NAME, flags)?;
        ftruncate(file.as_fd(), bytes as u64)?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        let base = map(bytes, libc::MAP_SHARED, fd)?;
        Ok(Self { base, mapped: bytes, start: base.cast() })
    }

    /// Advice only: without it everything works, slower.
    fn advise(&self, bytes: usize, advice: libc::c_int) {
        // SAFETY: the range lies within the mapping.
        let _ = unsafe { libc::madvise(self.start.cast(), bytes, advice) };
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start
    }
}

fn map(bytes: usize, flags: libc::c_int, fd: libc::c_int) -> io::Result<*mut libc::c_void> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, prot, flags, fd, 0) };
    if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(base) }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nobody uses any more: its users are fields
        // of the same `Memory`, dropped before.
        let _ = unsafe { libc::munmap(self.base, self.mapped) };
    }
}
