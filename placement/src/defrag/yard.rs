//! Cells with what lies in them, numbered for the search, and as a ground for
//! the order of the moves.
//!
//! A *spot* is where a piece can be: a cell, or both cells of a host. Spots are
//! numbered cells first, then hosts.

use ballast_model::{Refusal, RefusalCode};

use crate::order::{Claim, Counter, Ground, Group, Key, Place, Vm};

/// A NUMA node, or a host without any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// The host it is part of; hosts are numbered from zero.
    pub host: u32,
    /// What it has of the resource that is cut into units, and its memory in bytes.
    pub capacity: [u64; 2],
    /// Whether something may be moved here.
    pub open: bool,
}

impl Cell {
    /// A cell.
    pub const fn new(host: u32, capacity: [u64; 2], open: bool) -> Self {
        Self { host, capacity, open }
    }
}

/// A VM, as it lies in one cell or in two of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What it takes of each of its cells: of the resource that is cut into units, and bytes of memory.
    pub need: [u64; 2],
    /// Its cells, ascending.
    pub cells: Vec<u32>,
    /// Whether it may move.
    pub movable: bool,
}

/// Cells and pieces.
#[derive(Debug, Clone)]
pub struct Yard {
    cells: Vec<Cell>,
    pieces: Vec<Piece>,
    unit: u64,
    /// Per host, its cells.
    hosts: Vec<Vec<u32>>,
    used: Vec<[u64; 2]>,
}

impl Yard {
    /// Numbers are indices into `cells`; a unit is that much of the first resource of a cell.
    pub fn new(cells: Vec<Cell>, pieces: Vec<Piece>, unit: u64) -> Self {
        let count = cells.iter().map(|cell| cell.host as usize + 1).max().unwrap_or(0);
        let mut hosts = vec![Vec::new(); count];
        for (n, cell) in (0..).zip(&cells) {
            hosts[cell.host as usize].push(n);
        }
        let mut used = vec![[0_u64; 2]; cells.len()];
        for piece in &pieces {
            for cell in
                piece.cells.iter().filter_map(|cell| cells.get(*cell as usize).and(Some(*cell)))
            {
                let used = &mut used[cell as usize];
                *used = [0, 1].map(|r| used[r].saturating_add(piece.need[r]));
            }
        }
        Self { cells, pieces, unit: unit.max(1), hosts, used }
    }

    /// The cells.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// The pieces.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// How much of the first resource is a unit.
    pub fn unit(&self) -> u64 {
        self.unit
    }

    /// What is free in a cell; nothing in one that holds more than it has.
    pub fn free(&self, cell: u32) -> [u64; 2] {
        let cell = cell as usize;
        [0, 1].map(|r| self.cells[cell].capacity[r].saturating_sub(self.used[cell][r]))
    }

    /// How many whole units are free.
    pub fn units(&self) -> u64 {
        (0..).take(self.cells.len()).map(|cell| self.free(cell)[0] / self.unit).sum()
    }

    /// What is free of the first resource in all.
    pub fn free_in_all(&self) -> u64 {
        (0..).take(self.cells.len()).map(|cell| self.free(cell)[0]).sum()
    }

    /// The share of all that is free that no whole unit can be cut from, if so many units can be cut.
    pub fn fragment_rate(&self, units: u64) -> f64 {
        let free = self.free_in_all();
        if free == 0 { 0.0 } else { (free - (units * self.unit).min(free)) as f64 / free as f64 }
    }

