//! `lab show`: a Linux guest's life in a host of the lab, step by step, with what was seen.
//!
//! A VM is created through controller and agent, boots Debian's kernel to a
//! shell prompt, answers on its network, writes its disk, goes to a file, comes
//! back in another process and goes on. Each step checks what it shows: a step
//! that does not hold ends the show with the reason.

use std::time::{Duration, Instant};

use ballast_model::{Refusal, RefusalCode};
use clap::Args;

use crate::cluster::Cluster;
use crate::guest::LinuxGuest;
use crate::host::Host;
use crate::lab::{Lab, Net};

/// The longest a step of the cluster may take.
const STEP_LIMIT: Duration = Duration::from_secs(300);
/// How long a guest may take to its prompt. It takes about 15 s on a quiet machine.
const PROMPT_LIMIT: Duration = Duration::from_secs(300);
const VM: &str = "debian";
const VM_ADDRESS: &str = "10.78.0.2";
const BRIDGE_ADDRESS: &str = "10.78.0.1";
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
    let lab = Lab::builder().cpus(2).memory_mib(memory_mib).network(Net::None);
    let lab = guest.give_to(lab).build()?;
    let cluster = start_cluster(&lab, began)?;
    let guest_memory_mib = args.guest_memory_mib;
    let stage = Stage { began, host: lab.host(0), cluster: &cluster, guest_memory_mib };
    stage.boot(guest.kernel.release())?;
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
    host.sh(&format!(
        "ip link add br0 type bridge && ip address add {BRIDGE_ADDRESS}/24 dev br0 && \
         ip link set br0 up && dd if=/dev/zero of={DISK} bs=1M count={DISK_MIB} 2>/dev/null"
    ))?;
    let cluster = Cluster::start(lab)?;
    say(began, "controller and agent run on it");
    Ok(cluster)
}

/// Where the show happens.
struct Stage<'a> {
    began: Instant,
    host: &'a Host,
    cluster: &'a Cluster<'a>,
    guest_memory_mib: u32,
}

