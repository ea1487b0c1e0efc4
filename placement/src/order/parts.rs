//! Which moves contend: those that touch a counter that some order of the moves
//! could drive out of bounds. Moves that contend for nothing are parts of their
//! own, so that what has to be searched stays small.

use std::collections::{BTreeMap, HashMap};

use petgraph::unionfind::UnionFind;

use super::books::{Books, Move, Slot};
use super::{Ground, Role, Transition};

/// The wanted transitions, as indices, part by part; within a part and among parts in the order given.
pub(super) fn split<G: Ground>(
    books: &mut Books<'_, G>,
    transitions: &[Transition],
    wanted: &[usize],
) -> Vec<Vec<usize>> {
    let moves: Vec<Move> = wanted
        .iter()
        .map(|n| &transitions[*n])
        .map(|wanted| books.compile(wanted.vm, wanted.from, wanted.to, Role::Final))
        .collect();
    let mut together = UnionFind::new(moves.len());
    let mut first: HashMap<Slot, usize> = HashMap::new();
    let tight = tight(books, &moves);
    for (n, step) in moves.iter().enumerate() {
        for (slot, _) in step.takes.iter().chain(&step.frees) {
            // What is bound together is one thing.
            let things = books.ledger().needs[*slot as usize]
                .iter()
                .chain(&books.ledger().needed_by[*slot as usize])
                .chain([slot]);
            for thing in things.filter(|slot| tight[**slot as usize]) {
                let group = books.ledger().counters[*thing as usize].group;
                let thing = group.map_or(*thing, |group| books.ledger().groups[&group].slots[0]);
                together.union(*first.entry(thing).or_insert(n), n);
            }
        }
    }
    let mut parts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut number: HashMap<usize, usize> = HashMap::new();
    for (n, transition) in wanted.iter().enumerate() {
        // Named by its first move, so that parts come in the order of the transitions.
        let name = *number.entry(together.find(n)).or_insert(n);
        parts.entry(name).or_default().push(*transition);
    }
    parts.into_values().collect()
}

/// Per counter, whether the order of the moves can matter to it.
fn tight<G: Ground>(books: &Books<'_, G>, moves: &[Move]) -> Vec<bool> {
    let ledger = books.ledger();
    // At most and at least in use under any order, and whether any move changes it for good.
    let mut most: Vec<u64> = ledger.counters.iter().map(|counter| counter.used).collect();
    let mut least = most.clone();
    let mut lasting = vec![false; most.len()];
    for step in moves {
        for (slot, amount) in &step.takes {
            most[*slot as usize] = most[*slot as usize].saturating_add(*amount);
            lasting[*slot as usize] |= !step.frees.contains(&(*slot, *amount));
        }
        for (slot, amount) in &step.frees {
            least[*slot as usize] = least[*slot as usize].saturating_sub(*amount);
            lasting[*slot as usize] |= !step.takes.contains(&(*slot, *amount));
        }
    }
    (0..most.len())
        .map(|n| {
            let counter = &ledger.counters[n];
            let bound = !ledger.needs[n].is_empty() || !ledger.needed_by[n].is_empty();
            lasting[n]
                && (most[n] > counter.limit
                    || least[n] < counter.floor
                    || counter.group.is_some()
                    || bound)
        })
        .collect()
}
