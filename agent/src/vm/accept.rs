//! What is accepted when: plain data, no locks, no IO.
//!
//! Each request is judged against where the VM stands. `Act` means do it now,
//! `Done` means it was done before and the answer is the same as then.

use ballast_model::{Epoch, MigrationId, Refusal, RefusalCode, VmId};
use ballast_proto::v1::MigrationVerdict;

/// Where a VM stands on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not here (yet).
    Empty,
    /// Its guest runs here.
    Running,
    /// It runs here and is being sent away.
    Outgoing(MigrationId),
    /// It is being filled, and is not this host's.
    Incoming(MigrationId),
    /// Its guest or its machine ended.
    Stopped,
}

/// A phase with the epoch under which the VM is here.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// The VM.
    pub vm: &'a VmId,
    /// Where it stands.
    pub phase: Phase,
    /// Under which epoch; while incoming, the source's.
    pub epoch: Epoch,
}

/// What to do with a request that is not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// Do it.
    Act,
    /// It is done.
    Done,
}

impl Standing<'_> {
    /// Start the VM under `epoch`.
    ///
    /// # Errors
    /// `StaleEpoch`, `AlreadyExists` or `WrongState`.
    pub fn create(&self, epoch: Epoch, same_spec: bool) -> Result<Accept, Refusal> {
        let vm = self.vm;
        match self.phase {
            Phase::Empty => Ok(Accept::Act),
            _ if epoch < self.epoch => Err(self.stale(epoch)),
            Phase::Running | Phase::Outgoing(_) if epoch == self.epoch && same_spec => {
                Ok(Accept::Done)
            }
            Phase::Running | Phase::Outgoing(_) => Err(Refusal::new(
                RefusalCode::AlreadyExists,
                format!(
                    "VM {vm} runs here under epoch {} or with another specification",
                    self.epoch
                ),
                "destroy it first, or use another name",
            )),
            Phase::Incoming(migration) => Err(Refusal::new(
                RefusalCode::WrongState,
                format!("VM {vm} is about to come here by migration {migration}"),
                "wait for the migration or cancel it",
            )),
            Phase::Stopped => Err(Refusal::new(
                RefusalCode::WrongState,
                format!("VM {vm} was here under epoch {} and has stopped", self.epoch),
                "destroy it, then create it again",
            )),
        }
    }

    /// Get ready to be filled by `migration` from a source that owns the VM under `source_epoch`.
    /// `ended`: this host has said how that migration ended here, and somebody may act on it.
    ///
    /// # Errors
    /// `StaleEpoch` or `WrongState`.
    pub fn prepare(
        &self,
        migration: MigrationId,
        source_epoch: Epoch,
        ended: bool,
    ) -> Result<Accept, Refusal> {
        let vm = self.vm;
        match self.phase {
            Phase::Empty if ended => Err(Refusal::new(
                RefusalCode::WrongState,
                format!("migration {migration} of VM {vm} has ended here"),
                "begin another migration",
            )),
            Phase::Empty => Ok(Accept::Act),
            Phase::Incoming(present) if present == migration => Ok(Accept::Done),
            Phase::Incoming(present) => Err(Refusal::new(
                RefusalCode::WrongState,
                format!("VM {vm} is about to come here by migration {present}"),
                "resolve that migration first",
            )),
            _ if self.epoch >= source_epoch => Err(self.stale(source_epoch)),
            _ => Err(Refusal::new(
                RefusalCode::WrongState,
                format!("VM {vm} is here already, under epoch {}", self.epoch),
                "destroy what is left of it here first",
            )),
        }
    }

    /// Begin to send.
    ///
    /// # Errors
    /// `StaleEpoch`, `Conflict`, `NotFound` or `WrongState`.
    pub fn start(&self, migration: MigrationId, source_epoch: Epoch) -> Result<Accept, Refusal> {
        let vm = self.vm;
        match self.phase {
            Phase::Empty => Err(not_found(vm)),
            _ if source_epoch < self.epoch => Err(self.stale(source_epoch)),
            _ if source_epoch > self.epoch => Err(Refusal::new(
                RefusalCode::Conflict,
                format!("VM {vm} is here under epoch {}, not {source_epoch}", self.epoch),
                "look at the owner record again",
            )),
            Phase::Running => Ok(Accept::Act),
            Phase::Outgoing(present) if present == migration => Ok(Accept::Done),
            Phase::Outgoing(present) | Phase::Incoming(present) => Err(Refusal::new(
                RefusalCode::WrongState,
                format!("VM {vm} takes part in migration {present}"),
                "wait for that migration or cancel it",
            )),
            Phase::Stopped => Err(Refusal::new(
                RefusalCode::WrongState,
                format!("VM {vm} has stopped"),
                "start it before it can move",
            )),
        }
    }

    /// End the VM.
    ///
    /// # Errors
    /// `StaleEpoch`.
    pub fn destroy(&self, epoch: Epoch) -> Result<Accept, Refusal> {
        match self.phase {
            Phase::Empty => Ok(Accept::Done),
            _ if epoch < self.epoch => Err(self.stale(epoch)),
            _ => Ok(Accept::Act),
        }
    }

    /// What the owner record says of `migration`. An abort need not name an epoch (0).
    ///
    /// # Errors
    /// `InvalidArgument`, `StaleEpoch`, `NotFound` or `WrongState`.
    pub fn resolve(
        &self,
        migration: MigrationId,
        verdict: MigrationVerdict,
        epoch: Epoch,
    ) -> Result<Accept, Refusal> {
        let vm = self.vm;
        match (verdict, self.phase) {
            (MigrationVerdict::Abort, Phase::Incoming(present) | Phase::Outgoing(present))
                if present == migration =>
            {
                let stale = epoch != Epoch(0) && epoch < self.epoch;
                if stale { Err(self.stale(epoch)) } else { Ok(Accept::Act) }
            }
            (MigrationVerdict::Abort, phase) => {
                let stale = phase != Phase::Empty && epoch != Epoch(0) && epoch < self.epoch;
                if stale { Err(self.stale(epoch)) } else { Ok(Accept::Done) }
            }
            (MigrationVerdict::Superseded, Phase::Empty) => Ok(Accept::Done),
            (MigrationVerdict::Superseded, Phase::Incoming(present)) => Err(Refusal::new(
                RefusalCode::WrongState,
                format!("VM {vm} is on the receiving side of migration {present} here"),
                "send COMMIT or ABORT to the destination",
            )),
            (MigrationVerdict::Superseded, _) if epoch <= self.epoch => Err(self.stale(epoch)),
            (MigrationVerdict::Superseded, _) => Ok(Accept::Act),
            (MigrationVerdict::Commit, Phase::Empty) => Err(not_found(vm)),
            (MigrationVerdict::Commit, Phase::Incoming(present)) if present == migration => {
                if epoch <= self.epoch { Err(self.stale(epoch)) } else { Ok(Accept::Act) }
            }
            (MigrationVerdict::Commit, Phase::Running) if epoch == self.epoch => Ok(Accept::Done),
            (MigrationVerdict::Commit, _) if epoch < self.epoch => Err(self.stale(epoch)),
            (MigrationVerdict::Commit, _) => Err(Refusal::new(
                RefusalCode::WrongState,
                format!("VM {vm} does not come here by migration {migration}"),
                "look at both hosts and at the owner record",
            )),
            (MigrationVerdict::Pending | MigrationVerdict::Unspecified, _) => Err(Refusal::new(
                RefusalCode::InvalidArgument,
                "field verdict: decides nothing",
                "send COMMIT, SUPERSEDED or ABORT",
            )),
        }
    }

    fn stale(&self, asked: Epoch) -> Refusal {
        let Self { vm, epoch, .. } = self;
        let reason = if asked == *epoch {
            format!(
                "VM {vm} is here under epoch {epoch} already; the request needs a later one to change that"
            )
        } else {
            format!("VM {vm} is here under epoch {epoch}, the request names the older {asked}")
        };
        Refusal::new(RefusalCode::StaleEpoch, reason, "read the owner record again")
    }
}

