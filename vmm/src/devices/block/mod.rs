//! virtio-blk: a raw file or block device as the guest's disk (virtio 1.2, 5.2).
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`request`] | what a driver asks, checked; its answer |
//! | [`worker`] | the threads that serve the queue |
//! | [`disk`] | the open file |
//! | [`flush`] | what its flushes may say |
//! | [`lock`] | who may use it |
//! | [`writes`] | which parts of it were written to, while it is copied |
//!
//! One queue. The disk has a volatile write cache (the host's): a driver that
//! does not negotiate FLUSH has every write on the disk before its answer.

mod disk;
mod flush;
mod lock;
mod request;
mod worker;
mod writes;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ballast_model::hardware::RateLimit;
use ballast_model::{DiskSpec, Refusal, RefusalCode, VmId};
use virtio_bindings::virtio_blk as blk;
use virtio_queue::{Queue, QueueState, QueueT};

use super::virtio::{Activation, DeviceKind, VirtioDevice};
use crate::codec::{Decoder, Encoder, Malformed};
pub(crate) use disk::{Disk, Origin};
pub(crate) use writes::{GRAIN_BYTES, Written};

use lock::DiskLock;
use request::{
    DISCARD_SECTORS_MAX, RANGES_MAX, SEGMENT_BYTES_MAX, SEGMENTS_MAX, ZEROES_SECTORS_MAX,
};
use worker::{Service, Workers};

const QUEUE_SIZE: u16 = 256;
const CONFIG_BYTES: usize = 60;
/// The version of what this device saves.
const VERSION: u16 = 1;
/// 4096 bytes, as a power of two of sectors: what hosts' disks and page caches like.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// One disk of the guest.
#[derive(Debug)]
pub(crate) struct Block {
    vm: VmId,
    name: String,
    disk: Arc<Disk>,
    limit: RateLimit,
    lock: Mutex<Option<DiskLock>>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    /// None when the driver left the queue unused.
    workers: Option<Workers>,
    unused: QueueState,
}

impl Block {
    /// Disk number `number` of the VM, not acquired yet.
    ///
    /// # Errors
    /// See [`Disk::open`].
    pub(crate) fn open(
        vm: &VmId,
        number: usize,
        spec: &DiskSpec,
        root: &Path,
        origin: Origin<'_>,
    ) -> Result<Self, Refusal> {
        let disk = Arc::new(Disk::open(spec, root, origin)?);
        Ok(Self {
            vm: vm.clone(),
            name: format!("disk{number}"),
            disk,
            limit: spec.limit,
            lock: Mutex::default(),
            running: Mutex::default(),
        })
    }

    /// What is behind it.
    pub(crate) fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Makes the disk this VM's: nobody else's while it is. Idempotent.
    ///
    /// # Errors
    /// `Conflict` naming who has it.
    pub(crate) fn acquire(&self) -> Result<(), Refusal> {
        let mut held = lock(&self.lock);
        if held.is_none() {
            let disk = &self.disk;
            *held = Some(DiskLock::take(disk, &self.vm)?);
            // It may have been another host's until now; a local one never was.
            if !disk.is_local() {
                disk.forget_cache();
            }
        }
        Ok(())
    }

    /// Gives the disk back, for another host to find all of it. The device rests. Idempotent.
    ///
    /// # Errors
    /// `HostFailure` when what the guest wrote cannot be put on the disk; then it is kept.
    pub(crate) fn release(&self) -> Result<(), Refusal> {
        let mut held = lock(&self.lock);
        if held.is_some() {
            self.flush()?;
            *held = None;
        }
        Ok(())
    }

