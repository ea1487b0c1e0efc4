//! A Linux guest as Debian ships it moves between two KVM hosts and back, and does not notice.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ballast_lab::{Cluster, Host, Lab, LinuxGuest, LinuxVm};

/// Generous: an emulated machine on a machine that does other things.
const LIMIT: Duration = Duration::from_secs(180);
const DISK_BYTES: u64 = 8 << 20;
const RECORD_BYTES: usize = 512;
/// By how much more the guest's wall clock may differ from a host's after a move: the hosts' own
/// are set to the second, and these are seconds.
const CLOCKS_DIFFER_MAX_SECS: i64 = 2;
/// What Linux says when its time or its CPUs did not go on as they should.
const COMPLAINTS: &str =
    "unstable|lockup|stall|hung|BUG|Oops|Call Trace|I/O error|watchdog|backwards|TSC ADJUST";

/// The disk that goes along, on the host that has the VM.
const LOCAL_DISK: &str = "/vm/local.img";
/// In the guest: numbered records on both disks, each on the disk before the next is written.
const WRITER: &str = "i=0; while [ ! -e /run/stop ]; do for disk in vda vdb; do \
    printf '%-511s\\n' \"record $i\" | dd of=/dev/$disk bs=512 seek=$i conv=notrunc,fsync \
    2>/dev/null || echo $i >>/run/failed; done; i=$((i + 1)); echo $i >/run/written; done; \
    touch /run/stopped";
/// On a host: one connection, in which the guest's shell is asked the time, again and again.
const SESSION: &str = "n=0; while :; do n=$((n + 1)); \
    echo \"echo $n \\$(cut -d' ' -f1 /proc/uptime)\"; sleep 0.2; done";

#[test]
fn a_linux_guest_moves_there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let guest = LinuxGuest::write(dir.path()).unwrap();
    let disk = dir.path().join("disk");
    File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();
    let lab = Lab::builder().program(env!("CARGO_BIN_EXE_lab")).hosts(2).memory_mib(768);
    let lab = guest.give_to(lab).share(&disk).build().unwrap();
    println!("up after {:?}", lab.boot_times());
    let cluster = Cluster::start(&lab).unwrap();
    let vm = LinuxVm::new(&cluster, "debian", 0);
    let make_disk = format!("dd if=/dev/zero of={LOCAL_DISK} bs=1M count={}", DISK_BYTES >> 20);
    lab.host(0).sh(&make_disk).unwrap();
    let hardware = format!(
        "--disk /dev/vda --disk {LOCAL_DISK},local --net bridge=br0 --cpus 2 --memory 160MiB --host h0"
    );
    cluster.ballast(&vm.create_words(&hardware), LIMIT).unwrap();
    vm.wait_for_prompt().unwrap();
    println!("{}", vm.sh("uname -a").unwrap());
    // The emulated processor itself is reason for some, while the guest boots.
    let complaints = || vm.sh(&format!("dmesg | grep -E '{COMPLAINTS}'; true")).unwrap();
    let from_boot = complaints();

    vm.sh(&format!("({WRITER}) </dev/null >/dev/null 2>&1 &")).unwrap();
    let session = Session::start(&lab, &vm);
    session.wait_for_answers(5);
    // It booted with it a little off: ticks are lost on a processor as slow as this.
    let ahead = clock_ahead(&lab, &vm);
    for (from, to) in [("h0", "h1"), ("h1", "h0")] {
        let before = session.answers();
        let moved = cluster.ballast(&format!("vm migrate debian --to {to} --wait"), LIMIT).unwrap();
        println!("{moved}");
        assert_eq!(vm.show().unwrap().host, to);
        let with_disk = |host: &&Host| host.sh(&format!("test -e {LOCAL_DISK}")).is_ok();
        let hosts: Vec<_> = lab.hosts().iter().filter(with_disk).map(Host::name).collect();
        assert_eq!(hosts, [to], "its own disk has left {from}");
        session.wait_for_answers(before + 10);
        let now = clock_ahead(&lab, &vm);
        println!("wall clock ahead by {ahead:?} s, then {now:?} s");
        let apart = (now.start() - ahead.end()).max(ahead.start() - now.end());
        assert!(apart <= CLOCKS_DIFFER_MAX_SECS, "{ahead:?}, {now:?}");
    }
    session.check();

    vm.sh("touch /run/stop").unwrap();
    vm.until("test -e /run/stopped").unwrap();
    let written: usize = vm.sh("cat /run/written").unwrap().parse().unwrap();
    println!("{written} records on the disk");
    assert_eq!(vm.sh("cat /run/failed 2>/dev/null; true").unwrap(), "");
    // Also as the guest sees it, from the disk and not from what it remembers.
    vm.sh("echo 3 >/proc/sys/vm/drop_caches").unwrap();
    let inside = ["vda", "vdb"].map(|disk| vm.sh(&format!("sha256sum </dev/{disk}")).unwrap());
    assert_eq!(complaints(), from_boot, "the guest's kernel has noticed something");
    let said = vm.typed("nproc").unwrap();
    assert!(said.lines().any(|line| line.trim() == "2"), "{said}");
    vm.leave("poweroff -f").unwrap();
    assert!(vm.ended().unwrap().starts_with("power-off:"));
    let local_disk = dir.path().join("local");
    lab.host(0).pull(LOCAL_DISK, &local_disk).unwrap();
    lab.shut_down().unwrap();
    for (disk, inside) in [&disk, &local_disk].into_iter().zip(inside) {
        check_records(disk, written);
        let outside = Command::new("sha256sum").stdin(File::open(disk).unwrap()).output();
        assert_eq!(inside, String::from_utf8(outside.unwrap().stdout).unwrap().trim_end());
    }
}

