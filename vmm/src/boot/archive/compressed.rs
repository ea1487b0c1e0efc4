//! Compressed archives: whether their end is there.
//!
//! | format | how it is told |
//! | --- | --- |
//! | gzip | by unpacking it into nothing: neither its end nor a length stands anywhere else (RFC 1952) |
//! | bzip2 | the mark of its end, at any bit of its last bytes |
//! | xz | the two letters it ends with (the xz format, 2.1.2) |
//! | zstd | block for block, by their lengths (RFC 8878) |
//! | LZ4, as the kernel has it | block for block; one that was cut between two blocks looks whole |
//! | LZMA, LZO | not at all |

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use flate2::bufread::GzDecoder;

use super::{Fault, Reader, STEPS_MAX};

/// How each begins, as the kernel tells them apart (Linux `lib/decompress.c`).
const MAGICS: [(&[u8], Format); 8] = [
    (&[0x1f, 0x8b], Format::Gzip),
    (&[0x1f, 0x9e], Format::Gzip),
    (b"BZh", Format::Bzip2),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Format::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
    (&[0x02, 0x21, 0x4c, 0x18], Format::Lz4),
    (&[0x5d, 0, 0], Format::Lzma),
    (&[0x89, b'L', b'Z', b'O'], Format::Lzo),
];
/// What a bzip2 stream ends with, before a checksum of 32 bits: the square root of pi.
const BZIP2_END: u64 = 0x1772_4538_5090;
/// The largest block of LZ4 is 8 MiB unpacked, and a little more when it does not shrink.
const LZ4_BLOCK_MAX: u32 = (8 << 20) + (64 << 10);
const CHUNK_BYTES: usize = 64 << 10;

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Gzip,
    Bzip2,
    Xz,
    Zstd,
    Lz4,
    Lzma,
    Lzo,
}

impl Format {
    /// What something is that begins so.
    pub(super) fn of(start: &[u8]) -> Option<Self> {
        MAGICS.iter().find(|(magic, _)| start.starts_with(magic)).map(|&(_, format)| format)
    }

    /// Checks the archive at `at`, for a guest with so much memory.
    pub(super) fn check(self, reader: &Reader<'_>, at: u64, memory: u64) -> Result<(), Fault> {
        match self {
            Self::Gzip => gzip(reader, at, memory),
            Self::Bzip2 => bzip2(reader),
            Self::Xz => xz(reader),
            Self::Zstd => zstd(reader, at),
            Self::Lz4 => lz4(reader, at),
            Self::Lzma | Self::Lzo => Ok(()),
        }
    }
}

fn gzip(reader: &Reader<'_>, at: u64, memory: u64) -> Result<(), Fault> {
    let mut file = reader.file;
    file.seek(SeekFrom::Start(at))?;
    let mut archive = GzDecoder::new(BufReader::with_capacity(CHUNK_BYTES, file));
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut unpacked = 0;
    loop {
        match archive.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(more) => unpacked += more as u64,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Fault::CutShort("gzip archive"));
            }
            Err(error) => return Err(Fault::Damaged(error)),
        }
        if unpacked > memory {
            return Err(Fault::TooMuch(memory));
        }
    }
}

fn bzip2(reader: &Reader<'_>) -> Result<(), Fault> {
    let tail = reader.tail()?;
    // The mark, the checksum and up to seven bits: in the last twelve bytes.
    let last: Vec<u8> = tail[tail.len().saturating_sub(12)..].to_vec();
    let bits = last.iter().fold(0u128, |bits, &byte| bits << 8 | u128::from(byte));
    let mark = |shift: u32| bits >> (32 + shift) & ((1 << 48) - 1) == u128::from(BZIP2_END);
    if (0..8).any(mark) { Ok(()) } else { Err(Fault::CutShort("bzip2 archive")) }
}

/// A stream ends with `YZ`.
fn xz(reader: &Reader<'_>) -> Result<(), Fault> {
    if reader.tail()?.ends_with(b"YZ") { Ok(()) } else { Err(Fault::CutShort("xz archive")) }
}

fn lz4(reader: &Reader<'_>, at: u64) -> Result<(), Fault> {
    const WHAT: &str = "LZ4 archive";
    let mut at = at + 4;
    for _ in 0..STEPS_MAX {
        if at == reader.bytes {
            return Ok(());
        }
        let mut length = [0; 4];
        reader.read(&mut length, at, WHAT)?;
        let length = u32::from_le_bytes(length);
        if length == 0 || length > LZ4_BLOCK_MAX {
            // Padding, or the next archive: the kernel's to judge.
            return Ok(());
        }
        at += 4 + u64::from(length);
        if at > reader.bytes {
            return Err(Fault::CutShort(WHAT));
        }
    }
    Err(Fault::Malformed(WHAT))
}

