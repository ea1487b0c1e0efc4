//! Several threads on one walk: the hosts are dealt out among them anew every
//! so often, each walks on its own, and what they did is put together.
//!
//! ```text
//!  leader   ─┬─ task ─▶ walks on part 0 ──▶ puts together ─┬─ task ─▶ …
//!  member 1 ─┴────────▶ walks on part 1 ──▶ report ────────┴────────▶ …
//! ```
//!
//! What load costs, and capacities, are a matter of single hosts, so that what was done on different
//! parts adds up. Rules over groups may reach across: where the sum is worse than its parts
//! said, a member's moves are taken back. Two threads so walk twice as far, which is worth more than
//! the better of two walks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::core::assignment::Assignment;
use crate::core::ids::{Item, NONE, Place};
use crate::core::objective::Score;
use crate::core::problem::{Problem, RuleKind};
use crate::core::rng::Rng;

use super::Meter;
use super::anneal;
use super::walk::{CHUNK, Climate, Moved, Part, Walk};

/// What a member is told.
#[derive(Debug, Clone)]
struct Task<const L: usize> {
    /// Where items are now that moved since the last task.
    news: Arc<[(Item, Option<Place>)]>,
    work: Work<L>,
}

#[derive(Debug, Clone, Copy)]
enum Work<const L: usize> {
    Together(Stretch<L>),
    /// To the end, with losses on this scale.
    Alone([f64; L]),
}

/// What all do until they meet again.
#[derive(Debug, Clone, Copy)]
struct Stretch<const L: usize> {
    /// The part of each host follows from it.
    seed: u64,
    climate: Climate<L>,
    chunks: u64,
}

/// What a member did.
#[derive(Debug)]
struct Report<const L: usize> {
    moved: Vec<Moved>,
    change: Score<L>,
}

/// What leader and members share.
#[derive(Debug)]
pub(super) struct Crew<'a> {
    problem: &'a Problem,
    /// Leader and members.
    size: usize,
    /// Whether all end with the first, rather than after the same number of moves.
    hurry: bool,
    is_done: AtomicBool,
}

/// The leader's ends of the lines.
#[derive(Debug)]
pub(super) struct Lines<const L: usize> {
    tasks: Vec<SyncSender<Task<L>>>,
    reports: Vec<Receiver<Report<L>>>,
    /// What moved since the last task.
    moved: Vec<Item>,
}

/// A member's ends of the lines.
#[derive(Debug)]
pub(super) struct Line<const L: usize> {
    number: usize,
    tasks: Receiver<Task<L>>,
    reports: SyncSender<Report<L>>,
}

impl<const L: usize> Lines<L> {
    /// From here on everybody walks alone.
    pub(super) fn part(&mut self, walk: &Walk<'_, L>, scale: [f64; L]) {
        self.tell(walk, Work::Alone(scale));
    }

    /// Goes back to the best the leader passed.
    pub(super) fn go_back(&mut self, walk: &mut Walk<'_, L>) {
        self.moved.extend(walk.keeper.restore(&mut walk.state));
    }

    /// A member that is gone has panicked, which shows when it is joined; the others go on.
    fn tell(&mut self, walk: &Walk<'_, L>, work: Work<L>) {
        let news = self.moved.drain(..).map(|item| (item, walk.state.place(item))).collect();
        let task = Task { news, work };
        for line in &self.tasks {
            let _ = line.send(task.clone());
        }
    }
}

impl<'a> Crew<'a> {
    /// With `hurry` no one waits for the slowest, and the result depends on the threads' speed.
    pub(super) fn new(problem: &'a Problem, size: usize, hurry: bool) -> Self {
        Self { problem, size, hurry, is_done: AtomicBool::new(false) }
    }

    /// How many threads.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The ends of the lines, the leader's and the members'.
    pub(super) fn lines<const L: usize>(&self) -> (Lines<L>, Vec<Line<L>>) {
        let mut lines = Lines { tasks: Vec::new(), reports: Vec::new(), moved: Vec::new() };
        let members = (1..self.size).map(|number| {
            let (task, tasks) = sync_channel(1);
            let (report, reports) = sync_channel(1);
            lines.tasks.push(task);
            lines.reports.push(reports);
            Line { number, tasks, reports: report }
        });
        let members = members.collect();
        (lines, members)
    }

    /// A member's work, until the leader is gone.
    pub(super) fn serve<const L: usize>(
        &self,
        mut walk: Walk<'_, L>,
        line: &Line<L>,
        meter: &Meter<'_>,
    ) -> (Score<L>, Assignment, u64) {
        while let Ok(task) = line.tasks.recv() {
            walk.follow(task.news.iter().copied());
            walk.keeper.look(&walk.state);
            match task.work {
                Work::Together(stretch) => {
                    let report = self.work(&mut walk, &stretch, line.number);
                    if line.reports.send(report).is_err() {
                        break;
                    }
                }
                Work::Alone(scale) => {
                    anneal::cool_alone(&mut walk, scale, meter);
                    break;
                }
            }
        }
        walk.end()
    }

