//! The door between the cluster, with its names, and planning, with its numbers.
//!
//! [`problem`] numbers a snapshot once and never changes; [`rules`] is what each
//! kind of rule demands of numbers; [`state`] is where every VM is while a plan is
//! worked out; [`obstacle`] is what keeps a VM from a host, whoever asks, [`reach`] whether it offers what the VM needs;
//! [`groups`] are VMs that rules hold together; [`losses`] is whether the cluster can lose hosts; [`entitle`] divides
//! the cluster among pools. [`dense`] is the snapshot as the
//! solver sees it, [`ground`] as the ordering sees it.

// Hosts, VMs and rules are bounded far below `u32::MAX` by the size of a snapshot file, and again by the solver's builder.
#![allow(clippy::cast_possible_truncation)]

pub(crate) mod dense;
pub(crate) mod entitle;
pub(crate) mod ground;
pub(crate) mod groups;
pub(crate) mod losses;
pub(crate) mod obstacle;
pub(crate) mod problem;
pub(crate) mod reach;
pub(crate) mod rules;
pub(crate) mod state;
