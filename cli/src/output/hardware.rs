//! What a VM is built of, for people and for programs.

use ballast_proto::v1;
use serde::Serialize;

use super::units::rate;

/// One disk in JSON; a limit of zero is none and `null`.
#[derive(Debug, Serialize)]
pub(crate) struct Disk {
    path: String,
    readonly: bool,
    shared: bool,
    limit_bytes_per_sec: Option<u64>,
    limit_ops_per_sec: Option<u32>,
}

impl From<v1::Disk> for Disk {
    fn from(disk: v1::Disk) -> Self {
        let limit = disk.limit.unwrap_or_default();
        Self {
            path: disk.path,
            readonly: disk.readonly,
            shared: !disk.local,
            limit_bytes_per_sec: (limit.bytes_per_sec != 0).then_some(limit.bytes_per_sec),
            limit_ops_per_sec: (limit.ops_per_sec != 0).then_some(limit.ops_per_sec),
        }
    }
}

/// One network device in JSON: `tap` or `bridge` is there, the other `null`.
#[derive(Debug, Serialize)]
pub(crate) struct Network {
    tap: Option<String>,
    bridge: Option<String>,
    mac: String,
    limit_bytes_per_sec: Option<u64>,
    limit_packets_per_sec: Option<u32>,
}

impl From<v1::Network> for Network {
    fn from(network: v1::Network) -> Self {
        let limit = network.limit.unwrap_or_default();
        let (tap, bridge) = match network.attach {
            Some(v1::network::Attach::Tap(name)) => (Some(name), None),
            Some(v1::network::Attach::Bridge(name)) => (None, Some(name)),
            None => (None, None),
        };
        Self {
            tap,
            bridge,
            mac: network.mac,
            limit_bytes_per_sec: (limit.bytes_per_sec != 0).then_some(limit.bytes_per_sec),
            limit_packets_per_sec: (limit.ops_per_sec != 0).then_some(limit.ops_per_sec),
        }
    }
}

/// `host`, `x86-64-v2`, …
pub(crate) fn cpu_baseline(baseline: i32) -> &'static str {
    match v1::CpuBaseline::try_from(baseline) {
        Ok(v1::CpuBaseline::Host | v1::CpuBaseline::Unspecified) => "host",
        Ok(v1::CpuBaseline::X8664V2) => "x86-64-v2",
        Ok(v1::CpuBaseline::X8664V3) => "x86-64-v3",
        Ok(v1::CpuBaseline::X8664V4) => "x86-64-v4",
        Err(_) => "unspecified",
    }
}

/// The same for several; those of a later version are left out.
pub(crate) fn cpu_baselines(baselines: &[i32]) -> Vec<&'static str> {
    let known = ballast_proto::convert::hardware::cpu_baselines(baselines);
    known.into_iter().map(ballast_model::CpuBaseline::name).collect()
}

/// `auto`, `small`, `huge`.
pub(crate) fn pages(backing: v1::MemoryBacking) -> &'static str {
    match v1::PageSize::try_from(backing.pages) {
        Ok(v1::PageSize::Auto | v1::PageSize::Unspecified) => "auto",
        Ok(v1::PageSize::Small) => "small",
        Ok(v1::PageSize::Huge) => "huge",
        Err(_) => "unspecified",
    }
}

/// What is out of the ordinary about the memory, after a comma each.
pub(crate) fn memory_words(backing: v1::MemoryBacking) -> String {
    let mut words = match pages(backing) {
        "auto" => String::new(),
        pages => format!(", {pages} pages"),
    };
    if backing.prefault {
        words.push_str(", taken before the start");
    }
    words
}

/// One line about a disk, as `vm create --disk` takes it but for the limits' units.
pub(crate) fn disk_words(disk: &v1::Disk) -> String {
    let mut words = disk.path.clone();
    if disk.readonly {
        words.push_str(", read-only");
    }
    if disk.local {
        words.push_str(", local");
    }
    words + &limit_words(disk.limit.unwrap_or_default(), "requests")
}

/// One line about a network device.
pub(crate) fn network_words(network: &v1::Network) -> String {
    let place = match &network.attach {
        Some(v1::network::Attach::Tap(name)) => format!("tap {name}"),
        Some(v1::network::Attach::Bridge(name)) => format!("bridge {name}"),
        None => "nowhere".to_owned(),
    };
    let limit = limit_words(network.limit.unwrap_or_default(), "packets");
    format!("{place}, {}{limit}", network.mac)
}

fn limit_words(limit: v1::RateLimit, ops: &str) -> String {
    let mut words = String::new();
    if limit.bytes_per_sec != 0 {
        words.push_str(&format!(", at most {}", rate(limit.bytes_per_sec)));
    }
    if limit.ops_per_sec != 0 {
        words.push_str(&format!(", at most {} {ops}/s", limit.ops_per_sec));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_told_only_where_they_are_out_of_the_ordinary() {
        let plain = v1::Disk { path: "/a".to_owned(), ..v1::Disk::default() };
        assert_eq!(disk_words(&plain), "/a");
        let limit = Some(v1::RateLimit { bytes_per_sec: 0, ops_per_sec: 50 });
        let disk = v1::Disk { readonly: true, local: true, limit, ..plain };
        assert_eq!(disk_words(&disk), "/a, read-only, local, at most 50 requests/s");
        let network = v1::Network {
            attach: Some(v1::network::Attach::Bridge("br0".to_owned())),
            mac: "02:00:00:00:00:01".to_owned(),
            limit,
        };
        assert_eq!(network_words(&network), "bridge br0, 02:00:00:00:00:01, at most 50 packets/s");
        let backing = v1::MemoryBacking { pages: v1::PageSize::Huge.into(), prefault: true };
        assert_eq!(memory_words(backing), ", huge pages, taken before the start");
        assert_eq!(memory_words(v1::MemoryBacking::default()), "");
    }
}
