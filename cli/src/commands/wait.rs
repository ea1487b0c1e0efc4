//! Waiting for the end of what a command began, telling how it goes on standard error.

use std::time::{Duration, Instant};

use ballast_model::{HostId, Planning, Refusal, RefusalCode, Verdict};
use ballast_proto::v1;

use super::migration::share_done;
use crate::client::Client;
use crate::output::units;

/// How often the controller is asked.
const POLL: Duration = Duration::from_millis(500);
/// How long the controller may be away in the middle of a wait: enough for another to take over,
/// or for itself to start again.
const AWAY_MAX: Duration = Duration::from_secs(60);
/// How long nothing may move before the planner is asked why.
const IDLE_BEFORE_ASKING: Duration = Duration::from_secs(15);

/// Tells each new thing once.
#[derive(Debug, Default)]
struct Teller {
    last: String,
}

impl Teller {
    fn tell(&mut self, line: String) {
        if line != self.last {
            eprintln!("{line}");
            self.last = line;
        }
    }
}

/// Asks until there is an answer, or the controller has been away for too long: what is waited
/// for goes on without it.
async fn answered<T>(ask: impl AsyncFn() -> Result<T, Refusal>) -> Result<T, Refusal> {
    let start = Instant::now();
    loop {
        match ask().await {
            Err(away) if away.code == RefusalCode::Unavailable && start.elapsed() < AWAY_MAX => {
                tokio::time::sleep(POLL).await;
            }
            answer => return answer,
        }
    }
}

/// Waits until the migration has ended.
///
/// # Errors
/// `Cancelled` or `HostFailure` when it did not complete, `Timeout` past `limit`.
pub(super) async fn until_migrated(
    client: &Client,
    id: &str,
    limit: Duration,
) -> Result<(), Refusal> {
    let start = Instant::now();
    let mut teller = Teller::default();
    loop {
        let request = v1::GetMigrationRequest { migration: id.to_owned() };
        let migration = answered(async || client.get_migration(request.clone()).await).await?;
        let progress = migration.progress.unwrap_or_default();
        teller.tell(format!(
            "VM {} {} → {}: {}, {:.0}% of {}, round {}",
            migration.vm,
            migration.from,
            migration.to,
            migration.phase,
            share_done(&progress) * 100.0,
            units::bytes(progress.bytes_total.saturating_add(progress.disk_bytes_total)),
            progress.rounds,
        ));
        if migration.ended {
            return ended_well(&migration);
        }
        pause_within(start, limit, || format!("migration {id} has not ended")).await?;
    }
}

fn ended_well(migration: &v1::Migration) -> Result<(), Refusal> {
    let code = match migration.phase.as_str() {
        "completed" => return Ok(()),
        "cancelled" => RefusalCode::Cancelled,
        _ => RefusalCode::HostFailure,
    };
    Err(Refusal::new(
        code,
        format!(
            "migration {} of VM {} {}: {}",
            migration.id, migration.vm, migration.phase, migration.why
        ),
        format!("the VM goes on on host {}; correct the cause and try again", migration.from),
    ))
}

/// Waits until the host has no VM.
///
/// # Errors
/// `Timeout` past `limit`, `WrongState` when somebody ended the drain.
pub(super) async fn until_empty(
    client: &Client,
    host: &HostId,
    limit: Duration,
) -> Result<(), Refusal> {
    let start = Instant::now();
    let mut teller = Teller::default();
    let mut moved_last = Instant::now();
    loop {
        let request = v1::GetHostRequest { host: host.to_string() };
        let status = answered(async || client.get_host(request.clone()).await).await?;
        if status.vms.is_empty() {
            return Ok(());
        }
        if status.state() != v1::HostState::Draining {
            return Err(Refusal::new(
                RefusalCode::WrongState,
                format!("host {host} no longer drains; {} VMs are still there", status.vms.len()),
                "find out in 'ballast audit ls' who uncordoned it",
            ));
        }
        let moving = leaving(client, host).await?;
        if !moving.is_empty() {
            moved_last = Instant::now();
        }
        let left = status.vms.len();
        let now = if moving.is_empty() { "none moves".to_owned() } else { moving.join(", ") };
        teller.tell(format!("host {host}: {left} VMs left; {now}"));
        if moved_last.elapsed() > IDLE_BEFORE_ASKING {
            moved_last = Instant::now();
            tell_stuck(client, &status.vms).await?;
        }
        pause_within(start, limit, || format!("host {host} still has {left} VMs")).await?;
    }
}

/// The VMs that leave the host just now, with the share that is done.
async fn leaving(client: &Client, host: &HostId) -> Result<Vec<String>, Refusal> {
    let request = v1::ListMigrationsRequest { vm: String::new(), running: true, limit: 1000 };
    let migrations = answered(async || client.list_migrations(request.clone()).await).await?;
    let line = |migration: v1::Migration| {
        let share = share_done(&migration.progress.unwrap_or_default()) * 100.0;
        format!("{} → {} {share:.0}%", migration.vm, migration.to)
    };
    Ok(migrations.migrations.into_iter().filter(|m| m.from == host.as_str()).map(line).collect())
}

/// What the planner says of VMs that cannot leave.
async fn tell_stuck(client: &Client, vms: &[String]) -> Result<(), Refusal> {
    let record = answered(async || client.show_plan(v1::ShowPlanRequest {}).await).await?;
    let Ok(planning) = serde_json::from_str::<Planning>(&record.planning_json) else {
        return Ok(()); // a newer controller: waiting does not depend on it
    };
    for (vm, verdict) in &planning.verdicts {
        if let Verdict::Stuck { reason, remedy, .. } = verdict
            && vms.iter().any(|name| name == vm.as_str())
        {
            eprintln!("  {vm} cannot leave: {reason}; {remedy}");
        }
    }
    Ok(())
}

async fn pause_within(
    start: Instant,
    limit: Duration,
    what: impl Fn() -> String,
) -> Result<(), Refusal> {
    if start.elapsed() >= limit {
        return Err(Refusal::new(
            RefusalCode::Timeout,
            format!("{} after {}", what(), units::coarse(limit)),
            "it goes on by itself; wait longer with --wait-timeout",
        ));
    }
    tokio::time::sleep(POLL).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Answers of a controller that is away first, and how often it was asked.
    async fn asked(away: u32, then: RefusalCode) -> (RefusalCode, u32) {
        let times = Cell::new(0);
        let ask = async || {
            times.set(times.get() + 1);
            let code = if times.get() <= away { RefusalCode::Unavailable } else { then };
            Err::<(), _>(Refusal::new(code, "no", "none"))
        };
        (answered(ask).await.unwrap_err().code, times.get())
    }

    #[tokio::test]
    async fn a_controller_that_is_away_is_asked_again_for_a_while() {
        assert_eq!(asked(1, RefusalCode::NotFound).await, (RefusalCode::NotFound, 2));
    }
}
