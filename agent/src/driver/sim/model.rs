//! The modelled guest: pure functions of its command line and of how long it ran.
//!
//! The words of the command line are those of the probe guest
//! (docs/probe-guest.md); words it does not know are left alone.

use std::time::Duration;

use ballast_model::{Bytes, BytesPerSec, Millicores, Refusal, RefusalCode, VmSpec};

/// The most console text given at once, in bytes.
const CONSOLE_BYTES_MAX: usize = 64 << 10;
/// What a probe guest uses besides what it was told to.
const BASE_MEMORY: Bytes = Bytes::mib(2);
/// ` p0 e0\n` and the letters and spaces before: the modelled guest has no memory to check.
const LINE_REST_BYTES: u64 = "H ".len() as u64 + " ".len() as u64 + " p0 e0\n".len() as u64;

/// What a modelled guest does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    heartbeat: Duration,
    duty_percent: u64,
    working_set: Bytes,
    resident: Bytes,
    dirty: BytesPerSec,
    boot_line: String,
}

impl Guest {
    /// Reads the command line.
    ///
    /// # Errors
    /// `InvalidArgument` that names the word.
    pub fn new(spec: &VmSpec) -> Result<Self, Refusal> {
        let word = |key: &str, range: std::ops::RangeInclusive<u64>, default: u64| {
            let words = spec.cmdline.split_ascii_whitespace();
            let Some(value) =
                words.filter_map(|w| w.strip_prefix(key)?.strip_prefix('=')).next_back()
            else {
                return Ok(default);
            };
            value.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
                Refusal::new(
                    RefusalCode::InvalidArgument,
                    format!("the command line of VM {} says {key}={value:.20}", spec.id),
                    format!("use {} to {}", range.start(), range.end()),
                )
            })
        };
        let mib = |key: &str, default: u64| word(key, 0..=1 << 20, default).map(Bytes::mib);
        let working_set = mib("ws_mib", 8)?;
        let resident = BASE_MEMORY + working_set + mib("static_mib", 4)?;
        Ok(Self {
            heartbeat: Duration::from_millis(word("hb_ms", 1..=60_000, 200)?),
            duty_percent: word("duty", 0..=100, 0)?,
            working_set: working_set.min(spec.memory),
            resident: resident.min(spec.memory),
            dirty: BytesPerSec(mib("dirty_mib_s", 0)?.get()),
            boot_line: format!("B 1 {} sim=1\n", spec.id),
        })
    }

    /// Mean CPU use while it runs.
    pub fn cpu(&self) -> Millicores {
        Millicores(self.duty_percent * 10)
    }

    /// CPU time used after it ran for `ran`.
    pub fn cpu_time(&self, ran: Duration) -> Duration {
        Duration::from_secs_f64(ran.as_secs_f64() * self.duty_percent as f64 / 100.0)
    }

    /// Memory it has touched.
    pub fn resident(&self) -> Bytes {
        self.resident
    }

    /// Rate at which it rewrites its working set; never more than all of it in a heartbeat's time.
    pub fn dirty(&self) -> BytesPerSec {
        if self.working_set == Bytes::ZERO { BytesPerSec::ZERO } else { self.dirty }
    }

    /// Memory rewritten within `time`.
    pub fn dirtied_in(&self, time: Duration) -> Bytes {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Bytes(self.dirty().get().saturating_mul(millis) / 1000).min(self.working_set)
    }

    /// Console text from `offset` on, after it ran for `ran`: the offset of the first byte, and the text.
    pub fn console(&self, offset: u64, ran: Duration) -> (u64, Vec<u8>) {
        let heartbeat_ms = u64::try_from(self.heartbeat.as_millis()).unwrap_or(u64::MAX).max(1);
        let beats = u64::try_from(ran.as_millis()).unwrap_or(u64::MAX) / heartbeat_ms + 1;
        let start_of =
            |number: u64| self.boot_line.len() as u64 + lines_bytes(number, heartbeat_ms);
        let end = start_of(beats);
        let offset = offset.min(end);
        let mut text = String::new();
        let mut at = offset;
        if offset < self.boot_line.len() as u64 {
            text.push_str(&self.boot_line);
            at = 0;
        }
        // The last line that starts at or before the offset.
        let (mut low, mut high) = (0, beats);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if start_of(middle) <= offset { low = middle } else { high = middle }
        }
        if at != 0 || !text.starts_with('B') {
            at = start_of(low);
        }
        for number in low..beats {
            if text.len() > CONSOLE_BYTES_MAX + self.boot_line.len() {
                break;
            }
            text.push_str(&format!("H {number} {} p0 e0\n", number * heartbeat_ms));
        }
        let skip = usize::try_from(offset - at).unwrap_or(usize::MAX).min(text.len());
        let mut bytes = text.into_bytes().split_off(skip);
        bytes.truncate(CONSOLE_BYTES_MAX);
        (offset, bytes)
    }
}

