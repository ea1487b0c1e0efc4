//! Taking all of guest memory before the guest starts.
//!
//! Threads take chunk after chunk; what the kernel zeroes is the time it takes,
//! so more threads than CPUs would not help, and more than a few would starve
//! the host's other VMs. How far it is stands in the log.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use ballast_model::{Bytes, Refusal, RefusalCode};

use super::{HostAddress, PAGE_BYTES, Slot};

const CHUNK_BYTES: usize = 64 << 20;
const THREADS_MAX: usize = 8;
/// How many times progress is told.
const TOLD: usize = 10;

#[derive(Debug, Clone, Copy)]
struct Chunk {
    start: HostAddress,
    bytes: usize,
}

/// Takes all pages of these slots.
///
/// # Errors
/// `CapacityExceeded` when the host runs out of them.
pub(super) fn take(slots: &[Slot]) -> Result<(), Refusal> {
    let began = Instant::now();
    let chunks = chunks(slots);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cpus.min(THREADS_MAX).min(chunks.len());
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(chunk) = chunks.get(number) else { return };
            if !take_chunk(*chunk) {
                failed.store(true, Ordering::Relaxed);
            }
            if (number + 1) * TOLD / chunks.len() > number * TOLD / chunks.len() {
                let percent = (number + 1) * 100 / chunks.len();
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

fn chunks(slots: &[Slot]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for slot in slots {
        let bytes = usize::try_from(slot.pages).unwrap_or(0) * PAGE_BYTES;
        for offset in (0..bytes).step_by(CHUNK_BYTES) {
            // SAFETY: `offset` lies within the slot, which is mapped in one piece.
            let start = HostAddress(unsafe { slot.host.as_ptr().add(offset) });
            chunks.push(Chunk { start, bytes: CHUNK_BYTES.min(bytes - offset) });
        }
    }
    chunks
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
