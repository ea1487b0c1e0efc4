//! Reads what probe guests say on their serial port.
//!
//! Lines, all of printable ASCII; more fields may follow in later versions:
//!
//! ```text
//! B 1 <name> key=value …              it starts; 1 is the protocol's version
//! H <number> <ms> p<passes> e<errors> heartbeat; ` s<ms>`: longest stall since the last one;
//!                                     ` t<n>`: times its counter went backwards so far
//!                                     ` v<n>`: other vCPUs that did something since the last one
//!                                     ` n<n>`: requests it counted on the network
//!                                     ` d<n>`: records of its log that are durable
//!                                     ` f<n>`: faults of its devices
//! N <mac> <address>/<prefix> key=…    it is on the network
//! D <capacity> next=<n> run=<n>       it found the end of the log on its disk
//! R ready                             it begins to measure its devices
//! R <operations> <bytes> <µs>         what it measured
//! E page 17 gen 4 holds gen 3         a wrong page, described
//! FATAL <why>                         it cannot go on
//! ```
//!
//! A reader may come late, and the place that keeps the text may forget its
//! beginning: text arrives with its offset, and what is cut off is not taken
//! for a fault of the guest.

use std::time::Duration;

/// The guest's lines are shorter.
const LINE_BYTES_MAX: usize = 256;
/// Of each kind of line that is kept as text, the first ones.
const KEPT_LINES_MAX: usize = 16;

/// A reader of one guest's console, which takes the text in pieces.
#[derive(Debug, Clone, Default)]
pub struct Console {
    /// Offset of the next byte that is not known yet.
    next: u64,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// The rest of this line is of no use: its beginning is missing, or it is too long.
    skipping: bool,
    last: Option<Heartbeat>,
    /// Times a heartbeat was earlier than the one before it.
    steps_back: u64,
    report: ConsoleReport,
}

/// What a guest said in all.
///
/// The guest's verdict is [`faults`](Self::faults): empty when all is well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsoleReport {
    /// First lines seen. More than one: the guest was started again.
    pub boots: u64,
    /// Heartbeats seen.
    pub heartbeats: u64,
    /// Numbers left out between two heartbeats although the text between them is complete.
    pub heartbeats_lost: u64,
    /// Numbers that came again.
    pub heartbeats_repeated: u64,
    /// Number of the last heartbeat.
    pub last_number: Option<u64>,
    /// The guest's own time at its last heartbeat, since its start.
    pub guest_time: Duration,
    /// Times the guest's own clock went backwards.
    pub time_reversals: u64,
    /// The longest time between two heartbeats that follow each other, by the guest's clock: the
    /// interval it was told, plus the longest time it stood still.
    pub heartbeat_gap_max: Duration,
    /// The longest time the guest noticed that it did not run: downtime as the guest saw it, or a
    /// host without CPU time to spare. Resolution 1 ms.
    pub stall_max: Duration,
    /// Rounds over all its memory in which it checked every page.
    pub check_passes: u64,
    /// Pages that did not hold what the guest wrote.
    pub memory_errors: u64,
    /// vCPUs beside the first that did something between its last two heartbeats.
    pub other_vcpus: u64,
    /// Requests it counted on the network, at its last heartbeat.
    pub requests: u64,
    /// Records of its log that a flush has covered, at its last heartbeat.
    pub durable_records: u64,
    /// Times a device did what it must not.
    pub device_faults: u64,
    /// Whether it said that it is on the network.
    pub on_network: bool,
    /// Whether it said that it found the end of its log.
    pub log_ready: bool,
    /// The first of its descriptions of what is wrong.
    pub error_lines: Vec<String>,
    /// What it cannot go on for; the first ones.
    pub fatal_lines: Vec<String>,
    /// Whether it has begun to measure its devices.
    pub measuring: bool,
    /// What it measured: operations, their bytes, and the time it took.
    pub measured: Option<(u64, u64, Duration)>,
    /// Complete lines that are none of the protocol's.
    pub unknown_lines: u64,
    /// Bytes that were never shown to the reader, after the first one that was.
    pub bytes_missed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heartbeat {
    number: u64,
    ms: u64,
    passes: u64,
    errors: u64,
    stall_ms: u64,
    reversals: u64,
    other_vcpus: u64,
    requests: u64,
    durable: u64,
    faults: u64,
}

impl Console {
    /// A reader that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that is not interested in what comes before this offset, nor in the line it may be in.
    pub fn starting_at(offset: u64) -> Self {
        Self { next: offset, skipping: offset > 0, ..Self::default() }
    }

    /// Offset of the next byte it wants: what to ask the console for.
    pub fn next_offset(&self) -> u64 {
        self.next
    }

    /// Takes a piece of text that begins `offset` bytes after the guest's first one. What it has
    /// seen already is skipped; before what it has not, it starts anew at the next line.
    pub fn push(&mut self, offset: u64, bytes: &[u8]) {
        let seen = usize::try_from(self.next.saturating_sub(offset)).unwrap_or(usize::MAX);
        let Some(fresh) = bytes.get(seen..).filter(|fresh| !fresh.is_empty()) else { return };
        if offset > self.next {
            if self.next > 0 {
                self.report.bytes_missed += offset - self.next;
            }
            self.partial.clear();
            self.skipping = true;
            self.last = None;
            self.next = offset;
        }
        self.next += fresh.len() as u64;
        for &byte in fresh {
            self.take(byte);
        }
    }

