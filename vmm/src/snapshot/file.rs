//! The format of snapshot files, and reading and writing them.
//!
//! ```text
//! file    = magic, version, length of head, head as JSON, machine, record*
//! record  = 1, first page u64, pages u32, their bytes      pages
//!         | 2, first page u64, pages u32                   pages that became zero again
//!         | 3, length u32, bytes                           the machine's state
//!         | 4, length u32, JSON                            the disks
//!         | 5, xxh3-64 of all before                       the end
//! ```
//!
//! Numbers are little-endian. Pages that stand nowhere are zero. A file that
//! does not end with its hash, or with another one, is refused: nothing of it
//! is ever run. The version rises when an older build could misread a file;
//! this build reads all from 1 to [`VERSION`].

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ballast_model::{Bytes, Refusal, RefusalCode, VmSpec};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::disks::Fingerprint;
use super::partial;
use crate::memory::{Memory, PAGE_BYTES};
use crate::migration::negotiation::Proposal;
use crate::state::STATE_BYTES_MAX;

/// The version of the description of a machine in files.
const MACHINE_VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"BLSF";
const VERSION: u32 = 1;
/// The longest head, machine or list of disks, in bytes.
const PART_BYTES_MAX: usize = 1 << 20;
/// The most pages of one record.
const RUN_MAX: u32 = 256;
const BUFFER_BYTES: usize = 1 << 20;

const PAGES: u8 = 1;
const ZEROES: u8 = 2;
const STATE: u8 = 3;
const DISKS: u8 = 4;
const END: u8 = 5;

/// What stands in front.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) taken_unix_millis: u64,
    pub(super) spec: VmSpec,
    pub(super) machine: Proposal,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    taken_unix_millis: u64,
    spec: VmSpec,
}

impl Header {
    /// The part of it that other programs read too.
    pub(super) fn head_json(&self) -> Result<String, Refusal> {
        json(&Head { taken_unix_millis: self.taken_unix_millis, spec: self.spec.clone() })
    }
}

fn json(value: &impl Serialize) -> Result<String, Refusal> {
    serde_json::to_string(value)
        .map_err(|error| Refusal::new(RefusalCode::Internal, error.to_string(), "report a defect"))
}

/// A file being written. Dropped before its end it leaves nothing behind.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    to: BufWriter<File>,
    hash: Hash,
    bytes: u64,
    /// Pages not written yet, without gaps: the first one's number and their bytes.
    run: (u64, Vec<u8>),
    finished: bool,
}

struct Hash(Box<Xxh3>);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

impl Hash {
    fn new() -> Self {
        Self(Box::new(Xxh3::new()))
    }
}

