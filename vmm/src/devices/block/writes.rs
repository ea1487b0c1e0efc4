//! Which parts of a disk were written to: its dirty log, for a copy that is made while the guest runs.
//!
//! A part is marked *after* the write has ended, well or not, and taken out
//! *before* it is read. So whatever a reader has missed of a write is marked
//! afterwards: it reads again. The other way round (marked before the write)
//! the mark could be taken out, the old content read, and the write lost.
//!
//! A write that ends while the log is being switched on is either in it or was
//! in the file before: the switch and the marks share a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The unit of the log, in bytes.
pub(crate) const GRAIN_BYTES: u64 = 64 << 10;

/// The log of one disk: off unless it is being copied.
#[derive(Debug, Default)]
pub(super) struct WriteLog(RwLock<Option<Arc<Written>>>);

/// Grains written to since they were taken out.
#[derive(Debug)]
pub(crate) struct Written {
    words: Vec<AtomicU64>,
    grains: u64,
}

impl WriteLog {
    /// Switches it on, empty; the log for its reader. Writes that have ended by now need not be in it.
    pub(super) fn start(&self, disk_bytes: u64) -> Arc<Written> {
        let grains = disk_bytes.div_ceil(GRAIN_BYTES);
        let words = (0..grains.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let written = Arc::new(Written { words, grains });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&written));
        written
    }

    pub(super) fn stop(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A write to these bytes has ended.
    pub(super) fn mark(&self, offset: u64, bytes: u64) {
        if let Some(written) = &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            written.mark(offset, bytes);
        }
    }
}

impl Written {
    fn word(&self, grain: u64) -> Option<&AtomicU64> {
        self.words.get(usize::try_from(grain / 64).ok()?)
    }

    fn mark(&self, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes).div_ceil(GRAIN_BYTES).min(self.grains);
        for grain in offset / GRAIN_BYTES..end {
            if let Some(word) = self.word(grain) {
                word.fetch_or(1 << (grain % 64), Ordering::AcqRel);
            }
        }
    }

    /// How many grains the disk has.
    pub(crate) fn grains(&self) -> u64 {
        self.grains
    }

    /// How many grains are in it now.
    pub(crate) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.load(Ordering::Acquire).count_ones())).sum()
    }

    /// Takes one grain out, right before it is read.
    pub(crate) fn clear(&self, grain: u64) {
        if let Some(word) = self.word(grain) {
            word.fetch_and(!(1 << (grain % 64)), Ordering::AcqRel);
        }
    }

    /// Takes all out; they have to be read.
    pub(crate) fn take(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().zip(0u64..).flat_map(|(word, place)| {
            let bits = word.swap(0, Ordering::AcqRel);
            (0..64).filter(move |bit| bits & 1 << bit != 0).map(move |bit| place * 64 + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_taken_once() {
        let log = WriteLog::default();
        log.mark(0, 1);
        let written = log.start(100 * GRAIN_BYTES + 512);
        assert_eq!((written.grains(), written.count()), (101, 0), "written before it was on");
        log.mark(GRAIN_BYTES - 1, 2);
        log.mark(70 * GRAIN_BYTES, GRAIN_BYTES);
        log.mark(100 * GRAIN_BYTES, 512);
        log.mark(99 * GRAIN_BYTES, u64::MAX);
        log.mark(5 * GRAIN_BYTES, 0);
        assert_eq!(written.count(), 5);
        written.clear(70);
        assert_eq!(written.take().collect::<Vec<_>>(), [0, 1, 99, 100]);
        assert_eq!(written.take().count(), 0);
        log.stop();
        log.mark(0, 1);
        assert_eq!(written.count(), 0);
    }
}
