//! The best state that can be reached with few moves.
//!
//! Greedy by gain, lazily: each item's best move is weighed once and kept in
//! a heap; only what comes to the top is weighed again. Targets are the hosts with the
//! least load cost to add to. When the limit is reached or nothing gains, moves
//! that do not pay are taken back, and the best targets are looked for once
//! more among what is left. Every step is on the trade-off curve.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::core::assignment::Assignment;
use crate::core::ids::{Host, Item, NONE, Place};
use crate::core::objective::Score;
use crate::core::rng::Rng;
use crate::core::state::State;

use super::{CurvePoint, Meter, SearchOptions, point};

/// Hosts weighed as the target of one item, besides random ones.
const TARGETS: usize = 24;

/// Random hosts weighed besides.
const RANDOM_TARGETS: usize = 8;

/// Rounds of adding moves and taking back those that do not pay.
const ROUNDS: usize = 4;

/// What the search with few moves came to.
pub(super) struct Few {
    pub(super) assignment: Assignment,
    pub(super) curve: Vec<CurvePoint>,
    pub(super) evaluations: u64,
}

/// Improves a state by at most as many moves as the options allow.
pub(super) fn few<const L: usize>(
    state: State<'_, L>,
    options: &SearchOptions,
    meter: &Meter<'_>,
) -> Few {
    let mut greedy = Greedy {
        curve: vec![point(&state)],
        rng: Rng::new(options.seed),
        state,
        options,
        meter,
        evaluations: 0,
        targets: Vec::new(),
        version: Vec::new(),
    };
    greedy.version = vec![0; greedy.state.problem().hosts()];
    for _ in 0..ROUNDS {
        let before = greedy.state.score();
        greedy.add_moves();
        greedy.take_back();
        if greedy.state.score() >= before || greedy.over() {
            break;
        }
    }
    Few {
        assignment: greedy.state.assignment(),
        curve: greedy.curve,
        evaluations: greedy.evaluations,
    }
}

/// A move that gains, and the versions of the two hosts it was weighed at.
type Candidate<const L: usize> = Reverse<(Score<L>, u32, Place, u64)>;

struct Greedy<'a, 'p, const L: usize> {
    state: State<'p, L>,
    options: &'a SearchOptions,
    meter: &'a Meter<'a>,
    rng: Rng,
    evaluations: u64,
    curve: Vec<CurvePoint>,
    /// Open hosts, the least loaded first, as of the last sorting.
    targets: Vec<u32>,
    /// How often each host changed.
    version: Vec<u32>,
}

impl<const L: usize> Greedy<'_, '_, L> {
    fn over(&self) -> bool {
        self.meter.progress(self.evaluations) >= 1.0
    }

    fn add_moves(&mut self) {
        self.sort_targets();
        let mut heap: BinaryHeap<Candidate<L>> = BinaryHeap::new();
        for ix in 0..self.state.problem().items() as u32 {
            heap.extend(self.candidate(Item(ix)));
            if ix % 256 == 0 && self.over() {
                break;
            }
        }
        let mut since_sorting = 0;
        while let Some(Reverse((_, ix, place, stamp))) = heap.pop() {
            let item = Item(ix);
            if !self.options.within(&self.state, item) {
                continue;
            }
            if stamp != self.stamp(item, place) {
                // A host changed since: weigh again, and let it compete.
                heap.extend(self.candidate(item));
                if self.evaluations.is_multiple_of(64) && self.over() {
                    break;
                }
                continue;
            }
            self.make(item, place);
            since_sorting += 1;
            if since_sorting * 2 >= TARGETS {
                since_sorting = 0;
                self.sort_targets();
                if self.over() {
                    break;
                }
            }
        }
    }

    fn make(&mut self, item: Item, place: Place) {
        if let Some(from) = self.state.place(item) {
            self.version[from.host.ix()] += 1;
        }
        self.version[place.host.ix()] += 1;
        self.state.apply(item, Some(place));
        self.curve.push(point(&self.state));
    }

    /// Changes whenever what the move was weighed by may have changed.
    fn stamp(&self, item: Item, place: Place) -> u64 {
        let from = self.state.place(item).map_or(NONE, |from| self.version[from.host.ix()]);
        u64::from(from) << 32 | u64::from(self.version[place.host.ix()])
    }

    /// The best move of an item that gains.
    fn candidate(&mut self, item: Item) -> Option<Candidate<L>> {
        let problem = self.state.problem();
        if problem.pinned(item) {
            return None;
        }
        let hosts = problem.open_hosts(item);
        let few = hosts.len() <= TARGETS + RANDOM_TARGETS;
        let count = if few { hosts.len() } else { TARGETS + RANDOM_TARGETS };
        let mut best: Option<(Score<L>, Place)> = None;
        for n in 0..count {
            let host = match n {
                _ if few => hosts[n],
                0..TARGETS if n < self.targets.len() => self.targets[n],
                _ => hosts[self.rng.below(hosts.len())],
            };
            for shape in 0..problem.shapes(item) {
                let place = Place { host: Host(host), shape };
                self.evaluations += 1;
                if let Some(delta) = self.state.delta(item, place)
                    && delta.is_gain()
                    && best.is_none_or(|(least, _)| delta < least)
                {
                    best = Some((delta, place));
                }
            }
        }
        best.map(|(delta, place)| Reverse((delta, item.0, place, self.stamp(item, place))))
    }

    /// The hosts with most to gain from an arrival: by share of what is used, the lowest first.
    fn sort_targets(&mut self) {
        let problem = self.state.problem();
        let used = |host: &u32| {
            let host = Host(*host);
            let shares = self.state.usage(host).iter().zip(problem.capacity(host));
            shares
                .map(|(used, capacity)| (i128::from(*used) << 20) / i128::from((*capacity).max(1)))
                .sum::<i128>()
        };
        let mut hosts: Vec<u32> =
            (0..problem.hosts() as u32).filter(|host| !problem.closed(Host(*host))).collect();
        if hosts.len() > TARGETS {
            hosts.select_nth_unstable_by_key(TARGETS - 1, |host| (used(host), *host));
            hosts.truncate(TARGETS);
        }
        self.targets = hosts;
    }

    /// Takes items home whose move does not pay any more.
    fn take_back(&mut self) {
        let problem = self.state.problem();
        for ix in 0..problem.items() {
            let item = Item::from(ix);
            let Some(home) =
                problem.home(item).filter(|home| self.state.place(item) != Some(*home))
            else {
                continue;
            };
            self.evaluations += 1;
            if let Some(delta) = self.state.delta(item, home)
                && delta <= Score::ZERO
            {
                self.make(item, home);
            }
        }
    }
}
