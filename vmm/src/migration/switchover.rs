//! The source's switchover: from the pause to READY, in as few steps as there can be.
//!
//! Everything goes one way – last pages, state, End – and READY comes back: one
//! round trip between the hosts, whatever there is to send.

use std::time::{Duration, Instant};

use ballast_model::{Bytes, BytesPerSec};
use ballast_proto::v1::MigrationState as State;
use ballast_service::holdpoint::hold;
use xxhash_rust::xxh3::xxh3_64;

use super::Trouble;
use super::crew::Crew;
use super::dirty::{DirtyLog, PageSet};
use super::framing::{Frame, HASHES_MAX, STATE_CHUNK_BYTES, TOKEN_BYTES};
use super::postcopy::remaining::Remaining;
use super::postcopy::serving::Beginning;
use super::round::Round;
use super::sender::{Meters, Sender};
use super::source::{Source, guest_ended};
use super::storage::compare;
use super::storage::mirror::Mirror;
use super::stream::IO_TIMEOUT;
use super::verify::hash_page;
use crate::codec::Malformed;
use crate::state::MachineState;

/// How long READY may take beyond what the guest's size explains.
const READY_TIMEOUT_BASE: Duration = Duration::from_secs(30);
/// What loading and verifying does at least, for READY's timeout.
const READY_RATE_MIN: BytesPerSec = BytesPerSec(100 << 20);
/// Up to here the last pass goes over one connection: waking others takes longer.
const ALONE_BYTES_MAX: Bytes = Bytes(4 << 20);

/// While the guest is paused, a link that takes nothing at all for so long, or for twice the
/// downtime limit, is given up: the guest runs on.
const STALL_MAX: Duration = Duration::from_millis(500);

/// What is left to send when the last pages have gone.
pub(super) struct Save {
    state: MachineState,
    /// The round whose RoundDone comes before READY.
    marked: Option<u32>,
    /// Pages that go after the guest runs, and with what the source comes back meanwhile.
    missing: Option<(Remaining, Return)>,
}

/// The last pages.
pub(super) struct Rest {
    pub(super) pages: PageSet,
    /// Whether they go after the guest runs, and then with what the source comes back.
    pub(super) post_copy: Option<Return>,
}

/// With what a source comes back whose connection broke.
#[derive(Debug, Clone, Copy)]
pub(super) struct Return {
    pub(super) key: [u8; TOKEN_BYTES],
    pub(super) version: u16,
}

