//! The source after End: it sends what is missing, what is asked for first, until
//! the destination is whole. When the connection breaks it comes back.
//!
//! One thread, one connection: between two small batches it looks whether
//! somebody waits for a page. Little lies in the host's queue in front of that
//! ([`Stream::make_prompt`]).

use std::time::{Duration, Instant};

use ballast_model::{Bytes, BytesPerSec, Refusal, RefusalCode};
use ballast_proto::v1::MigrationState as State;
use ballast_service::holdpoint::hold;

use super::remaining::{Arriving, Remaining};
use super::{PATIENCE_MAX, SILENCE_MAX, WINDOW_PAGES};
use crate::codec::Malformed;
use crate::memory::PAGE_BYTES;
use crate::migration::Trouble;
use crate::migration::crew::connect;
use crate::migration::framing::{Back, Frame, TOKEN_BYTES};
use crate::migration::sender::{Meters, add_to_runs};
use crate::migration::source::Source;
use crate::migration::storage::mirror::Mirror;
use crate::migration::stream::Stream;

/// Pages sent between two looks whether somebody waits: 128 KiB of them.
const BATCH_PAGES: usize = 32;
/// How often it is looked whether there is a verdict.
const LOOK: Duration = Duration::from_millis(500);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Between two tries to come back, the first and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long it tries to come back, longer than any destination waits, and how often a connection
/// may break.
const RETURN_MAX: Duration = PATIENCE_MAX.saturating_add(Duration::from_secs(60));
const RETURNS_MAX: u32 = 1000;

/// What serving begins with.
pub(crate) struct Beginning {
    pub(crate) missing: Remaining,
    /// With what the source may come back.
    pub(crate) key: [u8; TOKEN_BYTES],
    /// The version spoken.
    pub(crate) version: u16,
    /// The round whose RoundDone comes before READY.
    pub(crate) marked: Option<u32>,
    /// When the state began to be sent, and how long READY may take from then on.
    pub(crate) began: Instant,
    pub(crate) patience: Duration,
}

/// A source that serves.
struct Serving<'s, 'a> {
    source: &'s mut Source<'a>,
    meters: &'s Meters,
    mirror: &'s Mirror,
    beginning: Beginning,
    ready: bool,
    /// Of what is sent without being asked for.
    pace: Pace,
    /// Contents of pages on their way out, used again and again.
    buffer: Vec<u8>,
    faults: u64,
    since: Instant,
    sent_before: Bytes,
    reported: Instant,
}

/// The bandwidth limit, for one thread that cannot sleep.
#[derive(Debug)]
struct Pace {
    limit: Option<BytesPerSec>,
    free_at: Instant,
}

impl Pace {
    /// How long to wait before anything is sent.
    fn due(&self) -> Duration {
        self.free_at.saturating_duration_since(Instant::now())
    }

    fn sent(&mut self, bytes: Bytes) {
        let Some(limit) = self.limit else { return };
        let time = bytes.time_at(limit).unwrap_or_default();
        self.free_at = self.free_at.max(Instant::now()) + time;
    }
}

impl<'a> Source<'a> {
    /// Sends what is missing until the destination has all of it. End has been sent.
    pub(in crate::migration) fn serve(
        &mut self,
        stream: &mut Stream,
        meters: &Meters,
        mirror: &Mirror,
        beginning: Beginning,
    ) -> Result<(), Trouble> {
        let now = Instant::now();
        let missing = beginning.missing.bytes();
        self.control.update(|status| status.progress.post_copy_bytes = missing);
        let mut serving = Serving {
            pace: Pace { limit: self.order.bandwidth, free_at: now },
            source: self,
            meters,
            mirror,
            beginning,
            ready: false,
            buffer: Vec::new(),
            faults: 0,
            since: now,
            sent_before: meters.bytes(),
            reported: now,
        };
        for _ in 0..RETURNS_MAX {
            match serving.over(stream) {
                done @ (Ok(()) | Err(Trouble::Interrupted | Trouble::PeerFailed(_))) => {
                    return done;
                }
                Err(broken) => *stream = serving.come_back(broken)?,
            }
        }
        Err(lost_touch("the connection broke again and again".to_owned()).into())
    }
}

impl Serving<'_, '_> {
    /// All over one connection, until the destination is whole or the connection breaks.
    fn over(&mut self, stream: &mut Stream) -> Result<(), Trouble> {
        stream.make_prompt(SILENCE_MAX)?;
        stream.handle()?.write_patience(SILENCE_MAX)?;
        let mut alive_at = Instant::now();
        loop {
            if self.source.control.verdict().is_some() {
                return Err(Trouble::Interrupted);
            }
            let left = self.beginning.missing.left() > 0;
            let due = self.pace.due();
            let wait = if left && !due.is_zero() { due.min(LOOK) } else { LOOK };
            let heard = stream.await_peer(left && due.is_zero(), &[], wait)?;
            if heard.peer {
                alive_at = Instant::now();
                if self.hear(stream)? {
                    return Ok(());
                }
            } else if heard.room {
                alive_at = Instant::now();
                let pages = self.beginning.missing.take_next(BATCH_PAGES);
                let sent = self.send(stream, &pages)?;
                self.pace.sent(sent);
            } else if left && !due.is_zero() {
                // It is us who wait.
                alive_at = Instant::now();
            } else if alive_at.elapsed() > self.silence_max() {
                let error = std::io::ErrorKind::TimedOut.into();
                return Err(Trouble::Io { what: "waiting for the destination to be whole", error });
            }
            self.report(false);
        }
    }

    /// Until it is READY it loads.
    fn silence_max(&self) -> Duration {
        if self.ready { SILENCE_MAX } else { self.beginning.patience }
    }

