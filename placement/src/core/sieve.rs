//! A first look at moves, in single precision: most moves a walk weighs are
//! hopeless by what they do to the load of two hosts, and that is found out here
//! in a fraction of the time exact numbers take.
//!
//! Load over safety, unmet demand and missing balance are each a sum over `max(0, x)` with an `x`
//! that is linear in the use of a host, and so is what is used above capacity. Each such `x` is
//! a *lane*; hosts have what they are at, items what they add.
//!
//! The sieve errs on one side only: what it rejects is over the limit by exact
//! numbers, too. Sums of rounded numbers are off by less than [`SLACK`] of their parts.

use std::sync::Arc;

use super::ids::{Item, Place};
use super::problem::Problem;

/// Lanes worked on together.
const WIDTH: usize = 4;

type Lanes = [f32; WIDTH];

/// How far off a sum may be, relative to the sum of its parts.
const SLACK: f32 = 4e-6;

/// With more chunks of lanes than this, sums would need more slack.
const CHUNKS_MAX: usize = 16;

/// What load and use above capacity of all hosts are, as lanes.
#[derive(Debug, Clone)]
pub(super) struct Sieve {
    fixed: Arc<Fixed>,
    /// Hosts × chunks: load, then use above capacity.
    hosts: Vec<Lanes>,
    /// The sums of both kinds of lanes of each host.
    now: Vec<Sums>,
}

/// What does not change with moves.
#[derive(Debug)]
struct Fixed {
    /// Chunks of lanes of load, and of use above capacity.
    load: usize,
    over: usize,
    lanes: Vec<Lane>,
    /// Hosts × lanes of load.
    constants: Vec<f64>,
    /// Resources with lanes of use above capacity, and what they count.
    claimed: Vec<(usize, f64)>,
    /// Items × chunks: need, claim, and claim at home.
    items: Vec<Lanes>,
    /// The largest sums of one item.
    largest: Sums,
    /// The largest lane of use above capacity of one item.
    largest_claim: f32,
}

/// A lane of load: a constant of the host, and so much for each unit of one or two resources.
#[derive(Debug, Clone, Copy)]
struct Lane {
    first: (usize, f64),
    second: (usize, f64),
}

impl Lane {
    fn of(&self, amounts: &[i64]) -> f64 {
        let (a, b) = (self.first, self.second);
        a.1 * amounts[a.0] as f64 + b.1 * amounts[b.0] as f64
    }
}

/// The positive parts of lanes of load and of use above capacity, added up.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    load: f32,
    over: f32,
}

/// From where on a move is hopeless.
#[derive(Debug, Clone, Copy)]
pub(super) struct Threshold {
    /// The largest change of interest.
    pub(super) most: f32,
    /// What use above capacity counts; `None`: it must not rise.
    pub(super) price: Option<f32>,
}

impl Sieve {
    /// For a problem whose load lanes can tell; `None` for others. Every host has to be
    /// [`update`](Self::update)d before the first question.
    pub(super) fn new(problem: &Problem, overload_weight: &[f64]) -> Option<Self> {
        let fixed = Arc::new(Fixed::new(problem, overload_weight)?);
        let hosts = vec![[0.0; WIDTH]; problem.hosts() * (fixed.load + fixed.over)];
        Some(Self { fixed, hosts, now: vec![Sums::default(); problem.hosts()] })
    }

    /// Takes over what is used on a host now, and what is left.
    pub(super) fn update(&mut self, host: usize, usage: &[i64], room: &[i64]) {
        let fixed = &*self.fixed;
        let stride = fixed.load + fixed.over;
        let row = &mut self.hosts[host * stride..][..stride];
        let (load, over) = row.split_at_mut(fixed.load);
        let constants = &fixed.constants[host * fixed.lanes.len()..];
        for ((n, lane), constant) in fixed.lanes.iter().enumerate().zip(constants) {
            load[n / WIDTH][n % WIDTH] = (constant + lane.of(usage)) as f32;
        }
        for (n, (r, weight)) in fixed.claimed.iter().enumerate() {
            over[n / WIDTH][n % WIDTH] = (weight * -(room[*r] as f64)) as f32;
        }
        self.now[host] = Sums { load: positive(load), over: positive(over) };
    }

