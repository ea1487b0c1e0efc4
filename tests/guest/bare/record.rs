//! A record of the log on disk.
//!
//! Record *n* stands at *n* times its length, so that a record in the wrong
//! place shows. Each names the checksum of the one before it, so that two
//! writers of one disk show, too: they cannot both be right. All numbers are
//! little-endian u64:
//!
//! | word | holds |
//! | --- | --- |
//! | 0 | `MAGIC` |
//! | 1 | its sequence, from 0 on |
//! | 2 | run: how often the guest had begun on this disk |
//! | 3 | nanoseconds since that run began |
//! | 4 | requests the guest had counted on the network |
//! | 5 | records that were known to be durable when it was written |
//! | 6 | checksum of the record before it; 0 for the first |
//! | 7 … | filling that follows from the sequence |
//! | last | checksum of all the words before |

/// The first word of every record: "BLSTLOG1".
const MAGIC: u64 = u64::from_le_bytes(*b"BLSTLOG1");
const WORDS_OF_HEAD: usize = 7;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Its number, from 0 on.
    pub sequence: u64,
    /// How often the guest had begun on this disk, from 1 on.
    pub run: u64,
    /// Nanoseconds since that run began.
    pub nanos: u64,
    /// Requests the guest had counted on the network.
    pub requests: u64,
    /// Records that were known to be durable when it was written.
    pub durable: u64,
    /// Checksum of the record before it.
    pub previous: u64,
}

/// What is in the place of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A whole record, and its checksum.
    Record(Record, u64),
    /// Zeroes only: nothing was written there.
    Nothing,
    /// Part of a record, or something else.
    Damaged,
}

impl Record {
    /// Fills `bytes`, a multiple of 8 of at least 64, with the record. Returns its checksum.
    pub fn write(&self, bytes: &mut [u8]) -> u64 {
        let head = [
            MAGIC,
            self.sequence,
            self.run,
            self.nanos,
            self.requests,
            self.durable,
            self.previous,
        ];
        let filling = (1..).map(|at: u64| fill(self.sequence, at));
        let mut sum = 0;
        let last = bytes.len() / 8 - 1;
        for (at, (slot, word)) in
            bytes.chunks_exact_mut(8).zip(head.into_iter().chain(filling)).enumerate()
        {
            let word = if at == last { sum } else { word };
            sum = add(sum, word);
            slot.copy_from_slice(&word.to_le_bytes());
        }
        word_at(bytes, last)
    }

    /// What `bytes` hold.
    pub fn read(bytes: &[u8]) -> Found {
        let last = bytes.len() / 8 - 1;
        if bytes.iter().all(|&byte| byte == 0) {
            return Found::Nothing;
        }
        let sum = (0..last).fold(0, |sum, at| add(sum, word_at(bytes, at)));
        let record = Self {
            sequence: word_at(bytes, 1),
            run: word_at(bytes, 2),
            nanos: word_at(bytes, 3),
            requests: word_at(bytes, 4),
            durable: word_at(bytes, 5),
            previous: word_at(bytes, 6),
        };
        let filled = (WORDS_OF_HEAD..last)
            .zip(1..)
            .all(|(at, n)| word_at(bytes, at) == fill(record.sequence, n));
        if word_at(bytes, 0) == MAGIC && word_at(bytes, last) == sum && filled {
            Found::Record(record, sum)
        } else {
            Found::Damaged
        }
    }
}

fn fill(sequence: u64, at: u64) -> u64 {
    (sequence << 16 | at).wrapping_mul(STEP)
}

fn add(sum: u64, word: u64) -> u64 {
    (sum ^ word).rotate_left(23).wrapping_mul(STEP)
}

fn word_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
    u64::from_le_bytes(word)
}
