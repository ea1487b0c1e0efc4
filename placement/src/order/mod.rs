//! In which order, and what at the same time: from "where VMs are" and "where
//! they shall be" to steps that are legal under every interleaving.
//!
//! ```text
//!  transitions ──▶ parts ──▶ exact | greedy ──▶ depend ──▶ timing ──▶ Order
//!                  which     a legal sequence;  what       stages and
//!                  moves     cycles broken by   waits for  time on
//!                  contend   parking, or the    what       the links
//!                            target repaired
//! ```
//!
//! A cluster is seen through [`Ground`]: a VM at a place *claims* amounts of
//! counters (memory of a host, seats of an anti-affinity rule in a rack, room
//! kept for failures), and every rule that must hold all the time is a limit, a
//! floor, a bound on how many counters of a group are in use, or "who is here
//! needs one of those here". Hosts, NUMA nodes and storages are all places.
//!
//! Who owns what: [`Books`](books::Books) alone knows what is in use; `exact`
//! and `greedy` only ask it and tell it. `depend` and `timing` read the finished
//! sequence. Nothing here knows what a good placement is.
//!
//! A step takes what it needs at its target when it starts and gives back what
//! it held at its source when it ends. A plan is legal if that is so in every
//! state that the steps' [`after`](Step::after) lists allow, whatever takes how long.

mod books;
mod cluster;
mod depend;
mod exact;
mod greedy;
mod parts;
#[cfg(test)]
mod plain;
#[cfg(test)]
mod properties;
mod timing;

use books::Books;
pub use cluster::{Cluster, Ordered, order_moves};
pub use timing::{HostLimits, Timing};

/// A VM's number.
pub type Vm = u32;
/// A place's number: a host, or a part of one that a VM can be bound to.
pub type Place = u32;
/// The name of a counter. Only [`Ground`] knows what is behind it.
pub type Key = u64;

/// The most moves of one part that are searched exactly.
pub const EXACT_MOVES_MAX: usize = 14;

/// Something that is counted and must stay within bounds at every moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// In use at the beginning, by all VMs.
    pub used: u64,
    /// The most that may be in use. What is over it at the beginning may only go down.
    pub limit: u64,
    /// The least that has to be in use. What is under it at the beginning may only go up.
    pub floor: u64,
    /// A VM between two places that both claim it is counted once: it is one VM, though its memory is there twice.
    pub once: bool,
    /// The group whose counters in use are counted.
    pub group: Option<Key>,
}

impl Counter {
    /// A counter with a limit and nothing else.
    pub const fn at_most(used: u64, limit: u64) -> Self {
        Self { used, limit, floor: 0, once: false, group: None }
    }
}

/// Bounds on how many counters of a group are in use at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// In use at the beginning.
    pub open: u32,
    /// The most that may be in use: hosts with a licence, say.
    pub open_max: u32,
    /// The least that has to be in use: failure domains of a spread.
    pub open_min: u32,
}

/// What a VM takes of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Of which counter.
    pub key: Key,
    /// How much.
    pub amount: u64,
}

/// A cluster as far as the order of moves is concerned.
pub trait Ground {
    /// The number of places; they are numbered from zero.
    fn places(&self) -> Place;
    /// A counter as it stands before the first step.
    fn counter(&self, key: Key) -> Counter;
    /// A group as it stands before the first step.
    fn group(&self, group: Key) -> Group;
    /// What `vm` takes when it is at `place`; no key twice.
    fn claims(&self, vm: Vm, place: Place, out: &mut Vec<Claim>);
    /// The counters that have to be in use while `key` is.
    fn needs(&self, _key: Key, _out: &mut Vec<Key>) {}
    /// The counters that have `key` among their [`needs`](Self::needs).
    fn needed_by(&self, _key: Key, _out: &mut Vec<Key>) {}
    /// Whether `vm` may be at `place` at all, whatever else is there.
    fn allows(&self, vm: Vm, place: Place) -> bool;
    /// The host that `place` belongs to, for the limits per host.
    fn host(&self, place: Place) -> u32;
    /// Bytes of memory and of local disks that a move of `vm` sends at least.
    fn bytes(&self, vm: Vm) -> u64;
    /// Bytes of disks that go along with `vm`.
    fn disk_bytes(&self, _vm: Vm) -> u64 {
        0
    }
    /// Bytes a second that `vm` dirties.
    fn dirty_rate(&self, _vm: Vm) -> u64 {
        0
    }
    /// Where else `vm` would do if its target cannot be reached, the best first.
    fn alternatives(&self, _vm: Vm) -> Vec<Place> {
        Vec::new()
    }
}

/// A VM that is to be elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// The VM.
    pub vm: Vm,
    /// Where it is; nothing for one that is to be started.
    pub from: Option<Place>,
    /// Where it shall be.
    pub to: Place,
    /// What the move is worth when not all are possible.
    pub weight: u32,
}

/// Why a step is in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes a VM where it shall be.
    Final,
    /// It takes a VM out of the way for a while, because the others wait for each other in a circle.
    Parking,
    /// It takes a VM to another place than asked, because that one cannot be reached.
    Rerouted,
    /// It takes a VM back that was parked for the sake of others and cannot get where it shall be.
    Back,
}

/// One step of an [`Order`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The VM that moves or starts.
    pub vm: Vm,
    /// From where; nothing if it starts.
    pub from: Option<Place>,
    /// To where.
    pub to: Place,
    /// Why.
    pub role: Role,
    /// The earlier steps that have to have ended before this one starts; nothing that follows from the others.
    pub after: Vec<u32>,
}

/// Steps in a legal sequence, what has to wait for what, and what is not possible.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// In a sequence that is legal one by one.
    pub steps: Vec<Step>,
    /// Transitions that no order could reach, in the order given; these VMs end where they are, or where a step of
    /// [`Role::Rerouted`] takes them.
    pub dropped: Vec<Transition>,
}

impl Order {
    /// How many steps are there only to break circles.
    pub fn parkings(&self) -> usize {
        self.steps.iter().filter(|step| step.role == Role::Parking).count()
    }
}

/// Brings `transitions` into an order in which every step is legal at its time.
///
/// With at most [`EXACT_MOVES_MAX`] moves the number of extra moves is the smallest there is for these VMs, and when no
/// order exists the worth of the moves made is the largest there is. The same holds for each part of a longer list that
/// contends for the same things. Beyond that the order and the parking are a heuristic; the legality never is.
pub fn order<G: Ground>(ground: &G, transitions: &[Transition]) -> Order {
    let mut books = Books::new(ground);
    let (wanted, mut dropped): (Vec<usize>, Vec<usize>) =
        (0..transitions.len()).partition(|n| ground.allows(transitions[*n].vm, transitions[*n].to));
    let mut effort = exact::EFFORT;
    let parts = if wanted.len() <= EXACT_MOVES_MAX {
        vec![wanted]
    } else {
        parts::split(&mut books, transitions, &wanted)
    };
    // What goes straight goes first: then the others have the most room for detours.
    let mut later = Vec::new();
    for part in parts {
        if exact::search(&mut books, transitions, &part, false, &mut effort).is_none() {
            later.push(part);
        }
    }
    for part in later {
        let left = exact::search(&mut books, transitions, &part, true, &mut effort)
            .unwrap_or_else(|| greedy::run(&mut books, transitions, &part));
        dropped.extend(left);
    }
    dropped.sort_unstable();
    let (moves, ledger) = books.finish();
    Order {
        steps: depend::steps(moves, &ledger),
        dropped: dropped.into_iter().map(|n| transitions[n]).collect(),
    }
}
