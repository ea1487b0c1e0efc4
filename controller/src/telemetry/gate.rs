//! The telemetry gate: which reports are believed.
//!
//! A report that does not pass makes its host unknown: neither source nor
//! target. It becomes known again only after several good reports in a row, so
//! that a sensor that fails now and then does not make VMs move back and forth.

use std::time::Duration;

use ballast_model::{Bytes, Millicores, Resources, Timestamp};
use ballast_proto::v1::{HostLoad, LoadReport, VmState, VmStatus};

use super::Limits;

/// The most VMs of one report.
const VMS_MAX: usize = 10_000;
/// More than any link or disk there is, in bytes per second.
const RATE_MAX: u64 = 10 << 40;

/// CPU use that a host cannot overlook; less may fall between two readings of its counters.
const CPU_NOTICED: Millicores = Millicores(100);

/// Why a report is not believed. A closed set: it is a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// The report carries no load.
    Missing,
    /// It was measured too long ago.
    Stale,
    /// It was measured in the future, or the clocks differ.
    Ahead,
    /// It was measured before the one before it.
    Backwards,
    /// Reports between it and the one before it are missing.
    Gap,
    /// It, or a later one, was there already.
    Repeated,
    /// Everything, or what cannot be, is zero.
    Zero,
    /// A number is none, or outside its range by definition.
    NotANumber,
    /// A number is larger than the host can be.
    Absurd,
    /// A counter that only grows went down.
    CounterBackwards,
    /// A VM has no valid name, stands there twice, or there are too many.
    Malformed,
}

impl Fault {
    /// Every fault, for metrics and tests.
    pub const ALL: [Self; 11] = [
        Self::Missing,
        Self::Stale,
        Self::Ahead,
        Self::Backwards,
        Self::Gap,
        Self::Repeated,
        Self::Zero,
        Self::NotANumber,
        Self::Absurd,
        Self::CounterBackwards,
        Self::Malformed,
    ];

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Stale => "stale",
            Self::Ahead => "ahead",
            Self::Backwards => "backwards",
            Self::Gap => "gap",
            Self::Repeated => "repeated",
            Self::Zero => "zero",
            Self::NotANumber => "not_a_number",
            Self::Absurd => "absurd",
            Self::CounterBackwards => "counter_backwards",
            Self::Malformed => "malformed",
        }
    }
}

/// A report that is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Rejected {
    /// The kind, for the metric.
    pub fault: Fault,
    /// In words, for the operator.
    pub why: String,
}

fn reject<T>(fault: Fault, why: impl Into<String>) -> Result<T, Rejected> {
    Err(Rejected { fault, why: why.into() })
}

/// Where a stream of reports stands.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stream {
    /// The last report seen, believed or not; 0 at the start of a stream.
    pub(super) sequence: u64,
    /// When the last report says it was measured.
    pub(super) measured: Option<Timestamp>,
}

/// Whether the report follows the one before it.
pub(super) fn check_order(stream: &Stream, report: &LoadReport) -> Result<(), Rejected> {
    let (last, this) = (stream.sequence, report.sequence);
    if this == 0 || this <= last {
        return reject(Fault::Repeated, format!("report {this} came after report {last}"));
    }
    if last > 0 && this > last + 1 {
        return reject(
            Fault::Gap,
            format!("{} reports before report {this} are missing", this - last - 1),
        );
    }
    let measured = Timestamp(report.at_unix_millis);
    if let Some(before) = stream.measured.filter(|before| measured <= *before) {
        return reject(
            Fault::Backwards,
            format!(
                "report {this} was measured at {measured}, not after the one before ({before})"
            ),
        );
    }
    Ok(())
}

/// Whether the report was measured just now.
pub(super) fn check_time(
    limits: &Limits,
    report: &LoadReport,
    now: Timestamp,
) -> Result<(), Rejected> {
    let measured = Timestamp(report.at_unix_millis);
    let (age, lead) = (now.since(measured), measured.since(now));
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    if age > limits.skew_max {
        return reject(
            Fault::Stale,
            format!("the report was measured {} ago, or the host's clock is late", seconds(age)),
        );
    }
    if lead > limits.skew_max {
        return reject(Fault::Ahead, format!("the host's clock is {} ahead", seconds(lead)));
    }
    Ok(())
}

