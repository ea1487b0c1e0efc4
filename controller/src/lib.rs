//! Observe, decide, act: the only writer of the store.

pub mod audit;
pub mod store;
pub mod telemetry;

use std::ffi::OsString;
use std::process::ExitCode;

/// The program `ballast-controller`, callable from another binary.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let _ = args.into_iter();
    ExitCode::FAILURE
}
