//! An append-only log on the disk, which outlives the guest and betrays whoever
//! loses, repeats or tears a write.
//!
//! ```text
//! find the end ─▶ write up to k records at once ─▶ flush ─▶ read one of them all back ─┐
//!                        ▲                                                             │
//!                        └─────────────────────────────────────────────────────────────┘
//! ```
//!
//! Only what a flush has covered counts as durable, and only that is reported.
//! The guest never waits for the disk: each step takes what is done and goes on.

use crate::params::Params;
use crate::record::{Found, Record};
use crate::timeline::Nanos;
use crate::virtio::blk::{Blk, DATA_BYTES, Request, SECTOR_BYTES};
use crate::virtio::mmio::Window;

const NANOS_PER_SEC: Nanos = 1_000_000_000;
/// The slot of flushes and of reading back; the others are for records.
const LAST_SLOT: usize = SLOTS - 1;
/// Requests in flight: the records between two flushes, and the flush.
const SLOTS: usize = 9;
/// How soon to look again while the disk works.
const LOOK_AGAIN: Nanos = 500_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Reads the log from its start; so many pages are behind.
    Scanning {
        page: u64,
    },
    /// Writes; so many records of this batch were submitted.
    Writing {
        submitted: u32,
    },
    Flushing,
    /// Reads back this record.
    Checking {
        sequence: u64,
    },
    /// Full, or the disk failed.
    Ended,
}

/// The log on the machine's disk.
pub struct Log {
    disk: Blk,
    record_bytes: u64,
    batch: u32,
    interval: Nanos,
    /// Records there is room for.
    capacity: u64,
    phase: Phase,
    /// The next record to write.
    next: u64,
    durable: u64,
    run: u64,
    previous: u64,
    due: Nanos,
    faults_seen: u64,
}

/// Something to be said about the log.
pub enum Event {
    /// The end was found; writing begins.
    Ready,
    /// Something went wrong that must not.
    Wrong(Wrong),
}

/// What went wrong.
#[derive(Debug, Clone, Copy)]
pub enum Wrong {
    /// The device refused a request with this status.
    Refused(u8),
    /// A durable record reads as something else.
    NotThere(u64),
    /// The device completed a request that it did not have.
    TwiceDone,
}

