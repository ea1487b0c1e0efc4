//! Checks an audit trail: nothing changed, removed, moved or added.
//!
//! The trail is read in the order of its keys, as raw bytes, and must be
//! 1, 2, 3, … without a gap up to the head. Every entry must be exactly what
//! was written (byte for byte, which the hash alone would not show), carry its
//! predecessor's hash, and close only what was opened before and not yet
//! closed. Someone who can rewrite every entry after the one they change, and
//! the head, is not found by this; only a head kept elsewhere shows that.

use std::collections::BTreeSet;
use std::fmt;

use super::{AuditEntry, AuditHash, AuditHead, AuditRecord};

/// A trail that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How many entries there are.
    pub entries: u64,
    /// Sequence numbers of opening entries that no entry closes, in order.
    pub open: Vec<u64>,
}

/// Where a trail breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("audit entry {sequence}: {what}")]
pub struct Break {
    /// The entry that is wrong, or missing; for a fault of the head the newest entry it should name.
    pub sequence: u64,
    /// What is wrong with it.
    pub what: Fault,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// There is no entry of this number.
    Missing,
    /// A key that is no entry's stands where this entry should.
    ForeignKey(String),
    /// The entry stands where another should, or a second time.
    OutOfOrder,
    /// It is no entry, or not written as entries are.
    Unreadable(String),
    /// It says that it is another entry.
    Misplaced {
        /// The number it bears.
        says: u64,
    },
    /// Its hash does not cover what it says.
    Tampered,
    /// It does not carry the hash of its predecessor.
    Unchained,
    /// It closes an entry that was never opened, or closed before.
    ClosesNothing {
        /// The number of the entry it claims to close.
        opened: u64,
    },
    /// There are entries but no head.
    HeadMissing,
    /// The head names an earlier entry as the newest.
    BeyondHead {
        /// The number in the head.
        head: u64,
    },
    /// The head carries another hash than the newest entry.
    HeadDiffers,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("it is missing"),
            Self::ForeignKey(key) => write!(f, "the key {key:?} stands in its place"),
            Self::OutOfOrder => f.write_str("it stands in another's place"),
            Self::Unreadable(why) => write!(f, "it cannot be read: {why}"),
            Self::Misplaced { says } => write!(f, "what stands there says it is entry {says}"),
            Self::Tampered => f.write_str("it was changed: its hash does not fit what it says"),
            Self::Unchained => f.write_str("it does not follow the entry before it"),
            Self::ClosesNothing { opened } => {
                write!(f, "it closes entry {opened}, which is not open")
            }
            Self::HeadMissing => f.write_str("the head record is missing"),
            Self::BeyondHead { head } => write!(f, "the head says that entry {head} is the newest"),
            Self::HeadDiffers => f.write_str("the head record carries another hash"),
        }
    }
}

/// Verifies a trail as it is read, entry by entry.
#[derive(Debug)]
pub struct ChainVerifier {
    newest: AuditHead,
    open: BTreeSet<u64>,
}

impl Default for ChainVerifier {
    fn default() -> Self {
        Self { newest: AuditHead::empty(), open: BTreeSet::new() }
    }
}

impl ChainVerifier {
    /// Takes the next entry, in the order of keys. `key` may be the whole store key; its last part counts.
    ///
    /// # Errors
    /// When the entry does not belong there.
    pub fn push(&mut self, key: &str, json: &[u8]) -> Result<(), Break> {
        let expected = self.newest.sequence + 1;
        let number = key.rsplit('/').next().unwrap_or(key);
        let wrong = |sequence, what| Err(Break { sequence, what });
        let sequence = match number.parse::<u64>() {
            Ok(sequence) if number == format!("{sequence:020}") => sequence,
            _ => return wrong(expected, Fault::ForeignKey(key.to_owned())),
        };
        if sequence > expected {
            return wrong(expected, Fault::Missing);
        }
        if sequence < expected {
            return wrong(sequence, Fault::OutOfOrder);
        }
        let entry = match read_exactly(json) {
            Ok(entry) => entry,
            Err(why) => return wrong(sequence, Fault::Unreadable(why)),
        };
        if entry.sequence != sequence {
            return wrong(sequence, Fault::Misplaced { says: entry.sequence });
        }
        if entry.hash != entry.computed_hash() {
            return wrong(sequence, Fault::Tampered);
        }
        if entry.previous != self.newest.hash {
            return wrong(sequence, Fault::Unchained);
        }
        match entry.record {
            AuditRecord::Opened => {
                self.open.insert(sequence);
            }
            AuditRecord::Closed { opened, .. } => {
                if !self.open.remove(&opened) {
                    return wrong(sequence, Fault::ClosesNothing { opened });
                }
            }
        }
        self.newest = entry.head();
        Ok(())
    }

    /// The last entry taken.
    pub const fn newest(&self) -> &AuditHead {
        &self.newest
    }

