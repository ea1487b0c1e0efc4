//! What a migration's record and the owner record allow: plain data, no IO.
//!
//! Everything that can hand a VM over, give it back, or tell a host to run or
//! to discard it is decided here, of values read before. What is decided is
//! then written with a comparison of what was read; the check of the protocol
//! (`tests/protocol`) explores these very functions.

use ballast_model::{
    Epoch, HostId, Migration, MigrationOutcome, MigrationPhase, Owner, Refusal, RefusalCode, VmSpec,
};
use ballast_proto::v1::MigrationVerdict;

use super::commit::CommitAsked;

/// What a question to commit comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// It was granted before, under this epoch.
    Granted(Epoch),
    /// It may be granted: by writing this owner and `Committed` in one transaction.
    HandOver(Owner),
}

/// What the destination says after the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Why its copy is gone and certainly never ran, if it is.
    pub never_ran: Option<String>,
    /// The epoch of the VM there, and what its guest does; none when it is not there.
    pub vm: Option<(Epoch, Guest)>,
}

/// What a guest does on its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// It has not begun.
    Waits,
    /// It runs, and a part of its memory is still at the source alone (post-copy).
    Fetches,
    /// It runs, or ran and ended.
    Runs,
    /// It ran, and its process ended while a part of its memory was still at the source alone.
    Died,
}

/// What became of a VM after its commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// It runs on the destination, or ran there.
    Runs,
    /// It runs there and needs the source until all of its memory is there.
    Fetches,
    /// It ran there, and is lost: no host has all of its memory.
    Lost,
    /// The destination's copy is gone and never ran: it is to be given back.
    NeverRan(String),
    /// It stands still there: the destination is to be told (again) to run it.
    Waits,
    /// Neither can be said.
    Unknown,
}

/// Judges a destination's question to commit. Only an error makes a destination discard its copy.
///
/// # Errors
/// `InvalidArgument`, `WrongState` or `StaleEpoch`: it must.
pub fn commit(
    migration: &Migration,
    owner: &Owner,
    asked: &CommitAsked,
) -> Result<Commit, Refusal> {
    let id = migration.id;
    let refuse = |code, reason| Err(Refusal::new(code, reason, "discard the copy"));
    let matches = migration.vm == asked.vm
        && migration.to == asked.host
        && migration.source_epoch == asked.source_epoch;
    if !matches {
        return refuse(
            RefusalCode::InvalidArgument,
            format!("migration {id} is another than host {} asks for", asked.host),
        );
    }
    // Whatever the migration's end was called: who owns the VM under the epoch of this commit
    // holds the only copy.
    if owner.host == asked.host && owner.epoch == migration.source_epoch.next() {
        return Ok(Commit::Granted(owner.epoch));
    }
    if !matches!(migration.phase, MigrationPhase::Transferring { .. }) {
        return refuse(
            RefusalCode::WrongState,
            format!("migration {id} is {} and can no longer commit", migration.phase),
        );
    }
    if owner.host != migration.from || owner.epoch != migration.source_epoch {
        return refuse(
            RefusalCode::StaleEpoch,
            format!(
                "VM {} belongs to host {} at {}, no longer to {} at {}",
                migration.vm, owner.host, owner.epoch, migration.from, migration.source_epoch
            ),
        );
    }
    Ok(Commit::HandOver(owner.handed_to(migration.to.clone())))
}

/// What the records say to a `host` that asks about a migration.
pub fn verdict(
    migration: Option<&Migration>,
    owner: Option<&Owner>,
    host: &HostId,
) -> (MigrationVerdict, Epoch) {
    let Some(migration) = migration else { return owner_says(owner, host) };
    let granted = migration.source_epoch.next();
    match migration.phase {
        MigrationPhase::Preparing | MigrationPhase::Transferring { .. } => {
            (MigrationVerdict::Pending, migration.source_epoch)
        }
        MigrationPhase::Committed { .. }
        | MigrationPhase::Ended { outcome: MigrationOutcome::Completed }
            if *host == migration.to =>
        {
            (MigrationVerdict::Commit, granted)
        }
        // The source keeps its copy until the VM is seen running: it may have to be given back.
        MigrationPhase::Committed { .. } => (MigrationVerdict::Pending, migration.source_epoch),
        MigrationPhase::Ended { outcome: MigrationOutcome::Completed } => {
            (MigrationVerdict::Superseded, granted)
        }
        MigrationPhase::Aborting { .. } => match owner {
            Some(owner) => (MigrationVerdict::Abort, owner.epoch),
            None => (MigrationVerdict::Pending, migration.source_epoch),
        },
        // It may have failed before the commit or after it: the owner record knows.
        MigrationPhase::Ended { .. } => owner_says(owner, host),
    }
}

fn owner_says(owner: Option<&Owner>, host: &HostId) -> (MigrationVerdict, Epoch) {
    match owner {
        // To the source: go on.
        Some(owner) if owner.host == *host => (MigrationVerdict::Abort, owner.epoch),
        Some(owner) => (MigrationVerdict::Superseded, owner.epoch),
        None => (MigrationVerdict::Superseded, Epoch(0)),
    }
}

/// What becomes of a committed VM whose destination is gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// The source's copy goes on.
    GiveBack,
    /// It is lost with the host; the source discards its copy.
    Lost,
}

/// Judges an operator's word that `fenced` will never again run the VM; `answers` is whether its
/// agent does.
///
/// # Errors
/// `WrongState` when nothing is to be settled, the host is alive, or the source's memory is older
/// than a disk; `InvalidArgument` when another host is the destination.
pub fn settle(
    migration: &Migration,
    spec: &VmSpec,
    fenced: &HostId,
    answers: bool,
    settlement: Settlement,
) -> Result<(), Refusal> {
    let (id, vm, to) = (migration.id, &migration.vm, &migration.to);
    let wrong = |reason, remedy: &str| Err(Refusal::new(RefusalCode::WrongState, reason, remedy));
    if !matches!(migration.phase, MigrationPhase::Committed { .. }) {
        return wrong(
            format!("migration {id} is {}: there is nothing to settle", migration.phase),
            "settle only what stays committed because its destination is gone",
        );
    }
    if fenced != to {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("migration {id} goes to host {to}, not to {fenced}"),
            "fence the destination, then say its name",
        ));
    }
    if answers {
        return wrong(
            format!("host {to} is not fenced: its agent answers"),
            "let the migration end by itself, or switch the host off first",
        );
    }
    let written = spec.disks.iter().find(|disk| !disk.readonly && disk.shared);
    if let Some(disk) = written.filter(|_| settlement == Settlement::GiveBack) {
        return wrong(
            format!(
                "VM {vm} may have written to {} on host {to}, of which its memory on host {} knows nothing",
                disk.path.display(),
                migration.from
            ),
            "declare it lost, then start it again from its disks",
        );
    }
    Ok(())
}

/// Judges what the destination says while the migration is committed under `epoch`.
pub fn arrival(said: Destination, epoch: Epoch) -> Arrival {
    match said {
        Destination { never_ran: Some(why), .. } => Arrival::NeverRan(why),
        Destination { vm: Some((found, Guest::Runs)), .. } if found == epoch => Arrival::Runs,
        Destination { vm: Some((found, Guest::Fetches)), .. } if found == epoch => Arrival::Fetches,
        Destination { vm: Some((found, Guest::Died)), .. } if found == epoch => Arrival::Lost,
        Destination { vm: Some(_), .. } => Arrival::Waits,
        Destination { vm: None, .. } => Arrival::Unknown,
    }
}
