//! What a host boots: an initial RAM disk with busybox, modules and our programs.
//!
//! The program is one file under the names of all it can be. It comes without
//! debug information, which is most of a debug build and would have to be
//! copied by an emulated processor, and with the shared libraries it needs.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::Command;

use ballast_model::Refusal;

use crate::agent;
use crate::cpio::Cpio;
use crate::debian::{Packages, tool};
use crate::modules;
use crate::refuse;

/// Modules of a host: its bus and devices, KVM, and networks for its guests.
const MODULES: [&str; 8] = [
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "kvm-amd",
    "tun",
    "bridge",
    "loop",
];
const INIT: &[u8] = include_bytes!("../files/host-init");
/// The names of the program that `PATH` finds.
const PROGRAMS: [&str; 4] = ["ballast", "ballast-controller", "ballast-agent", "ballast-vmm"];
/// Where the one file is that all these names are of.
const PROGRAM: &str = "/lab/program";

/// A file that every host gets.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    pub(crate) from: PathBuf,
    pub(crate) to: String,
}

/// Writes the part of the RAM disk that is the same for all hosts to `path`.
pub(crate) fn write_common(
    path: &Path,
    packages: &Packages,
    program: &Path,
    given: &[Given],
) -> Result<(), Refusal> {
    let order = modules::in_order(&packages.kernel, &MODULES)?;
    let libraries = shared_libraries(program)?;
    let write = || -> io::Result<()> {
        let mut archive = Cpio::new(BufWriter::new(File::create(path)?));
        archive.file("/init", 0o755, INIT)?;
        archive.copy("/bin/busybox", &packages.busybox)?;
        archive.symlink("/bin/sh", "busybox")?;
        archive_modules(&mut archive, &order)?;
        archive.copy(PROGRAM, program)?;
        archive.symlink(&format!("/lab/{}", agent::PROGRAM), PROGRAM)?;
        for name in PROGRAMS {
            archive.symlink(&format!("/bin/{name}"), PROGRAM)?;
        }
        for library in &libraries {
            archive.copy(&library.to_string_lossy(), library)?;
        }
        for Given { from, to } in given {
            archive.copy(to, from)?;
        }
        archive.finish().map(drop)
    };
    write().map_err(|error| refuse::file("write the hosts' image", path, error))
}

/// Adds modules and the list of them that an init script loads.
pub(crate) fn archive_modules<W: io::Write>(
    archive: &mut Cpio<W>,
    order: &[PathBuf],
) -> io::Result<()> {
    let mut list = String::new();
    for module in order {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.copy(&format!("/lib/modules/{name}"), module)?;
        list.push_str(&name);
        list.push('\n');
    }
    archive.file("/lib/modules/order", 0o644, list.as_bytes())
}

/// What only one host has, as a second archive behind the common one.
pub(crate) fn write_own(path: &Path, name: &str, address: Option<&str>) -> Result<(), Refusal> {
    let conf = format!("LAB_NAME={name}\nLAB_ADDRESS={}\n", address.unwrap_or_default());
    let write = || -> io::Result<()> {
        let mut archive = Cpio::new(File::create(path)?);
        archive.file("/etc/lab.conf", 0o644, conf.as_bytes())?;
        archive.finish().map(drop)
    };
    write().map_err(|error| refuse::file("write", path, error))
}

/// A copy of `program` without debug information; made once per build of it.
pub(crate) fn stripped(cache: &Path, program: &Path) -> Result<PathBuf, Refusal> {
    let dir = cache.join("programs");
    fs::create_dir_all(&dir).map_err(|error| refuse::file("create", &dir, error))?;
    let metadata = fs::metadata(program).map_err(|error| refuse::file("read", program, error))?;
    let time = metadata.modified().ok().and_then(|time| {
        time.duration_since(std::time::UNIX_EPOCH).ok().map(|time| time.as_nanos())
    });
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let copy = dir.join(format!("{name}-{}-{}", metadata.len(), time.unwrap_or_default()));
    if copy.exists() {
        return Ok(copy);
    }
    forget_older(&dir, &format!("{name}-"));
    let beside = dir.join(format!("new-{}", std::process::id()));
    tool(Command::new("strip").arg("-o").arg(&beside).arg(program))?;
    fs::rename(&beside, &copy).map_err(|error| refuse::file("rename", &beside, error))?;
    Ok(copy)
}

/// Removes copies of earlier builds, so that they do not pile up.
fn forget_older(dir: &Path, prefix: &str) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            // Whoever still reads it keeps the file; only the name goes.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The shared libraries a program needs, as the dynamic linker finds them here.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>, Refusal> {
    let listed = tool(Command::new("ldd").arg(program))?;
    let paths = listed.lines().filter_map(|line| {
        line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from)
    });
    Ok(paths.collect())
}
