//! Disks that go along: those that belong to their host and not to storage that all hosts share.
//!
//! ```text
//!   the guest runs                                                        the guest stands still
//!   disks: all data, then what was written ── with each memory round ──────── the last of both
//!   [`mirror`] ═══════ DiskData, DiskPacked, DiskZero over all connections ═▶ [`landing`] ═▶ fdatasync, READY
//! ```
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`mirror`] | the source's: what has to be sent, from the log of the guest's writes |
//! | [`landing`] | the destination's: room, files, what arrives |
//! | [`compare`] | verify mode: hashes of all of a disk |
//!
//! The source begins with what holds data (holes are never looked at) and repeats
//! what was written meanwhile, before memory is copied; from then on each round
//! of memory carries what was written to the disks since the round before. So
//! the guest is slowed down by the dirty log of its memory no longer than
//! without disks. What is zero goes as a mark, and stays a hole.
//!
//! A round is over when every connection has said so, for disks as for memory:
//! nothing is written twice at a time, and the newest write stays. The
//! destination has everything of a round on its disk before it says so, and all
//! of it before READY: after the commit nothing of the source is needed.
//!
//! The source's file stays as it is, with everything the guest has written,
//! until the VM is another host's. Names are not this program's business: the
//! agent makes the file that a disk arrives in, gives it its name when the VM
//! runs there, and removes what is no longer wanted.

pub(crate) mod compare;
pub(crate) mod landing;
pub(crate) mod mirror;

use std::os::unix::fs::MetadataExt;

use ballast_model::hardware::DISKS_MAX;
use ballast_model::{Bytes, Refusal, RefusalCode};

use crate::codec::{Decoder, Encoder, Malformed};
use crate::devices::Devices;
use crate::devices::block::{Disk, GRAIN_BYTES};

/// The largest disk that goes along, in bytes: what is kept of each while it moves is in proportion.
pub(crate) const DISK_BYTES_MAX: u64 = 16 << 40;
/// What is handed to one connection at a time, in grains; a multiple of 64.
const CHUNK_GRAINS: u64 = 64;
/// The most bytes of a disk in one frame.
pub(crate) const DATA_BYTES_MAX: u32 = 1 << 20;
/// The most bytes of a disk that one frame declares zero.
#[allow(clippy::cast_possible_truncation)] // 4 MiB
pub(crate) const ZERO_BYTES_MAX: u32 = (CHUNK_GRAINS * GRAIN_BYTES) as u32;
/// The most hashes of a disk in one frame: of 64 MiB, which take no disk long to read.
pub(crate) const HASHES_MAX: usize = 1024;
/// The unit of the log as a length in memory.
#[allow(clippy::cast_possible_truncation)] // 64 KiB
const GRAIN: usize = GRAIN_BYTES as usize;
static ZEROES: [u8; GRAIN] = [0; GRAIN];

/// A disk that goes along, as the source proposes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskTerms {
    /// Which of the VM's disks.
    pub(crate) number: u16,
    /// Its size.
    pub(crate) bytes: u64,
    /// What it takes on the source's file system: no more than its size where it is sparse.
    pub(crate) allocated: u64,
}

impl DiskTerms {
    /// Of every disk of a machine that goes along.
    pub(crate) fn of(devices: &Devices) -> Vec<Self> {
        let terms = devices.local_disks().map(|(number, disk)| {
            let bytes = disk.bytes();
            let allocated = disk.file().metadata().map_or(bytes, |meta| meta.blocks() * 512);
            Self { number, bytes, allocated: allocated.min(bytes) }
        });
        terms.collect()
    }

    pub(crate) fn encode_all(terms: &[Self], to: &mut Encoder) {
        to.count(terms.len());
        for disk in terms {
            to.u16(disk.number).u64(disk.bytes).u64(disk.allocated);
        }
    }

