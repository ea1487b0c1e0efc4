//! One measurement in QEMU's machine of virtio-mmio transports.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use ballast_guest::{Console, IMAGE, Params};

use crate::case::{Case, GUEST_MIB, PATIENCE};
use crate::host::{Host, MAC, TAP};

const QEMU: &str = "qemu-system-x86_64";
/// Without what some nested hosts offer to user space but cannot run.
const CPU: &str = "host,-cx16,-arch-capabilities";
/// Through the host's page cache, as our disks go.
pub(crate) const CACHED: &str = "cache=writeback,aio=io_uring";
/// Past it.
pub(crate) const DIRECT: &str = "cache=none,aio=native";

/// Ends the process also when the bench fails.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether there is one; says so when there is not.
pub(crate) fn is_here() -> bool {
    let is_here = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !is_here {
        eprintln!("SKIPPED: there is no {QEMU} to compare with");
    }
    is_here
}

/// In the unit of the case, with a disk opened in that way.
pub(crate) fn measure(case: &'static Case, host: &Host, drive: &str) -> f64 {
    host.settle();
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), IMAGE).unwrap();
    let mut qemu = host.network.within(|| start(case, host, drive, image.path())).unwrap();
    let pieces = said(&mut qemu);
    let mut console = Console::new();
    let end = Instant::now() + PATIENCE;
    let mut wait = |enough: &dyn Fn(&Console) -> bool| {
        while !enough(&console) {
            let left = end.saturating_duration_since(Instant::now());
            let bytes = pieces.recv_timeout(left);
            let bytes = bytes.unwrap_or_else(|error| panic!("{error}: {:?}", console.report()));
            console.push(console.next_offset(), &bytes);
        }
        case.rate(console.report())
    };
    wait(&|console| console.report().measuring);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        host.load(scope, case, &stop);
        let rate = wait(&|console| case.rate(console.report()).is_some());
        stop.store(true, Ordering::Relaxed);
        drop(qemu);
        rate.unwrap()
    })
}

fn start(case: &Case, host: &Host, drive: &str, kernel: &Path) -> Process {
    let params = Params {
        tsc_khz: Some(tsc_khz()),
        virtio_base: 0xfeb0_0000,
        virtio_stride: 0x200,
        ..case.params()
    };
    let child = Command::new(QEMU)
        .args(["-M", "microvm,ioapic2=off", "-global", "virtio-mmio.force-legacy=false"])
        .args(["-accel", "kvm", "-cpu", CPU, "-m", &GUEST_MIB.to_string(), "-nodefaults"])
        .args(["-no-user-config", "-display", "none", "-serial", "stdio"])
        // A thread of its own for the disk, as ours has.
        .args(["-object", "iothread,id=io", "-drive"])
        .arg(format!("id=disk,if=none,format=raw,file={},{drive}", host.disk().display()))
        .args(["-device", "virtio-blk-device,drive=disk,iothread=io", "-netdev"])
        .arg(format!("tap,id=lan,ifname={TAP},script=no,downscript=no"))
        .args(["-device", &format!("virtio-net-device,netdev=lan,mac={MAC}"), "-append"])
        .args([&params.to_cmdline(), "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    Process(child.unwrap())
}

/// What the guest writes, as it comes.
fn said(qemu: &mut Process) -> Receiver<Vec<u8>> {
    let mut stdout = qemu.0.stdout.take().unwrap();
    let (sender, pieces) = channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok(count @ 1..) = stdout.read(&mut bytes) {
            if sender.send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    pieces
}

fn tsc_khz() -> u32 {
    let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
    vm.create_vcpu(0).unwrap().get_tsc_khz().unwrap()
}
