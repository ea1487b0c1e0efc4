//! The probe guest: a bare-metal program for tests, and the host side of its protocol.

/// The program as an ELF file, to be written somewhere and named as a VM's kernel.
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ballast-guest"));
