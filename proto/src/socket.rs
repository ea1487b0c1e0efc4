//! What stands beside a VMM's socket: the part of the contract of `VmmService` that is files.
//!
//! A VMM serves on a Unix socket in a directory its agent gave it. Files with the
//! socket's name and another extension belong to the two of them.

use std::path::{Path, PathBuf};

/// The mark of an incoming VM that has not run in this process: made by the VMM
/// before anything can arrive, removed by it right before the guest's first
/// instruction. Whoever finds it beside the socket of a dead VMM knows that the
/// guest never ran there.
pub fn unrun_mark(socket: &Path) -> PathBuf {
    socket.with_extension("unrun")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_stands_beside_the_socket() {
        assert_eq!(unrun_mark(Path::new("/run/a/vmm.sock")), Path::new("/run/a/vmm.unrun"));
    }
}
