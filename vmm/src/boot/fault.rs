//! Why a file cannot be loaded as a kernel; and the fields of binary formats.

use std::path::Path;

use ballast_model::{Bytes, Refusal, RefusalCode};

/// Why a file cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("it cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("it is neither a bzImage nor a 64-bit little-endian ELF file")]
    NotAKernel,
    #[error("it is not a program for x86-64 with fixed addresses")]
    NotForThisMachine,
    #[error("it is a bzImage without a relocatable 64-bit entry")]
    NoEntry64,
    #[error("its {0} is malformed or cut short")]
    Malformed(&'static str),
    #[error("it is cut short: the kernel in it has {bytes} bytes, of which {there} are there")]
    CutShort { there: u64, bytes: u64 },
    #[error("nothing in it is to be loaded")]
    Empty,
    #[error("its segment at {start:#x}, {bytes} bytes, lies below 1 MiB or outside guest memory")]
    OutsideMemory { start: u64, bytes: u64 },
    #[error("to unpack itself it needs memory up to {}, and the guest's ends at {}", Bytes(*end), Bytes(*memory_end))]
    NoRoom { end: u64, memory_end: u64 },
}

impl Fault {
    pub(super) fn into_refusal(self, path: &Path) -> Refusal {
        let (code, remedy) = match &self {
            Self::Read(error) if error.kind() == std::io::ErrorKind::NotFound => {
                (RefusalCode::NotFound, "check the VM's kernel path; it must exist on every host")
            }
            Self::Read(_) => (RefusalCode::HostFailure, "check the file and its permissions"),
            Self::OutsideMemory { .. } => (
                RefusalCode::CapacityExceeded,
                "give the VM more memory, or link the kernel lower, but not below 1 MiB",
            ),
            Self::NoRoom { .. } => (RefusalCode::CapacityExceeded, "give the VM more memory"),
            Self::CutShort { .. } => {
                (RefusalCode::InvalidArgument, "copy the kernel to this host again")
            }
            Self::NoEntry64 => {
                (RefusalCode::InvalidArgument, "use an x86-64 kernel of Linux 3.8 or later")
            }
            Self::NotAKernel | Self::NotForThisMachine | Self::Malformed(_) | Self::Empty => (
                RefusalCode::InvalidArgument,
                "use a Linux bzImage (vmlinuz), or an uncompressed x86-64 ELF image",
            ),
        };
        Refusal::new(code, format!("cannot load kernel {}: {self}", path.display()), remedy)
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

pub(super) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes[at]
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}
