//! Live migration next to QEMU's: the same probe guest, moved by each in turn
//! between two network namespaces.
//!
//! `make bench-migrate` runs nine pairs of every case. Fewer, and some cases only:
//! `cargo bench -p ballast-vmm --bench migrate -- --pairs 3 --case idle-1g --ours`.
//! Every migration is one line of JSON on standard output; the table for
//! docs/benchmarks.md goes to standard error at the end. Not an assertion, but
//! a guest that finds a fault in its memory ends it.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`case`] | the guests, the links and what is measured of a migration |
//! | [`link`] | two hosts as namespaces, the wire between them, a TCP probe of it |
//! | [`ours`], [`qemu`] | one migration by `ballast-vmm`, by QEMU |
//! | [`report`] | medians, spread, the table |
//!
//! *Guest gap* is the longest time the guest itself missed around the
//! switchover. *CPU* is what both processes used from the order to the end,
//! without their vCPUs, for every GB the guest had in memory.

// A bench may unwrap like a test.
#![allow(clippy::unwrap_used)]

mod case;
mod link;
mod ours;
#[path = "../../tests/support/process.rs"]
mod process;
mod qemu;
mod report;

use case::{CASES, Case, Figures};
use link::Link;

/// So few that all benchmarks together stay short; `make bench-migrate` asks for more.
const PAIRS: usize = 1;

/// What the command line asks for.
struct Args {
    pairs: usize,
    cases: Vec<String>,
    qemu: bool,
    streams: u32,
    tls: bool,
}

fn args() -> Args {
    let mut args = Args { pairs: PAIRS, cases: vec![], qemu: true, streams: 0, tls: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--pairs" => args.pairs = words.next().unwrap().parse().unwrap(),
            "--case" => args.cases.push(words.next().unwrap()),
            "--streams" => args.streams = words.next().unwrap().parse().unwrap(),
            "--ours" => args.qemu = false,
            "--tls" => args.tls = true,
            // Cargo's own.
            "--bench" => {}
            other => {
                panic!("{other} is none of --pairs N, --case NAME, --streams N, --tls, --ours")
            }
        }
    }
    args
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args = args();
    if !process::have_kvm() {
        return;
    }
    let compare = args.qemu && qemu::is_there();
    if args.qemu && !compare {
        eprintln!("SKIPPED: there is no {} to compare with", qemu::PROGRAM);
    }
    let mut rows = Vec::new();
    for case in CASES {
        if args.cases.is_empty() || args.cases.iter().any(|name| name == case.name) {
            rows.push(run(case, &args, compare).await);
        }
    }
    report::table(&rows);
}

async fn run(case: &'static Case, args: &Args, compare: bool) -> report::Row {
    let link = Link::new(case.mbit).unwrap();
    let mut row = report::Row { case, ours: vec![], qemu: vec![], probe: vec![] };
    for pair in 0..args.pairs {
        let probe = link.probe(case.probe_bytes());
        let ours = ours::migrate(case, &link, args.streams, args.tls).await;
        report::line(case, "ballast", pair, &ours, Some(probe));
        row.probe.push(probe);
        row.ours.push(ours);
        if compare {
            let theirs: Figures = qemu::migrate(case, &link);
            report::line(case, "qemu", pair, &theirs, None);
            row.qemu.push(theirs);
        }
    }
    row
}