    /// The destination has said something; whether it is whole.
    fn hear(&mut self, stream: &mut Stream) -> Result<bool, Trouble> {
        match stream.receive()? {
            Frame::RoundDone { number } if Some(number) == self.beginning.marked => {}
            Frame::Ready { load } if !self.ready => {
                self.ready = true;
                let (began, left) = (self.beginning.began, self.beginning.missing.bytes());
                self.source.told_ready(load, began, self.meters, self.mirror, left);
            }
            // Said again to one that came back.
            Frame::Ready { .. } => {}
            Frame::Fetch { first, count } if count <= WINDOW_PAGES => {
                self.faults += 1;
                let pages = self.beginning.missing.take_window(first, count);
                self.send(stream, &pages)?;
            }
            Frame::Running if self.ready => {
                self.source.control.update(|status| status.state = State::Fetching);
                hold("source.serving", &self.source.order.hello.vm);
            }
            Frame::Whole if self.ready && self.beginning.missing.left() == 0 => {
                self.report(true);
                return Ok(true);
            }
            _ => return Err(Malformed("the order of frames").into()),
        }
        Ok(false)
    }

    /// Sends pages, the zero ones as marks; the bytes it took.
    fn send(&mut self, stream: &mut Stream, pages: &[u64]) -> Result<Bytes, Trouble> {
        let memory = &self.source.machine.memory;
        let (mut runs, mut zeroes) = (Vec::new(), Vec::new());
        let mut zero_pages = 0;
        for &page in pages {
            let zero = memory.is_zero(page);
            zero_pages += u64::from(zero);
            add_to_runs(if zero { &mut zeroes } else { &mut runs }, page);
        }
        let before = stream.bytes;
        if !zeroes.is_empty() {
            stream.send(&Frame::Zero(zeroes))?;
        }
        if !runs.is_empty() {
            // The guest is paused: a copy is as good as the pages, and has one checksum.
            self.buffer.clear();
            for page in runs.iter().flat_map(|&(first, count)| first..first + count) {
                let mut copy = [0; PAGE_BYTES];
                memory.read_page(page, &mut copy);
                self.buffer.extend_from_slice(&copy);
            }
            stream.send_data(&Frame::Runs(runs), &self.buffer)?;
        }
        let sent = stream.bytes - before;
        self.meters.add(sent);
        self.meters.add_zeroes(zero_pages);
        Ok(Bytes(sent))
    }

    /// Now and then, how far it is.
    fn report(&mut self, now: bool) {
        if !now && self.reported.elapsed() < PROGRESS_INTERVAL {
            return;
        }
        self.reported = Instant::now();
        let (faults, left) = (self.faults, self.beginning.missing.bytes());
        let sent = Bytes(self.meters.bytes().get().saturating_sub(self.sent_before.get()));
        let rate = BytesPerSec::from_amount(sent, self.since.elapsed());
        self.source.progress(self.meters, left, |progress| {
            (progress.faults, progress.rate) = (faults, rate);
            progress.dirty_rate = BytesPerSec::ZERO;
        });
    }

    /// A new connection in place of one that broke.
    fn come_back(&mut self, broken: Trouble) -> Result<Stream, Trouble> {
        let (control, broke_at) = (self.source.control, Instant::now());
        tracing::warn!(trouble = %broken, "the connection broke in post-copy; trying to come back");
        let why = lost_touch(broken.into_refusal().reason);
        control.update(|status| {
            // Whether the destination is READY, or runs, only the record knows.
            if status.state == State::Transferring {
                status.state = State::Ready;
            }
            status.refusal = Some(why.clone());
        });
        let mut pause = PAUSE_MIN;
        while broke_at.elapsed() < RETURN_MAX {
            if control.verdict().is_some() {
                return Err(Trouble::Interrupted);
            }
            match self.try_back() {
                Ok(stream) => {
                    tracing::info!(left = %self.beginning.missing.bytes(), "back at the destination");
                    control.update(|status| status.refusal = None);
                    return Ok(stream);
                }
                Err(failed @ Trouble::PeerFailed(_)) => return Err(failed),
                Err(trouble) => tracing::debug!(%trouble, "not back yet"),
            }
            control.sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Err(why.into())
    }

    /// Shows the key and hears what is missing.
    fn try_back(&mut self) -> Result<Stream, Trouble> {
        let source = &*self.source;
        source.control.detach();
        let mut stream = connect(&source.order.peer, source.control)?;
        stream.send_raw(&Back { key: self.beginning.key }.encode())?;
        stream.speak(self.beginning.version);
        let Frame::PostCopy { key } = stream.receive()? else {
            return Err(Malformed("the answer to one that comes back").into());
        };
        self.beginning.key = key;
        let mut missing = Arriving::new(source.machine.memory.layout().pages());
        while !missing.is_complete() {
            match stream.receive()? {
                Frame::Missing { first, words } => missing.take(first, &words)?,
                _ => return Err(Malformed("the answer to one that comes back").into()),
            }
        }
        // What the destination is without is the truth: of what was on its way some is lost.
        self.beginning.missing = missing.finish()?;
        Ok(stream)
    }
}

fn lost_touch(why: String) -> Refusal {
    Refusal::new(
        RefusalCode::Unavailable,
        format!("the destination may be without a part of the VM's memory, which is here: {why}"),
        "keep this host and its agent running, and mend the network between the two; the source \
         comes back by itself",
    )
}

/// Pages of a window have to fit one frame.
const _: () = assert!(WINDOW_PAGES <= crate::migration::framing::RUN_PAGES_MAX);
const _: () = assert!(BATCH_PAGES as u64 <= crate::migration::framing::RUN_PAGES_MAX);
