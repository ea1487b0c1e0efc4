//! `ballast audit`. The chain is checked here, on what the store holds, and
//! not by the controller: who could change the trail could also change what a
//! controller says about it.

use std::collections::BTreeMap;

use ballast_model::audit::{AuditOutcome, AuditRecord};
use ballast_model::{AuditEntry, Refusal};
use ballast_proto::v1;

use super::Context;
use crate::args::AuditCommand;
use crate::client::Client;
use crate::output::units::instant;
use crate::output::{self, Align, Table};

mod verify;

pub(super) use verify::verify_file;
pub(crate) use verify::verify_online;

/// Entries asked for at once.
const PAGE: u32 = 1000;

pub(super) async fn run(context: &Context, command: AuditCommand) -> Result<(), Refusal> {
    match command {
        AuditCommand::Ls { from, limit, subject } => {
            let mut pages = Pages::new(&context.client, from, subject.unwrap_or_default());
            if context.json {
                export(&mut pages, limit).await
            } else {
                list(&mut pages, limit).await
            }
        }
        AuditCommand::Verify { file: Some(file) } => verify_file(&file, context.json),
        AuditCommand::Verify { file: None } => {
            let verified = verify_online(&context.client).await?;
            verify::print(&verified, context.json)
        }
    }
}

/// Walks through the trail a page at a time.
struct Pages<'a> {
    client: &'a Client,
    from: u64,
    subject: String,
}

impl<'a> Pages<'a> {
    fn new(client: &'a Client, from: u64, subject: String) -> Self {
        Self { client, from: from.max(1), subject }
    }

    /// The next page; none after the last entry.
    async fn next(&mut self) -> Result<Option<v1::ListAuditResponse>, Refusal> {
        let request =
            v1::ListAuditRequest { from: self.from, limit: PAGE, subject: self.subject.clone() };
        let page = self.client.list_audit(request).await?;
        if page.entries.is_empty() {
            return Ok(None);
        }
        self.from = after(self.from, &page.entries);
        Ok(Some(page))
    }
}

/// Where to go on after a page that was asked for from `from`. The place in the trail is the key's,
/// whatever a spoilt entry says of itself, and every page leads further.
fn after(from: u64, entries: &[v1::AuditItem]) -> u64 {
    let Some(last) = entries.last() else { return from };
    let place = last.key.rsplit('/').next().and_then(|digits| digits.parse::<u64>().ok());
    let least = from.saturating_add(entries.len() as u64 - 1);
    place.unwrap_or(0).max(least).saturating_add(1)
}

/// One JSON object a line: `{"key", "entry"}` for each entry and, after a
/// whole trail, `{"head_sequence", "head_hash"}`, so that the file can be
/// verified by itself.
async fn export(pages: &mut Pages<'_>, limit: Option<u64>) -> Result<(), Refusal> {
    let whole = limit.is_none() && pages.subject.is_empty() && pages.from == 1;
    let mut left = limit.unwrap_or(u64::MAX);
    let mut head = None;
    while left > 0
        && let Some(page) = pages.next().await?
    {
        let mut text = String::new();
        for item in page.entries.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            text += &verify::line(item)?;
            left -= 1;
        }
        output::print(&text)?;
        head = Some((page.head_sequence, page.head_hash));
    }
    if let Some((sequence, hash)) = head.filter(|_| whole) {
        output::print(&verify::head_line(sequence, &hash)?)?;
    }
    Ok(())
}

async fn list(pages: &mut Pages<'_>, limit: Option<u64>) -> Result<(), Refusal> {
    let mut table = Table::new(&[
        ("SEQ", Align::Right),
        ("WHEN", Align::Left),
        ("ACTION", Align::Left),
        ("SUBJECT", Align::Left),
        ("RECORD", Align::Left),
        ("DETAILS", Align::Left),
        ("REASON", Align::Left),
    ]);
    let mut left = limit.unwrap_or(u64::MAX);
    while left > 0
        && let Some(page) = pages.next().await?
    {
        for item in page.entries.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            left -= 1;
            table.row(match serde_json::from_str::<AuditEntry>(&item.json) {
                Ok(entry) => row(&entry),
                Err(error) => spoilt_row(item, &error),
            });
        }
    }
    output::print(&table.render("no entries"))
}

