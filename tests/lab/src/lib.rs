//! KVM hosts that run on any machine, for tests with real guests.
//!
//! A host is an unmodified Debian kernel with busybox in QEMU's software
//! emulation of an AMD processor, nested virtualisation included: `/dev/kvm`
//! in it is that of a real machine, only 35 to 50 times slower. Our programs
//! are on it, and a script on it is one call away. docs/lab.md tells more.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use ballast_lab::{Lab, Net};
//! let lab = Lab::builder().hosts(2).network(Net::Bridge).build()?;
//! let address = lab.host(1).address()?;
//! let pinged = lab.host(0).run(&format!("ping -c 1 {address}"), Duration::from_secs(10))?;
//! assert_eq!(pinged.code, 0, "{pinged:?}");
//! lab.shut_down()?;
//! # Ok::<(), ballast_model::Refusal>(())
//! ```
//!
//! | module | what it does |
//! | --- | --- |
//! | `debian`, `modules` | packages, unpacked; kernel modules in order |
//! | `cpio`, `image` | what a host boots |
//! | `warden` | the thread that hosts are children of, and their network |
//! | `host`, `lab` | a host, a lab |
//! | `control`, `agent` | the way into a host |
//! | `guest` | a Linux guest for VMs in the hosts |
//! | `cluster` | controller and agents on the hosts |
//! | `vm` | a VM of a cluster with that guest in it |
//! | `show` | `lab show`, a guest's life from its first prompt to after its restore |

mod agent;
mod cluster;
mod control;
mod cpio;
mod debian;
mod guest;
mod host;
mod image;
mod lab;
mod modules;
mod refuse;
mod show;
mod tsc;
mod vm;
mod warden;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ballast_model::Refusal;
use ballast_service::program;
use clap::Parser;

pub use cluster::Cluster;
pub use debian::{Kernel, Packages};
pub use guest::LinuxGuest;
pub use host::{Host, Output, Task};
pub use lab::{Builder, HOSTS_MAX, Lab, MEMORY_MIB_MIN, Net};
pub use vm::{LinuxVm, Shown};

/// Names another place for what is fetched and kept.
const CACHE_VARIABLE: &str = "BALLAST_LAB_CACHE";

/// The command line of `lab`.
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
enum Command {
    /// Boot a Linux guest in a KVM host, save it to a file and let it go on from there
    Show(show::ShowArgs),
    /// Fetch the packages that hosts and guests are made of
    Fetch,
}

/// The program `lab`; in hosts it is their agent, or `ballast` under any of its names.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    match args.first().and_then(|name| Path::new(name).file_name()).and_then(OsStr::to_str) {
        Some(agent::PROGRAM) => agent::main(),
        Some(name) if name.starts_with("ballast") => ballast_cli::main(args),
        _ => program::run("lab", "see lab --help", args, |command| match command {
            Command::Show(args) => show::run(&args),
            Command::Fetch => Packages::get(&cache()?).map(drop),
        }),
    }
}

/// Where packages are kept: what `BALLAST_LAB_CACHE` says, else `lab` in Cargo's target directory.
///
/// # Errors
/// `InvalidArgument` when nothing is said and this program stands at the root of the file system.
pub fn cache() -> Result<PathBuf, Refusal> {
    if let Some(path) = std::env::var_os(CACHE_VARIABLE) {
        return Ok(path.into());
    }
    let own = own_path()?;
    target_directory(&own).map(|target| target.join("lab")).ok_or_else(|| {
        refuse::argument(
            format!("{} is in no target directory of Cargo's", own.display()),
            "set BALLAST_LAB_CACHE to a directory that can be written to",
        )
    })
}

/// Cargo builds programs as `<target>/<profile>/<name>` and tests as `<target>/<profile>/deps/<name>`.
///
/// The tag `CACHEDIR.TAG` is no mark to go by: Cargo writes it only where it made the directory itself.
fn target_directory(program: &Path) -> Option<&Path> {
    let directory = program.parent()?;
    let profile = if directory.ends_with("deps") { directory.parent()? } else { directory };
    profile.parent()
}

/// The `lab` of the same build as the program that runs.
fn program_beside() -> Result<PathBuf, Refusal> {
    let own = own_path()?;
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join("lab"));
    found.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        refuse::argument(
            "there is no program 'lab' beside this one",
            "build it (cargo build -p ballast-lab), or name one with Builder::program",
        )
    })
}

fn own_path() -> Result<PathBuf, Refusal> {
    std::env::current_exe()
        .map_err(|error| refuse::machine("cannot find this program", error, "mount /proc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_tests_find_the_same_target_directory() {
        for program in ["/build/debug/lab", "/build/debug/deps/hosts-0123456789abcdef"] {
            assert_eq!(target_directory(Path::new(program)), Some(Path::new("/build")));
        }
        assert_eq!(target_directory(Path::new("/lab")), None);
    }
}
