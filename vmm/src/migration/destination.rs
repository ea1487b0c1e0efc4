//! The destination's side: takes memory and state, says READY, and runs the
//! guest only when told to.
//!
//! The peer is not trusted: it has shown the token, but every number it sends
//! is checked, and everything it can make this side keep is bounded.

use std::sync::Arc;
use std::thread::Scope;
use std::time::{Duration, Instant};

use ballast_model::{Bytes, Epoch, Refusal, RefusalCode};
use ballast_proto::v1::MigrationState as State;
use ballast_service::holdpoint::hold;
use xxhash_rust::xxh3::xxh3_64;

use super::Trouble;
use super::control::{Control, Verdict};
use super::filling::Filling;
use super::framing::{Frame, Hello, TOKEN_BYTES};
use super::lobby::Joined;
use super::negotiation::{Terms, answer};
use super::postcopy::door::Door;
use super::postcopy::fetching::{self, Fetching};
use super::postcopy::remaining::{Arriving, Remaining};
use super::storage::compare::DiskComparison;
use super::storage::landing::Landing;
use super::stream::Stream;
use super::verify::Comparison;
use super::wire::Wire;
use crate::codec::Malformed;
use crate::machine::Machine;
use crate::state::{MachineState, STATE_BYTES_MAX};
use crate::unrun::UnrunMark;

/// How long a Failed frame may take to be heard.
const LAST_WORD_PATIENCE: Duration = Duration::from_secs(2);
/// How long the source may take to make its other connections, and how often it is looked
/// whether it still shall.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
const JOIN_LOOK: Duration = Duration::from_millis(50);

/// A source that has shown the token.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) wire: Wire,
    pub(crate) hello: Hello,
    /// What its other connections show, and where they arrive.
    pub(crate) key: [u8; TOKEN_BYTES],
    pub(crate) joined: Joined,
    /// Where it comes back when its connection breaks in post-copy, and how long it is waited for then.
    pub(crate) door: Arc<Door>,
    pub(crate) patience: Duration,
}

/// What became of the guest here.
#[derive(Debug)]
pub(crate) enum Ending {
    /// It runs here, under this epoch; with post-copy while the rest of its memory is fetched.
    Runs(Epoch, Option<Fetching>),
    /// It does not: discard what arrived.
    Discarded(Refusal),
}

/// Carries out the destination's side, from the greeted connection to the end.
/// The status has not been set to its end yet, so that the caller can first do its part.
pub(crate) fn receive(
    machine: &Arc<Machine>,
    incoming: Incoming,
    control: &Arc<Control>,
    unrun: &UnrunMark,
) -> Ending {
    let cancelled =
        || Refusal::new(RefusalCode::Cancelled, "the migration was cancelled", "try again");
    let vm = incoming.hello.vm.clone();
    let Filled { state, ready, fetching } = match fill(machine, incoming, control) {
        Ok(filled) => filled,
        Err(_) if control.verdict().is_some() => return Ending::Discarded(cancelled()),
        Err(trouble) => return Ending::Discarded(trouble.into_refusal()),
    };
    let verdict = control.wait_verdict();
    let committed = Instant::now();
    let may_run = || {
        hold("destination.granted", &vm);
        // Whatever keeps the guest from its memory or its disks, it has not run here yet and is
        // given back.
        fetching.as_ref().map_or(Ok(()), Fetching::check)?;
        machine.devices.acquire_disks()?;
        hold("destination.marked", &vm);
        // With the mark in place the VM would be given back to its source although it ran here.
        unrun.clear()
    };
    let granted = match verdict {
        Verdict::Commit(epoch) => may_run().map(|()| epoch),
        _ => Err(cancelled()),
    };
    let epoch = match granted {
        Ok(epoch) => epoch,
        Err(refusal) => {
            drop(fetching.map(Fetching::stop));
            return Ending::Discarded(refusal);
        }
    };
    hold("destination.unmarked", &vm);
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
    if let Some(fetching) = &fetching {
        fetching.say_running();
    }
    Ending::Runs(epoch, fetching)
}

/// A machine that is READY.
struct Filled {
    state: MachineState,
    /// Since when it is.
    ready: Instant,
    /// With post-copy what fetches the rest of memory.
    fetching: Option<Fetching>,
}

