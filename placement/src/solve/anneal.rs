//! A small annealing search over the dense problem: moves and exchanges of single VMs.
//!
//! Gains are always taken. A loss is taken with a probability that falls with
//! its size and with time, and only in the last level of the objective: balance
//! may get worse on the way, rules and ceilings may not. The best state met is
//! the answer. Time is counted in moves weighed, so the answer follows from the
//! problem and the seed alone.

use crate::core::{Assignment, Host, Item, Place, Problem, Rng, Score, State};

/// Of so many proposals one is an exchange of two VMs.
const EXCHANGE_EVERY: usize = 3;
/// The first temperature, as a share of the spread of a host that is all its capacity off the mean, and the last as a
/// share of the first.
const HEAT: f64 = 0.3;
const COLD: f64 = 1e-6;

/// The best assignment met while weighing so many moves, from where everything is.
pub(crate) fn search(
    problem: &Problem,
    seed: u64,
    weighed_max: u64,
    spread_unit: f64,
) -> Assignment {
    walk(problem, problem.initial(), seed, weighed_max, (HEAT * spread_unit, COLD))
}

/// The best assignment met near `from`, which is good already: the heat is about what one move must be worth.
pub(crate) fn refine(
    problem: &Problem,
    from: Assignment,
    seed: u64,
    weighed_max: u64,
    move_cost: f64,
) -> Assignment {
    walk(problem, from, seed, weighed_max, (move_cost * 0.5, 0.01))
}

fn walk(
    problem: &Problem,
    from: Assignment,
    seed: u64,
    weighed_max: u64,
    (hot, cold): (f64, f64),
) -> Assignment {
    let free: Vec<Item> = (0..problem.items())
        .map(Item::from)
        .filter(|item| !problem.pinned(*item) && !problem.open_hosts(*item).is_empty())
        .collect();
    let mut best = from;
    if free.is_empty() {
        return best;
    }
    let mut walk = Walk { state: State::new(problem, &best), random: Rng::new(seed), free };
    let mut best_score = walk.state.score();
    for weighed in 0..weighed_max {
        let heat = hot * cold.powf(weighed as f64 / weighed_max as f64);
        let changed = match walk.random.below(EXCHANGE_EVERY) {
            0 => walk.exchange(heat),
            1 if weighed % 4 == 0 => walk.back(heat),
            _ => walk.shift(heat),
        };
        if changed && walk.state.score() < best_score {
            best_score = walk.state.score();
            best = walk.state.assignment();
        }
    }
    best
}

struct Walk<'p> {
    state: State<'p>,
    random: Rng,
    /// Items that may move and have somewhere to go.
    free: Vec<Item>,
}

impl Walk<'_> {
    fn any(&mut self) -> Item {
        self.free[self.random.below(self.free.len())]
    }

    fn shift(&mut self, heat: f64) -> bool {
        let item = self.any();
        let hosts = self.state.problem().open_hosts(item);
        let to = Place::on(Host(hosts[self.random.below(hosts.len())]));
        match self.state.delta(item, to) {
            Some(delta) if self.takes(&delta, heat) => {
                self.state.apply(item, Some(to));
                true
            }
            _ => false,
        }
    }

    /// Home again, for one that is not.
    fn back(&mut self, heat: f64) -> bool {
        let item = self.any();
        let home = self.state.problem().home(item);
        let Some(home) = home.filter(|home| self.state.place(item) != Some(*home)) else {
            return false;
        };
        match self.state.delta(item, home) {
            Some(delta) if self.takes(&delta, heat) => {
                self.state.apply(item, Some(home));
                true
            }
            _ => false,
        }
    }

    fn exchange(&mut self, heat: f64) -> bool {
        let (one, other) = (self.any(), self.any());
        let (Some(here), Some(there)) = (self.state.place(one), self.state.place(other)) else {
            return false;
        };
        if here.host == there.host {
            return false;
        }
        let (to_one, to_other) = (Place::on(there.host), Place::on(here.host));
        match self.state.swap_delta(one, to_one, other, to_other) {
            Some(delta) if self.takes(&delta, heat) => {
                self.state.apply(one, Some(to_one));
                self.state.apply(other, Some(to_other));
                true
            }
            _ => false,
        }
    }

    fn takes(&mut self, delta: &Score, heat: f64) -> bool {
        let last = self.state.problem().levels_used() - 1;
        match delta.leading() {
            (_, amount) if amount <= 0 => true,
            (Some(level), amount) if level == last => {
                self.random.unit() < (-(amount as f64) / heat).exp()
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::dense;
    use crate::door::problem::Problem as Numbered;
    use crate::options::PlanOptions;
    use crate::scenario::parse;

    #[test]
    fn what_needs_another_vm_out_of_the_way_is_found() {
        let text = "host a 8 16G draining : big 1 12G\nhost b 8 16G : small 1 6G\nhost c 8 16G : mid 1 10G\n";
        let snapshot = parse(text).unwrap().snapshot;
        let numbered = Numbered::new(&snapshot).unwrap();
        let problem = dense::problem(&numbered, &PlanOptions::default()).unwrap();
        let unit = dense::spread_unit(&numbered);
        let before = problem.evaluate(&problem.initial()).score;
        let found = search(&problem, 0, 2_000, unit);
        let after = problem.evaluate(&found).score;
        assert!(before.hard > 0 && after.hard == 0, "{before:?} {after:?}");
        assert_eq!(found, search(&problem, 0, 2_000, unit));
    }
}
