//! What follows from what a machine does by itself: plain data, no locks, no IO.
//!
//! The companion of [`super::accept`], which judges what is asked for. The
//! check of the protocol (`tests/protocol`) explores both.

use ballast_model::MigrationId;
use ballast_proto::v1::{MigrationState, VmState};

use super::accept::Phase;

/// A machine, as far as it decides anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Whether its process is there.
    pub alive: bool,
    /// What its guest does.
    pub guest: VmState,
    /// Where its last migration stands.
    pub migration: Option<MigrationState>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// Nothing.
    Nothing,
    /// Ask the owner record, unless it is being asked.
    Ask,
    /// The incoming VM is this host's: the guest runs.
    Settle,
    /// The outgoing migration has failed: the VM goes on here.
    GoOn,
    /// Nothing of it ran here and nothing will: say ABORTED, clean up.
    Discard,
    /// It has stopped here, with what is to be said of a migration that was under way.
    Stop(Option<MigrationState>),
}

/// What an incoming VM's record on disk and its machine prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// Whether the record carries a later epoch than the source's: written before the guest may run.
    pub granted: bool,
    /// Whether the machine, seen to end, left the mark that its guest never ran.
    pub unrun: bool,
}

impl Proof {
    /// Whether an incoming VM may have run here. Only while this is false may a destination say
    /// ABORTED: the VM then goes on at its source.
    pub const fn may_have_run(self) -> bool {
        self.granted && !self.unrun
    }
}

/// The machine shows another state than before, or time has passed.
pub fn to_machine(phase: Phase, seen: Seen, proof: Proof) -> Reaction {
    match (phase, seen.migration) {
        (Phase::Empty | Phase::Stopped, _) => Reaction::Nothing,
        (Phase::Incoming(_), _) if !seen.alive && !proof.may_have_run() => Reaction::Discard,
        (Phase::Incoming(_), _) if !seen.alive => Reaction::Stop(Some(MigrationState::Finished)),
        // It came here, and ran, whatever of its memory did not: ABORTED would have it given back.
        (Phase::Running, Some(MigrationState::Fetching)) if !seen.alive => {
            Reaction::Stop(Some(MigrationState::Finished))
        }
        (_, _) if !seen.alive => Reaction::Stop(Some(MigrationState::Aborted)),
        (Phase::Incoming(_) | Phase::Outgoing(_), Some(MigrationState::Ready))
        | (Phase::Outgoing(_), Some(MigrationState::Fetching)) => Reaction::Ask,
        (Phase::Incoming(_), Some(MigrationState::Aborted)) => Reaction::Discard,
        (Phase::Incoming(_), Some(MigrationState::Finished | MigrationState::Fetching)) => {
            Reaction::Settle
        }
        (Phase::Outgoing(_), Some(MigrationState::Aborted)) => Reaction::GoOn,
        (Phase::Running, _) if seen.guest == VmState::Stopped => Reaction::Stop(None),
        _ => Reaction::Nothing,
    }
}

/// What is shown of the guest. That an incoming VM has stopped says that it ran here, and is not
/// said of a machine that ended until it has been judged: a controller that lists it in between
/// would have the source discard the only copy there is.
pub const fn shown(phase: Phase, seen: Seen) -> VmState {
    match phase {
        Phase::Stopped => VmState::Stopped,
        Phase::Incoming(_) if !seen.alive => VmState::Incoming,
        _ => seen.guest,
    }
}

