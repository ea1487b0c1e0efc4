//! What the demo shows while it runs: a live picture beneath the lines on a
//! terminal, lines with their time otherwise.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crossterm::style::{Color, Stylize};
use crossterm::{cursor, queue, terminal};

use super::watch::{Look, name};
use crate::commands::migration::share_done;
use crate::output::units;

/// How often plain lines repeat the load bars.
const PLAIN_BARS_EVERY: Duration = Duration::from_secs(5);
/// Cells of a load bar and of a progress bar.
const BAR_CELLS: usize = 24;
/// The most running migrations in the picture.
const MIGRATIONS_SHOWN: usize = 8;

/// Where lines and picture go.
pub(super) struct View {
    out: Box<dyn Write>,
    live: bool,
    start: Instant,
    /// Lines of the picture that stand on the terminal now.
    drawn: u16,
    bars_last: Option<Instant>,
}

impl View {
    /// A view on standard output or, with `to_stderr`, on standard error.
    pub(super) fn new(to_stderr: bool) -> Self {
        let (out, terminal): (Box<dyn Write>, bool) = if to_stderr {
            (Box::new(std::io::stderr()), std::io::stderr().is_terminal())
        } else {
            (Box::new(std::io::stdout()), std::io::stdout().is_terminal())
        };
        Self { out, live: terminal, start: Instant::now(), drawn: 0, bars_last: None }
    }

    /// The beginning of a part of the demo.
    pub(super) fn phase(&mut self, text: &str) {
        let text = if self.live { text.bold().to_string() } else { text.to_owned() };
        self.line(&text);
        self.bars_last = None;
    }

    /// Something that happened. On a terminal it takes one row.
    pub(super) fn line(&mut self, text: &str) {
        self.erase();
        let line = format!("[{:>6.1}s] {text}", self.start.elapsed().as_secs_f64());
        let line = self.columns().map_or(line.clone(), |columns| clipped(&line, columns));
        let _ = writeln!(self.out, "{line}");
        let _ = self.out.flush();
    }

    /// The width of the terminal; none where there is no terminal.
    fn columns(&self) -> Option<usize> {
        self.live.then(|| usize::from(terminal::size().map_or(80, |size| size.0)))
    }

    /// Text to be copied, whole however long its lines.
    pub(super) fn verbatim(&mut self, text: &str) {
        self.erase();
        let _ = self.out.write_all(text.as_bytes());
        let _ = self.out.flush();
    }

    /// Text that stands by itself, e.g. the summary. On a terminal each line takes one row.
    pub(super) fn text(&mut self, text: &str) {
        self.erase();
        for line in text.lines() {
            let line = self.columns().map_or(line.to_owned(), |columns| clipped(line, columns));
            let _ = writeln!(self.out, "{line}");
        }
        let _ = self.out.flush();
    }

    /// The present state: drawn anew on a terminal, now and then as lines otherwise.
    pub(super) fn update(&mut self, look: &Look) {
        if self.live {
            self.draw(look);
        } else if self.bars_last.is_none_or(|last| last.elapsed() >= PLAIN_BARS_EVERY) {
            self.bars_last = Some(Instant::now());
            for line in host_lines(look, false) {
                self.line(&line);
            }
            self.line(&imbalance_line(look));
        }
    }

    fn draw(&mut self, look: &Look) {
        let rows = terminal::size().map_or(24, |size| size.1);
        let columns = self.columns().unwrap_or(80);
        let mut lines = host_lines(look, true);
        lines.push(imbalance_line(look));
        lines.extend(migration_lines(look));
        lines.truncate(usize::from(rows.saturating_sub(1)));
        self.erase();
        let _ = queue!(self.out, cursor::Hide);
        for line in &lines {
            let _ = writeln!(self.out, "{}", clipped(line, columns));
        }
        self.drawn = u16::try_from(lines.len()).unwrap_or(0);
        let _ = self.out.flush();
    }

