//! What a VMM process is given: its jail, its user, its CPUs, its control group.
//!
//! The agent knows what a VM is built of, so it tells the VMM which paths are
//! its own ([`jail_args`]); all others it cannot open. What limits a process from
//! outside is set here too: CPUs before it starts, the control group ([`Cgroup`])
//! before it builds a machine.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use ballast_model::{Bytes, Refusal, RefusalCode, VmId, VmSpec};
use rustix::thread::CpuSet;
use tracing::warn;

use crate::config::{JailMode, VmmConfig};
use crate::vm::dir::VmDir;

/// CPU time of a control group is counted in periods of this many microseconds (cgroup-v2.rst, cpu.max).
const PERIOD_MICROS: u64 = 100_000;
/// What the VMM may use beside its vCPUs: device threads, a migration.
const EXTRA_CPUS: u64 = 2;
/// The most threads of one VMM.
const TASKS_MAX: u64 = 1024;
/// What the VMM may use beside guest memory: a migration's buffers, the page cache of its files.
const EXTRA_MEMORY: Bytes = Bytes::mib(512);

/// The arguments that close the jail around the VM.
pub(super) fn jail_args(
    config: &VmmConfig,
    spec: &VmSpec,
    restore_from: Option<&Path>,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["--jail".into(), config.jail.name().into()];
    let mut allow = |option: &str, path: &Path| args.extend([option.into(), path.into()]);
    let images = [Some(spec.kernel.as_path()), spec.initrd.as_deref(), restore_from];
    for path in images.into_iter().flatten() {
        allow("--allow-read", path);
    }
    for disk in &spec.disks {
        let place = disk.place(&config.disk_root);
        allow(if disk.readonly { "--allow-read" } else { "--allow-write" }, &place);
        if !disk.shared {
            // There only while a migration brings the disk.
            allow("--allow-write", &disk.arrival(&config.disk_root, &spec.id));
        }
    }
    for dir in &config.snapshot_dirs {
        allow("--allow-write", dir);
    }
    if let Some(user) = config.user {
        args.extend(["--user".into(), user.to_string().into()]);
    }
    args
}

/// Hands the VM's directory to the user its VMM will be.
pub(super) fn hand_over(config: &VmmConfig, dir: &VmDir) -> io::Result<()> {
    let Some(user) = config.user else { return Ok(()) };
    chown(dir.path(), Some(user.uid), Some(user.gid))?;
    chown(dir.log(), Some(user.uid), Some(user.gid))
}

/// Makes a directory for snapshots where there is none, the VMMs' own.
pub(super) fn make_snapshot_dir(config: &VmmConfig, dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    // What is above it is not the VMMs' alone.
    std::fs::create_dir_all(dir.parent().unwrap_or(dir))?;
    DirBuilder::new().mode(0o700).create(dir)?;
    config.user.map_or(Ok(()), |user| chown(dir, Some(user.uid), Some(user.gid)))
}

/// Whether a VMM in its jail may write there.
///
/// # Errors
/// `InvalidArgument` naming the directories it may.
pub(super) fn check_snapshot_path(config: &VmmConfig, path: &Path) -> Result<(), Refusal> {
    let inside = |dir: &PathBuf| path.starts_with(dir);
    if config.jail != JailMode::Enforce || config.snapshot_dirs.iter().any(inside) {
        return Ok(());
    }
    let dirs: Vec<_> = config.snapshot_dirs.iter().map(|dir| dir.display().to_string()).collect();
    Err(Refusal::new(
        RefusalCode::InvalidArgument,
        format!("a VM of this host cannot write to {}", path.display()),
        format!("give a path in {}, or add its directory to vmm.snapshot_dirs", dirs.join(" or ")),
    ))
}

/// The CPUs a VMM's threads may run on; none for all.
pub(super) fn cpu_set(config: &VmmConfig) -> Option<CpuSet> {
    if config.cpus.is_empty() {
        return None;
    }
    let mut set = CpuSet::new();
    config.cpus.iter().for_each(|cpu| set.set(*cpu));
    Some(set)
}

/// A VM's control group (version 2).
#[derive(Debug)]
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    /// The group of `vm`, where groups are configured.
    pub(super) fn of(config: &VmmConfig, vm: &VmId) -> Option<Self> {
        Some(Self(config.cgroup.as_ref()?.join(vm.as_str())))
    }

    /// Makes the group, limits it by what the VM is, and puts the process into it. Limits whose
    /// controller is not switched on are left out with a warning.
    ///
    /// # Errors
    /// `HostFailure` when the process cannot be put into it.
    pub(super) fn admit(&self, spec: &VmSpec, pid: u32) -> Result<(), Refusal> {
        let failed = |what: &str, error: io::Error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot {what} control group {}: {error}", self.0.display()),
                "give the agent a cgroup2 directory that it may write to as vmm.cgroup, or leave it out",
            )
        };
        std::fs::create_dir_all(&self.0).map_err(|error| failed("make", error))?;
        for (file, value) in limits(spec) {
            if let Err(error) = std::fs::write(self.0.join(file), &value) {
                warn!(vm = %spec.id, file, value, %error, "a limit of the VM is not set");
            }
        }
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string())
            .map_err(|error| failed("put a process into", error))
    }

    /// Removes the group once its process is gone. Best effort: an empty group costs nothing.
    pub(super) fn remove(&self) {
        match std::fs::remove_dir(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(group = %self.0.display(), %error, "a control group stays behind");
            }
            _ => {}
        }
    }
}

