//! Why and why not: what moves gain, what keeps VMs where they are, which rules cannot be kept together.
//!
//! [`conflict`] answers about rules alone and needs no plan; [`search`] is the
//! proof behind it.

pub(crate) mod conflict;
mod search;

pub use conflict::{Conflict, check_rule, conflict};
