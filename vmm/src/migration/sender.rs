//! One connection's sender: looks at pages and sends them, or that they are zero.
//!
//! Every connection of a migration has one, each on a thread of its own;
//! [`Meters`] is what they share.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ballast_model::{Bytes, BytesPerSec};

use super::Trouble;
use super::control::Control;
use super::crew::Common;
use super::framing::{Frame, RUN_PAGES_MAX, RUNS_MAX};
use super::packing::{self, Benefit, Packer, Sent};
use super::round::Round;
use super::stream::Stream;
use crate::codec::Malformed;
use crate::memory::{Memory, PAGE_BYTES};

/// What the senders of a migration count together, and what stops them.
#[derive(Debug)]
pub(crate) struct Meters {
    /// Bytes on the wire.
    bytes: AtomicU64,
    /// Bytes that need not go, because others went compressed.
    saved: AtomicU64,
    /// How many connections compress.
    packing: AtomicU64,
    /// Pages that went as a mark.
    zeroes: AtomicU64,
    /// One has failed: the others need not go on.
    failed: AtomicBool,
    pace: Mutex<Pace>,
}

/// The bandwidth limit, and how it is kept.
#[derive(Debug)]
struct Pace {
    limit: Option<BytesPerSec>,
    began: Instant,
    bytes: u64,
    /// Until when some sender sleeps, and for how long one has so far.
    asleep_until: Instant,
    slept: Duration,
}

impl Pace {
    fn new(limit: Option<BytesPerSec>) -> Self {
        let began = Instant::now();
        Self { limit, began, bytes: 0, asleep_until: began, slept: Duration::ZERO }
    }
}

impl Meters {
    pub(crate) fn new(limit: Option<BytesPerSec>) -> Self {
        Self {
            bytes: AtomicU64::new(0),
            saved: AtomicU64::new(0),
            packing: AtomicU64::new(0),
            zeroes: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            pace: Mutex::new(Pace::new(limit)),
        }
    }

    /// Bytes on the wire so far.
    pub(crate) fn bytes(&self) -> Bytes {
        Bytes(self.bytes.load(Ordering::Relaxed))
    }

    /// What compressing has saved on the wire so far.
    pub(crate) fn saved(&self) -> Bytes {
        Bytes(self.saved.load(Ordering::Relaxed))
    }

    /// What would have gone without compressing: what rates and estimates are about.
    pub(crate) fn carried(&self) -> Bytes {
        self.bytes() + self.saved()
    }

    /// Whether some connection compresses.
    pub(crate) fn packs(&self) -> bool {
        self.packing.load(Ordering::Relaxed) > 0
    }

    /// Counts bytes that no sender counts.
    pub(crate) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts pages that went as a mark and that no sender counts.
    pub(crate) fn add_zeroes(&self, pages: u64) {
        self.zeroes.fetch_add(pages, Ordering::Relaxed);
    }

    /// Pages that went as a mark so far.
    pub(crate) fn zeroes(&self) -> u64 {
        self.zeroes.load(Ordering::Relaxed)
    }

    /// Begins to keep another limit, or none.
    pub(crate) fn limit(&self, limit: Option<BytesPerSec>) {
        *self.pace() = Pace::new(limit);
    }

    /// The time since the limit was set without that for which senders slept to keep it.
    pub(crate) fn busy(&self) -> Duration {
        let pace = self.pace();
        pace.began.elapsed().saturating_sub(pace.slept)
    }

    /// Bytes a second since the limit was set, that is, in this round.
    pub(crate) fn rate(&self) -> BytesPerSec {
        let pace = self.pace();
        BytesPerSec::from_amount(Bytes(pace.bytes), pace.began.elapsed())
    }

    /// Stops all senders.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps for as long as the senders are ahead of the limit.
    fn keep_pace(&self, sent: u64, control: &Control) {
        let ahead = {
            let mut pace = self.pace();
            pace.bytes += sent;
            let Some(limit) = pace.limit else { return };
            let due = Bytes(pace.bytes).time_at(limit).unwrap_or_default();
            let now = Instant::now();
            let ahead = due.saturating_sub(now - pace.began);
            // Several may sleep through the same time: it counts once.
            let wake = now + ahead;
            let asleep = wake.saturating_duration_since(pace.asleep_until.max(now));
            pace.slept += asleep;
            pace.asleep_until = pace.asleep_until.max(wake);
            ahead
        };
        if !ahead.is_zero() {
            control.sleep(ahead);
        }
    }
}

