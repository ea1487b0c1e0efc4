//! The guests, the links, and what is measured of a migration.

use std::time::Duration;

use ballast_guest::Params;

/// How long a migration may take before it counts as one that does not end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(58);
/// The downtime limit both are given.
pub(crate) const DOWNTIME_LIMIT_MS: u32 = 300;
/// Heartbeats of the destination that may tell of the switchover.
const BEATS: usize = 3;

/// A guest and a link.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) mib: u64,
    filled_mib: u32,
    dirty_mb_per_sec: u32,
    working_set_mib: u32,
    /// How often each word of a page stands there: 1 does not compress, 3 to two fifths.
    repeat: u32,
    /// The link's rate; none for as fast as the machine copies.
    pub(crate) mbit: Option<u32>,
    /// Whether the guest may run before all of its memory is there; then the total is until it is.
    pub(crate) post_copy: bool,
}

const IDLE: Case = Case {
    name: "idle-1g",
    mib: 1024,
    filled_mib: 960,
    dirty_mb_per_sec: 0,
    working_set_mib: 8,
    repeat: 1,
    mbit: None,
    post_copy: false,
};
const BUSY: Case = Case { filled_mib: 760, working_set_mib: 200, ..IDLE };

/// All of them.
pub(crate) const CASES: &[Case] = &[
    // So small that hundreds can be moved: for the spread of the switchover.
    Case { name: "idle-64m", mib: 64, filled_mib: 30, ..IDLE },
    IDLE,
    // The guest leaves memory above 3 GiB alone: a quarter of this one is zero.
    Case { name: "idle-4g", mib: 4096, filled_mib: 2900, ..IDLE },
    Case { name: "dirty-10", dirty_mb_per_sec: 10, ..BUSY },
    Case { name: "dirty-25", dirty_mb_per_sec: 25, ..BUSY },
    Case { name: "dirty-50", dirty_mb_per_sec: 50, ..BUSY },
    Case { name: "idle-1g-1gbit", mbit: Some(1000), ..IDLE },
    Case { name: "dirty-25-1gbit", dirty_mb_per_sec: 25, mbit: Some(1000), ..BUSY },
    Case { name: "dirty-50-1gbit", dirty_mb_per_sec: 50, mbit: Some(1000), ..BUSY },
    Case { name: "idle-1g-400mbit", mbit: Some(400), ..IDLE },
    Case { name: "dirty-10-400mbit", dirty_mb_per_sec: 10, mbit: Some(400), ..BUSY },
    Case { name: "dirty-64-400mbit", dirty_mb_per_sec: 64, mbit: Some(400), ..BUSY },
    // Memory that compresses, as that of programs does; that of the others does not.
    Case { name: "packable-1g", repeat: 3, ..IDLE },
    Case { name: "packable-1g-1gbit", repeat: 3, mbit: Some(1000), ..IDLE },
    Case { name: "packable-1g-400mbit", repeat: 3, mbit: Some(400), ..IDLE },
    Case {
        name: "packable-dirty-64-400mbit",
        repeat: 3,
        dirty_mb_per_sec: 64,
        mbit: Some(400),
        ..BUSY
    },
    Case {
        name: "post-copy-200-400mbit",
        dirty_mb_per_sec: 200,
        mbit: Some(400),
        post_copy: true,
        ..BUSY
    },
];

impl Case {
    /// What the guest is told. Idle means: it looks at the clock every 2 ms, so that it notices
    /// what it misses.
    pub(crate) fn params(&self) -> Params {
        Params {
            heartbeat_ms: 50,
            period_ms: 2,
            duty_percent: if self.dirty_mb_per_sec > 0 { 25 } else { 5 },
            dirty_mib_per_sec: self.dirty_mb_per_sec * 1_000_000 / (1 << 20),
            working_set_mib: self.working_set_mib,
            static_mib: self.filled_mib,
            repeat: self.repeat,
            check_mib_per_sec: 0,
            tsc_khz: Some(tsc_khz()),
            ..Params::default()
        }
    }