impl Log {
    /// Finds the disk and begins to look for the end of the log on it.
    pub fn start(params: &Params<'_>, window: Window) -> Result<Self, &'static str> {
        let disk = Blk::start(window)?;
        let record_bytes = u64::from(params.log_bytes);
        let mut log = Self {
            // Whole pages only: that is how it is scanned.
            capacity: disk.bytes() / DATA_BYTES as u64 * (DATA_BYTES as u64 / record_bytes),
            disk,
            record_bytes,
            batch: params.log_flush,
            interval: NANOS_PER_SEC / u64::from(params.log_per_sec.max(1)),
            phase: Phase::Scanning { page: 0 },
            next: 0,
            durable: 0,
            run: 1,
            previous: 0,
            due: 0,
            faults_seen: 0,
        };
        if log.capacity == 0 {
            return Err("has no room for a page");
        }
        log.scan_on(0);
        Ok(log)
    }

    /// The sequence of the next record.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Records that survive whatever happens.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Records there is room for.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// How often the guest has begun on this disk.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// When to step again at the latest.
    pub fn wake(&self, now: Nanos) -> Nanos {
        match self.phase {
            Phase::Ended => Nanos::MAX,
            Phase::Writing { .. } if self.disk.in_flight() == 0 => self.due.max(now),
            _ => now + LOOK_AGAIN,
        }
    }

    /// Takes what the disk has done and asks for what comes next.
    pub fn step(&mut self, now: Nanos, requests: u64) -> Option<Event> {
        let event = self.take_completions(now);
        if event.is_some() {
            return event;
        }
        if let Phase::Writing { submitted } = self.phase
            && submitted < self.batch
            && now >= self.due
        {
            self.write_next(submitted, now, requests);
        }
        None
    }

    fn take_completions(&mut self, now: Nanos) -> Option<Event> {
        // A bound, and then the rest of the guest has its turn.
        for _ in 0..SLOTS {
            let Some((_, outcome)) = self.disk.complete() else { break };
            if let Err(status) = outcome {
                self.phase = Phase::Ended;
                return Some(Event::Wrong(Wrong::Refused(status)));
            }
            if self.disk.in_flight() == 0
                && let Some(event) = self.all_done(now)
            {
                return Some(event);
            }
        }
        if self.disk.faults() != self.faults_seen {
            self.faults_seen = self.disk.faults();
            return Some(Event::Wrong(Wrong::TwiceDone));
        }
        None
    }

    /// Everything that was submitted is done.
    fn all_done(&mut self, now: Nanos) -> Option<Event> {
        match self.phase {
            Phase::Scanning { page } => return self.scanned(page, now),
            Phase::Writing { submitted }
                if submitted == self.batch || self.next == self.capacity =>
            {
                self.flush();
            }
            Phase::Flushing => self.flushed(),
            Phase::Checking { sequence } => return self.checked(sequence),
            Phase::Writing { .. } | Phase::Ended => {}
        }
        None
    }

    fn write_next(&mut self, submitted: u32, now: Nanos, requests: u64) {
        let record = Record {
            sequence: self.next,
            run: self.run,
            nanos: now,
            requests,
            durable: self.durable,
            previous: self.previous,
        };
        let (slot, length) = (submitted as usize, self.record_bytes as usize);
        self.previous = record.write(&mut self.disk.data(slot)[..length]);
        let sector = self.sector_of(self.next);
        self.next += 1;
        let full = self.next == self.capacity;
        self.phase = Phase::Writing { submitted: if full { self.batch } else { submitted + 1 } };
        self.submit(slot, Request::Write { sector, length });
        // Records that were missed for longer than this are not made up for.
        self.due = (self.due + self.interval).max(now.saturating_sub(NANOS_PER_SEC));
    }

    fn flush(&mut self) {
        if self.disk.flushes() {
            self.phase = Phase::Flushing;
            self.submit(LAST_SLOT, Request::Flush);
        } else {
            self.flushed();
        }
    }

    fn flushed(&mut self) {
        self.durable = self.next;
        // Any of them, each as likely: what the multiplication leaves is spread.
        let sequence = self.previous % self.durable;
        self.phase = Phase::Checking { sequence };
        let (sector, length) = (self.sector_of(sequence), self.record_bytes as usize);
        self.submit(LAST_SLOT, Request::Read { sector, length });
    }

    fn checked(&mut self, sequence: u64) -> Option<Event> {
        let length = self.record_bytes as usize;
        let found = Record::read(&self.disk.data(LAST_SLOT)[..length]);
        self.phase =
            if self.next < self.capacity { Phase::Writing { submitted: 0 } } else { Phase::Ended };
        match found {
            Found::Record(record, _) if record.sequence == sequence => None,
            _ => Some(Event::Wrong(Wrong::NotThere(sequence))),
        }
    }

    /// Asks for the next pages of the log, as many as there are slots for.
    fn scan_on(&mut self, first: u64) {
        self.phase = Phase::Scanning { page: first };
        let pages = self.capacity * self.record_bytes / DATA_BYTES as u64;
        for (slot, page) in (first..pages.min(first + LAST_SLOT as u64)).enumerate() {
            let sector = page * (DATA_BYTES as u64 / SECTOR_BYTES);
            self.disk.submit(slot, Request::Read { sector, length: DATA_BYTES });
        }
        self.disk.kick();
    }

    fn scanned(&mut self, first: u64, now: Nanos) -> Option<Event> {
        let pages = self.capacity * self.record_bytes / DATA_BYTES as u64;
        let slots = (pages - first).min(LAST_SLOT as u64) as usize;
        for slot in 0..slots {
            for bytes in self.disk.data(slot).chunks_exact(self.record_bytes as usize) {
                match Record::read(bytes) {
                    Found::Record(record, sum)
                        if record.sequence == self.next && record.previous == self.previous =>
                    {
                        self.next += 1;
                        self.previous = sum;
                        self.run = record.run + 1;
                    }
                    _ => return self.end_found(now),
                }
            }
        }
        if self.next == self.capacity {
            return self.end_found(now);
        }
        self.scan_on(first + slots as u64);
        None
    }

    fn end_found(&mut self, now: Nanos) -> Option<Event> {
        self.due = now;
        if self.next == 0 {
            self.phase = Phase::Writing { submitted: 0 };
        } else {
            // Whoever wrote it may not have come to its flush.
            self.flush();
        }
        Some(Event::Ready)
    }

    fn submit(&mut self, slot: usize, request: Request) {
        // Slots are free here: all of a phase is done before the next begins.
        self.disk.submit(slot, request);
        self.disk.kick();
    }

    fn sector_of(&self, sequence: u64) -> u64 {
        sequence * self.record_bytes / SECTOR_BYTES
    }
}
