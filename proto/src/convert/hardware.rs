//! What a VM is built of: disks, networks, CPU baseline, memory backing.

use ballast_model::hardware::{Attach, PageSize, RateLimit};
use ballast_model::{
    BytesPerSec, CpuBaseline, DiskSpec, MacAddress, MemoryBacking, NetworkSpec, Refusal,
};

use super::field::{invalid, known_enum, path, required, text};
use crate::v1;

impl From<CpuBaseline> for v1::CpuBaseline {
    fn from(baseline: CpuBaseline) -> Self {
        match baseline {
            CpuBaseline::Host => Self::Host,
            CpuBaseline::X86_64V2 => Self::X8664V2,
            CpuBaseline::X86_64V3 => Self::X8664V3,
            CpuBaseline::X86_64V4 => Self::X8664V4,
        }
    }
}

/// The baselines that are among `values`; what only a later version knows is left out.
pub fn cpu_baselines(values: &[i32]) -> Vec<CpuBaseline> {
    let told =
        |baseline: &CpuBaseline| values.contains(&i32::from(v1::CpuBaseline::from(*baseline)));
    CpuBaseline::ALL.into_iter().filter(told).collect()
}

/// The CPU features a VM sees.
pub(super) fn cpu_baseline(value: i32, field: &str) -> Result<CpuBaseline, Refusal> {
    Ok(match known_enum(value, field)? {
        v1::CpuBaseline::Unspecified | v1::CpuBaseline::Host => CpuBaseline::Host,
        v1::CpuBaseline::X8664V2 => CpuBaseline::X86_64V2,
        v1::CpuBaseline::X8664V3 => CpuBaseline::X86_64V3,
        v1::CpuBaseline::X8664V4 => CpuBaseline::X86_64V4,
    })
}

impl From<MemoryBacking> for v1::MemoryBacking {
    fn from(backing: MemoryBacking) -> Self {
        let pages = match backing.pages {
            PageSize::Auto => v1::PageSize::Auto,
            PageSize::Small => v1::PageSize::Small,
            PageSize::Huge => v1::PageSize::Huge,
        };
        Self { pages: pages.into(), prefault: backing.prefault }
    }
}

/// The pages behind guest memory.
pub(super) fn memory_backing(message: Option<v1::MemoryBacking>) -> Result<MemoryBacking, Refusal> {
    let Some(message) = message else { return Ok(MemoryBacking::default()) };
    let pages = match known_enum(message.pages, "spec.memory_backing.pages")? {
        v1::PageSize::Unspecified | v1::PageSize::Auto => PageSize::Auto,
        v1::PageSize::Small => PageSize::Small,
        v1::PageSize::Huge => PageSize::Huge,
    };
    Ok(MemoryBacking { pages, prefault: message.prefault })
}

impl From<RateLimit> for v1::RateLimit {
    fn from(limit: RateLimit) -> Self {
        Self { bytes_per_sec: limit.bytes.get(), ops_per_sec: limit.ops_per_sec }
    }
}

fn rate_limit(message: Option<v1::RateLimit>) -> RateLimit {
    let message = message.unwrap_or_default();
    RateLimit { bytes: BytesPerSec(message.bytes_per_sec), ops_per_sec: message.ops_per_sec }
}

impl From<&DiskSpec> for v1::Disk {
    fn from(disk: &DiskSpec) -> Self {
        Self {
            path: text(&disk.path),
            readonly: disk.readonly,
            local: !disk.shared,
            limit: Some(disk.limit.into()),
        }
    }
}

/// One disk.
pub(super) fn disk(message: v1::Disk) -> Result<DiskSpec, Refusal> {
    Ok(DiskSpec {
        path: path(message.path, "spec.disks.path")?,
        readonly: message.readonly,
        shared: !message.local,
        limit: rate_limit(message.limit),
    })
}

impl From<&NetworkSpec> for v1::Network {
    fn from(network: &NetworkSpec) -> Self {
        let attach = match &network.attach {
            Attach::Tap(name) => v1::network::Attach::Tap(name.clone()),
            Attach::Bridge(name) => v1::network::Attach::Bridge(name.clone()),
        };
        Self {
            attach: Some(attach),
            mac: network.mac.to_string(),
            limit: Some(network.limit.into()),
        }
    }
}

