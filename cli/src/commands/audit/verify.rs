//! Checking the chain, entry by entry, as it comes from the controller or from a file.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use ballast_model::audit::AuditHead;
use ballast_model::audit::verify::{Break, ChainVerifier};
use ballast_model::{Refusal, RefusalCode};
use ballast_proto::v1;
use serde::Serialize;
use serde_json::Value;

use super::{PAGE, after};
use crate::client::Client;
use crate::output;

/// The longest line of an exported trail, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// How often the end is asked for again while the trail grows under the reader.
const END_TRIES_MAX: u32 = 5;

/// A trail that holds together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Verified {
    /// Whether the chain holds: always true here, for readers of the JSON.
    pub(crate) verified: bool,
    /// How many entries there are.
    pub(crate) entries: u64,
    /// Sequence numbers of entries that opened and were never closed: actions under way or cut off.
    pub(crate) open: Vec<u64>,
    /// The hash of the newest.
    pub(crate) head_hash: String,
    /// Whether the end of the trail was compared with the head record.
    pub(crate) head_checked: bool,
}

/// One line of an exported trail: the entry exactly as it is stored, beside its key.
///
/// # Errors
/// `Internal` when the key has no JSON form.
pub(super) fn line(item: &v1::AuditItem) -> Result<String, Refusal> {
    // What is no JSON at all, or would break the line, is quoted.
    let plain = !item.json.contains('\n') && serde_json::from_str::<Value>(&item.json).is_ok();
    let entry = if plain { item.json.clone() } else { output::json_line(&item.json)? };
    Ok(format!("{}{entry}}}\n", line_start(&item.key)?))
}

/// The last line of a whole exported trail.
///
/// # Errors
/// `Internal` when the head has no JSON form.
pub(super) fn head_line(sequence: u64, hash: &str) -> Result<String, Refusal> {
    let head = serde_json::json!({ "head_sequence": sequence, "head_hash": hash });
    Ok(output::json_line(&head)? + "\n")
}

fn line_start(key: &str) -> Result<String, Refusal> {
    Ok(format!("{{\"key\":{},\"entry\":", output::json_line(&key)?))
}

/// What an exported line holds.
enum Line {
    Entry { key: String, stored: String },
    Head(Option<AuditHead>),
}

impl Line {
    /// Undoes [`line`] and [`head_line`]; the entry's bytes stay as they are.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim_end();
        let value: Value = serde_json::from_str(text).ok()?;
        if let (Some(sequence), Some(hash)) = (value.get("head_sequence"), value.get("head_hash")) {
            return Some(Self::Head(head(sequence.as_u64()?, hash.as_str()?)));
        }
        let key = value.get("key")?.as_str()?.to_owned();
        let stored = match value.get("entry")? {
            Value::String(quoted) => quoted.clone(),
            _ => text.strip_prefix(&line_start(&key).ok()?)?.strip_suffix('}')?.to_owned(),
        };
        Some(Self::Entry { key, stored })
    }
}

fn head(sequence: u64, hash: &str) -> Option<AuditHead> {
    serde_json::from_value(serde_json::json!({ "sequence": sequence, "hash": hash }))
        .ok()
        .filter(|_| !hash.is_empty())
}

fn broken(found: &Break) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("the audit trail is broken: {found}"),
        "compare with an exported copy, and find out who can write to the store",
    )
}

/// Ends the trail at `head`; in a file, which may have none, at whatever came last.
fn finish(
    chain: ChainVerifier,
    head: Option<&AuditHead>,
    head_checked: bool,
) -> Result<Verified, Refusal> {
    let head_hash = chain.newest().hash.as_str().to_owned();
    let verified = chain.finish(head).map_err(|found| broken(&found))?;
    let (entries, open) = (verified.entries, verified.open);
    Ok(Verified { verified: true, entries, open, head_hash, head_checked })
}