impl Writer {
    /// Begins the file; what it will hold is for its owner alone.
    pub(super) fn create(path: &Path, header: &Header) -> Result<Self, Refusal> {
        if path.exists() {
            return Err(Refusal::new(
                RefusalCode::AlreadyExists,
                format!("{} is there already", path.display()),
                "give another name, or remove that file first",
            ));
        }
        let partial = partial(path);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&partial).map_err(|error| unwritable(path, &error))?;
        let mut writer = Self {
            path: path.to_owned(),
            to: BufWriter::with_capacity(BUFFER_BYTES, file),
            hash: Hash::new(),
            bytes: 0,
            run: (0, Vec::new()),
            finished: false,
        };
        writer.put(&MAGIC)?;
        writer.put(&VERSION.to_le_bytes())?;
        writer.part(header.head_json()?.as_bytes())?;
        writer.part(&header.machine.encode(MACHINE_VERSION))?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.hash.0.update(bytes);
        self.bytes += bytes.len() as u64;
        self.to.write_all(bytes).map_err(|error| unwritable(&self.path, &error))
    }

    fn part(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        // Everything written here is far below 4 GiB; the reader's bounds are lower still.
        self.put(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes())?;
        self.put(bytes)
    }

    fn run_head(&mut self, kind: u8, first: u64, pages: u32) -> Result<(), Refusal> {
        self.put(&[kind])?;
        self.put(&first.to_le_bytes())?;
        self.put(&pages.to_le_bytes())
    }

    /// A page's contents at this moment. The guest may be writing: then it comes again.
    pub(super) fn page(&mut self, memory: &Memory, page: u64) -> Result<(), Refusal> {
        let pages = self.run.1.len() / PAGE_BYTES;
        if pages as u64 + self.run.0 != page || pages >= RUN_MAX as usize {
            self.flush_run()?;
            self.run.0 = page;
        }
        let mut copy = [0; PAGE_BYTES];
        memory.read_page(page, &mut copy);
        self.run.1.extend_from_slice(&copy);
        Ok(())
    }

    /// A page that has become zero again.
    pub(super) fn zero(&mut self, page: u64) -> Result<(), Refusal> {
        self.flush_run()?;
        self.run_head(ZEROES, page, 1)
    }

    /// Writes the pages collected.
    pub(super) fn flush_run(&mut self) -> Result<(), Refusal> {
        let (first, mut pages) = (self.run.0, std::mem::take(&mut self.run.1));
        if !pages.is_empty() {
            let count = u32::try_from(pages.len() / PAGE_BYTES).unwrap_or(u32::MAX);
            self.run_head(PAGES, first, count)?;
            self.put(&pages)?;
            pages.clear();
        }
        self.run.1 = pages;
        Ok(())
    }

    pub(super) fn state(&mut self, state: &[u8]) -> Result<(), Refusal> {
        self.put(&[STATE])?;
        self.part(state)
    }

    pub(super) fn disks(&mut self, disks: &[Fingerprint]) -> Result<(), Refusal> {
        self.put(&[DISKS])?;
        self.part(json(&disks)?.as_bytes())
    }

    /// Puts the file on the disk and gives it its name. Answers with its size.
    pub(super) fn finish(&mut self) -> Result<Bytes, Refusal> {
        let hash = self.hash.0.digest();
        self.put(&[END])?;
        self.put(&hash.to_le_bytes())?;
        let mut durable = || -> std::io::Result<()> {
            self.to.flush()?;
            self.to.get_ref().sync_all()?;
            std::fs::rename(partial(&self.path), &self.path)?;
            let dir = self.path.parent().unwrap_or(Path::new("/"));
            File::open(dir)?.sync_all()
        };
        durable().map_err(|error| unwritable(&self.path, &error))?;
        self.finished = true;
        Ok(Bytes(self.bytes))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: what stays behind has a name that says it is not whole.
            let _ = std::fs::remove_file(partial(&self.path));
        }
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> Refusal {
    let remedy = match error.kind() {
        ErrorKind::StorageFull => "free room on that disk, or give another path",
        ErrorKind::NotFound => "create its directory first",
        _ => "give an absolute path on this host that may be written to",
    };
    let reason = format!("cannot write snapshot {}: {error}", path.display());
    Refusal::new(RefusalCode::HostFailure, reason, remedy)
}

/// A file being read.
#[derive(Debug)]
pub(super) struct Reader {
    path: PathBuf,
    from: BufReader<File>,
    hash: Hash,
}

/// What a file holds beside memory.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) state: Vec<u8>,
    pub(super) disks: Vec<Fingerprint>,
}

impl Reader {
    /// Opens a file and reads what stands in front.
    pub(super) fn open(path: &Path) -> Result<(Self, Header), Refusal> {
        let file = File::open(path).map_err(|error| {
            let code = match error.kind() {
                ErrorKind::NotFound => RefusalCode::NotFound,
                _ => RefusalCode::HostFailure,
            };
            Refusal::new(
                code,
                format!("cannot read snapshot {}: {error}", path.display()),
                "give the path of a snapshot on this host",
            )
        })?;
        let from = BufReader::with_capacity(BUFFER_BYTES, file);
        let mut reader = Self { path: path.to_owned(), from, hash: Hash::new() };
        let mut front = [0; 8];
        reader.take(&mut front)?;
        if front[..4] != MAGIC {
            return Err(reader.damaged("it does not begin like a snapshot"));
        }
        let version = u32::from_le_bytes([front[4], front[5], front[6], front[7]]);
        if version == 0 || version > VERSION {
            return Err(Refusal::new(
                RefusalCode::Incompatible,
                format!(
                    "snapshot {} has format {version}, this build reads 1 to {VERSION}",
                    path.display()
                ),
                "restore it with the release that wrote it, or a later one",
            ));
        }
        let head = reader.part(PART_BYTES_MAX)?;
        let head: Head =
            serde_json::from_slice(&head).map_err(|error| reader.damaged(&error.to_string()))?;
        head.spec.validate()?;
        let machine = reader.part(PART_BYTES_MAX)?;
        let machine = Proposal::decode(&machine, MACHINE_VERSION)
            .map_err(|error| reader.damaged(&error.to_string()))?;
        let Head { taken_unix_millis, spec } = head;
        Ok((reader, Header { taken_unix_millis, spec, machine }))
    }

