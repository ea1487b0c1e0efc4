//! Simulated annealing over where the pieces end, with at most so many away
//! from home.
//!
//! A trial takes one piece elsewhere, takes one that is away to a third place or
//! home, or, when no more moves are left, one home *and* another away. Its worth
//! is the change in whole units less a little for each move, looked up in
//! constant time. One move rarely gains a unit alone; at the temperatures of the
//! middle the walk wanders over equal placements until two or three together do.
//!
//! Half of the rounds count only the room that was there at the beginning, so
//! that their moves need no order at all; the other half also use room that
//! other pieces leave, and the order decides whether it comes in time.

use super::{Effort, Yard};
use crate::core::Rng;
use crate::order::{Ground, Place, Vm};

/// Temperatures, in units gained.
const HOT: f64 = 0.4;
const COLD: f64 = 0.06;
/// What a move costs, in units gained: fewer moves where they gain the same.
const MOVE_COST: f64 = 0.04;
/// Rounds from hot to cold in one walk.
const ROUNDS: u32 = 2;
/// How many trials pass between two looks at the time.
const TRIALS_BETWEEN: u64 = 2_048;

/// Where pieces shall be, and the units that gives.
pub(super) struct Found {
    pub(super) targets: Vec<(Vm, Place)>,
    pub(super) units: u64,
}

/// The best of each round of one thread.
pub(super) struct Walk {
    pub(super) found: Vec<Found>,
    pub(super) trials: u64,
}

/// One walk; `thread` sets it apart from the others.
pub(super) fn walk(yard: &Yard, effort: &Effort<'_>, thread: u64) -> Walk {
    let mut rng = Rng::new(effort.seed.wrapping_mul(0x1_0001).wrapping_add(thread));
    let mut walk = Walk { found: Vec::new(), trials: 0 };
    let movers: Vec<Vm> = (0..)
        .zip(yard.pieces())
        .filter(|(_, piece)| piece.movable && piece.need[0] % yard.unit() != 0)
        .map(|(n, _)| n)
        .collect();
    if movers.is_empty() || effort.moves_max == 0 {
        return walk;
    }
    for round in 0..ROUNDS {
        let roomy = (u64::from(round) + thread) % 2 == 1;
        let mut board = Board::new(yard, &movers, effort.moves_max, roomy);
        let part = |spent: f64| (spent * f64::from(ROUNDS) - f64::from(round)).clamp(0.0, 1.0);
        let (mut best, mut least) = (board.units, usize::MAX);
        let mut targets = Vec::new();
        let mut temperature = HOT;
        loop {
            if walk.trials.is_multiple_of(TRIALS_BETWEEN) {
                let spent = part((effort.spent)(walk.trials));
                if spent >= 1.0 {
                    break;
                }
                temperature = HOT * (COLD / HOT).powf(spent);
            }
            walk.trials += 1;
            board.trial(temperature, &mut rng);
            if board.units > best || (board.units == best && board.away.len() < least) {
                (best, least) = (board.units, board.away.len());
                targets.clear();
                targets.extend(board.away.iter().map(|piece| (*piece, board.at[*piece as usize])));
            }
        }
        targets.sort_unstable();
        walk.found.push(Found { targets, units: u64::from(best) });
    }
    walk
}

/// Cells of a spot: one, or two.
#[derive(Clone, Copy)]
struct Cells([u32; 2], u8);

impl Cells {
    fn as_slice(&self) -> &[u32] {
        &self.0[..usize::from(self.1)]
    }
}

struct Board<'a> {
    yard: &'a Yard,
    movers: &'a [Vm],
    moves_max: usize,
    unit: u32,
    /// Per spot.
    cells: Vec<Cells>,
    host: Vec<u32>,
    open: Vec<bool>,
    /// Per cell, the first resource, then the second.
    free: Vec<u32>,
    other: Vec<u64>,
    /// Per cell, what of the room at the beginning is not yet given to arrivals.
    room: Vec<u32>,
    /// Room that others leave counts too.
    roomy: bool,
    /// Per piece.
    need: Vec<(u32, u64)>,
    home: Vec<Place>,
    at: Vec<Place>,
    /// The pieces away from home, and where each stands in that list.
    away: Vec<Vm>,
    rank: Vec<usize>,
    units: u32,
}

impl<'a> Board<'a> {
    #[allow(clippy::cast_possible_truncation)] // the yard was checked: all amounts of the first resource fit
    fn new(yard: &'a Yard, movers: &'a [Vm], moves_max: usize, roomy: bool) -> Self {
        let spots = yard.cells().len() + yard.hosts();
        let cells = |spot: usize| {
            let mut cells = Cells([0; 2], 0);
            for cell in yard.spot_cells(spot as Place).take(2) {
                cells.0[usize::from(cells.1)] = cell;
                cells.1 += 1;
            }
            cells
        };
        let cells: Vec<Cells> = (0..spots).map(cells).collect();
        let count = yard.cells().len() as u32;
        let free: Vec<u32> = (0..count).map(|cell| yard.free(cell)[0] as u32).collect();
        let unit = yard.unit().min(u64::from(u32::MAX)) as u32;
        let home: Vec<Place> = (0..).take(yard.pieces().len()).map(|n| yard.home(n)).collect();
        let open = |cells: &Cells| cells.as_slice().iter().all(|c| yard.cells()[*c as usize].open);
        Self {
            yard,
            movers,
            moves_max,
            unit,
            host: (0..spots as Place).map(|spot| yard.host(spot)).collect(),
            open: cells.iter().map(open).collect(),
            cells,
            units: free.iter().map(|free| free / unit).sum(),
            room: free.clone(),
            free,
            other: (0..count).map(|cell| yard.free(cell)[1]).collect(),
            roomy,
            need: yard.pieces().iter().map(|p| (p.need[0] as u32, p.need[1])).collect(),
            at: home.clone(),
            home,
            away: Vec::new(),
            rank: vec![usize::MAX; yard.pieces().len()],
        }
    }