/// Fetches and checks the whole trail.
///
/// # Errors
/// `HostFailure` naming the first entry that breaks the chain.
pub(crate) async fn verify_online(client: &Client) -> Result<Verified, Refusal> {
    let mut chain = ChainVerifier::default();
    let (mut from, mut tries) = (1, 0);
    loop {
        let request = v1::ListAuditRequest { from, limit: PAGE, subject: String::new() };
        let page = client.list_audit(request).await?;
        for item in &page.entries {
            chain.push(&item.key, item.json.as_bytes()).map_err(|found| broken(&found))?;
        }
        from = after(from, &page.entries);
        if !page.entries.is_empty() {
            continue;
        }
        // The trail may have grown between the controller's looks at entries and head.
        tries += 1;
        let newest = chain.newest().sequence;
        if page.head_sequence <= newest || tries >= END_TRIES_MAX {
            let head = head(page.head_sequence, &page.head_hash);
            return finish(chain, head.as_ref(), true);
        }
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
    let mut chain = ChainVerifier::default();
    let mut end = None;
    for number in 1u64.. {
        let mut text = String::new();
        let malformed = |what: String| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("line {number} {what}"),
                "give a file as 'ballast audit ls -o json' wrote it",
            )
        };
        let read = file.by_ref().take(LINE_BYTES_MAX).read_line(&mut text);
        if read.map_err(|error| malformed(format!("cannot be read: {error}")))? == 0 {
            break;
        }
        if end.is_some() {
            return Err(malformed("stands behind the end of the trail".to_owned()));
        }
        match Line::parse(&text) {
            Some(Line::Entry { key, stored }) => {
                chain.push(&key, stored.as_bytes()).map_err(|found| broken(&found))?;
            }
            Some(Line::Head(Some(head))) => end = Some(head),
            Some(Line::Head(None)) | None => {
                return Err(malformed("is not a line of an exported trail".to_owned()));
            }
        }
    }
    let newest = chain.newest().clone();
    finish(chain, end.as_ref().or(Some(&newest)), end.is_some())
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
    let open = match verified.open.as_slice() {
        [] => String::new(),
        open => {
            let numbers: Vec<_> = open.iter().map(u64::to_string).collect();
            format!("not closed yet: {}\n", numbers.join(", "))
        }
    };
    output::print(&format!(
        "audit trail verified: {} entries, none changed, missing or moved; {end}\n{open}head {}\n",
        verified.entries, verified.head_hash
    ))
}

#[cfg(test)]
mod tests {
    use ballast_model::audit::AuditRecord;
    use ballast_model::{AuditEntry, AuditHash, ReasonTrail, Timestamp};

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
        let mut text: String = items.iter().map(|item| line(item).unwrap()).collect();
        if let Some(item) = head {
            let entry: AuditEntry = serde_json::from_str(&item.json).unwrap();
            text += &head_line(entry.sequence, entry.hash.as_str()).unwrap();
        }
        text
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
        assert_eq!(verified.open, [1, 2, 3, 4, 5]);
        let headless = verify_lines(exported(&items, None).as_bytes()).unwrap();
        assert!(!headless.head_checked);
    }

    #[test]
    fn the_entry_that_breaks_the_chain_is_named() {
        check_broken(|t| t[2].json = t[2].json.replace("vm-3", "vm-9"), "audit entry 3");
        check_broken(|t| _ = t.remove(1), "audit entry 2: it is missing");
        check_broken(|t| _ = t.pop(), "audit entry 5: it is missing");
        check_broken(|t| t.swap(1, 2), "audit entry 2");
        check_broken(|t| t[3].json = "nonsense\n".into(), "audit entry 4");
        check_broken(|t| t[3].json.insert(1, ' '), "audit entry 4");
        check_broken(|t| t.clear(), "audit entry 1: it is missing");
        check_broken(|t| t.extend(trail(6).drain(5..)), "audit entry 6");
    }

    #[test]
    fn another_file_is_refused() {
        let refusal = verify_lines("{\"a\":1}\n".as_bytes()).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidArgument);
        assert!(refusal.reason.contains("line 1"), "{refusal}");
    }
}
