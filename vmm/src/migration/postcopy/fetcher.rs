//! The thread behind [`Fetching`](super::fetching::Fetching): faults, pages as they come, and what
//! happens when there is no connection.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballast_model::{Bytes, BytesPerSec, Refusal, RefusalCode};
use xxhash_rust::xxh3::xxh3_64;

use super::door::Door;
use super::fetching::{Order, Outcome, Shared, failed, whole};
use super::remaining::Remaining;
use super::{SILENCE_MAX, WINDOW_PAGES};
use crate::codec::Malformed;
use crate::machine::Machine;
use crate::memory::PAGE_BYTES;
use crate::memory::userfault::Userfault;
use crate::migration::Trouble;
use crate::migration::control::{Control, Verdict};
use crate::migration::framing::Frame;
use crate::migration::sender::add_to_runs;
use crate::migration::stream::Stream;
use crate::migration::wire::{poll, readable};

/// The least time between two updates of the progress, and between two looks at what rings no bell.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Pages that may arrive other than they left before the source is no longer believed.
const DIFFERENT_MAX: u32 = 8;

/// All it knows.
pub(super) struct Fetcher {
    machine: Arc<Machine>,
    userfault: &'static Userfault,
    control: Arc<Control>,
    door: Arc<Door>,
    shared: Arc<Shared>,
    missing: Remaining,
    hashes: Vec<u64>,
    patience: Duration,
    version: u16,
    /// First pages of the windows that have been asked for and are not whole.
    asked: BTreeSet<u64>,
    faults: u64,
    different: u32,
    total: Bytes,
    since: Instant,
    reported: Instant,
}

/// Why fetching over one connection ended.
enum Over {
    Whole,
    /// Somebody decided so.
    Stopped(Option<Stream>),
    /// Another connection has come.
    Replaced(Stream),
    Broken(Trouble),
}

impl Fetcher {
    pub(super) fn new(
        machine: &Arc<Machine>,
        control: &Arc<Control>,
        door: &Arc<Door>,
        shared: &Arc<Shared>,
        userfault: &'static Userfault,
        order: Order,
    ) -> Self {
        let now = Instant::now();
        Self {
            machine: Arc::clone(machine),
            userfault,
            control: Arc::clone(control),
            door: Arc::clone(door),
            shared: Arc::clone(shared),
            total: order.missing.bytes(),
            missing: order.missing,
            hashes: order.hashes,
            patience: order.patience,
            version: order.version,
            asked: BTreeSet::new(),
            faults: 0,
            different: 0,
            since: now,
            reported: now,
        }
    }

    /// Until all of memory is here, or it is certain that it will not be.
    pub(super) fn run(mut self, stream: Stream) -> Outcome {
        let outcome = self.fetch(stream);
        // Whatever it came to, nobody waits any longer. Of a machine that is lost nothing may run
        // on: its process ends with it, and its pages stay away until then.
        match &outcome {
            Outcome::Lost(why) => self.shared.lock().lost = Some(why.clone()),
            _ => self.unwatch(),
        }
        outcome
    }

    fn fetch(&mut self, first: Stream) -> Outcome {
        let mut connection = Some(first);
        loop {
            let over = match connection.take() {
                Some(stream) => self.over(stream),
                None => match self.wait_for_source() {
                    Ok(over) => over,
                    Err(why) => return Outcome::Lost(why),
                },
            };
            match over {
                Over::Whole => return self.whole(),
                Over::Stopped(stream) => return Outcome::Discarded(Trouble::Interrupted, stream),
                Over::Replaced(stream) => connection = Some(stream),
                Over::Broken(trouble) => {
                    let mut wishes = self.shared.lock();
                    if !wishes.holds_out {
                        wishes.failed = true;
                        return Outcome::Discarded(trouble, None);
                    }
                    drop(wishes);
                    self.broke(&trouble);
                }
            }
        }
    }

