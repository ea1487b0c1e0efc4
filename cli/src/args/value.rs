//! Values of options, parsed and bounded.

use std::collections::BTreeSet;
use std::str::FromStr;

use ballast_model::HostId;
use ballast_model::id::InvalidName;
use ballast_proto::convert::trail::REASON_BYTES_MAX;

/// The longest time an option may name.
const DURATION_MAX: std::time::Duration = std::time::Duration::from_secs(7 * 86_400);

/// A duration as people write it: `500ms`, `30s`, `5m`, `1h`; a bare number is seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duration(pub std::time::Duration);

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)];
        let seconds = units.iter().find_map(|(unit, factor)| {
            let digits = text.strip_suffix(unit)?;
            let plain = digits.bytes().all(|c| c.is_ascii_digit() || c == b'.');
            let amount = plain.then(|| digits.parse::<f64>().ok()).flatten()?;
            Some(amount * factor)
        });
        seconds
            .and_then(|seconds| std::time::Duration::try_from_secs_f64(seconds).ok())
            .filter(|time| !time.is_zero() && *time <= DURATION_MAX)
            .map(Self)
            .ok_or_else(|| {
                format!("{text:?} is not a duration: write for example 500ms, 30s or 5m")
            })
    }
}

/// A group of hosts, names separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostGroup(pub BTreeSet<HostId>);

impl FromStr for HostGroup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hosts =
            text.split(',').map(|name| name.parse().map_err(|e: InvalidName| e.to_string()));
        Ok(Self(hosts.collect::<Result<_, _>>()?))
    }
}

/// A URL that tonic can connect to.
pub(super) fn controller_url(text: &str) -> Result<String, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let parsed = url.parse::<tonic::transport::Uri>().ok();
    let usable = parsed.filter(|uri| {
        uri.scheme_str() == Some("http") && uri.port_u16().is_some() && uri.path() == "/"
    });
    usable.map(|_| url).ok_or_else(|| {
        format!("{text:?} is not an address: write for example http://127.0.0.1:7070")
    })
}

/// A reason fit for the audit.
pub(super) fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if (1..=REASON_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(format!("a reason is one line of 1 to {REASON_BYTES_MAX} bytes"))
    }
}

/// `NAME=VALUE`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not a label: write for example tier=web")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_duration(text: &str, millis: Option<u64>) {
        let parsed = text.parse::<Duration>().ok().map(|time| time.0);
        assert_eq!(parsed, millis.map(std::time::Duration::from_millis), "{text:?}");
    }

    #[test]
    fn durations_have_units_and_bounds() {
        check_duration("500ms", Some(500));
        check_duration("30s", Some(30_000));
        check_duration("1.5m", Some(90_000));
        check_duration("7", Some(7_000));
        for bad in ["", "0", "-1s", "1e3s", "inf", "NaN", "soon", "8000h", "s"] {
            check_duration(bad, None);
        }
    }

    #[test]
    fn addresses_need_a_port() {
        assert_eq!(controller_url("127.0.0.1:7070").unwrap(), "http://127.0.0.1:7070");
        assert_eq!(controller_url("http://[::1]:7070").unwrap(), "http://[::1]:7070");
        for bad in ["", "localhost", "ftp://a:1", "http://", "http://a:1/x", "https://a:1"] {
            assert!(controller_url(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reasons_are_one_line() {
        assert_eq!(reason(" new memory ").unwrap(), "new memory");
        assert!(reason(" ").is_err());
        assert!(reason("a\nb").is_err());
    }

    #[test]
    fn labels_have_a_name() {
        assert_eq!(label("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert!(label("=b").is_err());
        assert!(label("a").is_err());
    }
}