    /// Takes the picture away, so that a line can stand in its place.
    fn erase(&mut self) {
        if self.drawn > 0 {
            let down = terminal::Clear(terminal::ClearType::FromCursorDown);
            let up = cursor::MoveToPreviousLine(self.drawn);
            let _ = queue!(self.out, up, down, cursor::Show);
            self.drawn = 0;
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if self.live {
            self.erase();
            let _ = queue!(self.out, cursor::Show);
            let _ = self.out.flush();
        }
    }
}

fn host_lines(look: &Look, colour: bool) -> Vec<String> {
    let line = |host: &ballast_proto::v1::HostStatus| {
        let capacity = host.description.as_ref().and_then(|host| host.capacity).unwrap_or_default();
        let demand = host.demand.unwrap_or_default();
        let cpu = share(demand.cpu_millicores, capacity.cpu_millicores);
        let memory = look.memory.get(name(host)).copied().unwrap_or_default();
        let memory = share(memory, capacity.memory_bytes);
        let state = match (host.known, host.state()) {
            (false, _) => "  unknown",
            (true, ballast_proto::v1::HostState::Draining) => "  draining",
            (true, ballast_proto::v1::HostState::Quarantined) => "  quarantined",
            (true, _) => "",
        };
        format!(
            "{:<8} CPU {} {:>4.0}%  memory {} {:>3.0}%  {:>2} VMs{state}",
            name(host),
            coloured(bar(cpu), cpu, colour),
            cpu * 100.0,
            bar(memory),
            memory * 100.0,
            host.vms.len(),
        )
    };
    look.hosts.iter().map(line).collect()
}

fn imbalance_line(look: &Look) -> String {
    let running = match look.running().count() {
        1 => "1 migration".to_owned(),
        count => format!("{count} migrations"),
    };
    let paused = match look.status.paused_because.as_str() {
        "" => String::new(),
        why => format!("; the balancer has paused itself: {why}"),
    };
    format!("imbalance {:.3}, {running} running{paused}", look.status.imbalance)
}

fn migration_lines(look: &Look) -> Vec<String> {
    let line = |migration: &ballast_proto::v1::Migration| {
        let progress = migration.progress.unwrap_or_default();
        let done = share_done(&progress);
        format!(
            "  {:<8} {} → {}  {} {:>3.0}%  {}, round {}, {} sent",
            migration.vm,
            migration.from,
            migration.to,
            bar(done),
            done * 100.0,
            migration.phase,
            progress.rounds,
            units::bytes(progress.bytes_sent),
        )
    };
    look.running().take(MIGRATIONS_SHOWN).map(line).collect()
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A bar of [`BAR_CELLS`] cells; what is over 100 % does not make it longer.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped on the line before
fn bar(share: f64) -> String {
    let cells = (share.clamp(0.0, 1.0) * BAR_CELLS as f64).round() as usize;
    "█".repeat(cells) + &"░".repeat(BAR_CELLS - cells)
}

fn coloured(bar: String, share: f64, colour: bool) -> String {
    let shade = match share {
        _ if !colour => return bar,
        s if s > 1.0 => Color::Red,
        s if s > 0.8 => Color::Yellow,
        _ => Color::Green,
    };
    bar.with(shade).to_string()
}

/// The line cut at the terminal's edge, so that it takes one row. Escape sequences take no room.
fn clipped(line: &str, columns: usize) -> String {
    let mut text = String::with_capacity(line.len());
    let visible = visible_chars(line);
    let mut room = if visible > columns { columns.saturating_sub(1) } else { columns };
    let mut escape = false;
    for c in line.chars() {
        if c == '\u{1b}' {
            escape = true;
        }
        if escape {
            text.push(c);
            escape = !c.is_ascii_alphabetic();
        } else if room > 0 {
            text.push(c);
            room -= 1;
            if room == 0 && visible > columns {
                text.push('…');
            }
        }
    }
    text
}

/// Characters that take room: all but escape sequences.
fn visible_chars(line: &str) -> usize {
    let mut escape = false;
    line.chars()
        .filter(|c| {
            let starts = *c == '\u{1b}';
            let hidden = escape || starts;
            escape = hidden && (starts || !c.is_ascii_alphabetic());
            !hidden
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_of_one_length() {
        for share in [-1.0, 0.0, 0.5, 1.0, 7.0, f64::NAN] {
            assert_eq!(bar(share).chars().count(), BAR_CELLS, "{share}");
        }
        assert_eq!(bar(0.5).matches('█').count(), BAR_CELLS / 2);
    }

    #[test]
    fn a_clipped_line_keeps_its_escape_sequences() {
        let line = format!("{}x", "abc".with(Color::Red));
        let clip = clipped(&line, 2);
        assert!(clip.contains("a…") && !clip.contains('b') && !clip.contains('x'), "{clip:?}");
        assert!(clip.starts_with('\u{1b}') && clip.ends_with('m'), "{clip:?}");
        assert_eq!(clipped(&line, 4), line);
    }

    #[test]
    fn hosts_and_migrations_are_one_line_each() {
        use ballast_proto::v1;
        let resources =
            |cpu, mib: u64| v1::Resources { cpu_millicores: cpu, memory_bytes: mib << 20 };
        let host = v1::HostStatus {
            description: Some(v1::HostDescription {
                host: "host-1".into(),
                capacity: Some(resources(600, 1024)),
                ..v1::HostDescription::default()
            }),
            demand: Some(resources(840, 100)),
            state: v1::HostState::Draining.into(),
            known: true,
            vms: vec!["demo-01".into()],
            ..v1::HostStatus::default()
        };
        let migration = v1::Migration {
            vm: "demo-01".into(),
            from: "host-1".into(),
            to: "host-2".into(),
            phase: "transferring".into(),
            progress: Some(v1::MigrationProgress {
                rounds: 1,
                bytes_sent: 16 << 20,
                bytes_remaining: 16 << 20,
                bytes_total: 64 << 20,
                ..v1::MigrationProgress::default()
            }),
            ..v1::Migration::default()
        };
        let look = Look {
            hosts: vec![host],
            migrations: vec![migration],
            status: v1::ClusterStatus { imbalance: 0.5, ..v1::ClusterStatus::default() },
            memory: [("host-1".to_owned(), 512 << 20)].into(),
        };
        assert_eq!(
            host_lines(&look, false),
            [
                "host-1   CPU ████████████████████████  140%  memory ████████████░░░░░░░░░░░░  50%   1 VMs  draining"
            ]
        );
        assert_eq!(
            migration_lines(&look),
            [
                "  demo-01  host-1 → host-2  ██████████████████░░░░░░  75%  transferring, round 1, 16.0 MiB sent"
            ]
        );
        assert_eq!(imbalance_line(&look), "imbalance 0.500, 1 migration running");
    }
}
