//! Every kind of identifier, each with a type of its own.
//!
//! Hosts, VMs, rules and pools are named by their operators ([`HostId`],
//! [`VmId`], [`RuleId`], [`PoolId`]); migrations and plans get time-ordered UUIDs from the
//! controller ([`MigrationId`], [`PlanId`]).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest name, in bytes: the limit of a DNS label, so that a VM or host
/// name can also be its host name.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a string is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a valid {kind} name: use 1 to {NAME_BYTES_MAX} characters of a-z, 0-9, '-', '_' and '.', \
     starting with a letter or digit"
)]
pub struct InvalidName {
    kind: &'static str,
    text: String,
}

fn is_name(text: &str) -> bool {
    let body = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    let bytes = text.as_bytes();
    (1..=NAME_BYTES_MAX).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|&c| body(c))
}

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if is_name(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidName { kind: $kind, text: text.to_owned() })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_id! {
    /// A machine that runs VMs.
    HostId, "host"
}
name_id! {
    /// A virtual machine.
    VmId, "VM"
}
name_id! {
    /// A placement rule.
    RuleId, "rule"
}
name_id! {
    /// A resource pool.
    PoolId, "pool"
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID chosen by the caller (the controller uses version 7, so that ids sort by time).
            pub const fn new(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID itself.
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

uuid_id! {
    /// One VM's move from one host to another.
    MigrationId
}
uuid_id! {
    /// One plan.
    PlanId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels_with_dots() {
        for good in ["a", "web-1", "db.prod_2", &"x".repeat(63)] {
            assert_eq!(good.parse::<VmId>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", ".", "Web", "a/b", "a b", "ü", &"x".repeat(64)] {
            let error = bad.parse::<HostId>().unwrap_err().to_string();
            assert!(error.contains("valid host name"), "{error}");
        }
    }

    #[test]
    fn a_bad_name_is_refused_on_deserialisation_too() {
        assert!(serde_json::from_str::<VmId>("\"../etc\"").is_err());
    }
}
