//! The program `ballast`; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ballast_cli::main(std::env::args_os())
}
