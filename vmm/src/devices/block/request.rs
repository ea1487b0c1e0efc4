//! One request of a driver: from a chain of descriptors to an operation on the
//! disk, and its answer.
//!
//! A chain is, in order and cut into descriptors as the driver likes: a header
//! and data that the device reads, data and one byte of status that it writes
//! (virtio 1.2, 5.2.6). Whatever else comes along is [`Malformed`]: no driver
//! makes such a chain, so there is nobody to answer. What is well formed but
//! cannot be done (beyond the end, a write to a read-only disk) is answered with
//! an error status.

use virtio_bindings::virtio_blk as blk;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::disk::{Disk, SECTOR_BYTES, Segment};
use crate::memory::GuestRam;

/// The most pieces the data of one request may have; the driver is told.
pub(super) const SEGMENTS_MAX: u32 = 126;
/// The most bytes of one piece; the driver is told.
pub(super) const SEGMENT_BYTES_MAX: u32 = 256 << 10;
/// The most bytes of one request that are taken at all: more than all pieces may have together.
const DATA_BYTES_MAX: u64 = 32 << 20;
/// Header and status may have descriptors of their own.
const DESCRIPTORS_MAX: usize = SEGMENTS_MAX as usize + 2;
/// The most ranges of one discard; the driver is told.
pub(super) const RANGES_MAX: u32 = 16;
/// The most sectors of one range to discard, 1 GiB; the driver is told.
pub(super) const DISCARD_SECTORS_MAX: u32 = 1 << 21;
/// The most sectors of one range to fill with zeroes, 16 MiB: a file system that cannot do so
/// without writing them is given them.
pub(super) const ZEROES_SECTORS_MAX: u32 = 1 << 15;
const HEADER_BYTES: u64 = 16;
const RANGE_BYTES: u64 = 16;
pub(super) const ID_BYTES: usize = blk::VIRTIO_BLK_ID_BYTES as usize;

/// A chain that no driver makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the driver sent a request {0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// What is asked of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Flush,
    Identify,
    Discard,
    WriteZeroes,
    Unknown,
}

/// One request, taken out of its queue and owed an answer.
#[derive(Debug)]
pub(super) struct Request {
    /// The chain's head: what the answer is given under.
    pub(super) head: u16,
    operation: Operation,
    sector: u64,
    /// To be read or written, as the operation is.
    data: Vec<Segment>,
    status: GuestAddress,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    status: u8,
    /// Bytes of data written to guest memory.
    written: u32,
}

/// Statuses of virtio 1.2, 5.2.6.
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// Why a request is answered with an error.
#[derive(Debug)]
enum Failure {
    /// The driver asked for what cannot be.
    Refused(u8),
    /// The host could not.
    Host(std::io::Error),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Host(error)
    }
}

impl Request {
    /// Takes a chain apart. Everything it names lies in guest memory afterwards.
    pub(super) fn parse(
        chain: DescriptorChain<&GuestRam>,
        memory: &GuestRam,
    ) -> Result<Self, Malformed> {
        let head = chain.head_index();
        let (mut readable, mut writable) = pieces(chain, memory)?;
        let header = take_header(&mut readable, memory)?;
        let status = take_status(&mut writable)?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let [.., a, b, c, d, e, f, g, h] = header;
        let operation = match kind {
            blk::VIRTIO_BLK_T_IN => Operation::Read,
            blk::VIRTIO_BLK_T_OUT => Operation::Write,
            blk::VIRTIO_BLK_T_FLUSH => Operation::Flush,
            blk::VIRTIO_BLK_T_GET_ID => Operation::Identify,
            blk::VIRTIO_BLK_T_DISCARD => Operation::Discard,
            blk::VIRTIO_BLK_T_WRITE_ZEROES => Operation::WriteZeroes,
            _ => Operation::Unknown,
        };
        let to_guest = matches!(operation, Operation::Read | Operation::Identify);
        let data = if to_guest { writable } else { readable };
        let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        Ok(Self { head, operation, sector, data, status })
    }