    /// At most as many as a VM may have, each of a size that a disk can have.
    pub(crate) fn decode_all(from: &mut Decoder<'_>) -> Result<Vec<Self>, Malformed> {
        const WHAT: &str = "the disks of the proposal";
        let count = from.count(DISKS_MAX, WHAT)?;
        let mut terms: Vec<Self> = Vec::with_capacity(count);
        for _ in 0..count {
            let disk = Self {
                number: from.u16(WHAT)?,
                bytes: from.u64(WHAT)?,
                allocated: from.u64(WHAT)?,
            };
            let in_order = terms.last().is_none_or(|last| last.number < disk.number);
            let sized = disk.bytes > 0
                && disk.bytes.is_multiple_of(512)
                && disk.bytes <= DISK_BYTES_MAX
                && disk.allocated <= disk.bytes;
            if !in_order || !sized {
                return Err(Malformed(WHAT));
            }
            terms.push(disk);
        }
        Ok(terms)
    }
}

/// Whether the disks of a machine can go along, to a peer that speaks this version.
///
/// # Errors
/// `Unsupported` naming the first that cannot, or the peer's version.
pub(crate) fn check_leaving(devices: &Devices, version: u16) -> Result<(), Refusal> {
    for (_, disk) in devices.local_disks() {
        let (why, remedy) = match disk {
            _ if version < 2 => (
                "belongs to this host, and the other host's release takes no disks along".to_owned(),
                "bring both hosts to the same release, or move the disk to shared storage",
            ),
            disk if disk.is_device() => (
                "is a block device of this host, which does not go along".to_owned(),
                "use an image file, or a device that every host has and that is not marked local",
            ),
            disk if disk.is_readonly() => (
                "belongs to this host and is read-only, so that other VMs may use it; it does not go along"
                    .to_owned(),
                "put the same file on every host and do not mark it local",
            ),
            disk if disk.bytes() > DISK_BYTES_MAX => (
                format!("has {}, too many to go along", Bytes(disk.bytes())),
                "move it to shared storage; up to 16 TiB go along",
            ),
            _ => continue,
        };
        let reason = format!("disk {} {why}", disk.path().display());
        return Err(Refusal::new(RefusalCode::Unsupported, reason, remedy));
    }
    Ok(())
}

/// How many grains a disk has.
fn grains(disk: &Disk) -> u64 {
    disk.bytes().div_ceil(GRAIN_BYTES)
}

/// The host cannot read or write a disk.
fn failed(disk: &Disk, what: &str, error: &std::io::Error) -> Refusal {
    let full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG));
    let (code, remedy) = if full {
        (RefusalCode::CapacityExceeded, "make room there, or choose another host")
    } else {
        (RefusalCode::HostFailure, "check the disk and what it is on")
    };
    Refusal::new(code, format!("cannot {what} disk {}: {error}", disk.path().display()), remedy)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(terms: &[DiskTerms]) -> Vec<u8> {
        let mut to = Encoder::default();
        DiskTerms::encode_all(terms, &mut to);
        to.finish()
    }

    fn decoded(bytes: &[u8]) -> Result<Vec<DiskTerms>, Malformed> {
        DiskTerms::decode_all(&mut Decoder::new(bytes))
    }

    #[test]
    fn only_disks_that_can_be_are_taken() {
        let good = DiskTerms { number: 3, bytes: 1 << 30, allocated: 1 << 20 };
        assert_eq!(decoded(&encoded(&[good])), Ok(vec![good]));
        for bad in [
            DiskTerms { bytes: 0, ..good },
            DiskTerms { bytes: 513, ..good },
            DiskTerms { bytes: DISK_BYTES_MAX + 512, ..good },
            DiskTerms { allocated: good.bytes + 1, ..good },
        ] {
            assert!(decoded(&encoded(&[bad])).is_err(), "{bad:?}");
        }
        assert!(decoded(&encoded(&[good, good])).is_err(), "twice");
        let many: Vec<_> = (0..9).map(|number| DiskTerms { number, ..good }).collect();
        assert!(decoded(&encoded(&many)).is_err());
        assert!(decoded(&encoded(&many[..8])).is_ok());
    }

    proptest! {
        #[test]
        fn hostile_terms_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decoded(&bytes);
        }
    }
}
