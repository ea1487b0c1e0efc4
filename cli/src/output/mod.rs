//! What commands print: tables for people, JSON for programs.
//!
//! JSON has base units in the names of its fields (`_bytes`, `_millicores`,
//! `_micros`, `_unix_millis`), never changes the meaning of a field and only
//! ever adds to them; docs/json.md lists them.

pub(crate) mod hardware;
mod table;
pub(crate) mod units;
pub(crate) mod view;

use std::io::{ErrorKind, Write};

use ballast_model::{Refusal, RefusalCode};
use serde::Serialize;

pub(crate) use table::{Align, Table, fields};

/// Writes to standard output. A reader that went away (`| head`) ends the output, not the command.
///
/// # Errors
/// `HostFailure` when standard output cannot be written for any other reason.
pub(crate) fn print(text: &str) -> Result<(), Refusal> {
    print_bytes(text.as_bytes())
}

/// The same for bytes that need not be text.
///
/// # Errors
/// As [`print`].
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<(), Refusal> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot write to standard output: {error}"),
            "check where the output goes",
        )),
        _ => Ok(()),
    }
}

/// Prints one JSON document, indented.
///
/// # Errors
/// As [`print`].
pub(crate) fn print_json<T: Serialize>(value: &T) -> Result<(), Refusal> {
    print(&format!("{}\n", json_text(value, serde_json::to_string_pretty)?))
}

/// One JSON document on one line.
///
/// # Errors
/// `Internal` when the value has no JSON form.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<String, Refusal> {
    json_text(value, serde_json::to_string)
}

fn json_text<T>(
    value: &T,
    write: impl Fn(&T) -> serde_json::Result<String>,
) -> Result<String, Refusal> {
    write(value).map_err(|error| {
        Refusal::new(
            RefusalCode::Internal,
            format!("cannot write the answer as JSON: {error}"),
            "report a defect",
        )
    })
}
