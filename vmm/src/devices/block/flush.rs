//! Flushes of one disk: one at a time for all who wait, and none after one that failed.
//!
//! A host that cannot write a page back says so once, to the flush that is
//! waiting, and forgets (fsync(2), "errors"): the page counts as written, and
//! the next flush succeeds although the data is nowhere. A guest that is told
//! so would throw away its only other copy. So the first failure stays: every
//! flush from then on fails, until the disk is opened anew by a VM that starts
//! and reads what there is.
//!
//! Flushes are done one after the other, so that none can succeed beside one
//! that has just failed. Whoever asked before a flush began is served by it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The flushes of one open disk.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    /// How many were asked for.
    asked: AtomicU64,
    done: Mutex<Done>,
}

#[derive(Debug, Default)]
struct Done {
    /// Of those asked for, so many have been served.
    served: u64,
    /// The error number of the first that failed.
    failed: Option<i32>,
}

impl Flushes {
    /// Returns when everything written before is on the disk, by `sync` or by somebody else's
    /// that began after this call.
    ///
    /// # Errors
    /// That of `sync`, or of the first one that ever failed.
    pub(super) fn flush(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let ticket = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = done.failed {
            return Err(io::Error::from_raw_os_error(number));
        }
        if done.served >= ticket {
            return Ok(());
        }
        let all = self.asked.load(Ordering::Acquire);
        match sync() {
            Ok(()) => {
                done.served = all;
                Ok(())
            }
            Err(error) => {
                done.failed = Some(error.raw_os_error().unwrap_or(libc::EIO));
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_failure_is_never_forgotten() {
        let flushes = Flushes::default();
        flushes.flush(|| Ok(())).unwrap();
        let full = || Err(io::Error::from_raw_os_error(libc::ENOSPC));
        let later = || unreachable!("the host would say that all is well");
        assert_eq!(flushes.flush(full).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(flushes.flush(later).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn those_who_wait_are_served_together() {
        const OTHERS: u64 = 3;
        let (flushes, syncs) = (Flushes::default(), AtomicUsize::new(0));
        let begun = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                flushes.flush(|| {
                    begun.wait();
                    let end = Instant::now() + Duration::from_secs(60);
                    while flushes.asked.load(Ordering::Acquire) < 1 + OTHERS {
                        assert!(Instant::now() < end, "nobody came");
                        std::thread::yield_now();
                    }
                    Ok(())
                })
            });
            begun.wait();
            for _ in 0..OTHERS {
                scope.spawn(|| {
                    flushes.flush(|| {
                        syncs.fetch_add(1, Ordering::AcqRel);
                        Ok(())
                    })
                });
            }
        });
        // Not by the one that had begun before they came, but by one for all of them.
        assert_eq!(syncs.into_inner(), 1);
        assert_eq!(flushes.done.into_inner().unwrap().served, 1 + OTHERS);
    }
}
