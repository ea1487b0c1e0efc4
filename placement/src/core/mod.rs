//! The solver: dense numbers in, a better assignment out.
//!
//! ```text
//!  door ──▶ ProblemBuilder ──build()──▶ Problem ──search()──▶ Found ──▶ door
//!  names       validates,               shared,               assignment, score, bound,
//!  units       refuses                  immutable             moves, curve
//! ```
//!
//! A [`Problem`] knows hosts, items (VMs), resources, rules over groups and an
//! objective table. A [`State`] is an assignment under change whose score is
//! kept move by move; `State::delta` weighs a move, `State::feasible_move`
//! asks the hard rules only, `State::blocker` says what forbids it, and
//! `State::apply` makes it. [`Problem::evaluate`] computes the same score from scratch.
//!
//! ```
//! use ballast_placement::core::*;
//!
//! let mut b = ProblemBuilder::new(ObjectiveTable::cluster());
//! let _memory = b.resource(ResourceSpec::allocation());
//! let _cpu = b.resource(ResourceSpec { imbalance_weight: 1, ..ResourceSpec::demand() });
//! let one = b.host(HostSpec { capacity: vec![64, 100], ..HostSpec::default() });
//! let two = b.host(HostSpec { capacity: vec![64, 100], ..HostSpec::default() });
//! let vm = |home| ItemSpec { shapes: vec![vec![16, 40]], home: Some(Place::on(home)), ..ItemSpec::default() };
//! let first = b.item(vm(one));
//! let second = b.item(vm(one));
//! let pair = b.group(vec![first, second]);
//! let each_host = b.host_partition();
//! b.rule(RuleSpec { group: pair, partition: each_host, kind: RuleKind::AtMostPerDomain(1), strength: Strength::Hard });
//! let problem = b.build()?;
//!
//! let mut state: State = State::new(&problem, &problem.initial());
//! let delta = state.delta(second, Place::on(two)).unwrap();
//! assert!(delta.is_gain());
//! state.apply(second, Some(Place::on(two)));
//! assert_eq!(state.score(), problem.evaluate(&state.assignment()).score);
//! # Ok::<(), ballast_model::Refusal>(())
//! ```
//!
//! Who owns what: the problem is borrowed by everything and changed by nobody;
//! each search thread owns its state; nothing here reads a clock.

// Counts are bounded by `COUNT_MAX` and `CELLS_MAX` in the builder, far below `u32::MAX`; amounts are
// non-negative there.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod assignment;
mod bound;
mod builder;
mod evaluate;
mod ids;
mod objective;
mod problem;
mod rng;
mod search;
mod sieve;
mod state;
mod tally;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use assignment::{Assignment, Move};
pub use builder::{AMOUNT_MAX, COUNT_MAX, HostSpec, ItemSpec, ProblemBuilder};
pub use evaluate::Violation;
pub use ids::{Group, Host, HostSet, Item, Partition, Place, Resource, Rule};
pub use objective::{
    HARD_UNIT, HARD_UNPLACED, LEVELS_MAX, Objective, ObjectiveTable, Score, Term, UTILISATION_ONE,
};
pub(crate) use problem::HostBits;
pub use problem::{Problem, ResourceSpec, RuleKind, RuleSpec, Strength};
pub use rng::Rng;
pub use search::{Budget, CurvePoint, Found, SearchOptions, THREADS_MAX, search};
pub use state::{Blocker, State};
