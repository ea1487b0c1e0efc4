//! The source's side: copies memory while the guest runs, stops it, sends the
//! rest, and waits for the verdict.
//!
//! [`Source::phases`] goes straight down. [`send`] is the one place where it is
//! decided what becomes of the guest when something went wrong: see the module
//! above for *sealed* and *unsealed*.

use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballast_model::{Bytes, BytesPerSec, Refusal, RefusalCode};
use ballast_proto::v1::MigrationState as State;
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use super::Trouble;
use super::control::{Control, Verdict};
use super::convergence::{Decision, Limits, Rate, decide};
use super::dirty::{DirtyLog, PageSet};
use super::framing::{Frame, HASHES_MAX, Hello, PAGES_MAX, RUNS_MAX, STATE_CHUNK_BYTES};
use super::negotiation::{Proposal, propose};
use super::stream::Stream;
use super::verify::hash_page;
use crate::codec::Malformed;
use crate::machine::Machine;
use crate::memory::PAGE_BYTES;
use crate::power::GuestEnd;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pages whose dirty bits are cleared at a time, right before they are sent: 16 MiB of memory.
const CHUNK_PAGES: u64 = 4096;
/// The least time between two updates of the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How long READY may take beyond what the guest's size explains.
const READY_TIMEOUT_BASE: Duration = Duration::from_secs(30);
/// What loading and verifying does at least, for READY's timeout.
const READY_RATE_MIN: BytesPerSec = BytesPerSec(100 << 20);
/// The slowest bandwidth limit taken.
pub(crate) const BANDWIDTH_MIN: BytesPerSec = BytesPerSec(64 << 10);

/// What is asked of the source.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) address: SocketAddr,
    pub(crate) hello: Hello,
    pub(crate) limits: Limits,
    pub(crate) verify: bool,
    /// Of the pre-copy rounds; the last pass is not limited.
    pub(crate) bandwidth: Option<BytesPerSec>,
}

/// What became of the guest here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It runs on here.
    GoesOn,
    /// It is another's: discard it.
    Superseded,
}

/// Carries out the source's side, start to end. `agreed` hears when the peer
/// has accepted, or why it came to nothing before. Returns when nothing is left
/// to decide; the status has not been set to its end yet, so that the caller
/// can first do its part.
pub(crate) fn send(
    machine: &Machine,
    order: Order,
    control: &Arc<Control>,
    agreed: oneshot::Sender<Result<(), Refusal>>,
) -> (Ending, Option<Refusal>) {
    let mut source = Source::new(machine, order, control, agreed);
    // A defect in the phases must not leave the guest paused: it counts as trouble.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| source.phases()));
    let trouble = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(trouble)) => Some(trouble),
        Err(_) => Some(Trouble::Here(Refusal::new(
            RefusalCode::Internal,
            "the migration's thread panicked",
            "report a defect",
        ))),
    };
    // The connection closes here: a destination that still receives learns that it is over.
    control.detach();
    let peer_failed = matches!(trouble, Some(Trouble::PeerFailed(_)));
    let refusal = trouble.map(Trouble::into_refusal);
    let fate = fate(control.verdict(), source.sealed, peer_failed, refusal.is_some());
    let verdict = match fate {
        Fate::GoOn => None,
        Fate::Obey(verdict) => Some(verdict),
        Fate::Wait => {
            // The connection may be gone; whether the destination is READY only the record knows.
            control.update(|status| {
                (status.state, status.refusal) = (State::Ready, refusal.clone());
            });
            Some(control.wait_verdict())
        }
    };
    drop(source);
    match verdict {
        Some(Verdict::Superseded) => (Ending::Superseded, None),
        _ => {
            let resumed = machine.resume();
            let cancelled =
                || Refusal::new(RefusalCode::Cancelled, "the migration was cancelled", "try again");
            let why = if verdict.is_some() { Some(cancelled()) } else { refusal };
            let why = why.or_else(|| Some(cancelled()));
            (Ending::GoesOn, resumed.err().map(stays_paused).or(why))
        }
    }
}

/// Its disks were given away and cannot be had again: to go on would destroy them.
fn stays_paused(why: Refusal) -> Refusal {
    tracing::error!(%why, "the guest stays paused");
    let reason = format!("the guest stays paused: {}", why.reason);
    Refusal::new(why.code, reason, format!("{}; then resume it", why.remedy))
}

/// What becomes of the guest when the phases are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It runs on here, by the source's own decision.
    GoOn,
    /// A verdict is known.
    Obey(Verdict),
    /// Stay paused until one is.
    Wait,
}