    /// Whether going from one host to another is hopeless by load alone.
    #[inline]
    pub(super) fn rejects(
        &self,
        problem: &Problem,
        item: Item,
        (from, to): (Place, Place),
        threshold: Threshold,
    ) -> bool {
        let fixed = &*self.fixed;
        let (coming, going) = (fixed.claim(problem, item, to), fixed.claim(problem, item, from));
        let need = fixed.need(item);
        let (target, source) = (self.host(to), self.host(from));
        let load = after::<true>(target.0, need) + after::<false>(source.0, need);
        let over = match threshold.price {
            Some(_) => after::<true>(target.1, coming) + after::<false>(source.1, going),
            None if self.overfull(target.1, coming.iter().copied()) => return true,
            None => 0.0,
        };
        self.is_over([from, to], Sums { load, over }, threshold)
    }

    /// The same for an exchange.
    #[inline]
    pub(super) fn rejects_swap(
        &self,
        problem: &Problem,
        (a, at_a): (Item, Place),
        (b, at_b): (Item, Place),
        (to_a, to_b): (Place, Place),
        threshold: Threshold,
    ) -> bool {
        let fixed = &*self.fixed;
        let (need_a, need_b) = (fixed.need(a), fixed.need(b));
        let (host_a, host_b) = (self.host(at_a), self.host(at_b));
        let load = exchanged(host_a.0, need_b, need_a) + exchanged(host_b.0, need_a, need_b);
        let claim = |item, place| fixed.claim(problem, item, place);
        let (come_a, go_a) = (claim(b, to_b), claim(a, at_a));
        let (come_b, go_b) = (claim(a, to_a), claim(b, at_b));
        let over = match threshold.price {
            Some(_) => exchanged(host_a.1, come_a, go_a) + exchanged(host_b.1, come_b, go_b),
            None => {
                if self.overfull(host_a.1, difference(come_a, go_a))
                    || self.overfull(host_b.1, difference(come_b, go_b))
                {
                    return true;
                }
                0.0
            }
        };
        self.is_over([at_a, at_b], Sums { load, over }, threshold)
    }

    /// The same for one that takes the place of another, which goes to a third host.
    #[inline]
    pub(super) fn rejects_chain(
        &self,
        problem: &Problem,
        (first, from): (Item, Place),
        (second, at): (Item, Place),
        to: Place,
        threshold: Threshold,
    ) -> bool {
        let fixed = &*self.fixed;
        let (need_1, need_2) = (fixed.need(first), fixed.need(second));
        let (left, middle, right) = (self.host(from), self.host(at), self.host(to));
        let load = after::<false>(left.0, need_1)
            + exchanged(middle.0, need_1, need_2)
            + after::<true>(right.0, need_2);
        let claim = |item, place| fixed.claim(problem, item, place);
        let (go_1, come_1) = (claim(first, from), claim(first, at));
        let (go_2, come_2) = (claim(second, at), claim(second, to));
        let over = match threshold.price {
            Some(_) => {
                after::<false>(left.1, go_1)
                    + exchanged(middle.1, come_1, go_2)
                    + after::<true>(right.1, come_2)
            }
            None => {
                if self.overfull(middle.1, difference(come_1, go_2))
                    || self.overfull(right.1, come_2.iter().copied())
                {
                    return true;
                }
                0.0
            }
        };
        self.is_over([from, at, to], Sums { load, over }, threshold)
    }

