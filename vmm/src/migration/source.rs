//! The source's side: copies memory while the guest runs, stops it, sends the
//! rest, and waits for the verdict.
//!
//! [`Source::phases`] goes straight down: negotiation, rounds, and what
//! [`switchover`](super::switchover) has. [`send`] is the one place where it is
//! decided what becomes of the guest when something went wrong: see the module
//! above for *sealed* and *unsealed*.

use std::cell::OnceCell;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballast_model::migration::Progress;
use ballast_model::{Bytes, BytesPerSec, Refusal, RefusalCode};
use ballast_proto::v1::MigrationState as State;
use ballast_service::holdpoint::hold;
use tokio::sync::oneshot;

use super::Trouble;
use super::control::{Control, Verdict};
use super::convergence::{Convergence, Decision, Limits, Rate, RoundDone};
use super::crew::{Common, Crew, Peer, connect};
use super::dirty::{DirtyLog, PageSet};
use super::framing::{Frame, Hello};
use super::link;
use super::negotiation::{Proposal, Terms, propose};
use super::round::Round;
use super::sender::Meters;
use super::storage::mirror::Mirror;
use super::stream::Stream;
use super::switchover::{Rest, Return};
use super::throttle::Throttle;
use crate::codec::Malformed;
use crate::machine::Machine;
use crate::power::GuestEnd;

/// The least time between two updates of the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How long a destination may take to have all of a round: what lies in buffers on the way, over
/// the slowest link.
const ROUND_DONE_PATIENCE: Duration = Duration::from_secs(120);
/// Rounds of disks before memory has its turn, and what may be left of them for the rounds of both.
const DISK_ROUNDS_MAX: u32 = 8;
const DISK_REST_MAX: Bytes = Bytes::mib(16);
/// The slowest bandwidth limit taken.
pub(crate) const BANDWIDTH_MIN: BytesPerSec = BytesPerSec(64 << 10);

/// What is asked of the source.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) peer: Peer,
    pub(crate) hello: Hello,
    pub(crate) limits: Limits,
    pub(crate) verify: bool,
    /// Of the pre-copy rounds; the last pass is not limited.
    pub(crate) bandwidth: Option<BytesPerSec>,
    /// Connections; none for as many as link and CPUs ask for.
    pub(crate) streams: Option<u16>,
    /// Pages may go compressed, where that pays.
    pub(crate) compress: bool,
    /// Whether the guest may run on the destination before all of its memory is there.
    pub(crate) post_copy: bool,
}

