//! Verify mode: what resumes equals what paused, page by page.
//!
//! After the last pass the source sends the xxh3 hash of every page of guest
//! memory; the destination compares them with its own before it says READY.
//! xxh3 finds what goes wrong by accident. It is no proof against a hostile
//! peer, who could as well send other pages: that is what the token is for.

use ballast_model::{Refusal, RefusalCode};
use xxhash_rust::xxh3::xxh3_64;

use crate::codec::Malformed;
use crate::memory::{Memory, PAGE_BYTES};

/// The hash of one page; none when there is no such page.
pub(crate) fn hash_page(memory: &Memory, page: u64) -> Option<u64> {
    let mut copy = [0; PAGE_BYTES];
    memory.read_page(page, &mut copy).then(|| xxh3_64(&copy))
}

/// The destination's comparison: every page once, in order.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    next: u64,
    different: u64,
    first_different: Option<u64>,
    /// Those of pages that come later, zero for all others; empty until there are any.
    later: Vec<u64>,
}

impl Comparison {
    /// Compares the pages from `first` on.
    ///
    /// Hashes of pages for which `comes_later` says so are kept for when they do.
    ///
    /// # Errors
    /// When pages are left out, repeated or do not exist.
    pub(crate) fn compare(
        &mut self,
        memory: &Memory,
        first: u64,
        hashes: &[u64],
        comes_later: impl Fn(u64) -> bool,
    ) -> Result<(), Malformed> {
        const WHAT: &str = "the order of page hashes";
        if first != self.next {
            return Err(Malformed(WHAT));
        }
        for &hash in hashes {
            if comes_later(self.next) {
                let at = usize::try_from(self.next).map_err(|_| Malformed(WHAT))?;
                self.later.resize(at + 1, 0);
                self.later[at] = hash;
                self.next += 1;
                continue;
            }
            let here = hash_page(memory, self.next).ok_or(Malformed(WHAT))?;
            if here != hash {
                self.different += 1;
                self.first_different.get_or_insert(self.next);
            }
            self.next += 1;
        }
        Ok(())
    }

    /// The hashes of pages that come later, by page.
    pub(crate) fn into_later(self) -> Vec<u64> {
        self.later
    }

    /// The outcome over all `pages` pages of guest memory.
    pub(crate) fn finish(&self, pages: u64) -> Result<(), Refusal> {
        let refuse = |reason: String| {
            Err(Refusal::new(
                RefusalCode::Internal,
                reason,
                "the VM goes on at the source; check both hosts' memory and report a defect",
            ))
        };
        match self.first_different {
            Some(first) => refuse(format!(
                "{} pages differ from the source's, the first is page {first}",
                self.different
            )),
            None if self.next != pages => {
                refuse(format!("hashes of only {} of {pages} pages came", self.next))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use ballast_model::Bytes;

    use ballast_model::hardware::MemoryBacking;

    use super::*;
    use crate::memory::Layout;

    #[test]
    fn one_different_byte_is_found_and_its_page_named() {
        let memory = Memory::map(Layout::of_size(Bytes::mib(1)), MemoryBacking::default()).unwrap();
        let hashes: Vec<u64> = (0..256).map(|page| hash_page(&memory, page).unwrap()).collect();
        let compare = || {
            let mut comparison = Comparison::default();
            comparison.compare(&memory, 0, &hashes[..100], |_| false).unwrap();
            comparison.compare(&memory, 100, &hashes[100..], |_| false).unwrap();
            comparison.finish(256)
        };
        compare().unwrap();
        // SAFETY: page 200 is mapped and nobody else uses it.
        unsafe { memory.page(200).unwrap().as_ptr().add(17).write(1) };
        let refusal = compare().unwrap_err();
        assert!(refusal.reason.contains("the first is page 200"), "{refusal}");
    }

    #[test]
    fn every_page_is_needed() {
        let memory = Memory::map(Layout::of_size(Bytes::mib(1)), MemoryBacking::default()).unwrap();
        let hash = hash_page(&memory, 0).unwrap();
        let mut comparison = Comparison::default();
        comparison.compare(&memory, 0, &[hash], |_| false).unwrap();
        assert!(comparison.compare(&memory, 0, &[hash], |_| false).is_err(), "again");
        assert!(comparison.compare(&memory, 1, &vec![hash; 256], |_| false).is_err(), "too many");
        assert!(comparison.finish(300).is_err(), "too few");
    }

    #[test]
    fn what_comes_later_is_kept_and_not_compared() {
        let memory = Memory::map(Layout::of_size(Bytes::mib(1)), MemoryBacking::default()).unwrap();
        let mut hashes = vec![hash_page(&memory, 0).unwrap(); 256];
        (hashes[7], hashes[9]) = (70, 90);
        let mut comparison = Comparison::default();
        comparison.compare(&memory, 0, &hashes, |page| page == 7 || page == 9).unwrap();
        comparison.finish(256).unwrap();
        let later = comparison.into_later();
        assert_eq!((later[7], later[8], later[9], later.len()), (70, 0, 90, 10));
    }
}
