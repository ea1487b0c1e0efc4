//! What a VM is built of: its CPU's baseline, its disks, its networks, the pages behind its memory.
//!
//! All of it is part of a VM's specification: written by its owner, the same on
//! every host, checked here for everything that can be told without a host.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{BytesPerSec, Refusal, RefusalCode, VmId};

/// The most disks a VM may have.
pub const DISKS_MAX: usize = 8;
/// The most networks a VM may have.
pub const NETWORKS_MAX: usize = 6;
/// The longest name of a network interface, in bytes (Linux's IFNAMSIZ less its NUL).
pub const INTERFACE_BYTES_MAX: usize = 15;

/// A set of CPU features by name. A VM sees exactly these, so that it can move
/// to every host that has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CpuBaseline {
    /// Everything the host's KVM offers: fastest, and moves only between hosts that are alike.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// The second level of the x86-64 psABI: SSE4.2, POPCNT, CMPXCHG16B.
    #[serde(rename = "x86-64-v2")]
    X86_64V2,
    /// The third: AVX2, BMI, FMA, MOVBE.
    #[serde(rename = "x86-64-v3")]
    X86_64V3,
    /// The fourth: AVX-512 F, BW, CD, DQ, VL.
    #[serde(rename = "x86-64-v4")]
    X86_64V4,
}

impl CpuBaseline {
    /// All of them, the one with the fewest features last but `Host`.
    pub const ALL: [Self; 4] = [Self::Host, Self::X86_64V2, Self::X86_64V3, Self::X86_64V4];

    /// The name operators write.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::X86_64V2 => "x86-64-v2",
            Self::X86_64V3 => "x86-64-v3",
            Self::X86_64V4 => "x86-64-v4",
        }
    }
}

impl fmt::Display for CpuBaseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CpuBaseline {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        Self::ALL.into_iter().find(|baseline| baseline.name() == text).ok_or_else(|| {
            invalid(
                format!("{text:?} is not a CPU baseline"),
                "use host, x86-64-v2, x86-64-v3 or x86-64-v4",
            )
        })
    }
}

/// The pages behind guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryBacking {
    /// Their size.
    pub pages: PageSize,
    /// Take all of it before the guest starts, rather than page by page as the guest touches it.
    pub prefault: bool,
}

/// The size of the pages behind guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageSize {
    /// Huge where the host has them to spare (transparent huge pages).
    #[default]
    Auto,
    /// 4 KiB.
    Small,
    /// 2 MiB from the host's reserved pool (hugetlb); a start is refused when the pool has too few.
    Huge,
}

impl PageSize {
    /// The name operators write.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Small => "small",
            Self::Huge => "huge",
        }
    }
}

/// What a device may use at most; zero means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Data.
    #[serde(rename = "bytes_per_sec")]
    pub bytes: BytesPerSec,
    /// Requests or packets a second.
    pub ops_per_sec: u32,
}

/// One virtio disk: a raw file or block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// An absolute path.
    pub path: PathBuf,
    /// The guest may not write.
    #[serde(default)]
    pub readonly: bool,
    /// Every host resolves the path to the same file; else the disk belongs to the host it is on.
    #[serde(default = "yes")]
    pub shared: bool,
    /// What it may use at most.
    #[serde(default)]
    pub limit: RateLimit,
}

fn yes() -> bool {
    true
}

impl DiskSpec {
    /// Where it is on a host whose local disks are beneath `root`: a shared one is where its path says.
    pub fn place(&self, root: &Path) -> PathBuf {
        if self.shared {
            return self.path.clone();
        }
        root.join(self.path.strip_prefix("/").unwrap_or(&self.path))
    }

    /// Where a local one is while it arrives for `vm`, until the VM runs on that host: beside its
    /// [`place`](Self::place). What is there under this name is the VM's disk, or was to become it.
    pub fn arrival(&self, root: &Path, vm: &VmId) -> PathBuf {
        let mut name = OsString::from(self.place(root));
        name.push(format!(".{vm}.arriving"));
        name.into()
    }
}

/// One virtio network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Where its cable goes on the host.
    #[serde(flatten)]
    pub attach: Attach,
    /// The guest's address; it stays with the VM wherever it runs.
    pub mac: MacAddress,
    /// What it may use at most, in either direction.
    #[serde(default)]
    pub limit: RateLimit,
}

/// Where a virtual cable goes on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attach {
    /// A tap of this name, which is there already.
    Tap(String),
    /// A bridge of this name; a tap is made for the VM, joined to it, and goes with the VM.
    Bridge(String),
}

impl Attach {
    /// The interface named.
    pub fn interface(&self) -> &str {
        match self {
            Self::Tap(name) | Self::Bridge(name) => name,
        }
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The address of a VM's network number `index` where its owner names none: locally
    /// administered, the same whenever it is asked for (FNV-1a over the name).
    pub fn derived(vm: &VmId, index: u8) -> Self {
        let name = vm.as_str().bytes().chain([0, index]);
        let hash = name.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let [a, b, c, d, e, ..] = hash.to_le_bytes();
        Self([0x02, a, b, c, d, e])
    }

    /// Whether a device may have it: not a group's, not zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let refused = || {
            invalid(
                format!("{text:?} is not the Ethernet address of a device"),
                "give six pairs of hexadecimal digits, the first one even, e.g. 02:00:00:00:00:01",
            )
        };
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(refused)?;
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(refused());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| refused())?;
        }
        let mac = Self(octets);
        if parts.next().is_some() || !mac.is_unicast() { Err(refused()) } else { Ok(mac) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

fn invalid(reason: String, remedy: &str) -> Refusal {
    Refusal::new(RefusalCode::InvalidArgument, reason, remedy)
}

/// Checks the disks of a VM: number, paths, none twice.
pub(crate) fn validate_disks(vm: &VmId, disks: &[DiskSpec]) -> Result<(), Refusal> {
    if disks.len() > DISKS_MAX {
        return Err(invalid(
            format!("VM {vm} asks for {} disks", disks.len()),
            "use at most 8 disks",
        ));
    }
    for (place, disk) in disks.iter().enumerate() {
        let shown = disk.path.display();
        if !disk.path.is_absolute() || disk.path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(invalid(
                format!("disk path {shown} of VM {vm} is not absolute"),
                "give the path as every host resolves it, starting with '/'",
            ));
        }
        if disks[..place].iter().any(|other| other.path == disk.path) {
            return Err(invalid(
                format!("VM {vm} names disk {shown} twice"),
                "give each disk a file of its own",
            ));
        }
    }
    Ok(())
}

