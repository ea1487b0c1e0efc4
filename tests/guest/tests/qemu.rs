//! The same program under QEMU with KVM, entered by PVH: what two hypervisors
//! make of one guest can be compared.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ballast_guest::{Console, IMAGE, Params};

/// Far more than firmware and guest take, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(90);
const QEMU: &str = "qemu-system-x86_64";
/// Without what some nested hosts offer to user space but cannot run.
const CPU: &str = "host,-cx16,-arch-capabilities";

/// Ends the process also when the test fails.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn why_not() -> Option<String> {
    if !Path::new("/dev/kvm").exists() {
        return Some("this machine has no /dev/kvm".to_owned());
    }
    let version = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status();
    version.err().map(|error| format!("{QEMU} cannot be started: {error}"))
}

fn tsc_khz() -> u32 {
    let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
    vm.create_vcpu(0).unwrap().get_tsc_khz().unwrap()
}

fn start(kernel: &Path, cmdline: &str) -> (Qemu, Receiver<Vec<u8>>) {
    let mut child = Command::new(QEMU)
        .args(["-accel", "kvm", "-cpu", CPU, "-m", "64", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-serial", "stdio", "-append", cmdline, "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (sender, console) = channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok(count @ 1..) = stdout.read(&mut bytes) {
            if sender.send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    (Qemu(child), console)
}

#[test]
fn the_guest_boots_under_qemu() {
    if let Some(why) = why_not() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), IMAGE).unwrap();
    let params = Params {
        heartbeat_ms: 50,
        duty_percent: 10,
        dirty_mib_per_sec: 4,
        check_mib_per_sec: 64,
        tsc_khz: Some(tsc_khz()),
        ..Params::default()
    };
    let (_qemu, pieces) = start(image.path(), &params.to_cmdline());
    let mut console = Console::new();
    let deadline = Instant::now() + PATIENCE;
    while console.report().heartbeats < 10 || console.report().check_passes < 2 {
        let patience = deadline.saturating_duration_since(Instant::now());
        match pieces.recv_timeout(patience) {
            Ok(bytes) => console.push(console.next_offset(), &bytes),
            Err(error) => panic!("{error}: {:#?}", console.report()),
        }
        assert_eq!(console.report().faults(), Vec::<String>::new());
    }
    assert_eq!(console.report().boots, 1);
}
