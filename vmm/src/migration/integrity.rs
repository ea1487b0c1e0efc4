//! Checksums (CRC32C) of everything that goes over a connection that is not encrypted.
//!
//! TLS authenticates what it carries; TCP's own checksum has 16 bits and is
//! often made and checked by the same faulty card. From version
//! [`SINCE_VERSION`] on and without TLS
//!
//! - a frame's header and its body are each followed by their checksum, so that a damaged length
//!   is noticed before it is believed;
//! - so is data that follows a frame: pieces of disks, packed pages;
//! - pages, which go straight from and to guest memory, are followed by a checksum for each.
//!
//! Whatever does not match ends the migration at once, except pages: a guest that
//! runs may write to a page between its checksum and its way out. Such a page is in the
//! dirty log and comes again. So the destination keeps in mind which pages did not match
//! ([`Doubts`]), and is READY only when each of them has come again and did.
//!
//! A CRC finds damage, not malice: who can change what is on the way can change the checksum.

use std::sync::atomic::{AtomicU64, Ordering};

use ballast_model::{Refusal, RefusalCode};

use super::Trouble;
use super::filling::AtomicPageSet;
use crate::memory::{Memory, PAGE_BYTES};

/// The version of the stream that has checksums.
pub(crate) const SINCE_VERSION: u16 = 3;
/// The length of one, in bytes.
pub(crate) const SUM_BYTES: usize = 4;

/// What is damaged, as a refusal.
pub(super) fn damaged(what: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("{what} did not arrive as it was sent: its checksum is wrong"),
        "check the network between the two hosts, its cards and switches, then try again",
    )
}

/// The checksum of some bytes.
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// A frame with its checksums.
pub(crate) fn seal(frame: &[u8]) -> Vec<u8> {
    let (header, body) = frame.split_at(super::framing::HEADER_BYTES.min(frame.len()));
    let mut sealed = Vec::with_capacity(frame.len() + 2 * SUM_BYTES);
    for part in [header, body] {
        sealed.extend_from_slice(part);
        sealed.extend_from_slice(&sum(part).to_le_bytes());
    }
    sealed
}

/// What the checksum at the end is of, when it is right.
pub(crate) fn open<'a>(sealed: &'a [u8], what: &'static str) -> Result<&'a [u8], Trouble> {
    match sealed.split_last_chunk() {
        Some((bytes, told)) if sum(bytes) == u32::from_le_bytes(*told) => Ok(bytes),
        _ => Err(damaged(what).into()),
    }
}

/// The checksums of the pages of one frame, used again and again.
#[derive(Debug, Default)]
pub(crate) struct PageSums(Vec<u8>);

impl PageSums {
    /// Of the pages as they are in guest memory now.
    pub(crate) fn of(&mut self, memory: &Memory, runs: &[(u64, u64)]) -> &[u8] {
        self.0.clear();
        for page in pages(runs) {
            self.0.extend_from_slice(&sum_page(memory, page).to_le_bytes());
        }
        &self.0
    }

    /// Where those that follow the pages are put.
    pub(crate) fn room_for(&mut self, runs: &[(u64, u64)]) -> &mut [u8] {
        self.0.resize(pages(runs).count() * SUM_BYTES, 0);
        &mut self.0
    }

    /// The pages that are not as these say.
    pub(crate) fn differing(&self, memory: &Memory, runs: &[(u64, u64)]) -> Vec<u64> {
        let (told, _) = self.0.as_chunks();
        let told = told.iter().map(|told| u32::from_le_bytes(*told));
        let differ = |&(page, told): &(u64, u32)| sum_page(memory, page) != told;
        pages(runs).zip(told).filter(differ).map(|(page, _)| page).collect()
    }
}

fn pages(runs: &[(u64, u64)]) -> impl Iterator<Item = u64> + '_ {
    runs.iter().flat_map(|&(first, count)| first..first.saturating_add(count))
}

