//! Quantities that carry their unit in and out.
//!
//! All are integers except [`Ratio`]; arithmetic saturates, because a
//! quantity that wrapped would move VMs for no reason.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};

/// Why a string is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: write for example {example}")]
pub struct InvalidQuantity {
    text: String,
    what: &'static str,
    example: &'static str,
}

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0);

            /// The bare number in this type's unit.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// `self - other`, or zero where `other` is larger.
            #[must_use]
            pub const fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            /// What share of `whole` this is; zero when there is no whole.
            pub fn ratio_of(self, whole: Self) -> Ratio {
                if whole.0 == 0 { Ratio::ZERO } else { Ratio::new(self.0 as f64 / whole.0 as f64) }
            }

            /// This quantity times `ratio`, rounded to the nearest whole unit; a negative ratio gives zero.
            #[must_use]
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // float-to-int casts saturate
            pub fn scaled(self, ratio: Ratio) -> Self {
                Self((self.0 as f64 * ratio.get()).round() as u64)
            }
        }

        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }

        impl Sub for $name {
            type Output = Self;
            /// Saturates at zero.
            fn sub(self, other: Self) -> Self {
                self.saturating_sub(other)
            }
        }

        impl SubAssign for $name {
            fn sub_assign(&mut self, other: Self) {
                *self = *self - other;
            }
        }

        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
                iter.fold(Self::ZERO, Add::add)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("a whole number or a string with a unit (", stringify!($name), ")"))
                    }
                    fn visit_u64<E: de::Error>(self, value: u64) -> Result<$name, E> {
                        Ok($name(value))
                    }
                    fn visit_i64<E: de::Error>(self, value: i64) -> Result<$name, E> {
                        u64::try_from(value).map($name).map_err(|_| E::custom("must not be negative"))
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

quantity! {
    /// An amount of memory, disk or traffic, in bytes. Parsed from `512MiB`, `2GiB`, `1500000`.
    Bytes
}
quantity! {
    /// A rate of traffic or dirtying, in bytes per second. Parsed from `118MiB/s`, `1Gbit/s`.
    BytesPerSec
}
quantity! {
    /// CPU time per time: 1000 is one core fully used. Parsed from `500m` or `1.5` (cores).
    Millicores
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const BYTE_SUFFIXES: [(&str, u64); 10] = [
    ("KiB", KIB),
    ("MiB", MIB),
    ("GiB", GIB),
    ("TiB", TIB),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
    ("", 1),
];

/// Reads a non-negative decimal with one of `suffixes`, longest first, and scales it.
fn parse_scaled(text: &str, suffixes: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    suffixes.iter().find_map(|(suffix, factor)| {
        let digits = text.strip_suffix(suffix)?.trim_end();
        if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit() || c == b'.') {
            return None;
        }
        if let Ok(whole) = digits.parse::<u64>() {
            return whole.checked_mul(*factor);
        }
        let scaled = digits.parse::<f64>().ok()? * *factor as f64;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked on this line
        (scaled.is_finite() && scaled >= 0.0 && scaled < u64::MAX as f64)
            .then_some(scaled.round() as u64)
    })
}

impl Bytes {
    /// `count` mebibytes.
    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(MIB))
    }

    /// `count` gibibytes.
    pub const fn gib(count: u64) -> Self {
        Self(count.saturating_mul(GIB))
    }

    /// How long this takes at `rate`, 136 years at most, so that sums and multiples of it cannot overflow; `None` when
    /// the rate is zero.
    pub fn time_at(self, rate: BytesPerSec) -> Option<Duration> {
        let seconds = self.0 as f64 / rate.0 as f64;
        (rate.0 > 0).then(|| Duration::from_secs_f64(seconds.min(f64::from(u32::MAX))))
    }
}

impl FromStr for Bytes {
    type Err = InvalidQuantity;
    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        parse_scaled(text, &BYTE_SUFFIXES).map(Self).ok_or_else(|| InvalidQuantity {
            text: text.to_owned(),
            what: "an amount of bytes",
            example: "512MiB or 2GiB",
        })
    }
}

fn fmt_bytes(value: u64, f: &mut fmt::Formatter<'_>, per: &str) -> fmt::Result {
    let (unit, name) = match value {
        v if v >= TIB => (TIB, "TiB"),
        v if v >= GIB => (GIB, "GiB"),
        v if v >= MIB => (MIB, "MiB"),
        v if v >= KIB => (KIB, "KiB"),
        _ => return f.pad(&format!("{value} B{per}")),
    };
    f.pad(&format!("{:.1} {name}{per}", value as f64 / unit as f64))
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_bytes(self.0, f, "")
    }
}

impl BytesPerSec {
    /// `amount` per `time`; zero when no time passed.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // float-to-int casts saturate
    pub fn from_amount(amount: Bytes, time: Duration) -> Self {
        if time.is_zero() {
            Self::ZERO
        } else {
            Self((amount.0 as f64 / time.as_secs_f64()) as u64)
        }
    }
}

impl FromStr for BytesPerSec {
    type Err = InvalidQuantity;
    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let amount = text.trim().strip_suffix("/s").unwrap_or(text.trim());
        let bits = [("Gbit", 125_000_000), ("Mbit", 125_000), ("kbit", 125)];
        parse_scaled(amount, &bits)
            .or_else(|| parse_scaled(amount, &BYTE_SUFFIXES))
            .map(Self)
            .ok_or_else(|| InvalidQuantity {
                text: text.to_owned(),
                what: "an amount of bytes per second",
                example: "118MiB/s or 1Gbit/s",
            })
    }
}

impl fmt::Display for BytesPerSec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_bytes(self.0, f, "/s")
    }
}

impl Millicores {
    /// `count` whole cores.
    pub const fn cores(count: u64) -> Self {
        Self(count.saturating_mul(1000))
    }

