//! Two sides' figures merged into one.

use std::time::Duration;

use ballast_model::migration::{Downtime, Progress};
use ballast_proto::v1;

/// `known` with what one side said. Source and destination each know their own parts and leave the
/// others zero; counters come from the source, and nothing falls.
pub(super) fn merge(known: Progress, status: &v1::MigrationStatus) -> Progress {
    let Some(said) = status.progress else { return known };
    let said = Progress::from(said);
    let longer = |a: Duration, b: Duration| a.max(b);
    let (a, b) = (known.downtime, said.downtime);
    let downtime = Downtime {
        last_pass: longer(a.last_pass, b.last_pass),
        state_save: longer(a.state_save, b.state_save),
        send: longer(a.send, b.send),
        load: longer(a.load, b.load),
        commit: longer(a.commit, b.commit),
        resume: longer(a.resume, b.resume),
    };
    if status.role != i32::from(v1::MigrationRole::Source) {
        let faults = known.faults.max(said.faults);
        return Progress { downtime, faults, ..known };
    }
    Progress {
        rounds: known.rounds.max(said.rounds),
        bytes_sent: known.bytes_sent.max(said.bytes_sent),
        bytes_saved: known.bytes_saved.max(said.bytes_saved),
        bytes_remaining: said.bytes_remaining,
        bytes_total: known.bytes_total.max(said.bytes_total),
        disk_bytes_total: known.disk_bytes_total.max(said.disk_bytes_total),
        disk_bytes_sent: known.disk_bytes_sent.max(said.disk_bytes_sent),
        disk_bytes_remaining: said.disk_bytes_remaining,
        pages_zero: known.pages_zero.max(said.pages_zero),
        elapsed: longer(known.elapsed, said.elapsed),
        // These rise and fall.
        rate: said.rate,
        dirty_rate: said.dirty_rate,
        expected_downtime: said.expected_downtime,
        throttle_percent: said.throttle_percent,
        streams: said.streams,
        compresses: said.compresses,
        post_copy_bytes: known.post_copy_bytes.max(said.post_copy_bytes),
        faults: known.faults.max(said.faults),
        downtime,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(role: v1::MigrationRole, progress: v1::MigrationProgress) -> v1::MigrationStatus {
        v1::MigrationStatus { role: role.into(), progress: Some(progress), ..Default::default() }
    }

    #[test]
    fn each_side_fills_in_its_own_parts() {
        let source = v1::MigrationProgress {
            rounds: 3,
            bytes_sent: 900,
            downtime: Some(v1::Downtime { last_pass_micros: 10, ..Default::default() }),
            ..Default::default()
        };
        let destination = v1::MigrationProgress {
            rounds: 99,
            downtime: Some(v1::Downtime { resume_micros: 5, ..Default::default() }),
            ..Default::default()
        };
        let merged = merge(Progress::default(), &status(v1::MigrationRole::Source, source));
        let merged = merge(merged, &status(v1::MigrationRole::Destination, destination));
        assert_eq!((merged.rounds, merged.bytes_sent.get()), (3, 900));
        assert_eq!(merged.downtime.total(), Duration::from_micros(15));
    }
}