/// Where a VM stands that an earlier agent left, or what is to be done of it. `incoming` is what
/// its record says; `machine` is none when its process is gone, and then nobody saw it end;
/// `outgoing` is the migration by which the machine sends it away.
///
/// # Errors
/// What is to be done instead: `Discard`, `Settle` or `Stop`.
pub fn to_adoption(
    incoming: Option<(MigrationId, Proof)>,
    machine: Option<Seen>,
    outgoing: Option<MigrationId>,
) -> Result<Phase, Reaction> {
    match (machine, incoming) {
        (None, Some((_, proof))) if !proof.may_have_run() => Err(Reaction::Discard),
        (None, _) => Err(Reaction::Stop(None)),
        (Some(seen), incoming) => match (seen.guest, incoming) {
            // The agent ended before the machine got anything to run.
            (VmState::Created | VmState::Unspecified, _) => Err(Reaction::Discard),
            (VmState::Running, Some(_)) => Err(Reaction::Settle),
            (_, Some((migration, _))) => Ok(Phase::Incoming(migration)),
            (_, None) => Ok(outgoing.map_or(Phase::Running, Phase::Outgoing)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> MigrationId {
        format!("{n:032x}").parse().unwrap()
    }

    const UNPROVEN: Proof = Proof { granted: true, unrun: false };
    const NEVER_RAN: Proof = Proof { granted: true, unrun: true };
    const NOT_GRANTED: Proof = Proof { granted: false, unrun: false };

    fn seen(guest: VmState, migration: Option<MigrationState>) -> Seen {
        Seen { alive: true, guest, migration }
    }

    #[test]
    fn the_end_of_an_incoming_machine_is_not_shown_before_it_is_judged() {
        let gone = Seen { alive: false, ..seen(VmState::Stopped, Some(MigrationState::Ready)) };
        assert_eq!(shown(Phase::Incoming(id(1)), gone), VmState::Incoming);
        assert_eq!(shown(Phase::Stopped, gone), VmState::Stopped);
        assert_eq!(shown(Phase::Running, gone), VmState::Stopped);
        let ready = seen(VmState::Paused, Some(MigrationState::Ready));
        assert_eq!(shown(Phase::Incoming(id(1)), ready), VmState::Paused);
    }

    #[test]
    fn the_end_of_a_machine() {
        let gone = Seen { alive: false, ..seen(VmState::Paused, Some(MigrationState::Ready)) };
        let incoming = Phase::Incoming(id(1));
        assert_eq!(to_machine(incoming, gone, NOT_GRANTED), Reaction::Discard);
        assert_eq!(to_machine(incoming, gone, NEVER_RAN), Reaction::Discard);
        let stopped = Reaction::Stop(Some(MigrationState::Finished));
        assert_eq!(to_machine(incoming, gone, UNPROVEN), stopped);
        for phase in [Phase::Running, Phase::Outgoing(id(1))] {
            let stopped = Reaction::Stop(Some(MigrationState::Aborted));
            assert_eq!(to_machine(phase, gone, NOT_GRANTED), stopped);
        }
        let fetched = Seen { migration: Some(MigrationState::Fetching), ..gone };
        let stopped = Reaction::Stop(Some(MigrationState::Finished));
        assert_eq!(to_machine(Phase::Running, fetched, NOT_GRANTED), stopped, "it ran here");
    }

    #[test]
    fn the_course_of_a_migration() {
        let (incoming, outgoing) = (Phase::Incoming(id(1)), Phase::Outgoing(id(1)));
        let to = |phase, migration| {
            to_machine(phase, seen(VmState::Paused, Some(migration)), NOT_GRANTED)
        };
        assert_eq!(to(incoming, MigrationState::Transferring), Reaction::Nothing);
        assert_eq!(to(incoming, MigrationState::Ready), Reaction::Ask);
        assert_eq!(to(outgoing, MigrationState::Ready), Reaction::Ask);
        assert_eq!(to(incoming, MigrationState::Finished), Reaction::Settle);
        assert_eq!(to(incoming, MigrationState::Fetching), Reaction::Settle);
        assert_eq!(to(outgoing, MigrationState::Fetching), Reaction::Ask);
        assert_eq!(to(Phase::Running, MigrationState::Fetching), Reaction::Nothing);
        assert_eq!(to(incoming, MigrationState::Aborted), Reaction::Discard);
        assert_eq!(to(outgoing, MigrationState::Aborted), Reaction::GoOn);
        assert_eq!(to(Phase::Running, MigrationState::Aborted), Reaction::Nothing);
        let ended = seen(VmState::Stopped, None);
        assert_eq!(to_machine(Phase::Running, ended, NOT_GRANTED), Reaction::Stop(None));
    }

    #[test]
    fn what_an_earlier_agent_left() {
        let came = |proof| Some((id(1), proof));
        let paused = Some(seen(VmState::Paused, None));
        assert_eq!(to_adoption(came(NOT_GRANTED), None, None), Err(Reaction::Discard));
        assert_eq!(to_adoption(came(UNPROVEN), None, None), Err(Reaction::Stop(None)));
        assert_eq!(to_adoption(None, None, None), Err(Reaction::Stop(None)));
        assert_eq!(to_adoption(came(UNPROVEN), paused, None), Ok(Phase::Incoming(id(1))));
        let runs = Some(seen(VmState::Running, None));
        assert_eq!(to_adoption(came(UNPROVEN), runs, None), Err(Reaction::Settle));
        assert_eq!(to_adoption(None, runs, None), Ok(Phase::Running));
        assert_eq!(to_adoption(None, runs, Some(id(2))), Ok(Phase::Outgoing(id(2))));
        let empty = Some(seen(VmState::Created, None));
        assert_eq!(to_adoption(None, empty, None), Err(Reaction::Discard));
    }
}