fn row(entry: &AuditEntry) -> [String; 7] {
    let details: Vec<_> =
        entry.details.iter().map(|(name, value)| format!("{name}={value}")).collect();
    [
        entry.sequence.to_string(),
        instant(entry.at.unix_millis()),
        entry.action.clone(),
        entry.subject.clone(),
        record(&entry.record),
        details.join(" "),
        entry.reasons.to_string(),
    ]
}

fn spoilt_row(item: &v1::AuditItem, error: &serde_json::Error) -> [String; 7] {
    let dash = || "-".to_owned();
    let told = format!("{} cannot be read: {error}", item.key);
    [dash(), dash(), dash(), dash(), "spoilt".to_owned(), dash(), told]
}

fn record(record: &AuditRecord) -> String {
    match record {
        AuditRecord::Opened => "opened".to_owned(),
        AuditRecord::Closed { opened, outcome } => format!("{opened} {}", outcome_text(outcome)),
    }
}

fn outcome_text(outcome: &AuditOutcome) -> String {
    match outcome {
        AuditOutcome::Succeeded => "succeeded".to_owned(),
        AuditOutcome::Failed { why } => format!("failed: {why}"),
        AuditOutcome::Timeout => "timeout".to_owned(),
    }
}

/// An action with its end, put together from its two entries.
pub(super) struct Action {
    pub(super) at_unix_millis: u64,
    pub(super) action: String,
    pub(super) outcome: String,
    pub(super) host: Option<String>,
    pub(super) reason: String,
}

/// Everything that was done to `subject`, oldest first.
///
/// # Errors
/// What the controller refuses.
pub(super) async fn actions_on(client: &Client, subject: &str) -> Result<Vec<Action>, Refusal> {
    let mut pages = Pages::new(client, 1, subject.to_owned());
    let mut actions = BTreeMap::new();
    while let Some(page) = pages.next().await? {
        let entries = page.entries.iter();
        for entry in entries.filter_map(|item| serde_json::from_str(&item.json).ok()) {
            fold(&mut actions, entry);
        }
    }
    Ok(actions.into_values().collect())
}

fn fold(actions: &mut BTreeMap<u64, Action>, entry: AuditEntry) {
    match entry.record {
        AuditRecord::Opened => {
            let action = Action {
                at_unix_millis: entry.at.unix_millis(),
                action: entry.action,
                outcome: "open".to_owned(),
                host: entry.details.get("host").cloned(),
                reason: entry.reasons.to_string(),
            };
            actions.insert(entry.sequence, action);
        }
        AuditRecord::Closed { opened, outcome } => {
            if let Some(action) = actions.get_mut(&opened) {
                action.outcome = outcome_text(&outcome);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ballast_model::{AuditHash, ReasonTrail, Timestamp};

    use super::*;

    fn entry(sequence: u64, record: AuditRecord) -> AuditEntry {
        AuditEntry {
            sequence,
            previous: AuditHash::genesis(),
            at: Timestamp(sequence),
            record,
            action: "vm.create".into(),
            subject: "web-1".into(),
            details: [("host".to_owned(), "a".to_owned())].into(),
            reasons: ReasonTrail::new("operator:root", "asked", Timestamp(1)),
            hash: AuditHash::genesis(),
        }
    }

    #[test]
    fn an_action_takes_its_outcome_from_its_closing_entry() {
        let mut actions = BTreeMap::new();
        fold(&mut actions, entry(1, AuditRecord::Opened));
        fold(&mut actions, entry(2, AuditRecord::Opened));
        let outcome = AuditOutcome::Failed { why: "no room".into() };
        fold(&mut actions, entry(3, AuditRecord::Closed { opened: 1, outcome }));
        let outcomes: Vec<_> = actions.values().map(|action| action.outcome.as_str()).collect();
        assert_eq!(outcomes, ["failed: no room", "open"]);
        assert_eq!(actions[&1].host.as_deref(), Some("a"));
    }
}
