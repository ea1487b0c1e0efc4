//! The gate as a table, and the windows behind it.

use ballast_proto::v1::{VmLoad, VmSpec, VmState};
use proptest::prelude::*;

use super::*;

const START: u64 = 1_000_000;

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn vm(name: &str) -> VmId {
    name.parse().unwrap()
}

fn status(name: &str, cpu: u64, second: u64) -> VmStatus {
    VmStatus {
        vm: name.into(),
        epoch: 1,
        state: VmState::Running.into(),
        spec: Some(VmSpec { vcpus: 1, memory_bytes: 64 << 20, ..VmSpec::default() }),
        load: Some(VmLoad {
            cpu_millicores: cpu,
            resident_bytes: 32 << 20,
            dirty_bytes_per_sec: 1 << 20,
            cpu_time_nanos: second * 1_000_000,
            local_disk_bytes: 0,
        }),
        ..VmStatus::default()
    }
}

/// The report of the given second, with one VM that uses 300 of the host's 500 millicores.
fn report(second: u64) -> LoadReport {
    LoadReport {
        host: "a".into(),
        sequence: second,
        at_unix_millis: START + second * 1000,
        load: Some(HostLoad {
            cpu_used_millicores: 500,
            memory_used_bytes: 100 << 20,
            memory_available_bytes: 1 << 30,
            cpu_pressure_ratio: Some(0.1),
            ..HostLoad::default()
        }),
        vms: vec![status("vm-1", 300, second)],
    }
}

const fn at(second: u64) -> Timestamp {
    Timestamp(START + second * 1000)
}

/// One host that sent good reports for `seconds`.
fn windows(seconds: u64) -> Windows {
    let mut windows = Windows::new(Limits::default());
    windows.host_registered(host("a"), Resources::new(Millicores(1000), Bytes::gib(1)), at(0));
    windows.stream_began(&host("a"));
    for second in 1..=seconds {
        assert_eq!(windows.report(&host("a"), report(second), at(second)), Some(Ok(())));
    }
    windows
}

fn is_known(windows: &Windows, second: u64) -> bool {
    matches!(windows.telemetry(&host("a"), at(second)), Telemetry::Known { .. })
}

fn why(windows: &Windows, second: u64) -> String {
    match windows.telemetry(&host("a"), at(second)) {
        Telemetry::Unknown { why } => why,
        Telemetry::Known { .. } => panic!("known"),
    }
}

#[test]
fn a_host_is_known_after_enough_good_reports() {
    assert!(why(&windows(0), 0).contains("0 of 3"));
    assert!(why(&windows(2), 2).contains("2 of 3"));
    let known = windows(3);
    let overhead = Resources::new(Millicores(200), Bytes::mib(68));
    assert_eq!(known.telemetry(&host("a"), at(3)), Telemetry::Known { overhead });
    let demand = Resources::new(Millicores(300), Bytes::mib(32));
    assert_eq!(known.demand(&vm("vm-1"), at(3)), Some(demand));
    assert_eq!(known.dirty_rate(&vm("vm-1")), BytesPerSec(1 << 20));
    assert_eq!(known.statuses(&host("a")).count(), 1);
    assert_eq!(windows(2).demand(&vm("vm-1"), at(2)), None);
}

#[test]
fn what_was_seen_stands_until_reports_can_know_of_it() {
    let mut windows = windows(3);
    let created = VmStatus { vm: "vm-2".to_owned(), epoch: 9, ..VmStatus::default() };
    windows.vm_seen(&host("a"), vm("vm-2"), created, at(3));
    let epoch = |windows: &Windows| windows.status(&host("a"), &vm("vm-2")).map(|s| s.epoch);
    assert_eq!(epoch(&windows), Some(9));
    for second in 4..=7 {
        assert_eq!(windows.report(&host("a"), report(second), at(second)), Some(Ok(())));
    }
    assert_eq!(epoch(&windows), Some(9), "a report may have been under way");
    for second in 8..=9 {
        assert_eq!(windows.report(&host("a"), report(second), at(second)), Some(Ok(())));
    }
    assert_eq!(epoch(&windows), None, "reports would name it by now");
}

#[test]
fn a_silent_host_becomes_unknown() {
    let windows = windows(3);
    assert!(is_known(&windows, 8));
    assert!(why(&windows, 9).contains("no report for 6.0 s"));
    assert_eq!(windows.demand(&vm("vm-1"), at(64)), None, "old samples are no demand");
    assert!(why(&Windows::new(Limits::default()), 0).contains("not registered"));
}

