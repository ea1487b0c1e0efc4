//! The file or block device behind a virtio disk.
//!
//! Data goes through the host's page cache: what has been written is on the
//! disk for good once [`Disk::flush`] has returned, not before. Reads and
//! writes go straight between the page cache and guest memory. All functions
//! may be called from several threads at a time.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ballast_model::{DiskSpec, Refusal, RefusalCode, VmId};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemory, Permissions};
use xxhash_rust::xxh3::xxh3_64;

use super::flush::Flushes;
use super::request::ID_BYTES;
use super::writes::{WriteLog, Written};
use crate::memory::GuestRam;

/// The unit in which drivers count.
pub(super) const SECTOR_BYTES: u64 = 512;
/// How many failures of one disk are worth a line in the log.
const FAILURES_LOGGED_MAX: u32 = 32;
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) address: GuestAddress,
    pub(super) bytes: u32,
}

/// An open disk.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    id: [u8; ID_BYTES],
    file: File,
    /// Changes once, for one that arrives.
    sectors: AtomicU64,
    readonly: bool,
    /// It belongs to its host, and goes along when the VM moves.
    local: bool,
    device: bool,
    writes: WriteLog,
    flushes: Flushes,
    failures: AtomicU32,
}

/// How a local disk comes to be here.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// It is here.
    Here,
    /// It comes with this VM, into a file that is empty until then.
    Arriving(&'a VmId),
}

