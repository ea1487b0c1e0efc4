//! One test-suite over every implementation of the store.

#![allow(clippy::unwrap_used, clippy::expect_used)] // this whole crate is tests

mod embedded;
mod etcd;
#[path = "../support/faulty.rs"]
mod faulty;
mod leader;
mod random;
mod suite;
