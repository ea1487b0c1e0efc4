//! Reads the load at an interval and keeps the last observation.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ballast_model::{Bytes, Millicores, Resources, Timestamp, VmId};
use ballast_proto::v1::{HostLoad, VmLoad};
use futures::StreamExt;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::proc::{self, CpuTicks, Traffic};
use crate::config::LoadScope;
use crate::driver::ProcessId;
use crate::host::Host;
use crate::vm::disks::LocalDisks;

/// Machines asked at once.
const ASKED_AT_ONCE: usize = 16;
/// How long one machine may take to answer.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest text read from one file of the kernel's.
const PROC_BYTES_MAX: u64 = 4 << 20;

/// The load at one time.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// When it was taken.
    pub at: Timestamp,
    /// Of the host; absent until two readings give a rate, and when `/proc` cannot be understood.
    pub host: Option<HostLoad>,
    /// Of each VM that answered.
    pub vms: BTreeMap<VmId, VmLoad>,
}

/// Takes observations.
pub struct Sampler {
    host: Arc<Host>,
    scope: LoadScope,
    ticks_per_sec: u64,
    page_bytes: u64,
    last: Option<Reading>,
}

/// Counters at one time.
struct Reading {
    at: Instant,
    /// The same time in clock ticks since boot.
    at_ticks: u64,
    cpu: CpuTicks,
    network: Traffic,
    disks: Traffic,
    /// Of this agent and its VMs' processes.
    processes: BTreeMap<u32, (proc::Process, Traffic)>,
}

impl Reading {
    /// What a process had used by then that has used this now. One that was there and not looked
    /// at, as are all that an agent finds when it starts, counts from now on: what it used in all
    /// its life would be a load that no host can have.
    fn used_by(&self, pid: u32, now: &(proc::Process, Traffic)) -> (u64, Traffic) {
        let (process, io) = now;
        match self.processes.get(&pid) {
            Some((earlier, io)) if earlier.start_ticks == process.start_ticks => {
                (earlier.cpu_ticks, *io)
            }
            _ if process.start_ticks >= self.at_ticks => (0, Traffic::default()),
            _ => (process.cpu_ticks, *io),
        }
    }
}

impl Sampler {
    /// A sampler that has read nothing yet.
    pub fn new(host: Arc<Host>, scope: LoadScope) -> Self {
        let page_bytes = rustix::param::page_size() as u64;
        let ticks_per_sec = rustix::param::clock_ticks_per_second();
        Self { host, scope, ticks_per_sec, page_bytes, last: None }
    }

