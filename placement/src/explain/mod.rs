//! Why and why not: what moves gain, what keeps VMs where they are, which rules cannot be kept together.
//!
//! [`conflict`] answers about rules alone and needs no plan; [`search`] is the
//! proof behind it. [`core`] asks the same about a VM that is stuck, of the
//! cluster as it is now. [`terms`] says what of the objective a step changes.

pub(crate) mod conflict;
pub(crate) mod core;
mod search;
pub(crate) mod terms;

pub use conflict::{Conflict, check_rule, conflict};
