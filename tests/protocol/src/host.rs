//! What an agent and a VM's process do: the steps of `agent/src/vm` and `vmm/src/migration`; what is
//! accepted and what follows from it is decided by the agent's own tables.

use ballast_agent::vm::accept::{Accept, Phase, Standing};
use ballast_agent::vm::react::{self, Proof, Reaction, Seen};
use ballast_model::Epoch;
use ballast_proto::v1::{MigrationRole as Role, MigrationState as State, VmState};

use crate::world::{
    Agent, Attempt, Disk, Machine, Message, Pipe, Side, Told, World, attempt as number, id, vm,
};

/// A step of one host's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Move {
    /// The agent looks at its machine.
    Notice,
    /// The agent gives up a machine that nobody fills.
    LosePatience,
    /// Source: the guest is paused, the last frame is sent.
    Switch,
    /// Destination: the last frame is loaded.
    Load,
    /// Destination: it cannot be loaded, and the source is told over the same connection.
    FailToLoad,
    /// Either: the end of the connection is seen.
    SeePipe,
    /// Either: does the first half of what it was told.
    Obey,
    /// Destination: the guest's first instruction.
    Run,
    /// Destination: the rest of its memory comes from the source.
    Fetch,
}

impl Move {
    pub(crate) const ALL: [Self; 9] = [
        Self::Notice,
        Self::LosePatience,
        Self::Switch,
        Self::Load,
        Self::FailToLoad,
        Self::SeePipe,
        Self::Obey,
        Self::Run,
        Self::Fetch,
    ];
}

impl World {
    /// Carries out a step; none when it is not possible.
    pub(crate) fn act(&mut self, side: Side, step: Move) -> Option<()> {
        match step {
            Move::Notice => self.notice(side),
            Move::LosePatience => {
                let (seen, proof) = (self.seen(side)?, self.proof(side));
                let agent = self.host(side).agent.as_ref()?;
                let Phase::Incoming(migration) = agent.phase else { return None };
                let idle = react::to_machine(agent.phase, seen, proof) == Reaction::Nothing;
                // The machine waits for its source as long as the connection is there.
                (idle && matches!(self.pipe, Pipe::None | Pipe::Cut)).then_some(())?;
                self.say_aborted(side, number(migration));
                self.discard(side);
                Some(())
            }
            _ => self.run_machine(side, step),
        }
    }

    /// A message to an agent.
    pub(crate) fn agent_hears(&mut self, message: Message) -> Option<()> {
        match message {
            Message::Prepare { attempt, to, source_epoch } => {
                let ended = self.host(to).agent.as_ref()?.aborted.contains(&attempt);
                let asked =
                    self.standing(to, |s| s.prepare(id(attempt), Epoch(source_epoch), ended))?;
                match asked.ok()? {
                    Accept::Act => self.prepare(to, attempt, source_epoch),
                    Accept::Done => {}
                }
                self.send(Message::Prepared { attempt });
                Some(())
            }
            Message::Start { attempt, to, source_epoch } => self.start(attempt, to, source_epoch),
            Message::Resolve { attempt, to, verdict, epoch } => {
                let asked =
                    self.standing(to, |s| s.resolve(id(attempt), verdict.into(), Epoch(epoch)))?;
                if asked.ok()? == Accept::Act {
                    self.carry_out(to, attempt, verdict, epoch)?;
                }
                if verdict == Told::Abort && self.host(to).disk.is_none() {
                    self.host_mut(to).aborted.remove(&attempt);
                }
                if verdict != Told::Commit {
                    self.send(Message::Resolved { attempt, by: to, verdict });
                }
                Some(())
            }
            Message::Destroy { to, epoch } => {
                let asked = self.standing(to, |s| s.destroy(Epoch(epoch)))?.ok()?;
                if asked == Accept::Act {
                    self.discard(to);
                }
                Some(())
            }
            Message::Granted { attempt, to, epoch } => {
                self.waits_for(to, attempt)?;
                self.carry_out(to, attempt, Told::Commit, epoch)
            }
            Message::Refused { attempt, to } => {
                self.waits_for(to, attempt)?;
                self.carry_out(to, attempt, Told::Abort, 0)
            }
            Message::Answer { attempt, to, verdict, epoch } => {
                self.waits_for(to, attempt)?;
                let own = self.host(to).disk.map_or(0, |disk| disk.epoch);
                match verdict {
                    Told::Superseded if epoch > own => {}
                    Told::Abort => {}
                    _ => return None,
                }
                self.carry_out(to, attempt, verdict, epoch)
            }
            _ => None,
        }
    }

