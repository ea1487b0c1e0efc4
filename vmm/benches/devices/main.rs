//! Disks and networks next to QEMU's: the same probe guest measures what each gives it.
//!
//! `make bench-vmm` runs five rounds of every case. Fewer, and some cases only:
//! `cargo bench -p ballast-vmm --bench devices -- --rounds 1 --case disk-read-1 --ours`.
//! Every measurement is one line of JSON on standard output, the table for
//! docs/benchmarks.md goes to standard error at the end. Within a round every
//! VMM has its turn, so that a busy moment of the machine falls on all of them.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`case`] | what is measured, and what the host does meanwhile |
//! | [`host`] | the disk, the tap, the other end of the network |
//! | [`ours`], [`qemu`] | one measurement in `ballast-vmm`, in QEMU |
//! | [`report`] | medians, spread, the table |
//!
//! Our disks go through the host's page cache; QEMU is measured with the same
//! (`cache=writeback,aio=io_uring`) and past it (`cache=none,aio=native`), as
//! `qemu` and `qemu-direct`. Its network is a tap, without vhost.

// A bench may unwrap like a test.
#![allow(clippy::unwrap_used)]

mod case;
mod host;
mod ours;
#[path = "../../tests/support/process.rs"]
mod process;
mod qemu;
mod report;

use case::{CASES, Case};
use host::Host;
use report::Row;

/// So few that all benchmarks together stay short; `make bench-vmm` asks for more.
const ROUNDS: usize = 1;

/// What the command line asks for.
struct Args {
    rounds: usize,
    cases: Vec<String>,
    qemu: bool,
}

fn args() -> Args {
    let mut args = Args { rounds: ROUNDS, cases: vec![], qemu: true };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rounds" => args.rounds = words.next().unwrap().parse().unwrap(),
            "--case" => args.cases.push(words.next().unwrap()),
            "--ours" => args.qemu = false,
            // Cargo's own.
            "--bench" => {}
            other => panic!("{other} is none of --rounds N, --case NAME, --ours"),
        }
    }
    args
}

#[tokio::main(worker_threads = 1)]
async fn main() {
    let args = args();
    if !process::have_kvm() {
        return;
    }
    let qemu = args.qemu && qemu::is_here();
    let host = match Host::new() {
        Ok(host) => host,
        Err(error) => {
            eprintln!("SKIPPED: no network namespaces for this user: {error}");
            return;
        }
    };
    let chosen =
        |case: &&Case| args.cases.is_empty() || args.cases.iter().any(|it| it == case.name);
    let mut rows: Vec<Row> = CASES.iter().filter(chosen).map(Row::new).collect();
    for round in 0..args.rounds {
        for row in &mut rows {
            let case = row.case;
            let mut add = |vmm: &'static str, rate: f64| {
                report::line(case, vmm, round, rate);
                row.add(vmm, rate);
            };
            add("ballast-vmm", ours::measure(case, &host).await);
            if qemu {
                add("qemu", qemu::measure(case, &host, qemu::CACHED));
            }
            if qemu && case.is_of_disk() {
                add("qemu-direct", qemu::measure(case, &host, qemu::DIRECT));
            }
        }
    }
    report::table(&rows);
}