/// A spoilt sixth report is rejected with `fault`, makes the host unknown, and is forgiven after three good ones.
fn check(fault: Fault, spoil: impl FnOnce(&mut LoadReport)) {
    let mut windows = windows(5);
    let mut spoilt = report(6);
    spoil(&mut spoilt);
    let sequence = spoilt.sequence;
    let rejected = windows.report(&host("a"), spoilt, at(6)).unwrap().unwrap_err();
    assert_eq!(rejected.fault, fault, "{rejected}");
    assert!(why(&windows, 6).contains(&rejected.why));
    let demand = windows.demand(&vm("vm-1"), at(6)).unwrap();
    assert_eq!(demand.cpu, Millicores(300), "nothing of it counts");
    for good in 1..=3 {
        let mut next = report(6 + good);
        next.sequence = sequence.max(5) + good;
        assert_eq!(windows.report(&host("a"), next, at(6 + good)), Some(Ok(())));
        assert_eq!(is_known(&windows, 6 + good), good == 3);
    }
}

fn load(report: &mut LoadReport) -> &mut HostLoad {
    report.load.as_mut().unwrap()
}

fn vm_load(report: &mut LoadReport) -> &mut VmLoad {
    report.vms[0].load.as_mut().unwrap()
}

#[test]
fn bad_reports_make_a_host_unknown() {
    check(Fault::Missing, |r| r.load = None);
    check(Fault::Gap, |r| r.sequence = 8);
    check(Fault::Repeated, |r| r.sequence = 5);
    check(Fault::Repeated, |r| r.sequence = 0);
    check(Fault::Backwards, |r| r.at_unix_millis = START + 4_000);
    check(Fault::Zero, |r| *load(r) = HostLoad::default());
    check(Fault::Zero, |r| load(r).cpu_used_millicores = 0);
    check(Fault::Zero, |r| load(r).memory_used_bytes = 0);
    check(Fault::NotANumber, |r| load(r).cpu_pressure_ratio = Some(f64::NAN));
    check(Fault::NotANumber, |r| load(r).io_pressure_ratio = Some(-0.1));
    check(Fault::NotANumber, |r| load(r).memory_pressure_ratio = Some(f64::INFINITY));
    check(Fault::Absurd, |r| load(r).cpu_used_millicores = 64_001);
    check(Fault::Absurd, |r| load(r).memory_used_bytes = u64::MAX);
    check(Fault::Absurd, |r| load(r).network_send_bytes_per_sec = u64::MAX);
    check(Fault::Absurd, |r| vm_load(r).cpu_millicores = u64::MAX);
    check(Fault::Absurd, |r| vm_load(r).resident_bytes = u64::MAX);
    check(Fault::Absurd, |r| vm_load(r).dirty_bytes_per_sec = u64::MAX);
    check(Fault::Malformed, |r| r.vms[0].vm = "../etc".into());
    check(Fault::Malformed, |r| r.vms.push(r.vms[0].clone()));
    check(Fault::Malformed, |r| r.vms = vec![VmStatus::default(); 10_001]);
}

/// The sixth report comes at `now` and is rejected with `fault`.
fn check_at(fault: Fault, now: Timestamp, spoil: impl FnOnce(&mut LoadReport)) {
    let mut windows = windows(5);
    let mut spoilt = report(6);
    spoil(&mut spoilt);
    let rejected = windows.report(&host("a"), spoilt, now).unwrap().unwrap_err();
    assert_eq!(rejected.fault, fault, "{rejected}");
}

#[test]
fn clocks_and_counters_must_go_forward_together() {
    check_at(Fault::Stale, at(37), |_| {});
    check_at(Fault::Ahead, at(6), |r| r.at_unix_millis = at(37).0);
    check_at(Fault::CounterBackwards, at(6), |r| vm_load(r).cpu_time_nanos = 4_999_999);
}

#[test]
fn a_clock_that_is_put_right_is_believed_at_once() {
    let mut windows = windows(5);
    for (second, clock) in [(6, 999), (7, 7), (8, 8), (9, 9)] {
        let mut report = report(second);
        report.at_unix_millis = at(clock).0;
        assert_eq!(windows.report(&host("a"), report, at(second)).unwrap().is_ok(), clock != 999);
    }
    assert!(is_known(&windows, 9));
}

