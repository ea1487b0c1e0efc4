//! The controller's configuration file; `deploy/config/controller.toml` has every key.

use std::net::SocketAddr;
use std::time::Duration;

use ballast_model::snapshot::Policy;
use ballast_model::vm::Automation;
use ballast_model::{BytesPerSec, DrainGoal, Ratio, Refusal, RefusalCode};
use ballast_placement::PlanOptions;
use serde::Deserialize;

use crate::store::StoreConfig;

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where operators and agents reach it by gRPC.
    pub listen: SocketAddr,
    /// Where `/metrics`, `/livez` and `/readyz` are.
    pub http_listen: SocketAddr,
    /// The name under which it leads; one per controller. Empty: `listen`.
    #[serde(default)]
    pub name: String,
    /// How long the others wait before one of them takes over from a leader that fell silent, in milliseconds.
    #[serde(default = "default_lease_ms")]
    pub leader_lease_ms: u64,
    /// Which store.
    pub store: StoreConfig,
    /// How load is measured.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// What the balancer does.
    #[serde(default)]
    pub balance: BalanceConfig,
    /// What the cluster as a whole must keep, and what is levelled.
    #[serde(default)]
    pub policy: Policy,
    /// How migrations run.
    #[serde(default)]
    pub migration: MigrationConfig,
}

/// The slowest rate a VMM takes, in bytes per second.
const RATE_MIN: u64 = 64 << 10;

const fn default_lease_ms() -> u64 {
    5_000
}

/// The `[telemetry]` table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// How often agents report, in milliseconds.
    pub report_interval_ms: u32,
    /// How far back samples count, in milliseconds.
    pub window_ms: u64,
    /// Samples of a VM or host below which its load is not known yet.
    pub samples_min: usize,
    /// A host that has not reported for this long is unknown, in milliseconds.
    pub stale_after_ms: u64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { report_interval_ms: 1_000, window_ms: 30_000, samples_min: 3, stale_after_ms: 5_000 }
    }
}

/// The `[balance]` table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalanceConfig {
    /// How much the balancer may do on its own, until an operator sets it; then the setting in the store counts.
    pub automation: Automation,
    /// Time between rounds, in milliseconds; an end of a migration or an order wakes it earlier.
    pub interval_ms: u64,
    /// How long a VM rests after a move before the balancer may move it again, in milliseconds.
    pub cooldown_ms: u64,
    /// The least a balance move must be worth, as a share of a host; see `ballast_placement::PlanOptions`.
    pub gain_min: Ratio,
    /// The share of its CPU a host may reach by a balance move.
    pub cpu_ceiling: Ratio,
    /// What matters most when a host is emptied, unless its drain says otherwise; see [`DrainGoal`].
    pub drain: DrainGoal,
    /// The most balance moves started in one round.
    pub moves_per_cycle_max: usize,
    /// Past this share of hosts with unknown load the balancer pauses.
    pub hosts_unknown_max: Ratio,
    /// A plan that wants to move more than this share of all VMs for balance pauses the balancer.
    pub plan_share_max: Ratio,
}

impl Default for BalanceConfig {
    fn default() -> Self {
        Self {
            automation: Automation::Full,
            interval_ms: 10_000,
            cooldown_ms: 120_000,
            gain_min: Ratio::new(0.03),
            cpu_ceiling: Ratio::new(0.8),
            drain: DrainGoal::Balanced,
            moves_per_cycle_max: 4,
            hosts_unknown_max: Ratio::new(0.34),
            plan_share_max: Ratio::new(0.95),
        }
    }
}

/// The `[migration]` table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MigrationConfig {
    /// Migrations at a time in the whole cluster.
    pub migrations_max: usize,
    /// Migrations at a time a host takes part in.
    pub migrations_per_host_max: usize,
    /// The rate one migration may send at, in bytes per second; 0 for no limit.
    pub bandwidth_bytes_per_sec: u64,
    /// The rate all migrations of a host may send at together, in bytes per second; 0 for no limit.
    /// Each gets its part of as many as a host may take part in.
    pub host_bytes_per_sec: u64,
    /// How far the downtime limit of a VM that writes too fast may be raised, in milliseconds; 0 to
    /// leave it as the VM has it.
    pub downtime_limit_max_ms: u32,
    /// Whether memory goes over the network encrypted (TLS 1.3, a key for each migration).
    pub tls: bool,
    /// Connections of a migration, up to 128; 0 for as many as link and CPUs ask for.
    pub streams: u32,
    /// Whether memory may go compressed.
    pub compression: Compression,
    /// Whether guests that write faster than the link carries may be slowed down. Otherwise
    /// their migrations fail.
    pub throttle: bool,
    /// How long a guest that runs without all of its memory (post-copy) waits for a source that has gone away before it
    /// is given up, in milliseconds.
    pub post_copy_patience_ms: u32,
    /// The least time a transfer is given, in milliseconds. Large VMs get more.
    pub transfer_timeout_min_ms: u64,
    /// How long an agent that does not answer is asked again before the end is written without it, in milliseconds.
    pub resolve_timeout_ms: u64,
    /// The first pause before a failed step is tried again, in milliseconds; it doubles up to 20 times as much.
    pub retry_ms: u64,
}

