//! How soon a guest runs, and what its VMM takes beside the guest's memory, next to QEMU.
//!
//! `cargo bench -p ballast-vmm --bench start [-- <runs>]` starts the probe guest
//! with each VMM in turn and prints one JSON line a figure: median, least and
//! most over the runs. Interleaved, so that a busy moment of the machine falls
//! on all of them.
//!
//! * `first_output_ms`: from the start of the process to the guest's first byte
//!   on its serial port, which is one of its first instructions.
//! * `overhead_mib`: proportional set size of the process (`/proc/<pid>/smaps`)
//!   less the guest's memory, after the guest has run for a while.

// A bench may unwrap like a test.
#![allow(clippy::unwrap_used)]

#[path = "../tests/support/process.rs"]
mod process;

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ballast_guest::Params;
use process::{Lab, Vmm, command, have_kvm};

const RUNS: usize = 9;
const GUEST_MIB: u64 = 128;
const QEMU: &str = "qemu-system-x86_64";
/// Without what some nested hosts offer to user space but cannot run.
const QEMU_CPU: &str = "host,-cx16,-arch-capabilities";
/// How long a guest runs before its VMM's memory is looked at.
const SETTLE: Duration = Duration::from_millis(500);

/// Ends the process also when the bench fails.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One start.
#[derive(Debug, Clone, Copy)]
struct Figures {
    first_output_ms: f64,
    overhead_mib: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if !have_kvm() {
        return;
    }
    let runs = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(RUNS);
    let machines = ["microvm,x-option-roms=off,rtc=off", "pc"];
    let qemu = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !qemu {
        eprintln!("SKIPPED: there is no {QEMU} to compare with");
    }
    let mut figures: Vec<(String, Vec<Figures>)> = vec![("ballast-vmm".to_owned(), vec![])];
    if qemu {
        let name = |machine: &str| format!("qemu-{}", machine.split(',').next().unwrap());
        figures.extend(machines.iter().map(|machine| (name(machine), vec![])));
    }
    for _ in 0..runs {
        for (place, (_, figures)) in figures.iter_mut().enumerate() {
            figures.push(match place.checked_sub(1) {
                None => ours().await,
                Some(machine) => theirs(machines[machine]),
            });
        }
    }
    for (vmm, figures) in &figures {
        report(vmm, "first_output_ms", figures.iter().map(|one| one.first_output_ms));
        report(vmm, "overhead_mib", figures.iter().map(|one| one.overhead_mib));
    }
}

fn params() -> Params {
    Params { heartbeat_ms: 100, tsc_khz: Some(tsc_khz()), ..Params::default() }
}

fn tsc_khz() -> u32 {
    let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
    vm.create_vcpu(0).unwrap().get_tsc_khz().unwrap()
}

async fn ours() -> Figures {
    let lab = Lab::new();
    let spec = lab.spec(GUEST_MIB, &params());
    let socket = lab.path("vmm.sock");
    let began = Instant::now();
    let mut vmm =
        Vmm::adopt(command(&socket).env("RUST_LOG", "warn").spawn().unwrap(), &socket).await;
    vmm.boot(spec).await.unwrap();
    while vmm.console.next_offset() == 0 {
        vmm.read_console().await;
    }
    let first_output_ms = began.elapsed().as_secs_f64() * 1e3;
    tokio::time::sleep(SETTLE).await;
    let pid = vmm.status().await.pid;
    Figures { first_output_ms, overhead_mib: overhead_mib(pid) }
}

fn theirs(machine: &str) -> Figures {
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), ballast_guest::IMAGE).unwrap();
    let began = Instant::now();
    let mut qemu = qemu(machine, image.path());
    let mut stdout = qemu.0.stdout.take().unwrap();
    let mut byte = [0];
    // Firmware may clear the screen first; the guest's own first line begins with a B.
    while stdout.read(&mut byte).unwrap() == 1 && byte != *b"B" {}
    let first_output_ms = began.elapsed().as_secs_f64() * 1e3;
    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    std::thread::sleep(SETTLE);
    Figures { first_output_ms, overhead_mib: overhead_mib(qemu.0.id()) }
}

fn qemu(machine: &str, kernel: &Path) -> Process {
    let memory = GUEST_MIB.to_string();
    let child = Command::new(QEMU)
        .args(["-M", machine, "-accel", "kvm", "-cpu", QEMU_CPU, "-m", &memory, "-nodefaults"])
        .args(["-no-user-config", "-display", "none", "-serial", "stdio", "-kernel"])
        .arg(kernel)
        .args(["-append", &params().to_cmdline()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    Process(child.unwrap())
}

/// Proportional set size of all mappings but the guest's memory.
fn overhead_mib(pid: u32) -> f64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut size_kib, mut kib) = (0_u64, 0_u64);
    for line in smaps.lines() {
        let number = |rest: &str| rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        if let Some(rest) = line.strip_prefix("Size:") {
            size_kib = number(rest);
        } else if let Some(rest) = line.strip_prefix("Pss:")
            && size_kib < GUEST_MIB * 1024
        {
            kib += number(rest);
        }
    }
    kib as f64 / 1024.0
}

fn report(vmm: &str, figure: &str, values: impl Iterator<Item = f64>) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    println!(
        r#"{{"bench":"start","vmm":"{vmm}","figure":"{figure}","median":{:.2},"min":{:.2},"max":{:.2},"runs":{}}}"#,
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
        values.len()
    );
}