    /// Bytes of data, for the rate limit.
    pub(super) fn bytes(&self) -> u64 {
        self.data.iter().map(|piece| u64::from(piece.bytes)).sum()
    }

    /// Carries it out and leaves the answer in guest memory. Says how many bytes were written there.
    ///
    /// `write_through`: what is written must be on the disk before the answer.
    pub(super) fn carry_out(
        &self,
        disk: &Disk,
        memory: &GuestRam,
        write_through: bool,
    ) -> Result<u32, Malformed> {
        let outcome = match self.operate(disk, memory) {
            Ok(written) if write_through && self.changes() => match disk.flush() {
                Ok(()) => Outcome { status: OK, written },
                Err(error) => self.failed(disk, &Failure::Host(error)),
            },
            Ok(written) => Outcome { status: OK, written },
            Err(failure) => self.failed(disk, &failure),
        };
        let status = memory.write_obj(outcome.status, self.status);
        status.map_err(|_| Malformed("whose status is not in its memory"))?;
        Ok(outcome.written + 1)
    }

    fn failed(&self, disk: &Disk, failure: &Failure) -> Outcome {
        let status = match failure {
            Failure::Refused(status) => *status,
            Failure::Host(error) => {
                disk.report(error, format_args!("{:?} at sector {}", self.operation, self.sector));
                IOERR
            }
        };
        Outcome { status, written: 0 }
    }

    fn changes(&self) -> bool {
        matches!(self.operation, Operation::Write | Operation::Discard | Operation::WriteZeroes)
    }

    /// How many bytes of data it wrote to guest memory.
    fn operate(&self, disk: &Disk, memory: &GuestRam) -> Result<u32, Failure> {
        if disk.is_readonly() && self.changes() {
            return Err(Failure::Refused(IOERR));
        }
        match self.operation {
            Operation::Read => {
                let offset = self.offset(disk)?;
                disk.read(memory, &self.data, offset)?;
                // At most `DATA_BYTES_MAX`.
                Ok(u32::try_from(self.bytes()).unwrap_or(u32::MAX))
            }
            Operation::Write => {
                let offset = self.offset(disk)?;
                disk.write(memory, &self.data, offset)?;
                Ok(0)
            }
            Operation::Flush => disk.flush().map(|()| 0).map_err(Failure::Host),
            Operation::Identify => self.identify(disk, memory),
            Operation::Discard | Operation::WriteZeroes => {
                self.erase(disk, memory)?;
                Ok(0)
            }
            Operation::Unknown => Err(Failure::Refused(UNSUPP)),
        }
    }

    /// Where on the disk the data goes, in bytes; whole sectors that are all there.
    fn offset(&self, disk: &Disk) -> Result<u64, Failure> {
        let bytes = self.bytes();
        let whole = bytes.is_multiple_of(SECTOR_BYTES);
        let offset = disk.range(self.sector, bytes / SECTOR_BYTES).filter(|_| whole);
        offset.ok_or(Failure::Refused(IOERR))
    }

    fn identify(&self, disk: &Disk, memory: &GuestRam) -> Result<u32, Failure> {
        let mut rest: &[u8] = &disk.id();
        let mut written = 0;
        for piece in &self.data {
            let now = rest.len().min(usize::try_from(piece.bytes).unwrap_or(usize::MAX));
            let (part, behind) = rest.split_at(now);
            memory.write_slice(part, piece.address).map_err(|_| Failure::Refused(IOERR))?;
            (rest, written) = (behind, written + now);
        }
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }

