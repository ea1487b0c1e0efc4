//! The VM's load between two looks: CPU time, resident memory, dirty rate.
//!
//! The dirty rate is an estimate by sampling, as QEMU's `calc-dirty-rate` makes
//! it in its page-sampling mode: a few random pages are hashed at one look and
//! again at the next, and the share that changed is taken for all of memory.
//! So a guest that is only watched is never slowed down by dirty logging.
//!
//! Its bias: a page written many times between two looks counts once, and so
//! does a rate far above memory size per interval: the estimate's ceiling is
//! all of memory once an interval. A page written with what it held already
//! does not count, though a migration has to send it. With [`SAMPLES`] pages the
//! smallest share seen is about 0.2 %; less reads as zero most of the time.

use std::time::{Duration, Instant};

use ballast_model::{Bytes, BytesPerSec, Millicores};
use rand::Rng;

use crate::machine::Machine;
use crate::memory::{Memory, PAGE_BYTES};
use crate::migration::storage::DiskTerms;
use crate::migration::verify::hash_page;

/// Pages hashed at each look.
const SAMPLES: usize = 512;
/// Looks closer than this answer with the dirty rate of the one before.
const INTERVAL_MIN: Duration = Duration::from_millis(800);

/// A VM's load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) cpu: Millicores,
    pub(crate) resident: Bytes,
    pub(crate) dirty_rate: BytesPerSec,
    /// What its local disks take.
    pub(crate) local_disks: Bytes,
    /// Of all vCPU threads since the VM began here.
    pub(crate) cpu_time: Duration,
}

/// What the last look saw.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    last: Option<Look>,
    pages: Option<Pages>,
    dirty_rate: BytesPerSec,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    cpu_time: Duration,
}

#[derive(Debug)]
struct Pages {
    at: Instant,
    hashes: Vec<(u64, u64)>,
}

impl Sampler {
    /// Load since the last call; the first call has no interval to speak of
    /// and answers with zero CPU and dirty rate. Pages are only looked at in memory that is `whole`:
    /// one that is missing would be waited for.
    pub(crate) fn sample(&mut self, machine: &Machine, whole: bool) -> Load {
        let now = Look { at: Instant::now(), cpu_time: machine.cpu_time() };
        let cpu = self.last.replace(now).map_or(Millicores::ZERO, |last| {
            let used = now.cpu_time.saturating_sub(last.cpu_time);
            Millicores::from_cpu_time(used, now.at - last.at)
        });
        if whole {
            self.look_at_pages(&machine.memory, now.at);
        }
        Load {
            cpu,
            resident: resident(&machine.memory),
            dirty_rate: self.dirty_rate,
            local_disks: Bytes(
                DiskTerms::of(&machine.devices).iter().map(|disk| disk.allocated).sum(),
            ),
            cpu_time: now.cpu_time,
        }
    }

    fn look_at_pages(&mut self, memory: &Memory, now: Instant) {
        if let Some(pages) = &self.pages {
            let interval = now - pages.at;
            if interval < INTERVAL_MIN {
                return;
            }
            let same = |&&(page, hash): &&(u64, u64)| hash_page(memory, page) == Some(hash);
            let changed = pages.hashes.len() - pages.hashes.iter().filter(same).count();
            let dirty = share(memory.layout().bytes(), changed, pages.hashes.len());
            self.dirty_rate = BytesPerSec::from_amount(dirty, interval);
        }
        let total = memory.layout().pages();
        let mut random = rand::rng();
        let hashes = (0..SAMPLES)
            .filter_map(|_| {
                let page = random.random_range(0..total);
                Some((page, hash_page(memory, page)?))
            })
            .collect();
        self.pages = Some(Pages { at: now, hashes });
    }
}

/// `part` of `whole` parts of `amount`.
fn share(amount: Bytes, part: usize, whole: usize) -> Bytes {
    let scaled = u128::from(amount.get()) * part as u128 / whole.max(1) as u128;
    Bytes(u64::try_from(scaled).unwrap_or(u64::MAX))
}

/// Guest memory that is backed by real pages. Asks the kernel per range of
/// guest memory; it answers from its page tables, 512 pages at a time where
/// huge pages are in use.
fn resident(memory: &Memory) -> Bytes {
    let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else { return Bytes::ZERO };
    let ranges: Vec<_> = memory
        .slots()
        .iter()
        .map(|slot| {
            let start = slot.host.as_ptr() as u64;
            start..start + slot.pages * PAGE_BYTES as u64
        })
        .collect();
    let mut inside = false;
    let mut kib = 0;
    for line in maps.lines() {
        if let Some((start, end)) = mapping(line) {
            inside = ranges.iter().any(|range| start < range.end && end > range.start);
        } else if inside && let Some(rest) = line.strip_prefix("Rss:") {
            kib += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        }
    }
    Bytes(kib.saturating_mul(1024)).min(memory.layout().bytes())
}

/// Start and end, when the line is the first of a mapping's entry.
fn mapping(line: &str) -> Option<(u64, u64)> {
    let (start, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use ballast_model::hardware::MemoryBacking;

    use super::*;
    use crate::memory::Layout;

    fn write(memory: &Memory, page: u64, value: u8) {
        // SAFETY: the page is mapped and nobody else uses it.
        unsafe { memory.page(page).unwrap().as_ptr().write(value) };
    }

    #[test]
    fn the_share_of_pages_that_changed_is_the_dirty_rate() {
        let memory = Memory::map(Layout::of_size(Bytes::mib(4)), MemoryBacking::default()).unwrap();
        let mut sampler = Sampler::default();
        let start = Instant::now();
        sampler.look_at_pages(&memory, start);
        for page in 0..512 {
            write(&memory, page, 1);
        }
        sampler.look_at_pages(&memory, start + Duration::from_millis(10));
        assert_eq!(sampler.dirty_rate, BytesPerSec::ZERO, "too early");
        sampler.look_at_pages(&memory, start + Duration::from_secs(2));
        let mib = sampler.dirty_rate.get() as f64 / f64::from(1 << 20);
        // Half of 4 MiB in 2 s; 512 samples are within 10 % of that by 4 sigma.
        assert!((0.8..1.2).contains(&mib), "{mib} MiB/s");
        sampler.look_at_pages(&memory, start + Duration::from_secs(3));
        assert_eq!(sampler.dirty_rate, BytesPerSec::ZERO, "nothing changed");
    }

    #[test]
    fn only_touched_memory_is_resident() {
        let memory =
            Memory::map(Layout::of_size(Bytes::mib(64)), MemoryBacking::default()).unwrap();
        assert_eq!(resident(&memory), Bytes::ZERO);
        write(&memory, 5000, 1);
        let touched = resident(&memory);
        assert!(touched >= Bytes(4096) && touched <= Bytes::mib(2), "{touched}");
    }
}