impl Disk {
    /// Opens the disk; nobody else is kept from doing so (see [`super::lock`]). Local ones are
    /// beneath `root`.
    ///
    /// # Errors
    /// `NotFound` when it is missing, `InvalidArgument` when it is no disk,
    /// `HostFailure` when it cannot be opened, each naming the path.
    pub(crate) fn open(spec: &DiskSpec, root: &Path, origin: Origin<'_>) -> Result<Self, Refusal> {
        let arriving = match origin {
            Origin::Arriving(vm) if !spec.shared => Some(spec.arrival(root, vm)),
            _ => None,
        };
        let path = &arriving.clone().unwrap_or_else(|| spec.place(root));
        let no_disk = |reason: String, remedy: &str| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("disk {} {reason}", path.display()),
                remedy,
            )
        };
        let mut options = OpenOptions::new();
        // Non-blocking: whatever is at that path, opening it must not wait.
        let writes = !spec.readonly || arriving.is_some();
        options.read(true).write(writes).custom_flags(libc::O_NONBLOCK);
        let mut file = options.open(path).map_err(|error| cannot_open(path, &error))?;
        let kind = file.metadata().map_err(|error| cannot_open(path, &error))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = if kind.is_dir() { "is a directory" } else { "is no file" };
            return Err(no_disk(what.to_owned(), "name a raw image file or a block device"));
        }
        let bytes = file.seek(SeekFrom::End(0)).map_err(|error| cannot_open(path, &error))?;
        if arriving.is_some() && (bytes > 0 || !kind.is_file()) {
            return Err(no_disk(
                "is not empty, and another disk is to arrive there".to_owned(),
                "remove it if no VM needs it",
            ));
        }
        if arriving.is_none() && (bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES)) {
            return Err(no_disk(
                format!("has {bytes} bytes, which is no whole number of sectors"),
                "name a raw image whose size is a multiple of 512 bytes",
            ));
        }
        Ok(Self {
            // An arriving one by the name it will have.
            path: spec.place(root),
            id: id(&spec.path),
            file,
            sectors: AtomicU64::new(bytes / SECTOR_BYTES),
            readonly: spec.readonly,
            local: !spec.shared,
            device: kind.is_block_device(),
            writes: WriteLog::default(),
            flushes: Flushes::default(),
            failures: AtomicU32::new(0),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Its size, in sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// Its size, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.sectors() * SECTOR_BYTES
    }

    /// Whether it belongs to its host, and goes along when the VM moves.
    pub(crate) fn is_local(&self) -> bool {
        self.local
    }

    /// Whether it is a block device, not a file.
    pub(crate) fn is_device(&self) -> bool {
        self.device
    }

    /// Gives one that arrives its size. It is all zeroes then.
    pub(crate) fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)?;
        self.sectors.store(bytes / SECTOR_BYTES, Ordering::Release);
        Ok(())
    }

    /// Begins to log which parts are written to; for one reader at a time.
    pub(crate) fn log_writes(&self) -> Arc<Written> {
        self.writes.start(self.bytes())
    }

    /// Ends that.
    pub(crate) fn log_no_writes(&self) {
        self.writes.stop();
    }

    pub(crate) fn is_readonly(&self) -> bool {
        self.readonly
    }

    /// What the guest knows it by: the same wherever it runs.
    pub(super) fn id(&self) -> [u8; ID_BYTES] {
        self.id
    }

    /// Where sectors are, in bytes; none when the disk has not all of them.
    pub(super) fn range(&self, sector: u64, sectors: u64) -> Option<u64> {
        let end = sector.checked_add(sectors)?;
        (end <= self.sectors()).then(|| sector * SECTOR_BYTES)
    }

    /// Fills guest memory from the disk; all of it or an error.
    pub(super) fn read(&self, memory: &GuestRam, to: &[Segment], offset: u64) -> io::Result<()> {
        transfer(memory, to, offset, Permissions::Write, |vectors, offset| {
            let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
            // SAFETY: the vectors are mapped guest memory for as long as the call takes; the guest
            // may look at it meanwhile, which is its own affair.
            unsafe { libc::preadv(self.file.as_raw_fd(), vectors.as_ptr(), count, offset) }
        })
    }

    /// Fills the disk from guest memory; all of it or an error.
    pub(super) fn write(&self, memory: &GuestRam, from: &[Segment], offset: u64) -> io::Result<()> {
        let written = transfer(memory, from, offset, Permissions::Read, |vectors, offset| {
            let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
            // SAFETY: as above; the guest may write meanwhile, then either of both is on the disk.
            unsafe { libc::pwritev(self.file.as_raw_fd(), vectors.as_ptr(), count, offset) }
        });
        let bytes = from.iter().map(|piece| u64::from(piece.bytes)).sum();
        // Also after a failure: a part of it may be there.
        self.writes.mark(offset, bytes);
        written
    }

    /// Returns when everything written before is on the disk for good. Once it has failed it always does.
    pub(crate) fn flush(&self) -> io::Result<()> {
        if self.readonly { Ok(()) } else { self.flushes.flush(|| self.file.sync_data()) }
    }

    /// As if the host had failed to write something back.
    #[cfg(test)]
    pub(super) fn fail_flush(&self) {
        let failed = self.flushes.flush(|| Err(io::Error::from_raw_os_error(libc::EIO)));
        assert!(failed.is_err());
    }

    /// The guest no longer needs what is there. A disk that cannot forget keeps it.
    pub(super) fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let discarded = self.allocate(libc::FALLOC_FL_PUNCH_HOLE, offset, bytes).map(drop);
        self.writes.mark(offset, bytes);
        discarded
    }

    /// From now on there are zeroes.
    pub(crate) fn write_zeroes(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()> {
        let zeroed = self.zero(offset, bytes, may_unmap);
        self.writes.mark(offset, bytes);
        zeroed
    }

    fn zero(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()> {
        let how = if may_unmap { libc::FALLOC_FL_PUNCH_HOLE } else { libc::FALLOC_FL_ZERO_RANGE };
        if self.allocate(how, offset, bytes)? {
            return Ok(());
        }
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let now = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROES.len());
            self.file.write_all_at(&ZEROES[..now], at)?;
            at += now as u64;
        }
        Ok(())
    }

    /// Whether the file system could.
    fn allocate(&self, how: libc::c_int, offset: u64, bytes: u64) -> io::Result<bool> {
        if bytes == 0 {
            return Ok(true);
        }
        let (offset, bytes) = (position(offset)?, position(bytes)?);
        loop {
            let mode = how | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: only numbers are passed.
            if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, bytes) } == 0 {
                return Ok(true);
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // The last: of a block device with larger blocks than these.
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL) => {
                    return Ok(false);
                }
                _ => return Err(error),
            }
        }
    }

    /// What other hosts have written is read anew from now on.
    pub(super) fn forget_cache(&self) {
        // SAFETY: only numbers are passed. Clean pages are dropped, at most none.
        let told =
            unsafe { libc::posix_fadvise(self.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        if told != 0 {
            tracing::debug!(disk = %self.path.display(), told, "its cache is not dropped");
        }
    }

    /// Tells the operator of a failure the guest sees as an I/O error.
    pub(super) fn report(&self, error: &io::Error, what: std::fmt::Arguments<'_>) {
        if self.failures.fetch_add(1, Ordering::Relaxed) < FAILURES_LOGGED_MAX {
            tracing::error!(disk = %self.path.display(), %error, %what, "an I/O error for the guest");
        }
    }
}

fn id(path: &Path) -> [u8; ID_BYTES] {
    let hash = xxh3_64(path.as_os_str().as_encoded_bytes());
    let mut id = [0; ID_BYTES];
    id.copy_from_slice(format!("BLST{hash:016x}").as_bytes());
    id
}

fn position(bytes: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(bytes).map_err(|_| io::Error::from(ErrorKind::InvalidInput))
}

/// Moves all of the segments with as many calls as it takes. What was written
/// to guest memory is in its dirty bitmap, also when it ends in an error.
fn transfer(
    memory: &GuestRam,
    segments: &[Segment],
    offset: u64,
    access: Permissions,
    call: impl Fn(&[libc::iovec], libc::off_t) -> isize,
) -> io::Result<()> {
    let mut slices = Vec::with_capacity(segments.len());
    for segment in segments {
        let bytes = usize::try_from(segment.bytes).unwrap_or(usize::MAX);
        let found = memory.get_slices(segment.address, bytes, access);
        for slice in found.map_err(io::Error::other)? {
            slices.push(slice.map_err(io::Error::other)?);
        }
    }
    let guards: Vec<_> = slices.iter().map(vm_memory::VolatileSlice::ptr_guard_mut).collect();
    let mut vectors: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .collect();
    let moved = move_all(&mut vectors, offset, call);
    if matches!(access, Permissions::Write) {
        // After the data is there: a round of a migration that looks between would miss it.
        slices.iter().for_each(|slice| slice.bitmap().mark_dirty(0, slice.len()));
    }
    moved
}

fn move_all(
    mut vectors: &mut [libc::iovec],
    mut offset: u64,
    call: impl Fn(&[libc::iovec], libc::off_t) -> isize,
) -> io::Result<()> {
    while let Some(first) = vectors.first_mut() {
        if first.iov_len == 0 {
            vectors = &mut vectors[1..];
            continue;
        }
        let moved = match usize::try_from(call(vectors, position(offset)?)) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(moved) => moved,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() == ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
        };
        offset += moved as u64;
        advance(vectors, moved);
    }
    Ok(())
}

/// Takes the bytes moved off the front; what is used up stays, empty.
fn advance(vectors: &mut [libc::iovec], mut moved: usize) {
    for vector in vectors {
        let now = moved.min(vector.iov_len);
        // At most to the end of the piece.
        vector.iov_base = vector.iov_base.cast::<u8>().wrapping_add(now).cast();
        vector.iov_len -= now;
        moved -= now;
    }
}

fn cannot_open(path: &Path, error: &io::Error) -> Refusal {
    let (code, remedy) = match error.kind() {
        ErrorKind::NotFound => {
            (RefusalCode::NotFound, "create it, or mount what it is on, on every host of the VM")
        }
        ErrorKind::IsADirectory => {
            (RefusalCode::InvalidArgument, "name a raw image file or a block device")
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            (RefusalCode::HostFailure, "let this service read and write it, or make it read-only")
        }
        _ => (RefusalCode::HostFailure, "check the disk and what it is on"),
    };
    let reason = format!("cannot open disk {}: {error}", path.display());
    Refusal::new(code, reason, remedy)
}