/// How the rounds of memory begin.
#[derive(Debug, Clone, Copy)]
struct Beginning {
    terms: Terms,
    /// Rounds of disks before them.
    rounds: u32,
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
    // The connections close here: a destination that still receives learns that it is over.
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
                // One that knows that the VM runs there goes on to say so.
                if status.state != State::Fetching {
                    status.state = State::Ready;
                }
                status.refusal = refusal.clone();
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

/// One migration, as its source has it.
pub(super) struct Source<'a> {
    pub(super) machine: &'a Machine,
    pub(super) order: Order,
    pub(super) control: &'a Control,
    pub(super) began: Instant,
    /// End has been begun: the destination may be READY.
    pub(super) sealed: bool,
    agreed: Option<oneshot::Sender<Result<(), Refusal>>>,
    reported: Instant,
    rate: Rate,
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
            began: now,
            sealed: false,
            agreed: Some(agreed),
            reported: now,
            rate: Rate::default(),
        }
    }

    /// The phases, one after the other.
    fn phases(&mut self) -> Result<(), Trouble> {
        let (stream, terms) = self.negotiate()?;
        hold("source.negotiated", &self.order.hello.vm);
        let meters = Meters::new(self.order.bandwidth);
        let mut mirror = Mirror::start(self.machine)?;
        // Memory is logged once the disks have had their first turn.
        let started = OnceCell::new();
        let peer = self.order.peer.clone();
        let common = Common {
            memory: &self.machine.memory,
            control: self.control,
            meters: &meters,
            version: terms.version,
            compress: self.order.compress,
        };
        std::thread::scope(|scope| {
            let mut crew = Crew::start(scope, common, &peer, terms, stream)?;
            let mut throttle = Throttle::new();
            let slow_down = |percent| throttle.set(scope, &self.machine.vcpus, percent);
            let copy = || {
                let rounds = self.copy_disks(&mut crew, &meters, &mut mirror)?;
                let log = DirtyLog::start(self.machine)?;
                let log = started.get_or_init(|| log);
                let beginning = Beginning { terms, rounds };
                let rest =
                    self.precopy(&mut crew, log, &meters, &mut mirror, beginning, slow_down)?;
                let save = self.stop_and_copy(&mut crew, log, &meters, &mut mirror, rest)?;
                self.hand_over(&mut crew, &meters, &mirror, save)
            };
            let copied = copy();
            copied.map_err(|trouble| crew.last_word(trouble))
        })
    }

    /// Connects, greets, proposes, and lets the caller know how it went.
    fn negotiate(&mut self) -> Result<(Stream, Terms), Trouble> {
        let outcome = self.connect();
        if let Some(agreed) = self.agreed.take() {
            let answer = match &outcome {
                Ok(_) => Ok(()),
                Err(Trouble::Here(refusal) | Trouble::PeerFailed(refusal)) => Err(refusal.clone()),
                Err(trouble) => Err(Refusal::new(
                    RefusalCode::Unavailable,
                    format!(
                        "the destination at {} did not agree: {trouble}",
                        self.order.peer.address
                    ),
                    "check that it still waits for this migration, then prepare it again",
                )),
            };
            // A caller that has gone needs no answer.
            let _ = agreed.send(answer);
        }
        outcome
    }

    fn connect(&self) -> Result<(Stream, Terms), Trouble> {
        hold("source.connect", &self.order.hello.vm);
        let mut stream = connect(&self.order.peer, self.control)?;
        let streams = self.order.streams.unwrap_or_else(|| {
            link::streams(stream.round_trip(), link::cpus(), self.order.bandwidth)
        });
        let post_copy = self.order.post_copy;
        let proposal = Proposal::of(self.machine, self.order.verify, streams);
        let proposal = Proposal { post_copy, ..proposal };
        let terms = propose(&mut stream, &self.order.hello, &proposal, self.machine)?;
        let (version, streams) = (terms.version, terms.streams);
        let encrypted = self.order.peer.tls.is_some();
        self.control.update(|status| status.progress.streams = streams.into());
        tracing::info!(version, streams, encrypted, address = %self.order.peer.address, "the destination agreed");
        Ok((stream, terms))
    }

    /// Copies the disks that go along, and again what is written meanwhile, until further rounds
    /// would gain little; how many rounds it took.
    fn copy_disks<'env>(
        &mut self,
        crew: &mut Crew<'env>,
        meters: &Meters,
        mirror: &mut Mirror,
    ) -> Result<u32, Trouble>
    where
        'a: 'env,
    {
        if mirror.is_empty() {
            return Ok(0);
        }
        let total = mirror.total();
        self.control.update(|status| status.progress.disk_bytes_total = total);
        let memory = &self.machine.memory;
        for number in 1..=DISK_ROUNDS_MAX {
            let blocks = mirror.take();
            let before = blocks.left();
            let nothing = PageSet::empty(memory.layout().pages());
            self.progress(meters, memory.layout().bytes(), |progress| progress.rounds = number);
            let (bytes, began) = (meters.carried(), Instant::now());
            meters.limit(self.order.bandwidth);
            let round = Round::new(number, memory, nothing, None).with(blocks);
            let behind = memory.layout().bytes();
            crew.send(round, |round| self.report(meters, mirror, round, behind))?;
            hold("source.disks", &self.order.hello.vm);
            end_round(crew, number)?;
            self.rate.learn(Bytes(meters.carried().get() - bytes.get()), meters.busy());
            if let Some(why) = self.machine.vcpus.ended() {
                return Err(guest_ended(&why).into());
            }
            let (left, time) = (mirror.pending(), began.elapsed());
            tracing::debug!(number, %before, %left, ?time, "round of disks done");
            if left <= DISK_REST_MAX || left.get() > before.get() / 2 {
                return Ok(number);
            }
        }
        Ok(DISK_ROUNDS_MAX)
    }

    /// Round after round while the guest runs, until the rest fits the downtime limit. The rest is
    /// out of the log and has still to be sent.
    fn precopy<'env>(
        &mut self,
        crew: &mut Crew<'env>,
        log: &'env DirtyLog<'env>,
        meters: &Meters,
        mirror: &mut Mirror,
        beginning: Beginning,
        mut slow_down: impl FnMut(u8),
    ) -> Result<Rest, Trouble>
    where
        'a: 'env,
    {
        let memory = &self.machine.memory;
        let mut convergence = Convergence::new(self.order.limits.clone());
        if beginning.terms.version >= 2 {
            crew.main.send(&Frame::Present(memory.blocks_present()))?;
        }
        let mut dirty = PageSet::full(memory.layout().pages());
        for number in beginning.rounds + 1.. {
            self.progress(meters, dirty.bytes(), |progress| progress.rounds = number);
            let (before, began) = (meters.carried(), Instant::now());
            meters.limit(self.order.bandwidth);
            let round = Round::new(number, memory, dirty, Some(log)).with(mirror.take());
            crew.send(round, |round| self.report(meters, mirror, round, Bytes::ZERO))?;
            hold("source.round", &self.order.hello.vm);
            end_round(crew, number)?;
            self.rate.learn(Bytes(meters.carried().get() - before.get()), meters.busy());
            if let Some(why) = self.machine.vcpus.ended() {
                return Err(guest_ended(&why).into());
            }
            self.machine.devices.flush_disks()?;
            dirty = log.collect()?;
            let (time, remaining) = (began.elapsed(), dirty.bytes() + mirror.pending());
            let done = RoundDone {
                number: number - beginning.rounds,
                time,
                remaining,
                disks: mirror.pending(),
                rate: self.rate,
            };
            let decision = convergence.decide(&done);
            self.tell(meters, mirror, &done, decision);
            trace_round(meters, &done, before, decision);
            match decision {
                Decision::Continue => {}
                Decision::Throttle(percent) => {
                    tracing::info!(percent, "the guest writes too fast and is slowed down");
                    slow_down(percent);
                }
                Decision::Stop => return Ok(Rest { pages: dirty, post_copy: None }),
                Decision::PostCopy => {
                    tracing::info!(%remaining, "the rest of memory goes after the guest");
                    let Terms { version, post_copy, .. } = beginning.terms;
                    let post_copy = post_copy.map(|key| Return { key, version });
                    return Ok(Rest { pages: dirty, post_copy });
                }
                Decision::GiveUp { estimate } => {
                    let limit = convergence.downtime();
                    return Err(does_not_converge(number, remaining, estimate, limit).into());
                }
            }
        }
        Ok(Rest { pages: PageSet::empty(memory.layout().pages()), post_copy: None })
    }

    /// How the round went.
    fn tell(&mut self, meters: &Meters, mirror: &Mirror, done: &RoundDone, decision: Decision) {
        let estimate = Convergence::estimate(done);
        let disks = mirror.pending();
        let memory = Bytes(done.remaining.get().saturating_sub(disks.get()));
        self.progress(meters, memory, |progress| {
            progress.disk_bytes_remaining = disks;
            progress.rate = done.rate.get().unwrap_or_default();
            progress.dirty_rate = BytesPerSec::from_amount(done.remaining, done.time);
            progress.expected_downtime = estimate.unwrap_or_default();
            if let Decision::Throttle(percent) = decision {
                progress.throttle_percent = percent;
            }
        });
    }

    /// Now and then, how far the round is; `behind` is memory that comes after it.
    fn report(&mut self, meters: &Meters, mirror: &Mirror, round: &Round<'_>, behind: Bytes) {
        if self.reported.elapsed() >= PROGRESS_INTERVAL {
            let rate = meters.rate();
            self.progress(meters, Bytes(round.left_bytes()) + behind, |progress| {
                progress.rate = rate;
                progress.disk_bytes_sent = mirror.sent();
                progress.disk_bytes_remaining = round.blocks.left() + mirror.pending();
            });
        }
    }

    pub(super) fn progress(
        &mut self,
        meters: &Meters,
        remaining: Bytes,
        more: impl FnOnce(&mut Progress),
    ) {
        self.reported = Instant::now();
        let elapsed = self.began.elapsed();
        let total = self.machine.memory.layout().bytes();
        self.control.update(|status| {
            let progress = &mut status.progress;
            more(progress);
            progress.bytes_sent = meters.bytes();
            progress.bytes_remaining = remaining;
            progress.bytes_total = total;
            progress.bytes_saved = meters.saved();
            progress.compresses = meters.packs();
            progress.pages_zero = meters.zeroes();
            progress.elapsed = elapsed;
        });
    }
}

