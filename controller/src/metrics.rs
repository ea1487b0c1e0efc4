//! What `/metrics` shows: `ballast_controller_…`, base units, closed sets as labels.

use std::time::Duration;

use ballast_model::{Refusal, RefusalCode};
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// Seconds of a whole migration.
const DURATION_BUCKETS: [f64; 9] = [0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0];
/// Seconds of a switchover.
const DOWNTIME_BUCKETS: [f64; 9] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 1.0, 5.0];
/// Seconds of one planning run.
const PLAN_BUCKETS: [f64; 7] = [0.0001, 0.001, 0.01, 0.1, 1.0, 5.0, 30.0];

/// The controller's metrics and their registry.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// For `/metrics`.
    pub registry: Registry,
    /// Hosts by `state`: active, draining, unknown.
    pub hosts: IntGaugeVec,
    /// VMs with a record.
    pub vms: IntGauge,
    /// The imbalance seen in the last round.
    pub imbalance: Gauge,
    /// Migrations by `phase` that have not ended.
    pub migrations: IntGaugeVec,
    /// Seconds one planning run took.
    pub plan_seconds: Histogram,
    /// 1 while the balancer has paused itself.
    pub balancer_paused: IntGauge,
    /// 1 while this controller leads.
    pub leader: IntGauge,
    /// Load reports counted.
    pub reports: IntCounter,
    /// The audit trail's newest sequence number.
    pub audit_entries: IntGauge,
    started: IntCounter,
    ended: IntCounterVec,
    migration_seconds: Histogram,
    downtime_seconds: Histogram,
    reports_rejected: IntCounterVec,
    rejected: IntCounterVec,
    refusals: IntCounterVec,
    unavailable: IntCounter,
}

impl Default for Metrics {
    /// Names and labels are constants that the library accepts; one it did not accept would be missing from `/metrics`.
    #[allow(clippy::expect_used)] // fails on a constant name only, which every test would show
    fn default() -> Self {
        let registry = Registry::new_custom(Some("ballast_controller".into()), None)
            .expect("the prefix is a name");
        let add = |metric: Box<dyn prometheus::core::Collector>| {
            registry.register(metric).expect("every name stands once");
        };
        macro_rules! metric {
            ($new:expr) => {{
                let metric = $new.expect("names and labels are valid");
                add(Box::new(metric.clone()));
                metric
            }};
        }
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
        };
        Self {
            hosts: metric!(IntGaugeVec::new(Opts::new("hosts", "Hosts by state"), &["state"])),
            vms: metric!(IntGauge::new("vms", "VMs with a record")),
            imbalance: metric!(Gauge::new("imbalance_ratio", "Imbalance of the last round")),
            migrations: metric!(IntGaugeVec::new(
                Opts::new("migrations", "Migrations under way by phase"),
                &["phase"]
            )),
            plan_seconds: metric!(histogram("plan_seconds", "One planning run", &PLAN_BUCKETS)),
            balancer_paused: metric!(IntGauge::new(
                "balancer_paused",
                "1 while the balancer has paused itself"
            )),
            leader: metric!(IntGauge::new("leader", "1 while this controller leads")),
            reports_rejected: metric!(IntCounterVec::new(
                Opts::new("load_reports_rejected_total", "Load reports not believed, by fault"),
                &["fault"]
            )),
            reports: metric!(IntCounter::new("load_reports_total", "Load reports counted")),
            audit_entries: metric!(IntGauge::new("audit_entries", "Entries of the audit trail")),
            started: metric!(IntCounter::new("migrations_started_total", "Migrations begun")),
            ended: metric!(IntCounterVec::new(
                Opts::new("migrations_ended_total", "Migrations ended by outcome"),
                &["outcome"]
            )),
            migration_seconds: metric!(histogram(
                "migration_seconds",
                "A completed migration from its record to its end",
                &DURATION_BUCKETS
            )),
            downtime_seconds: metric!(histogram(
                "migration_downtime_seconds",
                "The switchover of a completed migration",
                &DOWNTIME_BUCKETS
            )),
            rejected: metric!(IntCounterVec::new(
                Opts::new(
                    "steps_rejected_total",
                    "Planned steps that were not admitted, by reason"
                ),
                &["reason"]
            )),
            refusals: metric!(IntCounterVec::new(
                Opts::new("requests_refused_total", "Requests refused by code"),
                &["code"]
            )),
            unavailable: metric!(IntCounter::new(
                "requests_unavailable_total",
                "Requests refused because the store or an agent did not answer"
            )),
            registry,
        }
    }
}

impl Metrics {
    /// A migration has begun.
    pub fn migration_started(&self) {
        self.started.inc();
    }

    /// A migration has ended.
    pub fn migration_ended(&self, outcome: &str, took: Duration, downtime: Duration) {
        self.ended.with_label_values(&[outcome]).inc();
        if outcome == "completed" {
            self.migration_seconds.observe(took.as_secs_f64());
            self.downtime_seconds.observe(downtime.as_secs_f64());
        }
    }

    /// A load report did not pass the gate.
    pub fn report_rejected(&self, fault: &str) {
        self.reports_rejected.with_label_values(&[fault]).inc();
    }

    /// A step was not admitted.
    pub fn step_rejected(&self, reason: &str) {
        self.rejected.with_label_values(&[reason]).inc();
    }

    /// A request was refused.
    pub fn refused(&self, refusal: &Refusal) {
        self.refusals.with_label_values(&[refusal.code.name()]).inc();
        if refusal.code == RefusalCode::Unavailable {
            self.unavailable.inc();
        }
    }
}
