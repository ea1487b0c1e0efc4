//! Questions about a cluster beside "what should move now".
//!
//! Each question is a pure function of a snapshot, like [`plan`](crate::plan),
//! in a file of its own.
//!
//! | module | question |
//! | --- | --- |
//! | [`what_if`] | what would be, were the cluster another one |
//! | [`restart`] | hosts are lost: where does each of their VMs start again |
//! | [`spare`] | how many more VMs of a shape fit, also with hosts to lose |
//! | [`reboot`] | which hosts can be emptied together, so that all have had their turn soon |
//! | [`consolidate`] | which hosts the cluster could do without |
//! | [`room`] | which few moves make room for a VM that fits nowhere |
//!
//! What they share, putting VMs that run nowhere on hosts, is [`packing`].

pub mod consolidate;
mod packing;
pub mod reboot;
pub mod restart;
pub mod room;
pub mod spare;
pub mod what_if;

pub use consolidate::{Consolidation, consolidate};
pub use reboot::{RebootGroups, reboot_groups};
pub use restart::{Restart, Start, restart};
pub use room::{Room, room};
pub use spare::{Shape, Spare, spare};
pub use what_if::{WhatIf, what_if};
