//! What the demo found: for people, for programs, and against what was expected.

use std::fmt::Write;

use ballast_guest::ConsoleReport;
use ballast_model::{Refusal, RefusalCode, VmId};
use ballast_proto::v1;
use serde::Serialize;

use crate::commands::migration::reasons;
use crate::output::units;
use crate::output::view::downtime_micros;
use crate::output::{Align, Table, fields};

/// The least number of migrations that levelling is expected to take.
const MIGRATIONS_MIN: usize = 5;
/// What share of the imbalance may be left.
const IMBALANCE_LEFT_MAX: f64 = 1.0 / 3.0;

/// The figures, in the names and the order of the JSON object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) driver: &'static str,
    pub(super) store: &'static str,
    pub(super) hosts: usize,
    pub(super) vms: usize,
    pub(super) migrations_completed: usize,
    pub(super) migrations_failed: usize,
    pub(super) imbalance_before: f64,
    pub(super) imbalance_after: f64,
    pub(super) downtime_ms_p50: f64,
    pub(super) downtime_ms_max: f64,
    pub(super) guest_memory_errors: u64,
    pub(super) heartbeats_lost: u64,
    pub(super) audit_entries: u64,
    pub(super) audit_verified: bool,
    pub(super) drained_host_vms: usize,
    // Further figures; the ones above are what readers count on.
    pub(super) drained_host: String,
    pub(super) heartbeats: u64,
    pub(super) guest_check_passes: u64,
    /// The longest time any guest noticed that it did not run.
    pub(super) guest_stall_ms_max: f64,
    /// Guests that were not heard after the last migration.
    pub(super) guests_silent: usize,
    /// Everything else the guests complain about, and console text that was lost.
    pub(super) guest_faults: Vec<String>,
    pub(super) bytes_sent: u64,
    pub(super) seconds: f64,
}

/// What is known when everything has been looked at.
pub(super) struct Findings<'a> {
    pub(super) driver: &'static str,
    pub(super) store: &'static str,
    pub(super) look: &'a super::watch::Look,
    pub(super) vms: usize,
    pub(super) imbalance_before: f64,
    pub(super) imbalance_after: f64,
    pub(super) drained: &'a str,
    /// The guests; `None` where the driver has none.
    pub(super) guests: Option<&'a super::watch::Consoles>,
    pub(super) guests_silent: usize,
    pub(super) audit: Result<u64, Refusal>,
    pub(super) seconds: f64,
}

impl Figures {
    pub(super) fn from_findings(findings: &Findings<'_>) -> Self {
        let migrations = &findings.look.migrations;
        let completed: Vec<_> = migrations.iter().filter(|m| m.phase == "completed").collect();
        let mut downtimes: Vec<u64> = completed
            .iter()
            .map(|m| {
                let progress = m.progress.unwrap_or_default();
                downtime_micros(&progress.downtime.unwrap_or_default())
            })
            .collect();
        downtimes.sort_unstable();
        let millis = |micros: Option<&u64>| micros.map_or(0.0, |micros| *micros as f64 / 1e3);
        let drained = findings.look.host(findings.drained);
        let guests: Vec<(&VmId, &ConsoleReport)> =
            findings.guests.iter().flat_map(|guests| guests.reports()).collect();
        let sum =
            |count: fn(&ConsoleReport) -> u64| guests.iter().map(|guest| count(guest.1)).sum();
        let stall = guests.iter().map(|guest| guest.1.stall_max).max().unwrap_or_default();
        Self {
            driver: findings.driver,
            store: findings.store,
            hosts: findings.look.hosts.len(),
            vms: findings.vms,
            migrations_completed: completed.len(),
            migrations_failed: migrations
                .iter()
                .filter(|m| m.ended && m.phase != "completed")
                .count(),
            imbalance_before: rounded(findings.imbalance_before),
            imbalance_after: rounded(findings.imbalance_after),
            downtime_ms_p50: millis(downtimes.get(downtimes.len() / 2)),
            downtime_ms_max: millis(downtimes.last()),
            guest_memory_errors: sum(|guest| guest.memory_errors),
            heartbeats_lost: sum(|guest| guest.heartbeats_lost),
            audit_entries: findings.audit.as_ref().copied().unwrap_or_default(),
            audit_verified: findings.audit.is_ok(),
            drained_host_vms: drained.map_or(usize::MAX, |host| host.vms.len()),
            drained_host: findings.drained.to_owned(),
            heartbeats: sum(|guest| guest.heartbeats),
            guest_check_passes: sum(|guest| guest.check_passes),
            guest_stall_ms_max: stall.as_secs_f64() * 1e3,
            guests_silent: findings.guests_silent,
            guest_faults: guests.iter().flat_map(|(vm, guest)| faults(vm, guest)).collect(),
            bytes_sent: completed.iter().map(|m| m.progress.unwrap_or_default().bytes_sent).sum(),
            seconds: rounded(findings.seconds),
        }
    }

