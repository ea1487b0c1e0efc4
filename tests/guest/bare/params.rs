//! The command line as a value: `key=value` words in any order, the last of a
//! key counts. An unknown key or a value out of range is an error that says
//! what would be right.

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
    pub fn parse(cmdline: &'a [u8]) -> Result<Self, &'static str> {
        let text = core::str::from_utf8(cmdline).map_err(|_| "command line is not UTF-8")?;
        let mut params = Self::DEFAULT;
        for word in text.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').ok_or("parameter is not key=value")?;
            params.set(key, value)?;
        }
        Ok(params)
    }

    fn set(&mut self, key: &str, value: &'a str) -> Result<(), &'static str> {
        let number = value.parse::<u64>().ok();
        let within = |min, max| number.filter(|number| (min..=max).contains(number));
        let mib = || within(0, MIB_MAX).and_then(|mib| u32::try_from(mib).ok());
        match key {
            "name" => {
                let fits = (1..=NAME_BYTES_MAX).contains(&value.len());
                self.name = Some(value).filter(|_| fits).ok_or("name: use 1 to 63 bytes")?;
            }
            "hb_ms" => {
                self.heartbeat_ms = within(1, HEARTBEAT_MS_MAX).ok_or("hb_ms: use 1 to 60000")?;
            }
            "period_ms" => {
                self.period_ms = within(1, PERIOD_MS_MAX).ok_or("period_ms: use 1 to 1000")?;
            }
            "duty" => self.duty_percent = within(0, 100).ok_or("duty: use 0 to 100")?,
            "ws_mib" => self.working_set_mib = mib().ok_or("ws_mib: use 0 to 1048576")?,
            "static_mib" => self.static_mib = mib().ok_or("static_mib: use 0 to 1048576")?,
            "zero_mib" => self.zero_mib = mib().ok_or("zero_mib: use 0 to 1048576")?,
            "dirty_mib_s" => {
                self.dirty_mib_per_sec =
                    within(0, MIB_MAX).ok_or("dirty_mib_s: use 0 to 1048576")?;
            }
            "check_mib_s" => {
                self.check_mib_per_sec =
                    within(0, MIB_MAX).ok_or("check_mib_s: use 0 to 1048576")?;
            }
            "seed" => self.seed = number.ok_or("seed: use a number")?,
            "tsc_khz" => self.tsc_khz = Some(number.ok_or("tsc_khz: use a number")?),
            _ => return Err("unknown parameter: see docs/probe-guest.md"),
        }
        Ok(())
    }
}