/// One network device.
pub(super) fn network(message: v1::Network) -> Result<NetworkSpec, Refusal> {
    let attach = match required(message.attach, "spec.networks.attach")? {
        v1::network::Attach::Tap(name) => Attach::Tap(name),
        v1::network::Attach::Bridge(name) => Attach::Bridge(name),
    };
    let mac: MacAddress = message
        .mac
        .parse()
        .map_err(|refusal: Refusal| invalid("spec.networks.mac", refusal.reason, refusal.remedy))?;
    Ok(NetworkSpec { attach, mac, limit: rate_limit(message.limit) })
}

#[cfg(test)]
mod tests {
    use ballast_model::{Bytes, RefusalCode, VmSpec};

    use super::*;

    fn furnished() -> VmSpec {
        let mut spec = VmSpec::new("web-1".parse().unwrap(), 2, Bytes::mib(512), "/boot/vmlinuz");
        spec.initrd = Some("/boot/initrd".into());
        spec.cpu = CpuBaseline::X86_64V3;
        spec.memory_backing = MemoryBacking { pages: PageSize::Huge, prefault: true };
        let limit = RateLimit { bytes: BytesPerSec(1 << 20), ops_per_sec: 100 };
        spec.disks = vec![
            DiskSpec { path: "/d/0".into(), readonly: true, shared: true, limit },
            DiskSpec {
                path: "/d/1".into(),
                readonly: false,
                shared: false,
                limit: RateLimit::default(),
            },
        ];
        spec.networks = [Attach::Tap("tap0".into()), Attach::Bridge("br0".into())]
            .into_iter()
            .zip(0..)
            .map(|(attach, n)| NetworkSpec { attach, mac: MacAddress::derived(&spec.id, n), limit })
            .collect();
        spec
    }

    #[test]
    fn a_furnished_vm_survives_the_wire() {
        for cpu in CpuBaseline::ALL {
            for pages in [PageSize::Auto, PageSize::Small, PageSize::Huge] {
                let mut spec = furnished();
                (spec.cpu, spec.memory_backing.pages) = (cpu, pages);
                assert_eq!(VmSpec::try_from(v1::VmSpec::from(&spec)), Ok(spec));
            }
        }
    }

    #[test]
    fn what_an_older_sender_does_not_say_has_its_default() {
        let mut message = v1::VmSpec::from(&furnished());
        (message.cpu, message.memory_backing) = (0, None);
        message.disks[0].limit = None;
        let spec = VmSpec::try_from(message).unwrap();
        assert_eq!((spec.cpu, spec.memory_backing), Default::default());
        assert_eq!(spec.disks[0].limit, RateLimit::default());
    }

    #[test]
    fn baselines_of_a_later_version_are_left_out() {
        assert_eq!(cpu_baselines(&[77, 3, 0, 1, 3]), [CpuBaseline::Host, CpuBaseline::X86_64V3]);
        assert!(cpu_baselines(&[]).is_empty());
    }

    fn check_refused(spoil: impl Fn(&mut v1::VmSpec), expected: &str) {
        let mut message = v1::VmSpec::from(&furnished());
        spoil(&mut message);
        let refusal = VmSpec::try_from(message).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidArgument);
        assert!(refusal.reason.contains(expected), "{refusal}");
    }

    #[test]
    fn what_the_wire_got_wrong_is_named() {
        check_refused(|m| m.cpu = 77, "field spec.cpu: value 77");
        check_refused(|m| m.initrd = "/a\0".into(), "field spec.initrd: holds a NUL byte");
        check_refused(|m| m.initrd = "initrd".into(), "not absolute");
        check_refused(|m| m.disks[0].path = "d".into(), "not absolute");
        check_refused(|m| m.networks[0].attach = None, "field spec.networks.attach: is missing");
        check_refused(|m| m.networks[0].mac = "x".into(), "field spec.networks.mac");
        check_refused(|m| m.memory_backing.as_mut().unwrap().pages = 9, "memory_backing.pages");
    }
}
