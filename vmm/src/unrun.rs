//! The mark of an incoming VM that has not run here: a file beside the socket
//! ([`unrun_mark`]).
//!
//! It is made before anything can arrive and removed right before the first
//! instruction of the guest. So when this process dies, whoever finds the mark
//! knows for certain that the guest never ran here, and may give it back to its
//! source even after the commit. Removing a file needs no room on the disk. The
//! mark is about the death of this process, not of the host: it is not synced.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ballast_model::{Refusal, RefusalCode};
use ballast_proto::socket::unrun_mark;

/// Where the mark is, whether it is there or not.
#[derive(Debug, Clone)]
pub(crate) struct UnrunMark(PathBuf);

impl UnrunMark {
    /// The mark of the process that serves on `socket`.
    pub(crate) fn beside(socket: &Path) -> Self {
        Self(unrun_mark(socket))
    }

    /// Makes the mark.
    ///
    /// # Errors
    /// `HostFailure`: nothing may be received without it.
    pub(crate) fn set(&self) -> Result<(), Refusal> {
        std::fs::File::create(&self.0).map(drop).map_err(|error| self.failed("make", &error))
    }

    /// Removes the mark.
    ///
    /// # Errors
    /// `HostFailure`: the guest must not run with it in place.
    pub(crate) fn clear(&self) -> Result<(), Refusal> {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.failed("remove", &error)),
            _ => Ok(()),
        }
    }

    fn failed(&self, what: &str, error: &std::io::Error) -> Refusal {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot {what} the mark {}: {error}", self.0.display()),
            "check the directory of the socket and its disk",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_stands_beside_the_socket_until_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let mark = UnrunMark::beside(&dir.path().join("vmm.sock"));
        let file = dir.path().join("vmm.unrun");
        mark.set().unwrap();
        assert!(file.exists());
        mark.clear().unwrap();
        assert!(!file.exists());
        mark.clear().unwrap();
    }

    #[test]
    fn a_mark_that_cannot_be_made_or_removed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mark = UnrunMark::beside(&dir.path().join("missing/vmm.sock"));
        assert!(mark.set().unwrap_err().reason.contains("missing/vmm.unrun"));
        std::fs::create_dir_all(dir.path().join("missing/vmm.unrun")).unwrap();
        assert!(mark.clear().unwrap_err().reason.contains("missing/vmm.unrun"));
    }
}