/// Of a copy: the guest may be writing. A page that does not exist is refused elsewhere.
fn sum_page(memory: &Memory, page: u64) -> u32 {
    let mut copy = [0; PAGE_BYTES];
    memory.read_page(page, &mut copy);
    sum(&copy)
}

/// Pages that did not match when they came last.
#[derive(Debug)]
pub(crate) struct Doubts {
    pages: AtomicPageSet,
    /// How many there have ever been; none of `pages` is looked at while there was none.
    raised: AtomicU64,
}

impl Doubts {
    pub(crate) fn none(pages: u64) -> Self {
        Self { pages: AtomicPageSet::empty(pages), raised: AtomicU64::new(0) }
    }

    /// These have come, `differing` among them did not match.
    pub(crate) fn settle(&self, runs: &[(u64, u64)], differing: &[u64]) {
        if self.raised.load(Ordering::Relaxed) > 0 {
            pages(runs).for_each(|page| _ = self.pages.remove(page));
        }
        self.raised.fetch_add(differing.len() as u64, Ordering::Relaxed);
        differing.iter().for_each(|&page| self.pages.insert(page, 1));
    }

    /// When everything has come.
    ///
    /// # Errors
    /// `HostFailure` naming the first page that is not as it was sent.
    pub(crate) fn finish(&self, pages: u64) -> Result<(), Refusal> {
        if self.raised.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        match (0..pages).find(|&page| self.pages.contains(page)) {
            Some(page) => Err(damaged(format_args!("page {page} of guest memory"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use ballast_model::Bytes;
    use ballast_model::hardware::MemoryBacking;
    use proptest::prelude::*;

    use super::*;
    use crate::memory::Layout;
    use crate::migration::framing::{Frame, HEADER_BYTES};

    #[test]
    fn the_checksum_is_the_one_of_rfc_3720() {
        assert_eq!(sum(b"123456789"), 0xe306_9283);
        assert_eq!(sum(&[0; 32]), 0x8a91_36aa);
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_noticed_wherever_it_is(
            body in prop::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(), flip in 1u8..,
        ) {
            let sealed = seal(&Frame::State(body.clone()).encode());
            let parts = |sealed: &[u8]| {
                let (header, body) = sealed.split_at(HEADER_BYTES + SUM_BYTES);
                Some((open(header, "a").ok()?.to_vec(), open(body, "b").ok()?.to_vec()))
            };
            let (header, opened) = parts(&sealed).unwrap();
            prop_assert_eq!(Frame::decode_header(&header).unwrap().1, body.len());
            prop_assert_eq!(opened, body);
            let mut changed = sealed;
            let at = at.index(changed.len());
            changed[at] ^= flip;
            prop_assert!(parts(&changed).is_none());
        }
    }

    #[test]
    fn a_page_in_doubt_stays_so_until_it_comes_again() {
        let memory = Memory::map(Layout::of_size(Bytes::mib(1)), MemoryBacking::default()).unwrap();
        let write = |page: u64, value: u8| {
            // SAFETY: the page is mapped and nobody else uses it.
            unsafe { memory.page(page).unwrap().as_ptr().write(value) };
        };
        let runs = [(3, 2), (200, 3)];
        let mut sums = PageSums::default();
        assert_eq!(sums.of(&memory, &runs).len(), 5 * SUM_BYTES);
        assert_eq!(sums.room_for(&runs).len(), 5 * SUM_BYTES);
        assert!(sums.differing(&memory, &runs).is_empty());
        write(4, 1);
        write(202, 1);
        assert_eq!(sums.differing(&memory, &runs), [4, 202]);
        let doubts = Doubts::none(256);
        doubts.settle(&runs, &[4, 202]);
        let why = doubts.finish(256).unwrap_err();
        assert!(why.reason.contains("page 4 of guest memory"), "{why}");
        doubts.settle(&[(0, 100)], &[]);
        assert!(doubts.finish(256).unwrap_err().reason.contains("page 202"));
        doubts.settle(&[(202, 1)], &[]);
        doubts.finish(256).unwrap();
    }
}
