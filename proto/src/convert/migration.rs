//! Migration records, progress and downtime.
//!
//! A record goes out only: the phase's own data (the address, the granted
//! epoch) stays with the controller, which is alone in writing records.

use std::time::Duration;

use ballast_model::migration::{Downtime, Progress};
use ballast_model::{Bytes, BytesPerSec, Migration, MigrationOutcome, MigrationPhase};

use super::trail::reasons_to_wire;
use crate::v1;

/// Microseconds of a duration; the longest ones saturate.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl From<Downtime> for v1::Downtime {
    fn from(downtime: Downtime) -> Self {
        Self {
            last_pass_micros: micros(downtime.last_pass),
            state_save_micros: micros(downtime.state_save),
            send_micros: micros(downtime.send),
            load_micros: micros(downtime.load),
            commit_micros: micros(downtime.commit),
            resume_micros: micros(downtime.resume),
        }
    }
}

impl From<v1::Downtime> for Downtime {
    /// Every value is a valid duration.
    fn from(message: v1::Downtime) -> Self {
        Self {
            last_pass: Duration::from_micros(message.last_pass_micros),
            state_save: Duration::from_micros(message.state_save_micros),
            send: Duration::from_micros(message.send_micros),
            load: Duration::from_micros(message.load_micros),
            commit: Duration::from_micros(message.commit_micros),
            resume: Duration::from_micros(message.resume_micros),
        }
    }
}

impl From<Progress> for v1::MigrationProgress {
    fn from(progress: Progress) -> Self {
        Self {
            rounds: progress.rounds,
            bytes_sent: progress.bytes_sent.get(),
            bytes_saved: progress.bytes_saved.get(),
            compresses: progress.compresses,
            bytes_remaining: progress.bytes_remaining.get(),
            bytes_total: progress.bytes_total.get(),
            disk_bytes_total: progress.disk_bytes_total.get(),
            disk_bytes_sent: progress.disk_bytes_sent.get(),
            disk_bytes_remaining: progress.disk_bytes_remaining.get(),
            pages_zero: progress.pages_zero,
            elapsed_micros: micros(progress.elapsed),
            rate_bytes_per_sec: progress.rate.get(),
            dirty_bytes_per_sec: progress.dirty_rate.get(),
            expected_downtime_micros: micros(progress.expected_downtime),
            throttle_percent: progress.throttle_percent.into(),
            streams: progress.streams,
            post_copy_bytes: progress.post_copy_bytes.get(),
            faults: progress.faults,
            downtime: Some(progress.downtime.into()),
        }
    }
}

impl From<v1::MigrationProgress> for Progress {
    /// Every value is valid; parts not yet known are zero.
    fn from(message: v1::MigrationProgress) -> Self {
        Self {
            rounds: message.rounds,
            bytes_sent: Bytes(message.bytes_sent),
            bytes_saved: Bytes(message.bytes_saved),
            compresses: message.compresses,
            bytes_remaining: Bytes(message.bytes_remaining),
            bytes_total: Bytes(message.bytes_total),
            disk_bytes_total: Bytes(message.disk_bytes_total),
            disk_bytes_sent: Bytes(message.disk_bytes_sent),
            disk_bytes_remaining: Bytes(message.disk_bytes_remaining),
            pages_zero: message.pages_zero,
            elapsed: Duration::from_micros(message.elapsed_micros),
            rate: BytesPerSec(message.rate_bytes_per_sec),
            dirty_rate: BytesPerSec(message.dirty_bytes_per_sec),
            expected_downtime: Duration::from_micros(message.expected_downtime_micros),
            throttle_percent: u8::try_from(message.throttle_percent).unwrap_or(u8::MAX),
            streams: message.streams,
            post_copy_bytes: Bytes(message.post_copy_bytes),
            faults: message.faults,
            downtime: message.downtime.unwrap_or_default().into(),
        }
    }
}

