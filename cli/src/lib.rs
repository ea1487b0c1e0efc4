//! The operator's command, and clusters of processes on one machine.
//!
//! Called under the name of a daemon (a symbolic link to it), the binary is
//! that daemon: `ballast-controller`, `ballast-agent`, `ballast-vmm`.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`args`] | the command line, checked before anything is called |
//! | [`client`] | one connection to the controller, with bounds and refusals |
//! | `output` | tables for people, JSON for programs |
//! | `commands` | one file a noun |
//! | [`cluster`] | a controller and agents as processes; the demo and the end-to-end tests stand on it |
//! | `demo` | `ballast demo` |

pub mod args;
pub mod client;
pub mod cluster;
mod commands;
mod demo;
mod output;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use ballast_model::Refusal;
use ballast_service::program;

use args::Cli;

/// The program's name, in front of every error line.
const PROGRAM: &str = "ballast";
/// What to do about a mistake on the command line.
const USAGE_REMEDY: &str = "see 'ballast help' and '--help' after any command";

/// The program `ballast`, or the daemon it was called as.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    match args.first().and_then(|name| Path::new(name).file_name()).and_then(OsStr::to_str) {
        Some("ballast-controller") => ballast_controller::main(args),
        Some("ballast-agent") => ballast_agent::main(args),
        Some("ballast-vmm") => ballast_vmm::main(args),
        Some(cluster::guard::PROGRAM) => cluster::guard::main(args),
        _ => program::run(PROGRAM, USAGE_REMEDY, args, run),
    }
}

fn run(cli: Cli) -> Result<(), Refusal> {
    program::runtime(program::Threads::One)?.block_on(commands::run(cli))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn check_usage(args: &[&str], expected: &str) {
        let error = Cli::try_parse_from(args).unwrap_err();
        let line = program::usage_refusal(&error, USAGE_REMEDY).reason;
        assert!(line.contains(expected) && !line.contains('\n'), "{line}");
    }

    #[test]
    fn a_mistake_on_the_command_line_is_one_line() {
        check_usage(&["ballast", "vm", "create", "web-1"], "--kernel <PATH>");
        check_usage(&["ballast", "vm", "show", "Web 1"], "\"Web 1\" is not a valid VM name");
        check_usage(&["ballast", "vm", "sho"], "unrecognized subcommand 'sho'");
        check_usage(&["ballast", "host", "ls", "--timeout", "soon"], "\"soon\" is not a duration");
    }
}