    /// Discards or zeroes every range named, after all have been looked at.
    fn erase(&self, disk: &Disk, memory: &GuestRam) -> Result<(), Failure> {
        let bytes = self.bytes();
        let count = bytes / RANGE_BYTES;
        if !bytes.is_multiple_of(RANGE_BYTES) || !(1..=u64::from(RANGES_MAX)).contains(&count) {
            return Err(Failure::Refused(IOERR));
        }
        let zeroes = self.operation == Operation::WriteZeroes;
        let most = if zeroes { ZEROES_SECTORS_MAX } else { DISCARD_SECTORS_MAX };
        let known = if zeroes { blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
        let mut plan = Vec::new();
        for range in gather(memory, &self.data).chunks_exact(16) {
            let field = |at: usize| {
                u32::from_le_bytes([range[at], range[at + 1], range[at + 2], range[at + 3]])
            };
            let sector = u64::from(field(0)) | u64::from(field(4)) << 32;
            let (sectors, flags) = (field(8), field(12));
            if flags & !known != 0 {
                return Err(Failure::Refused(UNSUPP));
            }
            let offset = disk.range(sector, sectors.into()).filter(|_| sectors <= most);
            let offset = offset.ok_or(Failure::Refused(IOERR))?;
            plan.push((offset, u64::from(sectors) * SECTOR_BYTES, flags != 0));
        }
        for (offset, bytes, may_unmap) in plan {
            if zeroes {
                disk.write_zeroes(offset, bytes, may_unmap)?;
            } else {
                disk.discard(offset, bytes)?;
            }
        }
        Ok(())
    }
}

/// What the chain has the device read, and what it has it write.
fn pieces(
    chain: DescriptorChain<&GuestRam>,
    memory: &GuestRam,
) -> Result<(Vec<Segment>, Vec<Segment>), Malformed> {
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let mut last: Option<Descriptor> = None;
    let mut bytes = 0;
    // The iterator ends silently where a chain is cut: the last flag seen tells.
    for descriptor in chain.take(DESCRIPTORS_MAX + 1) {
        last = Some(descriptor);
        bytes += u64::from(descriptor.len());
        let (to, access) = if descriptor.is_write_only() {
            (&mut writable, Permissions::Write)
        } else if writable.is_empty() {
            (&mut readable, Permissions::Read)
        } else {
            return Err(Malformed("with its parts in the wrong order"));
        };
        let length = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
        if !memory.check_range(descriptor.addr(), length, access) {
            return Err(Malformed("that is not in its memory"));
        }
        to.push(Segment { address: descriptor.addr(), bytes: descriptor.len() });
    }
    if last.is_none_or(|last| last.has_next()) {
        return Err(Malformed("that is cut short, without end or in too many parts"));
    }
    if bytes > DATA_BYTES_MAX + HEADER_BYTES + 1 {
        return Err(Malformed("that is too long"));
    }
    Ok((readable, writable))
}

/// Takes the header off the front of what the device reads.
fn take_header(readable: &mut Vec<Segment>, memory: &GuestRam) -> Result<[u8; 16], Malformed> {
    let mut header = Vec::new();
    let mut rest = HEADER_BYTES;
    for piece in readable.iter_mut() {
        let now = u32::try_from(rest).unwrap_or(u32::MAX).min(piece.bytes);
        header.push(Segment { address: piece.address, bytes: now });
        piece.address.0 += u64::from(now);
        piece.bytes -= now;
        rest -= u64::from(now);
    }
    readable.retain(|piece| piece.bytes > 0);
    gather(memory, &header).try_into().map_err(|_| Malformed("without a header"))
}

/// Takes the status off the end of what the device writes.
fn take_status(writable: &mut Vec<Segment>) -> Result<GuestAddress, Malformed> {
    writable.retain(|piece| piece.bytes > 0);
    let last = writable.last_mut().ok_or(Malformed("without room for its status"))?;
    last.bytes -= 1;
    let status = GuestAddress(last.address.0 + u64::from(last.bytes));
    writable.retain(|piece| piece.bytes > 0);
    Ok(status)
}

/// The contents of pieces that have been checked and are short in all; cut where the guest's
/// memory is not what it was.
fn gather(memory: &GuestRam, pieces: &[Segment]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        let start = bytes.len();
        bytes.resize(start + usize::try_from(piece.bytes).unwrap_or(0), 0);
        if memory.read_slice(&mut bytes[start..], piece.address).is_err() {
            bytes.truncate(start);
            break;
        }
    }
    bytes
}