    /// What was expected and did not come, one sentence each.
    pub(super) fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let mut expect = |holds: bool, otherwise: String| {
            if !holds {
                missed.push(otherwise);
            }
        };
        let completed = self.migrations_completed;
        expect(completed >= MIGRATIONS_MIN, format!("only {completed} migrations completed"));
        let failed = self.migrations_failed;
        expect(failed == 0, format!("{failed} migrations did not complete"));
        expect(
            self.imbalance_after < self.imbalance_before * IMBALANCE_LEFT_MAX,
            format!("imbalance {} is left of {}", self.imbalance_after, self.imbalance_before),
        );
        expect(
            self.guest_memory_errors == 0,
            format!("{} memory errors", self.guest_memory_errors),
        );
        expect(self.heartbeats_lost == 0, format!("{} heartbeats lost", self.heartbeats_lost));
        expect(self.guests_silent == 0, format!("{} guests went silent", self.guests_silent));
        if let Some(fault) = self.guest_faults.first() {
            expect(false, format!("{} faults in guests, first: {fault}", self.guest_faults.len()));
        }
        expect(self.audit_verified, "the audit trail does not hold".to_owned());
        expect(
            self.drained_host_vms == 0,
            format!("host {} still has VMs after its drain", self.drained_host),
        );
        missed
    }

    /// Refuses when something expected did not come.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let missed = self.missed();
        if missed.is_empty() {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalCode::HostFailure,
            format!("the demo missed what is expected of it: {}", missed.join("; ")),
            "try again on a machine with less other load, or look into its logs with --keep",
        ))
    }
}

