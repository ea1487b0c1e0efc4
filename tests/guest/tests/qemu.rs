//! The same program under QEMU with KVM, entered by PVH: what two hypervisors
//! make of one guest can be compared.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ballast_guest::net::{self, Lan};
use ballast_guest::{Console, ConsoleReport, CountClient, IMAGE, LogReport, Params};

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

/// Starts QEMU with these arguments besides what every guest needs.
fn start(kernel: &Path, params: &Params, more: &[String]) -> Guest {
    let mut child = Command::new(QEMU)
        .args(["-accel", "kvm", "-cpu", CPU, "-m", "64", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-serial", "stdio", "-append", &params.to_cmdline(), "-kernel"])
        .arg(kernel)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (sender, pieces) = channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok(count @ 1..) = stdout.read(&mut bytes) {
            if sender.send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    Guest { _qemu: Qemu(child), pieces, console: Console::new() }
}

struct Guest {
    _qemu: Qemu,
    pieces: Receiver<Vec<u8>>,
    console: Console,
}

impl Guest {
    /// Reads on until what it said so far is enough; a fault ends the test.
    fn wait(&mut self, enough: impl Fn(&ConsoleReport) -> bool) -> &ConsoleReport {
        let deadline = Instant::now() + PATIENCE;
        while !enough(self.console.report()) {
            let patience = deadline.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(patience) {
                Ok(bytes) => self.console.push(self.console.next_offset(), &bytes),
                Err(error) => panic!("{error}: {:#?}", self.console.report()),
            }
            assert_eq!(self.console.report().faults(), Vec::<String>::new());
        }
        self.console.report()
    }
}

fn image() -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), IMAGE).unwrap();
    image
}

#[test]
fn the_guest_boots_under_qemu() {
    if let Some(why) = why_not() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let params = Params {
        heartbeat_ms: 50,
        duty_percent: 10,
        dirty_mib_per_sec: 4,
        check_mib_per_sec: 64,
        tsc_khz: Some(tsc_khz()),
        ..Params::default()
    };
    let image = image();
    let mut guest = start(image.path(), &params, &[]);
    let report = guest.wait(|report| report.heartbeats >= 10 && report.check_passes >= 2);
    assert_eq!(report.boots, 1);
}

/// Parameters for a guest in QEMU's machine of virtio-mmio transports.
fn microvm() -> Params {
    Params {
        heartbeat_ms: 50,
        tsc_khz: Some(tsc_khz()),
        virtio_base: 0xfeb0_0000,
        virtio_stride: 0x200,
        ..Params::default()
    }
}

fn microvm_with(more: &[&str]) -> Vec<String> {
    let machine = ["-M", "microvm,ioapic2=off", "-global", "virtio-mmio.force-legacy=false"];
    machine.iter().chain(more).map(|&word| word.to_owned()).collect()
}

#[test]
fn the_log_goes_on_where_it_ended() {
    if let Some(why) = why_not() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let (image, disk) = (image(), tempfile::NamedTempFile::new().unwrap());
    disk.as_file().set_len(4 << 20).unwrap();
    let drive = format!("id=disk,if=none,format=raw,file={}", disk.path().display());
    let machine = microvm_with(&["-drive", &drive, "-device", "virtio-blk-device,drive=disk"]);
    let params = Params { log_per_sec: 400, log_bytes: 512, ..microvm() };

    let mut durable = 0;
    for run in 1..=2 {
        let mut guest = start(image.path(), &params, &machine);
        let more = durable + 40;
        durable = guest.wait(|report| report.durable_records >= more).durable_records;
        // Ended in the middle of whatever it does.
        drop(guest);
        let report = LogReport::of(disk.path(), params.log_bytes, durable).unwrap();
        assert_eq!(report.faults, Vec::<String>::new());
        assert_eq!(report.runs, run, "{report:?}");
    }
}

#[test]
fn the_guest_serves_over_a_tap_and_a_bridge() {
    if let Some(why) = why_not() {
        eprintln!("SKIPPED: {why}");
        return;
    }
    let lan = match Lan::new() {
        Ok(lan) => lan,
        Err(error) => {
            eprintln!("SKIPPED: no network namespaces for this user: {error}");
            return;
        }
    };
    lan.add_tap("tap0").unwrap();
    let machine = microvm_with(&[
        "-netdev",
        "tap,id=lan,ifname=tap0,script=no,downscript=no",
        "-device",
        "virtio-net-device,netdev=lan,mac=52:54:00:00:00:10",
    ]);
    let image = image();
    let params = Params { ip: Some((net::GUEST, net::PREFIX)), ..microvm() };
    let mut guest = lan.host.within(|| start(image.path(), &params, &machine)).unwrap();
    guest.wait(|report| report.on_network);

    let stream = lan.connect((net::GUEST, params.count_port).into(), PATIENCE).unwrap();
    let mut client = CountClient::new(stream, PATIENCE).unwrap();
    let first = client.ask().unwrap();
    for request in 1..100 {
        assert_eq!(client.ask().unwrap(), first + request);
    }
    assert!(guest.wait(|report| report.requests >= 100).on_network);

    check_echo(lan.connect((net::GUEST, params.echo_port).into(), PATIENCE).unwrap());
    // As often as it has room for connections and more.
    for _ in 0..10 {
        let stream = lan.connect((net::GUEST, params.count_port).into(), PATIENCE).unwrap();
        CountClient::new(stream, PATIENCE).unwrap().ask().unwrap();
    }
    assert_eq!(client.ask().unwrap_err().kind(), std::io::ErrorKind::Other, "others were counted");
}

/// More than all buffers on the way hold, back in order.
fn check_echo(stream: TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent: Vec<u8> = (0..300_000u32).map(|at| at.to_le_bytes()[at as usize % 3]).collect();
    let mut back = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&sent).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        });
        (&stream).read_to_end(&mut back).unwrap();
    });
    assert!(back == sent, "{} of {} bytes came back as they were", back.len(), sent.len());
}
