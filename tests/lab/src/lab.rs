//! A lab: hosts, their network and their shared disks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ballast_model::Refusal;

use crate::debian::{Packages, tool};
use crate::host::{Host, Start};
use crate::image::{self, Given};
use crate::refuse;
use crate::tsc;
use crate::warden::Warden;

/// Largest number of hosts.
pub const HOSTS_MAX: u8 = 3;
/// The least memory a host boots in, in MiB.
pub const MEMORY_MIB_MIN: u32 = 256;
const BRIDGE: &str = "lab";
/// The hosts' network. Host `i` has the address that ends in `i + 1`.
const NETWORK: &str = "10.77.0";
/// Where guests' addresses begin.
const GUESTS_FROM: u32 = 100;
/// Kernel command line of a host: quiet, and a panic ends it.
const CMDLINE: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable random.trust_cpu=on";

/// The address of a guest on the hosts' network: behind all hosts'.
pub(crate) fn guest_address(number: u8) -> String {
    format!("{NETWORK}.{}", GUESTS_FROM + u32::from(number))
}

/// How the hosts are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Net {
    /// Not at all.
    None,
    /// By taps on a bridge, in a network namespace of the lab's own. Needs root.
    #[default]
    Bridge,
}

/// What a lab is to be.
#[derive(Debug, Clone)]
pub struct Builder {
    hosts: u8,
    cpus: u8,
    memory_mib: u32,
    net: Net,
    program: Option<PathBuf>,
    cache: Option<PathBuf>,
    disks: Vec<PathBuf>,
    given: Vec<Given>,
}

/// Hosts that run. They end when it is dropped.
#[derive(Debug)]
pub struct Lab {
    // In this order: hosts end before the thread they are children of, files go last.
    hosts: Vec<Host>,
    boot_times: Vec<Duration>,
    _warden: Warden,
    _dir: tempfile::TempDir,
}

impl Lab {
    /// One host with one vCPU and 512 MiB, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            hosts: 1,
            cpus: 1,
            memory_mib: 512,
            net: Net::default(),
            program: None,
            cache: None,
            disks: Vec::new(),
            given: Vec::new(),
        }
    }

    /// The host number `index`, from 0.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// How long each host took from the start of its process to its agent's first word.
    pub fn boot_times(&self) -> &[Duration] {
        &self.boot_times
    }

    /// Powers all hosts off and waits for them.
    ///
    /// # Errors
    /// As [`Host::power_off`].
    pub fn shut_down(self) -> Result<(), Refusal> {
        self.hosts.iter().try_for_each(Host::power_off)
    }
}

impl Builder {
    /// How many hosts, 1 to [`HOSTS_MAX`].
    #[must_use]
    pub fn hosts(mut self, hosts: u8) -> Self {
        self.hosts = hosts;
        self
    }