    /// Over one connection, which is greeted when it is not the first.
    fn over(&mut self, mut stream: Stream) -> Over {
        match self.fetch_over(&mut stream) {
            Ok(Next::Whole) => Over::Whole,
            Ok(Next::Stopped) => Over::Stopped(Some(stream)),
            Ok(Next::Replaced(other)) => Over::Replaced(other),
            Err(trouble) => {
                // The source has to know, and come back: that we let go of the connection does not tell
                // it, for others have a hold of it, too.
                stream.shut_down();
                Over::Broken(trouble)
            }
        }
    }

    fn fetch_over(&mut self, stream: &mut Stream) -> Result<Next, Trouble> {
        stream.make_prompt(SILENCE_MAX)?;
        stream.handle()?.write_patience(SILENCE_MAX)?;
        let mut alive_at = Instant::now();
        loop {
            if let Some(next) = self.look()? {
                return Ok(next);
            }
            if self.missing.left() == 0 && self.shared.lock().ready {
                self.say_wishes(stream)?;
                stream.send(&Frame::Whole)?;
                return Ok(Next::Whole);
            }
            self.say_wishes(stream)?;
            let watched = [self.userfault.as_raw_fd(), self.door.bell.as_raw_fd()];
            let heard = stream.await_peer(false, &watched, PROGRESS_INTERVAL)?;
            // A bell that did not ring has nothing to read.
            let _ = self.door.bell.read();
            self.answer_faults(Some(&mut *stream))?;
            if heard.peer {
                alive_at = Instant::now();
                self.take(stream)?;
            } else if alive_at.elapsed() > SILENCE_MAX && self.missing.left() > 0 {
                let error = std::io::ErrorKind::TimedOut.into();
                return Err(Trouble::Io { what: "waiting for pages", error });
            }
            self.report(false);
        }
    }

    /// Whether somebody wants something else.
    fn look(&mut self) -> Result<Option<Next>, Trouble> {
        if self.shared.lock().stop || self.control.verdict() == Some(Verdict::Abort) {
            return Ok(Some(Next::Stopped));
        }
        Ok(match self.door.take() {
            Some(wire) => Some(Next::Replaced(self.greet(Stream::new(wire)?)?)),
            None => None,
        })
    }

    /// Says what there is to say.
    fn say_wishes(&mut self, stream: &mut Stream) -> Result<(), Trouble> {
        let frames = std::mem::take(&mut self.shared.lock().outbox);
        frames.iter().try_for_each(|frame| stream.send(frame))
    }

    /// A frame of pages of the source.
    fn take(&mut self, stream: &mut Stream) -> Result<(), Trouble> {
        match stream.receive()? {
            Frame::Runs(runs) => {
                self.check_missing(&runs)?;
                let pages: u64 = runs.iter().map(|run| run.1).sum();
                let bytes = usize::try_from(pages).unwrap_or(0) * PAGE_BYTES;
                let mut data = stream.receive_data(bytes)?;
                for (first, count) in runs {
                    let length = usize::try_from(count).unwrap_or(0) * PAGE_BYTES;
                    let (contents, rest) = data.split_at(length);
                    data = rest;
                    self.put(first, count, contents)?;
                }
            }
            Frame::Zero(runs) => {
                self.check_missing(&runs)?;
                const NOTHING: &[u8] = &[0; PAGE_BYTES];
                for (first, count) in runs {
                    (first..first + count).try_for_each(|page| self.verify(page, NOTHING))?;
                    let (start, bytes) = whole(&self.machine.memory, first, count)?;
                    let zeroed = self.userfault.zero(start, bytes);
                    zeroed.map_err(|error| failed("put", error))?;
                    self.arrived(first, count);
                }
            }
            _ => return Err(Malformed("the order of frames").into()),
        }
        Ok(())
    }

    /// Only pages that are missing may come, and in one piece of memory.
    fn check_missing(&self, runs: &[(u64, u64)]) -> Result<(), Malformed> {
        let memory = &self.machine.memory;
        let fits = |&(first, count): &(u64, u64)| {
            memory.run(first, count).is_some()
                && (first..first + count).all(|page| self.missing.contains(page))
        };
        if runs.iter().all(fits) { Ok(()) } else { Err(Malformed("a page that is not missing")) }
    }

