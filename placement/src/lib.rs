//! The planner: snapshot in, plan and report out.
//!
//! Pure: no IO, no clock, no async. [`plan`] and the questions of [`ask`] run in
//! the caller's thread: the same snapshot, options and seed give the same plan,
//! however the snapshot came about. [`shadow`] forecasts in several threads; the
//! search for reassignments ([`core`]) and [`defrag`] use as many as they are
//! told, and what they find depends on how many.
//!
//! ```text
//!  ClusterSnapshot ──▶ problem ──▶ solve ──▶ schedule ──▶ check ──▶ Planning
//!                      names to    moves     order and    every      steps, and for each VM
//!                      numbers               what waits   legal      why it moves or stays,
//!                                            for what     order      and a report: curve, times, bound
//! ```
//!
//! | call | for |
//! | --- | --- |
//! | [`plan`] | a plan for the whole cluster |
//! | [`check_step`] | whether one VM may go to one host, as a step of a plan |
//! | [`check_move`] | the same for an operator's order, which has no later steps to put things right |
//! | [`choose_target`] | where a VM goes when somebody wants it moved and names no host |
//! | [`place`] | where a new VM starts |
//! | [`check_start`] | whether a new VM may start on one host |
//! | [`imbalance`] | how unequal the load is; formula in [`score`] |
//! | [`dot`] | which step of a plan waits for which, to be drawn |
//! | [`usage`] | what each host has, holds and has left |
//! | [`mend::mend`] | what must move, and nothing else |
//! | [`order::order_moves`] | in which order, so that every interleaving is legal |
//! | [`defrag::defrag`] | room for big VMs with a bounded number of moves |
//! | [`simulate::replay`] | whether a plan is legal, by one that knows nothing of how it came about |
//! | [`shadow::replay`] | what balancing would have done to a recorded day |
//! | [`yardstick::greedy`] | what the planner is measured against |
//!
//! What always holds:
//! - **Hard**: memory (size, not demand, counted on both hosts while a VM moves), anti-affinity, VM-host `must` rules.
//!   A plan may mend what is broken already, and never breaks or worsens anything, at any moment.
//!   Rules that hold in the end may be broken between the steps of VMs that move as one, never after the last of them.
//! - **Soft**: VM-host `should` rules. A forced move may give one up when nothing else fits; a balance move never does.
//! - A host whose load is unknown is neither source nor target. A draining host is a source only; how
//!   it is emptied is chosen by [`DrainGoal`](ballast_model::DrainGoal). A VM in flight stays.
//! - Automation `full` moves for every cause, `partial` for drains only (balance moves are recommended in the verdict),
//!   `manual` never.

pub mod ask;
mod check;
pub mod core;
mod cost;
pub mod defrag;
mod door;
mod drain;
mod eligibility;
pub mod explain;
mod graph;
mod level;
pub mod mend;
mod objective;
mod options;
pub mod order;
mod planner;
mod rank;
mod report;
pub mod roadef;
mod route;
pub mod scenario;
mod schedule;
pub mod score;
pub mod shadow;
pub mod simulate;
mod solve;
#[cfg(test)]
mod testing;
mod usage;
mod verdict;
pub mod yardstick;

pub use eligibility::{check_move, check_start, check_step, choose_target, place};
pub use graph::dot;
pub use options::{Causes, PlanOptions, STEPS_MAX};
pub use planner::{imbalance, plan};
pub use usage::{Usage, usage};
