//! Disks that get full.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file system of its own on a directory; gone with this value.
#[derive(Debug)]
pub struct Small(PathBuf);

impl Small {
    /// Mounts one of so many bytes.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn on(dir: &Path, bytes: u64) -> Self {
        let (place, options) = (text(dir), CString::new(format!("size={bytes},mode=711")).unwrap());
        let kind = c"tmpfs".as_ptr();
        // SAFETY: four strings that end with zero, and no flags.
        let done = unsafe { libc::mount(kind, place.as_ptr(), kind, 0, options.as_ptr().cast()) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        Self(dir.to_owned())
    }

    /// Fills it with a file of this name.
    pub fn fill(&self, name: &str) {
        let mut file = File::create(self.0.join(name)).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    /// Makes room again.
    pub fn clear(&self, name: &str) {
        std::fs::remove_file(self.0.join(name)).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // SAFETY: a string that ends with zero.
        unsafe { libc::umount2(text(&self.0).as_ptr(), libc::MNT_DETACH) };
    }
}

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).unwrap()
}