impl Stage<'_> {
    /// Creates the VM; from its console to the first command typed at it.
    fn boot(&self, release: &str) -> Result<(), Refusal> {
        let args = LinuxGuest::create_args(&format!("{VM_ADDRESS}/24"));
        let create = format!(
            "vm create {VM} {args} --disk {DISK},local --net bridge=br0 --cpus 2 --memory {}MiB",
            self.guest_memory_mib
        );
        self.say(&format!("ballast {create}"));
        show(&self.ballast(&create)?);
        let prompt = LinuxGuest::PROMPT.trim_end();
        let console = format!("ballast vm console {VM}");
        let wait = format!("{}; {console} | grep -q '{prompt}'", self.cluster.environment());
        self.host.until(&wait, PROMPT_LIMIT)?;
        self.say("the guest's shell is at its prompt");

        let said = self.typed("uname -a; nproc")?;
        show(&said);
        check(said.contains(release), "Debian's own kernel runs", &said)?;
        check(said.lines().any(|line| line.trim() == "2"), "it has two CPUs", &said)
    }

    fn network(&self) -> Result<(), Refusal> {
        let ping = format!("ping -c 3 -W 5 {VM_ADDRESS}");
        self.say(&ping);
        show(&self.host.sh(&ping)?);

        self.host.sh(&format!("dd if=/dev/urandom of=/vm/sent bs=1M count={TRANSFER_MIB}"))?;
        let sent = self.host.sh("sha256sum </vm/sent")?;
        self.in_guest("nc -l -p 9000 -e dd of=/run/got >/dev/null 2>&1 &")?;
        self.in_guest_until("netstat -ltn | grep -q :9000")?;
        let began = Instant::now();
        self.host.run(&format!("nc {VM_ADDRESS} 9000 </vm/sent"), STEP_LIMIT)?;
        let rate = f64::from(TRANSFER_MIB) / began.elapsed().as_secs_f64();
        let got = self.in_guest("sha256sum </run/got")?;
        self.say(&format!("{TRANSFER_MIB} MiB through the tap by TCP, {rate:.1} MiB/s"));
        show(&format!("sent {sent}\ngot  {got}"));
        check(sent == got, "what was sent arrived", &got)
    }

    /// Fills the disk; its checksum.
    fn disk(&self) -> Result<String, Refusal> {
        self.in_guest("dd if=/dev/urandom of=/dev/vda bs=1M conv=fsync 2>/dev/null; sync")?;
        let inside = self.in_guest("sha256sum </dev/vda")?;
        let outside = self.host.sh(&format!("sha256sum <{DISK}"))?;
        self.say("the guest has written all of its disk");
        show(&format!("guest {inside}\nhost  {outside}"));
        check(inside == outside, "guest and host see the same disk", &outside)?;
        Ok(inside)
    }

    fn snapshot_and_restore(&self, checksum: &str) -> Result<(), Refusal> {
        let process = self.host.sh("pidof ballast-vmm")?;
        let before = self.count()?;
        show(&self.ballast(&format!("vm snapshot {VM} --to {SNAPSHOT} --stop"))?);
        let size = self.host.sh(&format!("du -m {SNAPSHOT} | cut -f 1"))?;
        self.say(&format!(
            "the VM is in a file of {size} MiB; its counter stood at {before} or more"
        ));
        self.host.until("! pidof ballast-vmm", STEP_LIMIT)?;

        show(&self.ballast(&format!("vm restore --from {SNAPSHOT} --host h0"))?);
        let restored = self.host.sh("pidof ballast-vmm")?;
        check(restored != process, "another process runs it", &restored)?;
        // Until its network is known again at both ends, connections fail.
        self.in_guest_until("true")?;
        let first = self.count()?;
        self.in_guest_until(&format!("test $(cat /run/count) -gt $(({first} + 5))"))?;
        let after = self.count()?;
        self.say(&format!("restored: process {process} is now {restored}, the counter goes on"));
        show(&format!("before {before}\nafter  {first}, {after}"));
        check(
            first >= before && after > first,
            "the guest goes on where it stood",
            &after.to_string(),
        )?;

        let again = self.in_guest("sha256sum </dev/vda")?;
        self.say("the disk after the restore");
        show(&format!("before {checksum}\nafter  {again}"));
        check(again == checksum, "the disk is as it was", &again)?;
        let ping = format!("ping -c 2 -W 5 {VM_ADDRESS}");
        show(&self.host.sh(&ping)?);
        let said = self.typed("uptime")?;
        show(&said);
        check(said.contains("load average"), "the console can be typed at", &said)
    }

    fn power_off(&self) -> Result<(), Refusal> {
        self.in_guest("poweroff -f &")?;
        let off = format!("{}; ballast vm show {VM}", self.cluster.environment());
        let gone = format!("{off} | grep -iq -e stopped -e power");
        self.host.until(&gone, STEP_LIMIT)?;
        self.say("the guest switched itself off");
        show(&self.ballast(&format!("vm show {VM}"))?);
        self.ballast(&format!("vm rm {VM}")).map(drop)
    }

    fn count(&self) -> Result<u64, Refusal> {
        let text = self.in_guest("cat /run/count")?;
        text.parse().map_err(|_| unexpected("the guest's counter", &text))
    }

    fn ballast(&self, args: &str) -> Result<String, Refusal> {
        self.cluster.ballast(args, STEP_LIMIT)
    }

    /// Runs a command by typing it at the guest's console; what the console showed.
    fn typed(&self, command: &str) -> Result<String, Refusal> {
        let script = format!(
            "{}; echo '{command}' | ballast vm console {VM} --attach",
            self.cluster.environment()
        );
        self.host.run(&script, STEP_LIMIT)?.ok(self.host, &script)
    }

    /// Runs a command in the guest by its network; what it printed.
    fn in_guest(&self, command: &str) -> Result<String, Refusal> {
        let script = shell_of_guest(command);
        self.host.run(&script, STEP_LIMIT)?.ok(self.host, &script)
    }

    /// Repeats a command in the guest until it succeeds.
    fn in_guest_until(&self, command: &str) -> Result<(), Refusal> {
        let script =
            format!("{} | grep -q reached", shell_of_guest(&format!("{command} && echo reached")));
        self.host.until(&script, STEP_LIMIT).map(drop)
    }

    fn say(&self, what: &str) {
        say(self.began, what);
    }
}

/// A script for the host that has the guest's shell run `command`.
fn shell_of_guest(command: &str) -> String {
    let quoted = command.replace('\'', r"'\''");
    format!("echo '{quoted}' | nc {VM_ADDRESS} {}", LinuxGuest::SHELL_PORT)
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

fn unexpected(what: &str, seen: &str) -> Refusal {
    Refusal::new(
        RefusalCode::Internal,
        format!("not so: {what}; seen: {seen}"),
        "report a defect with this output",
    )
}