/// The rule of the module above as a function.
fn fate(verdict: Option<Verdict>, sealed: bool, peer_failed: bool, trouble: bool) -> Fate {
    match verdict {
        Some(verdict) => Fate::Obey(verdict),
        None if trouble && (!sealed || peer_failed) => Fate::GoOn,
        None => Fate::Wait,
    }
}

struct Source<'a> {
    machine: &'a Machine,
    order: Order,
    control: &'a Control,
    agreed: Option<oneshot::Sender<Result<(), Refusal>>>,
    began: Instant,
    reported: Instant,
    /// End has been begun: the destination may be READY.
    sealed: bool,
    /// Pages of the present set that have not had their turn.
    left: u64,
    /// Pages that went as a mark.
    zeroes: u64,
    /// Bytes and time of the present round, for the bandwidth limit and the rate.
    pace: Pace,
    rate: Rate,
}

struct Pace {
    began: Instant,
    bytes: u64,
    slept: Duration,
}

impl Pace {
    fn new() -> Self {
        Self { began: Instant::now(), bytes: 0, slept: Duration::ZERO }
    }
}

impl Drop for Source<'_> {
    /// Whoever waits for the agreement hears something, whatever happened.
    fn drop(&mut self) {
        if let Some(agreed) = self.agreed.take() {
            let _ = agreed.send(Err(Trouble::Interrupted.into_refusal()));
        }
    }
}

impl<'a> Source<'a> {
    fn new(
        machine: &'a Machine,
        order: Order,
        control: &'a Control,
        agreed: oneshot::Sender<Result<(), Refusal>>,
    ) -> Self {
        let now = Instant::now();
        Self {
            machine,
            order,
            control,
            agreed: Some(agreed),
            began: now,
            reported: now,
            sealed: false,
            left: 0,
            zeroes: 0,
            pace: Pace::new(),
            rate: Rate::default(),
        }
    }

    /// The phases, one after the other.
    fn phases(&mut self) -> Result<(), Trouble> {
        let mut stream = self.negotiate()?;
        let log = DirtyLog::start(self.machine)?;
        let copied = self
            .precopy(&mut stream, &log)
            .and_then(|rest| self.stop_and_copy(&mut stream, &log, rest))
            .and_then(|save| self.hand_over(&mut stream, save));
        copied.map_err(|trouble| stream.last_word(trouble))
    }

    /// Connects, greets, proposes, and lets the caller know how it went.
    fn negotiate(&mut self) -> Result<Stream, Trouble> {
        let outcome = self.connect();
        if let Some(agreed) = self.agreed.take() {
            let answer = match &outcome {
                Ok(_) => Ok(()),
                Err(Trouble::Here(refusal) | Trouble::PeerFailed(refusal)) => Err(refusal.clone()),
                Err(trouble) => Err(Refusal::new(
                    RefusalCode::Unavailable,
                    format!("the destination at {} did not agree: {trouble}", self.order.address),
                    "check that it still waits for this migration, then prepare it again",
                )),
            };
            // A caller that has gone needs no answer.
            let _ = agreed.send(answer);
        }
        outcome
    }

    fn connect(&self) -> Result<Stream, Trouble> {
        let what = "connecting to the destination";
        let tcp = TcpStream::connect_timeout(&self.order.address, CONNECT_TIMEOUT)
            .map_err(|error| Trouble::Io { what, error })?;
        self.control.attach(&tcp).map_err(|error| Trouble::Io { what, error })?;
        let mut stream = Stream::new(tcp)?;
        let proposal = Proposal::of(self.machine, self.order.verify);
        let version = propose(&mut stream, &self.order.hello, &proposal)?;
        tracing::info!(version, address = %self.order.address, "the destination agreed");
        Ok(stream)
    }

    /// Round after round while the guest runs, until the rest fits the downtime limit. The rest is
    /// out of the log and has still to be sent.
    fn precopy(&mut self, stream: &mut Stream, log: &DirtyLog<'_>) -> Result<PageSet, Trouble> {
        let pages = self.machine.memory.layout().pages();
        let mut dirty = PageSet::full(pages);
        for round in 1.. {
            self.progress(stream, dirty.bytes(), |rounds| *rounds = round);
            self.pace = Pace::new();
            let before = stream.bytes;
            self.send_set(stream, &dirty, Some(log))?;
            self.end_round(stream, round)?;
            let time = self.pace.began.elapsed().saturating_sub(self.pace.slept);
            self.rate.learn(Bytes(stream.bytes - before), time);
            if let Some(why) = self.machine.vcpus.ended() {
                return Err(guest_ended(&why).into());
            }
            self.machine.devices.flush_disks()?;
            dirty = log.collect()?;
            let decision = decide(round, dirty.bytes(), self.rate, &self.order.limits);
            tracing::debug!(round, remaining = %dirty.bytes(), ?decision, "round done");
            match decision {
                Decision::Continue => {}
                Decision::Stop => return Ok(dirty),
                Decision::GiveUp { estimate } => {
                    return Err(self.does_not_converge(round, dirty.bytes(), estimate).into());
                }
            }
        }
        Ok(dirty)
    }

