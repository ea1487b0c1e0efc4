//! The JSON forms of what the controller answers. Field names carry their unit.

use std::collections::BTreeMap;

use ballast_model::{Refusal, Rule};
use ballast_proto::convert::field;
use ballast_proto::v1;
use serde::Serialize;

use super::hardware;

/// CPU and memory.
#[derive(Debug, Serialize)]
pub(crate) struct Amounts {
    cpu_millicores: u64,
    memory_bytes: u64,
}

impl From<v1::Resources> for Amounts {
    fn from(message: v1::Resources) -> Self {
        Self { cpu_millicores: message.cpu_millicores, memory_bytes: message.memory_bytes }
    }
}

/// `ballast host ls`, `ballast host show`.
#[derive(Debug, Serialize)]
pub(crate) struct Host {
    host: String,
    state: &'static str,
    drain_goal: Option<&'static str>,
    known: bool,
    unknown_because: Option<String>,
    driver: &'static str,
    endpoint: String,
    version: String,
    cpu_model: String,
    cpu_baselines: Vec<&'static str>,
    offers: Vec<String>,
    labels: BTreeMap<String, String>,
    capacity: Amounts,
    numa: Vec<Amounts>,
    demand: Amounts,
    used: Amounts,
    link_bytes_per_sec: u64,
    vms: Vec<String>,
    last_report_unix_millis: u64,
}

impl From<v1::HostStatus> for Host {
    fn from(message: v1::HostStatus) -> Self {
        let (state, drain_goal) = (host_state(&message), drain_goal(&message));
        let description = message.description.unwrap_or_default();
        let load = message.load.unwrap_or_default();
        Self {
            state,
            drain_goal,
            known: message.known,
            unknown_because: said(message.unknown_because),
            driver: driver(description.driver),
            host: description.host,
            endpoint: description.endpoint,
            version: description.version,
            cpu_baselines: hardware::cpu_baselines(&description.cpu_baselines),
            cpu_model: description.cpu_model,
            offers: description.offers,
            labels: description.labels.into_iter().collect(),
            capacity: description.capacity.unwrap_or_default().into(),
            numa: description.numa.into_iter().map(Amounts::from).collect(),
            demand: message.demand.unwrap_or_default().into(),
            used: Amounts {
                cpu_millicores: load.cpu_used_millicores,
                memory_bytes: load.memory_used_bytes,
            },
            link_bytes_per_sec: description.link_bytes_per_sec,
            vms: message.vms,
            last_report_unix_millis: message.last_report_unix_millis,
        }
    }
}

/// `active`, `draining`, or `unspecified` from a controller that does not say.
pub(crate) fn host_state(host: &v1::HostStatus) -> &'static str {
    match host.state() {
        v1::HostState::Active => "active",
        v1::HostState::Draining => "draining",
        v1::HostState::Quarantined => "quarantined",
        v1::HostState::Unspecified => "unspecified",
    }
}

/// How a host is emptied that drains, if the controller says.
pub(crate) fn drain_goal(host: &v1::HostStatus) -> Option<&'static str> {
    let goal = field::drain_goal(host.drain_goal, "drain_goal").ok()??;
    (host.state() == v1::HostState::Draining).then_some(goal.name())
}

/// `kvm`, `sim`.
pub(crate) fn driver(kind: i32) -> &'static str {
    match v1::DriverKind::try_from(kind) {
        Ok(v1::DriverKind::Kvm) => "kvm",
        Ok(v1::DriverKind::Sim) => "sim",
        _ => "unspecified",
    }
}

/// `ballast vm ls`, `ballast vm show`, `ballast vm create`.
#[derive(Debug, Serialize)]
pub(crate) struct Vm {
    vm: String,
    host: String,
    epoch: u64,
    state: &'static str,
    detail: Option<String>,
    pid: Option<u32>,
    vcpus: u32,
    memory_bytes: u64,
    kernel: String,
    initrd: Option<String>,
    cmdline: String,
    cpu_baseline: &'static str,
    memory_pages: &'static str,
    memory_prefault: bool,
    disks: Vec<hardware::Disk>,
    networks: Vec<hardware::Network>,
    needs: Vec<String>,
    one_numa_node: bool,
    labels: BTreeMap<String, String>,
    automation: &'static str,
    downtime_limit_ms: u32,
    verify: bool,
    post_copy: bool,
    demand: Amounts,
    resident_bytes: u64,
    dirty_bytes_per_sec: u64,
    migration: Option<String>,
    immobile: Option<Refusal>,
}