/// Limits in proportion to the VM: it competes by its vCPUs, and what goes wrong in it stays in it.
fn limits(spec: &VmSpec) -> [(&'static str, String); 4] {
    let cpus = u64::from(spec.vcpus) + EXTRA_CPUS;
    // The default weight is 100, for one vCPU; the largest is 10,000 (cgroup-v2.rst, cpu.weight).
    let weight = (u64::from(spec.vcpus) * 100).min(10_000);
    let memory = spec.memory.get() + spec.memory.get() / 16 + EXTRA_MEMORY.get();
    [
        ("cpu.max", format!("{} {PERIOD_MICROS}", cpus * PERIOD_MICROS)),
        ("cpu.weight", weight.to_string()),
        ("memory.max", memory.to_string()),
        ("pids.max", TASKS_MAX.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use ballast_model::DiskSpec;

    use super::*;

    fn furnished() -> VmSpec {
        let mut spec = VmSpec::new("web-1".parse().unwrap(), 2, Bytes::gib(1), "/boot/vmlinuz");
        spec.initrd = Some("/boot/initrd".into());
        let disk = |path: &str, readonly, shared| DiskSpec {
            path: path.into(),
            readonly,
            shared,
            limit: Default::default(),
        };
        spec.disks = vec![disk("/d/rw", false, true), disk("/d/ro", true, true)];
        spec.disks.push(disk("/d/own", false, false));
        spec
    }

    #[test]
    fn the_jail_has_what_the_vm_is_built_of_and_no_more() {
        let config = VmmConfig {
            user: Some("998:990".parse().unwrap()),
            disk_root: "/local".into(),
            ..VmmConfig::default()
        };
        let args = jail_args(&config, &furnished(), Some(Path::new("/s/file")));
        let args: Vec<_> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        let expected = "--jail enforce --allow-read /boot/vmlinuz --allow-read /boot/initrd \
                        --allow-read /s/file --allow-write /d/rw --allow-read /d/ro \
                        --allow-write /local/d/own --allow-write /local/d/own.web-1.arriving \
                        --allow-write /var/lib/ballast/snapshots --user 998:990";
        assert_eq!(args.join(" "), expected);
    }

    #[test]
    fn a_directory_for_snapshots_is_the_vmms_and_nobody_elses() {
        use std::os::unix::fs::MetadataExt;
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("ballast/snapshots");
        let config = VmmConfig { user: Some("990:991".parse().unwrap()), ..VmmConfig::default() };
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root can give a directory away");
            return;
        }
        make_snapshot_dir(&config, &dir).unwrap();
        make_snapshot_dir(&config, &dir).unwrap();
        let made = std::fs::metadata(&dir).unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o777), (990, 991, 0o700));
        let above = std::fs::metadata(root.path().join("ballast")).unwrap();
        assert_eq!((above.uid(), above.mode() & 0o011), (0, 0o011));
    }

    #[test]
    fn a_snapshot_goes_where_the_jail_lets_it() {
        let config = VmmConfig::default();
        let good = Path::new("/var/lib/ballast/snapshots/a");
        check_snapshot_path(&config, good).unwrap();
        let refusal = check_snapshot_path(&config, Path::new("/tmp/a")).unwrap_err();
        assert!(refusal.remedy.contains("vmm.snapshot_dirs"), "{refusal}");
        let open = VmmConfig { jail: JailMode::Off, ..VmmConfig::default() };
        check_snapshot_path(&open, Path::new("/tmp/a")).unwrap();
    }

    #[test]
    fn limits_grow_with_the_vm() {
        let limits = limits(&furnished());
        assert_eq!(limits[0], ("cpu.max", "400000 100000".to_owned()));
        assert_eq!(limits[1], ("cpu.weight", "200".to_owned()));
        let memory: u64 = limits[2].1.parse().unwrap();
        assert!(memory > 1 << 30 && memory < 2 << 30);
    }

    #[test]
    fn a_group_that_cannot_be_made_names_the_key() {
        let config = VmmConfig { cgroup: Some("/proc/version/x".into()), ..VmmConfig::default() };
        let group = Cgroup::of(&config, &furnished().id).unwrap();
        let refusal = group.admit(&furnished(), std::process::id()).unwrap_err();
        assert!(refusal.remedy.contains("vmm.cgroup"), "{refusal}");
        assert!(Cgroup::of(&VmmConfig::default(), &furnished().id).is_none());
    }
}
