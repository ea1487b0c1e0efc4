//! What a VM is built of and what it needs of its host, as written on the command line.
//!
//! A disk or network is one word: what it is, then its properties after commas.

use std::path::PathBuf;
use std::str::FromStr;

use ballast_model::hardware::{Attach, PageSize, RateLimit};
use ballast_model::{
    Bytes, BytesPerSec, CpuBaseline, DiskSpec, MacAddress, MemoryBacking, NetworkSpec, VmId, VmSpec,
};
use clap::Args;

/// The hardware of `ballast vm create`, and what it must find on a host.
#[derive(Debug, Args)]
pub struct HardwareArgs {
    /// Guest memory, e.g. 512MiB; a multiple of 4 KiB
    #[arg(long, value_name = "SIZE")]
    pub memory: Bytes,
    /// Virtual CPUs
    #[arg(long, visible_alias = "cpus", value_name = "COUNT", default_value_t = 1)]
    pub vcpus: u32,
    /// The CPU features it sees: host, x86-64-v2, x86-64-v3 or x86-64-v4. With another than
    /// host it can move between hosts whose CPUs differ
    #[arg(long, value_name = "NAME", default_value_t)]
    pub cpu_baseline: CpuBaseline,
    /// The pages behind its memory: auto (huge where there are some to spare), small, or huge
    /// (from the host's reserved pool). Without a value: huge
    #[arg(long, value_name = "PAGES", value_parser = pages, default_value = "auto",
          num_args = 0..=1, require_equals = true, default_missing_value = "huge")]
    pub hugepages: PageSize,
    /// Take all of its memory before it starts
    #[arg(long)]
    pub prefault: bool,
    /// A disk; may be repeated. A raw file or block device, by its absolute path, then any of
    /// ro (the guest may not write), local (each host has a file of its own), bps=RATE, iops=COUNT
    #[arg(long = "disk", value_name = "PATH[,ro][,local][,bps=RATE][,iops=COUNT]")]
    pub disks: Vec<Disk>,
    /// A network device; may be repeated. bridge=NAME (a tap is made for the VM and joined to it)
    /// or tap=NAME (which is there already), then any of mac=ADDRESS, bps=RATE, pps=COUNT
    #[arg(long = "net", value_name = "bridge=NAME|tap=NAME[,mac=ADDRESS][,bps=RATE][,pps=COUNT]")]
    pub networks: Vec<Network>,
    /// What it must find on a host, e.g. storage:san-1; may be repeated
    #[arg(long = "need", visible_alias = "needs", value_name = "OFFER")]
    pub needs: Vec<String>,
    /// Run it only where it fits one NUMA node, as far as hosts tell theirs
    #[arg(long)]
    pub one_numa_node: bool,
}

impl HardwareArgs {
    /// A VM of this hardware, everything else as when its owner says nothing.
    pub fn into_spec(self, vm: VmId, kernel: PathBuf) -> VmSpec {
        let networks = (0..).zip(self.networks);
        let networks = networks.map(|(index, network)| network.into_spec(&vm, index)).collect();
        VmSpec {
            cpu: self.cpu_baseline,
            memory_backing: MemoryBacking { pages: self.hugepages, prefault: self.prefault },
            disks: self.disks.into_iter().map(|disk| disk.0).collect(),
            networks,
            needs: self.needs.into_iter().collect(),
            one_numa_node: self.one_numa_node,
            ..VmSpec::new(vm, self.vcpus, self.memory, kernel)
        }
    }
}

/// One `--disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk(DiskSpec);

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let path = words.next().filter(|path| path.starts_with('/')).ok_or_else(|| {
            format!(
                "{text:?} does not begin with an absolute path: write for example /srv/web.img,ro"
            )
        })?;
        let limit = RateLimit::default();
        let mut disk = DiskSpec { path: path.into(), readonly: false, shared: true, limit };
        for word in words {
            match word.split_once('=') {
                None if word == "ro" => disk.readonly = true,
                None if word == "local" => disk.shared = false,
                Some(("bps", rate)) => disk.limit.bytes = bytes_per_sec(rate)?,
                Some(("iops", count)) => disk.limit.ops_per_sec = per_sec(count)?,
                _ => return Err(unknown(word, "ro, local, bps=RATE and iops=COUNT")),
            }
        }
        Ok(Self(disk))
    }
}

/// One `--net`. Without an address it gets one that follows from the VM's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    attach: Attach,
    mac: Option<MacAddress>,
    limit: RateLimit,
}