/// Whether memory goes compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Where the link is what limits a migration, as measured meanwhile.
    #[default]
    Auto,
    /// Never.
    Off,
}

impl Default for MigrationConfig {
    fn default() -> Self {
        Self {
            migrations_max: 4,
            migrations_per_host_max: 2,
            bandwidth_bytes_per_sec: 0,
            host_bytes_per_sec: 0,
            downtime_limit_max_ms: 0,
            tls: true,
            streams: 0,
            compression: Compression::Auto,
            throttle: true,
            post_copy_patience_ms: 300_000,
            transfer_timeout_min_ms: 60_000,
            resolve_timeout_ms: 120_000,
            retry_ms: 250,
        }
    }
}

impl MigrationConfig {
    /// What one migration may send at; zero for no limit. However many run on one host's link, they
    /// stay within what the host may send: it is divided by the most there can be.
    #[must_use]
    pub fn rate(&self) -> BytesPerSec {
        let of_host = self.host_bytes_per_sec / (self.migrations_per_host_max as u64).max(1);
        let limits = [self.bandwidth_bytes_per_sec, of_host];
        BytesPerSec(limits.into_iter().filter(|rate| *rate > 0).min().unwrap_or(0))
    }
}

impl Config {
    /// Checks every value against its range.
    ///
    /// # Errors
    /// `InvalidArgument` naming the key.
    pub fn validate(&self) -> Result<(), Refusal> {
        let within = |key: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(Refusal::new(
                RefusalCode::InvalidArgument,
                format!("configuration key {key} is {value}"),
                format!("use {least} to {most}"),
            ))
        };
        let (telemetry, balance, migration) = (&self.telemetry, &self.balance, &self.migration);
        let day = 86_400_000;
        within("leader_lease_ms", self.leader_lease_ms, 1_000, 60_000)?;
        within("telemetry.report_interval_ms", telemetry.report_interval_ms.into(), 50, 60_000)?;
        within("telemetry.window_ms", telemetry.window_ms, 100, 3_600_000)?;
        within("telemetry.samples_min", telemetry.samples_min as u64, 1, 1_000)?;
        within("telemetry.stale_after_ms", telemetry.stale_after_ms, 100, 600_000)?;
        within("balance.interval_ms", balance.interval_ms, 50, day)?;
        within("balance.cooldown_ms", balance.cooldown_ms, 0, day)?;
        within("balance.moves_per_cycle_max", balance.moves_per_cycle_max as u64, 0, 1_000)?;
        within("migration.migrations_max", migration.migrations_max as u64, 1, 1_000)?;
        let per_host = migration.migrations_per_host_max as u64;
        within("migration.migrations_per_host_max", per_host, 1, 100)?;
        within("migration.streams", migration.streams.into(), 0, 128)?;
        let most = migration.downtime_limit_max_ms.into();
        within("migration.downtime_limit_max_ms", most, 0, 600_000)?;
        if migration.rate() > BytesPerSec::ZERO {
            within(
                "migration.host_bytes_per_sec and bandwidth_bytes_per_sec, for one migration,",
                migration.rate().get(),
                RATE_MIN,
                u64::MAX,
            )?;
        }
        let patience = migration.post_copy_patience_ms.into();
        within("migration.post_copy_patience_ms", patience, 1_000, 3_600_000)?;
        let least = migration.transfer_timeout_min_ms;
        within("migration.transfer_timeout_min_ms", least, 100, day)?;
        within("migration.resolve_timeout_ms", migration.resolve_timeout_ms, 100, day)?;
        within("migration.retry_ms", migration.retry_ms, 1, 60_000)?;
        for (key, ratio) in [
            ("balance.hosts_unknown_max", balance.hosts_unknown_max),
            ("balance.plan_share_max", balance.plan_share_max),
        ] {
            if !(0.0..=1.0).contains(&ratio.get()) {
                return Err(Refusal::new(
                    RefusalCode::InvalidArgument,
                    format!("configuration key {key} is {}", ratio.get()),
                    "use a share of 0.0 to 1.0",
                ));
            }
        }
        self.policy.validate().map_err(|refusal| {
            let reason = format!("configuration table policy: {}", refusal.reason);
            Refusal::new(refusal.code, reason, "see deploy/config/controller.toml for the ranges")
        })?;
        self.plan_options().validate()
    }

    /// What the planner is asked for.
    pub fn plan_options(&self) -> PlanOptions {
        let per_host = self.migration.migrations_per_host_max;
        PlanOptions {
            gain_min: self.balance.gain_min,
            cpu_ceiling: self.balance.cpu_ceiling,
            drain: self.balance.drain,
            host_moves_max: u32::try_from(per_host).unwrap_or(u32::MAX),
            ..PlanOptions::default()
        }
    }

    /// The name it leads under.
    pub fn leader_name(&self) -> String {
        if self.name.is_empty() { self.listen.to_string() } else { self.name.clone() }
    }
}

