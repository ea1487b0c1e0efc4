//! `ballast-vmm`, built beside this package's tests, which start it.

use std::process::ExitCode;

fn main() -> ExitCode {
    ballast_vmm::main(std::env::args_os())
}
