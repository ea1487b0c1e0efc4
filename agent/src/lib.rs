//! One host: load, its VMs, the hypervisor drivers, migration control.

use std::ffi::OsString;
use std::process::ExitCode;

/// The program `ballast-agent`, callable from another binary.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let _ = args.into_iter();
    ExitCode::FAILURE
}
