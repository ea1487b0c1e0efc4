//! An executor without hosts: runs a plan event by event in adversarial orders
//! and checks every capacity and every rule after every event.
//!
//! It shares nothing with the solver or with the ordering, neither code nor
//! types nor reasoning: it only knows who occupies which room, and counts again
//! after each event. A step occupies its rooms from its start and leaves the
//! old ones at its end; which of the allowed events comes next is the
//! adversary's choice: all choices for short plans, random ones for long.
//!
//! What is broken before the first event may be mended, and must never get
//! worse.

mod hotel;
mod laws;

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use hotel::{Dice, Hotel, Temper};

/// The most steps for which every interleaving is tried.
pub const EXHAUSTIVE_STEPS_MAX: usize = 11;

/// Rooms, who is in them, and what must hold.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Per room, per resource, the most that may be in use.
    pub rooms: Vec<Vec<u64>>,
    /// The guests, present or not yet.
    pub guests: Vec<Guest>,
    /// What must hold at every moment.
    pub laws: Vec<Law>,
}

/// Somebody who occupies rooms.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guest {
    /// The rooms it is in; none if it has not started.
    pub rooms: Vec<usize>,
    /// Per resource, what it takes of each of its rooms.
    pub need: Vec<u64>,
}

/// A rule over some guests. Scopes are given per room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Law {
    /// No more than `most` of them in one scope.
    Crowd {
        /// Who.
        guests: Vec<usize>,
        /// The scope of each room.
        scopes: Vec<usize>,
        /// How many.
        most: usize,
    },
    /// Those that run, run in at least `least` scopes.
    Breadth {
        /// Who.
        guests: Vec<usize>,
        /// The scope of each room.
        scopes: Vec<usize>,
        /// How many scopes.
        least: usize,
    },
    /// They are in no more than `most` scopes.
    Narrowness {
        /// Who.
        guests: Vec<usize>,
        /// The scope of each room.
        scopes: Vec<usize>,
        /// How many scopes.
        most: usize,
    },
    /// They are in these rooms only.
    Inside {
        /// Who.
        guests: Vec<usize>,
        /// The rooms.
        rooms: BTreeSet<usize>,
    },
    /// In every scope that holds one of them one of the `others` runs.
    Company {
        /// Who.
        guests: Vec<usize>,
        /// Whom they need.
        others: Vec<usize>,
        /// The scope of each room.
        scopes: Vec<usize>,
    },
    /// Everything in use fits into all rooms but the `rooms` largest, per resource.
    Reserve {
        /// How many may be lost.
        rooms: usize,
    },
}

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// Who moves or starts.
    pub guest: usize,
    /// The rooms it leaves; none if it starts.
    pub from: Vec<usize>,
    /// The rooms it goes to.
    pub to: Vec<usize>,
    /// The steps that have to have ended before.
    pub after: Vec<usize>,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A step starts.
    Start(usize),
    /// A step ends.
    End(usize),
}

/// Something that went wrong, and what led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// All events up to the one that broke it.
    pub events: Vec<Event>,
    /// What is broken.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 12;
        write!(f, "{} after", self.what)?;
        if self.events.len() > SHOWN {
            write!(f, " ({} events)", self.events.len() - SHOWN)?;
        }
        for event in &self.events[self.events.len().saturating_sub(SHOWN)..] {
            match event {
                Event::Start(step) => write!(f, " start {step}")?,
                Event::End(step) => write!(f, " end {step}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tried {
    /// Interleavings run to the end; with every interleaving tried, one for each way through distinct states.
    pub runs: usize,
    /// Events checked.
    pub events: usize,
}

/// Runs the plan in every interleaving if it is short, else in `runs` random ones from `seed`. The world afterwards
/// has every guest of a step in the rooms of its last step.
///
/// # Errors
/// The first event after which something is broken that was not before.
pub fn replay(world: &World, acts: &[Act], runs: usize, seed: u64) -> Result<Tried, Fault> {
    check_shape(world, acts)?;
    let mut hotel = Hotel::new(world, acts);
    if acts.len() <= EXHAUSTIVE_STEPS_MAX {
        let mut tried = Tried::default();
        let mut seen = HashSet::new();
        hotel.explore(&mut seen, &mut tried)?;
        return Ok(tried);
    }
    let mut tried = Tried { runs: 0, events: 0 };
    let mut dice = Dice::new(seed);
    for run in 0..runs.max(1) {
        let mut hotel = Hotel::new(world, acts);
        let events = hotel.run(Temper::ALL[run % Temper::ALL.len()], &mut dice)?;
        tried = Tried { runs: tried.runs + 1, events: tried.events + events };
    }
    Ok(tried)
}

fn check_shape(world: &World, acts: &[Act]) -> Result<(), Fault> {
    let fault = |what: String| Fault { events: Vec::new(), what };
    for (n, act) in acts.iter().enumerate() {
        if act.guest >= world.guests.len() {
            return Err(fault(format!("step {n} is about a guest that is not there")));
        }
        if act.to.is_empty()
            || act.to.iter().chain(&act.from).any(|room| *room >= world.rooms.len())
        {
            return Err(fault(format!("step {n} is about a room that is not there")));
        }
        if act.after.iter().any(|before| *before >= acts.len()) {
            return Err(fault(format!("step {n} waits for a step that is not there")));
        }
    }
    Ok(())
}
