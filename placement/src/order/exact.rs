//! The cheapest sequence of a small part, by best-first search over where each
//! of its VMs is.
//!
//! A state is one place a VM. Every move costs one, then its bytes; the number
//! of VMs not yet at their target never overestimates what is left (A*). So the
//! first complete state popped has the fewest extra moves, and among those the
//! fewest bytes. If none is reachable, the best incomplete one is the repaired
//! target: most worth at targets, then at alternatives, then fewest moves.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::books::{Books, Move};
use super::{EXACT_MOVES_MAX, Ground, Place, Role, Transition};

/// How many moves are looked at for all parts together, at most.
pub(super) const EFFORT: usize = 4_000_000;
/// How many moves are looked at for one part, at most.
const EFFORT_PART: usize = 200_000;
/// How many places are tried for parking one VM, at most.
const PARKING_MAX: usize = 16;

/// Where the VMs are: per VM an index into its spots; [`SOURCE`], [`TARGET`], or beyond for parking.
type Spots = Vec<u8>;
const SOURCE: u8 = 0;
const TARGET: u8 = 1;

struct Traveller {
    /// Where it may be; nothing for "not started yet", which only the source can be.
    spots: Vec<Option<Place>>,
    /// How many of the spots from [`TARGET`] on are good enough to stay at.
    good: usize,
    weight: u64,
    bytes: u64,
}

struct Node {
    at: Spots,
    /// The node before and the VM that moved.
    came: Option<(usize, usize)>,
    moves: usize,
    bytes: u64,
}

/// Makes the cheapest sequence and returns what it leaves out, or makes nothing and returns nothing if the part is
/// too large to be decided. Without `detours` it also makes nothing if not every VM can go straight to its target.
pub(super) fn search<G: Ground>(
    books: &mut Books<'_, G>,
    transitions: &[Transition],
    part: &[usize],
    detours: bool,
    effort: &mut usize,
) -> Option<Vec<usize>> {
    if part.len() > EXACT_MOVES_MAX {
        return None;
    }
    let travellers: Vec<_> =
        part.iter().map(|n| traveller(books, &transitions[*n], detours)).collect();
    let mut search = Search {
        books,
        part,
        transitions,
        travellers,
        compiled: HashMap::new(),
        nodes: Vec::new(),
        seen: HashMap::new(),
    };
    let mut budget = (*effort).min(EFFORT_PART);
    let spent = budget;
    let found = search.run(&mut budget);
    *effort -= spent - budget;
    let end = search.nodes[found?].at.clone();
    if !detours && end.iter().any(|at| *at != TARGET) {
        return None;
    }
    let path = search.path(found?);
    for (vm, from, to) in path {
        let role = search.role(vm, to, end[vm]);
        let mut step = search.step(vm, from, to);
        step.role = role;
        search.books.make(step);
    }
    Some(part.iter().zip(&end).filter(|(_, at)| **at != TARGET).map(|(n, _)| *n).collect())
}

fn traveller<G: Ground>(books: &mut Books<'_, G>, wanted: &Transition, detours: bool) -> Traveller {
    let ground = books.ground();
    let mut spots = vec![wanted.from, Some(wanted.to)];
    if !detours {
        let (weight, bytes) = (u64::from(wanted.weight), ground.bytes(wanted.vm));
        return Traveller { spots, good: 1, weight, bytes };
    }
    for place in ground.alternatives(wanted.vm).into_iter().take(PARKING_MAX) {
        if !spots.contains(&Some(place)) && ground.allows(wanted.vm, place) {
            spots.push(Some(place));
        }
    }
    let good = spots.len() - 1;
    parking(books, wanted, &mut spots);
    Traveller { spots, good, weight: u64::from(wanted.weight), bytes: ground.bytes(wanted.vm) }
}

/// Adds the places with room for the VM now, or all places if they are few.
fn parking<G: Ground>(
    books: &mut Books<'_, G>,
    wanted: &Transition,
    spots: &mut Vec<Option<Place>>,
) {
    let ground = books.ground();
    let places = ground.places();
    let few = places as usize <= PARKING_MAX;
    let most = spots.len() + PARKING_MAX;
    for n in 0..places {
        // Begins beside the source, so that not everything is parked at the first place.
        let place = (n + wanted.from.unwrap_or(0) + 1) % places;
        if spots.len() == most {
            break;
        }
        if spots.contains(&Some(place)) || !ground.allows(wanted.vm, place) {
            continue;
        }
        let step = books.compile(wanted.vm, wanted.from, place, Role::Parking);
        if few || books.obstacle(&step).is_none() {
            spots.push(Some(place));
        }
    }
}

struct Search<'a, 'g, G> {
    books: &'a mut Books<'g, G>,
    part: &'a [usize],
    transitions: &'a [Transition],
    travellers: Vec<Traveller>,
    compiled: HashMap<(usize, u8, u8), Move>,
    nodes: Vec<Node>,
    /// Moves and bytes of the cheapest way known to each state.
    seen: HashMap<Spots, (usize, u64)>,
}

