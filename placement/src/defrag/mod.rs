//! Room for big VMs: a bounded number of moves after which less of what is free
//! lies in pieces too small to use.
//!
//! ```text
//!  Yard ──▶ search (annealing, one walk a thread) ──▶ order ──▶ Defrag
//!  cells,    where the pieces end                     every      steps, rate before
//!  pieces                                             step fits  and after
//! ```
//!
//! What is free is counted per *cell*, a NUMA node or a whole host, and a big VM
//! needs a whole *unit* of a cell. The fragment rate is the share of all that is
//! free that no unit can be cut from: `Σ (free mod unit) / Σ free`. As moves do
//! not change what is free in all, the search counts units, `Σ ⌊free / unit⌋`.
//!
//! A piece takes the same of each of its cells, and all its cells are on one
//! host. A move takes it to another host; while it moves it is on both.

mod search;
mod yard;

use ballast_model::Refusal;

use crate::order::{Order, Transition, order};
pub use yard::{Cell, Piece, Yard};

/// What the search may spend.
pub struct Effort<'a> {
    /// The most moves.
    pub moves_max: usize,
    /// Where the random numbers begin.
    pub seed: u64,
    /// Walks at the same time, each on a thread of its own.
    pub threads: usize,
    /// What part of the time a walk has spent after so many trials; it ends at 1. The result depends on the seed and
    /// the threads alone if this depends on the trials alone.
    pub spent: &'a (dyn Fn(u64) -> f64 + Sync),
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Defrag {
    /// The moves; a place is a [spot](Yard::spot_cells) of the yard. Nothing is dropped and nothing parked beyond the
    /// moves allowed.
    pub order: Order,
    /// Units free before.
    pub units_before: u64,
    /// Units free after.
    pub units_after: u64,
    /// Trials of the search, on all threads.
    pub trials: u64,
}