impl From<v1::VmRecord> for Vm {
    fn from(message: v1::VmRecord) -> Self {
        let state = vm_state(&message);
        let spec = message.spec.unwrap_or_default();
        let status = message.status.unwrap_or_default();
        let load = status.load.unwrap_or_default();
        let policy = spec.migration.unwrap_or_default();
        let backing = spec.memory_backing.unwrap_or_default();
        let migration = under_way(&status);
        Self {
            vm: spec.id,
            host: message.host,
            epoch: message.epoch,
            state,
            detail: said(status.detail),
            pid: (status.pid != 0).then_some(status.pid),
            vcpus: spec.vcpus,
            memory_bytes: spec.memory_bytes,
            kernel: spec.kernel,
            initrd: said(spec.initrd),
            cmdline: spec.cmdline,
            cpu_baseline: hardware::cpu_baseline(spec.cpu),
            memory_pages: hardware::pages(backing),
            memory_prefault: backing.prefault,
            disks: spec.disks.into_iter().map(hardware::Disk::from).collect(),
            networks: spec.networks.into_iter().map(hardware::Network::from).collect(),
            needs: spec.needs,
            one_numa_node: spec.one_numa_node,
            labels: spec.labels.into_iter().collect(),
            automation: automation(spec.automation),
            downtime_limit_ms: policy.downtime_limit_ms,
            verify: policy.verify,
            post_copy: policy.post_copy,
            demand: message.demand.unwrap_or_default().into(),
            resident_bytes: load.resident_bytes,
            dirty_bytes_per_sec: load.dirty_bytes_per_sec,
            migration,
            immobile: message.immobile.map(Refusal::from),
        }
    }
}

/// What the VM's host said last; `unknown` when it says nothing.
pub(crate) fn vm_state(vm: &v1::VmRecord) -> &'static str {
    match vm.status.as_ref().map(v1::VmStatus::state) {
        Some(v1::VmState::Created) => "created",
        Some(v1::VmState::Running) => "running",
        Some(v1::VmState::Paused) => "paused",
        Some(v1::VmState::Incoming) => "incoming",
        Some(v1::VmState::Stopped) => "stopped",
        Some(v1::VmState::Unspecified) | None => "unknown",
    }
}

/// The migration the VM takes part in; none once it has ended.
pub(crate) fn under_way(status: &v1::VmStatus) -> Option<String> {
    let migration = status.migration.as_ref().filter(|migration| !migration.state().is_ended())?;
    Some(migration.migration.clone())
}

/// `full`, `partial`, `manual`.
pub(crate) fn automation(level: i32) -> &'static str {
    match v1::Automation::try_from(level) {
        Ok(v1::Automation::Full) => "full",
        Ok(v1::Automation::Partial) => "partial",
        Ok(v1::Automation::Manual) => "manual",
        _ => "unspecified",
    }
}

/// `ballast migration ls`, `ballast migration show`.
#[derive(Debug, Serialize)]
pub(crate) struct Migration {
    migration: String,
    vm: String,
    from: String,
    to: String,
    source_epoch: u64,
    phase: String,
    ended: bool,
    why: Option<String>,
    reasons: Vec<Reason>,
    created_unix_millis: u64,
    updated_unix_millis: u64,
    rounds: u32,
    bytes_sent: u64,
    bytes_saved: u64,
    compresses: bool,
    bytes_remaining: u64,
    bytes_total: u64,
    disk_bytes_sent: u64,
    disk_bytes_remaining: u64,
    disk_bytes_total: u64,
    pages_zero: u64,
    elapsed_micros: u64,
    rate_bytes_per_sec: u64,
    dirty_bytes_per_sec: u64,
    eta_micros: Option<u64>,
    expected_downtime_micros: u64,
    throttle_percent: u32,
    post_copy_bytes: u64,
    faults: u64,
    streams: u32,
    downtime_micros: u64,
    downtime: DowntimeParts,
}

