//! The program `ballast-controller`; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ballast_controller::main(std::env::args_os())
}