    fn put(&mut self, first: u64, count: u64, contents: &[u8]) -> Result<(), Trouble> {
        for (page, contents) in (first..).zip(contents.chunks_exact(PAGE_BYTES)) {
            self.verify(page, contents)?;
        }
        let (start, _) = whole(&self.machine.memory, first, count)?;
        self.userfault.copy(start, contents).map_err(|error| failed("put", error))?;
        self.arrived(first, count);
        Ok(())
    }

    /// In verify mode a page that is not as it left stays missing.
    fn verify(&mut self, page: u64, contents: &[u8]) -> Result<(), Trouble> {
        let at = usize::try_from(page).unwrap_or(usize::MAX);
        match self.hashes.get(at) {
            Some(&hash) if hash != xxh3_64(contents) => {
                self.different += 1;
                tracing::error!(page, "a page did not arrive as it left; it is fetched again");
                Err(Malformed("the hash of a page").into())
            }
            _ => Ok(()),
        }
    }

    fn arrived(&mut self, first: u64, count: u64) {
        for page in first..first + count {
            self.missing.remove(page);
        }
        let windows = (first / WINDOW_PAGES..=(first + count - 1) / WINDOW_PAGES)
            .map(|window| window * WINDOW_PAGES);
        for window in windows {
            if !(window..window + WINDOW_PAGES).any(|page| self.missing.contains(page)) {
                self.asked.remove(&window);
            }
        }
    }

    /// Asks for what is waited for; without a connection that is left for later.
    fn answer_faults(&mut self, mut stream: Option<&mut Stream>) -> Result<(), Trouble> {
        let mut faults = Vec::new();
        self.userfault.faults(&mut faults).map_err(|error| failed("watch over", error))?;
        for address in faults {
            let Some(page) = self.machine.memory.page_at(address) else { continue };
            let first = page / WINDOW_PAGES * WINDOW_PAGES;
            if !self.missing.contains(page) {
                self.give_fresh(first)?;
                continue;
            }
            self.faults += 1;
            if self.asked.insert(first)
                && let Some(stream) = stream.as_deref_mut()
            {
                stream.send(&Frame::Fetch { first, count: WINDOW_PAGES })?;
            }
        }
        Ok(())
    }

    /// Memory nobody has ever written to: it is zero, and so is what lies around it and is not missing.
    fn give_fresh(&mut self, window: u64) -> Result<(), Trouble> {
        let memory = &self.machine.memory;
        let mut fresh = Vec::new();
        (window..window + WINDOW_PAGES)
            .filter(|&page| memory.page(page).is_some() && !self.missing.contains(page))
            .for_each(|page| add_to_runs(&mut fresh, page));
        for (first, count) in fresh {
            let (start, bytes) = whole(memory, first, count)?;
            let given = self.userfault.zero(start, bytes);
            given
                .and_then(|()| self.userfault.wake(start, bytes))
                .map_err(|error| failed("put", error))?;
        }
        Ok(())
    }

    /// Tells a source that has come back what is missing, and what is waited for.
    fn greet(&mut self, mut stream: Stream) -> Result<Stream, Trouble> {
        stream.speak(self.version);
        self.control.detach();
        self.control.attach(stream.handle()?);
        stream.send(&Frame::PostCopy { key: self.door.issue() })?;
        self.missing.frames().try_for_each(|frame| stream.send(&frame))?;
        let again = {
            let mut wishes = self.shared.lock();
            wishes.outbox.clear();
            // What was said last may not have been heard.
            [
                wishes.ready.then_some(Frame::Ready { load: Duration::ZERO }),
                wishes.runs_since.is_some().then_some(Frame::Running),
            ]
        };
        again.iter().flatten().try_for_each(|frame| stream.send(frame))?;
        for &first in &self.asked {
            stream.send(&Frame::Fetch { first, count: WINDOW_PAGES })?;
        }
        tracing::info!(missing = %self.missing.bytes(), "the source is back");
        self.control.update(|status| status.refusal = None);
        Ok(stream)
    }

