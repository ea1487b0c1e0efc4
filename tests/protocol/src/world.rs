//! A world with one VM, two hosts, a store and a controller, as a value.
//!
//! What is delayed or lost on the way is part of it: messages stay in
//! [`World::network`] and may be delivered at any time, any number of times, or
//! never; transactions on their way to the store arrive once, late, or never.

use std::collections::BTreeSet;

use ballast_agent::vm::accept::Phase;
use ballast_model::migration::Progress;
use ballast_model::{
    Epoch, HostId, Migration, MigrationId, MigrationOutcome, MigrationPhase, Owner, ReasonTrail,
    Timestamp, VmId,
};
use ballast_proto::v1::{MigrationRole, MigrationState, MigrationVerdict, VmState};
use uuid::Uuid;

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Where the VM runs at first.
    A,
    /// The other one.
    B,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// Not this one.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    pub(crate) fn host(self) -> HostId {
        let name = match self {
            Self::A => "a",
            Self::B => "b",
        };
        name.parse().unwrap_or_else(|_| unreachable!("a valid name"))
    }
}

/// Which migration of the VM: the first is 1.
pub type Attempt = u8;

pub(crate) fn id(attempt: Attempt) -> MigrationId {
    MigrationId::new(Uuid::from_u128(attempt.into()))
}

pub(crate) fn attempt(id: MigrationId) -> Attempt {
    (1..=Attempt::MAX).find(|n| self::id(*n) == id).unwrap_or_default()
}

pub(crate) fn vm() -> VmId {
    "vm".parse().unwrap_or_else(|_| unreachable!("a valid name"))
}

/// The phase of a migration's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // the names of `MigrationPhase` and `MigrationOutcome`
pub enum Stage {
    Preparing,
    Transferring,
    Committed,
    Aborting,
    Completed,
    Failed,
}

impl Stage {
    /// Whether nothing is left to do.
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

/// The record of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Record {
    /// Which.
    pub attempt: Attempt,
    /// Its source.
    pub from: Side,
    /// The source's epoch.
    pub source_epoch: u64,
    /// Where it stands.
    pub stage: Stage,
    /// Grows with every write.
    pub revision: u8,
}

/// The store: the owner record, the migration's record, and who leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Store {
    /// Whose transactions are accepted.
    pub leader: u8,
    /// Who may run the VM.
    pub owner: Side,
    /// Under which epoch.
    pub epoch: u64,
    /// Its migrations, the last one last.
    pub records: Vec<Record>,
}

impl Store {
    /// The owner record as the controller reads it.
    pub fn owner(&self) -> Owner {
        Owner { vm: vm(), host: self.owner.host(), epoch: Epoch(self.epoch) }
    }

    /// The record of a migration.
    pub fn record(&self, attempt: Attempt) -> Option<Record> {
        self.records.iter().copied().find(|record| record.attempt == attempt)
    }

    /// The record of the migration that has not ended.
    pub fn open(&self) -> Option<Record> {
        self.records.iter().copied().find(|record| !record.stage.is_ended())
    }

    /// The record of a migration as the controller reads it.
    pub fn migration(&self, attempt: Attempt) -> Option<Migration> {
        let record = self.record(attempt)?;
        let why = String::new;
        let phase = match record.stage {
            Stage::Preparing => MigrationPhase::Preparing,
            Stage::Transferring => MigrationPhase::Transferring { address: String::new() },
            Stage::Committed => {
                MigrationPhase::Committed { epoch: Epoch(record.source_epoch).next() }
            }
            Stage::Aborting => MigrationPhase::Aborting { why: why(), cancelled: false },
            Stage::Completed => MigrationPhase::Ended { outcome: MigrationOutcome::Completed },
            Stage::Failed => {
                MigrationPhase::Ended { outcome: MigrationOutcome::Failed { why: why() } }
            }
        };
        Some(Migration {
            id: id(record.attempt),
            vm: vm(),
            from: record.from.host(),
            to: record.from.other().host(),
            source_epoch: Epoch(record.source_epoch),
            reasons: ReasonTrail::new("check", "explored", Timestamp::default()),
            created_at: Timestamp::default(),
            updated_at: Timestamp::default(),
            phase,
            progress: Progress::default(),
        })
    }
}