/// Finds at most `effort.moves_max` moves that leave as many whole units free as the effort allows.
///
/// # Errors
/// If the yard contradicts itself.
pub fn defrag(yard: &Yard, effort: &Effort<'_>) -> Result<Defrag, Refusal> {
    yard.check()?;
    let walks: Vec<search::Walk> = std::thread::scope(|scope| {
        let walk = |n: usize| move || search::walk(yard, effort, n as u64);
        let threads: Vec<_> = (0..effort.threads.max(1)).map(|n| scope.spawn(walk(n))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let trials = walks.iter().map(|walk| walk.trials).sum();
    let mut found: Vec<search::Found> = walks.into_iter().flat_map(|walk| walk.found).collect();
    // Most units first, then fewest moves; the sort is stable, so the first thread wins.
    found.sort_by_key(|found| (std::cmp::Reverse(found.units), found.targets.len()));
    let units_before = yard.units();
    let mut best =
        Defrag { order: Order::default(), units_before, units_after: units_before, trials };
    for found in found {
        if found.units <= best.units_after {
            break;
        }
        let wanted: Vec<Transition> = found
            .targets
            .iter()
            .map(|(piece, to)| Transition {
                vm: *piece,
                from: Some(yard.home(*piece)),
                to: *to,
                weight: 1,
            })
            .collect();
        let order = order(yard, &wanted);
        if order.steps.len() <= effort.moves_max && order.dropped.is_empty() {
            best = Defrag { order, units_before, units_after: found.units, trials };
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{Act, Guest, World, replay};

    /// Hosts of two cells of 44, filled with these sizes in turn wherever there is room, without any order.
    fn cluster(hosts: u32, sizes: &[u64], seed: u64) -> Yard {
        let cells: Vec<Cell> =
            (0..2 * hosts).map(|n| Cell::new(n / 2, [44, 44 * 2_048], true)).collect();
        let mut free = vec![44_u64; cells.len()];
        let mut pieces = Vec::new();
        let mut state = seed;
        for n in 0..hosts as usize * 6 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let cell = usize::try_from(state >> 33).unwrap() % free.len();
            let size = sizes[n % sizes.len()];
            if size > 16 {
                let pair = cell / 2 * 2;
                if free[pair] >= size / 2 && free[pair + 1] >= size / 2 {
                    free[pair] -= size / 2;
                    free[pair + 1] -= size / 2;
                    let cells =
                        vec![u32::try_from(pair).unwrap(), u32::try_from(pair).unwrap() + 1];
                    pieces.push(Piece { need: [size / 2, size * 512], cells, movable: true });
                }
            } else if free[cell] >= size {
                free[cell] -= size;
                let cells = vec![u32::try_from(cell).unwrap()];
                pieces.push(Piece { need: [size, size * 1_024], cells, movable: n % 10 != 9 });
            }
        }
        Yard::new(cells, pieces, 16)
    }

    fn world(yard: &Yard) -> World {
        World {
            rooms: yard.cells().iter().map(|cell| cell.capacity.to_vec()).collect(),
            guests: yard
                .pieces()
                .iter()
                .map(|piece| Guest {
                    rooms: piece.cells.iter().map(|cell| *cell as usize).collect(),
                    need: piece.need.to_vec(),
                })
                .collect(),
            laws: vec![],
        }
    }

    fn rooms(yard: &Yard, spot: u32) -> Vec<usize> {
        yard.spot_cells(spot).map(|cell| cell as usize).collect()
    }

    fn solved(yard: &Yard, moves_max: usize, seed: u64) -> Defrag {
        let spent = |trials: u64| trials as f64 / 30_000.0;
        let found = defrag(yard, &Effort { moves_max, seed, threads: 2, spent: &spent }).unwrap();
        let acts: Vec<Act> = found
            .order
            .steps
            .iter()
            .map(|step| Act {
                guest: step.vm as usize,
                from: step.from.iter().flat_map(|from| rooms(yard, *from)).collect(),
                to: rooms(yard, step.to),
                after: step.after.iter().map(|before| *before as usize).collect(),
            })
            .collect();
        replay(&world(yard), &acts, 8, seed).unwrap();
        assert!(acts.len() <= moves_max);
        assert!(acts.iter().all(|act| yard.pieces()[act.guest].movable));
        found
    }

    /// Units counted from where the steps take everything.
    fn units_after(yard: &Yard, found: &Defrag) -> u64 {
        let mut pieces = yard.pieces().to_vec();
        for step in &found.order.steps {
            pieces[step.vm as usize].cells = yard.spot_cells(step.to).collect();
        }
        Yard::new(yard.cells().to_vec(), pieces, 16).units()
    }

    #[test]
    fn what_is_reported_is_what_the_steps_do() {
        for seed in 0..4 {
            let yard = cluster(14, &[2, 8, 4, 16, 8, 2, 4, 32, 88], seed);
            let found = solved(&yard, 12, seed);
            assert_eq!(units_after(&yard, &found), found.units_after);
            assert!(found.units_after > found.units_before, "{seed}");
        }
    }

    #[test]
    fn the_same_seed_and_threads_give_the_same_moves() {
        let yard = cluster(12, &[2, 8, 4, 16], 3);
        assert_eq!(solved(&yard, 8, 5).order, solved(&yard, 8, 5).order);
    }

    #[test]
    fn two_moves_that_gain_only_together_are_found() {
        // Cell 0 has 12 free beside an 8 it must lose; the only other room for an 8 is where a 4 has to go first.
        let cells: Vec<Cell> =
            [20, 12, 4].into_iter().zip(0..).map(|(c, h)| Cell::new(h, [c, 9], true)).collect();
        let piece = |need, cell, movable| Piece { need: [need, 1], cells: vec![cell], movable };
        let yard = Yard::new(cells, vec![piece(8, 0, true), piece(4, 1, true)], 16);
        assert_eq!(solved(&yard, 1, 1).units_after, 1);
        let cells: Vec<Cell> =
            [20, 8, 4].into_iter().zip(0..).map(|(c, h)| Cell::new(h, [c, 9], true)).collect();
        let yard = Yard::new(cells, vec![piece(8, 0, true), piece(4, 1, true)], 16);
        assert_eq!(solved(&yard, 1, 1).units_after, 0);
        let found = solved(&yard, 2, 1);
        assert_eq!((found.units_after, found.order.steps[1].after.as_slice()), (1, &[0][..]));
    }

    #[test]
    fn no_moves_are_no_moves() {
        let yard = cluster(6, &[2, 8, 4], 1);
        assert!(solved(&yard, 0, 1).order.steps.is_empty());
    }
}
