//! Files of public problems: bounded, unpacked, and every mistake with its place.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use ballast_model::{Refusal, RefusalCode};
use flate2::read::MultiGzDecoder;
use serde::de::DeserializeOwned;

use super::line;

/// The most bytes of an input, unpacked.
const BYTES_MAX: u64 = 512 << 20;
/// The most bytes of a text, decompressed.
const TEXT_BYTES_MAX: u64 = 1 << 30;
/// What every gzip file begins with.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Reads a file, unpacked if it is gzip.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Refusal> {
    let cannot = |error: std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => RefusalCode::NotFound,
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput => {
                RefusalCode::InvalidArgument
            }
            _ => RefusalCode::HostFailure,
        };
        Refusal::new(code, format!("cannot read {}: {error}", path.display()), "check the file")
    };
    let mut raw = Vec::new();
    File::open(path).map_err(cannot)?.take(BYTES_MAX + 1).read_to_end(&mut raw).map_err(cannot)?;
    if raw.starts_with(&GZIP) {
        let mut plain = Vec::with_capacity(raw.len().saturating_mul(8));
        MultiGzDecoder::new(raw.as_slice())
            .take(BYTES_MAX + 1)
            .read_to_end(&mut plain)
            .map_err(cannot)?;
        raw = plain;
    }
    if raw.len() as u64 > BYTES_MAX {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("{} holds more than {} MiB", path.display(), BYTES_MAX >> 20),
            "use a smaller file",
        ));
    }
    Ok(raw)
}

/// The JSON of a file as a value; a mistake is named with its line and column.
///
/// # Errors
/// What is wrong with the text.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(text).map_err(|error| invalid(path, &error.to_string()))
}

/// A mistake in the content of a JSON file. `what` begins with the path of the place, which is named with its line.
pub(super) fn invalid_at(path: &Path, text: &[u8], what: &str) -> Refusal {
    match line::of(text, what) {
        Some(line) => invalid(path, &format!("line {line}: {what}")),
        None => invalid(path, what),
    }
}

/// A mistake in the file's content. `what` names the place.
pub(super) fn invalid(path: &Path, what: &str) -> Refusal {
    Refusal::new(
        RefusalCode::InvalidArgument,
        format!("{}: {what}", path.display()),
        "correct the file and try again",
    )
}

/// A file's text, decompressed if its name ends in `.xz`.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn read_text(path: &Path) -> Result<String, Refusal> {
    let io = |error: std::io::Error| invalid(path, &error.to_string());
    let file = File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|extension| extension == "xz") {
        let mut reader = BufReader::new(file.take(TEXT_BYTES_MAX));
        let mut bounded = Bounded { bytes: &mut bytes };
        lzma_rs::xz_decompress(&mut reader, &mut bounded)
            .map_err(|error| invalid(path, &format!("it does not decompress: {error:?}")))?;
    } else {
        let most = TEXT_BYTES_MAX + 1;
        file.take(most).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 == most {
            return Err(invalid(path, "it is larger than a gigabyte"));
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid(path, "it is not text"))
}

/// Takes what is decompressed, up to [`TEXT_BYTES_MAX`].
struct Bounded<'a> {
    bytes: &'a mut Vec<u8>,
}

impl std::io::Write for Bounded<'_> {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        if (self.bytes.len() + part.len()) as u64 > TEXT_BYTES_MAX {
            return Err(std::io::Error::other("more than a gigabyte"));
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Puts the file's name before what is wrong in it.
pub(super) fn in_file<T>(path: &Path, result: Result<T, Refusal>) -> Result<T, Refusal> {
    result.map_err(|refusal| Refusal {
        reason: format!("{}: {}", path.display(), refusal.reason),
        ..refusal
    })
}
