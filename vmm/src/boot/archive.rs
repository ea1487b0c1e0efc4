//! Whether a file can be an initial RAM disk: what it starts with, and that nothing is missing.
//!
//! The kernel unpacks one archive after the other (Linux `init/initramfs.c`):
//! plain `cpio` (newc), or compressed in any way it knows. One that was cut
//! short would only show inside the guest, if at all. So the plain ones are
//! walked from file to file up to their trailer, which costs one small read a
//! file; for the others see [`compressed`]. What comes behind a compressed
//! archive is not looked at.

mod compressed;

use std::fs::File;
use std::os::unix::fs::FileExt;

const CPIO_HEADER_BYTES: usize = 110;
const CPIO_TRAILER: &[u8] = b"TRAILER!!!\0";
const CPIO_NAME_BYTES_MAX: u64 = 4096;
/// More files or blocks than any initial RAM disk has.
const STEPS_MAX: usize = 4 << 20;
/// How much of a file's end is looked at.
const TAIL_BYTES: u64 = 512;

/// Why a file is no initial RAM disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("it cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("it is empty")]
    Empty,
    #[error(
        "it is no archive an initial RAM disk can be: at byte {0} is neither cpio nor a known compression"
    )]
    Unknown(u64),
    #[error("it is cut short: its {0} goes on behind its end")]
    CutShort(&'static str),
    #[error("its {0} is malformed")]
    Malformed(&'static str),
    #[error("its gzip archive is damaged: {0}")]
    Damaged(std::io::Error),
    #[error("it unpacks to more than the {0} bytes of guest memory")]
    TooMuch(u64),
}

/// Checks a file of this many bytes, to be unpacked by a guest with so much memory.
pub(super) fn check(file: &File, bytes: u64, memory_bytes: u64) -> Result<(), Fault> {
    let reader = Reader { file, bytes };
    let mut at = 0;
    if bytes == 0 {
        return Err(Fault::Empty);
    }
    loop {
        // Archives may have zeroes between them, and behind the last.
        at = reader.skip_zeroes(at)?;
        if at == bytes {
            return Ok(());
        }
        let mut magic = [0; 6];
        reader.read_some(&mut magic, at)?;
        if matches!(&magic, b"070701" | b"070702") && at.is_multiple_of(4) {
            at = reader.cpio_end(at)?;
        } else if let Some(format) = compressed::Format::of(&magic) {
            return format.check(&reader, at, memory_bytes);
        } else {
            return Err(Fault::Unknown(at));
        }
    }
}

struct Reader<'a> {
    file: &'a File,
    bytes: u64,
}

impl Reader<'_> {
    /// What is there; zeroes beyond the end.
    fn read_some(&self, into: &mut [u8], at: u64) -> Result<(), Fault> {
        let there = usize::try_from(self.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let there = there.min(into.len());
        self.file.read_exact_at(&mut into[..there], at)?;
        Ok(())
    }

    fn read(&self, into: &mut [u8], at: u64, what: &'static str) -> Result<(), Fault> {
        let end = at.checked_add(into.len() as u64).ok_or(Fault::Malformed(what))?;
        if end > self.bytes {
            return Err(Fault::CutShort(what));
        }
        Ok(self.file.read_exact_at(into, at)?)
    }

    /// The file's last bytes, without the zeroes it may be padded with.
    fn tail(&self) -> Result<Vec<u8>, Fault> {
        let from = self.bytes.saturating_sub(TAIL_BYTES);
        let mut tail = vec![0; usize::try_from(self.bytes - from).unwrap_or(0)];
        self.read_some(&mut tail, from)?;
        let end = tail.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        tail.truncate(end);
        Ok(tail)
    }

    fn skip_zeroes(&self, mut at: u64) -> Result<u64, Fault> {
        let mut chunk = [0; 4096];
        while at < self.bytes {
            let there = usize::try_from(self.bytes - at).unwrap_or(usize::MAX).min(chunk.len());
            self.read_some(&mut chunk[..there], at)?;
            match chunk[..there].iter().position(|&byte| byte != 0) {
                Some(zeroes) => return Ok(at + zeroes as u64),
                None => at += there as u64,
            }
        }
        Ok(at)
    }

    /// The end of the plain archive at `at`: of its trailer.
    fn cpio_end(&self, mut at: u64) -> Result<u64, Fault> {
        const WHAT: &str = "cpio archive";
        for _ in 0..STEPS_MAX {
            let mut header = [0; CPIO_HEADER_BYTES];
            self.read(&mut header, at, WHAT)?;
            if !matches!(&header[..6], b"070701" | b"070702") {
                return Err(Fault::Malformed(WHAT));
            }
            let (data_bytes, name_bytes) = (hex(&header, 54)?, hex(&header, 94)?);
            if name_bytes > CPIO_NAME_BYTES_MAX {
                return Err(Fault::Malformed(WHAT));
            }
            let name_at = at + CPIO_HEADER_BYTES as u64;
            let mut name = vec![0; usize::try_from(name_bytes).unwrap_or(0)];
            self.read(&mut name, name_at, WHAT)?;
            let data_at = (name_at + name_bytes).next_multiple_of(4);
            let end = data_at + data_bytes;
            if name == CPIO_TRAILER {
                return Ok(end.min(self.bytes));
            }
            if end > self.bytes {
                return Err(Fault::CutShort(WHAT));
            }
            at = end.next_multiple_of(4);
        }
        Err(Fault::Malformed(WHAT))
    }
}

/// Eight hexadecimal digits.
fn hex(header: &[u8], at: usize) -> Result<u64, Fault> {
    let digits = std::str::from_utf8(&header[at..at + 8]).ok();
    let value = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    value.ok_or(Fault::Malformed("cpio archive"))
}

#[cfg(test)]
mod tests {
    fn check(bytes: &[u8]) -> Result<(), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        super::check(file.as_file(), bytes.len() as u64, 1 << 20).map_err(|fault| fault.to_string())
    }

    fn cpio_file(name: &str, data: &[u8]) -> Vec<u8> {
        let mut out = b"070701".to_vec();
        let fields = [1, 0o100_644, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
        for field in fields {
            out.extend(format!("{field:08x}").bytes());
        }
        out.extend(name.bytes().chain([0]));
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(data);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn archive() -> Vec<u8> {
        [cpio_file("init", b"#!/bin/sh\n"), cpio_file("TRAILER!!!", b"")].concat()
    }

    #[test]
    fn whole_archives_are_taken() {
        let padded = [archive(), vec![0; 700]].concat();
        check(&archive()).unwrap();
        check(&padded).unwrap();
        check(&[padded, archive()].concat()).unwrap();
    }

    #[test]
    fn archives_cut_short_are_not() {
        let archive = archive();
        for end in 1..archive.len() - 3 {
            assert!(check(&archive[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn other_files_are_not() {
        assert_eq!(check(b"").unwrap_err(), "it is empty");
        assert!(check(b"\x7fELF\x02\x01").unwrap_err().contains("no archive"));
        let behind = [archive(), b"something".to_vec()].concat();
        assert!(check(&behind).unwrap_err().contains("neither cpio"));
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_file_holds_it_is_read_to_an_end(
            at in 0usize..200,
            noise in proptest::collection::vec(0u8.., 0..64),
        ) {
            let mut bytes = archive();
            let at = at.min(bytes.len());
            bytes.splice(at.., noise);
            let _ = check(&bytes);
        }
    }
}
