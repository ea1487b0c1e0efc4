//! Configuration files.

use std::path::Path;

use ballast_model::{Refusal, RefusalCode};
use serde::de::DeserializeOwned;

/// The largest configuration file that is read, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Reads a TOML file into a `T`. `T` should deny unknown fields, so that a typing error is found here.
///
/// # Errors
/// `NotFound`, `HostFailure` or `InvalidArgument`; the last names line and column.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Refusal> {
    let shown = path.display();
    let read = || -> std::io::Result<String> {
        let size = std::fs::metadata(path)?.len();
        if size > CONFIG_BYTES_MAX {
            return Err(std::io::Error::other(format!(
                "it is {size} bytes long; the limit is {CONFIG_BYTES_MAX}"
            )));
        }
        std::fs::read_to_string(path)
    };
    let text = read().map_err(|error| {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => RefusalCode::NotFound,
            _ => RefusalCode::HostFailure,
        };
        Refusal::new(
            code,
            format!("cannot read configuration {shown}: {error}"),
            "check the path given with --config; deploy/config has examples",
        )
    })?;
    toml::from_str(&text).map_err(|error| {
        let place = error.span().map_or_else(String::new, |span| {
            let before = &text[..span.start.min(text.len())];
            let line = before.matches('\n').count() + 1;
            let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1) + 1;
            format!(":{line}:{column}")
        });
        Refusal::new(
            RefusalCode::InvalidArgument,
            format!("configuration {shown}{place}: {}", error.message().replace('\n', " ")),
            "correct that line; deploy/config has an example with every key",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Sample {
        host: String,
    }

    fn check_refused(text: &str, code: RefusalCode, expected: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let refusal = load::<Sample>(file.path()).unwrap_err();
        assert_eq!(refusal.code, code);
        let line = refusal.to_string();
        assert!(line.contains(expected), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }

    #[test]
    fn faults_are_one_line_with_their_place() {
        check_refused(
            "host = \"a\"\nhots = 1\n",
            RefusalCode::InvalidArgument,
            ":2:1: unknown field `hots`",
        );
        check_refused("host = 3\n", RefusalCode::InvalidArgument, ":1:8: invalid type");
        check_refused("", RefusalCode::InvalidArgument, "missing field `host`");
        check_refused("host = ", RefusalCode::InvalidArgument, ":1:");
    }

    #[test]
    fn a_missing_file_is_named() {
        let refusal = load::<Sample>(Path::new("/nonexistent/a.toml")).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NotFound);
        assert!(refusal.reason.contains("/nonexistent/a.toml"));
    }
}