    /// Takes observations for ever, at the interval that `interval` names at the time.
    pub async fn run(
        mut self,
        mut interval: watch::Receiver<Duration>,
        observations: watch::Sender<Arc<Observation>>,
    ) {
        loop {
            let observation = self.observe().await;
            observations.send_replace(Arc::new(observation));
            let pause = *interval.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = interval.changed() => {}
            }
        }
    }

    /// One observation.
    pub async fn observe(&mut self) -> Observation {
        let views = self.host.vms();
        let mut processes: Vec<ProcessId> = Vec::new();
        let mut asked = Vec::new();
        for (vm, view) in views {
            let Some(machine) = view.machine else { continue };
            processes.extend(machine.process());
            asked.push(async move {
                let sample = tokio::time::timeout(SAMPLE_TIMEOUT, machine.sample()).await;
                match sample {
                    Ok(Ok(load)) => Some((vm, load)),
                    Ok(Err(refusal)) => {
                        debug!(%vm, %refusal, "no sample");
                        None
                    }
                    Err(_) => {
                        warn!(%vm, "the VM's machine does not answer in time");
                        None
                    }
                }
            });
        }
        let vms: BTreeMap<VmId, VmLoad> = futures::stream::iter(asked)
            .buffer_unordered(ASKED_AT_ONCE)
            .filter_map(|sample| async move { sample })
            .collect()
            .await;
        let reading = self.read(&processes);
        let host = match (&self.last, &reading) {
            (Some(before), Some(after)) => self.host_load(before, after, &vms),
            _ => None,
        };
        let disks = self.host.context().disks.as_ref();
        let local_disk_free_bytes = disks.and_then(LocalDisks::room).map(Bytes::get);
        let host = host.map(|load| HostLoad { local_disk_free_bytes, ..load });
        self.last = reading;
        Observation { at: Timestamp::from(SystemTime::now()), host, vms }
    }

    fn read(&self, processes: &[ProcessId]) -> Option<Reading> {
        let mut found = BTreeMap::new();
        let own = std::process::id();
        for pid in processes.iter().map(|process| process.pid).chain([own]) {
            let Some(stat) =
                read_proc(&format!("{pid}/stat")).and_then(|text| proc::process(&text))
            else {
                continue;
            };
            let io = read_proc(&format!("{pid}/io")).and_then(|text| proc::process_io(&text));
            found.insert(pid, (stat, io.unwrap_or_default()));
        }
        let since_boot = clock_gettime(ClockId::Boottime);
        Some(Reading {
            at: Instant::now(),
            at_ticks: proc::ticks(Duration::try_from(since_boot).ok()?, self.ticks_per_sec),
            cpu: proc::cpu_ticks(&read_proc("stat")?)?,
            network: read_proc("net/dev").map(|text| proc::network(&text)).unwrap_or_default(),
            disks: read_proc("diskstats").map(|text| proc::disks(&text)).unwrap_or_default(),
            processes: found,
        })
    }

    fn host_load(
        &self,
        before: &Reading,
        after: &Reading,
        vms: &BTreeMap<VmId, VmLoad>,
    ) -> Option<HostLoad> {
        let time = after.at.duration_since(before.at);
        let machine = proc::memory(&read_proc("meminfo")?)?;
        match self.scope {
            LoadScope::Machine => Some(HostLoad {
                cpu_used_millicores: self.machine_cpu(before.cpu, after.cpu),
                memory_used_bytes: machine.total.saturating_sub(machine.available),
                memory_available_bytes: machine.available,
                network_receive_bytes_per_sec: rate(before.network, after.network, time).inward,
                network_send_bytes_per_sec: rate(before.network, after.network, time).outward,
                disk_read_bytes_per_sec: rate(before.disks, after.disks, time).inward,
                disk_write_bytes_per_sec: rate(before.disks, after.disks, time).outward,
                cpu_pressure_ratio: read_proc("pressure/cpu").and_then(|t| proc::pressure(&t)),
                memory_pressure_ratio: read_proc("pressure/memory")
                    .and_then(|t| proc::pressure(&t)),
                io_pressure_ratio: read_proc("pressure/io").and_then(|t| proc::pressure(&t)),
                ..HostLoad::default()
            }),
            LoadScope::Share => Some(self.share_load(before, after, time, machine, vms)),
        }
    }

    /// Of this agent and its VMs. Pressure is the machine's and therefore absent; so is the network.
    fn share_load(
        &self,
        before: &Reading,
        after: &Reading,
        time: Duration,
        machine: proc::Memory,
        vms: &BTreeMap<VmId, VmLoad>,
    ) -> HostLoad {
        let mut ticks = 0;
        let mut disk = Traffic::default();
        let mut used = Resources::default();
        for (pid, now) in &after.processes {
            let (process, io) = now;
            let (ticks_before, io_before) = before.used_by(*pid, now);
            ticks += process.cpu_ticks.saturating_sub(ticks_before);
            let disk_rate = rate(io_before, *io, time);
            disk.inward += disk_rate.inward;
            disk.outward += disk_rate.outward;
            used.memory += Bytes(process.resident_pages.saturating_mul(self.page_bytes));
        }
        used.cpu = self.millicores(ticks, time);
        if after.processes.len() <= 1 {
            // VMs without processes of their own say themselves what they use.
            used.cpu += Millicores(vms.values().map(|load| load.cpu_millicores).sum());
            used.memory += Bytes(vms.values().map(|load| load.resident_bytes).sum());
        }
        let room = self.host.capacity().memory - used.memory;
        HostLoad {
            cpu_used_millicores: used.cpu.get(),
            memory_used_bytes: used.memory.get(),
            memory_available_bytes: room.get().min(machine.available),
            disk_read_bytes_per_sec: disk.inward,
            disk_write_bytes_per_sec: disk.outward,
            ..HostLoad::default()
        }
    }

    fn millicores(&self, ticks: u64, time: Duration) -> Millicores {
        let used = Duration::from_millis(ticks.saturating_mul(1000) / self.ticks_per_sec.max(1));
        Millicores::from_cpu_time(used, time)
    }

    /// By the kernel's own count of time, which knows no interval that was missed.
    fn machine_cpu(&self, before: CpuTicks, after: CpuTicks) -> u64 {
        let busy = after.busy.saturating_sub(before.busy);
        let all = busy + after.idle.saturating_sub(before.idle);
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
        (busy * cores * 1000).checked_div(all).unwrap_or(0)
    }
}

fn rate(before: Traffic, after: Traffic, time: Duration) -> Traffic {
    Traffic {
        inward: proc::per_second(before.inward, after.inward, time),
        outward: proc::per_second(before.outward, after.outward, time),
    }
}

/// A file of `/proc`, of bounded length.
pub fn read_proc(name: &str) -> Option<String> {
    read_text(&Path::new("/proc").join(name))
}

/// A file that the kernel writes, of bounded length.
pub(super) fn read_text(path: &Path) -> Option<String> {
    use std::io::Read;
    let file = std::fs::File::open(path).ok()?;
    let mut text = String::new();
    file.take(PROC_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// What the machine has: all cores and all memory.
pub fn machine_capacity() -> Option<Resources> {
    let cores = std::thread::available_parallelism().ok()?.get() as u64;
    let memory = proc::memory(&read_proc("meminfo")?)?;
    Some(Resources::new(Millicores::cores(cores), Bytes(memory.total)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(cpu_ticks: u64, start_ticks: u64, io: u64) -> (proc::Process, Traffic) {
        let process = proc::Process { cpu_ticks, start_ticks, resident_pages: 1 };
        (process, Traffic { inward: io, outward: io })
    }

    #[test]
    fn a_process_counts_from_when_it_began_or_was_first_looked_at() {
        let reading = Reading {
            at: Instant::now(),
            at_ticks: 1000,
            cpu: CpuTicks::default(),
            network: Traffic::default(),
            disks: Traffic::default(),
            processes: [(7, used(50, 400, 3))].into(),
        };
        let check = |pid, now: (proc::Process, Traffic), ticks, io| {
            let (ticks_before, io_before) = reading.used_by(pid, &now);
            assert_eq!((ticks_before, io_before.inward), (ticks, io), "process {pid}: {now:?}");
        };
        check(7, used(90, 400, 5), 50, 3);
        check(8, used(90, 1000, 5), 0, 0); // began since
        check(7, used(90, 1200, 5), 0, 0); // the same, with a number that is used again
        check(8, used(86_400, 400, 5), 86_400, 5); // was there, with nobody looking
    }

    #[test]
    fn a_time_in_ticks() {
        assert_eq!(proc::ticks(Duration::from_millis(12_345), 100), 1234);
        assert_eq!(proc::ticks(Duration::MAX, 1_000_000), u64::MAX);
    }
}