    /// Whether hosts come to more than the threshold allows, rounding left aside.
    #[inline]
    fn is_over<const N: usize>(
        &self,
        places: [Place; N],
        after: Sums,
        threshold: Threshold,
    ) -> bool {
        let mut before = Sums::default();
        for place in places {
            let now = self.now[place.host.ix()];
            before = Sums { load: before.load + now.load, over: before.over + now.over };
        }
        let largest = self.fixed.largest;
        let mut change = after.load - before.load;
        let mut parts = after.load + before.load + largest.load;
        if let Some(price) = threshold.price {
            change += price * (after.over - before.over);
            parts += price * (after.over + before.over + largest.over);
        }
        change - SLACK * parts > threshold.most
    }

    /// Whether more would be used above capacity of some resource, rounding left aside.
    #[inline]
    fn overfull(&self, host: &[Lanes], change: impl Iterator<Item = Lanes>) -> bool {
        let slack = SLACK * self.fixed.largest_claim;
        let mut most = [0.0_f32; WIDTH];
        for (now, change) in host.iter().zip(change) {
            for n in 0..WIDTH {
                let allowed = (1.0 + SLACK) * if now[n] > 0.0 { now[n] } else { 0.0 };
                let excess = now[n] + change[n] - allowed;
                most[n] = if excess > most[n] { excess } else { most[n] };
            }
        }
        most.iter().any(|most| *most > slack)
    }

    /// The lanes of load of a host, and those of use above capacity.
    #[inline]
    fn host(&self, place: Place) -> (&[Lanes], &[Lanes]) {
        let stride = self.fixed.load + self.fixed.over;
        self.hosts[place.host.ix() * stride..][..stride].split_at(self.fixed.load)
    }
}

impl Fixed {
    fn new(problem: &Problem, overload_weight: &[f64]) -> Option<Self> {
        let one_shape = (0..problem.items()).all(|ix| problem.shapes(Item::from(ix)) == 1);
        if !one_shape || !problem.imbalance.is_empty() || !problem.fragments.is_empty() {
            return None;
        }
        let lanes = lanes(problem);
        let claimed: Vec<(usize, f64)> = overload_weight
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, weight)| *weight > 0.0)
            .collect();
        let (load, over) = (lanes.len().div_ceil(WIDTH), claimed.len().div_ceil(WIDTH));
        if load == 0 || load > CHUNKS_MAX || over > CHUNKS_MAX {
            return None;
        }
        let mut fixed = Self {
            load,
            over,
            constants: (0..problem.hosts()).flat_map(|host| constants(problem, host)).collect(),
            lanes,
            claimed,
            items: Vec::new(),
            largest: Sums::default(),
            largest_claim: 0.0,
        };
        fixed.add_items(problem);
        Some(fixed)
    }

    fn add_items(&mut self, problem: &Problem) {
        let stride = self.load + 2 * self.over;
        self.items = vec![[0.0; WIDTH]; problem.items() * stride];
        let nowhere = Place::NOWHERE;
        for (ix, row) in self.items.chunks_mut(stride).enumerate() {
            let item = Item::from(ix);
            let (need, claims) = row.split_at_mut(self.load);
            let (away, home) = claims.split_at_mut(self.over);
            for (n, lane) in self.lanes.iter().enumerate() {
                need[n / WIDTH][n % WIDTH] = lane.of(problem.need(item, 0)) as f32;
            }
            let at_home = problem.home(item).unwrap_or(nowhere);
            for (claims, claim) in
                [(away, problem.need(item, 0)), (home, problem.claim(item, at_home))]
            {
                for (n, (r, weight)) in self.claimed.iter().enumerate() {
                    claims[n / WIDTH][n % WIDTH] = (weight * claim[*r] as f64) as f32;
                }
                self.largest.over = self.largest.over.max(magnitude(claims));
                let lanes = claims.iter().flatten();
                self.largest_claim = lanes.fold(self.largest_claim, |most, lane| most.max(*lane));
            }
            self.largest.load = self.largest.load.max(magnitude(need));
        }
        // Two items take part in an exchange, each on two hosts.
        self.largest = Sums { load: 4.0 * self.largest.load, over: 4.0 * self.largest.over };
        self.largest_claim *= 2.0;
    }

    #[inline]
    fn need(&self, item: Item) -> &[Lanes] {
        &self.items[item.ix() * (self.load + 2 * self.over)..][..self.load]
    }

    #[inline]
    fn claim(&self, problem: &Problem, item: Item, place: Place) -> &[Lanes] {
        let at_home = usize::from(problem.home[item.ix()] == place);
        let start = item.ix() * (self.load + 2 * self.over) + self.load + at_home * self.over;
        &self.items[start..][..self.over]
    }
}

