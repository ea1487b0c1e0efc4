//! How long an order takes, and which steps run together.
//!
//! The links are modelled as a fluid: a host's outgoing and incoming rate is
//! shared evenly by the moves under way, a move goes at the slower of its two
//! shares, and sends what pre-copy sends at that rate. A move's progress is a
//! fraction of its whole, so that a change of rate carries over. Steps start as
//! soon as what they wait for has ended and both hosts have a slot; of those
//! ready, the one with the longest chain behind it first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use ballast_model::host::LINK_ASSUMED;

use super::{Ground, Order};
use crate::cost::bytes_sent;

/// What one host can do at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLimits {
    /// Bytes a second, each way; zero counts as [`LINK_ASSUMED`].
    pub link: u64,
    /// Arrivals at a time, at least one.
    pub incoming_max: u32,
    /// Departures at a time, at least one.
    pub outgoing_max: u32,
}

impl Default for HostLimits {
    fn default() -> Self {
        Self { link: LINK_ASSUMED.get(), incoming_max: 2, outgoing_max: 2 }
    }
}

/// When each step of an order is expected to run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Timing {
    /// Per step, the number of its stage: the steps of a stage can run together once the stages before have ended.
    pub stages: Vec<u32>,
    /// Per step, when it starts, without waiting for whole stages.
    pub starts: Vec<Duration>,
    /// Per step, how long it takes beside the others.
    pub durations: Vec<Duration>,
    /// From the first start to the last end.
    pub makespan: Duration,
}

impl Timing {
    /// What to expect of `order` on hosts with these limits; a VM that is started takes `boot`.
    pub fn estimate<G: Ground>(
        ground: &G,
        order: &Order,
        limits: &dyn Fn(u32) -> HostLimits,
        boot: Duration,
    ) -> Self {
        let jobs = jobs(ground, order, boot);
        let stages = stages(order, &jobs, limits);
        Clock::new(order, jobs, limits).run(stages)
    }

    /// The number of stages.
    pub fn stage_count(&self) -> usize {
        self.stages.iter().max().map_or(0, |last| *last as usize + 1)
    }
}

/// A step as work on two hosts.
struct Job {
    from: Option<u32>,
    to: u32,
    /// Bytes that are sent once, before memory.
    disks: f64,
    memory: f64,
    dirty: f64,
    /// Seconds of a start; a move has none of its own.
    fixed: f64,
}

fn jobs<G: Ground>(ground: &G, order: &Order, boot: Duration) -> Vec<Job> {
    let job = |step: &super::Step| Job {
        from: step.from.map(|place| ground.host(place)),
        to: ground.host(step.to),
        disks: ground.disk_bytes(step.vm) as f64,
        memory: ground.bytes(step.vm) as f64,
        dirty: ground.dirty_rate(step.vm) as f64,
        fixed: boot.as_secs_f64(),
    };
    order.steps.iter().map(job).collect()
}

/// The earliest stage for each step that comes after what it waits for and in which both hosts have a slot.
fn stages(order: &Order, jobs: &[Job], limits: &dyn Fn(u32) -> HostLimits) -> Vec<u32> {
    let mut stages: Vec<u32> = Vec::with_capacity(jobs.len());
    let mut busy: BTreeMap<(u32, bool), Vec<u32>> = BTreeMap::new();
    for (step, job) in order.steps.iter().zip(jobs) {
        let first = step.after.iter().map(|before| stages[*before as usize] + 1).max().unwrap_or(0);
        let arriving = ((job.to, true), limits(job.to).incoming_max.max(1));
        let leaving = job.from.map(|host| ((host, false), limits(host).outgoing_max.max(1)));
        let slots: Vec<_> = [Some(arriving), leaving].into_iter().flatten().collect();
        let full = |stage: u32, busy: &BTreeMap<(u32, bool), Vec<u32>>| {
            slots.iter().any(|(side, most)| {
                busy.get(side).and_then(|side| side.get(stage as usize)).is_some_and(|n| n >= most)
            })
        };
        let mut stage = first;
        while full(stage, &busy) {
            stage += 1;
        }
        for (side, _) in slots {
            let side = busy.entry(side).or_default();
            if side.len() <= stage as usize {
                side.resize(stage as usize + 1, 0);
            }
            side[stage as usize] += 1;
        }
        stages.push(stage);
    }
    stages
}

/// One side of a host: arrivals or departures.
struct Side {
    link: f64,
    most: usize,
    running: Vec<usize>,
    waiting: BinaryHeap<(u64, Reverse<usize>)>,
}

struct Running {
    started: f64,
    /// The part done at `since`, between zero and one.
    done: f64,
    since: f64,
    /// Parts a second.
    speed: f64,
    version: u32,
}

struct Clock<'a> {
    jobs: Vec<Job>,
    sides: Vec<Side>,
    /// Per job, its arrival side and its departure side.
    sides_of: Vec<(usize, Option<usize>)>,
    followers: Vec<Vec<usize>>,
    missing: Vec<usize>,
    /// Milliseconds of the longest chain that begins with the step.
    tail: Vec<u64>,
    running: Vec<Option<Running>>,
    ends: BinaryHeap<Reverse<(u64, usize, u32)>>,
    order: &'a Order,
    now: f64,
}