    /// The cells of a spot.
    pub fn spot_cells(&self, spot: Place) -> impl Iterator<Item = u32> + '_ {
        let cells = self.cells.len();
        let pair = (spot as usize).checked_sub(cells).map(|host| self.hosts[host].as_slice());
        let single = pair.is_none().then_some(spot);
        single.into_iter().chain(pair.unwrap_or_default().iter().copied())
    }

    /// The spot a piece is at.
    pub fn home(&self, piece: Vm) -> Place {
        self.spot_of(&self.pieces[piece as usize].cells)
    }

    fn spot_of(&self, cells: &[u32]) -> Place {
        match cells {
            [cell] => *cell,
            _ => self.pair_spot(self.cells[cells[0] as usize].host),
        }
    }

    /// The spot of both cells of a host.
    pub(super) fn pair_spot(&self, host: u32) -> Place {
        Place::try_from(self.cells.len()).unwrap_or(Place::MAX).saturating_add(host)
    }

    /// The number of hosts.
    pub(super) fn hosts(&self) -> usize {
        self.hosts.len()
    }

    pub(super) fn check(&self) -> Result<(), Refusal> {
        let refuse = |what: String| {
            Err(Refusal::new(
                RefusalCode::InvalidArgument,
                what,
                "correct the cluster and try again",
            ))
        };
        const NUMBERED_MAX: usize = 1 << 30;
        let most = u64::from(u32::MAX / 4);
        if self.cells.len() + self.hosts.len() > NUMBERED_MAX || self.pieces.len() > NUMBERED_MAX {
            return refuse("there are too many cells or VMs to be numbered".to_owned());
        }
        for (n, cell) in self.cells.iter().enumerate() {
            if cell.capacity[0] > most || self.used[n][0] > most {
                return refuse(format!("cell {n} is larger than {most}"));
            }
        }
        if let Some(n) = self.hosts.iter().position(|cells| cells.len() > 2) {
            return refuse(format!("host {n} has more than two cells"));
        }
        for (n, piece) in self.pieces.iter().enumerate() {
            let there = piece.cells.iter().all(|cell| (*cell as usize) < self.cells.len());
            if piece.cells.is_empty() || !there {
                return refuse(format!("VM {n} is in a cell that is not there"));
            }
            let host = self.cells[piece.cells[0] as usize].host;
            if piece.cells.len() > 1 && piece.cells != self.hosts[host as usize] {
                return refuse(format!("VM {n} is neither in one cell nor in all cells of a host"));
            }
        }
        Ok(())
    }
}

impl Ground for Yard {
    fn places(&self) -> Place {
        self.pair_spot(u32::try_from(self.hosts.len()).unwrap_or(u32::MAX))
    }

    #[allow(clippy::cast_possible_truncation)] // keys are made below from cells
    fn counter(&self, key: Key) -> Counter {
        let (cell, resource) = ((key / 2) as usize, (key % 2) as usize);
        Counter::at_most(self.used[cell][resource], self.cells[cell].capacity[resource])
    }

    fn group(&self, _group: Key) -> Group {
        Group { open: 0, open_max: u32::MAX, open_min: 0 }
    }

    fn claims(&self, vm: Vm, place: Place, out: &mut Vec<Claim>) {
        let need = self.pieces[vm as usize].need;
        for cell in self.spot_cells(place) {
            for (resource, amount) in (0..).zip(need).filter(|(_, amount)| *amount > 0) {
                out.push(Claim { key: u64::from(cell) * 2 + resource, amount });
            }
        }
    }

    fn allows(&self, vm: Vm, place: Place) -> bool {
        let piece = &self.pieces[vm as usize];
        let host = |cell: u32| self.cells[cell as usize].host;
        let mut cells = 0;
        for cell in self.spot_cells(place) {
            cells += 1;
            if !self.cells[cell as usize].open || host(cell) == host(piece.cells[0]) {
                return false;
            }
        }
        // A host with one cell has a spot too many: the cell is enough.
        cells == piece.cells.len() && ((place as usize) < self.cells.len()) == (cells == 1)
    }

    fn host(&self, place: Place) -> u32 {
        self.spot_cells(place).next().map_or(0, |cell| self.cells[cell as usize].host)
    }

    fn bytes(&self, vm: Vm) -> u64 {
        let piece = &self.pieces[vm as usize];
        piece.need[1].saturating_mul(piece.cells.len() as u64)
    }
}
