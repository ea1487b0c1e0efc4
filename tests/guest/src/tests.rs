//! Tests of both sides of the protocol, as far as they need no machine.

use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;

use crate::bare_params::{Params as BareParams, What};
use crate::bare_pattern::{Content, Fault, Page, Pattern, is_zero};
use crate::bare_timeline::Timeline;
use crate::{Console, ConsoleReport, Params};

const TEXT: &str = "B 1 web-1 hb=200 khz=2600000\n\
    H 0 1 p0 e0\n\
    H 1 201 p0 e0\n\
    H 2 655 p1 e0 s254\n\
    H 3 855 p1 e0\n";

fn read(text: &str) -> ConsoleReport {
    let mut console = Console::new();
    console.push(0, text.as_bytes());
    console.report().clone()
}

fn check_faults(text: &str, expected: &[&str]) {
    assert_eq!(read(text).faults(), expected, "{text:?}");
}

#[test]
fn a_good_console_has_no_faults() {
    let report = read(TEXT);
    assert_eq!(report.faults(), Vec::<String>::new());
    assert_eq!((report.boots, report.heartbeats, report.last_number), (1, 4, Some(3)));
    assert_eq!(report.guest_time, Duration::from_millis(855));
    assert_eq!(report.heartbeat_gap_max, Duration::from_millis(454));
    assert_eq!(report.stall_max, Duration::from_millis(254));
    assert_eq!(report.check_passes, 1);
}

#[test]
fn a_reader_that_begins_anew_hears_only_what_follows() {
    let mut console = Console::starting_at(7);
    console.push(0, TEXT.as_bytes());
    let report = console.report().clone();
    assert_eq!((report.boots, report.heartbeats, report.faults().len()), (0, 4, 0));
    let mut later = Console::starting_at(TEXT.len() as u64);
    let rest = "\nH 4 1055 p1 e0 s3\n";
    later.push(TEXT.len() as u64, rest.as_bytes());
    let report = later.report();
    assert_eq!((report.heartbeats, report.stall_max), (1, Duration::from_millis(3)));
    assert_eq!((report.bytes_missed, report.faults().len()), (0, 0));
}

#[test]
fn every_fault_is_found() {
    check_faults("H 0 1 p0 e0\nH 2 401 p0 e0\n", &["1 heartbeats were lost"]);
    check_faults("H 0 1 p0 e0\nH 0 1 p0 e0\n", &["1 heartbeats were repeated"]);
    check_faults("H 5 1 p0 e0\nH 4 2 p0 e0\n", &["1 heartbeats were repeated"]);
    check_faults("H 0 9 p0 e0\nH 1 8 p0 e0\n", &["1 times the guest's clock went backwards"]);
    check_faults("H 0 9 p0 e0 t1\n", &["1 times the guest's clock went backwards"]);
    check_faults("B 1 a\nH 0 1 p0 e0\nB 1 a\n", &["1 times the guest was started again"]);
    check_faults("FATAL duty: use 0 to 100\n", &["the guest gave up: duty: use 0 to 100"]);
    check_faults("H 0 1 p0\n", &["1 lines were damaged"]);
    check_faults("H 0 1 p0 e0 sx\n", &["1 lines were damaged"]);
    check_faults("H 0 1 p0 e0 n7 d8 f2\n", &["2 times a device did what it must not"]);
    check_faults("?\n", &["1 lines were damaged"]);
    check_faults(
        "H 0 1 p0 e0\nE page 17 gen 4 holds gen 3\nH 1 201 p0 e1\n",
        &[
            "1 pages did not hold what the guest wrote",
            "the guest found: page 17 gen 4 holds gen 3",
        ],
    );
}

#[test]
fn fields_of_later_versions_are_passed_over() {
    check_faults("H 0 1 p0 e0 x12 s3\n", &[]);
    assert_eq!(read("H 0 1 p0 e0 x12 s3\n").stall_max, Duration::from_millis(3));
}

#[test]
fn text_nobody_showed_is_no_loss_of_the_guest() {
    let mut console = Console::new();
    let (early, late) =
        ("9 p0 e0\nH 7 1401 p0 e0\nH 8 16", " e0\nH 20 4001 p0 e0\nH 21 4201 p0 e0\n");
    console.push(1000, early.as_bytes());
    console.push(2000, late.as_bytes());
    let report = console.report();
    assert_eq!(report.faults(), Vec::<String>::new());
    assert_eq!(report.heartbeats, 3);
    assert_eq!(report.heartbeat_gap_max, Duration::from_millis(200));
    assert_eq!(report.bytes_missed, 2000 - 1000 - early.len() as u64);
    assert_eq!(console.next_offset(), 2000 + late.len() as u64);
}

