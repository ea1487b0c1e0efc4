//! Load as last heard: [`Windows`] shared by those who report and those who plan.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ballast_model::{
    Bytes, BytesPerSec, HostId, Refusal, RefusalCode, Resources, Telemetry, Timestamp, VmId,
};
use ballast_proto::v1;

use crate::config::TelemetryConfig;
use crate::now;
use crate::telemetry::{Limits, Rejected, Windows};

/// Load of all hosts and VMs. Memory only: a new leader starts with every host unknown.
#[derive(Debug)]
pub struct Live(Mutex<Windows>);

/// A host as last heard.
#[derive(Debug, Clone)]
pub struct HostView {
    /// Whether its load is known.
    pub telemetry: Telemetry,
    /// Its last believed load.
    pub load: Option<v1::HostLoad>,
    /// When the last report came.
    pub last_report: Option<Timestamp>,
}

/// A VM as its owner said last.
#[derive(Debug, Clone)]
pub struct VmView {
    /// What the host said; `None` when it said nothing of this VM.
    pub status: Option<v1::VmStatus>,
    /// What it would use; `None` while there are too few samples.
    pub demand: Option<Resources>,
    /// How fast it dirties memory.
    pub dirty_rate: BytesPerSec,
    /// What its local disks take.
    pub local_disks: Bytes,
    /// Whether the host reported at all since it registered.
    pub host_reports: bool,
}

impl Live {
    /// No host, no VM.
    pub fn new(config: &TelemetryConfig) -> Self {
        Self(Mutex::new(Windows::new(Limits {
            span: Duration::from_millis(config.window_ms),
            good_min: config.samples_min,
            stale_after: Duration::from_millis(config.stale_after_ms),
            ..Limits::default()
        })))
    }

    fn windows(&self) -> MutexGuard<'_, Windows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host has registered: it is unknown until it has reported enough.
    pub fn registered(&self, host: &HostId, capacity: Resources) {
        self.windows().host_registered(host.clone(), capacity, now());
    }

    /// A new stream of reports begins; its sequence starts again.
    pub fn stream_begins(&self, host: &HostId) {
        self.windows().stream_began(host);
    }

    /// Takes one report; answers with why it is not believed, if it is not.
    ///
    /// # Errors
    /// `NotFound` when the host has not registered with this controller.
    pub fn report(
        &self,
        host: &HostId,
        report: v1::LoadReport,
    ) -> Result<Result<(), Rejected>, Refusal> {
        self.windows().report(host, report, now()).ok_or_else(|| {
            Refusal::new(
                RefusalCode::NotFound,
                format!("host {host} has not registered with this controller"),
                "register, then report",
            )
        })
    }

    /// A VM was seen on `host` otherwise than by a report.
    pub fn vm_seen(&self, host: &HostId, vm: &VmId, status: v1::VmStatus) {
        self.windows().vm_seen(host, vm.clone(), status, now());
    }

    /// A host as last heard.
    pub fn host(&self, host: &HostId) -> HostView {
        let windows = self.windows();
        HostView {
            telemetry: windows.telemetry(host, now()),
            load: windows.host_load(host).copied(),
            last_report: windows.last_heard(host),
        }
    }

    /// A VM as `owner` said last.
    pub fn vm(&self, vm: &VmId, owner: &HostId) -> VmView {
        let windows = self.windows();
        let status = windows.status(owner, vm).cloned();
        let load = status.as_ref().and_then(|status| status.load);
        VmView {
            status,
            local_disks: Bytes(load.map_or(0, |load| load.local_disk_bytes)),
            demand: windows.demand(vm, now()),
            dirty_rate: windows.dirty_rate(vm),
            host_reports: windows.host_load(owner).is_some(),
        }
    }

    /// Drops what is known of VMs for which `keep` answers no.
    pub fn retain_vms(&self, keep: impl Fn(&VmId) -> bool) {
        self.windows().retain_vms(keep);
    }
}
