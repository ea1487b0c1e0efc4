//! What an idle guest misses when it moves, with everything that commits a move: a controller, agents and the store.
//!
//! ```text
//! cargo bench -p ballast-tests --bench downtime -- --moves 100
//! ```
//!
//! One cluster with the embedded store and one with etcd, moves in turn. One line of JSON for each store on
//! standard output, then the table. *Gap* is the longest time the guest itself noticed that it did not run;
//! *downtime* is what the two VMMs measured, *commit* the part of it from READY to the controller's consent.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::process::ExitCode;
use std::time::Duration;

use ballast_cli::cluster::StoreKind;
use ballast_guest::Params;
use ballast_model::migration::Downtime;
use ballast_proto::v1;
use ballast_tests::{Guest, TestCluster, kvm_or_skip};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ballast-under-test");
const VM: &str = "idle";
const MOVES: usize = 100;

/// One store's cluster, and what its moves took.
struct Side {
    store: &'static str,
    test: TestCluster,
    guest: Guest,
    gaps: Vec<Duration>,
    downtimes: Vec<Duration>,
    commits: Vec<Duration>,
}

impl Side {
    async fn start(store: &'static str, kind: StoreKind) -> Self {
        let test = TestCluster::start(PROGRAM, kind).await;
        // It looks at the clock every 2 ms and so notices what it misses.
        let params = Params {
            heartbeat_ms: 50,
            period_ms: 2,
            duty_percent: 5,
            working_set_mib: 8,
            static_mib: 30,
            check_mib_per_sec: 0,
            ..Params::default()
        };
        let policy = v1::MigrationPolicy { downtime_limit_ms: 300, ..Default::default() };
        let guest = Guest::create_as(&test, VM, "host-1", &params, |spec| {
            spec.migration = Some(policy);
        })
        .await;
        let empty = Vec::new;
        Self { store, test, guest, gaps: empty(), downtimes: empty(), commits: empty() }
    }

    async fn move_once(&mut self) {
        let from = self.test.runs_once(VM).await;
        self.guest.read(&self.test).await.expect("its console");
        self.guest.begin_anew();
        let to = if from == "host-1" { "host-2" } else { "host-1" };
        let id = self.test.migrate(VM, to).await;
        let moved = self.test.ended(&id).await;
        assert_eq!(moved.phase, "completed", "{moved:?}");
        self.gaps.push(self.guest.goes_on(&self.test).await.stall_max);
        let downtime = moved.progress.and_then(|progress| progress.downtime).expect("it is known");
        let downtime = Downtime::from(downtime);
        self.downtimes.push(downtime.total());
        self.commits.push(downtime.commit);
    }

    fn to_json(&self) -> String {
        let [gap, downtime, commit] =
            [&self.gaps, &self.downtimes, &self.commits].map(|times| percentiles(times));
        serde_json::json!({
            "bench": "downtime", "store": self.store, "moves": self.gaps.len(),
            "gap_ms": gap, "downtime_ms": downtime, "commit_ms": commit,
        })
        .to_string()
    }

    fn row(&self) -> String {
        let cells = [&self.gaps, &self.downtimes, &self.commits].map(|times| {
            let [p50, p99, most] = percentiles(times);
            format!("{p50:.1} / {p99:.1} / {most:.1}")
        });
        format!("| {} | {} | {} |", self.store, self.gaps.len(), cells.join(" | "))
    }
}

/// The 50th and the 99th percentile and the maximum, in milliseconds.
fn percentiles(times: &[Duration]) -> [f64; 3] {
    let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    sorted.sort_by(f64::total_cmp);
    [50, 99, 100].map(|percent| sorted[(sorted.len() * percent).div_ceil(100) - 1])
}

/// How many moves; `None` when the arguments make no sense.
fn moves() -> Option<usize> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Some(MOVES),
        ["--moves", count] => count.parse().ok().filter(|count| *count > 0),
        _ => None,
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some(moves) = moves() else {
        eprintln!("downtime: say nothing, or --moves and a number from 1 on");
        return ExitCode::from(2);
    };
    if !kvm_or_skip("the benchmark of downtimes") {
        return ExitCode::SUCCESS;
    }
    let mut sides = [
        Side::start("embedded", StoreKind::Embedded).await,
        Side::start("etcd", StoreKind::Etcd).await,
    ];
    for _ in 0..moves {
        for side in &mut sides {
            side.move_once().await;
        }
    }
    eprintln!("p50 / p99 / most, in ms\n");
    eprintln!("| store | moves | guest gap | downtime | of it commit |");
    eprintln!("| --- | --- | --- | --- | --- |");
    for side in &sides {
        println!("{}", side.to_json());
        eprintln!("{}", side.row());
    }
    for side in sides {
        side.test.stop().await;
    }
    ExitCode::SUCCESS
}
