//! What `/metrics` shows. Base units; labels are closed sets, VM names only where the configuration allows them.

use std::sync::Arc;

use ballast_model::{Refusal, RefusalCode, VmId};
use ballast_proto::v1::{HostLoad, VmLoad, VmState};
use prometheus::{
    Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::host::Host;
use crate::load::Observation;

/// Every metric of the agent.
#[derive(Clone)]
pub struct Metrics {
    /// Where they are registered.
    pub registry: Registry,
    /// Calls of AgentService by call and outcome.
    pub requests: IntCounterVec,
    /// Times it registered.
    pub registrations: IntCounter,
    /// 1 while registered.
    pub registered: IntGauge,
    /// Reports sent.
    pub reports: IntCounter,
    /// Reports not sent because the controller was slow.
    pub reports_dropped: IntCounter,
    vms: IntGaugeVec,
    host_cpu: Gauge,
    host_memory_used: IntGauge,
    host_memory_available: IntGauge,
    vm: Option<VmMetrics>,
}

#[derive(Clone)]
struct VmMetrics {
    cpu: GaugeVec,
    resident: IntGaugeVec,
    dirty: IntGaugeVec,
}

impl Metrics {
    /// Registers them; with series for each VM where `per_vm`.
    ///
    /// # Errors
    /// `Internal` when two have the same name.
    pub fn new(per_vm: bool) -> Result<Self, Refusal> {
        Self::build(per_vm).map_err(|error| {
            Refusal::new(RefusalCode::Internal, format!("metrics: {error}"), "report a defect")
        })
    }

    fn build(per_vm: bool) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let name = |name: &str, help: &str| Opts::new(format!("ballast_agent_{name}"), help);
        let vm = if per_vm {
            let of_vm = ["vm"];
            Some(VmMetrics {
                cpu: GaugeVec::new(name("vm_cpu_cores", "CPU used by a VM, in cores"), &of_vm)?,
                resident: IntGaugeVec::new(
                    name("vm_resident_bytes", "Memory a VM has touched"),
                    &of_vm,
                )?,
                dirty: IntGaugeVec::new(
                    name("vm_dirty_bytes_per_second", "Rate at which a VM writes its memory"),
                    &of_vm,
                )?,
            })
        } else {
            None
        };
        let metrics = Self {
            requests: IntCounterVec::new(
                name("requests_total", "Calls of AgentService by call and outcome"),
                &["call", "outcome"],
            )?,
            registrations: IntCounter::with_opts(name(
                "registrations_total",
                "Times this host registered with a controller",
            ))?,
            registered: IntGauge::with_opts(name("registered", "1 while registered"))?,
            reports: IntCounter::with_opts(name("reports_total", "Load reports sent"))?,
            reports_dropped: IntCounter::with_opts(name(
                "reports_dropped_total",
                "Load reports not sent because the controller was slow",
            ))?,
            vms: IntGaugeVec::new(name("vms", "VMs on this host by state"), &["state"])?,
            host_cpu: Gauge::with_opts(name("host_cpu_cores", "CPU used by the host, in cores"))?,
            host_memory_used: IntGauge::with_opts(name(
                "host_memory_used_bytes",
                "Memory used by the host",
            ))?,
            host_memory_available: IntGauge::with_opts(name(
                "host_memory_available_bytes",
                "Memory that new VMs could use",
            ))?,
            vm,
            registry,
        };
        metrics.register()?;
        Ok(metrics)
    }

    fn register(&self) -> prometheus::Result<()> {
        let registry = &self.registry;
        registry.register(Box::new(self.requests.clone()))?;
        registry.register(Box::new(self.registrations.clone()))?;
        registry.register(Box::new(self.registered.clone()))?;
        registry.register(Box::new(self.reports.clone()))?;
        registry.register(Box::new(self.reports_dropped.clone()))?;
        registry.register(Box::new(self.vms.clone()))?;
        registry.register(Box::new(self.host_cpu.clone()))?;
        registry.register(Box::new(self.host_memory_used.clone()))?;
        registry.register(Box::new(self.host_memory_available.clone()))?;
        if let Some(vm) = &self.vm {
            registry.register(Box::new(vm.cpu.clone()))?;
            registry.register(Box::new(vm.resident.clone()))?;
            registry.register(Box::new(vm.dirty.clone()))?;
        }
        Ok(())
    }

    /// Follows the observations for ever.
    pub async fn follow(
        self,
        host: Arc<Host>,
        mut observations: tokio::sync::watch::Receiver<Arc<Observation>>,
    ) {
        while observations.changed().await.is_ok() {
            let observation = observations.borrow_and_update().clone();
            self.count_vms(&host);
            if let Some(load) = &observation.host {
                self.show_host(load);
            }
            if let Some(vm) = &self.vm {
                vm.show(&observation.vms);
            }
        }
    }

    fn count_vms(&self, host: &Host) {
        let states = [
            (VmState::Created, "created"),
            (VmState::Running, "running"),
            (VmState::Paused, "paused"),
            (VmState::Incoming, "incoming"),
            (VmState::Stopped, "stopped"),
        ];
        let vms = host.vms();
        for (state, name) in states {
            let count = vms.iter().filter(|(_, view)| view.state == state).count();
            self.vms.with_label_values(&[name]).set(whole(count as u64));
        }
    }

    fn show_host(&self, load: &HostLoad) {
        self.host_cpu.set(load.cpu_used_millicores as f64 / 1000.0);
        self.host_memory_used.set(whole(load.memory_used_bytes));
        self.host_memory_available.set(whole(load.memory_available_bytes));
    }
}

impl VmMetrics {
    /// VMs that are gone lose their series.
    fn show(&self, vms: &std::collections::BTreeMap<VmId, VmLoad>) {
        self.cpu.reset();
        self.resident.reset();
        self.dirty.reset();
        for (vm, load) in vms {
            let label = [vm.as_str()];
            self.cpu.with_label_values(&label).set(load.cpu_millicores as f64 / 1000.0);
            self.resident.with_label_values(&label).set(whole(load.resident_bytes));
            self.dirty.with_label_values(&label).set(whole(load.dirty_bytes_per_sec));
        }
    }
}

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