/// One TCP connection from the first host to the guest's shell.
struct Session<'a> {
    lab: &'a Lab,
    log: String,
}

impl<'a> Session<'a> {
    fn start(lab: &'a Lab, vm: &LinuxVm<'_>) -> Self {
        let host = lab.host(0);
        host.sh(&format!("cat >/run/lab/session.sh <<'END'\n{SESSION}\nEND")).unwrap();
        let connect = format!(
            "sh -c \"sh /run/lab/session.sh | nc {} {}\"",
            vm.address(),
            LinuxGuest::SHELL_PORT
        );
        Self { lab, log: host.spawn("session", &connect).unwrap().log }
    }

    fn answers(&self) -> usize {
        self.lab.host(0).sh(&format!("wc -l <{}", self.log)).unwrap().trim().parse().unwrap()
    }

    fn wait_for_answers(&self, count: usize) {
        let enough = format!("test $(wc -l <{}) -ge {count}", self.log);
        self.lab.host(0).until(&enough, LIMIT).unwrap();
    }

    /// Every question was answered once and in order, and the guest's clock only went forward.
    fn check(&self) {
        let log = self.lab.host(0).sh(&format!("cat {}", self.log)).unwrap();
        let mut last = (0, 0.0);
        for line in log.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [number, uptime] = words[..] else { panic!("{line:?} in {log}") };
            let now: (u64, f64) = (number.parse().unwrap(), uptime.parse().unwrap());
            assert_eq!(now.0, last.0 + 1, "{log}");
            assert!(now.1 >= last.1, "{log}");
            last = now;
        }
        println!("{} answers in one connection, the last at {} s", last.0, last.1);
    }
}

/// By how many seconds the guest's wall clock is ahead of the first host's, at least and at most.
fn clock_ahead(lab: &Lab, vm: &LinuxVm<'_>) -> RangeInclusive<i64> {
    let script = format!("date +%s; {}; date +%s", vm.shell("date +%s"));
    let said = lab.host(0).sh(&script).unwrap();
    let times: Vec<i64> = said.lines().map(|line| line.trim().parse().unwrap()).collect();
    let [before, guest, after] = times[..] else { panic!("{said}") };
    guest - after..=guest - before
}

/// The disk's file has every record once, in its place, and nothing else.
fn check_records(disk: &Path, written: usize) {
    let mut bytes = Vec::new();
    File::open(disk).unwrap().read_to_end(&mut bytes).unwrap();
    for (number, record) in bytes.chunks_exact(RECORD_BYTES).enumerate() {
        if number < written {
            let text = std::str::from_utf8(record).unwrap();
            assert_eq!(text.trim_end(), format!("record {number}"));
        } else {
            assert!(record.iter().all(|&byte| byte == 0), "behind record {written}: {number}");
        }
    }
}
