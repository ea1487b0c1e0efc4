//! Taking guest memory before it is used: all of it before the guest starts, or
//! where pages will arrive, ahead of them.
//!
//! All of it: threads take chunk after chunk; what the kernel zeroes is the time it takes,
//! so more threads than CPUs would not help, and more than a few would starve
//! the host's other VMs. How far it is stands in the log, and in a [`Taken`] for
//! whoever asks meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Instant;

use ballast_model::{Bytes, Refusal, RefusalCode};

use super::{HostAddress, Memory, PAGE_BYTES, Slot};

const CHUNK_BYTES: usize = 64 << 20;
const THREADS_MAX: usize = 8;
/// How many times progress is told.
const TOLD: usize = 10;

/// How much of a machine's memory has been taken.
#[derive(Debug)]
pub(crate) struct Taken(AtomicU8);

impl Taken {
    const NOT_ASKED: u8 = u8::MAX;

    /// In percent; none while nothing is being taken.
    pub(crate) fn percent(&self) -> Option<u8> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&percent| percent != Self::NOT_ASKED)
    }

    fn set(&self, done: usize, of: usize) {
        let percent = u8::try_from(done * 100 / of.max(1)).unwrap_or(100);
        self.0.store(percent.min(100), Ordering::Relaxed);
    }
}

impl Default for Taken {
    fn default() -> Self {
        Self(AtomicU8::new(Self::NOT_ASKED))
    }
}

#[derive(Debug, Clone, Copy)]
struct Chunk {
    start: HostAddress,
    bytes: usize,
}

/// Takes all pages of these slots.
///
/// # Errors
/// `CapacityExceeded` when the host runs out of them.
pub(super) fn take(slots: &[Slot], taken: &Taken) -> Result<(), Refusal> {
    let began = Instant::now();
    let chunks = chunks(slots);
    taken.set(0, chunks.len());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cpus.min(THREADS_MAX).min(chunks.len());
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = AtomicBool::new(false);
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(chunk) = chunks.get(number) else { return };
            if !take_chunk(*chunk) {
                failed.store(true, Ordering::Relaxed);
            }
            let before = done.fetch_add(1, Ordering::Relaxed);
            taken.set(before + 1, chunks.len());
            if (before + 1) * TOLD / chunks.len() > before * TOLD / chunks.len() {
                let percent = (before + 1) * 100 / chunks.len();
                tracing::info!(percent, "guest memory is being taken");
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // One that cannot be had is one less: this thread does the rest.
            let _ =
                std::thread::Builder::new().name("prefault".to_owned()).spawn_scoped(scope, work);
        }
        work();
    });
    let memory = Bytes(chunks.iter().map(|chunk| chunk.bytes as u64).sum());
    if failed.into_inner() {
        return Err(Refusal::new(
            RefusalCode::CapacityExceeded,
            format!("the host ran out of pages while {memory} of guest memory were taken"),
            "give the VM less memory, or place it on a host with more available",
        ));
    }
    tracing::info!(%memory, threads, time = ?began.elapsed(), "guest memory is taken");
    Ok(())
}

/// Pages of a block: a huge page of them.
const BLOCK_PAGES: u64 = 512;

/// Which blocks have pages in memory, one bit each. What is asked for is not what is in swap: a
/// hint for [`take_blocks`], no more.
pub(super) fn blocks_present(slots: &[Slot], pages: u64) -> Vec<u8> {
    let length = usize::try_from(pages.div_ceil(BLOCK_PAGES).div_ceil(8)).unwrap_or(0);
    let mut blocks = vec![0; length];
    let mut present = vec![0; CHUNK_BYTES / PAGE_BYTES];
    for chunk in slots.iter().flat_map(numbered_chunks) {
        let (first_page, Chunk { start, bytes }) = chunk;
        // SAFETY: asks about a mapping of this process; one byte a page is written, of which
        // `present` has as many as the longest chunk has pages.
        if unsafe { libc::mincore(start.as_ptr().cast(), bytes, present.as_mut_ptr()) } != 0 {
            continue;
        }
        for (page, _) in
            (first_page..).zip(&present[..bytes / PAGE_BYTES]).filter(|it| it.1 & 1 == 1)
        {
            let block = page / BLOCK_PAGES;
            if let Some(byte) = usize::try_from(block / 8).ok().and_then(|at| blocks.get_mut(at)) {
                *byte |= 1 << (block % 8);
            }
        }
    }
    blocks
}

/// Takes the pages of the blocks whose bits are set, until `over`. What cannot be taken is not:
/// whoever writes there will see.
pub(super) fn take_blocks(memory: &Memory, blocks: &[u8], over: &AtomicBool) {
    let pages = memory.layout().pages();
    for block in 0..pages.div_ceil(BLOCK_PAGES) {
        let byte = usize::try_from(block / 8).ok().and_then(|at| blocks.get(at));
        if over.load(Ordering::Relaxed) {
            return;
        }
        if byte.is_none_or(|byte| byte & 1 << (block % 8) == 0) {
            continue;
        }
        let first = block * BLOCK_PAGES;
        if let Some((start, bytes)) = memory.run(first, BLOCK_PAGES.min(pages - first)) {
            // SAFETY: a mapping of guest memory; populating changes no byte of it.
            unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE) };
        }
    }
}

fn chunks(slots: &[Slot]) -> Vec<Chunk> {
    slots.iter().flat_map(numbered_chunks).map(|(_, chunk)| chunk).collect()
}

/// The chunks of a slot, with the number of the first page of each.
fn numbered_chunks(slot: &Slot) -> impl Iterator<Item = (u64, Chunk)> {
    let slot = *slot;
    let bytes = usize::try_from(slot.pages).unwrap_or(0) * PAGE_BYTES;
    (0..bytes).step_by(CHUNK_BYTES).map(move |offset| {
        // SAFETY: `offset` lies within the slot, which is mapped in one piece.
        let start = HostAddress(unsafe { slot.host.as_ptr().add(offset) });
        let first_page = slot.first_page + (offset / PAGE_BYTES) as u64;
        (first_page, Chunk { start, bytes: CHUNK_BYTES.min(bytes - offset) })
    })
}

fn take_chunk(chunk: Chunk) -> bool {
    let start = chunk.start.as_ptr();
    // SAFETY: a mapping of guest memory, made just now; populating changes no byte of it.
    if unsafe { libc::madvise(start.cast(), chunk.bytes, libc::MADV_POPULATE_WRITE) } == 0 {
        return true;
    }
    if std::io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
        return false;
    }
    // Linux before 5.14: page by page. Nobody has written to this memory yet.
    for offset in (0..chunk.bytes).step_by(PAGE_BYTES) {
        // SAFETY: within the chunk.
        unsafe { start.add(offset).write_volatile(0) };
    }
    true
}
