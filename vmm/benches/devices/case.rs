//! What is measured.

use std::time::Duration;

use ballast_guest::{ConsoleReport, Params, net};

/// How long anything may take, on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The memory of a guest, in MiB.
pub(crate) const GUEST_MIB: u64 = 64;
/// Time to measure, in milliseconds.
const MEASURED_MS: u32 = 1000;

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// What the guest does: the benchmark, the bytes of one operation, how many are in flight.
    what: (&'static str, u32, u32),
    pub(crate) unit: Unit,
    pub(crate) load: Load,
}

/// What counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    PerSecond,
    MegabytesPerSecond,
}

/// What the host does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// Nothing: it is about a disk of which nothing is in the host's memory.
    Cold,
    /// Reads the disk, so that all of it is in the host's memory.
    Warm,
    /// Nothing: the guest sends frames nobody takes.
    Quiet,
    /// Sends datagrams that make frames of that many bytes.
    Flood(usize),
    /// Connects and swallows.
    Swallow,
    /// Connects and sends.
    Pour,
}

const fn case(name: &'static str, what: (&'static str, u32, u32), unit: Unit, load: Load) -> Case {
    Case { name, what, unit, load }
}

/// All of them.
pub(crate) const CASES: [Case; 14] = [
    case("disk-read-1", ("disk-read", 4096, 1), Unit::PerSecond, Load::Warm),
    case("disk-read-16", ("disk-read", 4096, 16), Unit::PerSecond, Load::Warm),
    case("disk-read-1-cold", ("disk-read", 4096, 1), Unit::PerSecond, Load::Cold),
    case("disk-read-16-cold", ("disk-read", 4096, 16), Unit::PerSecond, Load::Cold),
    case("disk-write-1", ("disk-write", 4096, 1), Unit::PerSecond, Load::Warm),
    case("disk-write-16", ("disk-write", 4096, 16), Unit::PerSecond, Load::Warm),
    case("disk-flush-1", ("disk-flush", 4096, 1), Unit::PerSecond, Load::Warm),
    case(
        "disk-read-128k",
        ("disk-read-in-order", 131_072, 4),
        Unit::MegabytesPerSecond,
        Load::Warm,
    ),
    case(
        "disk-read-128k-cold",
        ("disk-read-in-order", 131_072, 4),
        Unit::MegabytesPerSecond,
        Load::Cold,
    ),
    case(
        "disk-write-128k",
        ("disk-write-in-order", 131_072, 4),
        Unit::MegabytesPerSecond,
        Load::Warm,
    ),
    case("net-send-64", ("net-send", 64, 1), Unit::PerSecond, Load::Quiet),
    case("net-receive-64", ("net-receive", 64, 1), Unit::PerSecond, Load::Flood(64)),
    case("tcp-send", ("tcp-send", 1, 1), Unit::MegabytesPerSecond, Load::Swallow),
    case("tcp-receive", ("tcp-receive", 1, 1), Unit::MegabytesPerSecond, Load::Pour),
];

impl Case {
    /// Parameters of its guest.
    pub(crate) fn params(&self) -> Params {
        let (what, bytes, depth) = self.what;
        Params {
            bench: Some(format!("{what}:{bytes}:{depth}:{MEASURED_MS}")),
            ip: Some((net::GUEST, net::PREFIX)),
            ..Params::default()
        }
    }

    /// Whether it is about the disk.
    pub(crate) fn is_of_disk(&self) -> bool {
        matches!(self.load, Load::Cold | Load::Warm)
    }

    /// Operations or megabytes a second, once the guest has said; a fault of the guest ends it.
    pub(crate) fn rate(&self, report: &ConsoleReport) -> Option<f64> {
        assert_eq!(report.faults(), Vec::<String>::new(), "{}", self.name);
        let (operations, bytes, time) = report.measured?;
        let seconds = time.as_secs_f64();
        Some(match self.unit {
            Unit::PerSecond => operations as f64 / seconds,
            Unit::MegabytesPerSecond => bytes as f64 / 1e6 / seconds,
        })
    }
}