/// A transaction on its way to the store: what it compares, and what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Write {
    /// Who wrote it.
    pub leader: u8,
    /// The migration's record, as read.
    pub attempt: Attempt,
    /// Its revision, as read.
    pub revision: u8,
    /// The epoch of the owner record as read, and the owner to be written, where it is part of it.
    pub hands_to: Option<(u64, Side)>,
    /// The stage to be written.
    pub stage: Stage,
    /// By an operator's word: what a fenced host did with the VM counts no longer.
    pub by_word: bool,
}

/// What goes between controller and agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // the names of the gRPC calls and their fields
pub enum Message {
    Prepare { attempt: Attempt, to: Side, source_epoch: u64 },
    Prepared { attempt: Attempt },
    Start { attempt: Attempt, to: Side, source_epoch: u64 },
    Resolve { attempt: Attempt, to: Side, verdict: Told, epoch: u64 },
    Resolved { attempt: Attempt, by: Side, verdict: Told },
    Destroy { to: Side, epoch: u64 },
    Commit { attempt: Attempt, by: Side, source_epoch: u64 },
    Granted { attempt: Attempt, to: Side, epoch: u64 },
    Refused { attempt: Attempt, to: Side },
    Query { attempt: Attempt, by: Side },
    Answer { attempt: Attempt, to: Side, verdict: Told, epoch: u64 },
}

/// A verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // the names of `MigrationVerdict`
pub enum Told {
    Pending,
    Commit,
    Superseded,
    Abort,
}

impl From<Told> for MigrationVerdict {
    fn from(told: Told) -> Self {
        match told {
            Told::Pending => Self::Pending,
            Told::Commit => Self::Commit,
            Told::Superseded => Self::Superseded,
            Told::Abort => Self::Abort,
        }
    }
}

impl From<MigrationVerdict> for Told {
    fn from(verdict: MigrationVerdict) -> Self {
        match verdict {
            MigrationVerdict::Commit => Self::Commit,
            MigrationVerdict::Superseded => Self::Superseded,
            MigrationVerdict::Abort => Self::Abort,
            MigrationVerdict::Pending | MigrationVerdict::Unspecified => Self::Pending,
        }
    }
}

/// The controller's memory: what a crash takes away.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Controller {
    /// Under which leadership it writes.
    pub leader: u8,
    /// The migration whose start was not sent yet, though the destination is prepared.
    pub prepared: Option<Attempt>,
    /// Who has said that he carried a verdict out.
    pub told: BTreeSet<(Attempt, Side, Told)>,
}

/// A host: what stays when its agent is gone, and the agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Host {
    /// The agent's memory; none while it is down.
    pub agent: Option<Agent>,
    /// The VM's record on disk.
    pub disk: Option<Disk>,
    /// The VM's process.
    pub machine: Option<Machine>,
    /// Migrations to it of which its agents say ABORTED, on disk until that was acknowledged.
    pub aborted: BTreeSet<Attempt>,
    /// A process that has ended and whose end the agent has not seen, with whether it left its mark.
    pub ended: Option<bool>,
    /// Where its migration stood when it ended.
    pub ended_in: Option<(Attempt, MigrationRole, MigrationState)>,
}

/// The memory of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Agent {
    /// Where the VM stands.
    pub phase: Phase,
    /// Whether the owner record is being asked.
    pub asks: bool,
    /// Migrations to it of which it says ABORTED.
    pub aborted: BTreeSet<Attempt>,
    /// Migrations it has begun to send.
    pub sent: BTreeSet<Attempt>,
}

/// What is in `vm.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Disk {
    /// Under which epoch it is here.
    pub epoch: u64,
    /// Until it is this host's: the migration, and the source's epoch.
    pub incoming: Option<(Attempt, u64)>,
}