    /// Ends the trail: it must end where the head says.
    ///
    /// # Errors
    /// When it does not.
    pub fn finish(self, head: Option<&AuditHead>) -> Result<Verified, Break> {
        let sequence = self.newest.sequence;
        let wrong = |sequence, what| Err(Break { sequence, what });
        let empty = AuditHead { sequence: 0, hash: AuditHash::genesis() };
        let head = match head {
            None if sequence > 0 => return wrong(sequence, Fault::HeadMissing),
            None => &empty,
            Some(head) => head,
        };
        if head.sequence > sequence {
            return wrong(sequence + 1, Fault::Missing);
        }
        if head.sequence < sequence {
            return wrong(head.sequence + 1, Fault::BeyondHead { head: head.sequence });
        }
        if head.hash != self.newest.hash {
            return wrong(sequence, Fault::HeadDiffers);
        }
        Ok(Verified { entries: sequence, open: self.open.into_iter().collect() })
    }
}

/// Reads an entry and makes sure that writing it gives the same bytes.
fn read_exactly(json: &[u8]) -> Result<AuditEntry, String> {
    let entry: AuditEntry = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    match serde_json::to_vec(&entry) {
        Ok(written) if written == json => Ok(entry),
        _ => Err("it is not written as entries are".to_owned()),
    }
}

