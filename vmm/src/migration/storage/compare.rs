//! Verify mode for disks: what the destination has equals what the source has, grain by grain.
//!
//! As for memory, after the last pass: the source reads its disks again and
//! sends the xxh3 of every grain, the destination compares with what it reads.
//! What is a hole need not be read on either side: its hash is that of zeroes.

use std::os::unix::fs::FileExt;

use ballast_model::{Refusal, RefusalCode};
use xxhash_rust::xxh3::xxh3_64;

use super::landing::{Arriving, Landing};
use super::mirror::{Mirror, data};
use super::{GRAIN, HASHES_MAX, ZEROES, failed, grains};
use crate::codec::Malformed;
use crate::devices::block::{Disk, GRAIN_BYTES};
use crate::migration::Trouble;
use crate::migration::framing::Frame;
use crate::migration::sender::Sender;

/// Sends the hashes of all disks that go along. The guest is paused.
pub(crate) fn send_hashes(mirror: &Mirror, sender: &mut Sender<'_>) -> Result<(), Trouble> {
    let mut buffer = vec![0; GRAIN];
    for (number, disk) in mirror.disks() {
        let data = data(disk).map_err(|error| failed(disk, "find the data of", &error))?;
        let mut filled = data.iter(0..grains(disk)).peekable();
        for first in (0..grains(disk)).step_by(HASHES_MAX) {
            let last = (first + HASHES_MAX as u64).min(grains(disk));
            let mut hashes = Vec::with_capacity(HASHES_MAX);
            for grain in first..last {
                let hole = filled.next_if_eq(&grain).is_none();
                hashes.push(if hole {
                    hash_of_hole(disk, grain)
                } else {
                    hash(disk, grain, &mut buffer)?
                });
            }
            sender.send(&Frame::DiskHashes { disk: number, first, hashes })?;
        }
    }
    Ok(())
}

/// Where a grain ends and how long it is: the last one may be short.
fn length(disk: &Disk, grain: u64) -> usize {
    let rest = disk.bytes().saturating_sub(grain * GRAIN_BYTES);
    usize::try_from(rest).unwrap_or(usize::MAX).min(GRAIN)
}

fn hash_of_hole(disk: &Disk, grain: u64) -> u64 {
    xxh3_64(&ZEROES[..length(disk, grain)])
}

fn hash(disk: &Disk, grain: u64, buffer: &mut [u8]) -> Result<u64, Refusal> {
    let piece = &mut buffer[..length(disk, grain)];
    disk.file()
        .read_exact_at(piece, grain * GRAIN_BYTES)
        .map_err(|error| failed(disk, "read", &error))?;
    Ok(xxh3_64(piece))
}

/// The destination's comparison: every grain of every disk once, in order.
#[derive(Debug, Default)]
pub(crate) struct DiskComparison {
    /// How many disks have been compared to their ends.
    disks: usize,
    next: u64,
    different: u64,
    first_different: Option<(u16, u64)>,
}

impl DiskComparison {
    /// Compares the grains of disk `number` from `first` on.
    ///
    /// # Errors
    /// When grains are left out, repeated or do not exist; when a disk cannot be read.
    pub(crate) fn compare(
        &mut self,
        landing: &Landing,
        number: u16,
        first: u64,
        hashes: &[u64],
    ) -> Result<(), Trouble> {
        let disks = landing.disks();
        let arriving = disks.get(self.disks).filter(|arriving| arriving.number == number);
        let in_order = |arriving: &&Arriving| {
            let rest = grains(&arriving.disk).saturating_sub(first);
            first == self.next && !hashes.is_empty() && hashes.len() as u64 <= rest
        };
        let arriving = arriving.filter(in_order).ok_or(Malformed("the order of disk hashes"))?;
        let mut buffer = vec![0; GRAIN];
        for &there in hashes {
            let here = if arriving.landed.contains(self.next) {
                hash(&arriving.disk, self.next, &mut buffer)?
            } else {
                hash_of_hole(&arriving.disk, self.next)
            };
            if here != there {
                self.different += 1;
                self.first_different.get_or_insert((number, self.next));
            }
            self.next += 1;
        }
        if self.next == grains(&arriving.disk) {
            (self.disks, self.next) = (self.disks + 1, 0);
        }
        Ok(())
    }

    /// The outcome over all disks.
    pub(crate) fn finish(&self, landing: &Landing) -> Result<(), Refusal> {
        let reason = match self.first_different {
            Some((disk, grain)) => format!(
                "{} pieces of disks differ from the source's, the first is at byte {} of disk {disk}",
                self.different,
                grain * GRAIN_BYTES
            ),
            None if self.disks != landing.disks().len() => {
                format!("hashes of only {} of {} disks came", self.disks, landing.disks().len())
            }
            None => return Ok(()),
        };
        Err(Refusal::new(
            RefusalCode::Internal,
            reason,
            "the VM goes on at the source; check both hosts' disks and report a defect",
        ))
    }
}