/// Up to READY. On trouble the source is told, so that it need not guess.
fn fill(
    machine: &Arc<Machine>,
    incoming: Incoming,
    control: &Arc<Control>,
) -> Result<Filled, Trouble> {
    let Incoming { wire, hello, key, joined, door, patience } = incoming;
    let mut stream = Stream::new(wire)?;
    control.attach(stream.handle()?);
    let taken = answer(&mut stream, &hello, machine, key, &door)
        .and_then(|terms| fill_memory(machine, &mut stream, terms, &joined, control))
        .and_then(|taken| {
            let missing = taken.missing.as_ref();
            missing.map_or(Ok(()), |missing| fetching::prepare(&machine.memory, missing))?;
            Ok(taken)
        });
    let (peer, taken) = match taken {
        Err(trouble) => return Err(tell_failed(Some(stream), trouble)),
        Ok(mut taken) => match taken.missing.take() {
            None => (Peer::Direct(stream), taken),
            Some(missing) => {
                let hashes = std::mem::take(&mut taken.hashes);
                let version = taken.version;
                let order = fetching::Order { missing, hashes, patience, version };
                let fetching = Fetching::start(machine, control, &door, stream, order)?;
                (Peer::Fetching(fetching), taken)
            }
        },
    };
    let began = Instant::now();
    let loaded = load(machine, &taken.state).and_then(|state| {
        // From here on a connection that breaks is no reason to fail.
        peer.hold_out()?;
        Ok(state)
    });
    let state = match loaded {
        Ok(state) => state,
        Err(trouble) => {
            let (earlier, stream) = peer.stop();
            return Err(tell_failed(stream, earlier.unwrap_or(trouble)));
        }
    };
    // READY here before the source can hear of it; if it never does, both sides wait for the
    // verdict.
    let (ready, load) = (Instant::now(), taken.compared + began.elapsed());
    if matches!(peer, Peer::Direct(_)) {
        control.detach();
        control.update(|status| status.progress.bytes_remaining = Bytes::ZERO);
    }
    control.update(|status| {
        (status.state, status.progress.downtime.load) = (State::Ready, load);
    });
    hold("destination.ready", &hello.vm);
    Ok(Filled { state, ready, fetching: peer.say_ready(load) })
}

/// Who talks to the source at the end.
enum Peer {
    Direct(Stream),
    /// With post-copy: a thread that does so until all of memory is there.
    Fetching(Fetching),
}

impl Peer {
    /// See [`Fetching::hold_out`].
    fn hold_out(&self) -> Result<(), Trouble> {
        match self {
            Self::Direct(_) => Ok(()),
            Self::Fetching(fetching) => fetching.hold_out(),
        }
    }

    /// Ends it: what had gone wrong before, and the connection, if it still stands.
    fn stop(self) -> (Option<Trouble>, Option<Stream>) {
        match self {
            Self::Direct(stream) => (None, Some(stream)),
            Self::Fetching(fetching) => fetching.stop(),
        }
    }

    fn say_ready(self, load: Duration) -> Option<Fetching> {
        match self {
            Self::Direct(mut stream) => {
                if let Err(trouble) = stream.send(&Frame::Ready { load }) {
                    tracing::warn!(%trouble, "READY may not have reached the source");
                }
                None
            }
            Self::Fetching(fetching) => {
                fetching.say_ready(load);
                Some(fetching)
            }
        }
    }
}

/// Tells the source that it never was READY here.
fn tell_failed(stream: Option<Stream>, trouble: Trouble) -> Trouble {
    let why = trouble.into_refusal();
    tracing::warn!(%why, "the incoming migration failed");
    if let Some(mut stream) = stream
        && stream.send(&Frame::Failed(why.clone())).is_ok()
    {
        stream.finish_sending(LAST_WORD_PATIENCE);
    }
    Trouble::Here(why)
}

/// Loads the machine's state.
fn load(machine: &Machine, state: &[u8]) -> Result<MachineState, Trouble> {
    let state = MachineState::decode(state)?;
    machine.load(&state).map_err(|refusal| {
        Refusal::new(
            refusal.code,
            format!("the VM's state could not be loaded: {}", refusal.reason),
            refusal.remedy,
        )
    })?;
    Ok(state)
}

/// Everything up to End.
struct Taken {
    state: Vec<u8>,
    /// With post-copy the pages that come later, and in verify mode their hashes, by page.
    missing: Option<Remaining>,
    hashes: Vec<u64>,
    version: u16,
    /// How long the last comparison took.
    compared: Duration,
}

/// Memory and state, by as many threads as there are connections.
fn fill_memory(
    machine: &Machine,
    stream: &mut Stream,
    terms: Terms,
    joined: &Joined,
    control: &Control,
) -> Result<Taken, Trouble> {
    let total = machine.memory.layout().bytes();
    control.update(|status| {
        status.state = State::Transferring;
        status.progress.bytes_total = total;
    });
    let landing = Landing::new(&machine.devices);
    let filling = Filling::new(&machine.memory, control, &landing);
    std::thread::scope(|scope| {
        let mut arrival = Arrival {
            machine,
            control,
            filling: &filling,
            takes_ahead: false,
            state: Vec::new(),
            comparison: Comparison::default(),
            disk_comparison: DiskComparison::default(),
            missing: Arriving::new(machine.memory.layout().pages()),
        };
        let outcome = arrival.phases(scope, stream, terms, joined);
        // What another connection failed of is why this one was stopped.
        match (outcome, filling.finish()) {
            (Err(_), Some(trouble)) => Err(trouble),
            (outcome, _) => outcome,
        }
    })
}

