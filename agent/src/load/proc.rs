//! Text of `/proc` into figures. Pure functions; what cannot be understood is absent, never zero.

use std::time::Duration;

/// Lines looked at in one file.
const LINES_MAX: usize = 65_536;
/// Bytes of a disk sector in `/proc/diskstats`, whatever the disk's own (Documentation/admin-guide/iostats.rst).
const SECTOR_BYTES: u64 = 512;

/// CPU time of the machine since boot, in clock ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTicks {
    /// Not idle and not waiting for I/O.
    pub busy: u64,
    /// Idle or waiting for I/O.
    pub idle: u64,
}

/// The first line of `/proc/stat`. Guest time is part of user time and not counted again.
pub fn cpu_ticks(stat: &str) -> Option<CpuTicks> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> =
        line.split_ascii_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let [user, nice, system, idle, iowait, irq, softirq, steal] = fields[..] else { return None };
    let busy =
        [user, nice, system, irq, softirq, steal].iter().fold(0, |a: u64, b| a.saturating_add(*b));
    Some(CpuTicks { busy, idle: idle.saturating_add(iowait) })
}

/// Memory of the machine, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// MemTotal.
    pub total: u64,
    /// MemAvailable: what new programs can use without swapping.
    pub available: u64,
}

/// `/proc/meminfo`.
pub fn memory(meminfo: &str) -> Option<Memory> {
    let field = |name: &str| -> Option<u64> {
        let line = meminfo.lines().take(LINES_MAX).find_map(|line| line.strip_prefix(name))?;
        let kib = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
        kib.checked_mul(1024)
    };
    Some(Memory { total: field("MemTotal:")?, available: field("MemAvailable:")? })
}

/// Bytes since boot, in one direction and the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Received or read.
    pub inward: u64,
    /// Sent or written.
    pub outward: u64,
}

/// `/proc/net/dev`, all interfaces but the loopback.
pub fn network(net_dev: &str) -> Traffic {
    let mut sum = Traffic::default();
    for line in net_dev.lines().take(LINES_MAX) {
        let Some((name, figures)) = line.split_once(':') else { continue };
        let figures: Vec<&str> = figures.split_ascii_whitespace().collect();
        if name.trim() == "lo" || figures.len() < 9 {
            continue;
        }
        if let (Ok(received), Ok(sent)) = (figures[0].parse(), figures[8].parse()) {
            sum.inward = sum.inward.saturating_add(received);
            sum.outward = sum.outward.saturating_add(sent);
        }
    }
    sum
}

/// `/proc/diskstats`, whole disks only: partitions would count twice, loop and RAM disks are memory.
pub fn disks(diskstats: &str) -> Traffic {
    let mut sum = Traffic::default();
    for line in diskstats.lines().take(LINES_MAX) {
        let fields: Vec<&str> = line.split_ascii_whitespace().take(10).collect();
        if fields.len() < 10 || !is_whole_disk(fields[2]) {
            continue;
        }
        if let (Ok(read), Ok(written)) = (fields[5].parse::<u64>(), fields[9].parse::<u64>()) {
            sum.inward = sum.inward.saturating_add(read.saturating_mul(SECTOR_BYTES));
            sum.outward = sum.outward.saturating_add(written.saturating_mul(SECTOR_BYTES));
        }
    }
    sum
}

fn is_whole_disk(name: &str) -> bool {
    let ends_in_digit = name.ends_with(|c: char| c.is_ascii_digit());
    match name {
        _ if ["sd", "vd", "hd", "xvd"].iter().any(|kind| name.starts_with(kind)) => !ends_in_digit,
        // nvme0n1 and mmcblk0, but not nvme0n1p1 and mmcblk0p1.
        _ if name.starts_with("nvme") || name.starts_with("mmcblk") => {
            !name.trim_end_matches(|c: char| c.is_ascii_digit()).ends_with('p')
        }
        _ => false,
    }
}

/// `some avg10` of a file in `/proc/pressure`, as a share of time.
pub fn pressure(text: &str) -> Option<f64> {
    let some = text.lines().take(4).find_map(|line| line.strip_prefix("some "))?;
    let avg10 = some.split_ascii_whitespace().find_map(|word| word.strip_prefix("avg10="))?;
    let percent: f64 = avg10.parse().ok()?;
    (percent.is_finite() && (0.0..=100.0).contains(&percent)).then_some(percent / 100.0)
}

/// What a process used so far and uses now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Process {
    /// CPU time of all its threads, in clock ticks.
    pub cpu_ticks: u64,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// Resident memory, in pages.
    pub resident_pages: u64,
}

