//! A judge of the log that a guest wrote to its disk.
//!
//! The log is right when every place from the first on holds its own record, up
//! to one place from which on there is nothing. What a guest that ended in the
//! middle of a batch leaves is at most a batch long, and never covered by a flush.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use crate::defaults::LOG_FLUSH;
use crate::record::{Found, Record};

/// Of the faults that are described, the first ones.
const FAULTS_MAX: usize = 16;

/// What a log holds, and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogReport {
    /// Records from the first on, each following the one before it.
    pub records: u64,
    /// How often a guest began to write to this disk.
    pub runs: u64,
    /// Requests the guest had counted when it wrote the last of them.
    pub requests: u64,
    /// Records that the guest says, in the log itself, were durable.
    pub durable: u64,
    /// Places after the end that hold a record or a part of one: writes in flight when the guest
    /// ended.
    pub unfinished: u64,
    /// Everything that must not be, one sentence each; empty when all is well.
    pub faults: Vec<String>,
}

impl LogReport {
    /// Reads a raw disk image. `record_bytes` as in the guest's parameters; `flushed` is how many
    /// records the guest has said were durable, for example on its console.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn of(image: &Path, record_bytes: u32, flushed: u64) -> io::Result<Self> {
        Self::of_reader(&mut BufReader::new(File::open(image)?), record_bytes, flushed)
    }

    /// The same of anything that can be read.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_reader(image: &mut dyn Read, record_bytes: u32, flushed: u64) -> io::Result<Self> {
        let mut judge = Judge::default();
        let mut bytes = vec![0; record_bytes as usize];
        while fill(image, &mut bytes)? {
            judge.see(Record::read(&bytes));
        }
        Ok(judge.finish(flushed))
    }
}

#[derive(Default)]
struct Judge {
    report: LogReport,
    place: u64,
    previous: u64,
    /// What is at and after the end; places beyond the first few that hold nothing are not kept.
    ended: bool,
}

impl Judge {
    fn see(&mut self, found: Found) {
        let place = self.place;
        self.place += 1;
        if self.ended {
            if found != Found::Nothing {
                self.beyond(place, found);
            }
            return;
        }
        match found {
            Found::Record(record, sum)
                if record.sequence == place && record.previous == self.previous =>
            {
                self.follow(record, sum);
            }
            Found::Nothing => self.ended = true,
            other => {
                self.ended = true;
                self.beyond(place, other);
            }
        }
    }

    fn follow(&mut self, record: Record, sum: u64) {
        let report = &mut self.report;
        if report.records > 0 && record.run == report.runs && record.requests < report.requests {
            self.fault(format!("record {} has fewer requests than before", record.sequence));
        }
        let report = &mut self.report;
        if record.run != report.runs && record.run != report.runs + 1 {
            let (run, runs) = (record.run, report.runs);
            self.fault(format!("record {} is of run {run} after run {runs}", record.sequence));
        }
        let report = &mut self.report;
        report.records += 1;
        report.runs = record.run;
        report.requests = record.requests;
        report.durable = report.durable.max(record.durable);
        self.previous = sum;
    }

    /// Something stands where the log has ended.
    fn beyond(&mut self, place: u64, found: Found) {
        self.report.unfinished += 1;
        if let Found::Record(record, _) = found
            && record.sequence != place
        {
            self.fault(format!("record {} stands in place {place}", record.sequence));
        }
        let end = self.report.records;
        if place >= end + u64::from(LOG_FLUSH) {
            self.fault(format!("the log ends after {end} records but place {place} is in use"));
        }
    }

    fn fault(&mut self, what: String) {
        if self.report.faults.len() < FAULTS_MAX {
            self.report.faults.push(what);
        }
    }

    fn finish(mut self, flushed: u64) -> LogReport {
        let records = self.report.records;
        for (claimed, by) in [(flushed, "the guest said"), (self.report.durable, "the log says")] {
            if claimed > records {
                self.fault(format!("{by} {claimed} records are durable, but {records} are there"));
            }
        }
        self.report
    }
}

/// Fills the whole slice. False at the end; what is left over at the end of the image is no place
/// for a record.
fn fill(image: &mut dyn Read, bytes: &mut [u8]) -> io::Result<bool> {
    match image.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 512;

    /// A disk of `places` with a log of `records`, flushed every 4.
    fn disk(places: usize, records: u64) -> Vec<u8> {
        let mut image = vec![0; places * BYTES];
        let mut previous = 0;
        for (sequence, bytes) in (0..records).zip(image.chunks_exact_mut(BYTES)) {
            let (nanos, durable) = (sequence * 10, sequence / 4 * 4);
            let record =
                Record { sequence, run: 1, nanos, requests: sequence / 2, durable, previous };
            previous = record.write(bytes);
        }
        image
    }

    fn check(image: &[u8], flushed: u64, expected: &[&str]) -> LogReport {
        let report = LogReport::of_reader(&mut &*image, 512, flushed).unwrap();
        assert_eq!(report.faults, expected);
        report
    }

    fn copy(image: &mut [u8], from: usize, to: usize) {
        image.copy_within(from * BYTES..(from + 1) * BYTES, to * BYTES);
    }

    #[test]
    fn a_whole_log_has_no_faults() {
        let report = check(&disk(40, 30), 28, &[]);
        assert_eq!((report.records, report.runs, report.durable), (30, 1, 28));
        assert_eq!((report.unfinished, report.requests), (0, 14));
        check(&disk(30, 30), 30, &[]);
        check(&disk(10, 0), 0, &[]);
    }

    #[test]
    fn lost_records_are_found() {
        let mut image = disk(40, 30);
        image[10 * BYTES..11 * BYTES].fill(0);
        let report = check(
            &image[..20 * BYTES],
            9,
            &[
                "the log ends after 10 records but place 18 is in use",
                "the log ends after 10 records but place 19 is in use",
            ],
        );
        assert_eq!((report.records, report.unfinished), (10, 9));
        check(&disk(40, 30), 31, &["the guest said 31 records are durable, but 30 are there"]);
    }

    #[test]
    fn repeated_records_are_found() {
        let mut image = disk(20, 18);
        copy(&mut image, 16, 17);
        check(&image, 16, &["record 16 stands in place 17"]);
        copy(&mut image, 0, 18);
        check(&image, 16, &["record 16 stands in place 17", "record 0 stands in place 18"]);
    }

    #[test]
    fn torn_records_are_found() {
        let mut image = disk(20, 18);
        image[17 * BYTES + 300..18 * BYTES].fill(0);
        assert_eq!(check(&image, 16, &[]).unfinished, 1);
        check(&image, 18, &["the guest said 18 records are durable, but 17 are there"]);
    }

    #[test]
    fn a_second_writer_is_found() {
        let mut image = disk(20, 18);
        // Whole, in its place, and written by somebody who did not know of record 15.
        let record =
            Record { sequence: 16, run: 1, nanos: 160, requests: 8, durable: 16, previous: 4711 };
        record.write(&mut image[16 * BYTES..17 * BYTES]);
        check(&image, 18, &["the guest said 18 records are durable, but 16 are there"]);
    }

    #[test]
    fn every_bit_of_a_record_counts() {
        let image = disk(1, 1);
        for bit in 0..BYTES * 8 {
            let mut image = image.clone();
            image[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::read(&image), Found::Damaged, "bit {bit}");
        }
    }
}