    /// Puts on the disk what is in the host's cache.
    ///
    /// # Errors
    /// `HostFailure` when the host cannot.
    pub(crate) fn flush(&self) -> Result<(), Refusal> {
        self.disk.flush().map_err(|error| {
            let path = self.disk.path().display();
            Refusal::new(
                RefusalCode::HostFailure,
                format!("what is written to disk {path} does not get there: {error}"),
                "check the disk and what it is on",
            )
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    /// The same on every host: what a host's file system cannot do is done another way.
    fn features(&self) -> u64 {
        let always = [
            blk::VIRTIO_BLK_F_SIZE_MAX,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
            blk::VIRTIO_BLK_F_TOPOLOGY,
            blk::VIRTIO_BLK_F_FLUSH,
        ];
        let writable = [blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES];
        let bits = |bits: &[u32]| bits.iter().fold(0, |all, bit| all | 1 << bit);
        let readonly = self.disk.is_readonly();
        bits(&always) | if readonly { bits(&[blk::VIRTIO_BLK_F_RO]) } else { bits(&writable) }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let config = config(&self.disk);
        let rest = config.get(offset..).unwrap_or_default();
        data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    }

    fn start(&self, mut with: Activation) -> Result<(), Refusal> {
        let defect =
            || Refusal::new(RefusalCode::Internal, "a disk without queue", "report a defect");
        let queue: Queue = with.queues.pop().ok_or_else(defect)?;
        let kick = with.kicks.pop().ok_or_else(defect)?;
        let unused = queue.state();
        let workers = if queue.ready() {
            let service = Service::new(&self.disk, &self.limit, queue, kick, &with)?;
            Some(Workers::start(service, &self.name)?)
        } else {
            None
        };
        *lock(&self.running) = Some(Running { workers, unused });
        Ok(())
    }

    fn stop(&self) -> Vec<QueueState> {
        let Some(running) = lock(&self.running).take() else { return Vec::new() };
        vec![running.workers.map_or(running.unused, Workers::stop)]
    }

    /// Nothing but what tells another disk: what this one holds does not travel.
    fn save(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.u16(VERSION).u64(self.disk.sectors()).u16(self.disk.is_readonly().into());
        to.finish()
    }

    fn load(&self, bytes: &[u8]) -> Result<(), Refusal> {
        let path = self.disk.path().display();
        let (sectors, readonly) = saved(bytes).map_err(|malformed| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("disk {path}: {malformed}"),
                "bring source and destination to the same version",
            )
        })?;
        if (sectors, readonly) == (self.disk.sectors(), self.disk.is_readonly()) {
            return Ok(());
        }
        let words = |readonly| if readonly { "read-only" } else { "writable" };
        Err(Refusal::new(
            RefusalCode::Incompatible,
            format!(
                "disk {path} is {} with {} sectors here, was {} with {sectors} at the source",
                words(self.disk.is_readonly()),
                self.disk.sectors(),
                words(readonly),
            ),
            "let both hosts find the same disk at that path",
        ))
    }
}

fn saved(bytes: &[u8]) -> Result<(u64, bool), Malformed> {
    const WHAT: &str = "the state of a disk";
    let mut from = Decoder::new(bytes);
    if from.u16(WHAT)? != VERSION {
        return Err(Malformed("the version of the state of a disk"));
    }
    let saved = (from.u64(WHAT)?, from.u16(WHAT)? == 1);
    from.finish(WHAT)?;
    Ok(saved)
}

/// `struct virtio_blk_config` up to the erasing of ranges.
fn config(disk: &Disk) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &disk.sectors().to_le_bytes());
    put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &512u32.to_le_bytes());
    put(24, &[PHYSICAL_BLOCK_EXP, 0]);
    put(26, &8u16.to_le_bytes());
    put(34, &1u16.to_le_bytes());
    if !disk.is_readonly() {
        put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
        put(40, &RANGES_MAX.to_le_bytes());
        put(44, &8u32.to_le_bytes());
        put(48, &ZEROES_SECTORS_MAX.to_le_bytes());
        put(52, &RANGES_MAX.to_le_bytes());
        put(56, &[1]);
    }
    config
}

#[cfg(test)]
pub(crate) mod testing {
    //! A disk without threads of its own, for fuzzing.

    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::devices::virtio::Interrupt;
    use crate::memory::GuestRam;

    /// A disk that is served by whoever asks for it.
    #[derive(Debug)]
    pub(crate) struct ServedHere(Service);

    impl ServedHere {
        pub(crate) fn new(spec: &DiskSpec, memory: &GuestRam, queue: Queue, flush: bool) -> Self {
            let disk = Arc::new(Disk::open(spec, Path::new("/"), Origin::Here).unwrap());
            let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
            let with = Activation {
                memory: memory.clone(),
                queues: vec![],
                kicks: vec![],
                interrupt: Interrupt::new(eventfd()),
                features: u64::from(flush) << blk::VIRTIO_BLK_F_FLUSH,
            };
            Self(Service::new(&disk, &RateLimit::default(), queue, eventfd(), &with).unwrap())
        }

        /// Serves what is in the queue, until it is empty or broken.
        pub(crate) fn serve(&self) {
            self.0.serve_here();
        }

        pub(crate) fn queue(&self) -> QueueState {
            self.0.queue()
        }
    }
}
#[cfg(test)]
mod tests;
