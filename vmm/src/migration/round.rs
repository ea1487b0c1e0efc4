//! One round: a set of pages, and of pieces of disks, handed out chunk by chunk to whoever sends next.
//!
//! Senders take chunks as they get done, so that no connection waits for
//! another. With a log the guest runs: each chunk is taken out of the dirty log
//! right before it is looked at, so that a page written often before its turn
//! is sent once.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use ballast_model::Refusal;

use super::dirty::{DirtyLog, PageSet};
use super::storage::mirror::Blocks;
use crate::memory::{Memory, PAGE_BYTES};

/// Pages of a chunk: 4 MiB of them. A multiple of 64.
const CHUNK_PAGES: u64 = 1024;

/// The pages of one round, and how far it is.
#[derive(Debug)]
pub(crate) struct Round<'a> {
    pub(crate) number: u32,
    memory: &'a Memory,
    log: Option<&'a DirtyLog<'a>>,
    set: PageSet,
    /// The first page nobody has taken.
    next: AtomicU64,
    /// Pages of the set that have not had their turn.
    left: AtomicU64,
    /// What of the disks goes with it.
    pub(crate) blocks: Blocks,
}

impl<'a> Round<'a> {
    /// A round of `set`; with a log, the guest runs.
    pub(crate) fn new(
        number: u32,
        memory: &'a Memory,
        set: PageSet,
        log: Option<&'a DirtyLog<'a>>,
    ) -> Self {
        let left = AtomicU64::new(set.count());
        Self { number, memory, log, set, next: AtomicU64::new(0), left, blocks: Blocks::none() }
    }

    /// The same with pieces of disks.
    pub(crate) fn with(self, blocks: Blocks) -> Self {
        Self { blocks, ..self }
    }

    /// Memory of the set that has not had its turn, in bytes.
    pub(crate) fn left_bytes(&self) -> u64 {
        self.left.load(Ordering::Relaxed) * PAGE_BYTES as u64
    }

    /// The next chunk that has pages of the set, ready to be sent; none when the round is done.
    /// It lies within one range of guest memory.
    pub(crate) fn take(&self) -> Result<Option<Range<u64>>, Refusal> {
        let pages = self.memory.layout().pages();
        loop {
            let start = self.next.fetch_add(CHUNK_PAGES, Ordering::Relaxed);
            if start >= pages {
                return Ok(None);
            }
            let chunk = start..(start + CHUNK_PAGES).min(pages);
            let count = self.set.count_in(chunk.clone());
            if count == 0 {
                continue;
            }
            if let Some(log) = self.log {
                log.protect(&self.set, chunk.clone())?;
            }
            self.left.fetch_sub(count, Ordering::Relaxed);
            return Ok(Some(chunk));
        }
    }

    /// The pages of the set in a chunk, in order.
    pub(crate) fn pages(&self, chunk: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        self.set.iter(chunk)
    }
}

#[cfg(test)]
mod tests {
    use ballast_model::Bytes;
    use ballast_model::hardware::MemoryBacking;

    use super::*;
    use crate::memory::Layout;

    #[test]
    fn every_page_has_one_turn_however_many_take() {
        let memory =
            Memory::map(Layout::of_size(Bytes::mib(64)), MemoryBacking::default()).unwrap();
        let mut set = PageSet::empty(memory.layout().pages());
        for page in [0, 1, 1023, 1024, 9000, 16_383] {
            assert!(set.insert(page));
        }
        let round = Round::new(1, &memory, set, None);
        assert_eq!(round.left_bytes(), 6 * 4096);
        let take_all = || {
            let mut pages = vec![];
            while let Some(chunk) = round.take().unwrap() {
                pages.extend(round.pages(chunk));
            }
            pages
        };
        let mut taken: Vec<u64> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..3).map(|_| scope.spawn(take_all)).collect();
            takers.into_iter().flat_map(|taker| taker.join().unwrap()).collect()
        });
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 1023, 1024, 9000, 16_383]);
        assert_eq!(round.left_bytes(), 0);
        assert_eq!(round.take(), Ok(None));
    }
}
