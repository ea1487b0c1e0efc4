//! The adversary: who waits, who runs, and which of the allowed events comes next.

use std::collections::{BTreeSet, HashSet};

use super::{Act, Event, Fault, Tried, World};

/// How the adversary likes its events.
#[derive(Debug, Clone, Copy)]
pub(super) enum Temper {
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
    pub(super) const ALL: [Self; 4] =
        [Self::Crowding, Self::Mixed, Self::LastInFirstOut, Self::Draining];
}

/// A small generator of its own, so that runs can be repeated: SplitMix64.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed ^ 0x9E37_79B9_7F4A_7C15)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % (n.max(1) as u64)).unwrap_or(0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Status {
    Waits,
    Runs,
    Done,
}

/// The world under way. Its guests move by the events that the adversary chooses.
pub(super) struct Hotel<'a> {
    pub(super) world: &'a World,
    acts: &'a [Act],
    status: Vec<Status>,
    /// Per room, who occupies it; a guest on its way is in the old and the new ones.
    pub(super) present: Vec<Vec<usize>>,
    /// Per guest, the rooms it occupies and those it runs in.
    pub(super) occupies: Vec<Vec<usize>>,
    pub(super) lives: Vec<Vec<usize>>,
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
    pub(super) fn new(world: &'a World, acts: &'a [Act]) -> Self {
        let mut present = vec![Vec::new(); world.rooms.len()];
        for (n, guest) in world.guests.iter().enumerate() {
            guest.rooms.iter().for_each(|room| present[*room].push(n));
        }
        let mut laws_of = vec![Vec::new(); world.guests.len()];
        for (n, law) in world.laws.iter().enumerate() {
            law.bound(world.guests.len()).for_each(|guest| laws_of[guest].push(n));
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
    pub(super) fn explore(
        &mut self,
        seen: &mut HashSet<Vec<Status>>,
        tried: &mut Tried,
    ) -> Result<(), Fault> {
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

    /// One random way; how many events it had.
    pub(super) fn run(&mut self, temper: Temper, dice: &mut Dice) -> Result<usize, Fault> {
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
        self.finished()?;
        Ok(self.events.len())
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
        let mut moved = vec![false; self.world.guests.len()];
        self.acts.iter().for_each(|act| moved[act.guest] = true);
        let mut listed = vec![0; self.world.guests.len()];
        self.present.iter().flatten().for_each(|guest| listed[*guest] += 1);
        for (guest, start) in self.world.guests.iter().enumerate() {
            if !moved[guest] && self.lives[guest] != start.rooms {
                return self.fault(format!("guest {guest} moved without a step"));
            }
            if moved[guest] && listed[guest] != self.lives[guest].len() {
                return self.fault(format!("guest {guest} is not in as many rooms as it has"));
            }
        }
        Ok(())
    }

    fn fault<T>(&self, what: String) -> Result<T, Fault> {
        Err(Fault { events: self.events.clone(), what })
    }
}
