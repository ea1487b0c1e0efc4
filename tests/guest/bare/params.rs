//! The command line as a value: `key=value` words in any order, the last of a
//! key counts. An unknown key or a value out of range is an error that says
//! what would be right.

use core::fmt;
use core::net::Ipv4Addr;

use crate::defaults::{
    self, HEARTBEAT_MS_MAX, HIGH_MIB_MAX, LOG_RATE_MAX, MIB_MAX, NAME_BYTES_MAX, PERIOD_MS_MAX,
};

/// What the guest is to do. The defaults are those of an idle VM that checks itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params<'a> {
    /// `name=`: shown in the first line.
    pub name: &'a str,
    /// `hb_ms=`: time between two heartbeats, in milliseconds.
    pub heartbeat_ms: u64,
    /// `period_ms=`: load is spread evenly over periods of this length, in milliseconds.
    pub period_ms: u64,
    /// `duty=`: share of one core to use, in percent.
    pub duty_percent: u64,
    /// `ws_mib=`: memory to rewrite, in MiB.
    pub working_set_mib: u32,
    /// `static_mib=`: memory to write once, in MiB.
    pub static_mib: u32,
    /// `zero_mib=`: memory to leave as zeroes, in MiB.
    pub zero_mib: u32,
    /// `high_mib=`: memory at and above 4 GiB to rewrite, in MiB.
    pub high_mib: u32,
    /// `dirty_mib_s=`: rate of rewriting, in MiB per second.
    pub dirty_mib_per_sec: u64,
    /// `check_mib_s=`: rate of checking besides rewriting, in MiB per second.
    pub check_mib_per_sec: u64,
    /// `seed=`: what page contents depend on.
    pub seed: u64,
    /// `repeat=`: how often each word of a page stands there in a row.
    pub repeat: u32,
    /// `tsc_khz=`: frequency of the time stamp counter.
    pub tsc_khz: Option<u64>,
    /// `ip=`: address and prefix length of the network card; without it there is no network.
    pub ip: Option<(Ipv4Addr, u8)>,
    /// `gateway=`: where everything else is.
    pub gateway: Option<Ipv4Addr>,
    /// `echo_port=`: TCP port on which bytes come back.
    pub echo_port: u16,
    /// `count_port=`: TCP port on which requests are counted.
    pub count_port: u16,
    /// `log_s=`: records to write to the disk, per second; without any there is no disk.
    pub log_per_sec: u32,
    /// `log_bytes=`: length of a record, 512 or 4096.
    pub log_bytes: u32,
    /// `log_flush=`: records between two flushes.
    pub log_flush: u32,
    /// `virtio_base=`, `virtio_stride=`: where the machine has its virtio-mmio transports.
    pub virtio_base: u64,
    pub virtio_stride: u64,
    /// `bench=`: measure this instead of everything else.
    pub bench: Option<Bench>,
}

/// `bench=<what>:<bytes>:<depth>:<ms>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bench {
    pub what: What,
    /// Of one operation.
    pub bytes: u32,
    /// Operations in flight.
    pub depth: u32,
    /// Time to measure.
    pub ms: u32,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Reads or writes of the disk at places without order, or one after the other.
    Disk { write: bool, flush: bool, in_order: bool },
    /// Frames to the network, or from it.
    Frames { send: bool },
    /// One TCP connection to the echo port, whose bytes are swallowed, or made up.
    Tcp { send: bool },
}

/// A word of the command line that is wrong, and what would be right.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault<'a> {
    word: &'a str,
    advice: &'static str,
}

impl<'a> Params<'a> {
    const DEFAULT: Self = Self {
        name: "-",
        heartbeat_ms: defaults::HEARTBEAT_MS as u64,
        period_ms: defaults::PERIOD_MS as u64,
        duty_percent: 0,
        working_set_mib: defaults::WORKING_SET_MIB,
        static_mib: defaults::STATIC_MIB,
        zero_mib: defaults::ZERO_MIB,
        high_mib: 0,
        dirty_mib_per_sec: 0,
        check_mib_per_sec: defaults::CHECK_MIB_PER_SEC as u64,
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
    };

