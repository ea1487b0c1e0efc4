//! `ballast migration`.

use ballast_model::Refusal;
use ballast_proto::v1;

use super::Context;
use crate::args::MigrationCommand;
use crate::output::units::{bytes, instant, micros};
use crate::output::{self, Align, Table, fields, view};

pub(super) async fn run(context: &Context, command: MigrationCommand) -> Result<(), Refusal> {
    match command {
        MigrationCommand::Ls { vm, running, limit } => {
            let vm = vm.map(|vm| vm.to_string()).unwrap_or_default();
            let request = v1::ListMigrationsRequest { vm, running, limit };
            let migrations = context.client.list_migrations(request).await?.migrations;
            if context.json {
                let views: Vec<_> = migrations.into_iter().map(view::Migration::from).collect();
                return output::print_json(&views);
            }
            output::print(&table(&migrations).render("no migrations"))
        }
        MigrationCommand::Show { migration } => show(context, &migration.to_string()).await,
        MigrationCommand::Cancel { migration } => {
            let request = v1::CancelMigrationRequest {
                migration: migration.to_string(),
                actor: context.actor.because("cancelled by hand"),
            };
            context.client.cancel_migration(request).await?;
            show(context, &migration.to_string()).await
        }
        MigrationCommand::Settle { migration, fenced, lost, .. } => {
            let settlement = if lost { v1::Settlement::Lost } else { v1::Settlement::GiveBack };
            let request = v1::SettleMigrationRequest {
                migration: migration.to_string(),
                fenced_host: fenced.to_string(),
                settlement: settlement.into(),
                actor: context.actor.because("settled by hand"),
            };
            context.client.settle_migration(request).await?;
            show(context, &migration.to_string()).await
        }
    }
}

/// One line a migration.
fn table(migrations: &[v1::Migration]) -> Table {
    let mut table = Table::new(&[
        ("MIGRATION", Align::Left),
        ("VM", Align::Left),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("PHASE", Align::Left),
        ("DONE", Align::Right),
        ("ROUNDS", Align::Right),
        ("SENT", Align::Right),
        ("TOOK", Align::Right),
        ("DOWNTIME", Align::Right),
        ("REASON", Align::Left),
    ]);
    for migration in migrations {
        let progress = migration.progress.unwrap_or_default();
        let completed = migration.phase == "completed";
        let downtime = view::downtime_micros(&progress.downtime.unwrap_or_default());
        let why = if migration.why.is_empty() {
            reasons(&migration.reasons)
        } else {
            migration.why.clone()
        };
        table.row([
            migration.id.clone(),
            migration.vm.clone(),
            migration.from.clone(),
            migration.to.clone(),
            migration.phase.clone(),
            done(migration),
            progress.rounds.to_string(),
            bytes(progress.bytes_sent),
            micros(progress.elapsed_micros),
            if completed { micros(downtime) } else { "-".to_owned() },
            why,
        ]);
    }
    table
}

/// How much of the VM's memory the other side has, in percent; `-` where it does not say.
fn done(migration: &v1::Migration) -> String {
    let progress = migration.progress.unwrap_or_default();
    match (migration.ended, migration.phase.as_str()) {
        (_, "completed") => "100%".to_owned(),
        (true, _) => "-".to_owned(),
        (false, _) => format!("{:.0}%", share_done(&progress) * 100.0),
    }
}

/// What share of memory and disks has reached the other side, 0 to 1.
pub(crate) fn share_done(progress: &v1::MigrationProgress) -> f64 {
    let total = progress.bytes_total.saturating_add(progress.disk_bytes_total);
    if total == 0 || progress.rounds == 0 {
        return 0.0;
    }
    let remaining = progress.bytes_remaining.saturating_add(progress.disk_bytes_remaining);
    1.0 - remaining.min(total) as f64 / total as f64
}

