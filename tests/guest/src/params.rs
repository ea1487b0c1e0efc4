//! The guest's command line, from the side that writes it.

use std::fmt::{Display, Write};
use std::net::Ipv4Addr;

use crate::{Layout, defaults};

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
    /// Memory at and above 4 GiB to rewrite like the working set, in MiB, up to 1024.
    pub high_mib: u32,
    /// Rate at which the working set is rewritten, in MiB per second.
    pub dirty_mib_per_sec: u32,
    /// Rate at which memory is checked in addition, in MiB per second.
    pub check_mib_per_sec: u32,
    /// What page contents depend on.
    pub seed: u64,
    /// How often each word of a page stands there in a row, 1 to 512. With 3, pages compress to
    /// about two fifths; with 1, not at all.
    pub repeat: u32,
    /// Frequency of the time stamp counter in kHz. `ballast-vmm` appends it itself.
    pub tsc_khz: Option<u32>,
    /// Address and prefix length, 1 to 30, of the first network card. `None`: it is left alone.
    pub ip: Option<(Ipv4Addr, u8)>,
    /// Where everything outside of its own network is.
    pub gateway: Option<Ipv4Addr>,
    /// TCP port on which bytes come back.
    pub echo_port: u16,
    /// TCP port on which requests are counted.
    pub count_port: u16,
    /// Records to append to the log on the first disk, per second, up to 10 000. 0: the disk is
    /// left alone.
    pub log_per_sec: u32,
    /// Length of such a record, 512 or 4096 bytes.
    pub log_bytes: u32,
    /// Records between two flushes, 1 to 8. So many are in flight at a time.
    pub log_flush: u32,
    /// Physical address of the machine's first virtio-mmio transport.
    pub virtio_base: u64,
    /// Bytes from one transport to the next.
    pub virtio_stride: u64,
    /// Measures the devices instead of everything else: `<what>:<bytes>:<depth>:<ms>`, see
    /// docs/probe-guest.md.
    pub bench: Option<String>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            name: None,
            heartbeat_ms: defaults::HEARTBEAT_MS,
            period_ms: defaults::PERIOD_MS,
            duty_percent: 0,
            working_set_mib: defaults::WORKING_SET_MIB,
            static_mib: defaults::STATIC_MIB,
            zero_mib: defaults::ZERO_MIB,
            high_mib: 0,
            dirty_mib_per_sec: 0,
            check_mib_per_sec: defaults::CHECK_MIB_PER_SEC,
            seed: 0,
            repeat: 1,
            tsc_khz: None,
            ip: None,
            gateway: None,
            echo_port: defaults::ECHO_PORT,
            count_port: defaults::COUNT_PORT,
            log_per_sec: 0,
            log_bytes: defaults::LOG_BYTES,
            log_flush: defaults::LOG_FLUSH,
            virtio_base: defaults::VIRTIO_BASE,
            virtio_stride: defaults::VIRTIO_STRIDE,
            bench: None,
        }
    }
}

impl Params {
    /// The kernel command line; what has its default is left out.
    pub fn to_cmdline(&self) -> String {
        let default = Self::default();
        let mut text = String::new();
        let mut add = |key: &str, value: &dyn Display| {
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
            ("high_mib", self.high_mib, default.high_mib),
            ("dirty_mib_s", self.dirty_mib_per_sec, default.dirty_mib_per_sec),
            ("check_mib_s", self.check_mib_per_sec, default.check_mib_per_sec),
            ("echo_port", self.echo_port.into(), default.echo_port.into()),
            ("count_port", self.count_port.into(), default.count_port.into()),
            ("repeat", self.repeat, default.repeat),
            ("log_s", self.log_per_sec, default.log_per_sec),
            ("log_bytes", self.log_bytes, default.log_bytes),
            ("log_flush", self.log_flush, default.log_flush),
        ];
        let long_numbers = [
            ("seed", self.seed, default.seed),
            ("virtio_base", self.virtio_base, default.virtio_base),
            ("virtio_stride", self.virtio_stride, default.virtio_stride),
        ];
        let numbers = numbers.map(|(key, value, default)| (key, value.into(), default.into()));
        for (key, value, default) in numbers.into_iter().chain(long_numbers) {
            if value != default {
                add(key, &value);
            }
        }
        if let Some((address, prefix)) = self.ip {
            add("ip", &format_args!("{address}/{prefix}"));
        }
        if let Some(gateway) = self.gateway {
            add("gateway", &gateway);
        }
        if let Some(bench) = &self.bench {
            add("bench", bench);
        }
        if let Some(khz) = self.tsc_khz {
            add("tsc_khz", &khz);
        }
        text
    }

    /// Where in its memory the guest keeps what it checks.
    pub const fn layout(&self) -> Layout {
        Layout::new(self.working_set_mib, self.static_mib, self.zero_mib, self.high_mib)
    }

    /// The least memory the VM must have, in whole MiB.
    pub const fn memory_mib_min(&self) -> u64 {
        let layout = self.layout();
        // What is at and above 4 GiB begins behind 3 GiB of memory and the hole for devices.
        let bytes = if self.high_mib > 0 { layout.high.end - (1 << 30) } else { layout.end() };
        bytes.div_ceil(1 << 20)
    }
}
