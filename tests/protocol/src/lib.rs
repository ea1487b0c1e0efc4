//! The protocol of a migration, explored state by state.
//!
//! A model of two hosts, their agents and machines, the controller and the
//! store, in which everything that can happen does happen at every point:
//! processes die and come back, messages are lost, delayed and repeated,
//! transactions of a dead controller arrive late, the connection breaks. What
//! is decided is decided by the programs' own code: `migration::judge` of the
//! controller, `vm::accept` and `vm::react` of the agent.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`world`] | the state: who runs, what is stored, what is on its way |
//! | [`controller`] | the controller's steps, and the store |
//! | [`host`] | the agents' and the machines' steps |
//! | [`recovery`] | what happens when nothing fails any more |
//!
//! What must hold in every state is in [`Migrations::properties`].

pub mod controller;
pub mod host;
pub mod recovery;
pub mod world;

use std::fmt;

use ballast_proto::v1::{MigrationState, VmState};
use stateright::{Model, Property};

pub use crate::controller::Step;
pub use crate::host::Move;
pub use crate::world::{Attempt, Message, Side, Stage, World, Write};

/// What may happen next.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// The controller does something.
    Control(Step),
    /// A host does something.
    Act(Side, Move),
    /// A message arrives; it may arrive again.
    Deliver(Message),
    /// A transaction reaches the store.
    Apply(Write),
    /// Something dies, comes back or breaks.
    Fail(Fault),
    /// An agent starts again.
    StartAgent(Side),
    /// A controller is elected.
    Elect,
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control(step) => write!(f, "controller: {step:?}"),
            Self::Act(side, step) => write!(f, "{side:?}: {step:?}"),
            Self::Deliver(message) => write!(f, "arrives: {message:?}"),
            Self::Apply(write) => write!(f, "store: {write:?}"),
            Self::Fail(fault) => write!(f, "FAULT {fault:?}"),
            Self::StartAgent(side) => write!(f, "{side:?}: the agent starts"),
            Self::Elect => write!(f, "a controller is elected"),
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The controller dies, or loses its leadership; what it has written is still on its way.
    Controller,
    /// An agent dies.
    Agent(Side),
    /// A VM's process dies.
    Machine(Side),
    /// The connection between the machines breaks.
    Cut,
    /// The controller ends an aborted migration without having reached both sides.
    Impatience,
}

/// The model, with its bounds.
#[derive(Debug, Clone, Copy)]
pub struct Migrations {
    /// The most migrations.
    pub attempts_max: Attempt,
    /// The most faults.
    pub faults_max: u8,
    /// Whether guests run on their destination before all of their memory is there.
    pub post_copy: bool,
}

impl Model for Migrations {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World { post_copy: self.post_copy, ..World::new() }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        world.controller_steps().for_each(|step| actions.push(Action::Control(step)));
        for side in Side::ALL {
            actions.extend(Move::ALL.map(|step| Action::Act(side, step)));
            if world.host(side).agent.is_none() {
                actions.push(Action::StartAgent(side));
            }
        }
        actions.extend(world.network.iter().copied().map(Action::Deliver));
        actions.extend(world.writes.iter().copied().map(Action::Apply));
        if world.controller.is_none() {
            actions.push(Action::Elect);
        }
        if world.faults < self.faults_max {
            actions.extend(world.possible_faults().map(Action::Fail));
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.step(action, self.attempts_max)?;
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("at most one host executes the VM", |_, world: &World| {
                !(world.runs_on(Side::A) && world.runs_on(Side::B))
            }),
            Property::always("who executes the VM owns it", |_, world: &World| {
                Side::ALL.iter().all(|side| !world.runs_on(*side) || world.store.owner == *side)
            }),
            Property::always("no copy runs that another one has overtaken", |_, world: &World| {
                let mut machines = world.hosts.iter().filter_map(|host| host.machine);
                machines.all(|copy| !copy.overtaken || copy.guest != VmState::Running)
            }),
            Property::always(
                "no source is discarded while the destination needs it",
                |_, world: &World| {
                    let served = |side: Side| {
                        let source = world.host(side.other()).machine;
                        source.is_some_and(|source| source.guest == VmState::Paused)
                    };
                    let mut sides = Side::ALL.iter();
                    world.lost || sides.all(|side| !world.fetches_on(*side) || served(*side))
                },
            ),
            Property::always(
                "once nothing fails any more, the VM runs at its owner",
                |_, world: &World| world.lost || world.recovers(),
            ),
            Property::sometimes("a migration completes", |_, world: &World| {
                world.runs_on(Side::B) && world.ended_as(Stage::Completed)
            }),
            Property::sometimes("a failed migration leaves the VM running", |_, world: &World| {
                world.runs_on(Side::A) && world.ended_as(Stage::Failed)
            }),
        ];
        if self.post_copy {
            properties.push(Property::sometimes(
                "a guest runs without all of its memory",
                |_, world: &World| world.fetches_on(Side::B),
            ));
        }
        if self.post_copy && self.faults_max > 0 {
            properties.push(Property::sometimes(
                "a guest that died without all of its memory is told as lost",
                |_, world: &World| {
                    let ended_in = world.host(Side::B).ended_in;
                    let fetched = ended_in.map(|(_, _, state)| state);
                    fetched == Some(MigrationState::Fetching)
                        && world.host(Side::A).machine.is_none()
                        && world.ended_as(Stage::Failed)
                },
            ));
        }
        if self.faults_max > 0 {
            properties.push(Property::sometimes(
                "a committed VM is given back",
                |_, world: &World| {
                    world.runs_on(Side::A)
                        && world.store.epoch == 3
                        && world.ended_as(Stage::Failed)
                },
            ));
        }
        properties
    }
}