impl<'a> Source<'a> {
    /// Pauses the guest, saves its state, sends the last dirty pages, those of `rest` among them;
    /// or with post-copy says which they are.
    ///
    /// The state is read before the last look at the dirty log: reading it may
    /// make KVM write to guest memory (a steal-time record, for one).
    pub(super) fn stop_and_copy<'env>(
        &mut self,
        crew: &mut Crew<'env>,
        log: &DirtyLog<'_>,
        meters: &Meters,
        mirror: &mut Mirror,
        rest: Rest,
    ) -> Result<Save, Trouble>
    where
        'a: 'env,
    {
        let paused = Instant::now();
        self.machine.pause()?;
        hold("source.pause", &self.order.hello.vm);
        if let Some(why) = self.machine.vcpus.ended() {
            return Err(guest_ended(&why).into());
        }
        let saving = Instant::now();
        let state = self.machine.save()?;
        let state_save = saving.elapsed();
        let mut dirty = log.collect()?;
        dirty.add(&rest.pages);
        self.progress(meters, dirty.bytes(), |progress| progress.rounds += 1);
        meters.limit(None);
        crew.write_patience(STALL_MAX.max(self.order.limits.downtime * 2))?;
        // Every request that was begun has ended: this is the last of the disks.
        let blocks = mirror.take();
        let (dirty, missing) = match rest.post_copy {
            None => (dirty, None),
            Some(key) => (PageSet::empty(dirty.pages()), Some((Remaining::new(dirty), key))),
        };
        let alone = dirty.bytes() + blocks.left() <= ALONE_BYTES_MAX;
        let number = self.control.status().progress.rounds;
        let round = Round::new(number, &self.machine.memory, dirty, None).with(blocks);
        if alone {
            crew.send_alone(&round)?;
        } else {
            crew.send(round, |_| {})?;
        }
        if let Some((missing, _)) = &missing {
            missing.frames().try_for_each(|frame| crew.main.send(&frame))?;
        }
        hold("source.last_pass", &self.order.hello.vm);
        let last_pass = paused.elapsed().saturating_sub(state_save);
        self.control.update(|status| {
            let downtime = &mut status.progress.downtime;
            (downtime.state_save, downtime.last_pass) = (state_save, last_pass);
        });
        Ok(Save { state, marked: (!alone).then_some(number), missing })
    }

    /// Sends all hashes, when asked to, and the state, seals, and waits for READY.
    pub(super) fn hand_over(
        &mut self,
        crew: &mut Crew<'_>,
        meters: &Meters,
        mirror: &Mirror,
        mut save: Save,
    ) -> Result<(), Trouble> {
        let began = Instant::now();
        if self.order.verify {
            // The destination compares as it takes them.
            crew.write_patience(IO_TIMEOUT)?;
            self.send_hashes(&mut crew.main)?;
            compare::send_hashes(mirror, &mut crew.main)?;
        }
        save.state.save_arrived(self.machine);
        let state = save.state.encode();
        for chunk in state.chunks(STATE_CHUNK_BYTES) {
            crew.main.send(&Frame::State(chunk.to_vec()))?;
        }
        if self.control.verdict().is_some() {
            return Err(Trouble::Interrupted);
        }
        hold("source.state", &self.order.hello.vm);
        // From here on the destination may be told to take them.
        self.machine.devices.release_disks()?;
        self.sealed = true;
        let (state_bytes, state_hash) = (state.len() as u64, xxh3_64(&state));
        crew.main.send(&Frame::End { state_bytes, state_hash })?;
        hold("source.sealed", &self.order.hello.vm);
        let size = self.machine.memory.layout().bytes();
        let patience = READY_TIMEOUT_BASE + size.time_at(READY_RATE_MIN).unwrap_or_default();
        let marked = save.marked;
        if let Some((missing, Return { key, version })) = save.missing {
            let beginning = Beginning { missing, key, version, marked, began, patience };
            return self.serve(&mut crew.main.stream, meters, mirror, beginning);
        }
        let load = await_ready(crew, marked, patience)?;
        self.told_ready(load, began, meters, mirror, Bytes::ZERO);
        Ok(())
    }

    /// The destination is READY, after it has loaded for so long. Of memory `left` is still here alone.
    pub(super) fn told_ready(
        &self,
        load: Duration,
        began: Instant,
        meters: &Meters,
        mirror: &Mirror,
        left: Bytes,
    ) {
        let elapsed = self.began.elapsed();
        self.control.update(|status| {
            status.state = State::Ready;
            status.progress.downtime.send = began.elapsed().saturating_sub(load);
            status.progress.bytes_sent = meters.bytes();
            status.progress.bytes_saved = meters.saved();
            status.progress.bytes_remaining = left;
            status.progress.disk_bytes_remaining = Bytes::ZERO;
            status.progress.disk_bytes_sent = mirror.sent();
            status.progress.pages_zero = meters.zeroes();
            status.progress.elapsed = elapsed;
        });
    }

    fn send_hashes(&self, sender: &mut Sender<'_>) -> Result<(), Trouble> {
        let memory = &self.machine.memory;
        let pages = memory.layout().pages();
        for first in (0..pages).step_by(HASHES_MAX) {
            let last = (first + HASHES_MAX as u64).min(pages);
            let hashes = (first..last).filter_map(|page| hash_page(memory, page)).collect();
            sender.send(&Frame::Hashes { first, hashes })?;
        }
        Ok(())
    }
}

/// READY, and how long the destination took to load.
fn await_ready(
    crew: &mut Crew<'_>,
    marked: Option<u32>,
    patience: Duration,
) -> Result<Duration, Trouble> {
    let stream = &mut crew.main.stream;
    let mut answer = stream.receive_within(patience)?;
    if matches!(answer, Frame::RoundDone { number } if Some(number) == marked) {
        answer = stream.receive_within(patience)?;
    }
    match answer {
        Frame::Ready { load } => Ok(load),
        _ => Err(Malformed("the answer to the state").into()),
    }
}