/// One connection and its sender.
pub(crate) struct Sender<'a> {
    pub(crate) stream: Stream,
    version: u16,
    memory: &'a Memory,
    control: &'a Control,
    meters: &'a Meters,
    /// What it has sent of the frame being collected.
    runs: Vec<(u64, u64)>,
    pages: u64,
    /// What it reads of disks, used again and again.
    pub(super) buffer: Vec<u8>,
    /// None: pages are never compressed.
    packing: Option<Packing>,
}

/// What compresses, and whether that pays.
#[derive(Default)]
struct Packing {
    packer: Packer,
    benefit: Benefit,
}

impl Packing {
    /// What `pack` makes of a batch, if that is to be tried and makes it smaller.
    fn pack<'p>(
        &'p mut self,
        batch: &mut Sent,
        pack: impl FnOnce(&'p mut Packer) -> Option<&'p [u8]>,
    ) -> Option<&'p [u8]> {
        if !self.benefit.wants_packing() {
            return None;
        }
        let (began, computing) = (Instant::now(), cpu_time());
        let packed = pack(&mut self.packer);
        batch.computing = cpu_time().saturating_sub(computing);
        batch.packing = began.elapsed();
        packed
    }
}

impl<'a> Sender<'a> {
    pub(crate) fn new(stream: Stream, common: Common<'a>) -> Self {
        let Common { memory, control, meters, version, compress } = common;
        let (runs, buffer) = (Vec::new(), Vec::new());
        let packing = (compress && version >= packing::SINCE_VERSION).then(Packing::default);
        Self { stream, version, memory, control, meters, runs, pages: 0, buffer, packing }
    }

