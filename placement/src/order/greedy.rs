//! A sequence of a part of any size: make what is possible, then break a circle
//! by parking the cheapest VM that lets another go on, then take another place
//! for one, and give up what is left. Every VM parks at most once, so it ends.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::books::{Books, Move, Slot};
use super::{Ground, Place, Role, Transition};

/// How many VMs are tried for parking before another place is taken for one, at most.
const TRIES_MAX: usize = 256;

/// How often a part is begun anew because of a VM that could not leave its parking place, at most.
const ROUNDS_MAX: usize = 8;

struct Pending {
    step: Move,
    may_park: bool,
    parked: bool,
}

/// Makes as many of the part's transitions as it can and returns the rest.
pub(super) fn run<G: Ground>(
    books: &mut Books<'_, G>,
    transitions: &[Transition],
    part: &[usize],
) -> Vec<usize> {
    let mut stay = BTreeSet::new();
    let start = books.steps();
    for round in 0..=ROUNDS_MAX {
        if round == ROUNDS_MAX {
            stay.extend(part);
        }
        let (missed, stranded) = attempt(books, transitions, part, &stay);
        if stranded.is_empty() {
            return missed;
        }
        // A VM that was parked and got no further is as good as lost: next time it is left in peace.
        stay.extend(stranded);
        books.take_back(start);
    }
    part.to_vec()
}

/// One attempt that parks none of `stay`: what was not reached, and what is left at a parking place.
fn attempt<G: Ground>(
    books: &mut Books<'_, G>,
    transitions: &[Transition],
    part: &[usize],
    stay: &BTreeSet<usize>,
) -> (Vec<usize>, Vec<usize>) {
    let mut pending: BTreeMap<usize, Pending> = BTreeMap::new();
    for n in part {
        let wanted = &transitions[*n];
        let step = books.compile(wanted.vm, wanted.from, wanted.to, Role::Final);
        pending.insert(*n, Pending { step, may_park: !stay.contains(n), parked: false });
    }
    let mut ready = ranked(books, &pending);
    let mut missed = Vec::new();
    loop {
        advance(books, &mut pending, ready);
        if pending.is_empty() {
            break;
        }
        let freed = park(books, &mut pending).or_else(|| reroute(books, &mut pending, &mut missed));
        match freed {
            Some(slots) => ready = waiting_for(&pending, &slots),
            None => break,
        }
    }
    let stranded = pending.iter().filter(|(_, entry)| entry.parked).map(|(n, _)| *n).collect();
    missed.extend(pending.into_keys());
    (missed, stranded)
}

/// The pending moves, those first that take nothing others could be short of, then those whose place is waited for.
fn ranked<G: Ground>(books: &Books<'_, G>, pending: &BTreeMap<usize, Pending>) -> Vec<usize> {
    let mut wanted: HashMap<Slot, u64> = HashMap::new();
    for pending in pending.values() {
        for (slot, amount) in &pending.step.takes {
            *wanted.entry(*slot).or_default() += amount;
        }
    }
    let short = |slot: &Slot| wanted.get(slot).is_some_and(|amount| *amount > books.room(*slot));
    let mut order: Vec<_> = pending
        .iter()
        .map(|(n, pending)| {
            let takes = pending.step.takes.iter().filter(|(slot, _)| short(slot)).count();
            let frees = pending.step.frees.iter().filter(|(slot, _)| short(slot)).count();
            (takes, usize::MAX - frees, *n)
        })
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, _, n)| n).collect()
}

/// Makes every move that is possible or becomes so, beginning with `ready`.
fn advance<G: Ground>(
    books: &mut Books<'_, G>,
    pending: &mut BTreeMap<usize, Pending>,
    ready: Vec<usize>,
) {
    let mut waiting: HashMap<Slot, Vec<usize>> = HashMap::new();
    let mut queue = VecDeque::from(ready);
    // What others could be waiting for without having been asked in this round.
    for (n, pending) in pending.iter() {
        if let Some(slot) = books.obstacle(&pending.step) {
            waiting.entry(slot).or_default().push(*n);
        }
    }
    while let Some(n) = queue.pop_front() {
        let Some(entry) = pending.get(&n) else { continue };
        if let Some(slot) = books.obstacle(&entry.step) {
            waiting.entry(slot).or_default().push(n);
            continue;
        }
        let Some(Pending { step, .. }) = pending.remove(&n) else { continue };
        let touched = touched(books, &step);
        books.make(step);
        for slot in touched {
            queue.extend(waiting.remove(&slot).unwrap_or_default());
        }
    }
}

