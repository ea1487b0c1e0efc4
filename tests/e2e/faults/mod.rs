//! Every fault at every point of a migration, and many at random ones.
//!
//! The cells and what must come of them are in `harness/matrix.rs`. Each cell is
//! one migration of a guest that checks its memory and numbers its heartbeats
//! and the records on its disk: what it finds is evidence of its own.

mod bench;

use std::time::Duration;

use ballast_tests::kvm_or_skip;
use ballast_tests::matrix::{Fault, Point, Setting, Who, cells};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use bench::{Bench, Summary};

/// The guest's disk is where every host finds it, or goes along.
const SHARED: Setting =
    Setting { local_disks: false, store: false, tamper: false, post_copy: false };
const LOCAL: Setting = Setting { local_disks: true, ..SHARED };

/// Runs all cells with one of these faults, on one cluster.
async fn check_cells(name: &str, setting: Setting, chosen: impl Fn(Point, Fault) -> bool) {
    if !kvm_or_skip(name) {
        return;
    }
    let mut bench = Bench::start(setting).await;
    for (point, fault, expected) in
        cells(setting).filter(|(point, fault, _)| chosen(*point, *fault))
    {
        bench.run(point, fault, expected).await;
    }
    let summary = bench.end().await;
    summary.check();
    eprintln!("{name}: {}", summary.to_json());
}

#[tokio::test]
async fn a_vmm_is_killed_at_every_point() {
    let vmm = |who| matches!(who, Who::SourceVmm | Who::DestinationVmm);
    let chosen = |_, fault| matches!(fault, Fault::Kill(who) if vmm(who));
    check_cells("killed VMMs", LOCAL, chosen).await;
}

#[tokio::test]
async fn an_agent_is_killed_at_every_point() {
    let agent = |who| matches!(who, Who::SourceAgent | Who::DestinationAgent);
    let chosen = |_, fault| matches!(fault, Fault::Kill(who) if agent(who));
    check_cells("killed agents", LOCAL, chosen).await;
}

#[tokio::test]
async fn the_controller_is_killed_at_every_point() {
    check_cells("a killed controller", SHARED, |_, fault| fault == Fault::Kill(Who::Controller))
        .await;
}

#[tokio::test]
async fn a_process_stands_still() {
    let short = [Point::Round, Point::Pause, Point::Ready, Point::Granted];
    let chosen = |point, fault| matches!(fault, Fault::Freeze(_)) && short.contains(&point);
    check_cells("frozen processes", SHARED, chosen).await;
}

/// The long form of the one above; `make soak-migrate` comes by these cells, too.
#[tokio::test]
#[ignore = "takes two minutes"]
async fn a_process_stands_still_at_every_point() {
    check_cells("frozen processes", SHARED, |_, fault| matches!(fault, Fault::Freeze(_))).await;
}

#[tokio::test]
async fn the_link_fails_at_every_point() {
    check_cells("links", LOCAL, |_, fault| matches!(fault, Fault::Cut | Fault::Stall)).await;
}

#[tokio::test]
async fn a_byte_is_changed_on_the_way() {
    let setting = Setting { tamper: true, ..LOCAL };
    check_cells("changed bytes", setting, |_, _| true).await;
}

/// Its memory is on two hosts, and what dies with a process is the VM; nothing else does any harm.
#[tokio::test]
async fn something_fails_while_the_guest_runs_without_all_of_its_memory() {
    let setting = Setting { post_copy: true, ..SHARED };
    let chosen = |_, fault| !matches!(fault, Fault::Freeze(_));
    check_cells("post-copy", setting, chosen).await;
}

#[tokio::test]
async fn a_byte_is_changed_while_the_guest_runs_without_all_of_its_memory() {
    let setting = Setting { tamper: true, post_copy: true, ..SHARED };
    check_cells("post-copy, changed bytes", setting, |_, _| true).await;
}

/// The long form of `something_fails_while_the_guest_runs_without_all_of_its_memory`.
#[tokio::test]
#[ignore = "takes two minutes"]
async fn anything_fails_while_the_guest_runs_without_all_of_its_memory() {
    check_cells("post-copy", Setting { post_copy: true, ..LOCAL }, |_, _| true).await;
}

