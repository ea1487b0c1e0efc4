//! What a page holds, and what a page that holds something else holds instead.
//!
//! A page's content follows from its number and its generation (how often it
//! was rewritten): 512 words in steps from a first word that no other page and
//! no other generation begins with. So a wrong page betrays where it comes from.
//! Each word may stand there several times in a row: then the page compresses as
//! memory of real programs does, which is full of repetitions of a few words.

const WORDS: usize = 512;
/// Odd, so that no two words of a page are equal.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The memory of one page.
pub type Page = [u64; WORDS];

/// What all contents depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    pub seed: u64,
    /// How often each word stands there, 1 to [`WORDS`].
    pub repeat: usize,
}

/// Which content a page is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    pub page: u32,
    pub generation: u32,
}

/// What a page was found to hold instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its own content of another generation: a write was lost, or came twice.
    Stale { generation: u32 },
    /// Another page's content.
    Moved { page: u32, generation: u32 },
    /// Zeroes only.
    Zeroed,
    /// Parts of different contents, or something the guest never wrote.
    Torn,
}

impl Content {
    fn first_word(self, seed: u64) -> u64 {
        mix((u64::from(self.page) << 32 | u64::from(self.generation)) ^ seed)
    }

    fn from_first_word(word: u64, seed: u64) -> Self {
        let key = unmix(word) ^ seed;
        Self { page: (key >> 32) as u32, generation: key as u32 }
    }

    /// Writes the whole page.
    pub fn fill(self, page: &mut Page, pattern: Pattern) {
        let mut word = self.first_word(pattern.seed);
        if pattern.repeat > 1 {
            for slots in page.chunks_mut(pattern.repeat) {
                slots.fill(word);
                word = word.wrapping_add(STEP);
            }
            return;
        }
        for slot in page {
            *slot = word;
            word = word.wrapping_add(STEP);
        }
    }

    /// Whether the page holds exactly this.
    pub fn is_in(self, page: &Page, pattern: Pattern) -> bool {
        runs_from(self.first_word(pattern.seed), page, pattern.repeat)
    }

    /// What a page that does not hold this holds instead; `pages` is how many there are.
    pub fn fault_in(self, page: &Page, pattern: Pattern, pages: u32) -> Fault {
        if is_zero(page) {
            return Fault::Zeroed;
        }
        let found = Self::from_first_word(page[0], pattern.seed);
        if found.page >= pages || !runs_from(page[0], page, pattern.repeat) {
            return Fault::Torn;
        }
        if found.page == self.page {
            Fault::Stale { generation: found.generation }
        } else {
            Fault::Moved { page: found.page, generation: found.generation }
        }
    }
}

/// Whether the page holds zeroes only.
pub fn is_zero(page: &Page) -> bool {
    page.iter().fold(0, |seen, &word| seen | word) == 0
}

fn runs_from(first: u64, page: &Page, repeat: usize) -> bool {
    if repeat > 1 {
        let words = page.iter().enumerate();
        return words.fold(0, |differences, (place, &slot)| {
            differences | (slot ^ first.wrapping_add(STEP.wrapping_mul((place / repeat) as u64)))
        }) == 0;
    }
    // Without an early exit, so that the compiler can do several words at once.
    let mut word = first;
    let mut differences = 0;
    for &slot in page {
        differences |= slot ^ word;
        word = word.wrapping_add(STEP);
    }
    differences == 0
}

/// A bijection that spreads every bit (the finalizer of SplitMix64).
const fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The inverse of [`mix`].
const fn unmix(mut word: u64) -> u64 {
    word = (word ^ (word >> 31) ^ (word >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
    word = (word ^ (word >> 27) ^ (word >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
    word ^ (word >> 30) ^ (word >> 60)
}