/// A VM's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Machine {
    /// What its guest does.
    pub guest: VmState,
    /// Its last migration.
    pub migration: Option<(Attempt, MigrationRole, MigrationState)>,
    /// What it was told of that, and has not carried out yet.
    pub verdict: Option<(Told, u64)>,
    /// Whether the mark is there that its guest never ran.
    pub unrun: bool,
    /// Whether its copy has been overtaken: the guest has run on elsewhere.
    pub overtaken: bool,
}

/// The connection between two machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pipe {
    /// There is none, or it has served.
    None,
    /// Rounds go over it.
    Open,
    /// The source has sent its last frame; it is on the way.
    Last,
    /// The destination could not load it and says so.
    Failed,
    /// It broke.
    Cut,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// The store.
    pub store: Store,
    /// The controller that leads; none while there is none.
    pub controller: Option<Controller>,
    /// Host A and host B.
    pub hosts: [Host; 2],
    /// What connects their machines.
    pub pipe: Pipe,
    /// Messages that were sent.
    pub network: BTreeSet<Message>,
    /// Transactions on their way.
    pub writes: BTreeSet<Write>,
    /// Faults so far.
    pub faults: u8,
    /// Whether a fault took the only copy that may be lost with its host.
    pub lost: bool,
    /// Whether guests run on their destination before all of their memory is there.
    pub post_copy: bool,
}

impl World {
    /// The VM runs on A, nothing is under way.
    pub fn new() -> Self {
        let agent = || Some(Agent::new(Phase::Empty));
        let empty = || Host {
            agent: agent(),
            disk: None,
            machine: None,
            aborted: BTreeSet::new(),
            ended: None,
            ended_in: None,
        };
        let mut runs = empty();
        if let Some(agent) = &mut runs.agent {
            agent.phase = Phase::Running;
        }
        runs.disk = Some(Disk { epoch: 1, incoming: None });
        runs.machine = Some(Machine {
            guest: VmState::Running,
            migration: None,
            verdict: None,
            unrun: false,
            overtaken: false,
        });
        Self {
            store: Store { leader: 1, owner: Side::A, epoch: 1, records: Vec::new() },
            controller: Some(Controller::new(1)),
            hosts: [runs, empty()],
            pipe: Pipe::None,
            network: BTreeSet::new(),
            writes: BTreeSet::new(),
            faults: 0,
            lost: false,
            post_copy: false,
        }
    }

    /// A host.
    pub const fn host(&self, side: Side) -> &Host {
        &self.hosts[side as usize]
    }

    pub(crate) const fn host_mut(&mut self, side: Side) -> &mut Host {
        &mut self.hosts[side as usize]
    }

    /// Whether the guest executes on this host without all of its memory.
    pub fn fetches_on(&self, side: Side) -> bool {
        let fetches = |machine: Machine| {
            let state = machine.migration.map(|(_, _, state)| state);
            machine.guest == VmState::Running && state == Some(MigrationState::Fetching)
        };
        self.host(side).machine.is_some_and(fetches)
    }

    /// Whether the guest executes on a host.
    pub fn runs_on(&self, side: Side) -> bool {
        self.host(side).machine.is_some_and(|machine| machine.guest == VmState::Running)
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Controller {
    pub(crate) const fn new(leader: u8) -> Self {
        Self { leader, prepared: None, told: BTreeSet::new() }
    }
}

impl Agent {
    pub(crate) const fn new(phase: Phase) -> Self {
        Self { phase, asks: false, aborted: BTreeSet::new(), sent: BTreeSet::new() }
    }
}

impl Machine {
    /// Whether it holds all of the VM; with post-copy that is not so as soon as it is READY.
    pub fn is_whole(&self, post_copy: bool) -> bool {
        match self.migration {
            Some((_, MigrationRole::Destination, MigrationState::Ready)) => !post_copy,
            Some((_, MigrationRole::Destination, state)) => state == MigrationState::Finished,
            _ => true,
        }
    }
}

impl Host {
    /// Nobody says any more where the migration of its process stood, but that the VM had come here
    /// without all of its memory.
    pub(crate) fn forget_end(&mut self) {
        self.ended_in = self.ended_in.filter(|(_, role, state)| {
            *role == MigrationRole::Destination && *state == MigrationState::Fetching
        });
    }
}