/// `/proc/<pid>/stat` (proc_pid_stat(5)). None for what has ended and waits to be reaped.
pub fn process(stat: &str) -> Option<Process> {
    // The name stands in parentheses and may hold any character.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().take(22).collect();
    if matches!(*fields.first()?, "Z" | "X" | "x") {
        return None;
    }
    // The first field after the name is the third of the file.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Process {
        cpu_ticks: field(14)?.saturating_add(field(15)?),
        start_ticks: field(22)?,
        resident_pages: field(24)?,
    })
}

/// A time in clock ticks, rounded down.
pub fn ticks(time: Duration, per_sec: u64) -> u64 {
    let ticks = time.as_nanos() * u128::from(per_sec) / Duration::from_secs(1).as_nanos();
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// `/proc/<pid>/io`: bytes that really went to and came from disks.
pub fn process_io(io: &str) -> Option<Traffic> {
    let field = |name: &str| {
        io.lines().take(16).find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
    };
    Some(Traffic { inward: field("read_bytes:")?, outward: field("write_bytes:")? })
}

/// `after - before` per second of `time`; zero when a counter went backwards.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // float-to-int casts saturate
pub fn per_second(before: u64, after: u64, time: Duration) -> u64 {
    if time.is_zero() {
        return 0;
    }
    (after.saturating_sub(before) as f64 / time.as_secs_f64()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat() {
        let text = "cpu  100 5 50 900 20 1 2 3 40 0\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5\n";
        assert_eq!(cpu_ticks(text), Some(CpuTicks { busy: 161, idle: 920 }));
        assert_eq!(cpu_ticks("cpu  1 2 x"), None);
        assert_eq!(cpu_ticks(""), None);
    }

    #[test]
    fn meminfo() {
        let text = "MemTotal:        8061544 kB\nMemFree:  1 kB\nMemAvailable:    6504084 kB\n";
        let expected = Memory { total: 8_061_544 << 10, available: 6_504_084 << 10 };
        assert_eq!(memory(text), Some(expected));
        assert_eq!(memory("MemTotal: 5 kB\n"), None);
        assert_eq!(memory("MemTotal: 99999999999999999999 kB\nMemAvailable: 1 kB\n"), None);
    }

    #[test]
    fn net_dev() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets\n    \
            lo: 999 1 0 0 0 0 0 0 999 1 0 0 0 0 0 0\n  \
            eth0: 1000 8 0 0 0 0 0 0 2000 9 0 0 0 0 0 0\n \
            eth1:7 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n bad: x\n";
        assert_eq!(network(text), Traffic { inward: 1007, outward: 2005 });
    }

    #[test]
    fn diskstats() {
        let text = " 254 0 vda 10 0 100 5 20 0 200 7 0 1 2\n 254 1 vda1 9 0 90 5 9 0 90 7 0 1 2\n \
            259 0 nvme0n1 1 0 8 0 1 0 16 0 0 0 0\n 259 1 nvme0n1p2 1 0 8 0 1 0 16 0 0 0 0\n \
            7 0 loop0 9 0 99 0 9 0 99 0 0 0 0\n broken\n";
        assert_eq!(disks(text), Traffic { inward: 108 * 512, outward: 216 * 512 });
    }

    #[test]
    fn psi() {
        let text = "some avg10=12.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00\n";
        assert_eq!(pressure(text), Some(0.125));
        assert_eq!(pressure("some avg10=NaN"), None);
        assert_eq!(pressure("some avg10=101.0"), None);
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn pid_stat() {
        let text = "4242 (a) b (c) S 1 4242 4242 0 -1 4194560 99 0 0 0 70 30 0 0 20 0 3 0 5555 \
            1048576 256 18446744073709551615 1 1 0";
        let expected = Process { cpu_ticks: 100, start_ticks: 5555, resident_pages: 256 };
        assert_eq!(process(text), Some(expected));
        assert_eq!(process(&text.replace(") S ", ") Z ")), None);
        assert_eq!(process("4242 (x"), None);
    }

    #[test]
    fn pid_io() {
        let text = "rchar: 9\nwchar: 9\nread_bytes: 4096\nwrite_bytes: 8192\n";
        assert_eq!(process_io(text), Some(Traffic { inward: 4096, outward: 8192 }));
        assert_eq!(process_io("rchar: 9\n"), None);
    }

    #[test]
    fn rates() {
        assert_eq!(per_second(100, 400, Duration::from_secs(2)), 150);
        assert_eq!(per_second(400, 100, Duration::from_secs(2)), 0);
        assert_eq!(per_second(0, 1, Duration::ZERO), 0);
    }
}