/// Verifies a whole trail: keys and raw values in the order of keys, without the head, and the head.
///
/// # Errors
/// The first break.
pub fn verify_chain<K: AsRef<str>, V: AsRef<[u8]>>(
    entries: impl IntoIterator<Item = (K, V)>,
    head: Option<&AuditHead>,
) -> Result<Verified, Break> {
    let mut verifier = ChainVerifier::default();
    for (key, json) in entries {
        verifier.push(key.as_ref(), json.as_ref())?;
    }
    verifier.finish(head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::{AuditOutcome, action};
    use crate::{ReasonTrail, Timestamp};

    type Trail = (Vec<(String, Vec<u8>)>, Option<AuditHead>);

    fn key(sequence: u64) -> String {
        format!("/ballast/v1/audit/{sequence:020}")
    }

    fn sealed(sequence: u64, previous: &AuditHash, record: AuditRecord) -> AuditEntry {
        AuditEntry {
            sequence,
            previous: previous.clone(),
            at: Timestamp(1_000 + sequence),
            record,
            action: action::MIGRATION.into(),
            subject: format!("vm-{sequence}"),
            details: [("to".to_owned(), "host-b".to_owned())].into(),
            reasons: ReasonTrail::new("balancer", "host-a is full", Timestamp(1_000)),
            hash: AuditHash::genesis(),
        }
        .sealed()
    }

    /// A trail of `closed` opened-and-closed pairs and then one open record.
    fn trail(closed: u64) -> Trail {
        let mut head = AuditHead::empty();
        let mut entries = Vec::new();
        for n in 0..=closed * 2 {
            let sequence = n + 1;
            let outcome = AuditOutcome::Failed { why: "the link broke".into() };
            let record = match n % 2 {
                0 => AuditRecord::Opened,
                _ => AuditRecord::Closed { opened: n, outcome },
            };
            let entry = sealed(sequence, &head.hash, record);
            head = entry.head();
            entries.push((key(sequence), serde_json::to_vec(&entry).unwrap()));
        }
        (entries, Some(head))
    }

    fn edit(trail: &mut Trail, sequence: usize, change: impl FnOnce(&mut AuditEntry)) {
        let json = &mut trail.0[sequence - 1].1;
        let mut entry: AuditEntry = serde_json::from_slice(json).unwrap();
        change(&mut entry);
        *json = serde_json::to_vec(&entry).unwrap();
    }

    #[test]
    fn a_whole_trail_holds() {
        let (entries, head) = trail(3);
        let verified = verify_chain(entries, head.as_ref()).unwrap();
        assert_eq!(verified, Verified { entries: 7, open: vec![7] });
        let none: [(&str, &[u8]); 0] = [];
        let empty = Verified { entries: 0, open: vec![] };
        assert_eq!(verify_chain(none, None), Ok(empty.clone()));
        assert_eq!(verify_chain(none, Some(&AuditHead::empty())), Ok(empty));
    }

    fn check(spoil: impl FnOnce(&mut Trail), sequence: u64, what: Fault) {
        let mut spoiled = trail(3);
        spoil(&mut spoiled);
        let found = verify_chain(spoiled.0, spoiled.1.as_ref());
        assert_eq!(found, Err(Break { sequence, what }));
    }

    #[test]
    fn changed_entries_are_named() {
        check(|t| edit(t, 3, |e| e.subject = "vm-9".into()), 3, Fault::Tampered);
        check(|t| edit(t, 1, |e| e.at = Timestamp(1)), 1, Fault::Tampered);
        check(|t| edit(t, 7, |e| e.details.clear()), 7, Fault::Tampered);
        // Sealed again, it fits itself but not its successor, or the head.
        let reseal = |e: &mut AuditEntry| {
            e.subject = "vm-9".into();
            *e = e.clone().sealed();
        };
        check(|t| edit(t, 3, reseal), 4, Fault::Unchained);
        check(|t| edit(t, 7, reseal), 7, Fault::HeadDiffers);
        let spaced = |t: &mut Trail| t.0[1].1.push(b'\n');
        check(spaced, 2, Fault::Unreadable("it is not written as entries are".into()));
        let cut = |t: &mut Trail| t.0[1].1.truncate(10);
        check(cut, 2, Fault::Unreadable("EOF while parsing a string at line 1 column 10".into()));
    }

    #[test]
    fn removed_entries_are_named() {
        check(|t| drop(t.0.remove(0)), 1, Fault::Missing);
        check(|t| drop(t.0.remove(3)), 4, Fault::Missing);
        check(|t| drop(t.0.pop()), 7, Fault::Missing);
        check(|t| t.0.clear(), 1, Fault::Missing);
        check(|t| t.1 = None, 7, Fault::HeadMissing);
    }

    #[test]
    fn moved_entries_are_named() {
        let swap_values = |t: &mut Trail| {
            let (left, right) = t.0.split_at_mut(4);
            std::mem::swap(&mut left[2].1, &mut right[0].1);
        };
        check(swap_values, 3, Fault::Misplaced { says: 5 });
        check(|t| t.0.swap(2, 4), 3, Fault::Missing);
    }

    #[test]
    fn added_entries_are_named() {
        let twice = |t: &mut Trail| t.0.insert(2, t.0[1].clone());
        check(twice, 2, Fault::OutOfOrder);
        let foreign = |t: &mut Trail| t.0.insert(2, ("/ballast/v1/audit/x".into(), vec![]));
        check(foreign, 3, Fault::ForeignKey("/ballast/v1/audit/x".into()));
        let short = |t: &mut Trail| t.0[2].0 = "/ballast/v1/audit/3".into();
        check(short, 3, Fault::ForeignKey("/ballast/v1/audit/3".into()));
        let append = |t: &mut Trail| {
            let head = t.1.clone().unwrap();
            let entry = sealed(8, &head.hash, AuditRecord::Opened);
            t.0.push((key(8), serde_json::to_vec(&entry).unwrap()));
        };
        check(append, 8, Fault::BeyondHead { head: 7 });
    }

    #[test]
    fn an_entry_closes_only_what_is_open() {
        for opened in [1, 2, 8, 99] {
            let close = |t: &mut Trail| {
                let outcome = AuditOutcome::Succeeded;
                let record = AuditRecord::Closed { opened, outcome };
                let entry = sealed(8, &t.1.clone().unwrap().hash, record);
                t.1 = Some(entry.head());
                t.0.push((key(8), serde_json::to_vec(&entry).unwrap()));
            };
            check(close, 8, Fault::ClosesNothing { opened });
        }
    }

    #[derive(Debug, Clone)]
    enum Spoil {
        Remove(prop::sample::Index),
        Swap(prop::sample::Index, prop::sample::Index),
        Repeat(prop::sample::Index, prop::sample::Index),
        FlipBit(prop::sample::Index, prop::sample::Index, u8),
    }

    fn spoils() -> impl Strategy<Value = Spoil> {
        let index = any::<prop::sample::Index>;
        prop_oneof![
            index().prop_map(Spoil::Remove),
            (index(), index()).prop_map(|(a, b)| Spoil::Swap(a, b)),
            (index(), index()).prop_map(|(a, b)| Spoil::Repeat(a, b)),
            (index(), index(), 0..8u8).prop_map(|(a, b, bit)| Spoil::FlipBit(a, b, bit)),
        ]
    }

    proptest! {
        #[test]
        fn nothing_can_be_spoilt_unnoticed(closed in 0..6u64, spoil in spoils()) {
            let (whole, head) = trail(closed);
            prop_assert!(verify_chain(whole.clone(), head.as_ref()).is_ok());
            let mut entries = whole.clone();
            let len = entries.len();
            match spoil {
                Spoil::Remove(at) => drop(entries.remove(at.index(len))),
                Spoil::Swap(a, b) => {
                    let (a, b) = (a.index(len), b.index(len));
                    let value = entries[a].1.clone();
                    entries[a].1 = std::mem::replace(&mut entries[b].1, value);
                }
                Spoil::Repeat(from, to) => {
                    let copy = entries[from.index(len)].clone();
                    entries.insert(to.index(len + 1), copy);
                }
                Spoil::FlipBit(entry, byte, bit) => {
                    let json = &mut entries[entry.index(len)].1;
                    let at = byte.index(json.len());
                    json[at] ^= 1 << bit;
                }
            }
            prop_assume!(entries != whole);
            let found = verify_chain(entries, head.as_ref());
            prop_assert!(found.is_err());
            let named = found.unwrap_err().sequence;
            prop_assert!((1..=len as u64 + 1).contains(&named), "{named}");
        }
    }
}
