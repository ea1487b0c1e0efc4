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

use std::collections::{BTreeSet, HashSet};
use std::fmt;

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
    let mut dice = Dice(seed ^ 0x9E37_79B9_7F4A_7C15);
    for run in 0..runs.max(1) {
        let mut hotel = Hotel::new(world, acts);
        hotel.run(&Temper::ALL[run % Temper::ALL.len()], &mut dice)?;
        tried = Tried { runs: tried.runs + 1, events: tried.events + hotel.events.len() };
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

/// How the adversary likes its events.
#[derive(Debug, Clone, Copy)]
enum Temper {
    /// Starts everything that may start before anything ends.
    Crowding,
    /// Starts one thing, then any.
    Mixed,
    /// The newest step ends first.
    LastInFirstOut,
    /// Ends whatever runs before anything starts.
    Draining,
}

impl Temper {
    const ALL: [Self; 4] = [Self::Crowding, Self::Mixed, Self::LastInFirstOut, Self::Draining];
}

/// A small generator of its own, so that runs can be repeated: SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % (n.max(1) as u64)).unwrap_or(0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Status {
    Waits,
    Runs,
    Done,
}

struct Hotel<'a> {
    world: &'a World,
    acts: &'a [Act],
    status: Vec<Status>,
    /// Per room, who occupies it; a guest on its way is in the old and the new ones.
    present: Vec<Vec<usize>>,
    /// Per guest, the rooms it occupies and those it runs in.
    occupies: Vec<Vec<usize>>,
    lives: Vec<Vec<usize>>,
    laws_of: Vec<Vec<usize>>,
    /// How much each room is over and each law is broken before the first event.
    over_at_start: Vec<Vec<u64>>,
    broken_at_start: Vec<u64>,
    followers: Vec<Vec<usize>>,
    missing: Vec<usize>,
    ready: BTreeSet<usize>,
    running: Vec<usize>,
    events: Vec<Event>,
}

impl<'a> Hotel<'a> {
    fn new(world: &'a World, acts: &'a [Act]) -> Self {
        let mut present = vec![Vec::new(); world.rooms.len()];
        for (n, guest) in world.guests.iter().enumerate() {
            guest.rooms.iter().for_each(|room| present[*room].push(n));
        }
        let mut laws_of = vec![Vec::new(); world.guests.len()];
        for (n, law) in world.laws.iter().enumerate() {
            match law {
                Law::Crowd { guests, .. }
                | Law::Breadth { guests, .. }
                | Law::Narrowness { guests, .. }
                | Law::Inside { guests, .. } => guests.iter().for_each(|g| laws_of[*g].push(n)),
                Law::Company { guests, others, .. } => {
                    guests.iter().chain(others).for_each(|g| laws_of[*g].push(n));
                }
                Law::Reserve { .. } => laws_of.iter_mut().for_each(|laws| laws.push(n)),
            }
        }
        let mut followers = vec![Vec::new(); acts.len()];
        for (n, act) in acts.iter().enumerate() {
            let distinct: BTreeSet<usize> = act.after.iter().copied().collect();
            distinct.iter().for_each(|before| followers[*before].push(n));
        }
        let missing: Vec<usize> = acts
            .iter()
            .map(|act| act.after.iter().copied().collect::<BTreeSet<_>>().len())
            .collect();
        let lives: Vec<Vec<usize>> = world.guests.iter().map(|guest| guest.rooms.clone()).collect();
        let mut hotel = Self {
            world,
            acts,
            status: vec![Status::Waits; acts.len()],
            present,
            occupies: lives.clone(),
            lives,
            laws_of,
            over_at_start: Vec::new(),
            broken_at_start: Vec::new(),
            followers,
            ready: (0..acts.len()).filter(|n| missing[*n] == 0).collect(),
            missing,
            running: Vec::new(),
            events: Vec::new(),
        };
        hotel.over_at_start = (0..world.rooms.len()).map(|room| hotel.over(room)).collect();
        hotel.broken_at_start = (0..world.laws.len()).map(|law| hotel.broken(law)).collect();
        hotel
    }

