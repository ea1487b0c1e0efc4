//! `lab show`: a Linux guest's life in a host of the lab, step by step, with what was seen.
//!
//! A VM is created through controller and agent, boots Debian's kernel to a
//! shell prompt, answers on its network, writes its disk, goes to a file, comes
//! back in another process and goes on. Each step checks what it shows: a step
//! that does not hold ends the show with the reason.

use std::time::{Duration, Instant};

use ballast_model::Refusal;
use clap::Args;

use crate::cluster::Cluster;
use crate::guest::LinuxGuest;
use crate::host::Host;
use crate::lab::{Lab, Net};
use crate::vm::{LinuxVm, unexpected};

/// The longest a step of the cluster may take.
const STEP_LIMIT: Duration = Duration::from_secs(300);
const VM: &str = "debian";
const DISK: &str = "/vm/disk.img";
const DISK_MIB: u32 = 16;
const SNAPSHOT: &str = "/var/lib/ballast/snapshots/debian";
/// What the guest's shell asks its terminal, and nobody answers.
const CURSOR_QUERY: &str = "\x1b[6n";
/// What is sent over the tap, in MiB.
const TRANSFER_MIB: u32 = 4;

/// How it may differ.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ShowArgs {
    /// Memory of the guest, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(128..=2048))]
    guest_memory_mib: u32,
}

/// Runs the show and prints what it sees.
///
/// # Errors
/// What a step says that does not hold.
pub(crate) fn run(args: &ShowArgs) -> Result<(), Refusal> {
    let began = Instant::now();
    let dir = tempfile::tempdir().map_err(|error| {
        crate::refuse::machine("cannot create a directory", error, "set TMPDIR")
    })?;
    let guest = LinuxGuest::write(dir.path())?;
    // The guest, its snapshot, the disk and all programs.
    let memory_mib = 2 * args.guest_memory_mib + 512;
    let lab = Lab::builder().memory_mib(memory_mib).network(Net::None);
    let lab = guest.give_to(lab).build()?;
    let cluster = start_cluster(&lab, began)?;
    let vm = LinuxVm::new(&cluster, VM, 0);
    let stage = Stage { began, host: lab.host(0), cluster: &cluster, vm };
    stage.boot(guest.kernel.release(), args.guest_memory_mib)?;
    stage.network()?;
    let checksum = stage.disk()?;
    stage.snapshot_and_restore(&checksum)?;
    stage.power_off()?;
    lab.shut_down()?;
    say(began, "the host is off");
    Ok(())
}

fn start_cluster(lab: &Lab, began: Instant) -> Result<Cluster<'_>, Refusal> {
    let host = lab.host(0);
    let boot = lab.boot_times().first().copied().unwrap_or_default();
    say(began, &format!("a KVM host is up, booted in {:.1} s", boot.as_secs_f64()));
    show(&host.sh("uname -a; grep -m 1 -o 'svm' /proc/cpuinfo; ls -l /dev/kvm")?);
    host.sh(&format!("dd if=/dev/zero of={DISK} bs=1M count={DISK_MIB} 2>/dev/null"))?;
    let cluster = Cluster::start(lab)?;
    say(began, "controller and agent run on it");
    Ok(cluster)
}

/// Where the show happens.
struct Stage<'a> {
    began: Instant,
    host: &'a Host,
    cluster: &'a Cluster<'a>,
    vm: LinuxVm<'a>,
}

