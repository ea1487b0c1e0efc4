//! The multi-call program, as a binary of this package.

use std::process::ExitCode;

fn main() -> ExitCode {
    ballast_cli::main(std::env::args_os())
}
