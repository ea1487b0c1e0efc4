//! What may go wrong where in a migration, and what must come of it.
//!
//! [`expected`] is the whole of it: for every [`Point`] and every [`Fault`] who
//! runs the VM afterwards. `docs/testing.md` says how a cell is executed.

/// Where a process is held; the names of `ballast_service::holdpoint::hold`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// The source's VMM is about to connect.
    Connect,
    /// Both sides have agreed.
    Negotiated,
    /// A round of disks that go along is sent; memory has not begun.
    Disks,
    /// The pages of a round are sent.
    Round,
    /// The guest is paused.
    Pause,
    /// The last pages are sent.
    LastPass,
    /// The state is sent; the source is not sealed.
    State,
    /// The source has sent End.
    Sealed,
    /// The destination is READY and has not said so to the source.
    Ready,
    /// The controller was asked and has not written.
    CommitAsked,
    /// The controller has written and not answered.
    Granted,
    /// The destination's agent has the epoch on disk.
    AgentGranted,
    /// The destination's VMM was told to run.
    VmmGranted,
    /// The disks are taken; the mark of a VM that never ran is there.
    Marked,
    /// The mark is gone; no instruction has run.
    Unmarked,
    /// The guest runs, and a part of its memory is still at the source alone (post-copy).
    Fetching,
    /// The VM was seen running; the source is not told yet.
    CleanUp,
}

/// Who is held at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The VM's process on the source.
    SourceVmm,
    /// The VM's process on the destination.
    DestinationVmm,
    /// The source's agent.
    SourceAgent,
    /// The destination's agent.
    DestinationAgent,
    /// The controller.
    Controller,
    /// The store of the controller, where it is a process of its own.
    Store,
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; agents and controllers are started again.
    Kill(Who),
    /// SIGSTOP, and SIGCONT a moment later.
    Freeze(Who),
    /// The connections between the VMMs break.
    Cut,
    /// Nothing arrives on them for a moment.
    Stall,
    /// The next byte of the source arrives as another one.
    Corrupt,
    /// SIGKILL of both agents and the controller, which are started again in this order.
    Outage(Order),
}

/// In which order what was killed comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The controller, the destination's agent, the source's.
    ControllerFirst,
    /// The source's agent, the destination's, the controller.
    ControllerLast,
}

/// What a cluster must have for a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// The guest's disk belongs to its host and goes along.
    pub local_disks: bool,
    /// The store is a process.
    pub store: bool,
    /// Connections go through a [`crate::tamper::Tamper`].
    pub tamper: bool,
    /// The guest writes too fast for the link, and moves by post-copy.
    pub post_copy: bool,
}

/// Who runs the VM afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// The source; the migration failed.
    Source,
    /// The destination; the migration completed.
    Destination,
    /// Nobody: the guest died with its process, as it would without a migration.
    Lost,
}

impl Point {
    /// All of them, in the order of a migration.
    pub const ALL: [Self; 17] = [
        Self::Connect,
        Self::Negotiated,
        Self::Disks,
        Self::Round,
        Self::Pause,
        Self::LastPass,
        Self::State,
        Self::Sealed,
        Self::Ready,
        Self::CommitAsked,
        Self::Granted,
        Self::AgentGranted,
        Self::VmmGranted,
        Self::Marked,
        Self::Unmarked,
        Self::Fetching,
        Self::CleanUp,
    ];

