//! What the other vCPUs do: each rewrites a page of its own, checks it before
//! that, and compares its time with that of all vCPUs.
//!
//! They share nothing but counters with the first vCPU, which tells of them in
//! its heartbeats: how many have done something since the last one, and what
//! they found. So a vCPU that was not moved, or whose registers, timer or
//! counter were not, is missed or seen.

use core::arch::x86_64::{_mm_lfence, _rdtsc};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::hypercall;
use crate::pattern::{Content, Page, Pattern};

/// vCPUs the image has stacks for; as in `entry.s`.
const VCPUS_MAX: usize = 32;
/// Time between two rounds of one of them.
const PAUSE_NANOS: u32 = 5_000_000;
/// What the contents of their pages depend on.
const PATTERN: Pattern = Pattern { seed: 0x6f74_6865_7273, repeat: 1 };

/// One vCPU's.
struct Other {
    page: UnsafeCell<Page>,
    /// How often it has rewritten its page.
    rounds: AtomicU32,
    /// How often the page did not hold what it had written.
    errors: AtomicU64,
    /// How often its counter was behind another's.
    reversals: AtomicU64,
}

// SAFETY: only its own vCPU touches the page of an `Other`.
unsafe impl Sync for Other {}

static OTHERS: [Other; VCPUS_MAX] = [const {
    Other {
        page: UnsafeCell::new([0; 512]),
        rounds: AtomicU32::new(0),
        errors: AtomicU64::new(0),
        reversals: AtomicU64::new(0),
    }
}; VCPUS_MAX];

/// Whether the first vCPU wants them to.
static GO: AtomicBool = AtomicBool::new(false);
/// The highest counter any of them has read.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// A vCPU other than the first, in ring 3, on its own stack.
#[unsafe(no_mangle)]
extern "C" fn guest_other(index: u32) -> ! {
    hypercall::start_timer();
    let Some(other) = OTHERS.get(index as usize) else {
        loop {
            hypercall::sleep(u32::MAX);
        }
    };
    loop {
        if GO.load(Ordering::Acquire) {
            other.round(index);
        }
        hypercall::sleep(PAUSE_NANOS);
    }
}

impl Other {
    fn round(&self, index: u32) {
        let before = LATEST.load(Ordering::Acquire);
        let now = counter();
        if now < before {
            self.reversals.fetch_add(1, Ordering::Relaxed);
        }
        LATEST.fetch_max(now, Ordering::AcqRel);

        let generation = self.rounds.load(Ordering::Relaxed);
        // SAFETY: this is the page's own vCPU, and there is no other reference on it.
        let page = unsafe { &mut *self.page.get() };
        if generation > 0 && !(Content { page: index, generation }).is_in(page, PATTERN) {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        // Zero means that it has not begun.
        let next = generation.wrapping_add(1).max(1);
        Content { page: index, generation: next }.fill(page, PATTERN);
        self.rounds.store(next, Ordering::Release);
    }
}

/// The counter, read after everything before it.
fn counter() -> u64 {
    // SAFETY: CR4.TSD is clear, so ring 3 may read the counter; SSE2 is part of the architecture.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// The first vCPU's view of the others.
pub struct Others {
    /// Their rounds when it last looked.
    seen: [u32; VCPUS_MAX],
}

/// What became of them.
pub struct Found {
    /// Have done something since the last look; none when there never were any.
    pub working: Option<usize>,
    /// In all so far.
    pub errors: u64,
    /// In all so far.
    pub reversals: u64,
}

impl Others {
    /// Lets them begin.
    pub fn start() -> Self {
        GO.store(true, Ordering::Release);
        Self { seen: [0; VCPUS_MAX] }
    }

    pub fn look(&mut self) -> Found {
        let mut found = Found { working: None, errors: 0, reversals: 0 };
        for (other, seen) in OTHERS.iter().zip(&mut self.seen) {
            let rounds = other.rounds.load(Ordering::Acquire);
            if rounds == 0 {
                continue;
            }
            let moved = core::mem::replace(seen, rounds) != rounds;
            found.working = Some(found.working.unwrap_or(0) + usize::from(moved));
            found.errors += other.errors.load(Ordering::Relaxed);
            found.reversals += other.reversals.load(Ordering::Relaxed);
        }
        found
    }
}
