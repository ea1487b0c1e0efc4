//! What fails, or is near, together.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{HostId, Refusal, RefusalCode};

/// The most levels a [`Domain`] may have.
pub const DOMAIN_LEVELS_MAX: usize = 4;

/// What fails, or is near, together: hosts with the same values of these labels, outermost label first. Without labels
/// every host is a domain of its own. Hosts that lack a label share the value "none" of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Domain(Vec<String>);

impl Domain {
    /// Hosts with the same values of these labels, outermost label first.
    ///
    /// # Errors
    /// `InvalidArgument` when there are more than [`DOMAIN_LEVELS_MAX`] or one is empty.
    pub fn new(labels: Vec<String>) -> Result<Self, Refusal> {
        let bad = labels.iter().any(|label| label.trim() != label || label.is_empty());
        if bad || labels.len() > DOMAIN_LEVELS_MAX || labels.iter().any(|label| label == "host") {
            return Err(Refusal::new(
                RefusalCode::InvalidArgument,
                format!("{:?} is not a domain", labels.join("/")),
                "use 'host', or 1 to 4 labels of hosts separated by '/', e.g. room/rack",
            ));
        }
        Ok(Self(labels))
    }

    /// Its labels, outermost first; none when every host is a domain of its own.
    pub fn labels(&self) -> &[String] {
        &self.0
    }

    /// Whether every host is a domain of its own.
    pub fn is_host(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of the domain a host is in.
    pub fn of(&self, host: &HostId, labels: &BTreeMap<String, String>) -> String {
        if self.is_host() {
            return host.to_string();
        }
        let value = |label: &String| labels.get(label).map_or("none", String::as_str);
        self.0.iter().map(value).collect::<Vec<_>>().join("/")
    }
}

impl FromStr for Domain {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        if text == "host" {
            return Ok(Self::default());
        }
        Self::new(text.split('/').map(str::to_owned).collect())
    }
}

impl TryFrom<String> for Domain {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

impl From<Domain> for String {
    fn from(domain: Domain) -> Self {
        domain.to_string()
    }
}

impl fmt::Display for Domain {
    /// `room/rack`, or `host`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() { f.write_str("host") } else { f.write_str(&self.0.join("/")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_nest_and_read_as_they_are_written() {
        let domain: Domain = "room/rack".parse().unwrap();
        assert_eq!(domain.to_string(), "room/rack");
        let labels = BTreeMap::from([("rack".to_owned(), "7".to_owned())]);
        let host: HostId = "h".parse().unwrap();
        assert_eq!(domain.of(&host, &labels), "none/7");
        assert_eq!("host".parse::<Domain>().unwrap().of(&host, &labels), "h");
        for bad in ["", "room/", "host/rack", "a/b/c/d/e"] {
            assert!(bad.parse::<Domain>().is_err(), "{bad}");
        }
    }
}
