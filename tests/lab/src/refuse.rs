//! The few kinds of "no" of this crate, in short form.

use std::fmt::Display;
use std::path::Path;

use ballast_model::{Refusal, RefusalCode};

/// Something of the machine the lab runs on does not work.
pub(crate) fn machine(what: impl Display, error: impl Display, remedy: &str) -> Refusal {
    Refusal::new(RefusalCode::HostFailure, format!("{what}: {error}"), remedy)
}

/// A file of the machine the lab runs on.
pub(crate) fn file(what: &str, path: &Path, error: impl Display) -> Refusal {
    machine(
        format_args!("cannot {what} {}", path.display()),
        error,
        "check the path, its permissions and the free space",
    )
}

/// What was asked for makes no sense.
pub(crate) fn argument(reason: impl Into<String>, remedy: &str) -> Refusal {
    Refusal::new(RefusalCode::InvalidArgument, reason, remedy)
}