/// Whether the host's own figures can be. Answers with them.
pub(super) fn check_host<'r>(
    limits: &Limits,
    capacity: &Resources,
    report: &'r LoadReport,
) -> Result<&'r HostLoad, Rejected> {
    let Some(load) = &report.load else {
        return reject(Fault::Missing, "the report carries no load");
    };
    if load.memory_used_bytes == 0 && load.memory_available_bytes == 0 {
        return reject(Fault::Zero, "the host uses no memory and has none available");
    }
    let pressures = [load.cpu_pressure_ratio, load.memory_pressure_ratio, load.io_pressure_ratio];
    for pressure in pressures.into_iter().flatten() {
        if !pressure.is_finite() || !(0.0..=1.0).contains(&pressure) {
            return reject(
                Fault::NotANumber,
                format!("a pressure of {pressure} is no share of time"),
            );
        }
    }
    at_most("CPU use", load.cpu_used_millicores, capacity.cpu.get(), limits.absurd_factor)?;
    at_most("memory use", load.memory_used_bytes, capacity.memory.get(), limits.absurd_factor)?;
    let rates = [
        load.network_receive_bytes_per_sec,
        load.network_send_bytes_per_sec,
        load.disk_read_bytes_per_sec,
        load.disk_write_bytes_per_sec,
    ];
    for rate in rates {
        at_most("a rate of traffic", rate, RATE_MAX, 1)?;
    }
    Ok(load)
}

fn at_most(what: &str, value: u64, bound: u64, factor: u64) -> Result<(), Rejected> {
    if value > bound.saturating_mul(factor) {
        return reject(Fault::Absurd, format!("{what} of {value} is more than {factor} × {bound}"));
    }
    Ok(())
}

/// Whether the figures of one VM can be. `cpu_time_before`: the same counter in the report before.
pub(super) fn check_vm(
    limits: &Limits,
    capacity: &Resources,
    status: &VmStatus,
    cpu_time_before: Option<u64>,
) -> Result<(), Rejected> {
    let Some(load) = &status.load else { return Ok(()) };
    let vm = &status.vm;
    let size = status.spec.as_ref().map_or(*capacity, |spec| {
        Resources::new(Millicores::cores(spec.vcpus.into()), Bytes(spec.memory_bytes))
    });
    let factor = limits.absurd_factor;
    at_most(&format!("CPU use of VM {vm}"), load.cpu_millicores, size.cpu.get(), factor)?;
    at_most(&format!("memory use of VM {vm}"), load.resident_bytes, size.memory.get(), factor)?;
    at_most(&format!("dirtying of VM {vm}"), load.dirty_bytes_per_sec, RATE_MAX, 1)?;
    if cpu_time_before.is_some_and(|before| load.cpu_time_nanos < before) {
        return reject(Fault::CounterBackwards, format!("the CPU time of VM {vm} went down"));
    }
    Ok(())
}

/// Whether the figures fit each other: VMs that use memory on a host that uses none cannot be.
pub(super) fn check_sum(load: &HostLoad, by_vms: &Resources) -> Result<(), Rejected> {
    if load.memory_used_bytes == 0 && by_vms.memory.get() > 0 {
        return reject(Fault::Zero, "the host uses no memory, but its VMs do");
    }
    if load.cpu_used_millicores == 0 && by_vms.cpu > CPU_NOTICED {
        return reject(Fault::Zero, "the host uses no CPU, but its VMs do");
    }
    Ok(())
}

/// Whether the list of VMs can be worked with at all.
pub(super) fn check_size(report: &LoadReport) -> Result<(), Rejected> {
    if report.vms.len() > VMS_MAX {
        return reject(Fault::Malformed, format!("the report names more than {VMS_MAX} VMs"));
    }
    Ok(())
}

/// A VM whose name is none, or stands there twice.
pub(super) fn malformed(why: impl std::fmt::Display) -> Rejected {
    Rejected { fault: Fault::Malformed, why: why.to_string() }
}

/// Whether the status tells what the VM itself does, rather than what a migration does with it.
pub(super) fn is_running(status: &VmStatus) -> bool {
    status.state == i32::from(VmState::Running)
}