    /// The destination has everything of the round in memory: only then is its time known.
    fn end_round(&self, stream: &mut Stream, number: u32) -> Result<(), Trouble> {
        stream.send(&Frame::Round { number })?;
        match stream.receive()? {
            Frame::RoundDone { number: done } if done == number => Ok(()),
            _ => Err(Malformed("the answer to a round").into()),
        }
    }

    /// Pauses the guest, saves its state, sends the last dirty pages, those of `rest` among them,
    /// and, when asked to, all hashes.
    ///
    /// The state is read before the last look at the dirty log: reading it may
    /// make KVM write to guest memory (a steal-time record, for one).
    fn stop_and_copy(
        &mut self,
        stream: &mut Stream,
        log: &DirtyLog<'_>,
        rest: PageSet,
    ) -> Result<Vec<u8>, Trouble> {
        let paused = Instant::now();
        self.machine.pause()?;
        if let Some(why) = self.machine.vcpus.ended() {
            return Err(guest_ended(&why).into());
        }
        let saving = Instant::now();
        let state = self.machine.save()?.encode();
        let state_save = saving.elapsed();
        let mut dirty = log.collect()?;
        dirty.add(&rest);
        self.progress(stream, dirty.bytes(), |rounds| *rounds += 1);
        self.order.bandwidth = None;
        self.send_set(stream, &dirty, None)?;
        let last_pass = paused.elapsed().saturating_sub(state_save);
        self.control.update(|status| {
            let downtime = &mut status.progress.downtime;
            (downtime.state_save, downtime.last_pass) = (state_save, last_pass);
        });
        Ok(state)
    }

    /// Sends the state, seals, and waits for READY.
    fn hand_over(&mut self, stream: &mut Stream, state: Vec<u8>) -> Result<(), Trouble> {
        let began = Instant::now();
        if self.order.verify {
            self.send_hashes(stream)?;
        }
        for chunk in state.chunks(STATE_CHUNK_BYTES) {
            stream.send(&Frame::State(chunk.to_vec()))?;
        }
        if self.control.verdict().is_some() {
            return Err(Trouble::Interrupted);
        }
        // From here on the destination may be told to take them.
        self.machine.devices.release_disks()?;
        self.sealed = true;
        let (state_bytes, state_hash) = (state.len() as u64, xxh3_64(&state));
        stream.send(&Frame::End { state_bytes, state_hash })?;
        let size = self.machine.memory.layout().bytes();
        let patience = READY_TIMEOUT_BASE + size.time_at(READY_RATE_MIN).unwrap_or_default();
        let Frame::Ready { load } = stream.receive_within(patience)? else {
            return Err(Malformed("the answer to the state").into());
        };
        let elapsed = self.began.elapsed();
        self.control.update(|status| {
            status.state = State::Ready;
            status.progress.downtime.send = began.elapsed().saturating_sub(load);
            status.progress.bytes_sent = Bytes(stream.bytes);
            status.progress.bytes_remaining = Bytes::ZERO;
            status.progress.pages_zero = self.zeroes;
            status.progress.elapsed = elapsed;
        });
        Ok(())
    }

    /// Sends the pages of the set; with a log, the guest runs and each chunk is
    /// protected before it is looked at.
    fn send_set(
        &mut self,
        stream: &mut Stream,
        set: &PageSet,
        log: Option<&DirtyLog<'_>>,
    ) -> Result<(), Trouble> {
        let pages = self.machine.memory.layout().pages();
        self.left = set.count();
        for start in (0..pages).step_by(usize::try_from(CHUNK_PAGES).unwrap_or(usize::MAX)) {
            let range = start..(start + CHUNK_PAGES).min(pages);
            if let Some(log) = log {
                log.protect(set, range.clone())?;
            }
            self.send_chunk(stream, set, range)?;
        }
        Ok(())
    }

    /// Sends the pages of the set in the range.
    fn send_chunk(
        &mut self,
        stream: &mut Stream,
        set: &PageSet,
        range: Range<u64>,
    ) -> Result<(), Trouble> {
        let batch_max = self.batch_pages();
        let mut batch = Vec::with_capacity(batch_max);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for page in set.iter(range) {
            self.left -= 1;
            if self.machine.memory.is_zero(page) {
                self.zeroes += 1;
                match runs.last_mut() {
                    Some((first, length)) if *first + *length == page => *length += 1,
                    _ => runs.push((page, 1)),
                }
                continue;
            }
            batch.push(page);
            if batch.len() == batch_max {
                self.send_batch(stream, &mut batch)?;
            }
        }
        self.send_batch(stream, &mut batch)?;
        for runs in runs.chunks(RUNS_MAX) {
            stream.send(&Frame::Zero(runs.to_vec()))?;
        }
        Ok(())
    }