    /// Every way through the states, each state once.
    fn explore(&mut self, seen: &mut HashSet<Vec<Status>>, tried: &mut Tried) -> Result<(), Fault> {
        if !seen.insert(self.status.clone()) {
            return Ok(());
        }
        if self.ready.is_empty() && self.running.is_empty() {
            self.finished()?;
            tried.runs += 1;
            return Ok(());
        }
        let starts: Vec<usize> = self.ready.iter().copied().collect();
        for step in starts {
            self.start(step)?;
            tried.events += 1;
            self.explore(seen, tried)?;
            self.unstart(step);
        }
        for step in self.running.clone() {
            self.end(step)?;
            tried.events += 1;
            self.explore(seen, tried)?;
            self.unend(step);
        }
        Ok(())
    }

    /// One random way.
    fn run(&mut self, temper: &Temper, dice: &mut Dice) -> Result<(), Fault> {
        while !(self.ready.is_empty() && self.running.is_empty()) {
            let may_start = !self.ready.is_empty();
            let may_end = !self.running.is_empty();
            let start = may_start
                && match temper {
                    Temper::Crowding => dice.below(64) > 0 || !may_end,
                    Temper::Draining => !may_end || dice.below(64) == 0,
                    Temper::Mixed | Temper::LastInFirstOut => !may_end || dice.below(2) == 0,
                };
            if start {
                let pick = dice.below(self.ready.len());
                let step = self.ready.iter().nth(pick).copied().unwrap_or_default();
                self.start(step)?;
            } else {
                let last = self.running.len() - 1;
                let pick = match temper {
                    Temper::LastInFirstOut => last,
                    _ => dice.below(self.running.len()),
                };
                self.end(self.running[pick])?;
            }
        }
        self.finished()
    }

    fn start(&mut self, step: usize) -> Result<(), Fault> {
        let act = &self.acts[step];
        self.events.push(Event::Start(step));
        if self.lives[act.guest] != act.from || self.occupies[act.guest] != act.from {
            return self
                .fault(format!("guest {} is not where step {step} takes it from", act.guest));
        }
        self.ready.remove(&step);
        self.running.push(step);
        self.status[step] = Status::Runs;
        for room in &act.to {
            if !self.occupies[act.guest].contains(room) {
                self.occupies[act.guest].push(*room);
                self.present[*room].push(act.guest);
            }
        }
        self.check(step)
    }

    fn end(&mut self, step: usize) -> Result<(), Fault> {
        let act = &self.acts[step];
        self.events.push(Event::End(step));
        self.running.retain(|running| *running != step);
        self.status[step] = Status::Done;
        for room in act.from.iter().filter(|room| !act.to.contains(room)) {
            self.present[*room].retain(|guest| *guest != act.guest);
        }
        self.occupies[act.guest].clone_from(&act.to);
        self.lives[act.guest].clone_from(&act.to);
        for follower in &self.followers[step] {
            self.missing[*follower] -= 1;
            if self.missing[*follower] == 0 {
                self.ready.insert(*follower);
            }
        }
        self.check(step)
    }

    fn unstart(&mut self, step: usize) {
        let act = &self.acts[step];
        self.events.pop();
        self.ready.insert(step);
        self.running.retain(|running| *running != step);
        self.status[step] = Status::Waits;
        for room in act.to.iter().filter(|room| !act.from.contains(room)) {
            self.present[*room].retain(|guest| *guest != act.guest);
        }
        self.occupies[act.guest].clone_from(&act.from);
    }

    fn unend(&mut self, step: usize) {
        let act = &self.acts[step];
        self.events.pop();
        self.running.push(step);
        self.status[step] = Status::Runs;
        for follower in &self.followers[step] {
            self.missing[*follower] += 1;
            self.ready.remove(follower);
        }
        self.occupies[act.guest].clone_from(&act.from);
        for room in act.to.iter().filter(|room| !act.from.contains(room)) {
            self.occupies[act.guest].push(*room);
        }
        self.lives[act.guest].clone_from(&act.from);
        for room in act.from.iter().filter(|room| !act.to.contains(room)) {
            self.present[*room].push(act.guest);
        }
    }

    /// Counts again whatever the step can have changed.
    fn check(&self, step: usize) -> Result<(), Fault> {
        let act = &self.acts[step];
        for room in act.from.iter().chain(&act.to) {
            let over = self.over(*room);
            if over.iter().zip(&self.over_at_start[*room]).any(|(now, start)| now > start) {
                return self.fault(format!("room {room} holds more than it has"));
            }
        }
        for law in &self.laws_of[act.guest] {
            if self.broken(*law) > self.broken_at_start[*law] {
                return self.fault(format!("law {law} is broken"));
            }
        }
        Ok(())
    }

