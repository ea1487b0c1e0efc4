//! Checking the chain, entry by entry, as it comes from the controller or from a file.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use ballast_model::{AuditEntry, AuditHash, Refusal, RefusalCode};
use ballast_proto::v1;
use serde::{Deserialize, Serialize};

use super::Pages;
use crate::client::Client;
use crate::output;

/// The longest line of an exported trail, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// One line of an exported trail.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Line {
    /// An entry and the key it was found under.
    Entry {
        /// The store key.
        key: String,
        /// The entry; a string where what is stored is no JSON at all.
        entry: serde_json::Value,
    },
    /// The newest entry, as the head record names it. The last line of a whole trail.
    Head {
        /// Its sequence number.
        head_sequence: u64,
        /// Its hash.
        head_hash: String,
    },
}

impl From<&v1::AuditItem> for Line {
    fn from(item: &v1::AuditItem) -> Self {
        let entry = serde_json::from_str(&item.json)
            .unwrap_or_else(|_| serde_json::Value::String(item.json.clone()));
        Self::Entry { key: item.key.clone(), entry }
    }
}

/// A trail that holds together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Verified {
    /// Whether the chain holds: always true here, for readers of the JSON.
    pub(crate) verified: bool,
    /// How many entries there are.
    pub(crate) entries: u64,
    /// The hash of the newest.
    pub(crate) head_hash: String,
    /// Whether the end of the trail was compared with the head record.
    pub(crate) head_checked: bool,
}

/// Follows the chain from its first entry.
#[derive(Debug)]
struct Chain {
    /// The sequence number that comes next.
    next: u64,
    /// The hash of the entry before it.
    previous: AuditHash,
}

impl Chain {
    fn new() -> Self {
        Self { next: 1, previous: AuditHash::genesis() }
    }

    /// Takes the entry found under `key`.
    fn push(&mut self, key: &str, json: &str) -> Result<(), Refusal> {
        let place = key.rsplit('/').next().and_then(|digits| digits.parse::<u64>().ok());
        match place {
            None => return Err(broken(format!("{key} is not a key of the trail"))),
            Some(place) if place > self.next => return Err(self.missing()),
            Some(place) if place < self.next => {
                return Err(broken(format!("entry {place} stands there twice or out of order")));
            }
            Some(_) => {}
        }
        let entry: AuditEntry = serde_json::from_str(json)
            .map_err(|error| broken(format!("entry {} cannot be read: {error}", self.next)))?;
        if entry.sequence != self.next {
            return Err(broken(format!(
                "entry {} says of itself that it is entry {}",
                self.next, entry.sequence
            )));
        }
        if entry.hash != entry.computed_hash() {
            return Err(broken(format!(
                "entry {} ({} {}) was changed: its content does not have its hash",
                self.next, entry.action, entry.subject
            )));
        }
        if entry.previous != self.previous {
            return Err(broken(format!(
                "entry {} ({} {}) does not follow the entry before it: one of the two was replaced",
                self.next, entry.action, entry.subject
            )));
        }
        self.previous = entry.hash;
        self.next += 1;
        Ok(())
    }

    fn missing(&self) -> Refusal {
        broken(format!("entry {} is missing", self.next))
    }

    /// Compares the end with the head record, where there is one.
    fn finish(self, head: Option<(u64, &str)>) -> Result<Verified, Refusal> {
        let entries = self.next - 1;
        if let Some((sequence, hash)) = head {
            if sequence > entries {
                return Err(self.missing());
            }
            if sequence < entries || hash != self.previous.as_str() {
                return Err(broken(format!(
                    "the head record names entry {sequence}, which is not the last one, entry {entries}"
                )));
            }
        }
        let head_hash = self.previous.as_str().to_owned();
        Ok(Verified { verified: true, entries, head_hash, head_checked: head.is_some() })
    }
}

fn broken(what: String) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("the audit trail is broken: {what}"),
        "compare with an exported copy, and find out who can write to the store",
    )
}

/// Fetches and checks the whole trail.
///
/// # Errors
/// `HostFailure` naming the first entry that breaks the chain.
pub(crate) async fn verify_online(client: &Client) -> Result<Verified, Refusal> {
    // Entries may be added while the pages come: the head that counts is the
    // one told with the last page that had entries.
    let mut pages = Pages::new(client, 1, String::new());
    let mut chain = Chain::new();
    let mut head = None;
    while let Some(page) = pages.next().await? {
        for item in &page.entries {
            chain.push(&item.key, &item.json)?;
        }
        head = Some((page.head_sequence, page.head_hash));
    }
    match head {
        Some((sequence, hash)) => chain.finish(Some((sequence, &hash))),
        None => chain.finish(None),
    }
}

/// Checks an exported trail.
///
/// # Errors
/// `HostFailure` naming the first entry that breaks the chain; `NotFound` or
/// `InvalidArgument` when the file is not an exported trail.
pub(in crate::commands) fn verify_file(path: &Path, json: bool) -> Result<(), Refusal> {
    let shown = path.display();
    let file = std::fs::File::open(path).map_err(|error| {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => RefusalCode::NotFound,
            _ => RefusalCode::HostFailure,
        };
        let remedy = "check the path; 'ballast audit ls -o json' writes such a file";
        Refusal::new(code, format!("cannot read {shown}: {error}"), remedy)
    })?;
    let verified = verify_lines(BufReader::new(file)).map_err(|mut refusal| {
        refusal.reason = format!("{shown}: {}", refusal.reason);
        refusal
    })?;
    print(&verified, json)
}

