//! The guest's command line, from the side that writes it.

use std::fmt::Write;

use crate::Layout;

/// What a probe guest is to do. The default is an idle guest that checks itself.
///
/// The guest refuses values out of range with a `FATAL` line; the ranges stand
/// at each field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// Shown in the guest's first line; 1 to 63 bytes without white space.
    pub name: Option<String>,
    /// Time between two heartbeats in milliseconds, 1 to 60 000.
    pub heartbeat_ms: u32,
    /// The length of the periods over which load is spread, in milliseconds, 1 to 1000.
    pub period_ms: u32,
    /// Share of one core to use in percent, 0 to 100. Rewriting and checking count towards it.
    pub duty_percent: u32,
    /// Memory to rewrite, in MiB.
    pub working_set_mib: u32,
    /// Memory to write once, in MiB.
    pub static_mib: u32,
    /// Memory to leave as zeroes, in MiB.
    pub zero_mib: u32,
    /// Rate at which the working set is rewritten, in MiB per second.
    pub dirty_mib_per_sec: u32,
    /// Rate at which memory is checked in addition, in MiB per second.
    pub check_mib_per_sec: u32,
    /// What page contents depend on.
    pub seed: u64,
    /// Frequency of the time stamp counter in kHz. `ballast-vmm` appends it itself.
    pub tsc_khz: Option<u32>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            name: None,
            heartbeat_ms: 200,
            period_ms: 20,
            duty_percent: 0,
            working_set_mib: 8,
            static_mib: 4,
            zero_mib: 4,
            dirty_mib_per_sec: 0,
            check_mib_per_sec: 16,
            seed: 0,
            tsc_khz: None,
        }
    }
}

impl Params {
    /// The kernel command line; what has its default is left out.
    pub fn to_cmdline(&self) -> String {
        let default = Self::default();
        let mut text = String::new();
        let mut add = |key: &str, value: &dyn std::fmt::Display| {
            let separator = if text.is_empty() { "" } else { " " };
            // Writing into a String cannot fail.
            let _ = write!(text, "{separator}{key}={value}");
        };
        if let Some(name) = &self.name {
            add("name", name);
        }
        let numbers = [
            ("hb_ms", self.heartbeat_ms, default.heartbeat_ms),
            ("period_ms", self.period_ms, default.period_ms),
            ("duty", self.duty_percent, default.duty_percent),
            ("ws_mib", self.working_set_mib, default.working_set_mib),
            ("static_mib", self.static_mib, default.static_mib),
            ("zero_mib", self.zero_mib, default.zero_mib),
            ("dirty_mib_s", self.dirty_mib_per_sec, default.dirty_mib_per_sec),
            ("check_mib_s", self.check_mib_per_sec, default.check_mib_per_sec),
        ];
        for (key, value, default) in numbers {
            if value != default {
                add(key, &value);
            }
        }
        if self.seed != default.seed {
            add("seed", &self.seed);
        }
        if let Some(khz) = self.tsc_khz {
            add("tsc_khz", &khz);
        }
        text
    }

    /// Where in its memory the guest keeps what it checks.
    pub const fn layout(&self) -> Layout {
        Layout::new(self.working_set_mib, self.static_mib, self.zero_mib)
    }

    /// The least memory the VM must have, in whole MiB.
    pub const fn memory_mib_min(&self) -> u64 {
        self.layout().end().div_ceil(1 << 20)
    }
}