impl<G: Ground> Search<'_, '_, G> {
    /// The node of the cheapest complete state, or of the best incomplete one; nothing if the budget ran out.
    fn run(&mut self, budget: &mut usize) -> Option<usize> {
        let start = vec![SOURCE; self.travellers.len()];
        self.seen.insert(start.clone(), (0, 0));
        self.nodes.push(Node { at: start, came: None, moves: 0, bytes: 0 });
        // Fewest moves in all, then fewest bytes in all, then nearest to the end.
        let mut open = BinaryHeap::from([Reverse(self.rank(0))]);
        let mut best = (self.worth(0), 0);
        let mut now: Spots = self.nodes[0].at.clone();
        while let Some(Reverse((_, _, left, n))) = open.pop() {
            let (moves, bytes) = (self.nodes[n].moves, self.nodes[n].bytes);
            if self.seen.get(&self.nodes[n].at) != Some(&(moves, bytes)) {
                continue;
            }
            let worth = self.worth(n);
            if worth > best.0 {
                best = (worth, n);
            }
            if left == 0 {
                self.travel(&mut now, &vec![SOURCE; self.travellers.len()]);
                return Some(n);
            }
            let at = self.nodes[n].at.clone();
            self.travel(&mut now, &at);
            for (vm, to) in self.exits(&at) {
                if *budget == 0 {
                    self.travel(&mut now, &vec![SOURCE; self.travellers.len()]);
                    return None;
                }
                *budget -= 1;
                let step = self.step(vm, at[vm], to);
                if self.books.obstacle(&step).is_some() {
                    continue;
                }
                let mut next = at.clone();
                next[vm] = to;
                let cost = (moves + 1, bytes.saturating_add(self.travellers[vm].bytes));
                if self.seen.get(&next).is_some_and(|known| *known <= cost) {
                    continue;
                }
                self.seen.insert(next.clone(), cost);
                let came = Some((n, vm));
                self.nodes.push(Node { at: next, came, moves: cost.0, bytes: cost.1 });
                open.push(Reverse(self.rank(self.nodes.len() - 1)));
            }
        }
        self.travel(&mut now, &vec![SOURCE; self.travellers.len()]);
        Some(best.1)
    }

    /// Moves and bytes in all if everything went straight to its target from here, VMs to go, and the node.
    fn rank(&self, node: usize) -> (usize, u64, usize, usize) {
        let Node { at, moves, bytes, .. } = &self.nodes[node];
        let to_go = || self.travellers.iter().zip(at).filter(|(_, at)| **at != TARGET);
        let left = to_go().count();
        let bytes = to_go().fold(*bytes, |sum, (vm, _)| sum.saturating_add(vm.bytes));
        (moves + left, bytes, left, node)
    }

    /// Where each VM could go next, whether there is room or not.
    fn exits(&self, at: &Spots) -> Vec<(usize, u8)> {
        let mut exits = Vec::new();
        for (vm, traveller) in self.travellers.iter().enumerate() {
            let spots = u8::try_from(traveller.spots.len()).unwrap_or(u8::MAX);
            let backwards = traveller.spots[usize::from(SOURCE)].is_none();
            exits.extend(
                (u8::from(backwards)..spots).filter(|spot| *spot != at[vm]).map(|spot| (vm, spot)),
            );
        }
        exits
    }

    /// How good a state is as an end: nothing if a VM is left where it should not stay.
    fn worth(&self, node: usize) -> (u64, Reverse<(usize, u64)>) {
        let node = &self.nodes[node];
        let mut sum = 1;
        for (traveller, at) in self.travellers.iter().zip(&node.at) {
            match *at {
                SOURCE => {}
                TARGET => sum += 2 * traveller.weight,
                spot if usize::from(spot) <= traveller.good => sum += traveller.weight,
                _ => return (0, Reverse((0, 0))),
            }
        }
        (sum, Reverse((node.moves, node.bytes)))
    }

    /// Brings the books from one state to another.
    fn travel(&mut self, now: &mut Spots, to: &Spots) {
        for vm in 0..now.len() {
            if now[vm] == to[vm] {
                continue;
            }
            // By way of the source, so that what was not started can be taken back.
            if now[vm] != SOURCE {
                let step = self.step(vm, SOURCE, now[vm]);
                self.books.revert(&step);
            }
            if to[vm] != SOURCE {
                let step = self.step(vm, SOURCE, to[vm]);
                self.books.apply(&step);
            }
            now[vm] = to[vm];
        }
    }

    fn step(&mut self, vm: usize, from: u8, to: u8) -> Move {
        if let Some(step) = self.compiled.get(&(vm, from, to)) {
            return step.clone();
        }
        let spots = &self.travellers[vm].spots;
        let (source, target) = (spots[usize::from(from)], spots[usize::from(to)]);
        let wanted = &self.transitions[self.part[vm]];
        let step = self.books.compile(wanted.vm, source, target.unwrap_or(wanted.to), Role::Final);
        self.compiled.insert((vm, from, to), step.clone());
        step
    }

    fn role(&self, vm: usize, to: u8, end: u8) -> Role {
        if to == TARGET {
            Role::Final
        } else if to == SOURCE {
            Role::Back
        } else if to == end && usize::from(to) <= self.travellers[vm].good {
            Role::Rerouted
        } else {
            Role::Parking
        }
    }

    /// The moves that lead to a node: VM, from, to.
    fn path(&self, mut node: usize) -> Vec<(usize, u8, u8)> {
        let mut path = Vec::new();
        while let Some((before, vm)) = self.nodes[node].came {
            path.push((vm, self.nodes[before].at[vm], self.nodes[node].at[vm]));
            node = before;
        }
        path.reverse();
        path
    }
}
