//! The program `ballast-vmm`; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ballast_vmm::main(std::env::args_os())
}