/// The counters whose waiters may go on once the step is made.
fn touched<G: Ground>(books: &Books<'_, G>, step: &Move) -> Vec<Slot> {
    let ledger = books.ledger();
    let mut slots: Vec<Slot> = Vec::new();
    for (slot, _) in step.takes.iter().chain(&step.frees) {
        slots.push(*slot);
        slots.extend(&ledger.needs[*slot as usize]);
        slots.extend(&ledger.needed_by[*slot as usize]);
        if let Some(group) = ledger.counters[*slot as usize].group {
            slots.extend(&ledger.groups[&group].slots);
        }
    }
    slots.sort_unstable();
    slots.dedup();
    slots
}

fn waiting_for(pending: &BTreeMap<usize, Pending>, slots: &[Slot]) -> Vec<usize> {
    let wants = |step: &Move| {
        step.takes.iter().chain(&step.frees).any(|(slot, _)| slots.binary_search(slot).is_ok())
    };
    pending.iter().filter(|(_, entry)| wants(&entry.step)).map(|(n, _)| *n).collect()
}

/// Parks the VM with the fewest bytes whose leaving lets another move go on; returns what that touches.
fn park<G: Ground>(
    books: &mut Books<'_, G>,
    pending: &mut BTreeMap<usize, Pending>,
) -> Option<Vec<Slot>> {
    let blocked: BTreeSet<Slot> =
        pending.values().filter_map(|entry| books.obstacle(&entry.step)).collect();
    let ground = books.ground();
    let mut candidates: Vec<_> = pending
        .iter()
        .filter(|(_, entry)| entry.may_park && entry.step.from.is_some())
        .filter(|(_, entry)| entry.step.frees.iter().any(|(slot, _)| blocked.contains(slot)))
        .map(|(n, entry)| (ground.bytes(entry.step.vm), *n))
        .collect();
    candidates.sort_unstable();
    for (_, n) in candidates.into_iter().take(TRIES_MAX) {
        let (vm, from) = (pending[&n].step.vm, pending[&n].step.from);
        let Some(step) = parking_place(books, vm, from, pending[&n].step.to) else { continue };
        books.apply(&step);
        let helps = pending
            .iter()
            .any(|(other, entry)| *other != n && books.obstacle(&entry.step).is_none());
        books.revert(&step);
        if !helps {
            continue;
        }
        let (place, slots) = (step.to, touched(books, &step));
        let onward = books.compile(vm, Some(place), pending[&n].step.to, Role::Final);
        books.make(step);
        pending.insert(n, Pending { step: onward, may_park: false, parked: true });
        return Some(slots);
    }
    None
}

/// The place with the most room for the VM.
fn parking_place<G: Ground>(
    books: &mut Books<'_, G>,
    vm: u32,
    from: Option<Place>,
    target: Place,
) -> Option<Move> {
    let ground = books.ground();
    let mut best: Option<(u64, Move)> = None;
    for place in 0..ground.places() {
        if place == target || Some(place) == from || !ground.allows(vm, place) {
            continue;
        }
        let step = books.compile(vm, from, place, Role::Parking);
        if books.obstacle(&step).is_some() {
            continue;
        }
        let room = step.takes.iter().map(|(slot, amount)| books.room(*slot) / amount).min();
        let room = room.unwrap_or(u64::MAX);
        if best.as_ref().is_none_or(|(most, _)| room > *most) {
            best = Some((room, step));
        }
    }
    best.map(|(_, step)| step)
}

/// Sends one VM to another place that would do; returns what that touches.
fn reroute<G: Ground>(
    books: &mut Books<'_, G>,
    pending: &mut BTreeMap<usize, Pending>,
    missed: &mut Vec<usize>,
) -> Option<Vec<Slot>> {
    let ground = books.ground();
    for (n, entry) in pending.iter() {
        let (vm, from) = (entry.step.vm, entry.step.from);
        for place in ground.alternatives(vm) {
            if Some(place) == from || !ground.allows(vm, place) {
                continue;
            }
            let step = books.compile(vm, from, place, Role::Rerouted);
            if books.obstacle(&step).is_none() {
                let (n, slots) = (*n, touched(books, &step));
                books.make(step);
                pending.remove(&n);
                missed.push(n);
                return Some(slots);
            }
        }
    }
    None
}
