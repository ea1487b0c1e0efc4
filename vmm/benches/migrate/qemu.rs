//! One migration by QEMU, tuned: two multifd channels, no bandwidth limit,
//! auto-converge on, huge pages where the kernel gives them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ballast_guest::net::Namespace;
use serde_json::{Value, json};

use crate::case::{
    Case, DOWNTIME_LIMIT_MS, Figures, Filling, PATIENCE, cpu_seconds, switchover_gap,
};
use crate::link::{DESTINATION, Link};

pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
/// Without what some nested hosts offer to user space but cannot run.
const CPU: &str = "host,-cx16,-arch-capabilities";
const CHANNELS: u32 = 2;
const BANDWIDTH_BYTES_PER_SEC: u64 = 10 << 30;
const PORT: u16 = 4444;
const VCPU: &str = "(CPU ";

/// Whether it is installed.
pub(crate) fn is_there() -> bool {
    Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).status().is_ok()
}

/// A QEMU and its monitor.
struct Qemu {
    child: Child,
    to: UnixStream,
    from: BufReader<UnixStream>,
    serial: PathBuf,
    events: Vec<String>,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qemu {
    fn start(dir: &Path, name: &str, at: &Namespace, case: &Case, incoming: bool) -> Self {
        let (monitor, serial) = (dir.join(format!("{name}.qmp")), dir.join(name));
        let kernel = dir.join("guest");
        std::fs::write(&kernel, ballast_guest::IMAGE).unwrap();
        let mut command = Command::new(PROGRAM);
        command
            .args(["-M", "pc", "-accel", "kvm", "-cpu", CPU, "-m", &case.mib.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial"])
            .arg(format!("file:{}", serial.display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .arg("-kernel")
            .arg(kernel)
            .args(["-append", &case.params().to_cmdline()]);
        if incoming {
            command.args(["-incoming", "defer"]);
        }
        let child = at.within(|| command.stdin(Stdio::null()).spawn()).unwrap().unwrap();
        let end = Instant::now() + PATIENCE;
        let to = loop {
            match UnixStream::connect(&monitor) {
                Ok(to) => break to,
                Err(error) => assert!(Instant::now() < end, "no monitor: {error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let from = BufReader::new(to.try_clone().unwrap());
        let mut qemu = Self { child, to, from, serial, events: vec![] };
        qemu.read();
        qemu.ask("qmp_capabilities", json!({}));
        let on = |name: &str| json!({"capability": name, "state": true});
        // One or the other: QEMU 7.2 does not take both.
        let capabilities = if case.post_copy {
            [on("postcopy-ram"), on("events"), on("auto-converge")]
        } else {
            [on("multifd"), on("events"), on("auto-converge")]
        };
        qemu.ask("migrate-set-capabilities", json!({ "capabilities": capabilities }));
        let parameters = json!({
            "multifd-channels": CHANNELS,
            "max-bandwidth": BANDWIDTH_BYTES_PER_SEC,
            "downtime-limit": DOWNTIME_LIMIT_MS,
        });
        qemu.ask("migrate-set-parameters", parameters);
        qemu
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.from.read_line(&mut line).unwrap() > 0, "QEMU has ended");
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, what: &str, arguments: Value) -> Value {
        let mut line = json!({"execute": what, "arguments": arguments}).to_string();
        line.push('\n');
        self.to.write_all(line.as_bytes()).unwrap();
        loop {
            let answer = self.read();
            match answer.get("event").and_then(Value::as_str) {
                Some(event) => self.events.push(event.to_owned()),
                None if answer.get("error").is_some() => panic!("{what}: {answer}"),
                None => return answer["return"].clone(),
            }
        }
    }

    /// Waits for an event; false when it does not come in time.
    fn await_event(&mut self, event: &str, until: Instant) -> bool {
        while !self.events.iter().any(|seen| seen == event) {
            // Asking brings what has happened, too.
            self.ask("query-status", json!({}));
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.serial).unwrap_or_default()
    }
}

/// Boots the guest, moves it, and hears it out.
pub(crate) fn migrate(case: &Case, link: &Link) -> Figures {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Qemu::start(dir.path(), "a", &link.source, case, false);
    let mut destination = Qemu::start(dir.path(), "b", &link.destination, case, true);
    let mut filling = Filling::default();
    while !filling.is_done(source.child.id(), case) {}
    while source.said().matches("\nH ").count() < 5 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let uri = json!({ "uri": format!("tcp:{DESTINATION}:{PORT}") });
    destination.ask("migrate-incoming", uri.clone());
    let pids = [source.child.id(), destination.child.id()];
    let cpu = || pids.iter().map(|pid| cpu_seconds(*pid, VCPU)).sum::<f64>();

    let (cpu_before, began) = (cpu(), Instant::now());
    source.ask("migrate", uri);
    if case.post_copy {
        // After the first pass, as its manual advises.
        while source.ask("query-migrate", json!({}))["ram"]["dirty-sync-count"].as_u64() < Some(2) {
            std::thread::sleep(Duration::from_millis(5));
        }
        source.ask("migrate-start-postcopy", json!({}));
    }
    if !destination.await_event("RESUME", began + PATIENCE) {
        return Figures::default();
    }
    let (mut total, mut cpu_after) = (began.elapsed(), cpu());
    let info = loop {
        let info = source.ask("query-migrate", json!({}));
        if case.post_copy {
            (total, cpu_after) = (began.elapsed(), cpu());
        }
        // Right at the end its figures may still be zero.
        if info["status"] == "completed" && info["total-time"] != 0 {
            break info;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let gap_ms = loop {
        match switchover_gap(&destination.said()) {
            Some(gap) => break gap,
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    Figures {
        ended: true,
        total_ms: total.as_secs_f64() * 1e3,
        downtime_ms: info["downtime"].as_f64().unwrap(),
        gap_ms,
        sent_bytes: info["ram"]["transferred"].as_f64().unwrap(),
        cpu_s_per_gb: (cpu_after - cpu_before) / case.gigabytes(),
        rounds: info["ram"]["dirty-sync-count"].as_f64().unwrap(),
    }
}