    /// Reads a command line.
    pub fn parse(cmdline: &'a [u8]) -> Result<Self, Fault<'a>> {
        let text = core::str::from_utf8(cmdline)
            .map_err(|_| Fault { word: "command line", advice: "use UTF-8" })?;
        let mut params = Self::DEFAULT;
        for word in text.split_ascii_whitespace() {
            params.set(word).map_err(|advice| Fault { word, advice })?;
        }
        Ok(params)
    }

    fn set(&mut self, word: &'a str) -> Result<(), &'static str> {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "name" => {
                let fits = (1..=NAME_BYTES_MAX).contains(&value.len());
                self.name = Some(value).filter(|_| fits).ok_or("use 1 to 63 bytes")?;
            }
            "ip" => {
                self.ip = Some(address_and_prefix(value).ok_or("use an address like 10.0.0.2/24")?)
            }
            "gateway" => {
                self.gateway = Some(value.parse().map_err(|_| "use an address like 10.0.0.1")?);
            }
            "bench" => {
                self.bench = Some(bench(value).ok_or("use a benchmark of docs/probe-guest.md")?);
            }
            _ => return self.set_number(key, number(value)),
        }
        Ok(())
    }

    fn set_number(&mut self, key: &str, number: Option<u64>) -> Result<(), &'static str> {
        let within = |min: u32, max: u32| {
            number.and_then(|number| u32::try_from(number).ok()).filter(|n| (min..=max).contains(n))
        };
        let mib = || within(0, MIB_MAX).ok_or("use 0 to 1048576");
        let port = || {
            let port = within(1, u32::from(u16::MAX)).and_then(|port| u16::try_from(port).ok());
            port.ok_or("use 1 to 65535")
        };
        let any = || number.ok_or("use a number");
        match key {
            "hb_ms" => {
                self.heartbeat_ms = within(1, HEARTBEAT_MS_MAX).ok_or("use 1 to 60000")?.into();
            }
            "period_ms" => {
                self.period_ms = within(1, PERIOD_MS_MAX).ok_or("use 1 to 1000")?.into();
            }
            "duty" => self.duty_percent = within(0, 100).ok_or("use 0 to 100")?.into(),
            "ws_mib" => self.working_set_mib = mib()?,
            "static_mib" => self.static_mib = mib()?,
            "zero_mib" => self.zero_mib = mib()?,
            "high_mib" => self.high_mib = within(0, HIGH_MIB_MAX).ok_or("use 0 to 1024")?,
            "dirty_mib_s" => self.dirty_mib_per_sec = mib()?.into(),
            "check_mib_s" => self.check_mib_per_sec = mib()?.into(),
            "seed" => self.seed = any()?,
            "repeat" => self.repeat = within(1, defaults::REPEAT_MAX).ok_or("use 1 to 512")?,
            "tsc_khz" => self.tsc_khz = Some(any()?),
            "echo_port" => self.echo_port = port()?,
            "count_port" => self.count_port = port()?,
            "log_s" => self.log_per_sec = within(0, LOG_RATE_MAX).ok_or("use 0 to 10000")?,
            "log_bytes" => {
                let bytes = within(512, 4096).filter(|bytes| [512, 4096].contains(bytes));
                self.log_bytes = bytes.ok_or("use 512 or 4096")?;
            }
            "log_flush" => self.log_flush = within(1, defaults::LOG_FLUSH).ok_or("use 1 to 8")?,
            "virtio_base" => self.virtio_base = any()?,
            "virtio_stride" => self.virtio_stride = any()?,
            _ => return Err("unknown parameter, see docs/probe-guest.md"),
        }
        Ok(())
    }
}

/// Decimal, or hexadecimal after `0x`.
fn number(value: &str) -> Option<u64> {
    match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

fn bench(value: &str) -> Option<Bench> {
    let mut words = value.split(':');
    let disk = |write, flush, in_order| Some(What::Disk { write, flush, in_order });
    let what = match words.next()? {
        "disk-read" => disk(false, false, false),
        "disk-write" => disk(true, false, false),
        "disk-flush" => disk(true, true, false),
        "disk-read-in-order" => disk(false, false, true),
        "disk-write-in-order" => disk(true, false, true),
        "net-send" => Some(What::Frames { send: true }),
        "net-receive" => Some(What::Frames { send: false }),
        "tcp-send" => Some(What::Tcp { send: true }),
        "tcp-receive" => Some(What::Tcp { send: false }),
        _ => None,
    }?;
    let mut next = |least: u32, most: u32| {
        words.next()?.parse().ok().filter(|number| (least..=most).contains(number))
    };
    let bytes = next(1, defaults::BENCH_BYTES_MAX)?;
    let depth = next(1, defaults::BENCH_DEPTH_MAX)?;
    let ms = next(1, defaults::BENCH_MS_MAX)?;
    let fits = match what {
        What::Disk { .. } => bytes % 512 == 0,
        What::Frames { .. } => (60..=1514).contains(&bytes),
        What::Tcp { .. } => true,
    };
    (fits && words.next().is_none()).then_some(Bench { what, bytes, depth, ms })
}

fn address_and_prefix(value: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = value.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|prefix| (1..=30).contains(prefix))?;
    Some((address.parse().ok()?, prefix))
}

impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.word, self.advice)
    }
}
