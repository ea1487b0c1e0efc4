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

use ballast_model::{Refusal, RefusalCode};
use ballast_service::exit;
use clap::Parser;
use clap::error::ErrorKind;

use args::Cli;

/// The program's name, in front of every error line.
const PROGRAM: &str = "ballast";

/// The program `ballast`, or the daemon it was called as.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    match args.first().and_then(|name| Path::new(name).file_name()).and_then(OsStr::to_str) {
        Some("ballast-controller") => ballast_controller::main(args),
        Some("ballast-agent") => ballast_agent::main(args),
        Some("ballast-vmm") => ballast_vmm::main(args),
        Some(cluster::guard::PROGRAM) => cluster::guard::main(args),
        _ => operator(args),
    }
}

fn operator(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return report_usage(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => exit::report(PROGRAM, &refusal),
    }
}

fn run(cli: Cli) -> Result<(), Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot start: {error}"),
            "check the limits on open files and memory",
        )
    })?;
    runtime.block_on(commands::run(cli))
}

/// Help goes to standard output as it is; a mistake becomes one line like every other refusal.
fn report_usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let shown = output::print(&error.render().to_string());
            shown.map_or_else(|refusal| exit::report(PROGRAM, &refusal), |()| ExitCode::SUCCESS)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            eprint!("{}", error.render());
            ExitCode::from(exit::exit_code(RefusalCode::InvalidArgument))
        }
        _ => {
            let refusal = Refusal::new(
                RefusalCode::InvalidArgument,
                usage_line(&error.render().to_string()),
                "see 'ballast help' and '--help' after any command",
            );
            exit::report(PROGRAM, &refusal)
        }
    }
}

/// The parser's message without its label, its usage text and its line breaks.
fn usage_line(rendered: &str) -> String {
    let text = rendered.strip_prefix("error: ").unwrap_or(rendered);
    let told = |line: &&str| !line.starts_with("Usage:") && !line.starts_with("For more");
    let lines = text.lines().take_while(told).map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_usage(args: &[&str], expected: &str) {
        let error = Cli::try_parse_from(args).unwrap_err();
        let line = usage_line(&error.render().to_string());
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
