//! The destination's side: takes memory and state, says READY, and runs the
//! guest only when told to.
//!
//! The peer is not trusted: it has shown the token, but every number it sends
//! is checked, and everything it can make this side keep is bounded.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballast_model::{Bytes, Epoch, Refusal, RefusalCode};
use ballast_proto::v1::MigrationState as State;
use xxhash_rust::xxh3::xxh3_64;

use super::Trouble;
use super::control::{Control, Verdict};
use super::dirty::PageSet;
use super::framing::{Frame, Hello};
use super::negotiation::answer;
use super::stream::Stream;
use super::verify::Comparison;
use crate::codec::Malformed;
use crate::machine::Machine;
use crate::state::{MachineState, STATE_BYTES_MAX};
use crate::unrun::UnrunMark;

/// How long a Failed frame may take to be heard.
const LAST_WORD_PATIENCE: Duration = Duration::from_secs(2);
/// The least time between two updates of the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What became of the guest here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It runs here, under this epoch.
    Runs(Epoch),
    /// It does not: discard what arrived.
    Discarded(Refusal),
}

/// Carries out the destination's side, from the greeted connection to the end.
/// The status has not been set to its end yet, so that the caller can first do its part.
pub(crate) fn receive(
    machine: &Machine,
    tcp: TcpStream,
    hello: &Hello,
    control: &Arc<Control>,
    unrun: &UnrunMark,
) -> Ending {
    let cancelled =
        || Refusal::new(RefusalCode::Cancelled, "the migration was cancelled", "try again");
    let (state, ready) = match fill(machine, tcp, hello, control) {
        Ok(filled) => filled,
        Err(_) if control.verdict().is_some() => return Ending::Discarded(cancelled()),
        Err(trouble) => return Ending::Discarded(trouble.into_refusal()),
    };
    let Verdict::Commit(epoch) = control.wait_verdict() else {
        return Ending::Discarded(cancelled());
    };
    let committed = Instant::now();
    // Whatever keeps the guest from its disks, it has not run here yet and is given back.
    if let Err(refusal) = machine.devices.acquire_disks() {
        return Ending::Discarded(refusal);
    }
    // With the mark in place the VM would be given back to its source although it ran here.
    if let Err(refusal) = unrun.clear() {
        return Ending::Discarded(refusal);
    }
    // There is no way back now: a guest with a wrong clock is better than none.
    if let Err(refusal) = state.start_time(machine) {
        tracing::error!(%refusal, "the guest's clock could not be set; it runs nevertheless");
    }
    // The disks are its own already: nothing is left that could keep it from running.
    if let Err(refusal) = machine.resume() {
        tracing::error!(%refusal, "the guest stays paused");
    }
    control.update(|status| {
        let downtime = &mut status.progress.downtime;
        (downtime.commit, downtime.resume) = (committed - ready, committed.elapsed());
    });
    Ending::Runs(epoch)
}

/// Up to READY: the state, and since when it is. On trouble the source is told,
/// so that it need not guess.
fn fill(
    machine: &Machine,
    tcp: TcpStream,
    hello: &Hello,
    control: &Control,
) -> Result<(MachineState, Instant), Trouble> {
    let attached = control.attach(&tcp);
    attached.map_err(|error| Trouble::Io { what: "setting up the connection", error })?;
    let mut stream = Stream::new(tcp)?;
    let mut filling = Filling::new(machine, control);
    let filled = filling.phases(&mut stream, hello);
    control.detach();
    match filled {
        Ok((state, load)) => {
            // READY here before the source can hear of it; if it never does, both
            // sides wait for the verdict.
            let ready = Instant::now();
            control.update(|status| {
                status.state = State::Ready;
                status.progress.downtime.load = load;
                status.progress.bytes_remaining = Bytes::ZERO;
                status.progress.bytes_sent = Bytes(stream.bytes);
            });
            if let Err(trouble) = stream.send(&Frame::Ready { load }) {
                tracing::warn!(%trouble, "READY may not have reached the source");
            }
            Ok((state, ready))
        }
        Err(trouble) => {
            let why = trouble.into_refusal();
            tracing::warn!(%why, "the incoming migration failed");
            if stream.send(&Frame::Failed(why.clone())).is_ok() {
                stream.finish_sending(LAST_WORD_PATIENCE);
            }
            Err(Trouble::Here(why))
        }
    }
}

struct Filling<'a> {
    machine: &'a Machine,
    control: &'a Control,
    /// Pages that are no longer as fresh memory is.
    written: PageSet,
    verify: bool,
    zeroes: u64,
    began: Instant,
    reported: Instant,
}

