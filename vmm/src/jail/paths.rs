//! Paths, by landlock (Documentation/userspace-api/landlock.rst): what is not listed cannot be opened.

use std::path::{Path, PathBuf};

use ballast_model::Refusal;
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus,
};

use super::refused;

/// The newest interface whose rights are used; older kernels restrict what they know.
const INTERFACE: ABI = ABI::V5;
/// Read at any time: this process, free memory, what the machine's CPUs, memory and network are like.
const ALWAYS_READ: [&str; 6] = [
    "/proc/self",
    "/proc/meminfo",
    "/proc/sys/vm",
    "/sys/devices",
    "/sys/class/net",
    "/sys/kernel/mm/hugepages",
];
/// Taps, randomness, nothing. `/dev/kvm` is open by then.
const ALWAYS_WRITTEN: [&str; 3] = ["/dev/net/tun", "/dev/urandom", "/dev/null"];

/// Leaves this process with `read`, `write`, its `own` directory, and what every VMM needs. What
/// is not there is left out: opening it says so better.
pub(super) fn restrict(read: &[PathBuf], write: &[PathBuf], own: &Path) -> Result<(), Refusal> {
    let status = ruleset(read, write, own).map_err(|error| refused("paths", error))?;
    if status != RulesetStatus::FullyEnforced {
        tracing::warn!(
            ?status,
            "this kernel's landlock is missing or old: paths are not all closed"
        );
    }
    Ok(())
}

fn ruleset(
    read: &[PathBuf],
    write: &[PathBuf],
    own: &Path,
) -> Result<RulesetStatus, landlock::RulesetError> {
    let all = AccessFs::from_all(INTERFACE);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .create()?
        .set_compatibility(CompatLevel::BestEffort);
    let reading = AccessFs::from_read(INTERFACE) & !BitFlags::from(AccessFs::Execute);
    let writing = all & !BitFlags::from(AccessFs::Execute);
    for path in ALWAYS_READ.iter().map(Path::new).chain(read.iter().map(PathBuf::as_path)) {
        rules = allow(rules, path, reading)?;
    }
    let written = write.iter().map(PathBuf::as_path);
    for path in ALWAYS_WRITTEN.iter().map(Path::new).chain(written).chain([own]) {
        rules = allow(rules, path, writing)?;
    }
    Ok(rules.restrict_self()?.ruleset)
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, landlock::RulesetError> {
    let Ok(opened) = PathFd::new(path) else { return Ok(rules) };
    // Rights of directories mean nothing for a file.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(INTERFACE) };
    rules.add_rule(PathBeneath::new(opened, access))
}
