//! The outermost part of every program: arguments in, one error line and an exit code out.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use ballast_model::{Refusal, RefusalCode};
use clap::error::ErrorKind;
use clap::{Args, Parser};
use tokio::runtime::{Builder, Runtime};

use crate::exit;
use crate::logging::LogFormat;

/// What every daemon with a configuration file is called with.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// The configuration file (TOML); deploy/config has an example with every key
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// How log lines look
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// How many threads a program's runtime has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling one.
    One,
    /// One a core.
    PerCore,
}

/// The runtime all asynchronous work of a program runs on.
///
/// # Errors
/// `HostFailure` when the machine grants no threads or files.
pub fn runtime(threads: Threads) -> Result<Runtime, Refusal> {
    let mut builder = match threads {
        Threads::One => Builder::new_current_thread(),
        Threads::PerCore => Builder::new_multi_thread(),
    };
    builder.enable_all().build().map_err(|error| {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot start: {error}"),
            "check the limits on threads, open files and memory",
        )
    })
}

/// Parses `args` and runs `start` with them. Help and version go to standard output; a mistake on
/// the command line, with `remedy`, and whatever `start` refuses become one line on standard error.
pub fn run<A: Parser>(
    name: &str,
    remedy: &str,
    args: impl IntoIterator<Item = OsString>,
    start: impl FnOnce(A) -> Result<(), Refusal>,
) -> ExitCode {
    let outcome = match A::try_parse_from(args) {
        Ok(args) => start(args),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                // What cannot be printed has no reader.
                let _ = error.print();
                return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
            }
            _ => Err(usage_refusal(&error, remedy)),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => exit::report(name, &refusal),
    }
}

/// A mistake on the command line as a refusal of one line.
pub fn usage_refusal(error: &clap::Error, remedy: &str) -> Refusal {
    Refusal::new(RefusalCode::InvalidArgument, usage_line(&error.render().to_string()), remedy)
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

    #[derive(Debug, Parser)]
    struct Args {
        #[arg(long)]
        config: String,
    }

    fn check(args: &[&str], expected: ExitCode) {
        let args = args.iter().map(OsString::from);
        let code = run("test", "see --help", args, |args: Args| {
            assert_eq!(args.config, "x");
            Ok(())
        });
        assert_eq!(format!("{code:?}"), format!("{expected:?}"));
    }

    #[test]
    fn arguments_reach_the_program_and_mistakes_do_not() {
        check(&["test", "--config", "x"], ExitCode::SUCCESS);
        check(&["test", "--help"], ExitCode::SUCCESS);
        check(&["test"], ExitCode::from(2));
    }

    #[test]
    fn a_mistake_is_one_line() {
        let error = Args::try_parse_from(["test", "--confg", "x"]).unwrap_err();
        let line = usage_refusal(&error, "see --help").to_string();
        assert!(line.contains("--confg") && line.ends_with("; see --help"), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
}
