//! What the hosts report, believed or not, and what it says about demand.
//!
//! ```text
//!  LoadReport ─▶ gate ─ no ─▶ Rejected{fault, why}: the host is unknown, its good reports count from 0
//!                  │ yes
//!                  ▼
//!              windows: the host's overhead, each VM's use ─▶ Telemetry, demand, dirty rate
//! ```
//!
//! No IO and no clock: the time is passed in. Nothing of this is in the store,
//! so a new leader starts with every host unknown. [`gate`] decides what is
//! believed, [`window`] what the samples stand for.
//!
//! A VM's window belongs to the VM, not to its host: it goes along when the VM
//! moves. Only samples of the host that reports the VM as running under the
//! latest epoch count, so that neither end of a migration spoils it.

pub mod gate;
pub mod window;

use std::collections::BTreeMap;
use std::time::Duration;

use ballast_model::{
    Bytes, BytesPerSec, Epoch, HostId, Millicores, Resources, Telemetry, Timestamp, VmId,
};
use ballast_proto::v1::{HostLoad, LoadReport, VmStatus};

use self::gate::Stream;
pub use self::gate::{Fault, Rejected};
use self::window::Window;

/// What counts as recent, late and absurd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How far back samples count.
    pub span: Duration,
    /// Good reports in a row after which a host is known, and samples after which a VM's demand is.
    pub good_min: usize,
    /// A host that has not reported for this long is unknown.
    pub stale_after: Duration,
    /// How far the clocks of host and controller may differ.
    pub skew_max: Duration,
    /// Use above this multiple of a capacity is a broken counter. Large, because a host that is
    /// given a share of a machine may overrun it while nobody else uses the rest.
    pub absurd_factor: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            span: Duration::from_secs(60),
            good_min: 3,
            stale_after: Duration::from_secs(5),
            skew_max: Duration::from_secs(30),
            absurd_factor: 64,
        }
    }
}

/// The windows of all hosts and VMs.
#[derive(Debug)]
pub struct Windows {
    limits: Limits,
    hosts: BTreeMap<HostId, HostWindow>,
    vms: BTreeMap<VmId, VmWindow>,
}

#[derive(Debug)]
struct HostWindow {
    capacity: Resources,
    since: Timestamp,
    stream: Stream,
    /// When the last report came, believed or not.
    heard: Option<Timestamp>,
    /// Why the last report that was not believed was not; cleared once the host is known again.
    rejected: Option<Rejected>,
    /// Believed reports in a row.
    good: usize,
    overhead: Window<Resources>,
    load: Option<HostLoad>,
    statuses: BTreeMap<VmId, VmStatus>,
    /// What was seen on the host otherwise than by a report, and when: stands until reports that
    /// were under way at the time have come.
    seen: BTreeMap<VmId, (Timestamp, VmStatus)>,
    /// CPU time counters of the last report, each with the epoch it was counted under.
    cpu_times: BTreeMap<VmId, (u64, u64)>,
}

#[derive(Debug, Default)]
struct VmWindow {
    epoch: Option<Epoch>,
    samples: Window<VmSample>,
}

#[derive(Debug, Clone, Copy)]
struct VmSample {
    used: Resources,
    dirty: BytesPerSec,
}

/// What a believed report said, sorted.
struct Believed {
    load: HostLoad,
    overhead: Resources,
    statuses: BTreeMap<VmId, VmStatus>,
}

impl Windows {
    /// No host, no VM.
    pub fn new(limits: Limits) -> Self {
        Self { limits, hosts: BTreeMap::new(), vms: BTreeMap::new() }
    }

    /// A host registered, for the first time or again: it is unknown until it has reported enough.
    pub fn host_registered(&mut self, host: HostId, capacity: Resources, now: Timestamp) {
        let window = HostWindow {
            capacity,
            since: now,
            stream: Stream::default(),
            heard: None,
            rejected: None,
            good: 0,
            overhead: Window::default(),
            load: None,
            statuses: BTreeMap::new(),
            seen: BTreeMap::new(),
            cpu_times: BTreeMap::new(),
        };
        self.hosts.insert(host, window);
    }