    /// The mean use over `wall` of something that consumed `cpu` time.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // float-to-int casts saturate
    pub fn from_cpu_time(cpu: Duration, wall: Duration) -> Self {
        if wall.is_zero() {
            return Self::ZERO;
        }
        Self((cpu.as_secs_f64() / wall.as_secs_f64() * 1000.0).round() as u64)
    }
}

impl FromStr for Millicores {
    type Err = InvalidQuantity;
    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        parse_scaled(text, &[("m", 1), ("", 1000)]).map(Self).ok_or_else(|| InvalidQuantity {
            text: text.to_owned(),
            what: "an amount of CPU",
            example: "500m or 1.5 (cores)",
        })
    }
}

impl fmt::Display for Millicores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}m", self.0))
    }
}

/// A share of a whole as a finite number: 1.0 is all of it, more is overload.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Ratio(f64);

impl Ratio {
    /// None of it.
    pub const ZERO: Self = Self(0.0);
    /// All of it.
    pub const ONE: Self = Self(1.0);

    /// A ratio; NaN and infinities become zero, so that a `Ratio` is always finite.
    pub const fn new(value: f64) -> Self {
        if value.is_finite() { Self(value) } else { Self::ZERO }
    }

    /// The bare number.
    pub const fn get(self) -> f64 {
        self.0
    }

    /// The same in percent.
    pub fn percent(self) -> f64 {
        self.0 * 100.0
    }
}

impl TryFrom<f64> for Ratio {
    type Error = InvalidQuantity;
    fn try_from(value: f64) -> Result<Self, InvalidQuantity> {
        if value.is_finite() {
            Ok(Self(value))
        } else {
            Err(InvalidQuantity { text: value.to_string(), what: "a finite ratio", example: "0.8" })
        }
    }
}

impl From<Ratio> for f64 {
    fn from(ratio: Ratio) -> f64 {
        ratio.0
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.1} %", self.percent()))
    }
}

/// CPU and memory together: a capacity, a demand or a size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// CPU, in thousandths of a core.
    #[serde(rename = "cpu_millicores")]
    pub cpu: Millicores,
    /// Memory, in bytes.
    #[serde(rename = "memory_bytes")]
    pub memory: Bytes,
}

impl Resources {
    /// Both amounts.
    pub const fn new(cpu: Millicores, memory: Bytes) -> Self {
        Self { cpu, memory }
    }

    /// Whether both amounts fit into `room`.
    pub fn fits_in(&self, room: &Self) -> bool {
        self.cpu <= room.cpu && self.memory <= room.memory
    }
}

impl Add for Resources {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, memory: self.memory + other.memory }
    }
}

impl AddAssign for Resources {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Resources {
    type Output = Self;
    /// Saturates at zero in each amount.
    fn sub(self, other: Self) -> Self {
        Self { cpu: self.cpu - other.cpu, memory: self.memory - other.memory }
    }
}

impl SubAssign for Resources {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Sum for Resources {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), Add::add)
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPU, {} memory", self.cpu, self.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_bytes(text: &str, expected: Option<u64>) {
        assert_eq!(text.parse::<Bytes>().ok(), expected.map(Bytes), "{text:?}");
    }

    #[test]
    fn times_are_long_enough_and_never_overflow() {
        let at = |bytes, rate| Bytes(bytes).time_at(BytesPerSec(rate));
        assert_eq!(at(3_000, 1_000), Some(Duration::from_secs(3)));
        assert_eq!(at(1, 0), None);
        assert_eq!(at(u64::MAX, 1), Some(Duration::from_secs(u64::from(u32::MAX))));
    }

    #[test]
    fn bytes_parse_with_binary_and_decimal_suffixes() {
        check_bytes("512MiB", Some(512 << 20));
        check_bytes("1.5 GiB", Some(3 << 29));
        check_bytes("2GB", Some(2_000_000_000));
        check_bytes("17", Some(17));
        check_bytes("17 B", Some(17));
        check_bytes("-1", None);
        check_bytes("1e9", None);
        check_bytes("", None);
        check_bytes("MiB", None);
        check_bytes("99999999999999TiB", None);
    }

    #[test]
    fn rates_parse_in_bits_and_bytes() {
        assert_eq!("1Gbit/s".parse(), Ok(BytesPerSec(125_000_000)));
        assert_eq!("2MiB/s".parse(), Ok(BytesPerSec(2 << 20)));
        assert!("fast".parse::<BytesPerSec>().is_err());
    }

    #[test]
    fn cpu_parses_in_millicores_and_cores() {
        assert_eq!("250m".parse(), Ok(Millicores(250)));
        assert_eq!("1.5".parse(), Ok(Millicores(1500)));
        assert_eq!("2".parse(), Ok(Millicores(2000)));
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Bytes(1) - Bytes(2), Bytes::ZERO);
        assert_eq!(Bytes(u64::MAX) + Bytes(1), Bytes(u64::MAX));
        assert_eq!(Bytes(5).ratio_of(Bytes::ZERO), Ratio::ZERO);
    }

    #[test]
    fn a_ratio_is_always_finite() {
        assert_eq!(Ratio::new(f64::NAN), Ratio::ZERO);
        assert!(Ratio::try_from(f64::INFINITY).is_err());
    }

    #[test]
    fn quantities_deserialise_from_numbers_and_strings() {
        assert_eq!(serde_json::from_str::<Bytes>("1024").unwrap(), Bytes(1024));
        assert_eq!(serde_json::from_str::<Bytes>("\"1KiB\"").unwrap(), Bytes(1024));
        assert!(serde_json::from_str::<Bytes>("-1").is_err());
        assert!(serde_json::from_str::<Bytes>("\"lots\"").is_err());
    }
}
