//! Logs go to standard error, as text for people or JSON lines for programs.
//!
//! Levels say who reads and what they can do: `error` – an operator must act;
//! `warn` – something was refused or retried and may need a look; `info` – what
//! an operator would want in the history; `debug` – for developers.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One line of text an event.
    #[default]
    Text,
    /// One JSON object an event.
    Json,
}

/// Starts logging for the whole process. `RUST_LOG` overrides the level, which
/// is `info` otherwise. A second call changes nothing.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Its way to report a standard error that is closed is to panic, on whatever thread
        // was logging. A VM must outlive whoever read its log.
        .log_internal_errors(false);
    // Fails only when a subscriber is set already, which is then the caller's own.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