    /// A new stream of reports begins; its sequence starts again.
    pub fn stream_began(&mut self, host: &HostId) {
        if let Some(window) = self.hosts.get_mut(host) {
            window.stream = Stream::default();
            window.cpu_times.clear();
        }
    }

    /// A VM was seen on `host` otherwise than by a report, e.g. in the answer to its creation.
    /// Stands for a VM that reports do not name yet.
    pub fn vm_seen(&mut self, host: &HostId, vm: VmId, status: VmStatus, now: Timestamp) {
        if let Some(window) = self.hosts.get_mut(host) {
            // What the last report said of it is older.
            window.statuses.remove(&vm);
            window.seen.insert(vm, (now, status));
        }
    }

    /// Takes one report of `host`. `None`: the host never registered.
    pub fn report(
        &mut self,
        host: &HostId,
        report: LoadReport,
        now: Timestamp,
    ) -> Option<Result<(), Rejected>> {
        let window = self.hosts.get_mut(host)?;
        window.heard = Some(now);
        let believed = match window.examine(&self.limits, report, now) {
            Ok(believed) => believed,
            Err(rejected) => {
                window.good = 0;
                window.rejected = Some(rejected.clone());
                return Some(Err(rejected));
            }
        };
        window.good = window.good.saturating_add(1);
        if window.good >= self.limits.good_min {
            window.rejected = None;
        }
        window.overhead.push(now, believed.overhead, self.limits.span);
        window.load = Some(believed.load);
        window.statuses = believed.statuses;
        let fresh = self.limits.stale_after;
        window
            .seen
            .retain(|vm, (when, _)| now.since(*when) < fresh && !window.statuses.contains_key(vm));
        for (vm, status) in window.statuses.iter().filter(|(_, status)| gate::is_running(status)) {
            if let Some(load) = &status.load {
                let sample =
                    VmSample { used: used(load), dirty: BytesPerSec(load.dirty_bytes_per_sec) };
                let window = self.vms.entry(vm.clone()).or_default();
                window.take(Epoch(status.epoch), sample, now, self.limits.span);
            }
        }
        Some(Ok(()))
    }

    /// Whether the host's load is known, and what it uses besides its VMs.
    pub fn telemetry(&self, host: &HostId, now: Timestamp) -> Telemetry {
        let unknown = |why: String| Telemetry::Unknown { why };
        let Some(window) = self.hosts.get(host) else {
            return unknown("it has not registered with this controller".to_owned());
        };
        let silent = now.since(window.heard.unwrap_or(window.since));
        if silent > self.limits.stale_after {
            return unknown(format!("no report for {:.1} s", silent.as_secs_f64()));
        }
        let (good, needed) = (window.good, self.limits.good_min);
        if let Some(rejected) = &window.rejected {
            return unknown(format!("{rejected}; {good} of {needed} good reports since"));
        }
        if good < needed {
            return unknown(format!("{good} of {needed} reports so far"));
        }
        let level = |of: fn(&Resources) -> u64| window.overhead.level(of);
        let overhead =
            Resources::new(Millicores(level(|o| o.cpu.get())), Bytes(level(|o| o.memory.get())));
        Telemetry::Known { overhead }
    }

    /// The last load of the host that was believed.
    pub fn host_load(&self, host: &HostId) -> Option<&HostLoad> {
        self.hosts.get(host)?.load.as_ref()
    }

    /// When the host was last heard of, believed or not.
    pub fn last_heard(&self, host: &HostId) -> Option<Timestamp> {
        self.hosts.get(host)?.heard
    }

    /// What the host said last of the VM, or what was seen of it since.
    pub fn status(&self, host: &HostId, vm: &VmId) -> Option<&VmStatus> {
        let window = self.hosts.get(host)?;
        window.statuses.get(vm).or_else(|| window.seen.get(vm).map(|(_, status)| status))
    }

