//! Measures live migration between two processes over loopback.
//!
//! `cargo bench -p ballast-vmm --bench precopy [-- <runs>]` prints, for a few
//! guests, the median over the runs of: time from SendMigration to the guest
//! running at the destination, bytes on the wire per second of it, downtime in
//! its parts, and the longest stall the guest saw. Not an assertion: figures on
//! a busy machine are several times worse than on a quiet one.

// A bench may unwrap like a test.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/process.rs"]
mod process;

use std::time::{Duration, Instant};

use ballast_guest::Params;
use ballast_proto::v1::{MigrationState, MigrationVerdict};
use process::{Lab, have_kvm};

const RUNS: usize = 5;

#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    mib: u64,
    filled_mib: u32,
    dirty_mib_per_sec: u32,
    verify: bool,
}

const CASES: [Case; 5] = [
    Case { name: "64 MiB, idle", mib: 64, filled_mib: 4, dirty_mib_per_sec: 0, verify: false },
    Case {
        name: "64 MiB, writes 20 MiB/s",
        mib: 64,
        filled_mib: 4,
        dirty_mib_per_sec: 20,
        verify: false,
    },
    Case {
        name: "the same, verified",
        mib: 64,
        filled_mib: 4,
        dirty_mib_per_sec: 20,
        verify: true,
    },
    Case {
        name: "256 MiB full, idle",
        mib: 256,
        filled_mib: 230,
        dirty_mib_per_sec: 0,
        verify: false,
    },
    Case {
        name: "256 MiB full, 50 MiB/s",
        mib: 256,
        filled_mib: 230,
        dirty_mib_per_sec: 50,
        verify: false,
    },
];

/// One migration's figures; durations in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    boot: f64,
    total: f64,
    wire_mib: f64,
    rounds: f64,
    /// Last pass, state save, send, load, commit, resume.
    parts: [f64; 6],
    stall: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if !have_kvm() {
        return;
    }
    let runs = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(RUNS);
    println!(
        "{:<26} {:>7} {:>8} {:>8} {:>6} {:>8}   pass+save+send+load+commit+resume      stall",
        "guest", "boot", "total", "MiB/s", "rounds", "downtime"
    );
    for case in CASES {
        let mut figures = Vec::new();
        for _ in 0..runs {
            figures.push(migrate(&case).await);
        }
        print(&case, &figures);
    }
}

async fn migrate(case: &Case) -> Figures {
    let lab = Lab::new();
    let (mut source, mut destination) = (lab.vmm("a").await, lab.vmm("b").await);
    let params = Params {
        heartbeat_ms: 10,
        duty_percent: if case.dirty_mib_per_sec > 0 { 30 } else { 0 },
        dirty_mib_per_sec: case.dirty_mib_per_sec,
        static_mib: case.filled_mib,
        check_mib_per_sec: 0,
        ..Params::default()
    };
    let spec = lab.spec(case.mib, &params);
    let began = Instant::now();
    source.boot(spec.clone()).await.unwrap();
    let boot = millis(began.elapsed());
    source.beats(10).await;

    let address = destination.listen(spec).await.unwrap();
    let began = Instant::now();
    source.send(&address, |send| send.verify = case.verify).await.unwrap();
    destination.watch_state(MigrationState::Ready).await;
    destination.resolve(MigrationVerdict::Commit, 2).await.unwrap();
    let total = millis(began.elapsed());

    let sent = source.watch_state(MigrationState::Ready).await.progress.unwrap();
    let here = destination.migration().await.progress.unwrap().downtime.unwrap();
    let there = sent.downtime.unwrap();
    source.read_console().await;
    std::mem::swap(&mut source.console, &mut destination.console);
    source.resolve(MigrationVerdict::Superseded, 2).await.unwrap();
    let report = destination.beats(10).await;
    Figures {
        boot,
        total,
        wire_mib: sent.bytes_sent as f64 / f64::from(1 << 20),
        rounds: sent.rounds.into(),
        parts: [
            there.last_pass_micros,
            there.state_save_micros,
            there.send_micros,
            here.load_micros,
            here.commit_micros,
            here.resume_micros,
        ]
        .map(|micros| micros as f64 / 1e3),
        stall: millis(report.stall_max),
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(figures: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = figures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print(case: &Case, figures: &[Figures]) {
    let parts: Vec<String> =
        (0..6).map(|part| format!("{:.2}", median(figures, |f| f.parts[part]))).collect();
    println!(
        "{:<26} {:>5.1}ms {:>6.1}ms {:>8.0} {:>6} {:>6.2}ms   {:<36} {:>6.1}ms",
        case.name,
        median(figures, |f| f.boot),
        median(figures, |f| f.total),
        median(figures, |f| f.wire_mib / f.total * 1e3),
        median(figures, |f| f.rounds),
        median(figures, |f| f.parts.iter().sum()),
        parts.join("+"),
        median(figures, |f| f.stall),
    );
}
