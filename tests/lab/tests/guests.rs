//! Linux guests on one KVM host: how they are confined, what CPU they see, how they end, and
//! what is refused before anything starts.

// Helpers of tests may unwrap like tests.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use ballast_lab::{Cluster, Host, Lab, LinuxGuest, LinuxVm};

/// Generous: an emulated machine on a machine that does other things.
const LIMIT: Duration = Duration::from_secs(180);
/// What the agent gives its VMMs.
const VMM: &str = "user = \"990:990\"\ncpus = [0]\ncgroup = \"/sys/fs/cgroup/ballast\"";
const GROUP: &str = "/sys/fs/cgroup/ballast/smp";
const MEMORY_MIB: u64 = 192;

// One test: a lab takes longer to start than each of these takes.
#[test]
fn linux_guests_are_confined_and_end_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let guest = LinuxGuest::write(dir.path()).unwrap();
    let lab = Lab::builder().program(env!("CARGO_BIN_EXE_lab")).memory_mib(1024);
    let lab = guest.give_to(lab).build().unwrap();
    let host = lab.host(0);
    host.sh("for dir in /sys/fs/cgroup /sys/fs/cgroup/ballast; do mkdir -p $dir; \
             echo '+cpu +memory +pids' >$dir/cgroup.subtree_control; done; \
             dd if=/dev/zero of=/vm/disk bs=1M count=4; chown 990:990 /vm/disk")
        .unwrap();
    let cluster = Cluster::start_with(&lab, VMM).unwrap();
    // One after the other: more vCPUs at a time than the host has CPUs wait for each other.
    for (name, cmdline, why) in [
        ("resets", "guest.end=reboot", "reset: "),
        ("faults", "guest.end=reboot reboot=t", "crash: vCPU 0 shut down (triple fault)"),
    ] {
        let vm = LinuxVm::new(&cluster, name, 1).cmdline(cmdline);
        cluster.ballast(&vm.create_words("--memory 128MiB"), LIMIT).unwrap();
        let said = vm.ended().unwrap();
        println!("{name}: {said}");
        assert!(said.starts_with(why), "{name}: {said}");
        cluster.ballast(&format!("vm rm {name}"), LIMIT).unwrap();
        cluster.wait_for_hosts().unwrap();
    }

    let smp = LinuxVm::new(&cluster, "smp", 0);
    let hardware = format!(
        "--cpus 2 --memory {MEMORY_MIB}MiB --cpu-baseline x86-64-v2 --disk /vm/disk --net bridge=br0"
    );
    cluster.ballast(&smp.create_words(&hardware), LIMIT).unwrap();
    smp.wait_for_prompt().unwrap();
    assert_eq!(smp.sh("nproc").unwrap(), "2");
    check_baseline(&smp);
    check_confined(host, &smp);
    check_bad_input(&cluster, host);
    check_panic(&smp);

    lab.shut_down().unwrap();
}

/// The guest sees the CPU of its baseline and no more.
fn check_baseline(vm: &LinuxVm<'_>) {
    let flags = vm.sh("grep -m1 flags /proc/cpuinfo").unwrap();
    let has = |flag: &str| flags.split(' ').any(|word| word == flag);
    for flag in ["sse4_2", "popcnt", "ssse3", "cx16", "lahf_lm"] {
        assert!(has(flag), "{flag} is of x86-64-v2: {flags}");
    }
    for flag in ["avx", "avx2", "bmi2", "svm", "rdrand"] {
        assert!(!has(flag), "{flag} is not: {flags}");
    }
}

/// The VMM's process has what its agent gives it.
fn check_confined(host: &Host, vm: &LinuxVm<'_>) {
    let pid = vm.show().unwrap().pid.unwrap();
    let status = host.sh(&format!("cat /proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().replace('\t', " ")
    };
    assert_eq!(field("Uid"), "990 990 990 990");
    assert_eq!(field("Gid"), "990 990 990 990");
    assert_eq!(field("Groups"), "");
    assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
    // CAP_NET_ADMIN alone.
    assert_eq!(field("CapEff"), format!("{:016x}", 1 << 12));
    assert_eq!(field("Cpus_allowed_list"), "0");

    let file = |name: &str| host.sh(&format!("cat {GROUP}/{name}")).unwrap();
    // Beside it a thread of the kernel's own, which KVM has started for it.
    assert!(file("cgroup.procs").lines().any(|line| line == pid.to_string()));
    assert_eq!(file("cpu.max"), "400000 100000");
    assert_eq!(file("cpu.weight"), "200");
    assert_eq!(file("pids.max"), "1024");
    let memory = (MEMORY_MIB + MEMORY_MIB / 16 + 512) << 20;
    assert_eq!(file("memory.max"), memory.to_string());
    // Guest memory that was touched is counted there, and CPU time.
    let used: u64 = file("memory.current").parse().unwrap();
    assert!((32 << 20..memory).contains(&used), "{used}");
    assert!(!file("cpu.stat").contains("usage_usec 0\n"));
}

/// A kernel that panics is a crash with that reason, whatever it would have done next.
fn check_panic(vm: &LinuxVm<'_>) {
    vm.leave("echo c >/proc/sysrq-trigger").unwrap();
    let said = vm.ended().unwrap();
    println!("{}: {said}", vm.name());
    assert!(said.starts_with("crash: the guest's kernel panicked"), "{said}");
}

/// What cannot be is refused with its reason; nothing of it is left.
fn check_bad_input(cluster: &Cluster<'_>, host: &Host) {
    host.sh(
        "head -c 1000000 /vm/initrd >/vm/cut; gzip -c /vm/initrd | head -c 1000000 >/vm/cut.gz; \
             head -c 3000000 /vm/vmlinuz >/vm/cut.kernel",
    )
    .unwrap();
    let guest = "--kernel /vm/vmlinuz --initrd /vm/initrd";
    let cases = [
        ("--kernel /vm/initrd", "neither a bzImage nor"),
        ("--kernel /vm/cut.kernel", "cut short"),
        ("--kernel /vm/none", "/vm/none"),
        ("--kernel /vm/vmlinuz --initrd /vm/cut", "cut short"),
        ("--kernel /vm/vmlinuz --initrd /vm/cut.gz", "gzip archive goes on behind its end"),
        (&format!("{guest} --disk /vm/disk"), "is in use by"),
    ];
    for (words, expected) in cases {
        let create = format!("vm create bad --memory 128MiB --host h0 {words}");
        cluster.wait_for_hosts().unwrap();
        let script = format!("{}; ballast {create}", cluster.environment());
        let output = host.run(&script, LIMIT).unwrap();
        let said = output.stderr.trim();
        println!("{words}\n    {said}");
        assert_ne!(output.code, 0, "{words} is accepted");
        assert!(said.to_lowercase().contains(&expected.to_lowercase()), "{words}: {said}");
        assert!(said.contains("; "), "no remedy: {said}");
        let left = host
            .sh("pidof ballast-vmm | wc -w; ls /var/lib/ballast/vms /sys/fs/cgroup/ballast")
            .unwrap();
        assert!(left.starts_with('1') && !left.contains("bad"), "{words} leaves {left}");
    }
    let vms = cluster.ballast("vm ls", LIMIT).unwrap();
    assert!(vms.contains("smp") && !vms.contains("bad"), "{vms}");
}