#[test]
fn under_another_epoch_it_is_another_counter() {
    let mut windows = windows(5);
    let mut fresh = report(6);
    fresh.vms[0].epoch = 2;
    vm_load(&mut fresh).cpu_time_nanos = 0;
    assert_eq!(windows.report(&host("a"), fresh, at(6)), Some(Ok(())));
}

#[test]
fn labels_are_distinct() {
    let labels: std::collections::BTreeSet<_> = Fault::ALL.iter().map(|f| f.label()).collect();
    assert_eq!(labels.len(), Fault::ALL.len());
}

#[test]
fn a_host_that_never_registered_is_told_apart() {
    assert_eq!(windows(1).report(&host("b"), report(1), at(1)), None);
}

#[test]
fn a_new_stream_starts_again_without_making_the_host_unknown() {
    let mut windows = windows(5);
    windows.stream_began(&host("a"));
    let mut first = report(6);
    first.sequence = 1;
    vm_load(&mut first).cpu_time_nanos = 0;
    assert_eq!(windows.report(&host("a"), first, at(6)), Some(Ok(())));
    assert!(is_known(&windows, 6));
}

#[test]
fn samples_of_a_migration_do_not_spoil_the_window() {
    let mut windows = windows(10);
    let capacity = Resources::new(Millicores(1000), Bytes::gib(1));
    windows.host_registered(host("b"), capacity, at(10));
    let mut there = report(1);
    there.at_unix_millis = at(11).0;
    there.vms[0].state = VmState::Incoming.into();
    there.vms[0].load.as_mut().unwrap().cpu_millicores = 0;
    assert_eq!(windows.report(&host("b"), there.clone(), at(11)), Some(Ok(())));
    assert_eq!(windows.demand(&vm("vm-1"), at(11)).unwrap().cpu, Millicores(300));

    // It runs there under the next epoch; the old host's last words do not count any more.
    there.sequence = 2;
    there.at_unix_millis = at(12).0;
    there.vms[0] = VmStatus { epoch: 2, ..status("vm-1", 310, 0) };
    assert_eq!(windows.report(&host("b"), there, at(12)), Some(Ok(())));
    for second in 11..=30 {
        let mut late = report(second);
        vm_load(&mut late).cpu_millicores = 0;
        assert_eq!(windows.report(&host("a"), late, at(second)), Some(Ok(())));
    }
    let demand = windows.demand(&vm("vm-1"), at(30)).unwrap();
    assert_eq!(demand.cpu, Millicores(300), "{demand}");
}

#[test]
fn forgotten_vms_leave_no_window() {
    let mut windows = windows(5);
    windows.retain_vms(|_| false);
    assert_eq!(windows.demand(&vm("vm-1"), at(5)), None);
    windows.forget_host(&host("a"));
    assert!(why(&windows, 5).contains("not registered"));
}

proptest! {
    /// Whatever a host says, the windows hold what the gate let through and nothing panics.
    #[test]
    fn no_report_can_break_the_windows(
        sequence: u64, millis: u64, cpu: u64, used: u64, free: u64, pressure: f64,
        vm_cpu: u64, resident: u64, dirty: u64, time: u64, epoch: u64,
    ) {
        let mut windows = windows(5);
        let mut wild = report(6);
        wild.sequence = sequence;
        wild.at_unix_millis = millis;
        *load(&mut wild) = HostLoad {
            cpu_used_millicores: cpu,
            memory_used_bytes: used,
            memory_available_bytes: free,
            cpu_pressure_ratio: Some(pressure),
            ..HostLoad::default()
        };
        wild.vms[0].epoch = epoch;
        *vm_load(&mut wild) = VmLoad {
            cpu_millicores: vm_cpu,
            resident_bytes: resident,
            dirty_bytes_per_sec: dirty,
            cpu_time_nanos: time,
            local_disk_bytes: 0,
        };
        let believed = windows.report(&host("a"), wild, at(6)).unwrap().is_ok();
        prop_assert_eq!(is_known(&windows, 6), believed);
        let demand = windows.demand(&vm("vm-1"), at(6)).unwrap();
        prop_assert!(demand.cpu <= Millicores(64_000 * 2), "{}", demand);
    }
}
