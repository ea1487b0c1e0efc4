//! The kernel command line.

use ballast_model::vm::CMDLINE_BYTES_MAX;
use ballast_model::{Refusal, RefusalCode};

use super::low::{self, CMDLINE};
use crate::memory::GuestRam;

/// The longest command line with everything appended, its closing NUL included.
const ROOM: usize = CMDLINE_BYTES_MAX + 64;

/// Writes it to [`CMDLINE`], with a NUL behind it. `bytes_max` is what the kernel takes.
pub(super) fn write(memory: &GuestRam, cmdline: &str, bytes_max: usize) -> Result<(), Refusal> {
    let bytes_max = bytes_max.min(ROOM - 1);
    if cmdline.len() > bytes_max || cmdline.contains('\0') {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            "the kernel command line is too long or holds a NUL byte",
            format!("use at most {} bytes of text", bytes_max.min(CMDLINE_BYTES_MAX)),
        ));
    }
    let mut text = cmdline.as_bytes().to_vec();
    text.push(0);
    low::write(memory, &text, CMDLINE)
}
