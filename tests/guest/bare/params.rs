//! The command line as a value: `key=value` words in any order, the last of a
//! key counts. An unknown key or a value out of range is an error that says
//! what would be right.

use core::fmt;

/// A heart beats at least once a minute.
const HEARTBEAT_MS_MAX: u64 = 60_000;
const PERIOD_MS_MAX: u64 = 1_000;
/// No machine has more, and it keeps sums far from overflow.
const MIB_MAX: u64 = 1 << 20;
const NAME_BYTES_MAX: usize = 63;

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
    /// `dirty_mib_s=`: rate of rewriting, in MiB per second.
    pub dirty_mib_per_sec: u64,
    /// `check_mib_s=`: rate of checking besides rewriting, in MiB per second.
    pub check_mib_per_sec: u64,
    /// `seed=`: what page contents depend on.
    pub seed: u64,
    /// `tsc_khz=`: frequency of the time stamp counter.
    pub tsc_khz: Option<u64>,
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
        let number = value.parse::<u64>().ok();
        let within = |min, max| number.filter(|number| (min..=max).contains(number));
        let rate = || within(0, MIB_MAX).ok_or("use 0 to 1048576");
        let size = || rate().and_then(|mib| u32::try_from(mib).map_err(|_| "use 0 to 1048576"));
        match key {
            "name" => {
                let fits = (1..=NAME_BYTES_MAX).contains(&value.len());
                self.name = Some(value).filter(|_| fits).ok_or("use 1 to 63 bytes")?;
            }
            "hb_ms" => {
                self.heartbeat_ms = within(1, HEARTBEAT_MS_MAX).ok_or("use 1 to 60000")?;
            }
            "period_ms" => self.period_ms = within(1, PERIOD_MS_MAX).ok_or("use 1 to 1000")?,
            "duty" => self.duty_percent = within(0, 100).ok_or("use 0 to 100")?,
            "ws_mib" => self.working_set_mib = size()?,
            "static_mib" => self.static_mib = size()?,
            "zero_mib" => self.zero_mib = size()?,
            "dirty_mib_s" => self.dirty_mib_per_sec = rate()?,
            "check_mib_s" => self.check_mib_per_sec = rate()?,
            "seed" => self.seed = number.ok_or("use a number")?,
            "tsc_khz" => self.tsc_khz = Some(number.ok_or("use a number")?),
            _ => return Err("unknown parameter, see docs/probe-guest.md"),
        }
        Ok(())
    }
}

impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.word, self.advice)
    }
}
