//! The destination's side: room, files of the right size, and what arrives in them.
//!
//! A file is empty and then all holes: what nobody sends stays one. Contents are
//! put on the disk as they come ([`SYNC_BYTES`] at a time), so that the end of a
//! round and READY have little to wait for.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ballast_model::{Bytes, Refusal, RefusalCode};

use super::{DATA_BYTES_MAX, DiskTerms, ZERO_BYTES_MAX, failed, grains};
use crate::codec::Malformed;
use crate::devices::Devices;
use crate::devices::block::{Disk, GRAIN_BYTES};
use crate::migration::Trouble;
use crate::migration::filling::AtomicPageSet;
use crate::migration::stream::Stream;

/// So much may be in the host's cache before it is put on the disk.
const SYNC_BYTES: u64 = 64 << 20;

/// The disks of a machine that arrive with it.
#[derive(Debug)]
pub(crate) struct Landing {
    disks: Vec<Arriving>,
    received: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Arriving {
    pub(super) number: u16,
    pub(super) disk: Arc<Disk>,
    /// Grains that are no longer holes.
    pub(super) landed: AtomicPageSet,
    unsynced: AtomicU64,
}

/// Takes what the source proposes: gives the files their sizes.
///
/// # Errors
/// `Incompatible` when the two sides mean different disks, `CapacityExceeded` when there is no
/// room for them, `HostFailure` when a file cannot be made that large.
pub(crate) fn admit(devices: &Devices, proposed: &[DiskTerms]) -> Result<(), Refusal> {
    let here: Vec<u16> = devices.local_disks().map(|(number, _)| number).collect();
    let there: Vec<u16> = proposed.iter().map(|disk| disk.number).collect();
    if here != there {
        return Err(Refusal::new(
            RefusalCode::Incompatible,
            format!("the source sends disks {there:?} along, the destination expects {here:?}"),
            "give both hosts the same VM specification and the same release",
        ));
    }
    check_room(devices, proposed)?;
    for ((_, disk), terms) in devices.local_disks().zip(proposed) {
        disk.set_bytes(terms.bytes).map_err(|error| failed(disk, "give its size to", &error))?;
    }
    Ok(())
}

/// Whether what the disks take on the source fits here, file system by file system.
fn check_room(devices: &Devices, proposed: &[DiskTerms]) -> Result<(), Refusal> {
    let mut wanted: BTreeMap<u64, u64> = BTreeMap::new();
    for ((_, disk), terms) in devices.local_disks().zip(proposed) {
        let look = |error: std::io::Error| failed(disk, "look at the room for", &error);
        let on = disk.file().metadata().map_err(look)?.dev();
        let room = rustix::fs::fstatvfs(disk.file()).map_err(|error| look(error.into()))?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        let wanted = wanted.entry(on).or_default();
        *wanted = wanted.saturating_add(terms.allocated);
        if *wanted > free {
            return Err(Refusal::new(
                RefusalCode::CapacityExceeded,
                format!(
                    "disk {} does not fit: {} are needed where it goes, {} are free",
                    disk.path().display(),
                    Bytes(*wanted),
                    Bytes(free)
                ),
                "make room there, or choose another host",
            ));
        }
    }
    Ok(())
}

impl Landing {
    /// What [`admit`] has admitted, all holes.
    pub(crate) fn new(devices: &Devices) -> Self {
        let disks = devices.local_disks().map(|(number, disk)| Arriving {
            number,
            disk: Arc::clone(disk),
            landed: AtomicPageSet::empty(grains(disk)),
            unsynced: AtomicU64::new(0),
        });
        Self { disks: disks.collect(), received: AtomicU64::new(0) }
    }

    /// Contents that have arrived.
    pub(crate) fn received(&self) -> Bytes {
        Bytes(self.received.load(Ordering::Relaxed))
    }

    pub(super) fn disks(&self) -> &[Arriving] {
        &self.disks
    }

    /// The disk, when these are whole grains of it.
    fn find(&self, number: u16, offset: u64, bytes: u32, max: u32) -> Result<&Arriving, Malformed> {
        const WHAT: &str = "a piece of a disk";
        let arriving = self.disks.iter().find(|arriving| arriving.number == number);
        let arriving = arriving.ok_or(Malformed(WHAT))?;
        let size = arriving.disk.bytes();
        let end = offset.checked_add(bytes.into()).filter(|&end| end <= size);
        let end = end.ok_or(Malformed(WHAT))?;
        let whole =
            offset.is_multiple_of(GRAIN_BYTES) && (end.is_multiple_of(GRAIN_BYTES) || end == size);
        if !whole || bytes == 0 || bytes > max {
            return Err(Malformed(WHAT));
        }
        Ok(arriving)
    }

