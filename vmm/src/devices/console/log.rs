//! The console's output in a file of bounded size.
//!
//! Two files, opened before the first byte: when the current one is full, what
//! is in it replaces what is in the previous one, and it begins anew. Nothing
//! is opened or renamed later, so that it works behind a jail's walls.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use ballast_model::{Refusal, RefusalCode};

/// The most each of the two files holds, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The longest piece of a line kept back for its end, in bytes.
const LINE_BYTES_MAX: usize = 1024;
/// How many lines may wait to be written; what comes meanwhile is lost to the file.
const LINES_WAITING_MAX: usize = 1024;

/// An open log. A thread of its own writes it: neither a slow disk nor the
/// system calls of writing concern the vCPU whose guest speaks.
#[derive(Debug)]
pub(crate) struct ConsoleLog {
    /// The line that has not ended.
    line: Vec<u8>,
    lines: Option<SyncSender<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
}

impl ConsoleLog {
    /// Adds output. Lines go to the file when they end.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.line.push(byte);
            if byte == b'\n' || self.line.len() >= LINE_BYTES_MAX {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let Some(lines) = &self.lines {
            // The ring has it in any case; the file does without it when its disk is that slow.
            let _ = lines.try_send(line);
        }
    }
}

impl Drop for ConsoleLog {
    fn drop(&mut self) {
        self.flush();
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// The two files, opened: before the process closes its jail. The thread that
/// writes them is started behind it.
#[derive(Debug)]
pub(crate) struct LogFiles {
    current: File,
    previous: File,
    /// Bytes in `current`.
    bytes: u64,
}

impl LogFiles {
    /// Opens `path`, and beside it the same with `.1` at its end, for this user
    /// alone; what is there is kept and added to.
    ///
    /// # Errors
    /// `HostFailure` when they cannot be opened.
    pub(crate) fn open(path: &Path) -> Result<Self, Refusal> {
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
        };
        let mut beside = path.as_os_str().to_owned();
        beside.push(".1");
        let opened = || -> io::Result<Self> {
            let (mut current, previous) = (open(path)?, open(Path::new(&beside))?);
            let bytes = current.seek(SeekFrom::End(0))?;
            Ok(Self { current, previous, bytes })
        };
        opened().map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot write the console's log {}: {error}", path.display()),
                "give a path in a directory that can be written to",
            )
        })
    }

    /// Starts the thread that writes them.
    ///
    /// # Errors
    /// There is none to be had.
    pub(crate) fn start(mut self) -> io::Result<ConsoleLog> {
        let (lines, written) = sync_channel::<Vec<u8>>(LINES_WAITING_MAX);
        let write = move || {
            for line in written {
                if let Err(error) = self.write(&line) {
                    tracing::error!(%error, "the console's log ends here");
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("console-log".to_owned());
        let writer = Some(thread.spawn(write)?);
        Ok(ConsoleLog { line: Vec::new(), lines: Some(lines), writer })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes + line.len() as u64 > FILE_BYTES_MAX {
            self.begin_anew()?;
        }
        self.current.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        let mut whole = Vec::new();
        self.current.rewind()?;
        (&mut self.current).take(FILE_BYTES_MAX).read_to_end(&mut whole)?;
        self.previous.set_len(0)?;
        self.previous.rewind()?;
        self.previous.write_all(&whole)?;
        self.current.set_len(0)?;
        self.current.rewind()?;
        self.bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_in_two_bounded_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = LogFiles::open(&path).unwrap().start().unwrap();
        let line = |number: u32| format!("line {number:>10}\n");
        let lines = u32::try_from(FILE_BYTES_MAX / 16).unwrap();
        for number in 0..2 * lines + 3 {
            log.append(line(number).as_bytes());
            // As slow as the file: none of these is to be lost.
            while number % 512 == 511
                && !std::fs::read_to_string(&path).unwrap().ends_with(&line(number))
            {
                std::thread::yield_now();
            }
        }
        log.append(b"half a li");
        drop(log);
        let current = std::fs::read_to_string(&path).unwrap();
        let previous = std::fs::read_to_string(dir.path().join("console.log.1")).unwrap();
        assert!(current.starts_with(&line(2 * lines)) && current.ends_with("half a li"));
        assert_eq!(previous.len() as u64, FILE_BYTES_MAX);
        assert!(previous.starts_with(&line(lines)) && previous.ends_with(&line(2 * lines - 1)));

        LogFiles::open(&path).unwrap().start().unwrap().append(b"ne\n");
        let current = std::fs::read_to_string(&path).unwrap();
        assert!(current.ends_with("half a line\n"), "it goes on where it ended");
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let refusal = LogFiles::open(Path::new("/no/such/console.log")).unwrap_err();
        assert!(refusal.reason.contains("/no/such/console.log"), "{refusal}");
    }
}