/// The lanes of load of every host.
fn lanes(problem: &Problem) -> Vec<Lane> {
    let one = |r: usize, factor: f64| Lane { first: (r, factor), second: (r, 0.0) };
    let safety = safe(problem).map(|(r, weight)| one(r, weight as f64));
    let unmet = problem.unmet.iter().map(|unmet| one(unmet.resource as usize, unmet.weight as f64));
    let balance = problem.balances.iter().map(|balance| Lane {
        first: (balance.first as usize, -((balance.weight * balance.target) as f64)),
        second: (balance.second as usize, balance.weight as f64),
    });
    safety.chain(unmet).chain(balance).collect()
}

/// What the lanes of a host are at when nothing is used, in the same order.
fn constants(problem: &Problem, host: usize) -> impl Iterator<Item = f64> {
    let row = host * problem.resources();
    let capacity = move |r: u32| problem.capacity[row + r as usize] as f64;
    let safety =
        safe(problem).map(move |(r, weight)| -(weight as f64) * problem.safety[row + r] as f64);
    let unmet =
        problem.unmet.iter().map(move |unmet| -(unmet.weight as f64) * capacity(unmet.resource));
    let balance = problem.balances.iter().map(move |balance| {
        let missing = balance.target as f64 * capacity(balance.first) - capacity(balance.second);
        balance.weight as f64 * missing
    });
    safety.chain(unmet).chain(balance)
}

/// Resources whose use above safety costs, and how much.
fn safe(problem: &Problem) -> impl Iterator<Item = (usize, i64)> {
    problem.safety_weight.iter().copied().enumerate().filter(|(_, weight)| *weight != 0)
}

fn difference<'a>(come: &'a [Lanes], go: &'a [Lanes]) -> impl Iterator<Item = Lanes> + 'a {
    come.iter().zip(go).map(|(come, go)| std::array::from_fn(|n| come[n] - go[n]))
}

/// Each lane's size, added up.
fn magnitude(lanes: &[Lanes]) -> f32 {
    lanes.iter().flatten().map(|lane| lane.abs()).sum()
}

/// The positive lanes, added up.
fn positive(host: &[Lanes]) -> f32 {
    add_up(host.iter().copied())
}

/// The same after an arrival, or a departure.
#[inline(always)]
fn after<const ARRIVES: bool>(host: &[Lanes], item: &[Lanes]) -> f32 {
    add_up(host.iter().zip(item).map(|(host, item)| {
        std::array::from_fn(|n| if ARRIVES { host[n] + item[n] } else { host[n] - item[n] })
    }))
}

/// The same after one came and one went.
#[inline(always)]
fn exchanged(host: &[Lanes], come: &[Lanes], go: &[Lanes]) -> f32 {
    add_up(
        host.iter()
            .zip(come)
            .zip(go)
            .map(|((host, come), go)| std::array::from_fn(|n| host[n] + come[n] - go[n])),
    )
}

#[inline(always)]
fn add_up(chunks: impl Iterator<Item = Lanes>) -> f32 {
    let mut sums = [0.0_f32; WIDTH];
    for lanes in chunks {
        for n in 0..WIDTH {
            // Not `max`, which takes longer to be right about what is not a number.
            sums[n] += if lanes[n] > 0.0 { lanes[n] } else { 0.0 };
        }
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}
