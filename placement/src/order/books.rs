//! What is in use while a sequence is being found, and the steps found so far.
//!
//! Counters are numbered in the order in which they are first met; what no move
//! touches is never asked for. One step is made at a time here: what several
//! steps at once may do is the business of [`depend`](super::depend).

use std::collections::HashMap;

use super::{Claim, Counter, Ground, Group, Key, Place, Role, Vm};

/// A counter's number in these books.
pub(super) type Slot = u32;

/// A step with its effect on the counters.
#[derive(Debug, Clone)]
pub(super) struct Move {
    pub(super) vm: Vm,
    pub(super) from: Option<Place>,
    pub(super) to: Place,
    pub(super) role: Role,
    /// Taken when it starts.
    pub(super) takes: Vec<(Slot, u64)>,
    /// Given back when it ends.
    pub(super) frees: Vec<(Slot, u64)>,
}

/// The counters and groups without what is in use now.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) counters: Vec<Counter>,
    pub(super) groups: HashMap<Key, GroupBook>,
    /// Per counter: those that have to be in use while it is.
    pub(super) needs: Vec<Vec<Slot>>,
    /// Per counter: those that may only be in use while it is.
    pub(super) needed_by: Vec<Vec<Slot>>,
}

#[derive(Debug)]
pub(super) struct GroupBook {
    pub(super) start: Group,
    /// Its counters met so far.
    pub(super) slots: Vec<Slot>,
    open: u32,
}

pub(super) struct Books<'g, G> {
    ground: &'g G,
    slots: HashMap<Key, Slot>,
    ledger: Ledger,
    /// Wider than amounts are: sums of extreme sizes are counted to the letter.
    used: Vec<i128>,
    made: Vec<Move>,
    claims: [Vec<Claim>; 2],
}

impl<'g, G: Ground> Books<'g, G> {
    pub(super) fn new(ground: &'g G) -> Self {
        Self {
            ground,
            slots: HashMap::new(),
            ledger: Ledger::default(),
            used: Vec::new(),
            made: Vec::new(),
            claims: [Vec::new(), Vec::new()],
        }
    }

    pub(super) fn ground(&self) -> &'g G {
        self.ground
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// A step from one place to the other with what it takes and gives back.
    pub(super) fn compile(&mut self, vm: Vm, from: Option<Place>, to: Place, role: Role) -> Move {
        let [mut here, mut there] = std::mem::take(&mut self.claims);
        here.clear();
        there.clear();
        if let Some(from) = from {
            self.ground.claims(vm, from, &mut here);
        }
        self.ground.claims(vm, to, &mut there);
        let mut takes = self.numbered(&there);
        let mut frees = self.numbered(&here);
        for (slot, taken) in &mut takes {
            let same = frees.iter_mut().find(|(s, _)| s == slot);
            if let (Some((_, freed)), true) = (same, self.ledger.counters[*slot as usize].once) {
                let both = (*taken).min(*freed);
                *taken -= both;
                *freed -= both;
            }
        }
        takes.retain(|(_, amount)| *amount > 0);
        frees.retain(|(_, amount)| *amount > 0);
        self.claims = [here, there];
        Move { vm, from, to, role, takes, frees }
    }

    fn numbered(&mut self, claims: &[Claim]) -> Vec<(Slot, u64)> {
        claims.iter().map(|claim| (self.slot(claim.key), claim.amount)).collect()
    }

    /// The number of a counter, with those it is bound to.
    fn slot(&mut self, key: Key) -> Slot {
        if let Some(slot) = self.slots.get(&key) {
            return *slot;
        }
        let first = self.enter(key);
        let (mut todo, mut keys) = (vec![(key, first)], Vec::new());
        while let Some((key, slot)) = todo.pop() {
            keys.clear();
            self.ground.needs(key, &mut keys);
            let needed = keys.len();
            self.ground.needed_by(key, &mut keys);
            for (n, other) in keys.iter().enumerate() {
                let known = self.slots.get(other).copied();
                let other_slot = known.unwrap_or_else(|| {
                    let fresh = self.enter(*other);
                    todo.push((*other, fresh));
                    fresh
                });
                let list =
                    if n < needed { &mut self.ledger.needs } else { &mut self.ledger.needed_by };
                list[slot as usize].push(other_slot);
            }
        }
        first
    }

    fn enter(&mut self, key: Key) -> Slot {
        #[allow(clippy::cast_possible_truncation)] // fewer than 2^32 claims fit in memory
        let slot = self.ledger.counters.len() as Slot;
        let counter = self.ground.counter(key);
        if let Some(group) = counter.group {
            let ground = self.ground;
            let book = self.ledger.groups.entry(group).or_insert_with(|| {
                let start = ground.group(group);
                GroupBook { start, slots: Vec::new(), open: start.open }
            });
            book.slots.push(slot);
        }
        self.used.push(counter.used.into());
        self.ledger.counters.push(counter);
        self.ledger.needs.push(Vec::new());
        self.ledger.needed_by.push(Vec::new());
        self.slots.insert(key, slot);
        slot
    }

