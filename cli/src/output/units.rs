//! Quantities as people read them.

use std::time::{Duration, SystemTime};

use ballast_model::{Bytes, BytesPerSec, Millicores, Timestamp};

/// Memory or traffic.
pub(crate) fn bytes(amount: u64) -> String {
    Bytes(amount).to_string()
}

/// A rate.
pub(crate) fn rate(bytes_per_sec: u64) -> String {
    BytesPerSec(bytes_per_sec).to_string()
}

/// CPU, in thousandths of a core.
pub(crate) fn cpu(millicores: u64) -> String {
    Millicores(millicores).to_string()
}

/// What share of `whole` a part is, in whole percent; `-` when there is no whole.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.0}%", part as f64 / whole as f64 * 100.0) }
}

/// A duration with three digits or so: `850 µs`, `12.3 ms`, `4.56 s`, `3m 20s`.
pub(crate) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match time.as_micros() {
        0 => "0".to_owned(),
        1..=999 => format!("{} µs", time.as_micros()),
        1_000..=999_949 => format!("{:.1} ms", seconds * 1e3),
        _ if seconds < 60.0 => format!("{seconds:.2} s"),
        _ => coarse(time),
    }
}

/// Microseconds, as [`time`].
pub(crate) fn micros(count: u64) -> String {
    time(Duration::from_micros(count))
}

/// A long duration in its two largest units: `42s`, `3m 20s`, `5h 2m`, `3d 4h`.
pub(crate) fn coarse(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m {}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h {}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d {}h", s / 86_400, s / 3_600 % 24),
    }
}

/// How long ago an instant was; `never` for zero.
pub(crate) fn ago(unix_millis: u64) -> String {
    if unix_millis == 0 {
        return "never".to_owned();
    }
    let age = Timestamp::from(SystemTime::now()).since(Timestamp(unix_millis));
    format!("{} ago", coarse(age))
}

/// An instant in RFC 3339, UTC.
pub(crate) fn instant(unix_millis: u64) -> String {
    Timestamp(unix_millis).to_string()
}

/// The text, or `-` where there is none, so that columns stay countable.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_few_digits() {
        let check =
            |micros, expected: &str| assert_eq!(time(Duration::from_micros(micros)), expected);
        check(0, "0");
        check(850, "850 µs");
        check(12_345, "12.3 ms");
        check(999_949, "999.9 ms");
        check(999_960, "1.00 s");
        check(4_560_000, "4.56 s");
        check(200_000_000, "3m 20s");
    }

    #[test]
    fn long_times_have_two_units() {
        let check = |secs, expected: &str| assert_eq!(coarse(Duration::from_secs(secs)), expected);
        check(42, "42s");
        check(18_120, "5h 2m");
        check(273_600, "3d 4h");
    }

    #[test]
    fn a_share_of_nothing_is_a_dash() {
        assert_eq!(percent(1, 0), "-");
        assert_eq!(percent(3, 4), "75%");
    }
}
