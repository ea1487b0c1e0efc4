//! A bounded reader of x86-64 ELF programs that puts them into guest memory.
//!
//! Only what a fixed-address program needs: the header, loadable segments and
//! notes. Every count and size in the file has a bound, and a segment must lie
//! in guest memory at or above [`IMAGE_START`]: below it are the boot
//! information and the command line.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::fault::{Fault, u16_at, u32_at, u64_at};
use super::low::IMAGE_START;
use crate::memory::GuestRam;

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const PROGRAM_HEADERS_MAX: u16 = 64;
const NOTES_BYTES_MAX: u64 = 64 << 10;
const ZERO_CHUNK: [u8; 4096] = [0; 4096];

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const ET_EXEC: u16 = 2;
const EM_X86_64: u16 = 62;

/// What is left of an image once it is loaded.
#[derive(Debug, Default)]
pub(super) struct Image {
    notes: Vec<Note>,
    /// The end of its highest segment, in guest memory.
    pub(super) end: u64,
}

#[derive(Debug)]
struct Note {
    owner: Vec<u8>,
    kind: u32,
    description: Vec<u8>,
}

impl Image {
    /// The description of the first note of this owner and type.
    pub(super) fn note(&self, owner: &[u8], kind: u32) -> Option<&[u8]> {
        let note = self.notes.iter().find(|note| note.owner == owner && note.kind == kind)?;
        Some(&note.description)
    }
}

/// Loads every segment of the file and reads its notes.
pub(super) fn load(memory: &GuestRam, file: &mut File) -> Result<Image, Fault> {
    let headers = program_headers(file)?;
    let mut image = Image::default();
    for header in &headers {
        match header.kind {
            PT_LOAD if header.memory_bytes > 0 => {
                load_segment(memory, file, header)?;
                image.end = image.end.max(header.address + header.memory_bytes);
            }
            PT_NOTE => read_notes(file, header, &mut image)?,
            _ => {}
        }
    }
    if image.end > 0 { Ok(image) } else { Err(Fault::Empty) }
}

struct ProgramHeader {
    kind: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

fn program_headers(file: &File) -> Result<Vec<ProgramHeader>, Fault> {
    let mut header = [0; HEADER_BYTES];
    read_at(file, &mut header, 0, "header").map_err(|fault| match fault {
        Fault::Malformed(_) => Fault::NotAKernel,
        other => other,
    })?;
    if header[..6] != *b"\x7fELF\x02\x01" {
        return Err(Fault::NotAKernel);
    }
    if u16_at(&header, 16) != ET_EXEC || u16_at(&header, 18) != EM_X86_64 {
        return Err(Fault::NotForThisMachine);
    }
    let table = u64_at(&header, 32);
    let count = u16_at(&header, 56);
    if usize::from(u16_at(&header, 54)) != PROGRAM_HEADER_BYTES || count > PROGRAM_HEADERS_MAX {
        return Err(Fault::Malformed("program header table"));
    }
    let mut bytes = vec![0; usize::from(count) * PROGRAM_HEADER_BYTES];
    read_at(file, &mut bytes, table, "program header table")?;
    let parse = |entry: &[u8]| ProgramHeader {
        kind: u32_at(entry, 0),
        offset: u64_at(entry, 8),
        address: u64_at(entry, 24),
        file_bytes: u64_at(entry, 32),
        memory_bytes: u64_at(entry, 40),
        align: u64_at(entry, 48),
    };
    Ok(bytes.chunks_exact(PROGRAM_HEADER_BYTES).map(parse).collect())
}

fn load_segment(memory: &GuestRam, file: &mut File, header: &ProgramHeader) -> Result<(), Fault> {
    let outside = || Fault::OutsideMemory { start: header.address, bytes: header.memory_bytes };
    if header.file_bytes > header.memory_bytes {
        return Err(Fault::Malformed("program header table"));
    }
    let bytes = usize::try_from(header.memory_bytes).map_err(|_| outside())?;
    let file_bytes = usize::try_from(header.file_bytes).map_err(|_| outside())?;
    let start = GuestAddress(header.address);
    let ends = header.address.checked_add(header.memory_bytes).is_some();
    if header.address < IMAGE_START || !ends || !memory.check_range(start, bytes) {
        return Err(outside());
    }
    let in_file = header.offset.checked_add(header.file_bytes);
    if in_file.is_none_or(|end| file.metadata().is_ok_and(|data| data.len() < end)) {
        return Err(Fault::Malformed("segment"));
    }
    file.seek(SeekFrom::Start(header.offset))?;
    memory
        .read_exact_volatile_from(start, file, file_bytes)
        .map_err(|_| Fault::Malformed("segment"))?;
    // Guest memory starts out as zeroes; this holds also when it does not.
    let mut at = header.address + header.file_bytes;
    let end = header.address + header.memory_bytes;
    while at < end {
        let chunk = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZERO_CHUNK.len());
        memory.write_slice(&ZERO_CHUNK[..chunk], GuestAddress(at)).map_err(|_| outside())?;
        at += chunk as u64;
    }
    Ok(())
}

fn read_notes(file: &File, header: &ProgramHeader, image: &mut Image) -> Result<(), Fault> {
    if header.file_bytes > NOTES_BYTES_MAX {
        return Err(Fault::Malformed("note segment"));
    }
    let align = if header.align == 8 { 8 } else { 4 };
    let size = usize::try_from(header.file_bytes).map_err(|_| Fault::Malformed("note segment"))?;
    let mut bytes = vec![0; size];
    read_at(file, &mut bytes, header.offset, "note segment")?;
    let mut rest = bytes.as_slice();
    while rest.len() >= 12 {
        let sizes = (u32_at(rest, 0) as usize, u32_at(rest, 4) as usize);
        let kind = u32_at(rest, 8);
        let name_end = 12 + sizes.0;
        let start = name_end.next_multiple_of(align);
        let end = start + sizes.1;
        let (Some(name), Some(description)) = (rest.get(12..name_end), rest.get(start..end)) else {
            return Err(Fault::Malformed("note segment"));
        };
        let owner = name.strip_suffix(b"\0").unwrap_or(name).to_vec();
        image.notes.push(Note { owner, kind, description: description.to_vec() });
        rest = rest.get(end.next_multiple_of(align)..).unwrap_or_default();
    }
    Ok(())
}

fn read_at(file: &File, bytes: &mut [u8], at: u64, what: &'static str) -> Result<(), Fault> {
    file.read_exact_at(bytes, at).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidInput => {
            Fault::Malformed(what)
        }
        _ => Fault::Read(error),
    })
}