/// Length of the lines of heartbeats 0 to `count - 1`.
fn lines_bytes(count: u64, heartbeat_ms: u64) -> u64 {
    let mut bytes = count * LINE_REST_BYTES + digits_below(count);
    // Digits of number * heartbeat_ms, for each length at once.
    let mut power: u64 = 1;
    loop {
        // Numbers whose time has more digits than `power` has zeroes: one digit each.
        let first = if power == 1 { 0 } else { power.div_ceil(heartbeat_ms) };
        if first >= count {
            return bytes;
        }
        bytes += count - first;
        let Some(next) = power.checked_mul(10) else { return bytes };
        power = next;
    }
}

/// Digits of all numbers below `count` together.
fn digits_below(count: u64) -> u64 {
    let mut digits = 0;
    let mut power: u64 = 1;
    loop {
        let first = if power == 1 { 0 } else { power };
        if first >= count {
            return digits;
        }
        digits += count - first;
        let Some(next) = power.checked_mul(10) else { return digits };
        power = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    fn guest(cmdline: &str) -> Guest {
        Guest::new(&spec("web-1", cmdline)).unwrap()
    }

    #[test]
    fn the_command_line_is_the_probe_guests() {
        let guest = guest("duty=30 ws_mib=16 duty=40 dirty_mib_s=3 quiet static_mib=0");
        assert_eq!(guest.cpu(), Millicores(400));
        assert_eq!(guest.resident(), Bytes::mib(18));
        assert_eq!(guest.dirtied_in(Duration::from_secs(2)), Bytes::mib(6));
        assert_eq!(guest.dirtied_in(Duration::from_secs(200)), Bytes::mib(16));
        assert_eq!(guest.cpu_time(Duration::from_secs(10)), Duration::from_secs(4));
        let refusal = Guest::new(&spec("web-1", "duty=101")).unwrap_err();
        assert_eq!(refusal.remedy, "use 0 to 100");
    }

    #[test]
    fn heartbeats_are_those_of_the_time_it_ran() {
        let (offset, text) = guest("hb_ms=100").console(0, Duration::from_millis(250));
        assert_eq!(offset, 0);
        let expected = "B 1 web-1 sim=1\nH 0 0 p0 e0\nH 1 100 p0 e0\nH 2 200 p0 e0\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn text_read_in_pieces_is_the_text() {
        for heartbeat_ms in [1, 7, 200, 60_000] {
            let guest = guest(&format!("hb_ms={heartbeat_ms}"));
            let ran = Duration::from_millis(heartbeat_ms * 1200 + 5);
            let (_, whole) = guest.console(0, ran);
            assert!(whole.len() < CONSOLE_BYTES_MAX && whole.ends_with(b"\n"));
            for offset in [0, 1, 15, 16, 17, 27, 28, 100, 5_000, whole.len() - 1, whole.len()] {
                let (from, text) = guest.console(offset as u64, ran);
                assert_eq!((from, &text[..]), (offset as u64, &whole[offset..]), "{heartbeat_ms}");
            }
            assert_eq!(guest.console(1 << 40, ran), (whole.len() as u64, Vec::new()));
        }
    }

    #[test]
    fn one_answer_is_bounded() {
        let (from, text) = guest("hb_ms=1").console(3, Duration::from_secs(100_000));
        assert_eq!((from, text.len()), (3, CONSOLE_BYTES_MAX));
    }
}