    fn finished(&self) -> Result<(), Fault> {
        if let Some(step) = self.status.iter().position(|status| *status != Status::Done) {
            return self.fault(format!("step {step} waits for ever"));
        }
        for (guest, start) in self.world.guests.iter().enumerate() {
            let moved = self.acts.iter().any(|act| act.guest == guest);
            if !moved && self.lives[guest] != start.rooms {
                return self.fault(format!("guest {guest} moved without a step"));
            }
            let listed = self.present.iter().filter(|room| room.contains(&guest)).count();
            if moved && listed != self.lives[guest].len() {
                return self.fault(format!("guest {guest} is not in as many rooms as it has"));
            }
        }
        Ok(())
    }

    /// Per resource, by how much the room is over.
    fn over(&self, room: usize) -> Vec<u64> {
        let sum = |resource: usize| {
            let need = |guest: &usize| self.world.guests[*guest].need.get(resource).copied();
            self.present[room].iter().filter_map(need).map(u128::from).sum::<u128>()
        };
        let over = |(resource, most): (usize, &u64)| {
            u64::try_from(sum(resource).saturating_sub(u128::from(*most))).unwrap_or(u64::MAX)
        };
        self.world.rooms[room].iter().enumerate().map(over).collect()
    }

    /// How badly a law is broken, zero if it holds.
    fn broken(&self, law: usize) -> u64 {
        let scopes_of = |guests: &[usize], scopes: &[usize], rooms: &[Vec<usize>]| {
            let mut list = Vec::new();
            for guest in guests {
                let own: BTreeSet<usize> = rooms[*guest].iter().map(|room| scopes[*room]).collect();
                list.extend(own);
            }
            list.sort_unstable();
            list
        };
        let distinct = |mut list: Vec<usize>| {
            list.dedup();
            list
        };
        let broken = match &self.world.laws[law] {
            Law::Crowd { guests, scopes, most } => {
                let list = scopes_of(guests, scopes, &self.occupies);
                list.chunk_by(|a, b| a == b).map(|same| same.len().saturating_sub(*most)).sum()
            }
            Law::Breadth { guests, scopes, least } => {
                least.saturating_sub(distinct(scopes_of(guests, scopes, &self.lives)).len())
            }
            Law::Narrowness { guests, scopes, most } => {
                distinct(scopes_of(guests, scopes, &self.occupies)).len().saturating_sub(*most)
            }
            Law::Inside { guests, rooms } => guests
                .iter()
                .flat_map(|guest| &self.occupies[*guest])
                .filter(|room| !rooms.contains(room))
                .count(),
            Law::Company { guests, others, scopes } => {
                let company = distinct(scopes_of(others, scopes, &self.lives));
                let alone = distinct(scopes_of(guests, scopes, &self.occupies));
                alone.iter().filter(|scope| company.binary_search(scope).is_err()).count()
            }
            Law::Reserve { rooms } => return self.reserve_missing(*rooms),
        };
        broken as u64
    }

    fn reserve_missing(&self, lost: usize) -> u64 {
        let resources = self.world.rooms.iter().map(Vec::len).max().unwrap_or(0);
        let mut worst = 0;
        for resource in 0..resources {
            let mut sizes: Vec<u128> = self
                .world
                .rooms
                .iter()
                .map(|room| u128::from(room.get(resource).copied().unwrap_or(0)))
                .collect();
            sizes.sort_unstable_by(|a, b| b.cmp(a));
            let kept: u128 = sizes.iter().skip(lost).sum();
            let used: u128 = self
                .occupies
                .iter()
                .zip(&self.world.guests)
                .map(|(rooms, guest)| {
                    rooms.len() as u128 * u128::from(guest.need.get(resource).copied().unwrap_or(0))
                })
                .sum();
            worst = worst.max(u64::try_from(used.saturating_sub(kept)).unwrap_or(u64::MAX));
        }
        worst
    }

    fn fault<T>(&self, what: String) -> Result<T, Fault> {
        Err(Fault { events: self.events.clone(), what })
    }
}
