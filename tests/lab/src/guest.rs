//! A Linux guest for VMs in a host: Debian's kernel, unmodified, and a RAM disk of busybox.
//!
//! The kernel has the drivers of virtio as modules, so they are in the RAM
//! disk. The guest has a shell on its serial port, prompt `guest# `, and one on
//! TCP port 2323; a counter in `/run/count`; its network address from the word
//! `guest.address=ADDRESS/PREFIX` of the kernel's command line. With the word
//! `guest.end=COMMAND` it does nothing but that, `reboot` or `poweroff`.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use ballast_model::Refusal;

use crate::cpio::Cpio;
use crate::debian::{Kernel, Packages};
use crate::image::archive_modules;
use crate::lab::Builder;
use crate::modules;
use crate::refuse;

/// Modules of a guest: the bus and the devices that `ballast-vmm` has.
const MODULES: [&str; 5] =
    ["virtio_mmio", "virtio_blk", "virtio_net", "virtio-rng", "pvpanic-mmio"];
const INIT: &[u8] = include_bytes!("../files/guest-init");
/// Where hosts have the guest's files.
const KERNEL: &str = "/vm/vmlinuz";
const INITRD: &str = "/vm/initrd";

/// The files of a Linux guest, on this machine.
#[derive(Debug, Clone)]
pub struct LinuxGuest {
    /// Debian's kernel.
    pub kernel: Kernel,
    /// Its RAM disk.
    pub initrd: PathBuf,
}

impl LinuxGuest {
    /// What the serial port shows when the shell there waits for a command.
    pub const PROMPT: &'static str = "guest# ";
    /// The port of the shell on the network.
    pub const SHELL_PORT: u16 = 2323;

    /// Writes the RAM disk to `dir`.
    ///
    /// # Errors
    /// As [`Packages::get`], and `HostFailure` when it cannot be written.
    pub fn write(dir: &Path) -> Result<Self, Refusal> {
        let packages = Packages::get(&crate::cache()?)?;
        let initrd = dir.join("guest.cpio");
        write_initrd(&initrd, &packages)?;
        Ok(Self { kernel: packages.kernel, initrd })
    }

    /// Gives the guest's files to all hosts of a lab.
    #[must_use]
    pub fn give_to(&self, lab: Builder) -> Builder {
        lab.file(self.kernel.image(), KERNEL).file(&self.initrd, INITRD)
    }

    /// The command line for a guest with `address`, with its prefix length.
    pub fn cmdline(address: &str) -> String {
        format!("console=ttyS0 quiet panic=-1 guest.address={address}")
    }

    /// What `ballast vm create` is told to boot it in a host, with this command line.
    pub fn create_args(cmdline: &str) -> String {
        format!("--kernel {KERNEL} --initrd {INITRD} --cmdline '{cmdline}'")
    }
}

fn write_initrd(path: &Path, packages: &Packages) -> Result<(), Refusal> {
    let order = modules::in_order(&packages.kernel, &MODULES)?;
    let write = || -> io::Result<()> {
        let mut archive = Cpio::new(BufWriter::new(File::create(path)?));
        archive.file("/init", 0o755, INIT)?;
        archive.copy("/bin/busybox", &packages.busybox)?;
        archive.symlink("/bin/sh", "busybox")?;
        archive_modules(&mut archive, &order)?;
        archive.finish().map(drop)
    };
    write().map_err(|error| refuse::file("write the guest's RAM disk", path, error))
}
