//! The source's side: what of its disks has to be sent, and sending it.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ballast_model::{Bytes, Refusal};

use super::{CHUNK_GRAINS, DATA_BYTES_MAX, GRAIN, ZEROES, failed, grains};
use crate::devices::block::{Disk, GRAIN_BYTES, Written};
use crate::machine::Machine;
use crate::migration::Trouble;
use crate::migration::dirty::PageSet;
use crate::migration::framing::Frame;
use crate::migration::sender::Sender;

/// The disks of a machine that go along, with the logs of what the guest writes to them. Dropping
/// it switches the logs off.
#[derive(Debug)]
pub(crate) struct Mirror {
    disks: Vec<Mirrored>,
    /// What held data at the beginning.
    total: Bytes,
    sent: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Mirrored {
    number: u16,
    disk: Arc<Disk>,
    written: Arc<Written>,
    /// What has to be sent beside what is in the log: at first, all that holds data.
    due: PageSet,
}

/// What of the disks one round sends, handed out chunk by chunk.
#[derive(Debug)]
pub(crate) struct Blocks {
    parts: Vec<Part>,
    /// Part and first grain of each chunk that has something to send.
    chunks: Vec<(usize, u64)>,
    next: AtomicUsize,
    /// Grains that have not had their turn.
    left: AtomicU64,
    sent: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Part {
    number: u16,
    disk: Arc<Disk>,
    written: Arc<Written>,
    set: PageSet,
}

/// Grains of one disk to be read now.
#[derive(Debug)]
pub(crate) struct Chunk<'a> {
    part: &'a Part,
    range: Range<u64>,
    sent: &'a AtomicU64,
}

impl Mirror {
    /// Switches the logs on, and looks for what holds data.
    ///
    /// # Errors
    /// `HostFailure` naming a disk that cannot be looked at.
    pub(crate) fn start(machine: &Machine) -> Result<Self, Refusal> {
        let mut mirror = Self { disks: Vec::new(), total: Bytes::ZERO, sent: Arc::default() };
        for (number, disk) in machine.devices.local_disks() {
            let (disk, written) = (Arc::clone(disk), disk.log_writes());
            let due = PageSet::empty(written.grains());
            mirror.disks.push(Mirrored { number, disk, written, due });
        }
        for mirrored in &mut mirror.disks {
            // After the log is on: what is written from now on is in it or is found.
            mirrored.due = data(&mirrored.disk)
                .map_err(|error| failed(&mirrored.disk, "find the data of", &error))?;
        }
        mirror.total = mirror.pending();
        Ok(mirror)
    }

    /// Whether no disk goes along.
    pub(crate) fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// What held data at the beginning.
    pub(crate) fn total(&self) -> Bytes {
        self.total
    }

    /// Contents sent so far, what went as a mark left out.
    pub(crate) fn sent(&self) -> Bytes {
        Bytes(self.sent.load(Ordering::Relaxed))
    }

    /// What has to be sent, but for what [`take`](Self::take) took.
    pub(crate) fn pending(&self) -> Bytes {
        let grains: u64 =
            self.disks.iter().map(|disk| disk.due.count() + disk.written.count()).sum();
        Bytes(grains * GRAIN_BYTES)
    }

    /// Takes out what has to be sent; what is taken must be sent.
    pub(crate) fn take(&mut self) -> Blocks {
        let parts = self.disks.iter_mut().map(|disk| {
            let nothing = PageSet::empty(disk.written.grains());
            let mut set = std::mem::replace(&mut disk.due, nothing);
            for grain in disk.written.take() {
                set.insert(grain);
            }
            let (number, written) = (disk.number, Arc::clone(&disk.written));
            Part { number, disk: Arc::clone(&disk.disk), written, set }
        });
        Blocks::new(parts.collect(), &self.sent)
    }

    /// The disks, with their numbers.
    pub(super) fn disks(&self) -> impl Iterator<Item = (u16, &Disk)> {
        self.disks.iter().map(|mirrored| (mirrored.number, &*mirrored.disk))
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.disks.iter().for_each(|mirrored| mirrored.disk.log_no_writes());
    }
}

/// The grains of a disk that hold data; all of them where the file system cannot tell.
pub(super) fn data(disk: &Disk) -> io::Result<PageSet> {
    let mut set = PageSet::empty(grains(disk));
    let mut at = 0;
    while let Some(run) = next_data(disk, at)? {
        for grain in run.start / GRAIN_BYTES..run.end.div_ceil(GRAIN_BYTES) {
            set.insert(grain);
        }
        // The rest of the last grain is in it.
        at = run.end.next_multiple_of(GRAIN_BYTES);
    }
    Ok(set)
}

/// The first run of bytes from `at` on that may hold something but zeroes.
fn next_data(disk: &Disk, at: u64) -> io::Result<Option<Range<u64>>> {
    let bytes = disk.bytes();
    if at >= bytes {
        return Ok(None);
    }
    match seek(disk, at, libc::SEEK_DATA) {
        Ok(start) => {
            let end = seek(disk, start, libc::SEEK_HOLE)?.min(bytes);
            // A file system whose answers do not move on is asked no more.
            Ok(Some(if end > start { start..end } else { at..bytes }))
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::ENXIO) => Ok(None),
            Some(libc::EINVAL | libc::EOPNOTSUPP) => Ok(Some(at..bytes)),
            _ => Err(error),
        },
    }
}

