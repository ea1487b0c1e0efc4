//! Questions about a cluster beside "what should move now".
//!
//! Each question is a pure function of a snapshot, like [`plan`](crate::plan),
//! in a file of its own.
//!
//! | module | question |
//! | --- | --- |
//! | [`what_if`] | what would be, were the cluster another one |

pub mod what_if;

pub use what_if::{WhatIf, what_if};
