//! The program `ballast-agent`; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ballast_agent::main(std::env::args_os())
}