    /// Contents, which follow the frame.
    pub(crate) fn take_data(
        &self,
        stream: &mut Stream,
        number: u16,
        offset: u64,
        bytes: u32,
    ) -> Result<(), Trouble> {
        let arriving = self.find(number, offset, bytes, DATA_BYTES_MAX)?;
        let data = stream.receive_data(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        Ok(self.write(arriving, offset, data)?)
    }

    /// Contents that follow the frame as `packed` compressed bytes, for a disk by its number, from an
    /// offset on and so many.
    pub(crate) fn take_packed(
        &self,
        stream: &mut Stream,
        (number, offset, bytes): (u16, u64, u32),
        packed: u32,
    ) -> Result<(), Trouble> {
        let arriving = self.find(number, offset, bytes, DATA_BYTES_MAX)?;
        let data = stream.receive_packed_data(packed, bytes)?;
        Ok(self.write(arriving, offset, data)?)
    }

    fn write(&self, arriving: &Arriving, offset: u64, data: &[u8]) -> Result<(), Refusal> {
        let disk = &arriving.disk;
        disk.file().write_all_at(data, offset).map_err(|error| failed(disk, "write", &error))?;
        let bytes = data.len() as u64;
        arriving.landed.insert(offset / GRAIN_BYTES, bytes.div_ceil(GRAIN_BYTES));
        self.received.fetch_add(bytes, Ordering::Relaxed);
        if arriving.unsynced.fetch_add(bytes, Ordering::Relaxed) + bytes >= SYNC_BYTES {
            arriving.sync()?;
        }
        Ok(())
    }

    /// Zeroes: what is a hole already stays one.
    pub(crate) fn take_zeroes(&self, number: u16, offset: u64, bytes: u32) -> Result<(), Trouble> {
        let arriving = self.find(number, offset, bytes, ZERO_BYTES_MAX)?;
        let (first, bytes) = (offset / GRAIN_BYTES, u64::from(bytes));
        let mut landed = false;
        for grain in first..first + bytes.div_ceil(GRAIN_BYTES) {
            landed |= arriving.landed.remove(grain);
        }
        if landed {
            let zeroed = arriving.disk.write_zeroes(offset, bytes, true);
            zeroed.map_err(|error| failed(&arriving.disk, "write", &error))?;
        }
        Ok(())
    }

    /// Returns when everything that has arrived is on the disks for good.
    pub(crate) fn sync(&self) -> Result<(), Refusal> {
        self.disks.iter().try_for_each(Arriving::sync)
    }
}

impl Arriving {
    fn sync(&self) -> Result<(), Refusal> {
        self.unsynced.store(0, Ordering::Relaxed);
        self.disk.flush().map_err(|error| failed(&self.disk, "write", &error))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ballast_model::DiskSpec;

    use super::*;
    use crate::devices::block::Origin;

    const BYTES: u64 = 10 * GRAIN_BYTES + 512;

    /// One disk, number 3, that arrives.
    fn landing() -> (tempfile::TempDir, Landing) {
        let dir = tempfile::tempdir().unwrap();
        let vm = "web-1".parse().unwrap();
        let spec = DiskSpec {
            path: "/disk".into(),
            readonly: false,
            shared: false,
            limit: Default::default(),
        };
        std::fs::File::create(spec.arrival(dir.path(), &vm)).unwrap();
        let disk = Disk::open(&spec, dir.path(), Origin::Arriving(&vm)).unwrap();
        assert_eq!(disk.path(), Path::new(&dir.path().join("disk")));
        disk.set_bytes(BYTES).unwrap();
        let arriving = Arriving {
            number: 3,
            landed: AtomicPageSet::empty(grains(&disk)),
            disk: Arc::new(disk),
            unsynced: AtomicU64::new(0),
        };
        (dir, Landing { disks: vec![arriving], received: AtomicU64::new(0) })
    }

    #[test]
    fn only_whole_grains_of_a_disk_that_arrives_are_taken() {
        let (_dir, landing) = landing();
        let (grain, max) = (u32::try_from(GRAIN_BYTES).unwrap(), DATA_BYTES_MAX);
        for (number, offset, bytes) in [
            (2, 0, grain),
            (3, 1, grain),
            (3, 0, 0),
            (3, 0, grain - 512),
            (3, 10 * GRAIN_BYTES, grain),
            (3, 11 * GRAIN_BYTES, grain),
            (3, u64::MAX - GRAIN_BYTES + 1, grain),
            (3, 0, max + grain),
        ] {
            assert!(landing.find(number, offset, bytes, max).is_err(), "{number} {offset} {bytes}");
        }
        assert!(landing.find(3, 0, 10 * grain + 512, max).is_ok());
        assert!(landing.find(3, 10 * GRAIN_BYTES, 512, max).is_ok());
    }

    #[test]
    fn zeroes_where_nothing_has_landed_leave_the_hole() {
        let (dir, landing) = landing();
        let arriving = &landing.disks[0];
        let blocks = || {
            let path = dir.path().join("disk.web-1.arriving");
            std::fs::metadata(path).unwrap().blocks()
        };
        landing.take_zeroes(3, 0, u32::try_from(BYTES).unwrap()).unwrap();
        assert_eq!(blocks(), 0);
        arriving.disk.file().write_all_at(&[7; 3 * 65_536], GRAIN_BYTES).unwrap();
        arriving.landed.insert(1, 3);
        landing.take_zeroes(3, 2 * GRAIN_BYTES, u32::try_from(GRAIN_BYTES).unwrap()).unwrap();
        let mut data = [1; 3 * 65_536];
        arriving.disk.file().read_exact_at(&mut data, GRAIN_BYTES).unwrap();
        let sums = data.chunks(65_536).map(|grain| grain.iter().map(|b| u64::from(*b)).sum());
        assert_eq!(sums.collect::<Vec<u64>>(), [7 * 65_536, 0, 7 * 65_536]);
        assert!(!arriving.landed.contains(2) && arriving.landed.contains(1));
    }
}