/// Checks the networks of a VM: number, names, addresses, none twice.
pub(crate) fn validate_networks(vm: &VmId, networks: &[NetworkSpec]) -> Result<(), Refusal> {
    if networks.len() > NETWORKS_MAX {
        return Err(invalid(
            format!("VM {vm} asks for {} networks", networks.len()),
            "use at most 6 networks",
        ));
    }
    for (place, network) in networks.iter().enumerate() {
        let name = network.attach.interface();
        let character = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b'%';
        if !(1..=INTERFACE_BYTES_MAX).contains(&name.len())
            || !name.bytes().all(character)
            || name.starts_with('.')
        {
            return Err(invalid(
                format!("{name:?} of VM {vm} is not the name of a network interface"),
                "use the name as 'ip link' shows it, at most 15 characters",
            ));
        }
        if !network.mac.is_unicast() {
            return Err(invalid(
                format!("{} of VM {vm} is not the Ethernet address of a device", network.mac),
                "use an address whose first octet is even, e.g. 02:00:00:00:00:01",
            ));
        }
        let before = &networks[..place];
        let twice = |other: &NetworkSpec| {
            other.mac == network.mac
                || matches!((&other.attach, &network.attach), (Attach::Tap(a), Attach::Tap(b)) if a == b)
        };
        if before.iter().any(twice) {
            return Err(invalid(
                format!("VM {vm} uses tap {name} or address {} twice", network.mac),
                "give each network a tap and an address of its own",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> VmId {
        "web-1".parse().unwrap()
    }

    fn disk(path: &str) -> DiskSpec {
        DiskSpec { path: path.into(), readonly: false, shared: true, limit: RateLimit::default() }
    }

    fn network(attach: Attach, mac: u8) -> NetworkSpec {
        NetworkSpec { attach, mac: MacAddress([2, 0, 0, 0, 0, mac]), limit: RateLimit::default() }
    }

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let mac = MacAddress::derived(&vm(), 0);
        assert!(mac.is_unicast());
        assert_eq!(mac.to_string().parse(), Ok(mac));
        assert_ne!(mac, MacAddress::derived(&vm(), 1));
        for bad in
            ["", "02:00:00:00:00", "01:00:00:00:00:00", "+2:00:00:00:00:00", "02:0:0:0:0:0:0"]
        {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn baselines_are_read_as_they_are_written() {
        for baseline in CpuBaseline::ALL {
            assert_eq!(baseline.name().parse(), Ok(baseline));
            let json = serde_json::to_string(&baseline).unwrap();
            assert_eq!(json, format!("{:?}", baseline.name()));
        }
        assert!("pentium".parse::<CpuBaseline>().is_err());
    }

    fn check_refused(result: Result<(), Refusal>, expected: &str) {
        let refusal = result.unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidArgument);
        assert!(refusal.reason.contains(expected), "{refusal}");
    }

    #[test]
    fn disks_are_checked() {
        validate_disks(&vm(), &[disk("/a"), disk("/b")]).unwrap();
        check_refused(validate_disks(&vm(), &[disk("a")]), "not absolute");
        check_refused(validate_disks(&vm(), &[disk("/a"), disk("/a")]), "twice");
        let many: Vec<_> = (0..9).map(|n| disk(&format!("/{n}"))).collect();
        check_refused(validate_disks(&vm(), &many), "9 disks");
    }

    #[test]
    fn networks_are_checked() {
        let bridge = || Attach::Bridge("br0".into());
        validate_networks(&vm(), &[network(bridge(), 1), network(bridge(), 2)]).unwrap();
        check_refused(
            validate_networks(&vm(), &[network(bridge(), 1), network(bridge(), 1)]),
            "twice",
        );
        let tap = || Attach::Tap("tap0".into());
        check_refused(validate_networks(&vm(), &[network(tap(), 1), network(tap(), 2)]), "twice");
        for name in ["", "a/b", "sixteen-letters-x", "a b", ".."] {
            let attach = Attach::Tap(name.into());
            check_refused(validate_networks(&vm(), &[network(attach, 1)]), "network interface");
        }
        let group = NetworkSpec { mac: MacAddress([1; 6]), ..network(tap(), 0) };
        check_refused(validate_networks(&vm(), &[group]), "Ethernet address");
    }

    #[test]
    fn a_network_reads_well_as_json() {
        let json = serde_json::to_string(&network(Attach::Bridge("br0".into()), 1)).unwrap();
        assert!(json.starts_with(r#"{"bridge":"br0","mac":"02:00:00:00:00:01""#), "{json}");
        assert_eq!(
            serde_json::from_str::<NetworkSpec>(&json).unwrap(),
            network(Attach::Bridge("br0".into()), 1)
        );
    }
}