    /// One task, for the leader and everybody: `chunks` on parts of the hosts.
    pub(super) fn round<const L: usize>(
        &self,
        walk: &mut Walk<'_, L>,
        lines: &mut Lines<L>,
        chunks: u64,
    ) {
        if self.size == 1 {
            for _ in 0..chunks {
                walk.chunk();
            }
            return;
        }
        let stretch = Stretch { seed: walk.seed(), climate: walk.climate, chunks };
        self.is_done.store(false, Ordering::Relaxed);
        lines.tell(walk, Work::Together(stretch));
        let mine = self.work(walk, &stretch, 0);
        lines.moved.extend(mine.moved.iter().map(|moved| moved.item));
        let reports: Vec<Report<L>> =
            lines.reports.iter().filter_map(|line| line.recv().ok()).collect();
        lines.moved.extend(reports.iter().flat_map(|report| &report.moved).map(|moved| moved.item));
        put_together(walk, &reports);
        walk.keeper.look(&walk.state);
    }

    fn work<const L: usize>(
        &self,
        walk: &mut Walk<'_, L>,
        stretch: &Stretch<L>,
        number: usize,
    ) -> Report<L> {
        let part = Part { of_host: self.deal(stretch.seed), mine: number as u8 };
        walk.keep_to(part, self.size);
        walk.climate = stretch.climate;
        let before = walk.state.score();
        let moved = walk.stroll(|walked| {
            walked >= stretch.chunks * CHUNK || self.hurry && self.is_done.load(Ordering::Relaxed)
        });
        self.is_done.store(true, Ordering::Relaxed);
        Report { moved, change: walk.state.score() - before }
    }

    /// The part of each host: hosts of a domain stay together where rules between groups look at
    /// the domains, and there are enough of them.
    fn deal(&self, seed: u64) -> Vec<u8> {
        let mut rng = Rng::new(seed);
        let mut of_host = vec![0; self.problem.hosts()];
        let domains = self.domains();
        let count = domains.map_or(self.problem.hosts(), |(_, count)| count);
        let mut dealt: Vec<u8> = (0..count).map(|n| (n % self.size) as u8).collect();
        rng.shuffle(&mut dealt);
        for (host, part) in of_host.iter_mut().enumerate() {
            *part = match domains {
                Some((domain, _)) if domain[host] == NONE => rng.below(self.size) as u8,
                Some((domain, _)) => dealt[domain[host] as usize],
                None => dealt[host],
            };
        }
        of_host
    }

    /// The domains of hosts that stay together, and how many there are.
    fn domains(&self) -> Option<(&[u32], usize)> {
        let problem = self.problem;
        let between = |kind| matches!(kind, RuleKind::Requires(_) | RuleKind::Excludes(_));
        let rule = problem.rules.iter().find(|rule| between(rule.kind))?;
        let domains = &problem.partitions[rule.partition.ix()];
        let count =
            domains.iter().filter(|domain| **domain != NONE).max().map_or(0, |most| most + 1);
        (count as usize >= DOMAINS_MIN * self.size).then_some((domains, count as usize))
    }
}

/// With fewer domains for each thread, hosts are dealt out one by one.
const DOMAINS_MIN: usize = 4;

/// Adds what members did to what the leader did, as far as it fits together.
fn put_together<const L: usize>(walk: &mut Walk<'_, L>, reports: &[Report<L>]) {
    let expected = reports.iter().fold(walk.state.score(), |sum, report| sum + report.change);
    for report in reports {
        walk.follow(report.moved.iter().map(|moved| (moved.item, moved.to)));
    }
    if fits_together(walk, expected) {
        return;
    }
    for report in reports {
        walk.follow(report.moved.iter().map(|moved| (moved.item, moved.from)));
    }
    for report in reports {
        let expected = walk.state.score() + report.change;
        walk.follow(report.moved.iter().map(|moved| (moved.item, moved.to)));
        if !fits_together(walk, expected) {
            walk.follow(report.moved.iter().map(|moved| (moved.item, moved.from)));
        }
    }
}

/// Whether the sum is not worse than its parts said, or by no more than is accepted anyway.
fn fits_together<const L: usize>(walk: &Walk<'_, L>, expected: Score<L>) -> bool {
    let (level, amount) = (walk.state.score() - expected).leading();
    amount <= 0 || level.is_some_and(|level| amount as f64 <= walk.climate.temperature[level])
}
