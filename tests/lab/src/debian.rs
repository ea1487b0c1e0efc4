//! Debian's packages, fetched once and kept unpacked.
//!
//! A package is unpacked, not installed: its scripts do not run and nothing on
//! this machine changes. The cache is a directory of directories named
//! `<package>_<version>_<architecture>`, each whole: it is unpacked under
//! another name and then renamed. What is there is used as it is, so that no
//! network is needed; to get newer packages, remove the cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use ballast_model::Refusal;

use crate::refuse;

/// The package that depends on Debian's present kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What the package of a kernel is called in front of its release.
const KERNEL_PREFIX: &str = "linux-image-";
const BUSYBOX: &str = "busybox-static";

/// A kernel of Debian, unmodified.
#[derive(Debug, Clone)]
pub struct Kernel {
    root: PathBuf,
    release: String,
}

impl Kernel {
    /// The bzImage.
    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// What `uname -r` says in it, e.g. `6.1.0-56-cloud-amd64`.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Where its modules are.
    pub(crate) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }
}

/// The packages the lab is made of.
#[derive(Debug, Clone)]
pub struct Packages {
    /// The kernel of hosts and guests.
    pub kernel: Kernel,
    /// A busybox without shared libraries.
    pub busybox: PathBuf,
}

impl Packages {
    /// Gets them from the cache, or from Debian's archive into the cache.
    ///
    /// # Errors
    /// `HostFailure` when they are not cached and cannot be fetched.
    pub fn get(cache: &Path) -> Result<Self, Refusal> {
        let dir = cache.join("packages");
        fs::create_dir_all(&dir).map_err(|error| refuse::file("create", &dir, error))?;
        let lock_path = dir.join("lock");
        // Tests are processes of their own: one fetches, the others wait for it.
        let lock = File::create(&lock_path).map_err(|e| refuse::file("create", &lock_path, e))?;
        lock.lock().map_err(|error| refuse::file("lock", &lock_path, error))?;
        let kernel = match cached(&dir, KERNEL_PREFIX)? {
            Some(root) => root,
            None => fetch_kernel(&dir)?,
        };
        let busybox = match cached(&dir, BUSYBOX)? {
            Some(root) => root,
            None => fetch(&dir, BUSYBOX)?,
        };
        Ok(Self { kernel: kernel_in(kernel)?, busybox: busybox.join("bin/busybox") })
    }
}

/// The newest whole directory of a package whose name begins with `prefix`.
fn cached(dir: &Path, prefix: &str) -> Result<Option<PathBuf>, Refusal> {
    let entries = fs::read_dir(dir).map_err(|error| refuse::file("read", dir, error))?;
    let mut found = None;
    for entry in entries.flatten() {
        let fits = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
        let time = entry.metadata().and_then(|metadata| metadata.modified());
        if let (true, Ok(time)) = (fits, time) {
            found = found.max(Some((time, entry.path())));
        }
    }
    Ok(found.map(|(_, path)| path))
}

fn kernel_in(root: PathBuf) -> Result<Kernel, Refusal> {
    let modules = root.join("lib/modules");
    let entries = fs::read_dir(&modules).map_err(|error| refuse::file("read", &modules, error))?;
    let release = entries.flatten().find_map(|entry| entry.file_name().into_string().ok());
    let release = release.ok_or_else(|| refuse::file("find a kernel in", &modules, "empty"))?;
    Ok(Kernel { root, release })
}

/// The package behind [`KERNEL`], which itself is empty.
fn fetch_kernel(dir: &Path) -> Result<PathBuf, Refusal> {
    let scratch = scratch(dir)?;
    let package = download(scratch.path(), KERNEL)?;
    let depends = tool(Command::new("dpkg-deb").arg("--field").arg(&package).arg("Depends"))?;
    let name = depends.split([' ', ',', '\n']).find(|word| word.starts_with(KERNEL_PREFIX));
    let name = name
        .ok_or_else(|| refuse::machine(KERNEL, "depends on no kernel", "use Debian 12 or later"))?;
    fetch(dir, name)
}

/// Downloads and unpacks a package; where it is.
fn fetch(dir: &Path, name: &str) -> Result<PathBuf, Refusal> {
    let scratch = scratch(dir)?;
    let package = download(scratch.path(), name)?;
    let unpacked = scratch.path().join("unpacked");
    tool(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&unpacked))?;
    let whole = dir.join(package.file_stem().unwrap_or_default());
    fs::rename(&unpacked, &whole).map_err(|error| refuse::file("rename", &unpacked, error))?;
    Ok(whole)
}

fn scratch(dir: &Path) -> Result<tempfile::TempDir, Refusal> {
    tempfile::TempDir::with_prefix_in("fetch-", dir)
        .map_err(|error| refuse::file("create a directory in", dir, error))
}

/// Downloads a package to `dir` as `<name>_<version>_<architecture>.deb`.
fn download(dir: &Path, name: &str) -> Result<PathBuf, Refusal> {
    tool(Command::new("apt-get").args(["-qq", "download", name]).current_dir(dir))?;
    let entries = fs::read_dir(dir).map_err(|error| refuse::file("read", dir, error))?;
    let package = entries.flatten().map(|entry| entry.path()).find(|path| {
        path.extension().is_some_and(|extension| extension == "deb")
            && path.file_name().and_then(|file| file.to_str()).is_some_and(|f| f.starts_with(name))
    });
    package.ok_or_else(|| refuse::file("find a downloaded package in", dir, name))
}

/// Runs a tool to its end; what it printed.
pub(crate) fn tool(command: &mut Command) -> Result<String, Refusal> {
    let name = command.get_program().to_string_lossy().into_owned();
    let remedy = "run deploy/bootstrap.sh lab, which installs the lab's tools and package lists";
    let output = command.output().map_err(|e| refuse::machine(&name, e, remedy))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().lines().last().unwrap_or("it said nothing");
    Err(refuse::machine(format_args!("{name} ended with {}", output.status), said, remedy))
}