/// The header of the frame at `at`, then its blocks up to the last.
fn zstd(reader: &Reader<'_>, at: u64) -> Result<(), Fault> {
    const WHAT: &str = "zstd archive";
    let mut descriptor = [0];
    reader.read(&mut descriptor, at + 4, WHAT)?;
    let [descriptor] = descriptor;
    let single_segment = descriptor & 0x20 != 0;
    let content_size = [u64::from(single_segment), 2, 4, 8][usize::from(descriptor >> 6)];
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let checksum = if descriptor & 4 != 0 { 4 } else { 0 };
    let mut at = at + 5 + u64::from(!single_segment) + dictionary + content_size;
    for _ in 0..STEPS_MAX {
        let mut block = [0; 4];
        reader.read(&mut block[..3], at, WHAT)?;
        let block = u32::from_le_bytes(block);
        at += 3 + match block >> 1 & 3 {
            1 => 1,
            3 => return Err(Fault::Malformed(WHAT)),
            _ => u64::from(block >> 3),
        };
        if block & 1 != 0 {
            return if at + checksum <= reader.bytes { Ok(()) } else { Err(Fault::CutShort(WHAT)) };
        }
    }
    Err(Fault::Malformed(WHAT))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    const MEMORY: u64 = 1 << 20;

    fn check(bytes: &[u8]) -> Result<(), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let checked = super::super::check(file.as_file(), bytes.len() as u64, MEMORY);
        checked.map_err(|fault| fault.to_string())
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        to.write_all(bytes).unwrap();
        to.finish().unwrap()
    }

    fn check_every_cut(whole: &[u8], from: usize) {
        check(whole).unwrap();
        for end in from..whole.len() {
            let why = check(&whole[..end]).expect_err("an archive without its end");
            assert!(why.contains("cut short"), "{end}: {why}");
        }
    }

    #[test]
    fn an_archive_without_its_end_is_seen() {
        check_every_cut(&gzip(b"what the guest unpacks"), 2);
        // Made by bzip2 of the letters "ballast" and a line's end.
        let bzip2 = [
            0x42, 0x5a, 0x68, 0x39, 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, 0x14, 0x16, 0xdc, 0x75,
            0x00, 0x00, 0x01, 0xc1, 0x80, 0x00, 0x10, 0x30, 0x04, 0x0c, 0x00, 0x20, 0x00, 0x21,
            0x80, 0x0c, 0x03, 0x4b, 0x15, 0x1b, 0x8b, 0xb9, 0x22, 0x9c, 0x28, 0x48, 0x0a, 0x0b,
            0x6e, 0x3a, 0x80,
        ];
        check_every_cut(&bzip2, 3);
        // One raw block of three bytes, and a run.
        let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 3, 0x18, 0, 0, b'a', b'b', b'c', 0x23, 0, 0, 0];
        check_every_cut(&zstd, 4);
        check(b"\xfd7zXZ\0 and so on YZ\0\0\0\0").unwrap();
        assert!(check(b"\xfd7zXZ\0 and so").unwrap_err().contains("cut short"));
        check_every_cut(&[0x02, 0x21, 0x4c, 0x18, 3, 0, 0, 0, 1, 2, 3], 5);
    }

    #[test]
    fn gzip_is_unpacked_to_see_its_end() {
        let mut damaged = gzip(&[7; 5000]);
        let checksum = damaged.len() - 8;
        damaged[checksum] ^= 1;
        assert!(check(&damaged).unwrap_err().contains("damaged"));
        let large = vec![0; usize::try_from(MEMORY).unwrap() + 1];
        assert!(check(&gzip(&large)).unwrap_err().contains("guest memory"));
        check(&[gzip(b"first"), b"behind it".to_vec()].concat()).unwrap();
    }

    proptest::proptest! {
        #[test]
        fn whatever_follows_a_magic_is_read_to_an_end(
            format in 0..super::MAGICS.len(),
            noise in proptest::collection::vec(0u8.., 0..200),
        ) {
            let _ = check(&[super::MAGICS[format].0, &noise].concat());
        }
    }
}