    /// How many vCPUs each host has.
    #[must_use]
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.cpus = cpus;
        self
    }

    /// Memory of each host in MiB, which also holds all its files.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// How the hosts are connected.
    #[must_use]
    pub fn network(mut self, net: Net) -> Self {
        self.net = net;
        self
    }

    /// The program that is agent and all of Ballast in the hosts: one that calls [`crate::main`].
    ///
    /// By default the `lab` beside the program that runs.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Where packages are kept. By default `lab/` in Cargo's target directory.
    #[must_use]
    pub fn cache(mut self, cache: impl Into<PathBuf>) -> Self {
        self.cache = Some(cache.into());
        self
    }

    /// A raw file that every host has as a disk, `/dev/vda` the first, and may write: storage
    /// that is shared as that of a storage network is.
    #[must_use]
    pub fn share(mut self, disk: impl Into<PathBuf>) -> Self {
        self.disks.push(disk.into());
        self
    }

    /// A file of this machine that every host is to have at the absolute path `to`.
    #[must_use]
    pub fn file(mut self, from: impl Into<PathBuf>, to: impl Into<String>) -> Self {
        self.given.push(Given { from: from.into(), to: to.into() });
        self
    }

    /// Starts the hosts and waits until all are up.
    ///
    /// # Errors
    /// `InvalidArgument` for what no lab can be; `HostFailure` when this
    /// machine lacks something, with how to get it; `Unavailable` when a host
    /// does not come up, with the end of its console.
    pub fn build(self) -> Result<Lab, Refusal> {
        self.check()?;
        let cache = self.cache.clone().map_or_else(crate::cache, Ok)?;
        let packages = Packages::get(&cache)?;
        let program = self.program.clone().map_or_else(crate::program_beside, Ok)?;
        let program = image::stripped(&cache, &program)?;
        let dir = tempfile::TempDir::with_prefix("ballast-lab-")
            .map_err(|error| refuse::file("create a directory in", Path::new("/tmp"), error))?;
        let common = dir.path().join("common.cpio");
        image::write_common(&common, &packages, &program, &self.given)?;
        let warden = Warden::start(self.net == Net::Bridge)?;
        if self.net == Net::Bridge {
            let hosts = self.hosts;
            warden.call(move || connect(hosts))??;
        }
        // Once for all of them: hosts that find different frequencies take no VM from each other.
        let tsc_khz = tsc::khz();
        let booting = (0..self.hosts)
            .map(|index| {
                let Initrd { path, name, address } = self.initrd(index, &common, dir.path())?;
                let command = self.qemu(index, &packages, &path, tsc_khz);
                Host::start(&warden, Start { name, address, command, dir: dir.path() })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut hosts = Vec::new();
        let mut boot_times = Vec::new();
        for booting in booting {
            let (host, time) = booting.ready()?;
            hosts.push(host);
            boot_times.push(time);
        }
        Ok(Lab { hosts, boot_times, _warden: warden, _dir: dir })
    }

    fn check(&self) -> Result<(), Refusal> {
        if !(1..=HOSTS_MAX).contains(&self.hosts) {
            return Err(refuse::argument(
                format!("a lab of {} hosts", self.hosts),
                "ask for 1, 2 or 3",
            ));
        }
        if self.cpus == 0 || self.memory_mib < MEMORY_MIB_MIN {
            return Err(refuse::argument(
                format!("hosts of {} vCPUs and {} MiB", self.cpus, self.memory_mib),
                "give a host at least one vCPU and 256 MiB",
            ));
        }
        let missing = self.disks.iter().chain(self.given.iter().map(|given| &given.from));
        for path in missing {
            fs::metadata(path).map_err(|error| refuse::file("find", path, error))?;
        }
        Ok(())
    }

    /// Writes what host number `index` boots from.
    fn initrd(&self, index: u8, common: &Path, dir: &Path) -> Result<Initrd, Refusal> {
        let name = format!("h{index}");
        let address =
            (self.net != Net::None).then(|| format!("{NETWORK}.{}", u32::from(index) + 1));
        let path = dir.join(format!("{name}.cpio"));
        let own = dir.join(format!("{name}.own"));
        let prefixed = address.as_ref().map(|address| format!("{address}/24"));
        image::write_own(&own, &name, prefixed.as_deref())?;
        join(&path, &[common, &own]).map_err(|error| refuse::file("write", &path, error))?;
        Ok(Initrd { path, name, address })
    }

    fn qemu(&self, index: u8, packages: &Packages, initrd: &Path, tsc_khz: u64) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()])
            .arg("-kernel")
            .arg(packages.kernel.image())
            .arg("-initrd")
            .arg(initrd)
            .arg("-append")
            .arg(format!("{CMDLINE} tsc_early_khz={tsc_khz}"));
        if self.net == Net::Bridge {
            let tap = format!("tap,id=net,ifname=lab{index},script=no,downscript=no");
            let nic = format!("virtio-net-pci,netdev=net,mac=52:54:00:77:00:0{index},romfile=");
            command.args(["-netdev", &tap, "-device", &nic]);
        }
        for (number, disk) in self.disks.iter().enumerate() {
            let blockdev = serde_json::json!({
                "driver": "raw", "node-name": format!("disk{number}"), "file": {
                    "driver": "file", "filename": disk, "locking": "off",
                },
            });
            let device = format!("virtio-blk-pci,drive=disk{number},share-rw=on");
            command.args(["-blockdev", &blockdev.to_string(), "-device", &device]);
        }
        command
    }
}

/// What one host boots from, and who it is.
struct Initrd {
    path: PathBuf,
    name: String,
    address: Option<String>,
}

/// One file of several, as the kernel takes a RAM disk of several archives.
fn join(to: &Path, parts: &[&Path]) -> std::io::Result<()> {
    let mut to = fs::File::create(to)?;
    for part in parts {
        std::io::copy(&mut fs::File::open(part)?, &mut to)?;
    }
    Ok(())
}

/// Makes bridge and taps; runs in the lab's thread, so in the lab's network.
fn connect(hosts: u8) -> Result<(), Refusal> {
    let mut lines = vec![format!("link add {BRIDGE} type bridge"), format!("link set {BRIDGE} up")];
    for index in 0..hosts {
        lines.push(format!("tuntap add lab{index} mode tap"));
        lines.push(format!("link set lab{index} master {BRIDGE} up"));
    }
    for line in lines {
        tool(Command::new("ip").args(line.split(' ')))?;
    }
    Ok(())
}
