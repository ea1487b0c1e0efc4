//! Sets of pages, and the log of the pages written to: KVM's, of what vCPUs
//! wrote, and this process's own, of what it wrote for the guest's devices.

use std::ops::Range;

use ballast_model::{Bytes, Refusal};

use crate::kvm::failed;
use crate::kvm::ioctl::{DirtyLogKind, clear_dirty_log};
use crate::machine::Machine;
use crate::memory::{PAGE_BYTES, Slot};

const WORD: u64 = 64;

/// A set of pages of guest memory, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PageSet {
    words: Vec<u64>,
    pages: u64,
}

impl PageSet {
    /// No page of `pages`.
    pub(crate) fn empty(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(WORD)).unwrap_or(usize::MAX);
        Self { words: vec![0; words], pages }
    }

    /// All pages of `pages`.
    pub(crate) fn full(pages: u64) -> Self {
        let mut set = Self::empty(pages);
        set.words.fill(u64::MAX);
        let surplus = set.words.len() as u64 * WORD - pages;
        if let Some(last) = set.words.last_mut() {
            *last >>= surplus;
        }
        set
    }

    /// The set with these bits; none when they are more or fewer than `pages` take, or name others.
    pub(crate) fn from_words(words: Vec<u64>, pages: u64) -> Option<Self> {
        let full = Self::full(pages);
        let within = words.len() == full.words.len()
            && words.iter().zip(&full.words).all(|(word, all)| word & !all == 0);
        within.then_some(Self { words, pages })
    }

    /// Its bits, the first page's lowest.
    pub(crate) fn words(&self) -> &[u64] {
        &self.words
    }

    /// How many pages could be in it.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether a page is in it.
    pub(crate) fn contains(&self, page: u64) -> bool {
        let word = usize::try_from(page / WORD).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|word| word & 1 << (page % WORD) != 0)
    }

    /// The first page in it from `page` on.
    pub(crate) fn next_from(&self, page: u64) -> Option<u64> {
        let at = usize::try_from(page / WORD).ok()?;
        let first = self.words.get(at)? & (u64::MAX << (page % WORD));
        let rest = self.words[at + 1..].iter().copied();
        (at as u64..)
            .zip(std::iter::once(first).chain(rest))
            .find(|(_, word)| *word != 0)
            .map(|(place, word)| place * WORD + u64::from(word.trailing_zeros()))
    }

    /// How many are in it.
    pub(crate) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many of `range` are in it. The range starts at a multiple of 64.
    pub(crate) fn count_in(&self, range: Range<u64>) -> u64 {
        self.words_in(range).1.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The memory they take.
    pub(crate) fn bytes(&self) -> Bytes {
        Bytes(self.count() * PAGE_BYTES as u64)
    }

    /// Adds a page; false when it was there, or is beyond the end.
    pub(crate) fn insert(&mut self, page: u64) -> bool {
        let Some(word) = self.word_mut(page) else { return false };
        let bit = 1 << (page % WORD);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Adds every page of another set of the same memory.
    pub(crate) fn add(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Takes a page out; whether it was there.
    pub(crate) fn remove(&mut self, page: u64) -> bool {
        let Some(word) = self.word_mut(page) else { return false };
        let bit = 1 << (page % WORD);
        let there = *word & bit != 0;
        *word &= !bit;
        there
    }

    fn word_mut(&mut self, page: u64) -> Option<&mut u64> {
        if page >= self.pages {
            return None;
        }
        self.words.get_mut(usize::try_from(page / WORD).ok()?)
    }

    /// The pages of `range` that are in it, in order. The range starts at a multiple of 64.
    pub(crate) fn iter(&self, range: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let (first, words) = self.words_in(range);
        (first..).zip(words).flat_map(|(place, &word)| {
            std::iter::successors(Some(word), |rest| Some(rest & rest.wrapping_sub(1)))
                .take_while(|&rest| rest != 0)
                .map(move |rest| place * WORD + u64::from(rest.trailing_zeros()))
        })
    }

    /// The words of a range that starts at a multiple of 64, and the number of the first.
    fn words_in(&self, range: Range<u64>) -> (u64, &[u64]) {
        let first = usize::try_from(range.start / WORD).unwrap_or(usize::MAX);
        let last = usize::try_from(range.end.min(self.pages).div_ceil(WORD)).unwrap_or(usize::MAX);
        (first as u64, self.words.get(first..last.min(self.words.len())).unwrap_or_default())
    }

    fn words_of(&mut self, slot: &Slot) -> &mut [u64] {
        let first = usize::try_from(slot.first_page / WORD).unwrap_or(usize::MAX);
        self.words.get_mut(first..).unwrap_or_default()
    }
}

/// The dirty log, switched on. Dropping it switches it off again.
#[derive(Debug)]
pub(crate) struct DirtyLog<'a> {
    machine: &'a Machine,
}

impl<'a> DirtyLog<'a> {
    /// Begins to log. From now on every write of the guest and of its devices is in the log, in
    /// addition to [`PageSet::full`], with which the first round starts.
    pub(crate) fn start(machine: &'a Machine) -> Result<Self, Refusal> {
        machine.log_dirty_pages(true)?;
        Ok(Self { machine })
    }

    /// The pages written since they were last protected. Those of vCPUs stay in
    /// KVM's log until [`protect`](Self::protect) where that log is manual;
    /// elsewhere this empties it, as it does for those of devices: what is
    /// collected must be sent.
    pub(crate) fn collect(&self) -> Result<PageSet, Refusal> {
        let memory = &self.machine.memory;
        let mut set = PageSet::empty(memory.layout().pages());
        for slot in memory.slots() {
            let bytes = usize::try_from(slot.pages).unwrap_or(usize::MAX) * PAGE_BYTES;
            let log = self
                .machine
                .vm
                .get_dirty_log(slot.number, bytes)
                .map_err(|error| failed("read the dirty log", error))?;
            // Slots start at multiples of 64 pages: only the last can end elsewhere.
            for (word, dirty) in set.words_of(slot).iter_mut().zip(log) {
                *word |= dirty;
            }
            let devices = memory.take_device_writes(slot);
            for (word, dirty) in set.words_of(slot).iter_mut().zip(devices) {
                *word |= dirty;
            }
        }
        Ok(set)
    }

    /// Before the pages of `set` in `range` are sent: takes them out of the log
    /// and has it notice the next write to each. Done late, chunk by chunk, so
    /// that a page written often before its turn is sent only once.
    /// The range starts at a multiple of 64.
    pub(crate) fn protect(&self, set: &PageSet, range: Range<u64>) -> Result<(), Refusal> {
        if self.machine.traits.dirty_log == DirtyLogKind::ClearedByRead {
            return Ok(());
        }
        for slot in self.machine.memory.slots() {
            let start = range.start.max(slot.first_page);
            let end = range.end.min(slot.first_page + slot.pages);
            if start >= end {
                continue;
            }
            let index = |page: u64| usize::try_from(page).unwrap_or(usize::MAX);
            let words = index(start / WORD)..index(end.div_ceil(WORD));
            let mut bitmap = set.words.get(words).unwrap_or_default().to_vec();
            if bitmap.iter().all(|&word| word == 0) {
                continue;
            }
            let pages = u32::try_from(end - start).unwrap_or(u32::MAX);
            let first = start - slot.first_page;
            clear_dirty_log(&self.machine.vm, slot.number, first, pages, &mut bitmap)
                .map_err(|error| failed("clear the dirty log", error))?;
        }
        Ok(())
    }
}

impl Drop for DirtyLog<'_> {
    fn drop(&mut self) {
        if let Err(refusal) = self.machine.log_dirty_pages(false) {
            tracing::warn!(%refusal, "dirty logging stays on; the guest is slower for it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_set_has_every_page_and_no_more() {
        for pages in [0, 1, 63, 64, 65, 256] {
            let set = PageSet::full(pages);
            assert_eq!(set.count(), pages);
            assert!(set.iter(0..pages).eq(0..pages), "{pages}");
        }
    }

    #[test]
    fn sets_are_added_page_by_page() {
        let of = |pages: &[u64]| {
            let mut set = PageSet::empty(300);
            pages.iter().for_each(|&page| assert!(set.insert(page)));
            set
        };
        let mut set = of(&[3, 64]);
        set.add(&of(&[3, 65, 299]));
        assert_eq!(set, of(&[3, 64, 65, 299]));
    }

    #[test]
    fn pages_come_in_order_and_within_the_range() {
        let mut set = PageSet::empty(300);
        for page in [3, 64, 127, 128, 299] {
            assert!(set.insert(page));
        }
        assert!(!set.insert(3), "twice");
        assert!(!set.insert(300), "beyond the end");
        assert_eq!(set.iter(64..128).collect::<Vec<_>>(), [64, 127]);
        assert_eq!((set.count_in(64..128), set.count_in(128..300), set.count()), (2, 2, 5));
        assert_eq!(set.iter(0..300).collect::<Vec<_>>(), [3, 64, 127, 128, 299]);
        assert!(set.contains(299) && !set.contains(298) && !set.contains(4000));
        assert_eq!([0, 3, 4, 65, 129].map(|page| set.next_from(page)), {
            [Some(3), Some(3), Some(64), Some(127), Some(299)]
        });
        assert_eq!((set.next_from(300), set.next_from(4000)), (None, None));
        assert_eq!(PageSet::from_words(set.words().to_vec(), 300).as_ref(), Some(&set));
        assert_eq!(PageSet::from_words(set.words().to_vec(), 299), None);
        assert!(set.remove(3) && !set.remove(3));
        assert_eq!(set.bytes(), Bytes(4 * 4096));
    }
}