    pub(super) fn damaged(&self, why: &str) -> Refusal {
        Refusal::new(
            RefusalCode::InvalidArgument,
            format!("snapshot {} is damaged: {why}", self.path.display()),
            "use another copy of the file",
        )
    }

    fn take(&mut self, into: &mut [u8]) -> Result<(), Refusal> {
        self.from.read_exact(into).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.damaged("it is cut short"),
            _ => Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot read snapshot {}: {error}", self.path.display()),
                "check the disk it is on",
            ),
        })?;
        self.hash.0.update(into);
        Ok(())
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let mut bytes = [0; N];
        self.take(&mut bytes)?;
        Ok(bytes)
    }

    fn part(&mut self, bytes_max: usize) -> Result<Vec<u8>, Refusal> {
        let length = u32::from_le_bytes(self.number()?) as usize;
        if length > bytes_max {
            return Err(self.damaged("a part of it is longer than any can be"));
        }
        let mut bytes = vec![0; length];
        self.take(&mut bytes)?;
        Ok(bytes)
    }

    /// Fills memory, which is as fresh, and answers with the rest.
    pub(super) fn contents(&mut self, memory: &Memory) -> Result<Contents, Refusal> {
        let (mut state, mut disks) = (None, None);
        loop {
            let before = self.hash.0.digest();
            match self.number()? {
                [PAGES] => self.pages(memory)?,
                [ZEROES] => {
                    for page in self.run(memory)? {
                        memory.clear_page(page);
                    }
                }
                [STATE] => state = Some(self.part(STATE_BYTES_MAX)?),
                [DISKS] => {
                    let json = self.part(PART_BYTES_MAX)?;
                    let read: Vec<Fingerprint> = serde_json::from_slice(&json)
                        .map_err(|error| self.damaged(&error.to_string()))?;
                    disks = Some(read);
                }
                [END] => {
                    if u64::from_le_bytes(self.number()?) != before {
                        return Err(self.damaged("its hash does not match"));
                    }
                    break;
                }
                _ => return Err(self.damaged("it holds something unknown")),
            }
        }
        match (state, disks) {
            (Some(state), Some(disks)) => Ok(Contents { state, disks }),
            _ => Err(self.damaged("a part of it is missing")),
        }
    }

    fn run(&mut self, memory: &Memory) -> Result<std::ops::Range<u64>, Refusal> {
        let first = u64::from_le_bytes(self.number()?);
        let pages = u32::from_le_bytes(self.number()?);
        let end = first.checked_add(u64::from(pages));
        match end.filter(|end| pages <= RUN_MAX && *end <= memory.layout().pages()) {
            Some(end) => Ok(first..end),
            None => Err(self.damaged("it names pages the VM does not have")),
        }
    }

    fn pages(&mut self, memory: &Memory) -> Result<(), Refusal> {
        for page in self.run(memory)? {
            let Some(host) = memory.page(page) else {
                return Err(self.damaged("it names pages the VM does not have"));
            };
            // SAFETY: the page is mapped, and nobody else uses the memory of a machine that is
            // being filled.
            let into = unsafe { std::slice::from_raw_parts_mut(host.as_ptr(), PAGE_BYTES) };
            self.take(into)?;
        }
        Ok(())
    }
}
