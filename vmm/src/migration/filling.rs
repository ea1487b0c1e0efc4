//! What arrives, into guest memory and onto disks: from any number of connections at a time.
//!
//! ```text
//!   first connection ──▶ main: pages, rounds, hashes, state, End
//!   each other one ────▶ a thread: pages, rounds
//!   Present ───────────▶ a thread that takes memory ahead of them
//! ```
//!
//! A round is over when every connection has said so ([`Filling::await_all`]); the
//! source sends nothing of the next one before. So no page is written twice at a
//! time, and the newest write is the one that stays.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use ballast_model::{Bytes, Refusal};

use super::Trouble;
use super::control::Control;
use super::framing::Frame;
use super::integrity::Doubts;
use super::sender::add_to_runs;
use super::storage::landing::Landing;
use super::stream::{Handle, Stream};
use crate::codec::Malformed;
use crate::memory::Memory;

/// The least time between two updates of the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How long a connection may lag behind the others while nothing arrives on any.
const LAG_MAX: Duration = Duration::from_secs(30);

/// Guest memory while it is being filled.
#[derive(Debug)]
pub(crate) struct Filling<'a> {
    memory: &'a Memory,
    control: &'a Control,
    pub(super) landing: &'a Landing,
    /// Pages that are no longer as fresh memory is.
    written: AtomicPageSet,
    doubts: Doubts,
    zeroes: AtomicU64,
    bytes: AtomicU64,
    began: Instant,
    reported: Mutex<Instant>,
    others: Mutex<Others>,
    changed: Condvar,
    /// Nothing more is wanted: whoever still works ends.
    over: AtomicBool,
}

/// The connections beside the first.
#[derive(Debug, Default)]
struct Others {
    connections: Vec<Handle>,
    /// The round each has last finished.
    reached: Vec<u32>,
    /// What the first that failed failed of.
    trouble: Option<Trouble>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Filling<'a> {
    pub(crate) fn new(memory: &'a Memory, control: &'a Control, landing: &'a Landing) -> Self {
        let now = Instant::now();
        Self {
            memory,
            control,
            landing,
            written: AtomicPageSet::empty(memory.layout().pages()),
            doubts: Doubts::none(memory.layout().pages()),
            zeroes: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            began: now,
            reported: Mutex::new(now),
            others: Mutex::default(),
            changed: Condvar::new(),
            over: AtomicBool::new(false),
        }
    }