/// What has gone over the wire, and what of it is disks.
fn sent(progress: &v1::MigrationProgress) -> String {
    let memory =
        format!("{} of {} memory", bytes(progress.bytes_sent), bytes(progress.bytes_total));
    if progress.disk_bytes_total == 0 {
        return memory;
    }
    format!(
        "{} for {} memory and {} disks, {} of it disks",
        bytes(progress.bytes_sent),
        bytes(progress.bytes_total),
        bytes(progress.disk_bytes_total),
        bytes(progress.disk_bytes_sent)
    )
}

/// What compressing has saved; empty when nothing went compressed.
fn saved(progress: &v1::MigrationProgress) -> String {
    if progress.bytes_saved == 0 {
        return String::new();
    }
    format!("{} by compressing", bytes(progress.bytes_saved))
}

/// `who: why → who: why`, as [`ballast_model::ReasonTrail`] shows it.
pub(crate) fn reasons(reasons: &[v1::Reason]) -> String {
    reasons.iter().map(|r| format!("{}: {}", r.who, r.why)).collect::<Vec<_>>().join(" → ")
}

/// How fast it goes, and what is to be expected; empty when it has ended or nothing is known.
fn speed(migration: &v1::Migration) -> String {
    let progress = migration.progress.unwrap_or_default();
    if migration.ended || progress.rate_bytes_per_sec == 0 {
        return String::new();
    }
    let mut parts = vec![
        format!("{}/s over {} streams", bytes(progress.rate_bytes_per_sec), progress.streams),
        format!("the guest writes {}/s", bytes(progress.dirty_bytes_per_sec)),
    ];
    if let Some(eta) = view::eta_micros(&progress) {
        parts.push(format!("{} to go", micros(eta)));
    }
    if progress.expected_downtime_micros > 0 {
        parts.push(format!("downtime now {}", micros(progress.expected_downtime_micros)));
    }
    if progress.compresses {
        parts.push("compressed".to_owned());
    }
    if progress.post_copy_bytes > 0 {
        let waited = progress.faults;
        let left = bytes(progress.bytes_remaining);
        parts.push(format!("post-copy: {left} missing, waited for {waited} pages"));
    }
    if progress.throttle_percent > 0 {
        parts.push(format!("guest slowed down by {} %", progress.throttle_percent));
    }
    parts.join(", ")
}

pub(super) async fn show(context: &Context, id: &str) -> Result<(), Refusal> {
    let request = v1::GetMigrationRequest { migration: id.to_owned() };
    let migration = context.client.get_migration(request).await?;
    if context.json {
        return output::print_json(&view::Migration::from(migration));
    }
    let progress = migration.progress.unwrap_or_default();
    let downtime = progress.downtime.unwrap_or_default();
    let total = view::downtime_micros(&downtime);
    let parts = [
        ("last pass", downtime.last_pass_micros),
        ("save", downtime.state_save_micros),
        ("send", downtime.send_micros),
        ("load", downtime.load_micros),
        ("commit", downtime.commit_micros),
        ("resume", downtime.resume_micros),
    ];
    let parts: Vec<_> =
        parts.iter().map(|(name, part)| format!("{name} {}", micros(*part))).collect();
    let downtime = if total == 0 {
        String::new()
    } else {
        format!("{} ({})", micros(total), parts.join(", "))
    };
    output::print(&fields(&[
        ("migration", migration.id.clone()),
        ("VM", migration.vm.clone()),
        ("from", format!("{} (epoch {})", migration.from, migration.source_epoch)),
        ("to", migration.to.clone()),
        ("phase", migration.phase.clone()),
        ("why", migration.why.clone()),
        ("reason", reasons(&migration.reasons)),
        ("created", instant(migration.created_unix_millis)),
        ("updated", instant(migration.updated_unix_millis)),
        ("done", done(&migration)),
        ("rounds", progress.rounds.to_string()),
        ("sent", sent(&progress)),
        ("saved", saved(&progress)),
        ("zero pages", progress.pages_zero.to_string()),
        ("speed", speed(&migration)),
        ("took", micros(progress.elapsed_micros)),
        ("downtime", downtime),
    ]))
}