    /// Says what is the matter while there is no source.
    fn broke(&mut self, trouble: &Trouble) {
        tracing::warn!(%trouble, missing = %self.missing.bytes(), "the source is gone in post-copy");
        let why = self.waits(&trouble.to_string());
        self.control.update(|status| status.refusal = Some(why));
        self.report(true);
    }

    fn waits(&self, trouble: &str) -> Refusal {
        let (missing, patience) = (self.missing.bytes(), self.patience.as_secs());
        Refusal::new(
            RefusalCode::Unavailable,
            format!(
                "{missing} of the VM's memory are missing and the connection to the source is \
                 broken ({trouble}): what touches them stands still; once the VM runs here it is \
                 given up {patience} s after the source went away"
            ),
            "mend the network to the source host and keep its VM process running",
        )
    }

    /// Without a connection: until the source is back, or it has taken too long.
    fn wait_for_source(&mut self) -> Result<Over, Refusal> {
        let broke_at = Instant::now();
        loop {
            if self.shared.lock().stop || self.control.verdict() == Some(Verdict::Abort) {
                return Ok(Over::Stopped(None));
            }
            if self.different > DIFFERENT_MAX {
                return Err(self.lost("too many pages arrived other than they left"));
            }
            if let Some(wire) = self.door.take() {
                return Ok(match Stream::new(wire).and_then(|stream| self.greet(stream)) {
                    Ok(stream) => Over::Replaced(stream),
                    Err(trouble) => Over::Broken(trouble),
                });
            }
            let runs_since = self.shared.lock().runs_since;
            let waited = runs_since.map(|since| broke_at.max(since).elapsed());
            if waited.is_some_and(|waited| waited > self.patience) {
                let why = format!("its source stayed away for {} s", self.patience.as_secs());
                return Err(self.lost(&why));
            }
            let mut fds =
                [&self.door.bell.as_raw_fd(), &self.userfault.as_raw_fd()].map(|fd| readable(*fd));
            if let Err(error) = poll(&mut fds, PROGRESS_INTERVAL) {
                return Err(failed("watch over", error));
            }
            let _ = self.door.bell.read();
            if let Err(trouble) = self.answer_faults(None) {
                return Err(trouble.into_refusal());
            }
        }
    }

    fn lost(&self, why: &str) -> Refusal {
        Refusal::new(
            RefusalCode::HostFailure,
            format!(
                "the VM is lost: {} of its memory are missing for good, {why}",
                self.missing.bytes()
            ),
            "start the VM again from its disks",
        )
    }

    fn whole(&mut self) -> Outcome {
        let (faults, time) = (self.faults, self.since.elapsed());
        tracing::info!(faults, ?time, fetched = %self.total, "all of memory is here");
        self.control.update(|status| status.refusal = None);
        self.report(true);
        Outcome::Whole
    }

    /// Memory like any other again.
    fn unwatch(&self) {
        for slot in self.machine.memory.slots() {
            let done = whole(&self.machine.memory, slot.first_page, slot.pages).and_then(
                |(start, bytes)| {
                    let done = self.userfault.unregister(start, bytes);
                    done.map_err(|error| failed("watch over", error))
                },
            );
            if let Err(refusal) = done {
                tracing::error!(%refusal, "missing pages are still watched over");
            }
        }
    }

    /// Now and then, how far it is.
    fn report(&mut self, now: bool) {
        if !now && self.reported.elapsed() < PROGRESS_INTERVAL {
            return;
        }
        self.reported = Instant::now();
        let (faults, left) = (self.faults, self.missing.bytes());
        let came = Bytes(self.total.get().saturating_sub(left.get()));
        let rate = BytesPerSec::from_amount(came, self.since.elapsed());
        self.control.update(|status| {
            let progress = &mut status.progress;
            (progress.faults, progress.bytes_remaining, progress.rate) = (faults, left, rate);
            progress.dirty_rate = BytesPerSec::ZERO;
        });
    }
}

/// What one look at a connection comes to.
enum Next {
    Whole,
    Stopped,
    Replaced(Stream),
}
