//! `lab`: the show, and the program that hosts of the lab run.

use std::process::ExitCode;

fn main() -> ExitCode {
    ballast_lab::main(std::env::args_os())
}
