//! Looking at the cluster: one look a moment, what changed since the last one,
//! and what the guests say.

use std::collections::{BTreeMap, HashMap};

use ballast_guest::Console;
use ballast_model::{Refusal, VmId};
use ballast_proto::v1;

use crate::client::Client;
use crate::commands::migration::reasons;
use crate::output::units;
use crate::output::view::downtime_micros;

/// The most pieces of one console that are read at once, 64 KiB each.
const PIECES_MAX: usize = 64;

/// The cluster at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Look {
    pub(super) hosts: Vec<v1::HostStatus>,
    /// Newest first.
    pub(super) migrations: Vec<v1::Migration>,
    pub(super) status: v1::ClusterStatus,
    /// Memory of the VMs on each host: their size, which is what must fit.
    pub(super) memory: BTreeMap<String, u64>,
}

impl Look {
    /// Asks the controller; `sizes` is the memory of each VM.
    pub(super) async fn take(
        client: &Client,
        sizes: &BTreeMap<String, u64>,
    ) -> Result<Self, Refusal> {
        let migrations =
            v1::ListMigrationsRequest { vm: String::new(), running: false, limit: 1000 };
        let (hosts, migrations, status) = tokio::try_join!(
            client.list_hosts(v1::ListHostsRequest {}),
            client.list_migrations(migrations),
            client.get_status(v1::GetStatusRequest {}),
        )?;
        let mut hosts = hosts.hosts;
        hosts.sort_by(|a, b| name(a).cmp(name(b)));
        let size = |host: &v1::HostStatus| host.vms.iter().filter_map(|vm| sizes.get(vm)).sum();
        let memory = hosts.iter().map(|host| (name(host).to_owned(), size(host))).collect();
        Ok(Self { hosts, migrations: migrations.migrations, status, memory })
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &v1::Migration> {
        self.migrations.iter().filter(|migration| !migration.ended)
    }

    pub(super) fn host(&self, host: &str) -> Option<&v1::HostStatus> {
        self.hosts.iter().find(|status| name(status) == host)
    }
}

/// The host's name.
pub(super) fn name(host: &v1::HostStatus) -> &str {
    host.description.as_ref().map_or("", |description| &description.host)
}

/// Tells what happened between two looks.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    seen: HashMap<String, bool>,
}

impl Tracker {
    /// One line for each migration that began or ended since the last look, oldest first.
    pub(super) fn changes(&mut self, look: &Look) -> Vec<String> {
        let mut lines = Vec::new();
        for migration in look.migrations.iter().rev() {
            let before = self.seen.insert(migration.id.clone(), migration.ended);
            if before.is_none() {
                lines.push(format!(
                    "{} {} → {} begins: {}",
                    migration.vm,
                    migration.from,
                    migration.to,
                    reasons(&migration.reasons)
                ));
            }
            if migration.ended && before != Some(true) {
                lines.push(ended(migration));
            }
        }
        lines
    }
}

fn ended(migration: &v1::Migration) -> String {
    let progress = migration.progress.unwrap_or_default();
    let what = match migration.phase.as_str() {
        "completed" => format!(
            "is there: {} rounds, {}, {}, downtime {}",
            progress.rounds,
            units::bytes(progress.bytes_sent),
            units::micros(progress.elapsed_micros),
            units::micros(downtime_micros(&progress.downtime.unwrap_or_default()))
        ),
        phase => format!("{phase}: {}", migration.why),
    };
    format!("{} {} → {} {what}", migration.vm, migration.from, migration.to)
}

/// What the guests say, read through the controller and across their migrations.
#[derive(Debug)]
pub(super) struct Consoles {
    consoles: BTreeMap<VmId, Console>,
}

impl Consoles {
    pub(super) fn new(vms: impl Iterator<Item = VmId>) -> Self {
        Self { consoles: vms.map(|vm| (vm, Console::new())).collect() }
    }

    /// Reads on, each to its present end. A console that cannot be read just now, because its VM
    /// is between two hosts, is read the next time: the host keeps what was said.
    ///
    /// # Errors
    /// The last refusal, when a console could not be read.
    pub(super) async fn read(&mut self, client: &Client) -> Result<(), Refusal> {
        let reads = self.consoles.iter_mut().map(|(vm, console)| read_one(client, vm, console));
        futures::future::join_all(reads).await.into_iter().collect()
    }

    pub(super) fn reports(&self) -> impl Iterator<Item = (&VmId, &ballast_guest::ConsoleReport)> {
        self.consoles.iter().map(|(vm, console)| (vm, console.report()))
    }
}

async fn read_one(client: &Client, vm: &VmId, console: &mut Console) -> Result<(), Refusal> {
    for _ in 0..PIECES_MAX {
        let request = v1::ReadConsoleRequest {
            vm: vm.to_string(),
            offset: console.next_offset(),
            wait_ms: 0,
        };
        let piece = client.read_console(request).await?;
        if piece.data.is_empty() {
            break;
        }
        console.push(piece.offset, &piece.data);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(id: &str, phase: &str, ended: bool) -> v1::Migration {
        v1::Migration {
            id: id.into(),
            vm: format!("vm-{id}"),
            phase: phase.into(),
            ended,
            ..v1::Migration::default()
        }
    }

    #[test]
    fn each_beginning_and_end_is_told_once() {
        let mut tracker = Tracker::default();
        let mut look =
            Look { migrations: vec![migration("1", "preparing", false)], ..Look::default() };
        assert_eq!(tracker.changes(&look).len(), 1);
        assert!(tracker.changes(&look).is_empty());
        look.migrations[0] = migration("1", "completed", true);
        look.migrations.insert(0, migration("2", "failed", true));
        let lines = tracker.changes(&look);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("vm-1") && lines[0].contains("is there"), "{lines:?}");
        assert!(lines[2].starts_with("vm-2") && lines[2].contains("failed"), "{lines:?}");
        assert!(tracker.changes(&look).is_empty());
    }
}