impl BalanceConfig {
    /// [`cooldown_ms`](Self::cooldown_ms) as a duration.
    pub const fn cooldown(&self) -> Duration {
        Duration::from_millis(self.cooldown_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "listen = '127.0.0.1:1'\nhttp_listen = '127.0.0.1:2'\n\
                           [store]\nkind = 'embedded'\npath = '/x'\n";

    #[test]
    fn the_example_has_every_key_and_its_defaults() {
        let text = include_str!("../../deploy/config/controller.toml");
        let example: Config = toml::from_str(text).unwrap();
        example.validate().unwrap();
        let minimal: Config = toml::from_str(MINIMAL).unwrap();
        assert_eq!(format!("{:?}", example.balance), format!("{:?}", minimal.balance));
        assert_eq!(format!("{:?}", example.telemetry), format!("{:?}", minimal.telemetry));
        assert_eq!(format!("{:?}", example.migration), format!("{:?}", minimal.migration));
        assert_eq!(example.policy, minimal.policy);
    }

    #[test]
    fn the_planner_is_asked_for_the_goal_of_drains() {
        let text = format!("{MINIMAL}[balance]\ndrain = 'least-disturbing'");
        let config: Config = toml::from_str(&text).unwrap();
        assert_eq!(config.plan_options().drain, DrainGoal::LeastDisturbing);
    }

    #[test]
    fn migrations_of_a_host_share_its_link() {
        let rate = |bandwidth, host, per_host| {
            let limits = MigrationConfig {
                bandwidth_bytes_per_sec: bandwidth,
                host_bytes_per_sec: host,
                migrations_per_host_max: per_host,
                ..MigrationConfig::default()
            };
            limits.rate().get()
        };
        assert_eq!(rate(0, 0, 2), 0, "no limit");
        assert_eq!(rate(0, 100 << 20, 4), 25 << 20);
        assert_eq!(rate(40 << 20, 100 << 20, 2), 40 << 20, "one has less than its part");
        assert_eq!(rate(40 << 20, 0, 2), 40 << 20);
    }

    #[test]
    fn values_out_of_range_name_the_key() {
        for (table, key) in [
            ("[telemetry]\nreport_interval_ms = 1", "telemetry.report_interval_ms"),
            ("[migration]\nmigrations_max = 0", "migration.migrations_max"),
            ("[migration]\nhost_bytes_per_sec = 100000", "migration.host_bytes_per_sec"),
            ("[migration]\ndowntime_limit_max_ms = 600001", "migration.downtime_limit_max_ms"),
            ("[migration]\npost_copy_patience_ms = 0", "migration.post_copy_patience_ms"),
            ("[balance]\nplan_share_max = 2.0", "balance.plan_share_max"),
            ("[balance]\ngain_min = 0.0", "gain"),
            ("[policy]\nmemory_overcommit = 0.0", "table policy: an overcommit of 0"),
            ("[policy]\nbalance = { cpu = 0, memory = 0 }", "table policy: balance weights"),
        ] {
            let config: Config = toml::from_str(&format!("{MINIMAL}{table}")).unwrap();
            let refusal = config.validate().unwrap_err();
            assert!(refusal.to_string().contains(key), "{refusal}");
        }
        let text = format!("{MINIMAL}[balance]\ndrain = 'quickest'");
        let unknown = toml::from_str::<Config>(&text).unwrap_err();
        assert!(unknown.to_string().contains("least-disturbing"), "{unknown}");
        assert!(toml::from_str::<Config>(&format!("{MINIMAL}[balance]\ncoldown_ms = 1")).is_err());
    }
}