fn of_store(fault: Fault) -> bool {
    matches!(fault, Fault::Kill(Who::Store) | Fault::Freeze(Who::Store))
}

#[tokio::test]
async fn the_store_fails() {
    let short = [Point::Negotiated, Point::Ready, Point::CommitAsked, Point::Granted];
    let setting = Setting { store: true, ..SHARED };
    check_cells("the store", setting, |point, fault| of_store(fault) && short.contains(&point))
        .await;
}

/// The long form of the one above.
#[tokio::test]
#[ignore = "takes two minutes"]
async fn the_store_fails_at_every_point() {
    let setting = Setting { store: true, ..LOCAL };
    check_cells("the store", setting, |_, fault| of_store(fault)).await;
}

#[tokio::test]
async fn everything_but_the_vms_is_killed_and_comes_back_in_either_order() {
    let short = [Point::Disks, Point::Pause, Point::Ready, Point::Granted, Point::CleanUp];
    let chosen = |point, fault| matches!(fault, Fault::Outage(_)) && short.contains(&point);
    check_cells("outages", LOCAL, chosen).await;
}

/// The long form of the one above.
#[tokio::test]
#[ignore = "takes two minutes"]
async fn everything_but_the_vms_is_killed_at_every_point() {
    check_cells("outages", LOCAL, |_, fault| matches!(fault, Fault::Outage(_))).await;
}

/// What random cells are drawn from, and how many of a hundred.
const SOAKED: [(Setting, usize); 5] = [
    (SHARED, 40),
    (LOCAL, 30),
    (Setting { post_copy: true, ..SHARED }, 10),
    (Setting { tamper: true, ..LOCAL }, 10),
    (Setting { store: true, ..SHARED }, 10),
];

/// Random cells, the same for the same seed.
async fn soak(count: usize, seed: u64) -> Summary {
    let mut random = StdRng::seed_from_u64(seed);
    let mut summary = Summary::default();
    for (setting, share) in SOAKED {
        let all: Vec<_> = cells(setting).collect();
        let mut bench = Bench::start(setting).await;
        for _ in 0..(count * share).div_ceil(100) {
            let (point, fault, expected) = *all.choose(&mut random).expect("there are cells");
            bench.run(point, fault, expected).await;
        }
        summary.add(bench.end().await);
    }
    summary
}

fn number(variable: &str, otherwise: u64) -> u64 {
    let told = std::env::var(variable).ok();
    told.map_or(otherwise, |text| text.parse().expect("a number"))
}

/// `make soak-migrate`: SOAK_COUNT migrations by SOAK_SEED.
#[tokio::test]
#[ignore = "takes half an hour: make soak-migrate"]
async fn soak_of_random_faults() {
    let (count, seed) = (number("SOAK_COUNT", 1000), number("SOAK_SEED", 1));
    let summary = soak(usize::try_from(count).expect("a count"), seed).await;
    println!("{}", summary.to_json());
    summary.check();
}

#[tokio::test]
async fn fifty_random_faults() {
    if !kvm_or_skip("random faults") {
        return;
    }
    let summary = soak(50, 7).await;
    eprintln!("{}", summary.to_json());
    summary.check();
}

/// There and back a hundred times: nothing is left of any of it.
#[tokio::test]
#[ignore = "takes two minutes"]
async fn a_hundred_migrations_leave_nothing_behind() {
    if !kvm_or_skip("a hundred migrations") {
        return;
    }
    let mut bench = Bench::start(SHARED).await;
    // What is made once is made by the first few.
    for _ in 0..6 {
        bench.migrate().await;
    }
    let before = bench.footprint();
    for _ in 0..100 {
        bench.migrate().await;
    }
    let after = bench.footprint();
    eprintln!("before: {before:?}\nafter:  {after:?}");
    assert_eq!(after.processes, before.processes);
    assert_eq!(after.locks, before.locks);
    assert_eq!(after.links, before.links, "taps");
    // A connection may be open just now; a leak is one a migration.
    assert!(after.files <= before.files + 10, "{before:?} {after:?}");
    assert!(after.resident_kib <= before.resident_kib + (32 << 10), "{before:?} {after:?}");
    bench.end().await.check();
}

/// How long a process stands still, and a link takes nothing: longer than a switchover.
const MOMENT: Duration = Duration::from_millis(400);