    /// Whether an agent waits for this answer.
    fn waits_for(&self, side: Side, attempt: Attempt) -> Option<()> {
        let agent = self.host(side).agent.as_ref()?;
        let (Phase::Incoming(present) | Phase::Outgoing(present)) = agent.phase else {
            return None;
        };
        (agent.asks && present == id(attempt)).then_some(())
    }

    fn standing<T>(&self, side: Side, judge: impl FnOnce(Standing<'_>) -> T) -> Option<T> {
        let host = self.host(side);
        let phase = host.agent.as_ref()?.phase;
        let epoch = Epoch(host.disk.map_or(0, |disk| disk.epoch));
        Some(judge(Standing { vm: &vm(), phase, epoch }))
    }

    fn prepare(&mut self, side: Side, attempt: Attempt, source_epoch: u64) {
        let host = self.host_mut(side);
        host.disk = Some(Disk { epoch: source_epoch, incoming: Some((attempt, source_epoch)) });
        host.machine = Some(Machine {
            guest: VmState::Incoming,
            migration: Some((attempt, Role::Destination, State::Listening)),
            verdict: None,
            unrun: true,
            overtaken: false,
        });
        if let Some(agent) = &mut host.agent {
            agent.phase = Phase::Incoming(id(attempt));
            agent.asks = false;
        }
    }

    fn start(&mut self, attempt: Attempt, to: Side, source_epoch: u64) -> Option<()> {
        if self.host(to).agent.as_ref()?.sent.contains(&attempt) {
            return None;
        }
        let asked = self.standing(to, |s| s.start(id(attempt), Epoch(source_epoch)))?;
        (asked.ok()? == Accept::Act).then_some(())?;
        self.host(to).machine.filter(|machine| machine.guest == VmState::Running)?;
        // The destination takes one connection only.
        let listening = Some((attempt, Role::Destination, State::Listening));
        let peer = self.host_mut(to.other()).machine.as_mut()?;
        (peer.migration == listening).then_some(())?;
        peer.migration = Some((attempt, Role::Destination, State::Transferring));
        self.pipe = Pipe::Open;
        let host = self.host_mut(to);
        host.machine.as_mut()?.migration = Some((attempt, Role::Source, State::Transferring));
        let agent = host.agent.as_mut()?;
        agent.phase = Phase::Outgoing(id(attempt));
        agent.asks = false;
        agent.sent.insert(attempt);
        Some(())
    }

    /// As the owner's task does: what is on disk comes first, then the machine is told.
    fn carry_out(&mut self, side: Side, attempt: Attempt, told: Told, epoch: u64) -> Option<()> {
        let phase = self.host(side).agent.as_ref()?.phase;
        match (told, phase) {
            (Told::Commit, _) => {
                let host = self.host_mut(side);
                host.machine?;
                host.disk.as_mut()?.epoch = epoch;
                self.tell_machine(side, attempt, told, epoch)?;
            }
            (Told::Superseded, _) => self.discard(side),
            (Told::Abort, Phase::Incoming(_)) => {
                self.host_mut(side).agent.as_mut()?.aborted.insert(attempt);
                self.discard(side);
            }
            (Told::Abort, _) => {
                self.host(side).machine?;
                let disk = self.host_mut(side).disk.as_mut()?;
                disk.epoch = disk.epoch.max(epoch);
                self.tell_machine(side, attempt, told, epoch)?;
                // The call returns when the machine has done it.
                self.run_machine(side, Move::Obey);
                self.host_mut(side).agent.as_mut()?.phase = Phase::Running;
            }
            (Told::Pending, _) => return None,
        }
        if let Some(agent) = &mut self.host_mut(side).agent {
            agent.asks = false;
        }
        Some(())
    }

    /// As `vmm/src/migration/control.rs`: what was decided stays decided.
    fn tell_machine(&mut self, side: Side, attempt: Attempt, told: Told, epoch: u64) -> Option<()> {
        let machine = self.host_mut(side).machine.as_mut()?;
        let (present, _, state) = machine.migration?;
        (present == attempt).then_some(())?;
        match (machine.verdict, state) {
            (Some(old), _) => (old == (told, epoch)).then_some(()),
            (None, State::Aborted) => (told == Told::Abort).then_some(()),
            (None, State::Finished) => None,
            (None, State::Ready) => {
                machine.verdict = Some((told, epoch));
                Some(())
            }
            (None, _) => {
                (told == Told::Abort).then_some(())?;
                machine.verdict = Some((told, epoch));
                Some(())
            }
        }
    }

    fn run_machine(&mut self, side: Side, step: Move) -> Option<()> {
        let (pipe, post_copy) = (self.pipe, self.post_copy);
        let source = self.host(side.other()).machine;
        let machine = self.host_mut(side).machine.as_mut()?;
        let (attempt, role, state) = machine.migration?;
        let ended = |state| Some((attempt, role, state));
        match (step, role, state) {
            (Move::Switch, Role::Source, State::Transferring) if pipe == Pipe::Open => {
                machine.verdict.is_none().then_some(())?;
                machine.guest = VmState::Paused;
                machine.migration = ended(State::Ready);
                self.pipe = Pipe::Last;
            }
            (Move::Load, Role::Destination, State::Transferring) if pipe == Pipe::Last => {
                machine.verdict.is_none().then_some(())?;
                machine.migration = ended(State::Ready);
                machine.guest = VmState::Paused;
                self.pipe = Pipe::None;
            }
            (Move::FailToLoad, Role::Destination, State::Transferring) if pipe == Pipe::Last => {
                self.pipe = Pipe::Failed;
                self.end_machine(side);
            }
            (Move::SeePipe, Role::Source, State::Ready) if pipe == Pipe::Failed => {
                machine.verdict.is_none().then_some(())?;
                machine.guest = VmState::Running;
                machine.migration = ended(State::Aborted);
                self.pipe = Pipe::None;
            }
            (Move::SeePipe, Role::Source, State::Transferring) if pipe == Pipe::Cut => {
                machine.migration = ended(State::Aborted);
            }
            (Move::SeePipe, Role::Destination, State::Transferring) if pipe == Pipe::Cut => {
                self.end_machine(side);
            }
            (Move::Obey, Role::Source, State::Ready | State::Transferring) => {
                machine.verdict.filter(|(told, _)| *told == Told::Abort)?;
                machine.guest = VmState::Running;
                machine.migration = ended(State::Aborted);
                self.break_pipe();
            }
            (Move::Obey, Role::Destination, State::Ready) => {
                machine.verdict.filter(|(told, _)| *told == Told::Commit)?;
                machine.unrun.then_some(())?;
                machine.unrun = false;
            }
            (Move::Run, Role::Destination, State::Ready) if !machine.unrun => {
                machine.guest = VmState::Running;
                machine.migration =
                    ended(if post_copy { State::Fetching } else { State::Finished });
                if let Some(left) = &mut self.host_mut(side.other()).machine {
                    left.overtaken = true;
                }
            }
            // The source comes back as often as it takes, as long as it is there.
            (Move::Fetch, Role::Destination, State::Fetching) => {
                source.filter(|source| source.overtaken)?;
                machine.migration = ended(State::Finished);
            }
            _ => return None,
        }
        Some(())
    }

    /// A machine ends by itself, or is killed; its agent has yet to see it.
    pub(crate) fn end_machine(&mut self, side: Side) {
        let host = self.host_mut(side);
        if let Some(machine) = host.machine.take() {
            (host.ended, host.ended_in) = (Some(machine.unrun), machine.migration);
        }
    }

    /// The connection breaks; none when there is none.
    pub(crate) fn cut(&mut self) -> Option<()> {
        matches!(self.pipe, Pipe::Open | Pipe::Last | Pipe::Failed).then_some(())?;
        self.pipe = Pipe::Cut;
        Some(())
    }

    /// One end of the connection is gone; what a source sent before may still arrive.
    pub(crate) fn cut_by_death(&mut self, of: Option<(Attempt, Role, State)>) {
        let sent = matches!(self.pipe, Pipe::Last | Pipe::Failed);
        match of {
            Some((_, Role::Source, _)) if sent => {}
            Some(_) => self.break_pipe(),
            None => {}
        }
    }

    fn break_pipe(&mut self) {
        if self.pipe != Pipe::None {
            self.pipe = Pipe::Cut;
        }
    }

    fn seen(&self, side: Side) -> Option<Seen> {
        let host = self.host(side);
        match (host.machine, host.ended) {
            (Some(machine), _) => Some(Seen {
                alive: true,
                guest: machine.guest,
                migration: machine.migration.map(|(_, _, state)| state),
            }),
            (None, Some(_)) => {
                let migration = host.ended_in.map(|(_, _, state)| state);
                Some(Seen { alive: false, guest: VmState::Stopped, migration })
            }
            (None, None) => None,
        }
    }

    fn proof(&self, side: Side) -> Proof {
        let host = self.host(side);
        let granted = host.disk.is_some_and(|disk| {
            disk.incoming.is_some_and(|(_, source_epoch)| disk.epoch > source_epoch)
        });
        let unrun = host.machine.map_or(host.ended == Some(true), |machine| machine.unrun);
        Proof { granted, unrun }
    }

    fn notice(&mut self, side: Side) -> Option<()> {
        let (seen, proof) = (self.seen(side)?, self.proof(side));
        let agent = self.host(side).agent.as_ref()?;
        let (phase, asks) = (agent.phase, agent.asks);
        match react::to_machine(phase, seen, proof) {
            Reaction::Nothing => return None,
            Reaction::Ask if asks => return None,
            Reaction::Ask => self.ask(side, phase)?,
            Reaction::Settle => self.settle(side),
            Reaction::GoOn => {
                let agent = self.host_mut(side).agent.as_mut()?;
                (agent.phase, agent.asks) = (Phase::Running, false);
            }
            Reaction::Discard => {
                if let Phase::Incoming(migration) = phase {
                    self.say_aborted(side, number(migration));
                }
                self.discard(side);
            }
            Reaction::Stop(said) => {
                let ended = self
                    .host(side)
                    .ended_in
                    .filter(|(_, _, state)| !matches!(state, State::Finished | State::Aborted));
                // Said of an incoming migration it is believed.
                if let (Some(State::Aborted), Some((attempt, Role::Destination, _))) = (said, ended)
                    && let Some(agent) = &mut self.host_mut(side).agent
                {
                    agent.aborted.insert(attempt);
                }
                self.stop(side);
            }
        }
        Some(())
    }

    fn ask(&mut self, side: Side, phase: Phase) -> Option<()> {
        let incoming = self.host(side).disk?.incoming;
        self.host_mut(side).agent.as_mut()?.asks = true;
        match (phase, incoming) {
            (Phase::Incoming(_), Some((attempt, source_epoch))) => {
                self.send(Message::Commit { attempt, by: side, source_epoch });
            }
            (Phase::Outgoing(migration), _) => {
                self.send(Message::Query { attempt: number(migration), by: side });
            }
            _ => return None,
        }
        Some(())
    }

    fn settle(&mut self, side: Side) {
        let host = self.host_mut(side);
        if let Some(agent) = &mut host.agent {
            (agent.phase, agent.asks) = (Phase::Running, false);
        }
        if let Some(disk) = &mut host.disk {
            disk.incoming = None;
        }
    }

    fn stop(&mut self, side: Side) {
        let host = self.host_mut(side);
        (host.machine, host.ended) = (None, None);
        host.forget_end();
        if let Some(agent) = &mut host.agent {
            (agent.phase, agent.asks) = (Phase::Stopped, false);
        }
    }

    fn say_aborted(&mut self, side: Side, attempt: Attempt) {
        let host = self.host_mut(side);
        host.aborted.insert(attempt);
        if let Some(agent) = &mut host.agent {
            agent.aborted.insert(attempt);
        }
    }

    /// Ends the machine and removes what is kept of the VM.
    fn discard(&mut self, side: Side) {
        if self.host(side).machine.is_some() {
            self.break_pipe();
        }
        let host = self.host_mut(side);
        (host.machine, host.ended, host.ended_in, host.disk) = (None, None, None, None);
        if let Some(agent) = &mut host.agent {
            (agent.phase, agent.asks) = (Phase::Empty, false);
        }
    }

    /// An agent starts and takes over what an earlier one left.
    pub(crate) fn start_agent(&mut self, side: Side) {
        let host = self.host_mut(side);
        host.agent = Some(Agent { aborted: host.aborted.clone(), ..Agent::new(Phase::Empty) });
        // Nobody saw it end: its mark proves nothing. That a VM that was taken had not all of its
        // memory is on disk.
        host.ended = None;
        match host.disk {
            Some(disk) if disk.incoming.is_none() => host.forget_end(),
            _ => host.ended_in = None,
        }
        let Some(disk) = host.disk else { return self.discard(side) };
        let machine = host.machine;
        let outgoing = machine.and_then(|machine| machine.migration).and_then(|migration| {
            let (attempt, role, state) = migration;
            let ended = matches!(state, State::Finished | State::Aborted);
            (role == Role::Source && !ended).then(|| id(attempt))
        });
        let proof = self.proof(side);
        let incoming = disk.incoming.map(|(attempt, _)| (id(attempt), proof));
        let seen = machine.and_then(|_| self.seen(side));
        match react::to_adoption(incoming, seen, outgoing) {
            Ok(phase) => {
                if let Some(agent) = &mut self.host_mut(side).agent {
                    agent.phase = phase;
                }
            }
            Err(Reaction::Settle) => self.settle(side),
            Err(Reaction::Stop(_)) => self.stop(side),
            Err(_) => {
                if let Some((migration, _)) = incoming {
                    self.say_aborted(side, number(migration));
                }
                self.discard(side);
            }
        }
    }
}