/// Up to End, from all connections.
struct Arrival<'a> {
    machine: &'a Machine,
    control: &'a Control,
    filling: &'a Filling<'a>,
    /// The source has said where memory is: it does so once.
    takes_ahead: bool,
    state: Vec<u8>,
    comparison: Comparison,
    disk_comparison: DiskComparison,
    /// With post-copy the pages that come later.
    missing: Arriving,
}

impl<'a> Arrival<'a> {
    /// Lets the other connections in, then takes everything up to End, in whatever order the
    /// source sends it.
    fn phases<'scope>(
        &mut self,
        scope: &'scope Scope<'scope, '_>,
        stream: &mut Stream,
        terms: Terms,
        joined: &Joined,
    ) -> Result<Taken, Trouble>
    where
        'a: 'scope,
    {
        let filling = self.filling;
        self.join(scope, stream, terms, joined)?;
        loop {
            match stream.receive()? {
                Frame::Present(blocks) if !std::mem::replace(&mut self.takes_ahead, true) => {
                    filling.take_ahead(scope, blocks);
                }
                Frame::Round { number } => {
                    filling.await_all(number)?;
                    filling.landing.sync()?;
                    filling.progress(Some(number));
                    stream.send(&Frame::RoundDone { number })?;
                }
                Frame::Hashes { first, hashes } if terms.verify => {
                    let later = |page| self.missing.contains(page);
                    self.comparison.compare(&self.machine.memory, first, &hashes, later)?;
                }
                Frame::DiskHashes { disk, first, hashes } if terms.verify => {
                    self.disk_comparison.compare(filling.landing, disk, first, &hashes)?;
                    filling.report();
                }
                Frame::State(chunk) => self.take_state(&chunk)?,
                Frame::Missing { first, words } if terms.post_copy.is_some() => {
                    self.missing.take(first, &words)?;
                }
                Frame::End { state_bytes, state_hash } => {
                    return self.finish(terms, state_bytes, state_hash);
                }
                frame => filling.take(stream, frame)?,
            }
            if self.control.verdict().is_some() {
                return Err(Trouble::Interrupted);
            }
        }
    }

    fn join<'scope>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        main: &Stream,
        terms: Terms,
        joined: &Joined,
    ) -> Result<(), Trouble>
    where
        'a: 'scope,
    {
        let until = Instant::now() + JOIN_TIMEOUT;
        let mut missing = terms.streams - 1;
        while missing > 0 {
            if self.control.verdict().is_some() {
                return Err(Trouble::Interrupted);
            }
            match joined.recv_timeout(JOIN_LOOK) {
                Ok((number, wire)) if number < terms.streams => {
                    let mut stream = Stream::new(wire)?;
                    stream.speak(terms.version);
                    self.control.attach(stream.handle()?);
                    self.filling.add(scope, stream, main.handle()?)?;
                    missing -= 1;
                }
                Ok(_) => return Err(Malformed("the number of a connection").into()),
                Err(_) if Instant::now() < until => {}
                Err(_) => {
                    let error = std::io::ErrorKind::TimedOut.into();
                    return Err(Trouble::Io { what: "waiting for all connections", error });
                }
            }
        }
        Ok(())
    }

    fn take_state(&mut self, chunk: &[u8]) -> Result<(), Trouble> {
        if self.state.len() + chunk.len() > STATE_BYTES_MAX {
            return Err(Malformed("the length of the state").into());
        }
        self.state.extend_from_slice(chunk);
        Ok(())
    }

    /// Checks that everything has come as it left.
    fn finish(&mut self, terms: Terms, bytes: u64, hash: u64) -> Result<Taken, Trouble> {
        let began = Instant::now();
        if self.state.len() as u64 != bytes || xxh3_64(&self.state) != hash {
            return Err(Malformed("the state's checksum").into());
        }
        let pages = self.machine.memory.layout().pages();
        if terms.verify {
            self.comparison.finish(pages)?;
            self.disk_comparison.finish(self.filling.landing)?;
        }
        let missing = std::mem::replace(&mut self.missing, Arriving::new(pages));
        let missing = (!missing.is_empty()).then(|| missing.finish()).transpose()?;
        self.filling.check(missing.as_ref().map(Remaining::runs).unwrap_or_default())?;
        // What the last pass brought: after READY the source's disks may be gone.
        self.filling.landing.sync()?;
        Ok(Taken {
            state: std::mem::take(&mut self.state),
            missing,
            hashes: std::mem::take(&mut self.comparison).into_later(),
            version: terms.version,
            compared: began.elapsed(),
        })
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
