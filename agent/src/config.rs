//! The agent's configuration file.
//!
//! `deploy/config/agent.toml` has every key with its meaning. Unknown keys are errors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ballast_model::offer::{self, OFFERS_MAX};
use ballast_model::{Bytes, BytesPerSec, HostId, Millicores, Refusal, RefusalCode};
use ballast_proto::convert::vm::{LABEL_BYTES_MAX, LABELS_MAX};
use serde::Deserialize;

use crate::vm::dir::{STATE_DIR_BYTES_MAX, socket_fits};
use crate::vm::disks::LocalDisks;

/// What stands in the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This host's name.
    pub host: HostId,
    /// `ip:port` on which AgentService is served.
    pub listen: SocketAddr,
    /// `ip:port` the controller reaches AgentService at, where that is not `listen`.
    pub advertise: Option<SocketAddr>,
    /// `ip:port` of `/metrics`, `/livez` and `/readyz`.
    pub http_listen: SocketAddr,
    /// The controller, as `http://ip:port`.
    pub controller: String,
    /// Where VMs and their records are kept. One agent at a time.
    pub state_dir: PathBuf,
    /// What runs the VMs.
    pub driver: DriverChoice,
    /// The address on which this host receives migrations.
    pub migration_address: IpAddr,
    /// What the host offers to VMs; what is absent is taken from the machine.
    #[serde(default)]
    pub capacity: CapacityConfig,
    /// The rate at which it can send or receive a migration.
    #[serde(default = "default_link")]
    pub link: BytesPerSec,
    /// Whose load is counted; `share` when a capacity is given, else `machine`.
    pub load_scope: Option<LoadScope>,
    /// Free-form labels, e.g. `rack`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Words of what VMs can find on this host, e.g. `storage:san-1`.
    #[serde(default)]
    pub offers: BTreeSet<String>,
    /// Whether `/metrics` has series for each VM.
    #[serde(default)]
    pub vm_metrics: bool,
    /// The processes that run VMs. For `kvm`.
    #[serde(default)]
    pub vmm: VmmConfig,
}

/// The processes that run VMs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmmConfig {
    /// The program that runs one VM; `ballast-vmm` beside this program when absent.
    pub binary: Option<PathBuf>,
    /// What such a process may do.
    pub jail: JailMode,
    /// Whom it becomes; this program's user when absent.
    pub user: Option<User>,
    /// The CPUs it may run on; all when empty.
    pub cpus: Vec<usize>,
    /// A cgroup2 directory in which each VM gets a group with limits; none when absent.
    pub cgroup: Option<PathBuf>,
    /// Where snapshots may be written to.
    pub snapshot_dirs: Vec<PathBuf>,
    /// Where the paths of local disks begin on this host: such a disk's `/web-1.img` is that file
    /// beneath it.
    pub disk_root: PathBuf,
}

impl Default for VmmConfig {
    fn default() -> Self {
        Self {
            binary: None,
            jail: JailMode::Enforce,
            user: None,
            cpus: Vec::new(),
            cgroup: None,
            snapshot_dirs: vec!["/var/lib/ballast/snapshots".into()],
            disk_root: "/".into(),
        }
    }
}

/// What a VMM process may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JailMode {
    /// What its user may.
    Off,
    /// The same, and the kernel logs what it should not.
    Log,
    /// What its VM needs.
    Enforce,
}

impl JailMode {
    /// The name, as the VMM's command line has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Log => "log",
            Self::Enforce => "enforce",
        }
    }
}

/// A user and a group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once(':');
        numbers
            .and_then(|(uid, gid)| Some(Self { uid: uid.parse().ok()?, gid: gid.parse().ok()? }))
            .ok_or_else(|| {
                format!("{text:?} is not a user and a group; write for example \"998:998\"")
            })
    }
}

impl TryFrom<String> for User {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// What runs the VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverChoice {
    /// `ballast-vmm` processes on `/dev/kvm`.
    Kvm,
    /// A model of VMs, without any.
    Sim,
}

/// What the host offers to VMs.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapacityConfig {
    /// CPU, e.g. `"500m"` or `"4"`.
    pub cpu: Option<Millicores>,
    /// Memory, e.g. `"2GiB"`.
    pub memory: Option<Bytes>,
}

/// Whose load the host's figures count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadScope {
    /// All that runs on the machine.
    Machine,
    /// Only this agent and its VMs: several agents on one machine stand for several hosts.
    Share,
}