    /// Sends chunks of the round until none is left, and says so. `between` is called now and then.
    pub(crate) fn send_round(
        &mut self,
        round: &Round<'_>,
        between: &mut dyn FnMut(&Round<'_>),
    ) -> Result<(), Trouble> {
        while let Some(chunk) = round.take()? {
            self.send_chunk(round, chunk)?;
            between(round);
        }
        while let Some(chunk) = round.blocks.take() {
            self.send_blocks(&chunk)?;
            between(round);
        }
        Ok(())
    }

    /// Says that its part of the round is over.
    pub(crate) fn mark(&mut self, round: &Round<'_>) -> Result<(), Trouble> {
        self.send(&Frame::Round { number: round.number })
    }

    /// Sends a frame that no pages follow, and counts it.
    pub(crate) fn send(&mut self, frame: &Frame) -> Result<(), Trouble> {
        let before = self.stream.bytes;
        self.stream.send(frame)?;
        self.meters.add(self.stream.bytes - before);
        Ok(())
    }

    fn send_chunk(&mut self, round: &Round<'_>, chunk: Range<u64>) -> Result<(), Trouble> {
        let batch_pages = self.batch_pages();
        let mut zeroes: Vec<(u64, u64)> = Vec::new();
        for page in round.pages(chunk) {
            if self.memory.is_zero(page) {
                add_to_runs(&mut zeroes, page);
                continue;
            }
            add_to_runs(&mut self.runs, page);
            self.pages += 1;
            if self.pages == batch_pages {
                self.send_batch()?;
            }
        }
        self.send_batch()?;
        for runs in zeroes.chunks(RUNS_MAX) {
            self.send(&Frame::Zero(runs.to_vec()))?;
        }
        let zero_pages = zeroes.iter().map(|run| run.1).sum();
        self.meters.zeroes.fetch_add(zero_pages, Ordering::Relaxed);
        Ok(())
    }

    /// So few that a limited link has several batches a second.
    fn batch_pages(&self) -> u64 {
        let page = PAGE_BYTES as u64;
        (self.batch_bytes(RUN_PAGES_MAX * page) / page).max(1)
    }

    /// The same in bytes, at most `max`.
    pub(super) fn batch_bytes(&self, max: u64) -> u64 {
        self.meters.pace().limit.map_or(max, |limit| max.min(limit.get() / 8))
    }

    /// Whether to go on sending: nobody has ended it, here or there.
    pub(super) fn check_peer(&mut self) -> Result<(), Trouble> {
        if self.control.verdict().is_some() || self.meters.failed.load(Ordering::Relaxed) {
            return Err(Trouble::Interrupted);
        }
        if self.stream.peer_spoke() {
            // It has nothing to say now but Failed, or has closed the connection.
            self.stream.receive()?;
            return Err(Malformed("the order of frames").into());
        }
        Ok(())
    }

    /// Counts what went over the wire, and keeps to the limit.
    pub(super) fn count(&self, sent: u64) {
        self.meters.add(sent);
        self.meters.keep_pace(sent, self.control);
    }

    fn send_batch(&mut self) -> Result<(), Trouble> {
        self.check_peer()?;
        if self.runs.is_empty() {
            return Ok(());
        }
        let (mut batch, before) = (Sent::default(), self.stream.bytes);
        batch.plain = self.pages * PAGE_BYTES as u64;
        let began = Instant::now();
        let packing = self.packing.as_mut();
        let packed = packing.and_then(|packing| {
            packing.pack(&mut batch, |packer| packer.pack(self.memory, &self.runs))
        });
        match packed {
            Some(packed) => {
                let bytes = u32::try_from(packed.len()).unwrap_or(u32::MAX);
                let frame = Frame::Packed { bytes, runs: self.runs.clone() };
                self.stream.send_data(&frame, packed)?;
            }
            None if self.version == 1 => {
                let pages = self.runs.iter().flat_map(|run| run.0..run.0 + run.1).collect();
                self.stream.send_pages(&Frame::Pages(pages), self.memory, &self.runs)?;
            }
            None => {
                let frame = Frame::Runs(self.runs.clone());
                self.stream.send_pages(&frame, self.memory, &self.runs)?;
            }
        }
        batch.wire = self.stream.bytes - before;
        self.runs.clear();
        self.pages = 0;
        self.went(batch, began);
        Ok(())
    }

    /// Sends a piece of a disk that is not zero.
    pub(super) fn send_piece(
        &mut self,
        disk: u16,
        offset: u64,
        piece: &[u8],
    ) -> Result<(), Trouble> {
        // At most `DATA_BYTES_MAX`.
        let bytes = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        let (mut batch, before) = (Sent::default(), self.stream.bytes);
        batch.plain = piece.len() as u64;
        let began = Instant::now();
        let allowed = self.version >= packing::DISKS_SINCE_VERSION;
        let packing = self.packing.as_mut().filter(|_| allowed);
        let packed =
            packing.and_then(|packing| packing.pack(&mut batch, |packer| packer.pack_data(piece)));
        match packed {
            Some(data) => {
                let packed = u32::try_from(data.len()).unwrap_or(u32::MAX);
                let frame = Frame::DiskPacked { disk, offset, bytes, packed };
                self.stream.send_data(&frame, data)?;
            }
            None => self.stream.send_data(&Frame::DiskData { disk, offset, bytes }, piece)?,
        }
        batch.wire = self.stream.bytes - before;
        self.went(batch, began);
        Ok(())
    }

    /// Counts a batch that began to be sent then, keeps to the limit, and decides about the next one.
    fn went(&mut self, mut batch: Sent, began: Instant) {
        self.count(batch.wire);
        batch.sending = began.elapsed().saturating_sub(batch.packing);
        self.learn(batch);
    }

    /// Whether to compress the next batches.
    fn learn(&mut self, batch: Sent) {
        let Some(Packing { benefit, .. }) = &mut self.packing else { return };
        let before = benefit.pays();
        benefit.learn(batch);
        match (before, benefit.pays()) {
            (false, true) => _ = self.meters.packing.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = self.meters.packing.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
        let saved = batch.plain.saturating_sub(batch.wire);
        self.meters.saved.fetch_add(saved, Ordering::Relaxed);
    }
}

/// What this thread has used of a CPU.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Adds a page to runs of first page and count, in order.
pub(crate) fn add_to_runs(runs: &mut Vec<(u64, u64)>, page: u64) {
    match runs.last_mut() {
        Some((first, count)) if *first + *count == page => *count += 1,
        _ => runs.push((page, 1)),
    }
}
