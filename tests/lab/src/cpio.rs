//! An archive as the kernel unpacks it into its first root file system.
//!
//! The "newc" format, uncompressed: what the kernel does with it is one copy,
//! which matters where the processor is emulated. Directories are added as they
//! are needed. Archives may be concatenated; later files replace earlier ones.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;
/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// Writes an archive. [`finish`](Self::finish) it, or the kernel finds no end.
#[derive(Debug)]
pub(crate) struct Cpio<W> {
    out: W,
    directories: BTreeSet<String>,
    entries: u32,
}

impl<W: Write> Cpio<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, directories: BTreeSet::new(), entries: 0 }
    }

    /// A file at the absolute `path`, with the permission bits of `mode`.
    pub(crate) fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, TYPE_FILE | (mode & 0o7777), data)
    }

    /// A copy at `path` of the file `from`, with its permissions.
    pub(crate) fn copy(&mut self, path: &str, from: &Path) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(from)?.permissions().mode();
        self.file(path, mode, &std::fs::read(from)?)
    }

    pub(crate) fn symlink(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, TYPE_SYMLINK | 0o777, to.as_bytes())
    }

    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.parents(path)?;
        if self.directories.insert(path.to_owned()) {
            self.entry(path, TYPE_DIRECTORY | 0o755, &[])?;
        }
        Ok(())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        match path.rsplit_once('/') {
            Some((parent, _)) if !parent.is_empty() => self.directory(parent),
            _ => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        let name = path.trim_start_matches('/');
        let too_large = || io::Error::new(io::ErrorKind::InvalidInput, "too large for an archive");
        let size = u32::try_from(data.len()).map_err(|_| too_large())?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| too_large())?;
        self.entries += 1;
        // inode, mode, uid, gid, links, mtime, size, device ×2, special device ×2, name, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut head = b"070701".to_vec();
        for field in fields {
            head.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        head.extend_from_slice(name.as_bytes());
        head.push(0);
        pad(&mut head);
        self.out.write_all(&head)?;
        self.out.write_all(data)?;
        self.out.write_all(&[0; 3][..data.len().wrapping_neg() % 4])
    }
}

fn pad(head: &mut Vec<u8>) {
    head.resize(head.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_what_is_in_them_and_only_once() {
        let mut archive = Cpio::new(Vec::new());
        archive.file("/a/b/one", 0o644, b"12345").unwrap();
        archive.symlink("/a/b/two", "one").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(names(&bytes), ["a", "a/b", "a/b/one", "a/b/two", TRAILER]);
    }

    /// Walks the archive as the kernel does.
    fn names(bytes: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |index: usize| {
                let from = at + 6 + index * 8;
                let digits = std::str::from_utf8(&bytes[from..from + 8]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = &bytes[at + 110..at + 110 + name_size - 1];
            names.push(String::from_utf8(name.to_vec()).unwrap());
            at = (at + 110 + name_size).next_multiple_of(4);
            at = (at + size).next_multiple_of(4);
        }
        names
    }
}
