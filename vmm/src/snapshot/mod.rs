//! A VM in a file: everything of it but the contents of its disks.
//!
//! ```text
//!   guest runs:   all pages ──▶ pages written meanwhile ──▶ …   (as in pre-copy, at most ROUNDS_MAX times)
//!   guest paused: the last pages ─▶ state ─▶ disks as they are ─▶ end
//! ```
//!
//! A page may stand in the file several times; the last one counts. The file
//! gets its name only when all of it is on the disk: a snapshot that has its
//! name is whole.
//!
//! Disks stay where they are, so a snapshot of a VM that writes to a disk is
//! worth something only as long as the disk does not change: such a VM is
//! stopped by its snapshot ([`After::Stop`]), and a restore is refused once one
//! of its disks was written to.
//!
//! A restored guest goes on at the very instruction it was paused at. Its clock
//! goes on where it stood, as after a suspend: how long the file lay there is
//! nothing a kernel's watchdogs should hear of at once.

mod disks;
mod file;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ballast_model::{Bytes, Refusal, RefusalCode, VmSpec};

use crate::devices::Beginning;
use crate::machine::{Machine, Surroundings};
use crate::migration::dirty::{DirtyLog, PageSet};
use crate::migration::negotiation::Proposal;
use crate::state::MachineState;
use disks::Fingerprint;
use file::{Header, Reader, Writer};

/// Passes over the pages written since the pass before, while the guest runs.
const ROUNDS_MAX: u32 = 3;
/// So little is written while the guest is paused.
const REST_MAX: Bytes = Bytes::mib(16);
/// Pages whose log is reset at a time; a multiple of 64.
const CHUNK_PAGES: u64 = 16 << 10;

/// What becomes of the guest once its snapshot is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// It goes on.
    GoOn,
    /// It stays paused, for good.
    Stop,
}

/// What a snapshot came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Saved {
    /// The file's size.
    pub(crate) bytes: Bytes,
    /// How long the guest stood still.
    pub(crate) paused: Duration,
}

/// Writes the VM to `path`. Whatever goes wrong, the guest goes on.
///
/// # Errors
/// `WrongState` for a VM that has to be stopped by its snapshot and is not to be,
/// `AlreadyExists` for a file that is there, `HostFailure` for one that cannot be written.
pub(crate) fn save(
    machine: &Machine,
    spec: &VmSpec,
    disk_root: &Path,
    path: &Path,
    after: After,
) -> Result<Saved, Refusal> {
    if after == After::GoOn && spec.disks.iter().any(|disk| !disk.readonly) {
        return Err(Refusal::new(
            RefusalCode::WrongState,
            format!("VM {} writes to a disk, which its snapshot would not hold", spec.id),
            "stop it with its snapshot ('ballast vm snapshot --stop')",
        ));
    }
    let header = Header {
        taken_unix_millis: unix_millis(),
        spec: spec.clone(),
        machine: Proposal::of(machine, false, 1),
    };
    let ran = machine.vcpus.is_running();
    let mut writer = Writer::create(path, &header)?;
    let mut paused = Instant::now();
    let written = write(machine, &mut writer, &mut paused)
        .and_then(|()| writer.disks(&Fingerprint::of(&spec.disks, disk_root)?))
        .and_then(|()| writer.finish());
    if ran && (written.is_err() || after == After::GoOn) {
        machine.resume()?;
    }
    Ok(Saved { bytes: written?, paused: paused.elapsed() })
}