impl<'a> Filling<'a> {
    fn new(machine: &'a Machine, control: &'a Control) -> Self {
        let written = PageSet::empty(machine.memory.layout().pages());
        let now = Instant::now();
        Self { machine, control, written, verify: false, zeroes: 0, began: now, reported: now }
    }

    /// Negotiation, memory, state; the state as loaded, and how long that took.
    fn phases(
        &mut self,
        stream: &mut Stream,
        hello: &Hello,
    ) -> Result<(MachineState, Duration), Trouble> {
        self.verify = answer(stream, hello, self.machine)?.verify;
        let total = self.machine.memory.layout().bytes();
        self.control.update(|status| {
            status.state = State::Transferring;
            status.progress.bytes_total = total;
        });
        self.rounds(stream)
    }

    /// Everything up to End, in whatever order the source sends it.
    fn rounds(&mut self, stream: &mut Stream) -> Result<(MachineState, Duration), Trouble> {
        let mut state = Vec::new();
        let mut comparison = Comparison::default();
        loop {
            match stream.receive()? {
                Frame::Pages(pages) => self.take_pages(stream, &pages)?,
                Frame::Zero(runs) => self.take_zeroes(&runs)?,
                Frame::Round { number } => {
                    self.progress(stream, number);
                    stream.send(&Frame::RoundDone { number })?;
                }
                Frame::Hashes { first, hashes } if self.verify => {
                    comparison.compare(&self.machine.memory, first, &hashes)?;
                }
                Frame::State(chunk) => {
                    if state.len() + chunk.len() > STATE_BYTES_MAX {
                        return Err(Malformed("the length of the state").into());
                    }
                    state.extend_from_slice(&chunk);
                }
                Frame::End { state_bytes, state_hash } => {
                    let began = Instant::now();
                    let whole = state.len() as u64 == state_bytes && xxh3_64(&state) == state_hash;
                    if !whole {
                        return Err(Malformed("the state's checksum").into());
                    }
                    if self.verify {
                        comparison.finish(self.machine.memory.layout().pages())?;
                    }
                    return Ok((self.load(&state)?, began.elapsed()));
                }
                _ => return Err(Malformed("the order of frames").into()),
            }
            if self.control.verdict().is_some() {
                return Err(Trouble::Interrupted);
            }
        }
    }

    fn load(&self, bytes: &[u8]) -> Result<MachineState, Trouble> {
        let state = MachineState::decode(bytes)?;
        self.machine.load(&state).map_err(|refusal| {
            Refusal::new(
                refusal.code,
                format!("the VM's state could not be loaded: {}", refusal.reason),
                refusal.remedy,
            )
        })?;
        Ok(state)
    }

    fn take_pages(&mut self, stream: &mut Stream, pages: &[u64]) -> Result<(), Trouble> {
        stream.receive_pages(&self.machine.memory, pages)?;
        for &page in pages {
            self.written.insert(page);
        }
        if self.reported.elapsed() >= PROGRESS_INTERVAL {
            let rounds = self.control.status().progress.rounds;
            self.progress(stream, rounds);
        }
        Ok(())
    }

    /// Fresh memory is zero already: touching it would only make it resident.
    fn take_zeroes(&mut self, runs: &[(u64, u64)]) -> Result<(), Trouble> {
        let total = self.machine.memory.layout().pages();
        for &(first, count) in runs {
            let end = first.checked_add(count).filter(|&end| end <= total);
            let end = end.ok_or(Malformed("the number of a zero page"))?;
            for page in first..end {
                if self.written.remove(page) {
                    self.machine.memory.clear_page(page);
                }
            }
            self.zeroes += count;
        }
        Ok(())
    }

    fn progress(&mut self, stream: &Stream, rounds: u32) {
        self.reported = Instant::now();
        let elapsed = self.began.elapsed();
        self.control.update(|status| {
            let progress = &mut status.progress;
            progress.rounds = rounds;
            progress.bytes_sent = Bytes(stream.bytes);
            progress.pages_zero = self.zeroes;
            progress.elapsed = elapsed;
        });
    }
}

/// Why a destination that nobody came to ends.
pub(crate) fn nobody_came(within: Duration) -> Refusal {
    Refusal::new(
        RefusalCode::Timeout,
        format!("no source with the right token came within {} s", within.as_secs()),
        "check the network between the two hosts, then prepare the migration again",
    )
}