    fn trial(&mut self, temperature: f64, rng: &mut Rng) {
        let kind = rng.below(4);
        if kind < 2 && !self.away.is_empty() {
            let piece = self.away[rng.below(self.away.len())];
            let home = self.home[piece as usize];
            let to = if kind == 0 { home } else { self.anywhere(piece, rng) };
            let cheaper = if kind == 0 { MOVE_COST } else { 0.0 };
            if self.may_go(piece, to) && accept(self.gain(piece, to) + cheaper, temperature, rng) {
                self.shift(piece, to);
            }
            return;
        }
        let piece = self.movers[rng.below(self.movers.len())];
        if self.at[piece as usize] != self.home[piece as usize] {
            return;
        }
        let to = self.anywhere(piece, rng);
        if self.away.len() < self.moves_max {
            if self.may_go(piece, to) && accept(self.gain(piece, to) - MOVE_COST, temperature, rng)
            {
                self.shift(piece, to);
            }
            return;
        }
        let back = self.away[rng.below(self.away.len())];
        let (home, there) = (self.home[back as usize], self.at[back as usize]);
        if !self.may_go(back, home) {
            return;
        }
        let gain = self.gain(back, home);
        self.shift(back, home);
        if self.may_go(piece, to) && accept(gain + self.gain(piece, to), temperature, rng) {
            self.shift(piece, to);
        } else {
            self.shift(back, there);
        }
    }

    /// A spot of the kind the piece needs.
    #[allow(clippy::cast_possible_truncation)] // a number of a spot
    fn anywhere(&self, piece: Vm, rng: &mut Rng) -> Place {
        if self.home[piece as usize] as usize >= self.yard.cells().len() {
            self.yard.pair_spot(rng.below(self.yard.hosts()) as u32)
        } else {
            rng.below(self.yard.cells().len()) as Place
        }
    }

    /// Whether there is room at `to`, which is home or on another host.
    fn may_go(&self, piece: Vm, to: Place) -> bool {
        let (at, home) = (self.at[piece as usize], self.home[piece as usize]);
        let (need, other) = self.need[piece as usize];
        let (cells, own) = (&self.cells[to as usize], &self.cells[home as usize]);
        let elsewhere = self.host[to as usize] != self.host[home as usize];
        if to == at || (to != home && !(elsewhere && self.open[to as usize])) || cells.1 != own.1 {
            return false;
        }
        cells.as_slice().iter().all(|cell| {
            let cell = *cell as usize;
            let fits = self.free[cell] >= need && self.other[cell] >= other;
            fits && (self.roomy || to == home || self.room[cell] >= need)
        })
    }

    /// The change in whole units.
    fn gain(&self, piece: Vm, to: Place) -> f64 {
        let (need, unit) = (self.need[piece as usize].0, self.unit);
        let mut gain = 0_i64;
        for cell in self.cells[self.at[piece as usize] as usize].as_slice() {
            let free = self.free[*cell as usize];
            gain += i64::from((free + need) / unit) - i64::from(free / unit);
        }
        for cell in self.cells[to as usize].as_slice() {
            let free = self.free[*cell as usize];
            gain += i64::from((free - need) / unit) - i64::from(free / unit);
        }
        gain as f64
    }

    fn shift(&mut self, piece: Vm, to: Place) {
        let ix = piece as usize;
        let ((need, other), from, home) = (self.need[ix], self.at[ix], self.home[ix]);
        for cell in self.cells[from as usize].as_slice() {
            let cell = *cell as usize;
            self.units -= self.free[cell] / self.unit;
            self.free[cell] += need;
            self.other[cell] += other;
            self.units += self.free[cell] / self.unit;
            if from != home {
                self.room[cell] = self.room[cell].wrapping_add(need);
            }
        }
        for cell in self.cells[to as usize].as_slice() {
            let cell = *cell as usize;
            self.units -= self.free[cell] / self.unit;
            self.free[cell] -= need;
            self.other[cell] -= other;
            self.units += self.free[cell] / self.unit;
            if to != home {
                // Below zero in rounds that do not look at it.
                self.room[cell] = self.room[cell].wrapping_sub(need);
            }
        }
        self.at[ix] = to;
        if to == home {
            let rank = self.rank[ix];
            self.away.swap_remove(rank);
            if let Some(moved) = self.away.get(rank) {
                self.rank[*moved as usize] = rank;
            }
        } else if from == home {
            self.rank[ix] = self.away.len();
            self.away.push(piece);
        }
    }
}

fn accept(gain: f64, temperature: f64, rng: &mut Rng) -> bool {
    gain >= 0.0 || rng.unit() < (gain / temperature).exp()
}