impl From<&Migration> for v1::Migration {
    fn from(migration: &Migration) -> Self {
        let why = match &migration.phase {
            MigrationPhase::Aborting { why, .. }
            | MigrationPhase::Ended {
                outcome: MigrationOutcome::Cancelled { why } | MigrationOutcome::Failed { why },
            } => why.clone(),
            _ => String::new(),
        };
        Self {
            id: migration.id.to_string(),
            vm: migration.vm.to_string(),
            from: migration.from.to_string(),
            to: migration.to.to_string(),
            source_epoch: migration.source_epoch.0,
            reasons: reasons_to_wire(&migration.reasons),
            created_unix_millis: migration.created_at.unix_millis(),
            updated_unix_millis: migration.updated_at.unix_millis(),
            phase: migration.phase.name().to_owned(),
            ended: migration.phase.is_ended(),
            why,
            progress: Some(migration.progress.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use ballast_model::{Epoch, MigrationId, ReasonTrail, Timestamp};
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn any_progress()(
            rounds: u32, sent: u64, remaining: u64, total: u64, pages_zero: u64,
            (rate, dirty_rate, throttle_percent, streams) in any::<(u64, u64, u8, u32)>(),
            disks in any::<[u64; 3]>(),
            (saved, compresses) in any::<(u64, bool)>(),
            (post_copy, faults) in any::<(u64, u64)>(),
            times in prop::array::uniform8(0u64..1 << 50),
        ) -> Progress {
            let [expected_downtime, elapsed, last_pass, state_save, send, load, commit, resume] =
                times.map(Duration::from_micros);
            let [disk_bytes_total, disk_bytes_sent, disk_bytes_remaining] = disks.map(Bytes);
            Progress {
                rounds,
                bytes_sent: Bytes(sent),
                bytes_saved: Bytes(saved),
                compresses,
                bytes_remaining: Bytes(remaining),
                bytes_total: Bytes(total),
                disk_bytes_total,
                disk_bytes_sent,
                disk_bytes_remaining,
                pages_zero,
                elapsed,
                rate: BytesPerSec(rate),
                dirty_rate: BytesPerSec(dirty_rate),
                expected_downtime,
                throttle_percent,
                streams,
                post_copy_bytes: Bytes(post_copy),
                faults,
                downtime: Downtime { last_pass, state_save, send, load, commit, resume },
            }
        }
    }

    proptest! {
        #[test]
        fn progress_survives_the_wire(progress in any_progress()) {
            prop_assert_eq!(Progress::from(v1::MigrationProgress::from(progress)), progress);
        }
    }

    fn record(phase: MigrationPhase) -> v1::Migration {
        v1::Migration::from(&Migration {
            id: "0190a0b0-0000-7000-8000-000000000001".parse::<MigrationId>().unwrap(),
            vm: "web-1".parse().unwrap(),
            from: "a".parse().unwrap(),
            to: "b".parse().unwrap(),
            source_epoch: Epoch(4),
            reasons: ReasonTrail::new("balancer", "level", Timestamp(1)),
            created_at: Timestamp(2),
            updated_at: Timestamp(3),
            phase,
            progress: Progress::default(),
        })
    }

    #[test]
    fn a_record_says_its_phase_and_why() {
        let running = record(MigrationPhase::Transferring { address: "127.0.0.1:1".into() });
        assert_eq!((running.phase.as_str(), running.ended), ("transferring", false));
        assert_eq!((running.source_epoch, running.reasons.len()), (4, 1));
        let outcome = MigrationOutcome::Failed { why: "link lost".into() };
        let failed = record(MigrationPhase::Ended { outcome });
        assert_eq!((failed.phase.as_str(), failed.ended), ("failed", true));
        assert_eq!(failed.why, "link lost");
        let aborting = record(MigrationPhase::Aborting { why: "asked".into(), cancelled: true });
        assert_eq!((aborting.why.as_str(), aborting.ended), ("asked", false));
    }

    #[test]
    fn the_longest_time_saturates() {
        assert_eq!(micros(Duration::MAX), u64::MAX);
    }
}
