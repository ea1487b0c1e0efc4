//! What happens when nothing fails any more: one fair course of events.

use crate::controller::Step;
use crate::host::Move;
use crate::world::{Side, World};

/// The most steps a world needs to come to rest.
const STEPS_MAX: usize = 100;
/// What machines and agents do by themselves, the nearest first.
const OWN: [Move; 7] =
    [Move::SeePipe, Move::Obey, Move::Run, Move::Fetch, Move::Load, Move::Switch, Move::Notice];
/// What the driver of a migration does; only one or two of these fit its phase.
const DRIVER: [Step; 6] =
    [Step::End, Step::Start, Step::Prepare, Step::Supersede, Step::Look, Step::TellAbort];

impl World {
    /// Whether the VM runs at its owner and its migration has ended once everything is there
    /// again and nothing more fails. All that is on its way is lost: what matters is asked again.
    pub fn recovers(&self) -> bool {
        let mut world = self.clone();
        world.writes.clear();
        world.network.clear();
        if world.controller.is_none() {
            world.elect();
        }
        for side in Side::ALL {
            match &mut world.host_mut(side).agent {
                Some(agent) => agent.asks = false,
                None => world.start_agent(side),
            }
        }
        for _ in 0..STEPS_MAX {
            if world.runs_on(world.store.owner) && world.store.open().is_none() {
                return true;
            }
            if !world.proceed() && !world.call_off() {
                return false;
            }
        }
        false
    }

    /// Somebody takes a step that leads to something new.
    fn proceed(&mut self) -> bool {
        OWN.iter().any(|step| self.either(|world, side| world.act(side, *step)))
            || DRIVER.iter().any(|step| self.leads_on(|world| world.control(*step, 0)))
    }

    /// What does not get further by itself has a deadline.
    fn call_off(&mut self) -> bool {
        self.leads_on(|world| world.control(Step::Abort, 0))
            || self.either(|world, side| world.act(side, Move::LosePatience))
            || self.either(|world, side| world.control(Step::DestroyStale(side), 0))
    }

    fn either(&mut self, step: impl Fn(&mut Self, Side) -> Option<()>) -> bool {
        Side::ALL.iter().any(|side| self.leads_on(|world| step(world, *side)))
    }

    /// Takes the step if it, and all that is sent because of it, changes anything.
    fn leads_on(&mut self, step: impl FnOnce(&mut Self) -> Option<()>) -> bool {
        let mut next = self.clone();
        if step(&mut next).is_none() {
            return false;
        }
        next.deliver_all();
        let changed = next != *self;
        if changed {
            *self = next;
        }
        changed
    }

    /// Transactions and messages arrive, each once. A question without a decision is asked again.
    fn deliver_all(&mut self) {
        loop {
            if let Some(write) = self.writes.first().copied() {
                self.apply(write);
            } else if let Some(message) = self.network.pop_first() {
                let _ = self.deliver(message);
            } else {
                break;
            }
        }
        for host in &mut self.hosts {
            if let Some(agent) = &mut host.agent {
                agent.asks = false;
            }
        }
    }
}