    /// What the complete lines so far say.
    pub fn report(&self) -> &ConsoleReport {
        &self.report
    }

    fn take(&mut self, byte: u8) {
        if byte == b'\n' {
            let line = std::mem::take(&mut self.partial);
            if !std::mem::take(&mut self.skipping) {
                self.line(&line);
            }
        } else if !self.skipping {
            self.partial.push(byte);
            if self.partial.len() > LINE_BYTES_MAX {
                self.partial.clear();
                self.skipping = true;
                self.report.unknown_lines += 1;
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end_matches('\r');
        let keep = |kept: &mut Vec<String>, text: &str| {
            if kept.len() < KEPT_LINES_MAX {
                kept.push(text.to_owned());
            }
        };
        match line.split_once(' ') {
            Some(("B", _)) => {
                self.report.boots += 1;
                self.last = None;
            }
            Some(("H", fields)) => match Heartbeat::parse(fields) {
                Some(heartbeat) => self.heartbeat(heartbeat),
                None => self.report.unknown_lines += 1,
            },
            Some(("N", _)) => self.report.on_network = true,
            Some(("D", _)) => self.report.log_ready = true,
            Some(("R", "ready")) => self.report.measuring = true,
            Some(("R", fields)) => match measured(fields) {
                Some(measured) => self.report.measured = Some(measured),
                None => self.report.unknown_lines += 1,
            },
            Some(("E", text)) => keep(&mut self.report.error_lines, text),
            Some(("FATAL", text)) => keep(&mut self.report.fatal_lines, text),
            _ => self.report.unknown_lines += 1,
        }
    }

    fn heartbeat(&mut self, heartbeat: Heartbeat) {
        let report = &mut self.report;
        report.heartbeats += 1;
        if let Some(last) = self.last {
            match heartbeat.number.checked_sub(last.number) {
                None | Some(0) => report.heartbeats_repeated += 1,
                Some(step) => report.heartbeats_lost += step - 1,
            }
            match heartbeat.ms.checked_sub(last.ms) {
                None => self.steps_back += 1,
                Some(gap_ms) => {
                    let gap = Duration::from_millis(gap_ms);
                    report.heartbeat_gap_max = report.heartbeat_gap_max.max(gap);
                }
            }
        }
        report.last_number = Some(heartbeat.number);
        report.guest_time = Duration::from_millis(heartbeat.ms);
        report.stall_max = report.stall_max.max(Duration::from_millis(heartbeat.stall_ms));
        report.time_reversals = self.steps_back + heartbeat.reversals;
        report.check_passes = heartbeat.passes;
        report.memory_errors = report.memory_errors.max(heartbeat.errors);
        report.other_vcpus = heartbeat.other_vcpus;
        report.requests = heartbeat.requests;
        report.durable_records = report.durable_records.max(heartbeat.durable);
        report.device_faults = report.device_faults.max(heartbeat.faults);
        self.last = Some(heartbeat);
    }
}

/// Operations, bytes, time.
fn measured(fields: &str) -> Option<(u64, u64, Duration)> {
    let mut fields = fields.split(' ').map(str::parse);
    let mut next = || fields.next()?.ok();
    Some((next()?, next()?, Duration::from_micros(next()?)))
}

impl Heartbeat {
    fn parse(fields: &str) -> Option<Self> {
        let mut fields = fields.split(' ');
        let mut heartbeat = Self {
            number: fields.next()?.parse().ok()?,
            ms: fields.next()?.parse().ok()?,
            passes: fields.next()?.strip_prefix('p')?.parse().ok()?,
            errors: fields.next()?.strip_prefix('e')?.parse().ok()?,
            stall_ms: 0,
            reversals: 0,
            other_vcpus: 0,
            requests: 0,
            durable: 0,
            faults: 0,
        };
        for field in fields {
            let known = match field.get(..1) {
                Some("s") => &mut heartbeat.stall_ms,
                Some("t") => &mut heartbeat.reversals,
                Some("v") => &mut heartbeat.other_vcpus,
                Some("n") => &mut heartbeat.requests,
                Some("d") => &mut heartbeat.durable,
                Some("f") => &mut heartbeat.faults,
                _ => continue,
            };
            *known = field.get(1..)?.parse().ok()?;
        }
        Some(heartbeat)
    }
}

impl ConsoleReport {
    /// Everything that must not happen to a guest, one sentence each; empty when all is well.
    /// A guest that says nothing at all has no fault here: see [`heartbeats`](Self::heartbeats).
    pub fn faults(&self) -> Vec<String> {
        let counts = [
            (self.memory_errors, "pages did not hold what the guest wrote"),
            (self.device_faults, "times a device did what it must not"),
            (self.heartbeats_lost, "heartbeats were lost"),
            (self.heartbeats_repeated, "heartbeats were repeated"),
            (self.time_reversals, "times the guest's clock went backwards"),
            (self.boots.saturating_sub(1), "times the guest was started again"),
            (self.unknown_lines, "lines were damaged"),
        ];
        let counted = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"));
        let fatal = self.fatal_lines.iter().map(|why| format!("the guest gave up: {why}"));
        let errors = self.error_lines.iter().map(|what| format!("the guest found: {what}"));
        counted.chain(fatal).chain(errors).collect()
    }
}