#[test]
fn endless_lines_are_bounded() {
    let report = read(&("x".repeat(100_000) + "\nH 0 1 p0 e0\n"));
    assert_eq!((report.unknown_lines, report.heartbeats), (1, 1));
    let report = read(&"E a\n".repeat(1000));
    assert_eq!(report.error_lines.len(), 16);
}

proptest! {
    #[test]
    fn pieces_say_the_same_as_the_whole(cuts in prop::collection::vec(0..TEXT.len(), 0..8)) {
        let mut cuts = cuts;
        cuts.extend([0, TEXT.len()]);
        cuts.sort_unstable();
        let mut console = Console::new();
        for piece in cuts.windows(2) {
            console.push(piece[0] as u64, &TEXT.as_bytes()[piece[0]..piece[1]]);
        }
        prop_assert_eq!(console.report(), &read(TEXT));
    }

    #[test]
    fn what_was_seen_already_changes_nothing(
        pieces in prop::collection::vec((0..TEXT.len(), 0..40usize), 0..20),
    ) {
        let mut console = Console::new();
        for (start, length) in pieces {
            let start = start.min(usize::try_from(console.next_offset()).unwrap());
            let end = (start + length).min(TEXT.len());
            console.push(start as u64, &TEXT.as_bytes()[start..end]);
        }
        console.push(0, TEXT.as_bytes());
        prop_assert_eq!(console.report(), &read(TEXT));
    }

    #[test]
    fn a_window_on_the_text_has_no_faults(start in 0..TEXT.len(), length in 0..TEXT.len()) {
        let end = (start + length).min(TEXT.len());
        let mut console = Console::new();
        console.push(start as u64, &TEXT.as_bytes()[start..end]);
        prop_assert_eq!(console.report().faults(), Vec::<String>::new());
    }

    #[test]
    fn any_bytes_can_be_read(
        pieces in prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 0..50)), 0..20),
    ) {
        let mut console = Console::new();
        for (offset, bytes) in pieces {
            console.push(offset >> 1, &bytes);
        }
        console.report().faults();
    }

    #[test]
    fn the_guest_understands_every_command_line(
        name in proptest::option::of("[a-z][a-z0-9-]{0,20}"),
        heartbeat_ms in 1..=60_000u32,
        duty_percent in 0..=100u32,
        sizes in prop::array::uniform4(0..1000u32),
        rates in prop::array::uniform2(0..1000u32),
        (seed, repeat) in (any::<u64>(), 1..=512u32),
        tsc_khz in proptest::option::of(1..10_000_000u32),
        ip in proptest::option::of((any::<Ipv4Addr>(), 1..=30u8)),
        gateway in proptest::option::of(any::<Ipv4Addr>()),
        echo_port in 1..u16::MAX,
        log_per_sec in 0..10_000u32,
        virtio_base in any::<u64>(),
    ) {
        let [working_set_mib, static_mib, zero_mib, high_mib] = sizes;
        let [dirty_mib_per_sec, check_mib_per_sec] = rates;
        let params = Params {
            name: name.clone(), heartbeat_ms, duty_percent, working_set_mib, static_mib, zero_mib,
            high_mib, dirty_mib_per_sec, check_mib_per_sec, seed, repeat, tsc_khz, ip, gateway, echo_port,
            log_per_sec, virtio_base, ..Params::default()
        };
        let cmdline = params.to_cmdline();
        let expected = BareParams {
            name: name.as_deref().unwrap_or("-"),
            heartbeat_ms: heartbeat_ms.into(),
            period_ms: 20,
            duty_percent: duty_percent.into(),
            working_set_mib, static_mib, zero_mib, high_mib,
            dirty_mib_per_sec: dirty_mib_per_sec.into(),
            check_mib_per_sec: check_mib_per_sec.into(),
            seed,
            repeat,
            tsc_khz: tsc_khz.map(u64::from),
            ip,
            gateway,
            echo_port,
            log_per_sec,
            virtio_base,
            ..BareParams::parse(b"").unwrap()
        };
        prop_assert_eq!(BareParams::parse(cmdline.as_bytes()), Ok(expected));
    }

    #[test]
    fn a_page_holds_its_own_content_only(
        page in 0..1000u32, generation in any::<u32>(), seed in any::<u64>(), repeat in 1..513usize,
    ) {
        let pattern = Pattern { seed, repeat };
        let content = Content { page, generation };
        let mut memory = [0; 512];
        prop_assert_eq!(content.fault_in(&memory, pattern, 1000), Fault::Zeroed);
        content.fill(&mut memory, pattern);
        prop_assert!(content.is_in(&memory, pattern) && !is_zero(&memory));
        let newer = Content { page, generation: generation.wrapping_add(1) };
        prop_assert!(!newer.is_in(&memory, pattern));
        prop_assert_eq!(newer.fault_in(&memory, pattern, 1000), Fault::Stale { generation });
        let other = Content { page: page + 1, generation };
        prop_assert!(!other.is_in(&memory, pattern));
        prop_assert_eq!(other.fault_in(&memory, pattern, 1000), Fault::Moved { page, generation });
    }

    #[test]
    fn one_wrong_word_is_found(seed in any::<u64>(), repeat in 1..513usize, at in 0..512usize, bits in 1..u64::MAX) {
        let pattern = Pattern { seed, repeat };
        let content = Content { page: 7, generation: 9 };
        let mut memory: Page = [0; 512];
        content.fill(&mut memory, pattern);
        memory[at] ^= bits;
        prop_assert!(!content.is_in(&memory, pattern));
        prop_assert_eq!(content.fault_in(&memory, pattern, 1000), Fault::Torn);
    }
}