    /// Its name in the programs, and who comes to it.
    pub const fn name(self) -> (&'static str, Who) {
        match self {
            Self::Connect => ("source.connect", Who::SourceVmm),
            Self::Negotiated => ("source.negotiated", Who::SourceVmm),
            Self::Disks => ("source.disks", Who::SourceVmm),
            Self::Round => ("source.round", Who::SourceVmm),
            Self::Pause => ("source.pause", Who::SourceVmm),
            Self::LastPass => ("source.last_pass", Who::SourceVmm),
            Self::State => ("source.state", Who::SourceVmm),
            Self::Sealed => ("source.sealed", Who::SourceVmm),
            Self::Ready => ("destination.ready", Who::DestinationVmm),
            Self::CommitAsked => ("controller.commit", Who::Controller),
            Self::Granted => ("controller.granted", Who::Controller),
            Self::AgentGranted => ("agent.granted", Who::DestinationAgent),
            Self::VmmGranted => ("destination.granted", Who::DestinationVmm),
            Self::Marked => ("destination.marked", Who::DestinationVmm),
            Self::Unmarked => ("destination.unmarked", Who::DestinationVmm),
            Self::Fetching => ("source.serving", Who::SourceVmm),
            Self::CleanUp => ("controller.cleanup", Who::Controller),
        }
    }

    /// The destination cannot be READY: the source goes on by itself on any trouble.
    pub fn is_unsealed(self) -> bool {
        self < Self::Sealed
    }

    /// The destination owns the VM.
    pub fn is_committed(self) -> bool {
        self >= Self::Granted
    }
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Kill(Who::SourceVmm),
        Self::Kill(Who::DestinationVmm),
        Self::Kill(Who::SourceAgent),
        Self::Kill(Who::DestinationAgent),
        Self::Kill(Who::Controller),
        Self::Freeze(Who::SourceVmm),
        Self::Freeze(Who::DestinationVmm),
        Self::Freeze(Who::SourceAgent),
        Self::Freeze(Who::DestinationAgent),
        Self::Freeze(Who::Controller),
        Self::Kill(Who::Store),
        Self::Freeze(Who::Store),
        Self::Cut,
        Self::Stall,
        Self::Corrupt,
        Self::Outage(Order::ControllerFirst),
        Self::Outage(Order::ControllerLast),
    ];
}

/// What must come of `fault` at `point`; nothing where there is nothing to hurt.
///
/// Where two things would race, the bench holds one of them (`docs/testing.md`), so that every
/// cell has one outcome.
pub fn expected(point: Point, fault: Fault) -> Option<Expected> {
    let fetching = point == Point::Fetching;
    let linked = point > Point::Connect && point <= Point::Ready || fetching;
    Some(match fault {
        // Its memory is on two hosts then.
        Fault::Kill(Who::SourceVmm) if point.is_unsealed() || fetching => Expected::Lost,
        // Before the mark is removed nothing has run there, afterwards something may have.
        Fault::Kill(Who::DestinationVmm) if point < Point::Unmarked => Expected::Source,
        Fault::Kill(Who::DestinationVmm) => Expected::Lost,
        Fault::Cut | Fault::Stall if !linked => return None,
        // Who comes back before the two have agreed finds no migration and calls it off.
        Fault::Outage(_) if point == Point::Connect => return None,
        // It is asked for again, over another connection if need be.
        Fault::Corrupt if fetching => Expected::Destination,
        Fault::Corrupt if !linked || !point.is_unsealed() => return None,
        Fault::Cut if point.is_unsealed() => Expected::Source,
        Fault::Corrupt => Expected::Source,
        Fault::Kill(_) | Fault::Freeze(_) | Fault::Cut | Fault::Stall | Fault::Outage(_) => {
            Expected::Destination
        }
    })
}

/// Whether a cluster has what a cell takes.
pub fn fits(point: Point, fault: Fault, setting: Setting) -> bool {
    let store = matches!(fault, Fault::Kill(Who::Store) | Fault::Freeze(Who::Store));
    (point == Point::Fetching) == setting.post_copy
        && (point != Point::Disks || setting.local_disks)
        && (!store || setting.store)
        && (fault == Fault::Corrupt) == setting.tamper
}

/// All cells with something to hurt in such a cluster.
pub fn cells(setting: Setting) -> impl Iterator<Item = (Point, Fault, Expected)> {
    let pairs = Point::ALL.into_iter().flat_map(|point| Fault::ALL.map(|fault| (point, fault)));
    let pairs = pairs.filter(move |&(point, fault)| fits(point, fault, setting));
    pairs.filter_map(|(point, fault)| Some((point, fault, expected(point, fault)?)))
}