    /// So few that a limited link has several batches a second.
    fn batch_pages(&self) -> usize {
        let Some(limit) = self.order.bandwidth else { return PAGES_MAX };
        let pages = limit.get() / 8 / PAGE_BYTES as u64;
        usize::try_from(pages).unwrap_or(PAGES_MAX).clamp(1, PAGES_MAX)
    }

    fn send_batch(&mut self, stream: &mut Stream, batch: &mut Vec<u64>) -> Result<(), Trouble> {
        if self.control.verdict().is_some() {
            return Err(Trouble::Interrupted);
        }
        if stream.peer_spoke() {
            // It has nothing to say now but Failed, or has closed the connection.
            stream.receive()?;
            return Err(Malformed("the order of frames").into());
        }
        if batch.is_empty() {
            return Ok(());
        }
        let before = stream.bytes;
        stream.send_pages(&self.machine.memory, batch)?;
        batch.clear();
        self.keep_pace(stream.bytes - before);
        if self.reported.elapsed() >= PROGRESS_INTERVAL {
            self.progress(stream, Bytes(self.left * PAGE_BYTES as u64), |_| {});
        }
        Ok(())
    }

    fn keep_pace(&mut self, sent: u64) {
        self.pace.bytes += sent;
        let Some(limit) = self.order.bandwidth else { return };
        let due = Bytes(self.pace.bytes).time_at(limit).unwrap_or_default();
        let ahead = due.saturating_sub(self.pace.began.elapsed());
        if !ahead.is_zero() {
            self.control.sleep(ahead);
            self.pace.slept += ahead;
        }
    }

    fn send_hashes(&mut self, stream: &mut Stream) -> Result<(), Trouble> {
        let pages = self.machine.memory.layout().pages();
        for first in (0..pages).step_by(HASHES_MAX) {
            let last = (first + HASHES_MAX as u64).min(pages);
            let hashes =
                (first..last).filter_map(|page| hash_page(&self.machine.memory, page)).collect();
            stream.send(&Frame::Hashes { first, hashes })?;
        }
        Ok(())
    }

    fn progress(&mut self, stream: &Stream, remaining: Bytes, rounds: impl FnOnce(&mut u32)) {
        self.reported = Instant::now();
        let elapsed = self.began.elapsed();
        let total = self.machine.memory.layout().bytes();
        let zeroes = self.zeroes;
        self.control.update(|status| {
            let progress = &mut status.progress;
            rounds(&mut progress.rounds);
            progress.bytes_sent = Bytes(stream.bytes);
            progress.bytes_remaining = remaining;
            progress.bytes_total = total;
            progress.pages_zero = zeroes;
            progress.elapsed = elapsed;
        });
    }

    fn does_not_converge(
        &self,
        rounds: u32,
        remaining: Bytes,
        estimate: Option<Duration>,
    ) -> Refusal {
        let estimate = estimate.map_or_else(
            || "an unknown time".to_owned(),
            |estimate| format!("{} ms", estimate.as_millis()),
        );
        Refusal::new(
            RefusalCode::Timeout,
            format!(
                "the migration does not converge: after {rounds} rounds {remaining} are still dirty, \
                 a switchover of {estimate} against a limit of {} ms",
                self.order.limits.downtime.as_millis()
            ),
            "raise the downtime limit or the bandwidth, or try again when the VM writes less",
        )
    }
}

fn guest_ended(why: &GuestEnd) -> Refusal {
    Refusal::new(
        RefusalCode::WrongState,
        format!("the guest ended while it was migrated: {why}"),
        "start the VM again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unsealed_source_goes_on_by_itself_and_a_sealed_one_waits() {
        assert_eq!(fate(None, false, false, true), Fate::GoOn);
        assert_eq!(fate(None, false, true, true), Fate::GoOn);
        assert_eq!(fate(None, true, false, true), Fate::Wait);
        assert_eq!(fate(None, true, true, true), Fate::GoOn, "never was READY");
        assert_eq!(fate(None, true, false, false), Fate::Wait, "READY");
    }

    #[test]
    fn a_verdict_is_obeyed_whatever_else_happened() {
        for verdict in [Verdict::Abort, Verdict::Superseded] {
            for (sealed, failed) in [(false, false), (true, false), (true, true)] {
                assert_eq!(fate(Some(verdict), sealed, failed, true), Fate::Obey(verdict));
            }
        }
    }
}