fn seek(disk: &Disk, at: u64, what: libc::c_int) -> io::Result<u64> {
    let at = libc::off_t::try_from(at).map_err(io::Error::other)?;
    // SAFETY: only numbers are passed. Nobody relies on the file's position.
    let found = unsafe { libc::lseek(disk.file().as_raw_fd(), at, what) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

impl Blocks {
    /// Nothing to send.
    pub(crate) fn none() -> Self {
        Self::new(Vec::new(), &Arc::default())
    }

    fn new(parts: Vec<Part>, sent: &Arc<AtomicU64>) -> Self {
        let mut chunks = Vec::new();
        for (place, part) in parts.iter().enumerate() {
            let starts =
                (0..part.written.grains().div_ceil(CHUNK_GRAINS)).map(|chunk| chunk * CHUNK_GRAINS);
            let filled = starts.filter(|start| part.set.count_in(*start..start + CHUNK_GRAINS) > 0);
            chunks.extend(filled.map(|start| (place, start)));
        }
        let left = AtomicU64::new(parts.iter().map(|part| part.set.count()).sum());
        Self { parts, chunks, next: AtomicUsize::new(0), left, sent: Arc::clone(sent) }
    }

    /// What has not had its turn.
    pub(crate) fn left(&self) -> Bytes {
        Bytes(self.left.load(Ordering::Relaxed) * GRAIN_BYTES)
    }

    /// The next chunk, out of the log by now; none when all have had their turn.
    pub(crate) fn take(&self) -> Option<Chunk<'_>> {
        let (place, first) = *self.chunks.get(self.next.fetch_add(1, Ordering::Relaxed))?;
        let part = self.parts.get(place)?;
        let range = first..first + CHUNK_GRAINS;
        let mut count = 0;
        for grain in part.set.iter(range.clone()) {
            part.written.clear(grain);
            count += 1;
        }
        self.left.fetch_sub(count, Ordering::Relaxed);
        Some(Chunk { part, range, sent: &self.sent })
    }
}

impl Chunk<'_> {
    /// Runs of grains, each of at most `most` of them.
    fn runs(&self, most: u64) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for grain in self.part.set.iter(self.range.clone()) {
            match runs.last_mut() {
                Some(run) if run.end == grain && run.end - run.start < most => run.end += 1,
                _ => runs.push(grain..grain + 1),
            }
        }
        runs
    }
}

impl Sender<'_> {
    /// Sends a chunk of a disk: contents, or that they are zero.
    pub(crate) fn send_blocks(&mut self, chunk: &Chunk<'_>) -> Result<(), Trouble> {
        let disk = &chunk.part.disk;
        let most = self.batch_bytes(DATA_BYTES_MAX.into()) / GRAIN_BYTES;
        let mut buffer = std::mem::take(&mut self.buffer);
        for run in chunk.runs(most.max(1)) {
            self.check_peer()?;
            let start = run.start * GRAIN_BYTES;
            let bytes = (run.end * GRAIN_BYTES).min(disk.bytes()) - start;
            buffer.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
            disk.file()
                .read_exact_at(&mut buffer, start)
                .map_err(|error| failed(disk, "read", &error))?;
            self.send_contents(chunk, start, &buffer)?;
        }
        self.buffer = buffer;
        Ok(())
    }

    /// What is at `start`, cut where grains of zeroes begin or end.
    fn send_contents(&mut self, chunk: &Chunk<'_>, start: u64, data: &[u8]) -> Result<(), Trouble> {
        let disk = chunk.part.number;
        let mut at = 0;
        while at < data.len() {
            let zero = is_zero(data, at);
            let mut end = at;
            while end < data.len() && is_zero(data, end) == zero {
                end = (end + GRAIN).min(data.len());
            }
            let (offset, piece) = (start + at as u64, &data[at..end]);
            if zero {
                // At most `DATA_BYTES_MAX`.
                let bytes = u32::try_from(piece.len()).unwrap_or(u32::MAX);
                let before = self.stream.bytes;
                self.stream.send(&Frame::DiskZero { disk, offset, bytes })?;
                self.count(self.stream.bytes - before);
            } else {
                self.send_piece(disk, offset, piece)?;
                chunk.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            at = end;
        }
        Ok(())
    }
}

/// Whether the grain that begins there is zero.
fn is_zero(data: &[u8], at: usize) -> bool {
    let grain = &data[at..data.len().min(at + GRAIN)];
    grain == &ZEROES[..grain.len()]
}