fn does_not_converge(
    rounds: u32,
    remaining: Bytes,
    estimate: Option<Duration>,
    limit: Duration,
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
            limit.as_millis()
        ),
        "raise the downtime limit or the bandwidth, or try again when the VM writes less",
    )
}

/// What an operator needs to see why a migration takes long: `RUST_LOG=ballast_vmm::migration=debug`.
fn trace_round(meters: &Meters, done: &RoundDone, before: Bytes, decision: Decision) {
    let RoundDone { number, time, remaining, rate, .. } = *done;
    let carried = Bytes(meters.carried().get() - before.get());
    let (rate, estimate) = (rate.get().unwrap_or_default(), Convergence::estimate(done));
    let written = BytesPerSec::from_amount(remaining, time);
    let zero_pages = meters.zeroes();
    tracing::debug!(
        number, %carried, packs = meters.packs(), ?time, busy = ?meters.busy(), %rate, zero_pages, %remaining, %written,
        ?estimate, ?decision, "round done"
    );
}

/// The destination has everything of the round in memory: only then is its time known.
fn end_round(crew: &mut Crew<'_>, number: u32) -> Result<(), Trouble> {
    match crew.main.stream.receive_within(ROUND_DONE_PATIENCE)? {
        Frame::RoundDone { number: done } if done == number => Ok(()),
        _ => Err(Malformed("the answer to a round").into()),
    }
}

pub(super) fn guest_ended(why: &GuestEnd) -> Refusal {
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