/// One link of a reason trail.
#[derive(Debug, Serialize)]
struct Reason {
    who: String,
    why: String,
    when_unix_millis: u64,
}

/// The parts of the switchover.
#[derive(Debug, Serialize)]
struct DowntimeParts {
    last_pass_micros: u64,
    state_save_micros: u64,
    send_micros: u64,
    load_micros: u64,
    commit_micros: u64,
    resume_micros: u64,
}

impl From<v1::Migration> for Migration {
    fn from(message: v1::Migration) -> Self {
        let progress = message.progress.unwrap_or_default();
        let parts = progress.downtime.unwrap_or_default();
        let reason = |reason: v1::Reason| Reason {
            who: reason.who,
            why: reason.why,
            when_unix_millis: reason.when_unix_millis,
        };
        Self {
            migration: message.id,
            vm: message.vm,
            from: message.from,
            to: message.to,
            source_epoch: message.source_epoch,
            phase: message.phase,
            ended: message.ended,
            why: said(message.why),
            reasons: message.reasons.into_iter().map(reason).collect(),
            created_unix_millis: message.created_unix_millis,
            updated_unix_millis: message.updated_unix_millis,
            rounds: progress.rounds,
            bytes_sent: progress.bytes_sent,
            bytes_saved: progress.bytes_saved,
            compresses: progress.compresses && !message.ended,
            bytes_remaining: progress.bytes_remaining,
            bytes_total: progress.bytes_total,
            disk_bytes_sent: progress.disk_bytes_sent,
            disk_bytes_remaining: progress.disk_bytes_remaining,
            disk_bytes_total: progress.disk_bytes_total,
            pages_zero: progress.pages_zero,
            elapsed_micros: progress.elapsed_micros,
            rate_bytes_per_sec: progress.rate_bytes_per_sec,
            dirty_bytes_per_sec: progress.dirty_bytes_per_sec,
            eta_micros: (!message.ended).then(|| eta_micros(&progress)).flatten(),
            expected_downtime_micros: progress.expected_downtime_micros,
            throttle_percent: progress.throttle_percent,
            post_copy_bytes: progress.post_copy_bytes,
            faults: progress.faults,
            streams: progress.streams,
            downtime_micros: downtime_micros(&parts),
            downtime: DowntimeParts {
                last_pass_micros: parts.last_pass_micros,
                state_save_micros: parts.state_save_micros,
                send_micros: parts.send_micros,
                load_micros: parts.load_micros,
                commit_micros: parts.commit_micros,
                resume_micros: parts.resume_micros,
            },
        }
    }
}

/// How long it takes at the present rates; see [`ballast_model::migration::Progress::eta`].
pub(crate) fn eta_micros(progress: &v1::MigrationProgress) -> Option<u64> {
    let eta = ballast_model::migration::Progress::from(*progress).eta()?;
    Some(ballast_proto::convert::migration::micros(eta))
}

/// All parts of the downtime together, as [`ballast_model::migration::Downtime::total`] defines it.
pub(crate) fn downtime_micros(parts: &v1::Downtime) -> u64 {
    let total = ballast_model::migration::Downtime::from(*parts).total();
    ballast_proto::convert::migration::micros(total)
}

/// `ballast status`.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    version: String,
    store: String,
    revision: u64,
    automation: &'static str,
    paused_because: Option<String>,
    imbalance: f64,
    hosts: u32,
    hosts_unknown: u32,
    vms: u32,
    migrations_running: u32,
}

impl From<v1::ClusterStatus> for Status {
    fn from(message: v1::ClusterStatus) -> Self {
        Self {
            automation: automation(message.automation),
            version: message.version,
            store: message.store,
            revision: message.revision,
            paused_because: said(message.paused_because),
            imbalance: message.imbalance,
            hosts: message.hosts,
            hosts_unknown: message.hosts_unknown,
            vms: message.vms,
            migrations_running: message.migrations_running,
        }
    }
}

/// `ballast rule ls`: the model's own form; a rule from a newer controller that this build cannot read is refused.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub(crate) fn rules(messages: Vec<v1::Rule>) -> Result<Vec<Rule>, Refusal> {
    messages.into_iter().map(Rule::try_from).collect()
}

fn said(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