impl Stage<'_> {
    /// Creates the VM; from its console to the first command typed at it.
    fn boot(&self, release: &str, memory_mib: u32) -> Result<(), Refusal> {
        let create = self.vm.create_words(&format!(
            "--disk {DISK},local --net bridge=br0 --cpus 2 --memory {memory_mib}MiB"
        ));
        self.say(&format!("ballast {create}"));
        show(&self.ballast(&create)?);
        self.vm.wait_for_prompt()?;
        self.say("the guest's shell is at its prompt");

        let said = self.vm.typed("uname -a; nproc")?;
        show(&said);
        check(said.contains(release), "Debian's own kernel runs", &said)?;
        check(said.lines().any(|line| line.trim() == "2"), "it has two CPUs", &said)
    }

    fn network(&self) -> Result<(), Refusal> {
        let ping = format!("ping -c 3 -W 5 {}", self.vm.address());
        self.say(&ping);
        show(&self.host.sh(&ping)?);

        self.host.sh(&format!("dd if=/dev/urandom of=/vm/sent bs=1M count={TRANSFER_MIB}"))?;
        let sent = self.host.sh("sha256sum </vm/sent")?;
        self.vm.sh("nc -l -p 9000 -e dd of=/run/got >/dev/null 2>&1 &")?;
        self.vm.until("netstat -ltn | grep -q :9000")?;
        let began = Instant::now();
        self.host.run(&format!("nc {} 9000 </vm/sent", self.vm.address()), STEP_LIMIT)?;
        let rate = f64::from(TRANSFER_MIB) / began.elapsed().as_secs_f64();
        self.vm.until("! pidof dd")?;
        let got = self.vm.sh("sha256sum </run/got")?;
        self.say(&format!("{TRANSFER_MIB} MiB through the tap by TCP, {rate:.1} MiB/s"));
        show(&format!("sent {sent}\ngot  {got}"));
        check(sent == got, "what was sent arrived", &got)
    }

    /// Fills the disk; its checksum.
    fn disk(&self) -> Result<String, Refusal> {
        self.vm.sh("dd if=/dev/urandom of=/dev/vda bs=1M conv=fsync 2>/dev/null; sync")?;
        let inside = self.vm.sh("sha256sum </dev/vda")?;
        let outside = self.host.sh(&format!("sha256sum <{DISK}"))?;
        self.say("the guest has written all of its disk");
        show(&format!("guest {inside}\nhost  {outside}"));
        check(inside == outside, "guest and host see the same disk", &outside)?;
        Ok(inside)
    }

    fn snapshot_and_restore(&self, checksum: &str) -> Result<(), Refusal> {
        let process = self.host.sh("pidof ballast-vmm")?;
        let before = self.vm.count()?;
        show(&self.ballast(&format!("vm snapshot {VM} --to {SNAPSHOT} --stop"))?);
        let size = self.host.sh(&format!("du -m {SNAPSHOT} | cut -f 1"))?;
        self.say(&format!(
            "the VM is in a file of {size} MiB; its counter stood at {before} or more"
        ));
        self.host.until("! pidof ballast-vmm", STEP_LIMIT)?;

        self.cluster.wait_for_hosts()?;
        show(&self.ballast(&format!("vm restore --from {SNAPSHOT} --host h0"))?);
        let restored = self.host.sh("pidof ballast-vmm")?;
        check(restored != process, "another process runs it", &restored)?;
        // Until its network is known again at both ends, connections fail.
        self.vm.until("true")?;
        let first = self.vm.count()?;
        self.vm.until(&format!("test $(cat /run/count) -gt $(({first} + 5))"))?;
        let after = self.vm.count()?;
        self.say(&format!("restored: process {process} is now {restored}, the counter goes on"));
        show(&format!("before {before}\nafter  {first}, {after}"));
        check(
            first >= before && after > first,
            "the guest goes on where it stood",
            &after.to_string(),
        )?;

        // From the disk: what the guest remembers of it came back with its memory.
        let again = self.vm.sh("echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vda")?;
        self.say("the disk after the restore");
        show(&format!("before {checksum}\nafter  {again}"));
        check(again == checksum, "the disk is as it was", &again)?;
        let ping = format!("ping -c 2 -W 5 {}", self.vm.address());
        show(&self.host.sh(&ping)?);
        let said = self.vm.typed("uptime")?;
        show(&said);
        check(said.contains("load average"), "the console can be typed at", &said)
    }

    fn power_off(&self) -> Result<(), Refusal> {
        self.vm.leave("poweroff -f")?;
        let why = self.vm.ended()?;
        self.say(&format!("the guest has ended; {why}"));
        check(why.starts_with("power-off:"), "the guest switched itself off", &why)?;
        self.ballast(&format!("vm rm {VM}")).map(drop)
    }

    fn ballast(&self, args: &str) -> Result<String, Refusal> {
        self.cluster.ballast(args, STEP_LIMIT)
    }

    fn say(&self, what: &str) {
        say(self.began, what);
    }
}

fn say(began: Instant, what: &str) {
    println!("{:6.1} s  {what}", began.elapsed().as_secs_f64());
}

fn show(text: &str) {
    for line in text.lines() {
        println!("          {}", line.replace(CURSOR_QUERY, "").trim_end());
    }
}

fn check(holds: bool, what: &str, seen: &str) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(unexpected(what, seen)) }
}
