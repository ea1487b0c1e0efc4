//! `ballast vm history`: a VM's migrations and what else was done to it, as one story.

use ballast_model::audit::action;
use ballast_model::{Refusal, RefusalCode, VmId};
use ballast_proto::v1;

use super::audit::{Action, actions_on};
use super::{Context, migration};
use crate::output::units::{instant, micros};
use crate::output::{self, Align, Table, view};

/// One line of a VM's history.
#[derive(Debug, serde::Serialize)]
struct Event {
    at_unix_millis: u64,
    event: String,
    outcome: String,
    from: Option<String>,
    to: Option<String>,
    migration: Option<String>,
    elapsed_micros: Option<u64>,
    downtime_micros: Option<u64>,
    reason: String,
}

/// Prints what happened to a VM.
///
/// # Errors
/// `NotFound` when there is no trace of it, and what the controller refuses.
pub(super) async fn show(context: &Context, vm: &VmId) -> Result<(), Refusal> {
    // Migrations come from their own records, which say more.
    let actions = actions_on(&context.client, vm.as_str()).await?;
    let other = actions.into_iter().filter(|done| done.action != action::MIGRATION);
    let mut events: Vec<Event> = other.map(Event::from).collect();
    let request = v1::ListMigrationsRequest { vm: vm.to_string(), running: false, limit: 1000 };
    let migrations = context.client.list_migrations(request).await?.migrations;
    events.extend(migrations.into_iter().map(Event::from));
    events.sort_by_key(|event| event.at_unix_millis);
    if events.is_empty() {
        // Removed VMs keep their history; one without any was never there.
        return Err(Refusal::new(
            RefusalCode::NotFound,
            format!("there is no VM {vm} and never was"),
            "see 'ballast vm ls' for those there are",
        ));
    }
    if context.json {
        return output::print_json(&events);
    }
    let mut table = Table::new(&[
        ("WHEN", Align::Left),
        ("EVENT", Align::Left),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("OUTCOME", Align::Left),
        ("TOOK", Align::Right),
        ("DOWNTIME", Align::Right),
        ("REASON", Align::Left),
    ]);
    let dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    for event in events {
        table.row([
            instant(event.at_unix_millis),
            event.event,
            dash(event.from),
            dash(event.to),
            event.outcome,
            dash(event.elapsed_micros.map(micros)),
            dash(event.downtime_micros.map(micros)),
            event.reason,
        ]);
    }
    output::print(&table.render("nothing yet"))
}

impl From<v1::Migration> for Event {
    fn from(message: v1::Migration) -> Self {
        let progress = message.progress.unwrap_or_default();
        let completed = message.phase == "completed";
        let downtime = view::downtime_micros(&progress.downtime.unwrap_or_default());
        let mut reason = migration::reasons(&message.reasons);
        if !message.why.is_empty() {
            reason = format!("{reason} → {}", message.why);
        }
        Self {
            at_unix_millis: message.created_unix_millis,
            event: "migration".to_owned(),
            outcome: message.phase,
            from: Some(message.from),
            to: Some(message.to),
            migration: Some(message.id),
            elapsed_micros: Some(progress.elapsed_micros),
            downtime_micros: completed.then_some(downtime),
            reason,
        }
    }
}

impl From<Action> for Event {
    fn from(action: Action) -> Self {
        Self {
            at_unix_millis: action.at_unix_millis,
            event: action.action,
            outcome: action.outcome,
            from: None,
            to: action.host,
            migration: None,
            elapsed_micros: None,
            downtime_micros: None,
            reason: action.reason,
        }
    }
}