fn verify_lines(mut file: impl BufRead) -> Result<Verified, Refusal> {
    let mut chain = Chain::new();
    let mut head = None;
    for number in 1u64.. {
        let mut text = String::new();
        let malformed = |what: String| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("line {number} {what}"),
                "give a file that 'ballast audit ls -o json' wrote",
            )
        };
        let read = file.by_ref().take(LINE_BYTES_MAX).read_line(&mut text);
        if read.map_err(|error| malformed(format!("cannot be read: {error}")))? == 0 {
            break;
        }
        if head.is_some() {
            return Err(malformed("stands behind the end of the trail".to_owned()));
        }
        match serde_json::from_str(&text) {
            Ok(Line::Entry { key, entry }) => chain.push(&key, &entry.to_string())?,
            Ok(Line::Head { head_sequence, head_hash }) => head = Some((head_sequence, head_hash)),
            Err(_) => return Err(malformed("is not a line of an exported trail".to_owned())),
        }
    }
    let head = head.as_ref().map(|(sequence, hash)| (*sequence, hash.as_str()));
    chain.finish(head)
}

/// Says that the trail holds.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn print(verified: &Verified, json: bool) -> Result<(), Refusal> {
    if json {
        return output::print_json(verified);
    }
    let end = if verified.head_checked {
        "the last one is the head"
    } else {
        "the file does not name the head, so entries cut off at its end would not be noticed"
    };
    output::print(&format!(
        "audit trail verified: {} entries, none changed, missing or moved; {end}\nhead {}\n",
        verified.entries, verified.head_hash
    ))
}

#[cfg(test)]
mod tests {
    use ballast_model::audit::AuditRecord;
    use ballast_model::{ReasonTrail, Timestamp};

    use super::*;

    fn trail(count: u64) -> Vec<v1::AuditItem> {
        let mut previous = AuditHash::genesis();
        (1..=count)
            .map(|sequence| {
                let entry = AuditEntry {
                    sequence,
                    previous: previous.clone(),
                    at: Timestamp(sequence),
                    record: AuditRecord::Opened,
                    action: "vm.create".into(),
                    subject: format!("vm-{sequence}"),
                    details: [("host".to_owned(), "a".to_owned())].into(),
                    reasons: ReasonTrail::new("operator:root", "asked", Timestamp(1)),
                    hash: AuditHash::genesis(),
                }
                .sealed();
                previous = entry.hash.clone();
                let json = serde_json::to_string(&entry).unwrap();
                v1::AuditItem { key: format!("/ballast/v1/audit/{sequence:020}"), json }
            })
            .collect()
    }

    fn exported(items: &[v1::AuditItem], head: Option<&v1::AuditItem>) -> String {
        let mut lines: Vec<Line> = items.iter().map(Line::from).collect();
        if let Some(item) = head {
            let entry: AuditEntry = serde_json::from_str(&item.json).unwrap();
            lines.push(Line::Head {
                head_sequence: entry.sequence,
                head_hash: entry.hash.as_str().to_owned(),
            });
        }
        lines.iter().map(|line| output::json_line(line).unwrap() + "\n").collect()
    }

    fn check_broken(spoil: impl Fn(&mut Vec<v1::AuditItem>), expected: &str) {
        let whole = trail(5);
        let mut items = whole.clone();
        spoil(&mut items);
        let refusal = verify_lines(exported(&items, whole.last()).as_bytes()).unwrap_err();
        assert!(refusal.reason.contains(expected), "{refusal}");
    }

    #[test]
    fn a_whole_trail_holds() {
        let items = trail(5);
        let verified = verify_lines(exported(&items, items.last()).as_bytes()).unwrap();
        assert_eq!((verified.entries, verified.head_checked), (5, true));
        let headless = verify_lines(exported(&items, None).as_bytes()).unwrap();
        assert!(!headless.head_checked);
    }

    #[test]
    fn the_entry_that_breaks_the_chain_is_named() {
        check_broken(|t| t[2].json = t[2].json.replace("vm-3", "vm-9"), "entry 3 (vm.create vm-9)");
        check_broken(|t| _ = t.remove(1), "entry 2 is missing");
        check_broken(|t| _ = t.pop(), "entry 5 is missing");
        check_broken(|t| t.swap(1, 2), "entry 2 is missing");
        check_broken(|t| t[3].json = "nonsense".into(), "entry 4 cannot be read");
        check_broken(|t| t.clear(), "entry 1 is missing");
        let exchange = |t: &mut Vec<v1::AuditItem>| {
            let (a, b) = (t[1].json.clone(), t[2].json.clone());
            (t[1].json, t[2].json) = (b, a);
        };
        check_broken(exchange, "entry 2 says of itself that it is entry 3");
        let replace = |t: &mut Vec<v1::AuditItem>| {
            let mut entry: AuditEntry = serde_json::from_str(&t[2].json).unwrap();
            entry.subject = "vm-9".into();
            t[2].json = serde_json::to_string(&entry.sealed()).unwrap();
        };
        check_broken(replace, "entry 4 (vm.create vm-4) does not follow");
        check_broken(|t| t.extend(trail(6).drain(5..)), "entry 5, which is not the last one");
    }

    #[test]
    fn another_file_is_refused() {
        let refusal = verify_lines("{\"a\":1}\n".as_bytes()).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidArgument);
        assert!(refusal.reason.contains("line 1"), "{refusal}");
    }
}
