//! Hosts come up, do what they are told, and go.

use std::time::Duration;

use ballast_lab::{Builder, Lab, Net};
use ballast_model::RefusalCode;

const SOON: Duration = Duration::from_secs(60);

fn lab() -> Builder {
    Lab::builder().program(env!("CARGO_BIN_EXE_lab"))
}

#[test]
fn a_host_has_kvm_runs_scripts_and_powers_off() {
    let lab = lab().network(Net::None).build().unwrap();
    let host = lab.host(0);
    println!("up after {:?}", lab.boot_times());
    assert_eq!(host.sh("hostname").unwrap(), "h0");

    let script = "echo out; echo err >&2; exit 7";
    let output = host.run(script, SOON).unwrap();
    assert_eq!((output.code, &*output.stdout, &*output.stderr), (7, "out\n", "err\n"));

    // What a VMM asks before anything else: usable, and the processor it will show.
    let model = host.sh("test -w /dev/kvm && ballast-vmm --cpu-model").unwrap();
    assert!(model.contains("AuthenticAMD"), "{model}");
    lab.shut_down().unwrap();
}

#[test]
fn three_hosts_reach_each_other_and_share_a_disk() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let lab = lab().hosts(3).memory_mib(320).share(disk.path()).build().unwrap();
    println!("up after {:?}", lab.boot_times());
    let [first, second, third] = lab.hosts() else { panic!("three hosts") };

    for host in [second, third] {
        let address = host.address().unwrap();
        first.until(&format!("ping -c 1 -W 5 {address}"), SOON).unwrap();
    }

    // Bytes sent are bytes that arrive, known by their checksum.
    second.spawn("sink", "nc -l -p 9000 -e dd of=/root/got").unwrap();
    first.sh("dd if=/dev/urandom of=/root/sent bs=64k count=64 2>/dev/null").unwrap();
    let address = second.address().unwrap();
    second.until("netstat -ltn | grep -q :9000", SOON).unwrap();
    first.sh(&format!("nc {address} 9000 </root/sent")).unwrap();
    let sent = first.sh("sha256sum </root/sent").unwrap();
    second.until(&format!("test \"$(sha256sum </root/got)\" = '{sent}'"), SOON).unwrap();

    // What one host writes another reads.
    third.sh("echo from the third | dd of=/dev/vda conv=fsync 2>/dev/null").unwrap();
    assert_eq!(
        first.sh("dd if=/dev/vda bs=15 count=1 2>/dev/null").unwrap(),
        "from the third\n".trim()
    );
    lab.shut_down().unwrap();
}

#[test]
fn what_goes_wrong_is_said_with_what_the_host_said() {
    let lab = lab().network(Net::None).memory_mib(320).build().unwrap();
    let host = lab.host(0);
    let refusal = host.sh("echo the reason >&2; false").unwrap_err();
    assert_eq!(refusal.code, RefusalCode::HostFailure);
    assert!(refusal.reason.contains("ended with 1") && refusal.reason.contains("the reason"));

    let refusal = host.run("echo before; sleep 1000", Duration::from_millis(300)).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Timeout);
    assert!(refusal.reason.contains("before"), "{refusal}");

    assert_eq!(host.address().unwrap_err().code, RefusalCode::InvalidArgument);

    // Files there and back, also one of several frames.
    let dir = tempfile::tempdir().unwrap();
    let (here, back) = (dir.path().join("here"), dir.path().join("back"));
    let bytes: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&here, &bytes).unwrap();
    host.push(&here, "/deep/er/there").unwrap();
    host.pull("/deep/er/there", &back).unwrap();
    assert!(std::fs::read(&back).unwrap() == bytes);
    let refusal = host.pull("/not/there", &back).unwrap_err();
    assert!(refusal.reason.contains("h0:/not/there"), "{refusal}");

    // A host that dies says so on its console, and the lab says so to the caller.
    let refusal = host.run("echo c >/proc/sysrq-trigger; sleep 60", SOON).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::Unavailable);
    assert!(refusal.reason.contains("sysrq triggered crash"), "{refusal}");
}

#[test]
fn a_lab_that_cannot_be_is_refused_before_anything_starts() {
    for impossible in [lab().hosts(0), lab().hosts(4), lab().memory_mib(8), lab().cpus(0)] {
        assert_eq!(impossible.build().unwrap_err().code, RefusalCode::InvalidArgument);
    }
    let refusal = lab().share("/no/such/disk").build().unwrap_err();
    assert!(refusal.reason.contains("/no/such/disk"), "{refusal}");
}