    /// What the guest has in memory, in GB: what CPU time is divided by, for both alike.
    pub(crate) fn gigabytes(&self) -> f64 {
        f64::from(self.filled_mib + self.working_set_mib) * f64::from(1 << 20) / 1e9
    }

    /// So much that a probe of the link takes about a second.
    pub(crate) fn probe_bytes(&self) -> u64 {
        self.mbit.map_or(1 << 30, |mbit| u64::from(mbit) * 1_000_000 / 8)
    }
}

/// The TSC's rate: QEMU does not tell the guest.
fn tsc_khz() -> u32 {
    let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
    vm.create_vcpu(0).unwrap().get_tsc_khz().unwrap()
}

/// One migration.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    /// False when it did not come to an end in time; then the rest says nothing.
    pub(crate) ended: bool,
    /// From the order to the guest running at the destination.
    pub(crate) total_ms: f64,
    /// As the hypervisor reports it.
    pub(crate) downtime_ms: f64,
    /// As the guest saw it.
    pub(crate) gap_ms: f64,
    pub(crate) sent_bytes: f64,
    /// Of both processes without their vCPUs, for every GB in memory.
    pub(crate) cpu_s_per_gb: f64,
    pub(crate) rounds: f64,
}

/// The longest stall in the first heartbeats of what the destination's guest said; panics when
/// it found a fault. None until there are enough.
pub(crate) fn switchover_gap(text: &str) -> Option<f64> {
    let whole = match text.split_once('\n') {
        Some((first, rest)) if !first.starts_with("H ") => rest,
        _ => text,
    };
    let lines = whole.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let mut gaps = Vec::new();
    for line in lines.lines() {
        assert!(!line.starts_with("E ") && !line.starts_with("FATAL"), "the guest: {line}");
        let Some(fields) = line.strip_prefix("H ") else { continue };
        assert!(fields.contains(" e0"), "the guest found wrong pages: {line}");
        let stall = fields.split(' ').find_map(|field| field.strip_prefix('s')?.parse().ok());
        gaps.push(stall.unwrap_or(0.0));
    }
    (gaps.len() >= BEATS).then(|| gaps[..BEATS].iter().copied().fold(0.0, f64::max))
}

/// Whether the guest has written all it is to have in memory: it does so at full speed while its
/// heart beats already. Ask again until it has.
#[derive(Debug, Default)]
pub(crate) struct Filling {
    resident_pages: u64,
    same: u32,
}

impl Filling {
    /// Looks at the process; blocks for a moment.
    pub(crate) fn is_done(&mut self, pid: u32, case: &Case) -> bool {
        const SAME: u32 = 4;
        std::thread::sleep(Duration::from_millis(50));
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
        let resident: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
        self.same = if resident > self.resident_pages { 0 } else { self.same + 1 };
        self.resident_pages = resident;
        self.same >= SAME && resident as f64 * 4096.0 / 1e9 >= case.gigabytes()
    }
}

/// CPU time of a process without its vCPUs' threads, which have `vcpu` in their names.
pub(crate) fn cpu_seconds(pid: u32, vcpu: &str) -> f64 {
    // Fields 14 and 15 of proc_pid_stat(5), in ticks of a hundredth of a second.
    let ticks = |path: String| -> (String, f64) {
        let stat = std::fs::read_to_string(path).unwrap_or_default();
        let (head, fields) = stat.rsplit_once(") ").unwrap_or_default();
        let ticks = fields.split(' ').skip(11).take(2).filter_map(|n| n.parse::<f64>().ok());
        (head.to_owned(), ticks.sum())
    };
    let (_, all) = ticks(format!("/proc/{pid}/stat"));
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_vcpus = tasks.map(|task| ticks(format!("{}/stat", task.path().display())));
    let of_vcpus = of_vcpus.filter(|(head, _)| head.contains(vcpu)).map(|(_, ticks)| ticks);
    (all - of_vcpus.sum::<f64>()) / 100.0
}