/// What one guest complains about besides memory errors and lost heartbeats, which are counted.
fn faults(vm: &VmId, guest: &ConsoleReport) -> Vec<String> {
    let mut faults = guest.faults();
    if guest.bytes_missed > 0 {
        faults.push(format!("{} bytes of its console were lost", guest.bytes_missed));
    }
    faults.into_iter().map(|fault| format!("{vm}: {fault}")).collect()
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The summary for people.
pub(super) fn text(findings: &Findings<'_>, figures: &Figures) -> String {
    let mut text = String::from("\nMigrations\n");
    let _ = write!(text, "{}", migrations(findings.look).render("none"));
    if let Some(guests) = findings.guests {
        let _ =
            write!(text, "\nGuests, in their own words\n{}", guest_table(guests).render("none"));
    }
    let audit = match &findings.audit {
        Ok(entries) => format!("verified: {entries} entries, none changed, missing or moved"),
        Err(refusal) => format!("NOT verified: {}", refusal.reason),
    };
    let _ = write!(
        text,
        "\n{}",
        fields(&[
            ("driver, store", format!("{}, {}", figures.driver, figures.store)),
            ("hosts, VMs", format!("{}, {}", figures.hosts, figures.vms)),
            (
                "migrations",
                format!(
                    "{} completed, {} not; {} sent",
                    figures.migrations_completed,
                    figures.migrations_failed,
                    units::bytes(figures.bytes_sent)
                ),
            ),
            (
                "imbalance",
                format!(
                    "{:.3} before, {:.3} after",
                    figures.imbalance_before, figures.imbalance_after
                ),
            ),
            (
                "downtime",
                format!(
                    "median {:.1} ms, longest {:.1} ms",
                    figures.downtime_ms_p50, figures.downtime_ms_max
                ),
            ),
            ("guests", findings.guests.map_or_else(String::new, |_| guests_in_short(figures))),
            (
                "drained",
                format!("{} has {} VMs left", figures.drained_host, figures.drained_host_vms)
            ),
            ("audit", audit),
            ("took", format!("{:.0} s", figures.seconds)),
        ])
    );
    text
}

fn guests_in_short(figures: &Figures) -> String {
    format!(
        "{} memory errors, {} of {} heartbeats lost, longest stall noticed {:.0} ms",
        figures.guest_memory_errors,
        figures.heartbeats_lost,
        figures.heartbeats + figures.heartbeats_lost,
        figures.guest_stall_ms_max
    )
}

fn migrations(look: &super::watch::Look) -> Table {
    let mut table = Table::new(&[
        ("VM", Align::Left),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("OUTCOME", Align::Left),
        ("ROUNDS", Align::Right),
        ("SENT", Align::Right),
        ("TOOK", Align::Right),
        ("DOWNTIME", Align::Right),
        ("REASON", Align::Left),
    ]);
    for migration in look.migrations.iter().rev() {
        let progress = migration.progress.unwrap_or_default();
        let why =
            |m: &v1::Migration| if m.why.is_empty() { reasons(&m.reasons) } else { m.why.clone() };
        table.row([
            migration.vm.clone(),
            migration.from.clone(),
            migration.to.clone(),
            migration.phase.clone(),
            progress.rounds.to_string(),
            units::bytes(progress.bytes_sent),
            units::micros(progress.elapsed_micros),
            units::micros(downtime_micros(&progress.downtime.unwrap_or_default())),
            why(migration),
        ]);
    }
    table
}

fn guest_table(guests: &super::watch::Consoles) -> Table {
    let mut table = Table::new(&[
        ("VM", Align::Left),
        ("HEARTBEATS", Align::Right),
        ("LOST", Align::Right),
        ("MEMORY CHECKS", Align::Right),
        ("ERRORS", Align::Right),
        ("LONGEST STALL", Align::Right),
        ("VERDICT", Align::Left),
    ]);
    for (vm, guest) in guests.reports() {
        let faults = faults(vm, guest);
        table.row([
            vm.to_string(),
            guest.heartbeats.to_string(),
            guest.heartbeats_lost.to_string(),
            guest.check_passes.to_string(),
            guest.memory_errors.to_string(),
            units::time(guest.stall_max),
            if faults.is_empty() { "all is well".to_owned() } else { faults.join("; ") },
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Figures {
        Figures {
            driver: "kvm",
            store: "embedded",
            hosts: 4,
            vms: 12,
            migrations_completed: 9,
            migrations_failed: 0,
            imbalance_before: 0.6,
            imbalance_after: 0.1,
            downtime_ms_p50: 9.0,
            downtime_ms_max: 20.0,
            guest_memory_errors: 0,
            heartbeats_lost: 0,
            audit_entries: 50,
            audit_verified: true,
            drained_host_vms: 0,
            drained_host: "host-2".into(),
            heartbeats: 100,
            guest_check_passes: 10,
            guest_stall_ms_max: 20.0,
            guests_silent: 0,
            guest_faults: Vec::new(),
            bytes_sent: 1,
            seconds: 60.0,
        }
    }

    #[test]
    fn each_expectation_counts() {
        assert_eq!(good().missed(), Vec::<String>::new());
        let spoils: [fn(&mut Figures); 9] = [
            |f| f.migrations_completed = 4,
            |f| f.migrations_failed = 1,
            |f| f.imbalance_after = 0.3,
            |f| f.guest_memory_errors = 1,
            |f| f.heartbeats_lost = 1,
            |f| f.guests_silent = 1,
            |f| f.guest_faults.push("demo-01: 1 lines were damaged".into()),
            |f| f.audit_verified = false,
            |f| f.drained_host_vms = 1,
        ];
        for spoil in spoils {
            let mut figures = good();
            spoil(&mut figures);
            assert_eq!(figures.missed().len(), 1, "{figures:?}");
            assert!(figures.check().is_err());
        }
    }

    #[test]
    fn the_json_has_the_promised_keys() {
        let json = serde_json::to_value(good()).unwrap();
        let keys = [
            "driver",
            "store",
            "hosts",
            "vms",
            "migrations_completed",
            "migrations_failed",
            "imbalance_before",
            "imbalance_after",
            "downtime_ms_p50",
            "downtime_ms_max",
            "guest_memory_errors",
            "heartbeats_lost",
            "audit_entries",
            "audit_verified",
            "drained_host_vms",
        ];
        for key in keys {
            assert!(json.get(key).is_some(), "{key}");
        }
    }
}
