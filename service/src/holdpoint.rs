//! Named points at which a test stops a process, to hurt it or a neighbour right there.
//!
//! `hold("source.pause", vm)` stops the whole process, as SIGSTOP does, when the
//! file that the environment variable [`VARIABLE`] names has the line
//! `<vm> source.pause` at that moment. The test sees the stopped process in
//! `/proc`, takes the line out, does what it came for, and sends SIGCONT.
//!
//! Only builds with debug assertions have any of this: in others both functions
//! are empty. The file is opened by [`arm`], before a process gives up the right
//! to open files, and read anew at every point.

/// The environment variable with the path of the file.
pub const VARIABLE: &str = "BALLAST_HOLD";

/// Opens the file, when there is one. To be called once, early.
#[inline]
pub fn arm() {
    #[cfg(debug_assertions)]
    file::open();
}

/// Stops the process if a test wants it stopped here.
#[inline]
#[cfg_attr(not(debug_assertions), allow(unused_variables, reason = "nothing is held"))]
pub fn hold(point: &str, vm: &impl std::fmt::Display) {
    #[cfg(debug_assertions)]
    if file::wants(&format!("{vm} {point}")) {
        file::stop();
    }
}

#[cfg(debug_assertions)]
mod file {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::OnceLock;

    /// More than any test holds at a time.
    const BYTES_MAX: usize = 4096;

    static FILE: OnceLock<File> = OnceLock::new();

    pub(super) fn open() {
        let Some(path) = std::env::var_os(super::VARIABLE) else { return };
        if let Ok(file) = File::open(path) {
            let _ = FILE.set(file); // a program that is armed twice keeps the first
        }
    }

    pub(super) fn wants(line: &str) -> bool {
        let Some(file) = FILE.get() else { return false };
        let mut bytes = [0; BYTES_MAX];
        let length = file.read_at(&mut bytes, 0).unwrap_or(0);
        names(&String::from_utf8_lossy(&bytes[..length]), line)
    }

    pub(super) fn names(text: &str, line: &str) -> bool {
        text.lines().any(|held| held == line)
    }

    pub(super) fn stop() {
        // By tgkill(2), which every thread of a VM's process may call.
        // SAFETY: raise touches no memory of ours.
        unsafe { libc::raise(libc::SIGSTOP) };
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::file::names;

    #[test]
    fn only_the_whole_line_holds() {
        let text = "probe source.pause\nother source.state\n";
        assert!(names(text, "probe source.pause"));
        assert!(names(text, "other source.state"));
        assert!(!names(text, "probe source.state"));
        assert!(!names(text, "probe source.pau"));
        assert!(!names("", "probe source.pause"));
    }

    #[test]
    fn nothing_is_held_without_a_file() {
        super::hold("source.pause", &"probe");
    }
}
