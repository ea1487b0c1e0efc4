//! The destination after End: one thread that answers faults and puts pages where
//! they belong, until all are there.
//!
//! It never touches guest memory itself: a page arrives in a buffer of its own
//! and is put in its place whole. It waits for three things at a time: faults, the
//! source, and a bell that [`Fetching`] and the [`Door`] ring. [`super::fetcher`] is that thread,
//! [`Fetching`] what others have of it.
//!
//! ```text
//!   End ──▶ fetches ──connection breaks──▶ waits ──source is back──▶ fetches …
//!              │                             │ and the guest runs: for so long
//!              └─ nothing is missing: Whole  └─▶ Lost
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ballast_model::{Refusal, RefusalCode};

use super::door::Door;
use super::fetcher::Fetcher;
use super::remaining::Remaining;
use crate::machine::Machine;
use crate::memory::userfault;
use crate::memory::{HostAddress, Memory};
use crate::migration::Trouble;
use crate::migration::control::Control;
use crate::migration::framing::Frame;
use crate::migration::stream::Stream;

/// What fetching begins with.
pub(crate) struct Order {
    pub(crate) missing: Remaining,
    /// In verify mode the hashes of missing pages, by page; empty without.
    pub(crate) hashes: Vec<u64>,
    /// How long a guest that runs waits for a source that is gone.
    pub(crate) patience: Duration,
    /// The version spoken.
    pub(crate) version: u16,
}

/// How fetching ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// All of memory is here.
    Whole,
    /// The guest runs and a part of its memory will not come.
    Lost(Refusal),
    /// It was called off, or failed, before the guest ran: its memory is worth nothing.
    Discarded(Trouble, Option<Stream>),
}

/// The thread, as whoever started it has it.
#[derive(Debug)]
pub(crate) struct Fetching {
    shared: Arc<Shared>,
    door: Arc<Door>,
    thread: JoinHandle<Outcome>,
}

#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Wishes>);

/// What the thread is asked to do.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// To be said to the source.
    pub(super) outbox: Vec<Frame>,
    /// The machine is loaded: from now on a broken connection is waited out.
    pub(super) holds_out: bool,
    /// READY has been said, or will be.
    pub(super) ready: bool,
    /// Since when the guest runs.
    pub(super) runs_since: Option<Instant>,
    /// Give up: the machine could not be loaded.
    pub(super) stop: bool,
    /// The connection has failed before READY.
    pub(super) failed: bool,
    /// Why the rest of memory will not come.
    pub(super) lost: Option<Refusal>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Wishes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops the pages that are missing, older contents and all, and has their absence watched. Nobody
/// uses guest memory meanwhile.
///
/// # Errors
/// `HostFailure`.
pub(crate) fn prepare(memory: &Memory, missing: &Remaining) -> Result<(), Refusal> {
    let userfault = userfault::get().map_err(|why| failed("watch over", why))?;
    for (first, count) in split_at_slots(memory, missing.runs()) {
        memory.drop_pages(first, count).map_err(|error| failed("drop", error))?;
    }
    for slot in memory.slots() {
        let (start, bytes) = whole(memory, slot.first_page, slot.pages)?;
        userfault.register(start, bytes).map_err(|error| failed("watch over", error))?;
    }
    Ok(())
}

impl Fetching {
    /// Begins to fetch what [`prepare`] was told is missing.
    pub(crate) fn start(
        machine: &Arc<Machine>,
        control: &Arc<Control>,
        door: &Arc<Door>,
        stream: Stream,
        order: Order,
    ) -> Result<Self, Refusal> {
        let userfault = userfault::get().map_err(|why| failed("watch over", why))?;
        let shared = Arc::<Shared>::default();
        let total = order.missing.bytes();
        control.update(|status| status.progress.post_copy_bytes = total);
        tracing::info!(missing = %total, "the rest of memory comes after the guest");
        let fetcher = Fetcher::new(machine, control, door, &shared, userfault, order);
        let thread = std::thread::Builder::new().name("fetch".to_owned());
        let thread =
            thread.spawn(move || fetcher.run(stream)).map_err(|error| failed("fetch", error))?;
        Ok(Self { shared, door: Arc::clone(door), thread })
    }

    /// From now on a source whose connection breaks is waited for.
    ///
    /// # Errors
    /// When that has happened already.
    pub(crate) fn hold_out(&self) -> Result<(), Trouble> {
        let mut wishes = self.shared.lock();
        if wishes.failed {
            return Err(Trouble::Interrupted);
        }
        wishes.holds_out = true;
        Ok(())
    }

    /// Says READY to the source.
    pub(crate) fn say_ready(&self, load: Duration) {
        let mut wishes = self.shared.lock();
        wishes.ready = true;
        wishes.outbox.push(Frame::Ready { load });
        drop(wishes);
        self.ring();
    }

    /// Whether the rest of memory can still come: asked before the guest runs.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        self.shared.lock().lost.clone().map_or(Ok(()), Err)
    }

    /// The guest runs: there is no way back.
    pub(crate) fn say_running(&self) {
        let mut wishes = self.shared.lock();
        wishes.runs_since = Some(Instant::now());
        wishes.outbox.push(Frame::Running);
        drop(wishes);
        self.ring();
    }

    /// Calls it off before READY; why it had failed already, if it had, and the connection, if there is one.
    pub(crate) fn stop(self) -> (Option<Trouble>, Option<Stream>) {
        self.shared.lock().stop = true;
        self.ring();
        match self.finish() {
            Outcome::Discarded(Trouble::Interrupted, stream) => (None, stream),
            Outcome::Discarded(trouble, stream) => (Some(trouble), stream),
            Outcome::Whole | Outcome::Lost(_) => (None, None),
        }
    }

    /// Waits for the end of it.
    pub(crate) fn finish(self) -> Outcome {
        self.thread.join().unwrap_or_else(|_| {
            let why = "the thread that fetches memory panicked";
            Outcome::Lost(Refusal::new(RefusalCode::Internal, why, "report a defect"))
        })
    }

    fn ring(&self) {
        // It cannot be full: every ring is heard.
        let _ = self.door.bell.write(1);
    }
}

/// Runs that each lie in one range of guest memory.
fn split_at_slots(memory: &Memory, runs: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    let parts = runs.into_iter().flat_map(|(first, count)| {
        memory.slots().iter().filter_map(move |slot| {
            let start = first.max(slot.first_page);
            let end = (first + count).min(slot.first_page + slot.pages);
            (start < end).then(|| (start, end - start))
        })
    });
    parts.collect()
}

pub(super) fn whole(
    memory: &Memory,
    first: u64,
    count: u64,
) -> Result<(HostAddress, usize), Refusal> {
    memory.run(first, count).ok_or_else(|| failed("find", "it is not in one piece"))
}

pub(super) fn failed(what: &str, why: impl std::fmt::Display) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("this host could not {what} missing memory of the VM: {why}"),
        "look at the host's memory and at this VM's log",
    )
}