impl<'a> Clock<'a> {
    fn new(order: &'a Order, jobs: Vec<Job>, limits: &dyn Fn(u32) -> HostLimits) -> Self {
        let mut numbers: BTreeMap<(u32, bool), usize> = BTreeMap::new();
        let mut sides = Vec::new();
        let mut side = |host: u32, arriving: bool| {
            *numbers.entry((host, arriving)).or_insert_with(|| {
                let limit = limits(host);
                let link = if limit.link == 0 { LINK_ASSUMED.get() } else { limit.link };
                let most = if arriving { limit.incoming_max } else { limit.outgoing_max };
                sides.push(Side {
                    link: link as f64,
                    most: most.max(1) as usize,
                    running: Vec::new(),
                    waiting: BinaryHeap::new(),
                });
                sides.len() - 1
            })
        };
        let sides_of: Vec<_> = jobs
            .iter()
            .map(|job| (side(job.to, true), job.from.map(|host| side(host, false))))
            .collect();
        let mut followers = vec![Vec::new(); jobs.len()];
        for (n, step) in order.steps.iter().enumerate() {
            step.after.iter().for_each(|before| followers[*before as usize].push(n));
        }
        let mut clock = Self {
            running: jobs.iter().map(|_| None).collect(),
            missing: order.steps.iter().map(|step| step.after.len()).collect(),
            tail: vec![0; jobs.len()],
            ends: BinaryHeap::new(),
            now: 0.0,
            jobs,
            sides,
            sides_of,
            followers,
            order,
        };
        for n in (0..clock.jobs.len()).rev() {
            let behind = clock.followers[n].iter().map(|f| clock.tail[*f]).max().unwrap_or(0);
            let (to, from) = clock.sides_of[n];
            let link = from.map_or(f64::INFINITY, |side| clock.sides[side].link);
            let alone = clock.jobs[n].seconds(link.min(clock.sides[to].link));
            clock.tail[n] = behind.saturating_add(micros(alone));
        }
        clock
    }

    fn run(mut self, stages: Vec<u32>) -> Timing {
        let n = self.jobs.len();
        let mut timing = Timing {
            stages,
            starts: vec![Duration::ZERO; n],
            durations: vec![Duration::ZERO; n],
            makespan: Duration::ZERO,
        };
        for step in 0..n {
            if self.missing[step] == 0 {
                self.offer(step);
            }
        }
        while let Some(Reverse((_, step, version))) = self.ends.pop() {
            let Some(job) = &self.running[step] else { continue };
            if job.version != version {
                continue;
            }
            self.now = job.since + (1.0 - job.done) / job.speed;
            timing.starts[step] = whole_millis(job.started);
            timing.durations[step] = whole_millis(self.now - job.started);
            self.end(step);
        }
        timing.makespan = whole_millis(self.now);
        timing
    }

    /// Starts a step that waits for nothing, or lets it wait for a slot.
    fn offer(&mut self, step: usize) {
        let (to, from) = self.sides_of[step];
        let full = [Some(to), from]
            .into_iter()
            .flatten()
            .find(|side| self.sides[*side].running.len() >= self.sides[*side].most);
        if let Some(side) = full {
            self.sides[side].waiting.push((self.tail[step], Reverse(step)));
            return;
        }
        self.running[step] =
            Some(Running { started: self.now, done: 0.0, since: self.now, speed: 0.0, version: 0 });
        for side in [Some(to), from].into_iter().flatten() {
            self.sides[side].running.push(step);
        }
        self.share(step);
    }

    fn end(&mut self, step: usize) {
        self.running[step] = None;
        let (to, from) = self.sides_of[step];
        let sides: Vec<usize> = [Some(to), from].into_iter().flatten().collect();
        for side in &sides {
            self.sides[*side].running.retain(|other| *other != step);
        }
        self.share(step);
        for follower in std::mem::take(&mut self.followers[step]) {
            self.missing[follower] -= 1;
            if self.missing[follower] == 0 {
                self.offer(follower);
            }
        }
        for side in sides {
            while self.sides[side].running.len() < self.sides[side].most {
                let Some((_, Reverse(next))) = self.sides[side].waiting.pop() else { break };
                self.offer(next);
            }
        }
    }

    /// Shares the links of the step's hosts anew among those that run.
    fn share(&mut self, step: usize) {
        let (to, from) = self.sides_of[step];
        let beside: Vec<usize> = [Some(to), from]
            .into_iter()
            .flatten()
            .flat_map(|side| self.sides[side].running.iter().copied())
            .collect();
        for other in beside {
            let (to, from) = self.sides_of[other];
            let part = |side: &Side| side.link / side.running.len().max(1) as f64;
            let rate = part(&self.sides[to])
                .min(from.map_or(f64::INFINITY, |side| part(&self.sides[side])));
            let seconds = self.jobs[other].seconds(rate).max(1e-6);
            let now = self.now;
            let Some(job) = &mut self.running[other] else { continue };
            job.done = (job.done + (now - job.since) * job.speed).min(1.0);
            (job.since, job.speed, job.version) = (now, 1.0 / seconds, job.version + 1);
            let end = now + (1.0 - job.done) * seconds;
            self.ends.push(Reverse((micros(end), other, job.version)));
        }
        debug_assert_eq!(self.order.steps.len(), self.jobs.len());
    }
}

impl Job {
    fn seconds(&self, rate: f64) -> f64 {
        match self.from {
            Some(_) => (self.disks + bytes_sent(self.memory, self.dirty, rate)) / rate,
            None => self.fixed,
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates; times are not negative
fn micros(seconds: f64) -> u64 {
    (seconds * 1e6).round() as u64
}

/// More digits would be invented.
fn whole_millis(seconds: f64) -> Duration {
    Duration::from_millis(micros(seconds) / 1_000)
}
