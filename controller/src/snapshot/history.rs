//! What a VM's past migrations mean for its next one.

use std::collections::BTreeMap;
use std::time::Duration;

use ballast_model::{HostState, MigrationOutcome, MigrationPhase, Timestamp, VmId};

use crate::state::MigrationRecord;

/// The rest after a first failed migration; grows with every further failure.
const FAILURE_REST: Duration = Duration::from_secs(10);
/// Failures in a row after which the rest grows no more.
const FAILURES_COUNTED: u32 = 6;
/// How long a move counts as recent: each makes the next one for balance dearer.
const RECENT: Duration = Duration::from_secs(3_600);

/// How a VM's last migrations went.
#[derive(Debug, Clone, Copy)]
pub(super) struct Past {
    ended_at: Timestamp,
    completed: bool,
    failures: u32,
    /// Migrations that brought it to another host within [`RECENT`], whoever ordered them.
    pub(super) moves_recent: u32,
}

/// The past of each VM that has one, from the migrations still kept, oldest first.
pub(super) fn past(migrations: &[MigrationRecord], now: Timestamp) -> BTreeMap<&VmId, Past> {
    let mut past: BTreeMap<&VmId, Past> = BTreeMap::new();
    for record in migrations {
        let migration = &record.migration;
        let MigrationPhase::Ended { outcome } = &migration.phase else { continue };
        let ended_at = migration.updated_at;
        let before = past.get(&migration.vm);
        let failures = before.map_or(0, |past| past.failures);
        let mut moves_recent = before.map_or(0, |past| past.moves_recent);
        let (completed, failures) = match outcome {
            MigrationOutcome::Completed => {
                moves_recent += u32::from(ended_at.plus(RECENT) > now);
                (true, 0)
            }
            MigrationOutcome::Failed { .. } => (false, failures.saturating_add(1)),
            // Somebody did not want it to move now.
            MigrationOutcome::Cancelled { .. } => (true, failures),
        };
        past.insert(&migration.vm, Past { ended_at, completed, failures, moves_recent });
    }
    past
}

/// Whether the VM rests after a move, whoever moved it, or after failed attempts: why, and what would end it. A drain does
/// not wait for the rest after a move.
pub(super) fn rest(
    past: Option<&Past>,
    host: HostState,
    cooldown: Duration,
    now: Timestamp,
) -> Option<(String, String)> {
    let past = past?;
    let (length, after) = if past.completed {
        let cooldown = if host == HostState::Draining { Duration::ZERO } else { cooldown };
        (cooldown, "it was moved")
    } else {
        let times = past.failures.min(FAILURES_COUNTED);
        (FAILURE_REST * times, "its last migration failed")
    };
    let until = past.ended_at.plus(length);
    (until > now).then(|| {
        let since = now.since(past.ended_at).as_secs();
        (
            format!("{after} {since} s ago and rests"),
            format!("wait {} s, or migrate it by hand", until.since(now).as_secs() + 1),
        )
    })
}

#[cfg(test)]
mod tests {
    use ballast_model::migration::Progress;
    use ballast_model::{Epoch, Migration, MigrationId, ReasonTrail};

    use super::*;

    const MINUTE_MS: u64 = 60_000;
    const NOW: Timestamp = Timestamp(1_000 * MINUTE_MS);

    fn completed() -> MigrationOutcome {
        MigrationOutcome::Completed
    }

    fn failed() -> MigrationOutcome {
        MigrationOutcome::Failed { why: "the link broke".to_owned() }
    }

    fn cancelled() -> MigrationOutcome {
        MigrationOutcome::Cancelled { why: "not now".to_owned() }
    }

    /// A migration of `vm` that ended so many minutes ago.
    fn ended(vm: &str, minutes_ago: u64, outcome: MigrationOutcome) -> MigrationRecord {
        let at = Timestamp(NOW.unix_millis() - minutes_ago * MINUTE_MS);
        let migration = Migration {
            id: MigrationId::new(uuid::Uuid::now_v7()),
            vm: vm.parse().unwrap(),
            from: "h1".parse().unwrap(),
            to: "h2".parse().unwrap(),
            source_epoch: Epoch(1),
            reasons: ReasonTrail::default(),
            created_at: at,
            updated_at: at,
            phase: MigrationPhase::Ended { outcome },
            progress: Progress::default(),
        };
        MigrationRecord { migration, cause: None, predicted: None, imbalance_before: 0.0 }
    }

    fn check_recent(migrations: &[MigrationRecord], expected: u32) {
        let vm: VmId = "a".parse().unwrap();
        let past = past(migrations, NOW);
        assert_eq!(past.get(&vm).map_or(0, |past| past.moves_recent), expected);
    }

    #[test]
    fn moves_of_the_last_hour_are_recent() {
        check_recent(&[], 0);
        check_recent(&[ended("a", 61, completed()), ended("a", 60, completed())], 0);
        check_recent(&[ended("a", 61, completed()), ended("a", 59, completed())], 1);
        check_recent(&[ended("a", 40, completed()), ended("a", 5, completed())], 2);
        check_recent(&[ended("a", 40, completed()), ended("b", 5, completed())], 1);
    }

    #[test]
    fn only_what_brought_it_elsewhere_is_a_move() {
        check_recent(&[ended("a", 9, completed()), ended("a", 5, failed())], 1);
        check_recent(&[ended("a", 9, cancelled()), ended("a", 5, failed())], 0);
        let mut running = ended("a", 5, completed());
        running.migration.phase = MigrationPhase::Preparing;
        check_recent(&[ended("a", 9, completed()), running], 1);
    }

    fn check_rest(migrations: &[MigrationRecord], host: HostState, expected: Option<(&str, &str)>) {
        let vm: VmId = "a".parse().unwrap();
        let past = past(migrations, NOW);
        let rest = rest(past.get(&vm), host, Duration::from_secs(600), NOW);
        let rest = rest.as_ref().map(|(why, remedy)| (why.as_str(), remedy.as_str()));
        assert_eq!(rest, expected);
    }

    #[test]
    fn a_vm_rests_after_a_move_but_not_from_a_drain() {
        let moved = [ended("a", 4, completed())];
        let rests = ("it was moved 240 s ago and rests", "wait 361 s, or migrate it by hand");
        check_rest(&moved, HostState::Active, Some(rests));
        check_rest(&moved, HostState::Draining, None);
        check_rest(&[ended("a", 10, completed())], HostState::Active, None);
    }

    #[test]
    fn failures_in_a_row_make_the_rest_longer() {
        let thrice = [ended("a", 9, failed()), ended("a", 8, failed()), ended("a", 0, failed())];
        let rests =
            ("its last migration failed 0 s ago and rests", "wait 31 s, or migrate it by hand");
        check_rest(&thrice, HostState::Draining, Some(rests));
        let between =
            [ended("a", 9, failed()), ended("a", 8, completed()), ended("a", 0, failed())];
        let rests =
            ("its last migration failed 0 s ago and rests", "wait 11 s, or migrate it by hand");
        check_rest(&between, HostState::Active, Some(rests));
    }
}
