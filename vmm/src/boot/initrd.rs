//! The initial RAM disk: an archive the kernel unpacks, as high in low memory as it may be.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use ballast_model::{Bytes as Size, Refusal, RefusalCode};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{archive, low};
use crate::memory::GuestRam;

const PAGE_BYTES: u64 = 4096;

/// Where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Initrd {
    /// Guest physical address.
    pub(super) address: u64,
    pub(super) bytes: u64,
}

/// The guest physical addresses it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Loads the file at the end of the room and of low memory.
pub(super) fn load(memory: &GuestRam, path: &Path, room: Room) -> Result<Initrd, Refusal> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| {
        let (code, remedy) = if error.kind() == std::io::ErrorKind::NotFound {
            (RefusalCode::NotFound, "check the VM's initrd path; it must exist on every host")
        } else {
            (RefusalCode::HostFailure, "check the file and its permissions")
        };
        Refusal::new(
            code,
            format!("cannot load initrd {shown}: it cannot be read: {error}"),
            remedy,
        )
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let data = file.metadata().map_err(unreadable)?;
    let invalid = |why: String| {
        Refusal::new(
            RefusalCode::InvalidArgument,
            format!("cannot load initrd {shown}: {why}"),
            "give a cpio archive as mkinitramfs makes it, plain or compressed, and copy it again if it was cut short",
        )
    };
    if !data.is_file() {
        return Err(invalid("it is not a file".to_owned()));
    }
    let end = room.end.min(low::low_end(memory));
    let address = end.checked_sub(data.len()).map(|start| start / PAGE_BYTES * PAGE_BYTES);
    let Some(address) = address.filter(|&start| start >= room.start) else {
        let there = Size(end.saturating_sub(room.start));
        return Err(Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "initrd {shown} takes {}, and beside the kernel guest memory has room for {there}",
                Size(data.len())
            ),
            "give the VM more memory, or use a smaller initrd",
        ));
    };
    // Once it fits: the check may have to read all of it.
    let memory_bytes = memory.iter().map(|region| region.len()).sum();
    archive::check(&file, data.len(), memory_bytes).map_err(|why| invalid(why.to_string()))?;
    let bytes = usize::try_from(data.len()).map_err(|_| invalid("it is too large".to_owned()))?;
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, bytes)
        .map_err(|error| invalid(format!("it changed while it was read: {error}")))?;
    Ok(Initrd { address, bytes: data.len() })
}