    /// Takes another connection, on a thread of its own. When it fails, `main` is woken.
    pub(crate) fn add<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        mut stream: Stream,
        main: Handle,
    ) -> Result<(), Trouble> {
        // The first connection's timeouts watch over all of them.
        stream.wait_long()?;
        let place = {
            let mut others = lock(&self.others);
            others.connections.push(stream.handle()?);
            others.reached.push(0);
            others.reached.len() - 1
        };
        let work = move || {
            let Err(trouble) = self.take_all(&mut stream, place) else { return };
            if !self.over.load(Ordering::Relaxed) {
                lock(&self.others).trouble.get_or_insert(trouble);
                self.changed.notify_all();
                main.stop_reading();
            }
        };
        let thread = std::thread::Builder::new().name("receiver".to_owned());
        let spawned = thread.spawn_scoped(scope, work);
        spawned.map(|_| ()).map_err(|error| Trouble::Io { what: "starting a thread", error })
    }

    /// Takes memory where pages will arrive, ahead of them, on a thread of its own.
    pub(crate) fn take_ahead<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        blocks: Vec<u8>,
    ) {
        let work = move || self.memory.take_blocks(&blocks, &self.over);
        // Without it memory is taken as pages arrive, which is slower.
        let _ = std::thread::Builder::new().name("prefault".to_owned()).spawn_scoped(scope, work);
    }

    /// Ends all threads; what they failed of, if one did before.
    pub(crate) fn finish(&self) -> Option<Trouble> {
        self.over.store(true, Ordering::Relaxed);
        let mut others = lock(&self.others);
        others.connections.iter().for_each(Handle::shut_down);
        others.trouble.take()
    }

    /// Waits until every other connection has finished this round.
    pub(crate) fn await_all(&self, round: u32) -> Result<(), Trouble> {
        let mut others = lock(&self.others);
        let mut bytes = self.bytes();
        while others.reached.iter().any(|&reached| reached < round) {
            if others.trouble.is_some() || self.control.verdict().is_some() {
                return Err(Trouble::Interrupted);
            }
            let waited = self.changed.wait_timeout(others, LAG_MAX);
            let (next, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            others = next;
            if timeout.timed_out() && std::mem::replace(&mut bytes, self.bytes()) == self.bytes() {
                let error = std::io::ErrorKind::TimedOut.into();
                return Err(Trouble::Io { what: "waiting for all connections", error });
            }
        }
        Ok(())
    }

    /// All of another connection, up to its end.
    fn take_all(&self, stream: &mut Stream, place: usize) -> Result<(), Trouble> {
        loop {
            match stream.receive()? {
                Frame::Round { number } => {
                    if let Some(reached) = lock(&self.others).reached.get_mut(place) {
                        *reached = number;
                    }
                    self.changed.notify_all();
                }
                frame => self.take(stream, frame)?,
            }
        }
    }

    /// A frame of pages and the pages that follow it.
    pub(crate) fn take(&self, stream: &mut Stream, frame: Frame) -> Result<(), Trouble> {
        match frame {
            Frame::Pages(pages) => {
                let mut runs = Vec::new();
                pages.iter().for_each(|&page| add_to_runs(&mut runs, page));
                self.take_runs(stream, &runs)?;
            }
            Frame::Runs(runs) => self.take_runs(stream, &runs)?,
            Frame::Packed { bytes, runs } => {
                let before = stream.bytes;
                stream.receive_packed(self.memory, &runs, bytes)?;
                self.took(&runs, &[], stream.bytes - before);
            }
            Frame::Zero(runs) => self.take_zeroes(&runs)?,
            Frame::DiskData { disk, offset, bytes } => {
                self.landing.take_data(stream, disk, offset, bytes)?;
                self.bytes.fetch_add(bytes.into(), Ordering::Relaxed);
                self.report();
            }
            Frame::DiskPacked { disk, offset, bytes, packed } => {
                self.landing.take_packed(stream, (disk, offset, bytes), packed)?;
                self.bytes.fetch_add(packed.into(), Ordering::Relaxed);
                self.report();
            }
            Frame::DiskZero { disk, offset, bytes } => {
                self.landing.take_zeroes(disk, offset, bytes)?;
                self.report();
            }
            _ => return Err(Malformed("the order of frames").into()),
        }
        if self.control.verdict().is_some() {
            return Err(Trouble::Interrupted);
        }
        Ok(())
    }

    fn take_runs(&self, stream: &mut Stream, runs: &[(u64, u64)]) -> Result<(), Trouble> {
        let before = stream.bytes;
        let differing = stream.receive_pages(self.memory, runs)?;
        self.took(runs, &differing, stream.bytes - before);
        Ok(())
    }

    /// These pages are in guest memory, `differing` in doubt among them.
    fn took(&self, runs: &[(u64, u64)], differing: &[u64], bytes: u64) {
        self.doubts.settle(runs, differing);
        for &(first, count) in runs {
            self.written.insert(first, count);
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.report();
    }

    /// Fresh memory is zero already: touching it would only make it resident.
    fn take_zeroes(&self, runs: &[(u64, u64)]) -> Result<(), Trouble> {
        let total = self.memory.layout().pages();
        for &(first, count) in runs {
            let end = first.checked_add(count).filter(|&end| end <= total);
            let end = end.ok_or(Malformed("the number of a zero page"))?;
            self.doubts.settle(&[(first, count)], &[]);
            for page in first..end {
                if self.written.remove(page) {
                    self.memory.clear_page(page);
                }
            }
            self.zeroes.fetch_add(count, Ordering::Relaxed);
        }
        Ok(())
    }

    /// When all pages have come but those that come later: whether they are as they were sent.
    pub(crate) fn check(&self, later: Vec<(u64, u64)>) -> Result<(), Refusal> {
        self.doubts.settle(&later, &[]);
        self.doubts.finish(self.memory.layout().pages())
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Now and then, how far it is: whoever watches sees that it goes on.
    pub(super) fn report(&self) {
        let Ok(mut reported) = self.reported.try_lock() else { return };
        if reported.elapsed() >= PROGRESS_INTERVAL {
            *reported = Instant::now();
            drop(reported);
            self.progress(None);
        }
    }

    /// Tells whoever watches how far it is.
    pub(crate) fn progress(&self, round: Option<u32>) {
        let elapsed = self.began.elapsed();
        self.control.update(|status| {
            let progress = &mut status.progress;
            progress.rounds = round.unwrap_or(progress.rounds);
            progress.bytes_sent = Bytes(self.bytes());
            progress.disk_bytes_sent = self.landing.received();
            progress.pages_zero = self.zeroes.load(Ordering::Relaxed);
            progress.elapsed = elapsed;
        });
    }
}

/// A set of pages that several threads change.
#[derive(Debug)]
pub(super) struct AtomicPageSet(Vec<AtomicU64>);

impl AtomicPageSet {
    pub(super) fn empty(pages: u64) -> Self {
        Self((0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Adds `count` pages from `first` on. Those that do not exist have been refused before.
    pub(super) fn insert(&self, first: u64, count: u64) {
        let mut page = first;
        while page < first + count {
            let end = (first + count).min((page / 64 + 1) * 64);
            let bits = (u64::MAX >> (64 - (end - page))) << (page % 64);
            if let Some(word) = usize::try_from(page / 64).ok().and_then(|at| self.0.get(at)) {
                word.fetch_or(bits, Ordering::Relaxed);
            }
            page = end;
        }
    }

    /// Whether it is in it.
    pub(super) fn contains(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64).ok().and_then(|at| self.0.get(at));
        word.is_some_and(|word| word.load(Ordering::Relaxed) & 1 << (page % 64) != 0)
    }

    /// Takes a page out; whether it was there.
    pub(super) fn remove(&self, page: u64) -> bool {
        let bit = 1 << (page % 64);
        let word = usize::try_from(page / 64).ok().and_then(|at| self.0.get(at));
        word.is_some_and(|word| {
            word.load(Ordering::Relaxed) & bit != 0
                && word.fetch_and(!bit, Ordering::Relaxed) & bit != 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_added_whole_and_nothing_beside_them() {
        for (first, count) in [(0, 1), (63, 2), (0, 64), (64, 128), (5, 300), (7, 0)] {
            let set = AtomicPageSet::empty(512);
            set.insert(first, count);
            let there: Vec<u64> = (0..512).filter(|&page| set.remove(page)).collect();
            assert!(there.iter().copied().eq(first..first + count), "{first} {count}: {there:?}");
            assert!((0..600).all(|page| !set.remove(page)));
        }
    }
}
