//! One process per VM: machine, devices, state and the pre-copy engine.

pub mod boot;

use std::ffi::OsString;
use std::process::ExitCode;

/// The program `ballast-vmm`, callable from another binary.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let _ = args.into_iter();
    ExitCode::FAILURE
}
