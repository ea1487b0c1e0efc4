//! The controller over hosts that are made of memory: every fault in turn, a
//! crash at every write, and after each of them the same questions. Does every
//! VM run exactly once, where the record says? Has everything ended? Does the
//! audit trail verify, with every record closed?

#![allow(clippy::unwrap_used, clippy::expect_used)] // this whole crate is tests

mod cluster;
mod commit;
mod crashes;
mod faults;
mod hosts;
mod needs;
mod orders;
mod rounds;
mod store;