impl World {
    fn ended_as(&self, stage: Stage) -> bool {
        self.store.records.first().is_some_and(|record| record.stage == stage)
    }

    pub(crate) fn controller_steps(&self) -> impl Iterator<Item = Step> {
        let steps = [
            Step::Begin,
            Step::Prepare,
            Step::Start,
            Step::Abort,
            Step::Look,
            Step::Supersede,
            Step::TellAbort,
            Step::End,
            Step::GiveBack,
            Step::DeclareLost,
            Step::DestroyStale(Side::A),
            Step::DestroyStale(Side::B),
        ];
        steps.into_iter().filter(|_| self.controller.is_some())
    }

    fn possible_faults(&self) -> impl Iterator<Item = Fault> {
        let mut faults = vec![Fault::Cut];
        if self.controller.is_some() {
            faults.extend([Fault::Controller, Fault::Impatience]);
        }
        for side in Side::ALL {
            if self.host(side).agent.is_some() {
                faults.push(Fault::Agent(side));
            }
            if self.host(side).machine.is_some() {
                faults.push(Fault::Machine(side));
            }
        }
        faults.into_iter()
    }

    /// Carries out an action; none when it is not possible.
    pub(crate) fn step(&mut self, action: Action, attempts_max: Attempt) -> Option<()> {
        match action {
            Action::Control(step) => self.control(step, attempts_max),
            Action::Act(side, step) => self.act(side, step),
            Action::Deliver(message) => self.deliver(message),
            Action::Apply(write) => {
                self.apply(write);
                Some(())
            }
            Action::Fail(fault) => self.fail(fault),
            Action::StartAgent(side) => {
                self.start_agent(side);
                Some(())
            }
            Action::Elect => {
                self.elect();
                Some(())
            }
        }
    }

    pub(crate) fn deliver(&mut self, message: Message) -> Option<()> {
        match message {
            Message::Prepared { .. }
            | Message::Resolved { .. }
            | Message::Commit { .. }
            | Message::Query { .. } => self.controller_hears(message),
            _ => self.agent_hears(message),
        }
    }

    fn fail(&mut self, fault: Fault) -> Option<()> {
        match fault {
            Fault::Controller => self.controller = None,
            Fault::Impatience => {
                self.control(Step::EndImpatiently, Attempt::MAX)?;
            }
            Fault::Cut => self.cut()?,
            Fault::Agent(side) => {
                let host = self.host_mut(side);
                host.agent = None;
                // A granted VM's mark is believed only by an agent that saw the process end.
                self.lost |= self.ends_unseen(side);
            }
            Fault::Machine(side) => {
                let machine = self.host(side).machine?;
                self.end_machine(side);
                self.cut_by_death(machine.migration);
                let owned = self.store.owner == side && !machine.unrun;
                self.lost |= owned || !self.copy_is_left() || self.ends_unseen(side);
            }
        }
        self.faults += 1;
        Some(())
    }

    fn ends_unseen(&self, side: Side) -> bool {
        let host = self.host(side);
        let granted = host.disk.is_some_and(|disk| {
            disk.incoming.is_some_and(|(_, source_epoch)| disk.epoch > source_epoch)
        });
        host.agent.is_none() && host.ended.is_some() && granted
    }

    fn copy_is_left(&self) -> bool {
        self.hosts
            .iter()
            .filter_map(|host| host.machine)
            .any(|machine| machine.is_whole(self.post_copy))
    }
}