    /// What the step would break if it were made now, alone; nothing if it is legal.
    pub(super) fn obstacle(&self, step: &Move) -> Option<Slot> {
        self.start_breaks(step).or_else(|| self.end_breaks(step))
    }

    fn start_breaks(&self, step: &Move) -> Option<Slot> {
        for (n, (slot, amount)) in step.takes.iter().enumerate() {
            let ix = *slot as usize;
            let counter = &self.ledger.counters[ix];
            if self.used[ix] + i128::from(*amount) > counter.limit.into() {
                return Some(*slot);
            }
            if self.ledger.needs[ix].iter().any(|other| self.used[*other as usize] == 0) {
                return Some(*slot);
            }
            if let (Some(group), 0) = (counter.group, self.used[ix]) {
                let book = &self.ledger.groups[&group];
                let also = step.takes[..n].iter().filter(|(s, _)| {
                    self.used[*s as usize] == 0
                        && self.ledger.counters[*s as usize].group == Some(group)
                });
                if book.open as usize + also.count() >= book.start.open_max as usize {
                    return Some(*slot);
                }
            }
        }
        None
    }

    fn end_breaks(&self, step: &Move) -> Option<Slot> {
        let taken = |slot: Slot| {
            step.takes.iter().find(|(s, _)| *s == slot).map_or(0, |(_, amount)| i128::from(*amount))
        };
        let after = |slot: Slot| {
            let freed = step.frees.iter().find(|(s, _)| *s == slot);
            let freed = freed.map_or(0, |(_, amount)| i128::from(*amount));
            (self.used[slot as usize] + taken(slot) - freed).max(0)
        };
        for (slot, _) in &step.frees {
            let ix = *slot as usize;
            let counter = &self.ledger.counters[ix];
            let left = after(*slot);
            if left < counter.floor.into() {
                return Some(*slot);
            }
            if left > 0 {
                continue;
            }
            if self.ledger.needed_by[ix].iter().any(|other| after(*other) > 0) {
                return Some(*slot);
            }
            if let Some(group) = counter.group {
                let book = &self.ledger.groups[&group];
                let open = book.slots.iter().fold(i64::from(book.open), |open, s| {
                    open + i64::from(after(*s) > 0) - i64::from(self.used[*s as usize] > 0)
                });
                if open < i64::from(book.start.open_min) {
                    return Some(*slot);
                }
            }
        }
        None
    }

    /// Makes the step without asking and without keeping it.
    pub(super) fn apply(&mut self, step: &Move) {
        self.add(&step.takes, 1);
        self.add(&step.frees, -1);
    }

    /// Takes [`apply`](Self::apply) back.
    pub(super) fn revert(&mut self, step: &Move) {
        self.add(&step.frees, 1);
        self.add(&step.takes, -1);
    }

    fn add(&mut self, amounts: &[(Slot, u64)], times: i128) {
        for (slot, amount) in amounts {
            self.change(*slot, times * i128::from(*amount));
        }
    }

    fn change(&mut self, slot: Slot, by: i128) {
        let ix = slot as usize;
        let was = self.used[ix];
        self.used[ix] = was + by;
        if let Some(group) = self.ledger.counters[ix].group
            && let Some(book) = self.ledger.groups.get_mut(&group)
        {
            match (was, self.used[ix]) {
                (0, 1..) => book.open += 1,
                (1.., 0) => book.open -= 1,
                _ => {}
            }
        }
    }

    /// Makes the step, which is legal now, and keeps it.
    pub(super) fn make(&mut self, step: Move) {
        debug_assert!(self.obstacle(&step).is_none(), "{step:?}");
        self.apply(&step);
        self.made.push(step);
    }

    /// How many steps have been made.
    pub(super) fn steps(&self) -> usize {
        self.made.len()
    }

    /// Takes back all steps but the first `kept`.
    pub(super) fn take_back(&mut self, kept: usize) {
        for step in self.made.split_off(kept).iter().rev() {
            self.revert(step);
        }
    }

    /// The room left under a counter's limit.
    pub(super) fn room(&self, slot: Slot) -> u64 {
        let ix = slot as usize;
        let room = i128::from(self.ledger.counters[ix].limit) - self.used[ix];
        u64::try_from(room.max(0)).unwrap_or(u64::MAX)
    }

    /// The steps made, and the books as they were before the first.
    pub(super) fn finish(self) -> (Vec<Move>, Ledger) {
        (self.made, self.ledger)
    }
}
