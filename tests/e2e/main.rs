//! Whole clusters of processes on this machine, and what happens to their VMs
//! when parts of them are killed.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a panic is a failed test")]

mod audit;
mod bad_input;
mod crash;
mod demo;
mod faults;
mod full_host;
mod local_disks;
mod post_copy;
mod snapshot;

/// The program under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_ballast-under-test");