fn write(machine: &Machine, writer: &mut Writer, paused: &mut Instant) -> Result<(), Refusal> {
    let mut set = PageSet::full(machine.memory.layout().pages());
    // Pages that are not zero are in the file already: only for them a zero is news.
    let mut told = PageSet::empty(machine.memory.layout().pages());
    let log = DirtyLog::start(machine)?;
    for _ in 0..ROUNDS_MAX {
        write_pages(machine, &set, &mut told, writer, Some(&log))?;
        set = log.collect()?;
        if set.bytes() <= REST_MAX {
            break;
        }
    }
    *paused = Instant::now();
    machine.pause()?;
    if let Some(why) = machine.vcpus.ended() {
        return Err(Refusal::new(
            RefusalCode::WrongState,
            format!("the guest ended while its snapshot was taken: {why}"),
            "start the VM again",
        ));
    }
    // The state first: reading it may make KVM write to guest memory.
    let state = machine.save()?.encode();
    set = log.collect()?;
    write_pages(machine, &set, &mut told, writer, None)?;
    writer.state(&state)?;
    machine.devices.flush_disks()
}

fn write_pages(
    machine: &Machine,
    set: &PageSet,
    told: &mut PageSet,
    writer: &mut Writer,
    log: Option<&DirtyLog<'_>>,
) -> Result<(), Refusal> {
    let pages = machine.memory.layout().pages();
    let mut start = 0;
    while start < pages {
        let range = start..(start + CHUNK_PAGES).min(pages);
        start = range.end;
        if let Some(log) = log {
            log.protect(set, range.clone())?;
        }
        for page in set.iter(range) {
            if machine.memory.is_zero(page) {
                if told.remove(page) {
                    writer.zero(page)?;
                }
            } else {
                told.insert(page);
                writer.page(&machine.memory, page)?;
            }
        }
    }
    writer.flush_run()
}

/// Which VM a snapshot file is of and when it was taken, as JSON: `spec` and `taken_unix_millis`.
/// The file is not read to its end.
///
/// # Errors
/// `NotFound`, `HostFailure` or `InvalidArgument`, naming the file.
pub(crate) fn describe(path: &Path) -> Result<String, Refusal> {
    let (_, header) = Reader::open(path)?;
    header.head_json()
}

/// Builds the machine that `path` holds, paused and about to go on.
///
/// # Errors
/// Those of [`describe`]; `Conflict` when `spec` is not the VM of the file or a disk was
/// written to meanwhile; `Incompatible` when this host cannot go on with it; those of [`Machine::empty`].
pub(crate) fn restore(
    spec: &VmSpec,
    path: &Path,
    around: &Surroundings,
) -> Result<Machine, Refusal> {
    let (mut reader, header) = Reader::open(path)?;
    same_machine(spec, &header.spec, path)?;
    let machine = Machine::empty(spec, Beginning::Restore, around)?;
    header.machine.check(&Proposal::of(&machine, false, 1)).map_err(|refusal| {
        let reason = format!(
            "{} (the source is the host the snapshot {} was taken on)",
            refusal.reason,
            path.display()
        );
        Refusal::new(refusal.code, reason, refusal.remedy)
    })?;
    let contents = reader.contents(&machine.memory)?;
    machine.devices.acquire_disks()?;
    Fingerprint::check(&contents.disks, &spec.disks, &around.disk_root)?;
    let mut state = MachineState::decode(&contents.state)
        .map_err(|malformed| reader.damaged(&malformed.to_string()))?;
    machine.load(&state)?;
    state.go_on_now();
    state.start_time(&machine)?;
    Ok(machine)
}

/// Policies and labels may differ; what the guest sees must not.
fn same_machine(spec: &VmSpec, taken: &VmSpec, path: &Path) -> Result<(), Refusal> {
    let hardware = |spec: &VmSpec| {
        (
            spec.id.clone(),
            spec.vcpus,
            spec.memory,
            spec.cpu,
            spec.disks.iter().map(|disk| (disk.path.clone(), disk.readonly)).collect::<Vec<_>>(),
            spec.networks.iter().map(|network| network.mac).collect::<Vec<_>>(),
        )
    };
    if hardware(spec) == hardware(taken) {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::Conflict,
        format!(
            "snapshot {} is of another VM or of another shape of VM {}",
            path.display(),
            spec.id
        ),
        "restore it under its own name and with its own vCPUs, memory, disks and networks",
    ))
}

/// The file while it is being written.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