const fn default_link() -> BytesPerSec {
    BytesPerSec(125_000_000)
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// What [`ballast_service::config::load`] refuses, and `InvalidArgument` for values that cannot work.
    pub fn load(path: &Path) -> Result<Self, Refusal> {
        let config: Self = ballast_service::config::load(path)?;
        config.validate()?;
        Ok(config)
    }

    /// Whose load is counted.
    pub fn scope(&self) -> LoadScope {
        let share = self.capacity.cpu.is_some() || self.capacity.memory.is_some();
        self.load_scope.unwrap_or(if share { LoadScope::Share } else { LoadScope::Machine })
    }

    /// The files of local disks; none where VMs have no files.
    pub fn local_disks(&self) -> Option<LocalDisks> {
        let VmmConfig { disk_root, user, .. } = &self.vmm;
        (self.driver == DriverChoice::Kvm)
            .then(|| LocalDisks { root: disk_root.clone(), user: *user })
    }

    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// `InvalidArgument` that names the key.
    pub fn validate(&self) -> Result<(), Refusal> {
        let invalid = |reason: String, remedy: String| {
            Err(Refusal::new(RefusalCode::InvalidArgument, reason, remedy))
        };
        if self.advertise.unwrap_or(self.listen).ip().is_unspecified() {
            return invalid(
                format!("nobody can reach the agent at {}", self.advertise.unwrap_or(self.listen)),
                "set `advertise` to an ip:port of this host that the controller can reach".into(),
            );
        }
        if self.migration_address.is_unspecified() {
            return invalid(
                format!("migration_address {} is no address to connect to", self.migration_address),
                "set it to an address of this host that other hosts can reach".into(),
            );
        }
        if !self.controller.starts_with("http://")
            || tonic::transport::Endpoint::from_shared(self.controller.clone()).is_err()
        {
            return invalid(
                format!("controller {:?} is not an address", self.controller),
                "write it as \"http://ip:port\"".into(),
            );
        }
        if !self.state_dir.is_absolute() || !socket_fits(&self.state_dir) {
            return invalid(
                format!(
                    "state_dir {} is relative or too long for Unix sockets",
                    self.state_dir.display()
                ),
                format!("use an absolute path of at most {STATE_DIR_BYTES_MAX} bytes"),
            );
        }
        if self.link == BytesPerSec::ZERO
            || self.capacity.cpu == Some(Millicores::ZERO)
            || self.capacity.memory == Some(Bytes::ZERO)
        {
            return invalid(
                "link, capacity.cpu or capacity.memory is zero".into(),
                "give more than zero, or leave the key out".into(),
            );
        }
        let relative = |path: &&PathBuf| !path.is_absolute();
        let paths = self.vmm.snapshot_dirs.iter().chain(&self.vmm.cgroup);
        if let Some(path) = paths.chain([&self.vmm.disk_root]).find(relative) {
            return invalid(
                format!(
                    "{} in vmm.snapshot_dirs, vmm.cgroup or vmm.disk_root is relative",
                    path.display()
                ),
                "write it as an absolute path".into(),
            );
        }
        const CPUS_MAX: usize = rustix::thread::CpuSet::MAX_CPU;
        if let Some(cpu) = self.vmm.cpus.iter().find(|cpu| **cpu >= CPUS_MAX) {
            return invalid(
                format!("vmm.cpus names CPU {cpu}"),
                format!("use numbers below {CPUS_MAX}, as /proc/cpuinfo shows them"),
            );
        }
        let long = |text: &String| text.len() > LABEL_BYTES_MAX || text.contains('\0');
        if self.labels.len() > LABELS_MAX
            || self.labels.iter().any(|(name, value)| name.is_empty() || long(name) || long(value))
        {
            return invalid(
                "labels are too many, too long or empty".into(),
                format!("use at most {LABELS_MAX} labels of at most {LABEL_BYTES_MAX} bytes"),
            );
        }
        offer::validate("key offers: the host offers", &self.offers, OFFERS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../deploy/config/agent.toml");

    fn parse(text: &str) -> Result<Config, Refusal> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(file.path())
    }

    #[test]
    fn the_example_has_every_key() {
        let config = parse(EXAMPLE).unwrap();
        assert_eq!(config.host.as_str(), "host-a");
        // Keys that are comments in the example are those with a default; they must parse, too.
        let all: String = EXAMPLE
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .fold(String::new(), |text, line| text + line + "\n");
        let config = parse(&all).unwrap();
        assert!(config.advertise.is_some() && config.vmm.binary.is_some());
        assert!(config.load_scope.is_some() && config.vm_metrics);
        assert_eq!(config.capacity.cpu, Some(Millicores(4000)));
        assert_eq!(config.capacity.memory, Some(Bytes::gib(8)));
        assert!(!config.labels.is_empty() && config.offers.contains("storage:san-1"));
        assert_eq!(config.vmm.user, Some(User { uid: 998, gid: 998 }));
        assert!(config.vmm.cgroup.is_some() && !config.vmm.cpus.is_empty());
        assert_eq!(config.vmm.snapshot_dirs, VmmConfig::default().snapshot_dirs);
    }

    fn check_refused(from: &str, to: &str, expected: &str) {
        assert!(EXAMPLE.contains(from), "{from}");
        let refusal = parse(&EXAMPLE.replace(from, to)).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidArgument);
        assert!(refusal.to_string().contains(expected), "{refusal}");
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_key() {
        check_refused("host = ", "hots = ", "unknown field `hots`");
        check_refused("listen = \"127.0.0.1:", "listen = \"0.0.0.0:", "advertise");
        check_refused("http://127.0.0.1:7070", "127.0.0.1:7070", "http://ip:port");
        check_refused("\"/var/lib/ballast\"", "\"var/lib\"", "absolute path");
        let long = format!("\"/{}\"", "x".repeat(100));
        check_refused("\"/var/lib/ballast\"", &long, "too long for Unix sockets");
        check_refused("driver = \"kvm\"", "driver = \"vmx\"", "unknown variant `vmx`");
        let words = "driver = \"kvm\"\noffers = [\"san 1\"]";
        check_refused("driver = \"kvm\"", words, "key offers: the host offers \"san 1\"");
    }

    #[test]
    fn a_given_capacity_makes_the_host_a_share() {
        assert_eq!(parse(EXAMPLE).unwrap().scope(), LoadScope::Machine);
        let shared = format!("{EXAMPLE}\n[capacity]\ncpu = \"500m\"\n");
        assert_eq!(parse(&shared).unwrap().scope(), LoadScope::Share);
    }
}
