//! What the guest has written to its console, as much of it as is kept.
//!
//! A ring with an absolute offset: byte 0 is the first byte the VM ever wrote,
//! on whatever host. The ring is device state and goes along when the VM
//! migrates, so a reader that asks for "everything from byte n" sees no gap.

pub(crate) mod log;
pub(crate) mod port;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::log::ConsoleLog;

use crate::codec::{Decoder, Encoder, Malformed};

/// How much is kept, in bytes.
pub(crate) const KEPT_BYTES: usize = 128 << 10;
/// The most one read answers with, in bytes.
pub(crate) const READ_BYTES_MAX: usize = 64 << 10;

/// A port of the guest's that writes to the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Source {
    Com1,
    Virtio,
}

/// Where output goes, whichever port it comes from: the ring, and a file if there is one.
#[derive(Debug, Default)]
pub(crate) struct Output {
    ring: Mutex<Console>,
    log: Mutex<Option<ConsoleLog>>,
    /// The [`Source`] of the newest byte.
    last: AtomicU8,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output {
    pub(crate) fn append(&self, source: Source, bytes: &[u8]) {
        self.last.store(source as u8, Ordering::Relaxed);
        lock(&self.ring).append(bytes);
        if let Some(log) = &mut *lock(&self.log) {
            log.append(bytes);
        }
    }

    /// The port that spoke last: the one at which somebody waits for an answer.
    pub(crate) fn last(&self) -> Source {
        if self.last.load(Ordering::Relaxed) == Source::Virtio as u8 {
            Source::Virtio
        } else {
            Source::Com1
        }
    }

    /// See [`Console::read`].
    pub(crate) fn read(&self, offset: u64) -> (u64, Vec<u8>) {
        lock(&self.ring).read(offset)
    }

    /// Writes all output from now on to a file, too.
    pub(crate) fn log_to(&self, log: ConsoleLog) {
        *lock(&self.log) = Some(log);
    }

    /// What a migration carries of it.
    pub(crate) fn save(&self) -> Console {
        lock(&self.ring).clone()
    }

    pub(crate) fn load(&self, console: &Console) {
        lock(&self.ring).clone_from(console);
    }
}

/// The ring.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Console {
    /// Offset of the next byte to be written.
    end: u64,
    kept: std::collections::VecDeque<u8>,
}

impl Console {
    /// Adds what the guest wrote; the oldest bytes make room.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.end = self.end.saturating_add(bytes.len() as u64);
        self.kept.extend(bytes);
        let surplus = self.kept.len().saturating_sub(KEPT_BYTES);
        self.kept.drain(..surplus);
    }

    /// Output from `offset` on, or from the oldest byte kept, with the offset
    /// it starts at. An offset in the future reads nothing, at that offset; the
    /// last offset there is reads nothing, at the end.
    pub(crate) fn read(&self, offset: u64) -> (u64, Vec<u8>) {
        if offset == u64::MAX {
            return (self.end, Vec::new());
        }
        let first = self.end - self.kept.len() as u64;
        let start = offset.max(first);
        let skip = usize::try_from(start - first).unwrap_or(usize::MAX);
        (start, self.kept.iter().skip(skip).take(READ_BYTES_MAX).copied().collect())
    }

    pub(crate) fn encode(&self, to: &mut Encoder) {
        let (front, back) = self.kept.as_slices();
        to.u64(self.end).count(self.kept.len()).raw(front).raw(back);
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        const WHAT: &str = "the console's output";
        let end = from.u64(WHAT)?;
        let kept = from.bytes(KEPT_BYTES, WHAT)?;
        if end < kept.len() as u64 {
            return Err(Malformed(WHAT));
        }
        Ok(Self { end, kept: kept.to_vec().into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_go_on_where_they_ended() {
        let mut console = Console::default();
        console.append(b"one ");
        assert_eq!(console.read(0), (0, b"one ".to_vec()));
        console.append(b"two");
        assert_eq!(console.read(4), (4, b"two".to_vec()));
        assert_eq!(console.read(7), (7, vec![]));
        assert_eq!(console.read(99), (99, vec![]));
        assert_eq!(console.read(u64::MAX), (7, vec![]));
    }

    #[test]
    fn old_output_makes_room_and_says_so() {
        let mut console = Console::default();
        console.append(&vec![b'x'; KEPT_BYTES]);
        console.append(b"end");
        let (start, data) = console.read(0);
        assert_eq!((start, data.len()), (3, READ_BYTES_MAX));
        assert_eq!(console.read(KEPT_BYTES as u64), (KEPT_BYTES as u64, b"end".to_vec()));
    }

    #[test]
    fn the_ring_survives_the_wire() {
        let mut console = Console::default();
        console.append(&vec![b'x'; KEPT_BYTES]);
        console.append(b"wrapped");
        let mut encoder = Encoder::default();
        console.encode(&mut encoder);
        let bytes = encoder.finish();
        assert_eq!(Console::decode(&mut Decoder::new(&bytes)).unwrap(), console);
    }

    #[test]
    fn more_kept_than_written_is_malformed() {
        let mut encoder = Encoder::default();
        encoder.u64(2).bytes(b"abc");
        let bytes = encoder.finish();
        assert!(Console::decode(&mut Decoder::new(&bytes)).is_err());
    }
}