    /// Every VM the host named last.
    pub fn statuses(&self, host: &HostId) -> impl Iterator<Item = (&VmId, &VmStatus)> {
        self.hosts.get(host).into_iter().flat_map(|window| &window.statuses)
    }

    /// What the VM would use; `None` while there are too few samples or none within the span.
    pub fn demand(&self, vm: &VmId, now: Timestamp) -> Option<Resources> {
        let samples = &self.vms.get(vm)?.samples;
        let fresh = samples.newest().is_some_and(|at| now.since(at) <= self.limits.span);
        (fresh && samples.len() >= self.limits.good_min).then(|| {
            Resources::new(
                Millicores(samples.demand(|sample| sample.used.cpu.get())),
                Bytes(samples.demand(|sample| sample.used.memory.get())),
            )
        })
    }

    /// How fast the VM dirties memory; zero while nothing is known.
    pub fn dirty_rate(&self, vm: &VmId) -> BytesPerSec {
        let rate = |window: &VmWindow| window.samples.demand(|sample| sample.dirty.get());
        BytesPerSec(self.vms.get(vm).map_or(0, rate))
    }

    /// A host is gone.
    pub fn forget_host(&mut self, host: &HostId) {
        self.hosts.remove(host);
    }

    /// Drops the windows of VMs for which `keep` answers no.
    pub fn retain_vms(&mut self, keep: impl Fn(&VmId) -> bool) {
        self.vms.retain(|vm, _| keep(vm));
    }
}

fn used(load: &ballast_proto::v1::VmLoad) -> Resources {
    Resources::new(Millicores(load.cpu_millicores), Bytes(load.resident_bytes))
}

impl HostWindow {
    /// Passes the report through the gate. Order and counters are noted even when it does not pass.
    fn examine(
        &mut self,
        limits: &Limits,
        report: LoadReport,
        now: Timestamp,
    ) -> Result<Believed, Rejected> {
        let order = gate::check_order(&self.stream, &report);
        let time = gate::check_time(limits, &report, now);
        if order.as_ref().err().is_none_or(|rejected| rejected.fault != Fault::Repeated) {
            self.stream.sequence = report.sequence;
            // A clock that was wrong for a moment must not make what follows look old.
            if time.is_ok() {
                self.stream.measured = Some(Timestamp(report.at_unix_millis));
            }
        }
        order?;
        time?;
        gate::check_size(&report)?;
        let load = *gate::check_host(limits, &self.capacity, &report)?;
        let before = std::mem::take(&mut self.cpu_times);
        let mut statuses = BTreeMap::new();
        let mut by_vms = Resources::default();
        let mut fault = None;
        for status in report.vms {
            let vm: VmId = status.vm.parse().map_err(gate::malformed)?;
            let earlier = before.get(&vm).filter(|(epoch, _)| *epoch == status.epoch);
            let checked = gate::check_vm(limits, &self.capacity, &status, earlier.map(|e| e.1));
            fault = fault.or(checked.err());
            if let Some(load) = &status.load {
                by_vms += used(load);
                self.cpu_times.insert(vm.clone(), (status.epoch, load.cpu_time_nanos));
            }
            if statuses.insert(vm, status).is_some() {
                return Err(gate::malformed("a VM stands in the report twice"));
            }
        }
        fault.map_or(Ok(()), Err)?;
        gate::check_sum(&load, &by_vms)?;
        let all =
            Resources::new(Millicores(load.cpu_used_millicores), Bytes(load.memory_used_bytes));
        Ok(Believed { load, overhead: all - by_vms, statuses })
    }
}

impl VmWindow {
    fn take(&mut self, epoch: Epoch, sample: VmSample, now: Timestamp, span: Duration) {
        if self.epoch.is_some_and(|latest| epoch < latest) {
            return;
        }
        self.epoch = Some(epoch);
        self.samples.push(now, sample, span);
    }
}

#[cfg(test)]
mod tests;