impl Network {
    fn into_spec(self, vm: &VmId, index: u8) -> NetworkSpec {
        let mac = self.mac.unwrap_or_else(|| MacAddress::derived(vm, index));
        NetworkSpec { attach: self.attach, mac, limit: self.limit }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut attach, mut mac, mut limit) = (None, None, RateLimit::default());
        for word in text.split(',') {
            match word.split_once('=') {
                Some(("bridge" | "tap", _)) if attach.is_some() => {
                    return Err(format!("{text:?} names two places: give one bridge= or one tap="));
                }
                Some(("bridge", name)) => attach = Some(Attach::Bridge(name.to_owned())),
                Some(("tap", name)) => attach = Some(Attach::Tap(name.to_owned())),
                Some(("mac", address)) => {
                    mac = Some(address.parse::<MacAddress>().map_err(|no| no.to_string())?);
                }
                Some(("bps", rate)) => limit.bytes = bytes_per_sec(rate)?,
                Some(("pps", count)) => limit.ops_per_sec = per_sec(count)?,
                _ => {
                    let known = "bridge=NAME, tap=NAME, mac=ADDRESS, bps=RATE and pps=COUNT";
                    return Err(unknown(word, known));
                }
            }
        }
        let attach = attach.ok_or_else(|| {
            format!("{text:?} names no place: write for example bridge=br0 or tap=tap0")
        })?;
        Ok(Self { attach, mac, limit })
    }
}

fn unknown(word: &str, known: &str) -> String {
    format!("{word:?} is not understood here: there are {known}")
}

fn bytes_per_sec(text: &str) -> Result<BytesPerSec, String> {
    let rate = text.parse::<BytesPerSec>().map_err(|error| error.to_string())?;
    if rate == BytesPerSec::ZERO { Err(no_limit()) } else { Ok(rate) }
}

fn per_sec(text: &str) -> Result<u32, String> {
    let count = text.parse::<u32>().map_err(|_| format!("{text:?} is not a number a second"))?;
    if count == 0 { Err(no_limit()) } else { Ok(count) }
}

fn no_limit() -> String {
    "a limit of zero lets nothing through: leave it out for no limit".to_owned()
}

fn pages(text: &str) -> Result<PageSize, String> {
    let all = [PageSize::Auto, PageSize::Small, PageSize::Huge];
    let found = all.into_iter().find(|pages| pages.name() == text);
    found.ok_or_else(|| format!("{text:?} is none of auto, small and huge"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused<T: FromStr<Err = String>>(text: &str, expected: &str) {
        let Err(error) = text.parse::<T>() else { panic!("{text} was taken") };
        assert!(error.contains(expected), "{text}: {error}");
    }

    #[test]
    fn disks_are_read_with_their_properties() {
        let Disk(disk) = "/srv/a.img".parse().unwrap();
        assert_eq!((disk.path, disk.readonly, disk.shared), ("/srv/a.img".into(), false, true));
        assert_eq!(disk.limit, RateLimit::default());
        let Disk(disk) = "/dev/vg/b,ro,local,bps=10MiB/s,iops=500".parse().unwrap();
        assert_eq!((disk.readonly, disk.shared), (true, false));
        assert_eq!(disk.limit, RateLimit { bytes: BytesPerSec(10 << 20), ops_per_sec: 500 });
    }

    #[test]
    fn networks_are_read_with_their_properties() {
        let network: Network = "bridge=br0".parse().unwrap();
        assert_eq!(network.attach, Attach::Bridge("br0".to_owned()));
        let vm: VmId = "web-1".parse().unwrap();
        assert_eq!(network.into_spec(&vm, 1).mac, MacAddress::derived(&vm, 1));
        let network: Network = "mac=02:00:00:00:00:07,tap=tap3,bps=1Gbit,pps=9".parse().unwrap();
        let spec = network.into_spec(&vm, 0);
        assert_eq!(spec.attach, Attach::Tap("tap3".to_owned()));
        assert_eq!(spec.mac, MacAddress([2, 0, 0, 0, 0, 7]));
        assert_eq!(spec.limit, RateLimit { bytes: BytesPerSec(125_000_000), ops_per_sec: 9 });
    }

    #[test]
    fn what_is_not_understood_says_what_would_be() {
        check_refused::<Disk>("a.img", "absolute path");
        check_refused::<Disk>("/a,rw", "ro, local");
        check_refused::<Disk>("/a,bps=fast", "bytes per second");
        check_refused::<Disk>("/a,iops=0", "no limit");
        check_refused::<Network>("br0", "bridge=NAME");
        check_refused::<Network>("mac=02:00:00:00:00:07", "no place");
        check_refused::<Network>("bridge=br0,tap=tap0", "two places");
        check_refused::<Network>("tap=tap0,mac=01:00:00:00:00:07", "Ethernet address");
        check_refused::<Network>("tap=tap0,pps=-1", "number a second");
    }
}