#[test]
fn wrong_parameters_are_named() {
    for (cmdline, expected) in [
        ("hb_ms=50 duty=101", "duty=101: use 0 to 100"),
        ("duty=", "duty=: use 0 to 100"),
        ("hb_ms=0", "hb_ms=0: use 1 to 60000"),
        ("ws_mib=-1", "ws_mib=-1: use 0 to 1048576"),
        ("console=ttyS0", "console=ttyS0: unknown parameter, see docs/probe-guest.md"),
        ("ip=10.0.0.2", "ip=10.0.0.2: use an address like 10.0.0.2/24"),
        ("ip=10.0.0.2/31", "ip=10.0.0.2/31: use an address like 10.0.0.2/24"),
        ("gateway=x", "gateway=x: use an address like 10.0.0.1"),
        ("echo_port=0", "echo_port=0: use 1 to 65535"),
        ("log_bytes=1024", "log_bytes=1024: use 512 or 4096"),
        ("log_flush=9", "log_flush=9: use 1 to 8"),
        (
            "bench=disk-read:4096:22:1",
            "bench=disk-read:4096:22:1: use a benchmark of docs/probe-guest.md",
        ),
        ("bench=net-send:40:1:1", "bench=net-send:40:1:1: use a benchmark of docs/probe-guest.md"),
        ("virtio_base=0xg", "virtio_base=0xg: use a number"),
        ("quiet", "quiet: unknown parameter, see docs/probe-guest.md"),
    ] {
        let fault = BareParams::parse(cmdline.as_bytes()).unwrap_err();
        assert_eq!(fault.to_string(), expected);
    }
}

#[test]
fn a_benchmark_and_its_result() {
    let params = Params { bench: Some("disk-flush:4096:16:250".to_owned()), ..Params::default() };
    let cmdline = params.to_cmdline();
    let bench = BareParams::parse(cmdline.as_bytes()).unwrap().bench.unwrap();
    assert_eq!((bench.bytes, bench.depth, bench.ms), (4096, 16, 250));
    assert_eq!(bench.what, What::Disk { write: true, flush: true, in_order: false });

    let report = read("B 1 -\nR ready\nR 1000 4096000 250100\n");
    assert_eq!(report.faults(), Vec::<String>::new());
    assert!(report.measuring);
    assert_eq!(report.measured, Some((1000, 4_096_000, Duration::from_micros(250_100))));
    check_faults("R 1000 4096000\n", &["1 lines were damaged"]);
}

#[test]
fn time_goes_on_when_the_counter_does_not() {
    let mut timeline = Timeline::new(2_000_000, 1_000);
    assert_eq!(timeline.at(3_000), 1_000);
    // Below where it was, below where it began, and close to its end.
    for counter in [2_000, 10, u64::MAX - 500] {
        assert_eq!(timeline.at(counter), timeline.last());
        let before = timeline.last();
        assert_eq!(timeline.at(counter.wrapping_add(2_000)), before + 1_000);
    }
    assert_eq!((timeline.reversals(), timeline.frequency()), (3, 2_000_000));
}

proptest! {
    #[test]
    fn time_never_goes_backwards(
        khz in 100_000..20_000_000u64,
        counters in prop::collection::vec(any::<u64>(), 1..50),
    ) {
        let mut timeline = Timeline::new(khz, counters[0]);
        let mut last = 0;
        for counter in counters {
            let now = timeline.at(counter);
            prop_assert!(now >= last && timeline.last() == now);
            last = now;
        }
    }
}

#[test]
fn memory_parts_follow_each_other() {
    let params = Params { working_set_mib: 3, static_mib: 2, zero_mib: 1, ..Params::default() };
    let layout = params.layout();
    assert_eq!(layout.generations, 0x20_0000..0x20_1000);
    assert_eq!(layout.working_set, 0x20_1000..0x50_1000);
    assert_eq!(layout.unchanging, 0x50_1000..0x70_1000);
    assert_eq!(layout.zero, 0x70_1000..0x80_1000);
    assert_eq!(params.memory_mib_min(), 9);
}
