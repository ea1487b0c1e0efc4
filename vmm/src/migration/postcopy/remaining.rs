//! Pages that have still to go, or to come: a set that only shrinks, and its way over the wire.

use ballast_model::Bytes;

use crate::codec::Malformed;
use crate::memory::PAGE_BYTES;
use crate::migration::dirty::PageSet;
use crate::migration::framing::{Frame, MISSING_WORDS_MAX};
use crate::migration::sender::add_to_runs;

const WORD: u64 = 64;

/// A set of pages with a count, and a place where the next are taken from.
#[derive(Debug)]
pub(crate) struct Remaining {
    set: PageSet,
    left: u64,
    cursor: u64,
}

impl Remaining {
    pub(crate) fn new(set: PageSet) -> Self {
        Self { left: set.count(), set, cursor: 0 }
    }

    /// How many there are.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    pub(crate) fn bytes(&self) -> Bytes {
        Bytes(self.left * PAGE_BYTES as u64)
    }

    pub(crate) fn contains(&self, page: u64) -> bool {
        self.set.contains(page)
    }

    /// Takes out a page; whether it was there.
    pub(crate) fn remove(&mut self, page: u64) -> bool {
        let there = self.set.remove(page);
        self.left -= u64::from(there);
        there
    }

    /// All of them as runs, in order.
    pub(crate) fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        self.set.iter(0..self.set.pages()).for_each(|page| add_to_runs(&mut runs, page));
        runs
    }

    /// Takes out those of `count` pages from `first` on; what follows them is next.
    pub(crate) fn take_window(&mut self, first: u64, count: u64) -> Vec<u64> {
        let end = first.saturating_add(count).min(self.set.pages());
        let taken = (first..end).filter(|&page| self.remove(page)).collect();
        self.cursor = end;
        taken
    }

    /// Takes out the next ones, at most `max`; after the last comes the first again.
    pub(crate) fn take_next(&mut self, max: usize) -> Vec<u64> {
        let mut taken = Vec::new();
        while taken.len() < max && self.left > 0 {
            match self.set.next_from(self.cursor) {
                Some(page) => {
                    self.cursor = page + 1;
                    self.remove(page);
                    taken.push(page);
                }
                None => self.cursor = 0,
            }
        }
        taken
    }

    /// The frames that say which they are: all pages, in order.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Frame> + '_ {
        let chunks = self.set.words().chunks(MISSING_WORDS_MAX).zip(0u64..);
        chunks.map(|(words, place)| Frame::Missing {
            first: place * MISSING_WORDS_MAX as u64 * WORD,
            words: words.to_vec(),
        })
    }
}

/// The set while its frames come.
#[derive(Debug)]
pub(crate) struct Arriving {
    words: Vec<u64>,
    pages: u64,
}

impl Arriving {
    /// Nothing has come yet of a set of `pages` pages.
    pub(crate) fn new(pages: u64) -> Self {
        Self { words: Vec::new(), pages }
    }

    /// Whether nothing has come yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Whether all has come.
    pub(crate) fn is_complete(&self) -> bool {
        self.words.len() as u64 == self.pages.div_ceil(WORD)
    }

    /// Whether a page is in what has come.
    pub(crate) fn contains(&self, page: u64) -> bool {
        let word = usize::try_from(page / WORD).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|word| word & 1 << (page % WORD) != 0)
    }

    /// Takes the next frame's.
    ///
    /// # Errors
    /// When it is not the next, or more than there is.
    pub(crate) fn take(&mut self, first: u64, words: &[u64]) -> Result<(), Malformed> {
        const WHAT: &str = "the set of missing pages";
        let length = (self.words.len() + words.len()) as u64;
        let fits = first == self.words.len() as u64 * WORD && length <= self.pages.div_ceil(WORD);
        if !fits || words.is_empty() {
            return Err(Malformed(WHAT));
        }
        self.words.extend_from_slice(words);
        Ok(())
    }

    /// The whole of it.
    ///
    /// # Errors
    /// When some of it has not come, or names pages that do not exist.
    pub(crate) fn finish(self) -> Result<Remaining, Malformed> {
        let complete = self.is_complete();
        let set = PageSet::from_words(self.words, self.pages).filter(|_| complete);
        set.map(Remaining::new).ok_or(Malformed("the set of missing pages"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pages: u64, these: &[u64]) -> Remaining {
        let mut set = PageSet::empty(pages);
        these.iter().for_each(|&page| assert!(set.insert(page)));
        Remaining::new(set)
    }

    #[test]
    fn each_page_is_taken_once_and_what_was_asked_for_leads() {
        let mut rest = of(300, &[1, 2, 3, 64, 65, 200, 299]);
        assert_eq!(rest.take_next(2), [1, 2]);
        assert_eq!(rest.take_window(192, 16), [200]);
        assert_eq!(rest.take_window(192, 16), [0; 0]);
        assert_eq!((rest.left(), rest.bytes()), (4, Bytes(4 * 4096)));
        assert_eq!(rest.runs(), [(3, 1), (64, 2), (299, 1)]);
        assert_eq!(rest.take_next(100), [299, 3, 64, 65]);
        assert_eq!(rest.take_next(100), [0; 0]);
        assert_eq!(rest.take_window(u64::MAX, 16), [0; 0]);
    }

    #[test]
    fn the_set_survives_the_wire_and_nothing_else_is_taken() {
        let rest = of(MISSING_WORDS_MAX as u64 * 64 + 70, &[0, 63, 64, 1_048_576]);
        let mut came = Arriving::new(MISSING_WORDS_MAX as u64 * 64 + 70);
        for frame in rest.frames() {
            let Frame::Missing { first, words } = frame else { panic!() };
            assert!(!came.is_complete());
            assert!(came.take(first + 64, &words).is_err(), "out of order");
            came.take(first, &words).unwrap();
        }
        assert!(came.is_complete());
        assert!(came.take(MISSING_WORDS_MAX as u64 * 64 + 128, &[0]).is_err(), "too much");
        let came = came.finish().unwrap();
        assert_eq!((came.left(), came.runs()), (4, rest.runs()));
    }

    #[test]
    fn pages_that_do_not_exist_are_refused() {
        let mut came = Arriving::new(70);
        came.take(0, &[1]).unwrap();
        assert!(Arriving::new(70).finish().is_err(), "nothing came");
        came.take(64, &[1 << 6]).unwrap();
        assert!(came.finish().is_err(), "page 70");
    }
}