/// There is no such VM on this host.
pub fn not_found(vm: &VmId) -> Refusal {
    Refusal::new(
        RefusalCode::NotFound,
        format!("VM {vm} is not on this host"),
        "look up its host in the owner record",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> MigrationId {
        format!("{:032x}", n).parse().unwrap()
    }

    fn check(
        phase: Phase,
        judge: impl Fn(Standing<'_>) -> Result<Accept, Refusal>,
        expected: Result<Accept, RefusalCode>,
    ) {
        let vm = "web-1".parse().unwrap();
        let found = judge(Standing { vm: &vm, phase, epoch: Epoch(5) });
        assert_eq!(found.map_err(|refusal| refusal.code), expected, "in {phase:?}");
    }

    use Accept::{Act, Done};
    use RefusalCode::{AlreadyExists, Conflict, InvalidArgument, NotFound, StaleEpoch, WrongState};

    #[test]
    fn create() {
        check(Phase::Empty, |s| s.create(Epoch(1), false), Ok(Act));
        check(Phase::Running, |s| s.create(Epoch(5), true), Ok(Done));
        check(Phase::Outgoing(id(1)), |s| s.create(Epoch(5), true), Ok(Done));
        check(Phase::Running, |s| s.create(Epoch(5), false), Err(AlreadyExists));
        check(Phase::Running, |s| s.create(Epoch(6), true), Err(AlreadyExists));
        check(Phase::Running, |s| s.create(Epoch(4), true), Err(StaleEpoch));
        check(Phase::Incoming(id(1)), |s| s.create(Epoch(5), true), Err(WrongState));
        check(Phase::Stopped, |s| s.create(Epoch(5), true), Err(WrongState));
    }

    #[test]
    fn prepare() {
        check(Phase::Empty, |s| s.prepare(id(1), Epoch(1), false), Ok(Act));
        check(Phase::Empty, |s| s.prepare(id(1), Epoch(1), true), Err(WrongState));
        check(Phase::Incoming(id(1)), |s| s.prepare(id(1), Epoch(5), false), Ok(Done));
        check(Phase::Incoming(id(2)), |s| s.prepare(id(1), Epoch(5), false), Err(WrongState));
        check(Phase::Running, |s| s.prepare(id(1), Epoch(5), false), Err(StaleEpoch));
        check(Phase::Stopped, |s| s.prepare(id(1), Epoch(6), false), Err(WrongState));
    }

    #[test]
    fn start() {
        check(Phase::Empty, |s| s.start(id(1), Epoch(5)), Err(NotFound));
        check(Phase::Running, |s| s.start(id(1), Epoch(5)), Ok(Act));
        check(Phase::Running, |s| s.start(id(1), Epoch(4)), Err(StaleEpoch));
        check(Phase::Running, |s| s.start(id(1), Epoch(6)), Err(Conflict));
        check(Phase::Outgoing(id(1)), |s| s.start(id(1), Epoch(5)), Ok(Done));
        check(Phase::Outgoing(id(2)), |s| s.start(id(1), Epoch(5)), Err(WrongState));
        check(Phase::Stopped, |s| s.start(id(1), Epoch(5)), Err(WrongState));
    }

    #[test]
    fn destroy() {
        check(Phase::Empty, |s| s.destroy(Epoch(1)), Ok(Done));
        check(Phase::Running, |s| s.destroy(Epoch(5)), Ok(Act));
        check(Phase::Stopped, |s| s.destroy(Epoch(6)), Ok(Act));
        check(Phase::Running, |s| s.destroy(Epoch(4)), Err(StaleEpoch));
    }

    #[test]
    fn resolve() {
        use MigrationVerdict::{Abort, Commit, Pending, Superseded};
        let one = id(1);
        check(Phase::Empty, |s| s.resolve(one, Abort, Epoch(5)), Ok(Done));
        check(Phase::Incoming(one), |s| s.resolve(one, Abort, Epoch(0)), Ok(Act));
        check(Phase::Outgoing(one), |s| s.resolve(one, Abort, Epoch(5)), Ok(Act));
        check(Phase::Outgoing(one), |s| s.resolve(one, Abort, Epoch(4)), Err(StaleEpoch));
        check(Phase::Outgoing(id(2)), |s| s.resolve(one, Abort, Epoch(5)), Ok(Done));
        check(Phase::Running, |s| s.resolve(one, Abort, Epoch(4)), Err(StaleEpoch));
        check(Phase::Outgoing(one), |s| s.resolve(one, Superseded, Epoch(6)), Ok(Act));
        check(Phase::Running, |s| s.resolve(one, Superseded, Epoch(6)), Ok(Act));
        check(Phase::Running, |s| s.resolve(one, Superseded, Epoch(5)), Err(StaleEpoch));
        check(Phase::Incoming(one), |s| s.resolve(one, Superseded, Epoch(6)), Err(WrongState));
        check(Phase::Empty, |s| s.resolve(one, Superseded, Epoch(6)), Ok(Done));
        check(Phase::Incoming(one), |s| s.resolve(one, Commit, Epoch(6)), Ok(Act));
        check(Phase::Incoming(one), |s| s.resolve(one, Commit, Epoch(5)), Err(StaleEpoch));
        check(Phase::Incoming(id(2)), |s| s.resolve(one, Commit, Epoch(6)), Err(WrongState));
        check(Phase::Running, |s| s.resolve(one, Commit, Epoch(5)), Ok(Done));
        check(Phase::Empty, |s| s.resolve(one, Commit, Epoch(6)), Err(NotFound));
        check(Phase::Running, |s| s.resolve(one, Pending, Epoch(5)), Err(InvalidArgument));
    }
}
