//! `ballast bench balance`: a made-up cluster is levelled, emptied in part, or
//! loses hosts, at any size.
//!
//! Levelling is set beside the loop that makes the best single move again and
//! again until it has the planner's level. The planner checks its plan on the way
//! out; here what it leads to is measured again from the names in the plan.

use std::collections::BTreeSet;
use std::time::Instant;

use ballast_model::{ClusterSnapshot, HostId, HostState, Refusal};
use ballast_placement::{Causes, PlanOptions, STEPS_MAX, ask, plan, yardstick};
use serde::Serialize;

use crate::args::{BalanceArgs, BalanceCase};
use crate::output;

/// Hosts up to which the comparison is made unasked.
const GREEDY_HOSTS_MAX: usize = 2_000;

#[derive(Debug, Serialize)]
struct Line {
    bench: &'static str,
    hosts: usize,
    vms: usize,
    seed: u64,
    seconds: f64,
    /// On a processor; the planner has one thread.
    cpu_seconds: Option<f64>,
    moves: usize,
    /// VMs that ought to have gone and could not.
    left: usize,
    stddev_cpu_before: f64,
    stddev_cpu: f64,
    stddev_memory_before: f64,
    stddev_memory: f64,
    /// Moves of the loop until its level is the planner's; none when it was not asked, or never got there.
    #[serde(skip_serializing_if = "Option::is_none")]
    greedy_moves: Option<usize>,
    /// Where the loop stuck, when it never got there: moves, deviation of CPU and of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    greedy_stuck: Option<(usize, f64, f64)>,
    /// The most memory the process had until the planner was done.
    peak_rss_mib: Option<u64>,
}

pub(super) fn run(args: &BalanceArgs) -> Result<(), Refusal> {
    let mut snapshot = yardstick::cluster(args.hosts, args.vms, args.seed);
    let chosen = chosen(&snapshot, args.percent);
    let options = PlanOptions { steps_max: STEPS_MAX, ..PlanOptions::default() };
    let options = options.aggressive(args.aggressiveness)?;
    let before = yardstick::deviations(&snapshot);
    let mut after = snapshot.clone();
    let (name, seconds, moves, left) = match args.case {
        BalanceCase::Level => {
            let begin = Clock::start();
            let made = plan(&snapshot, &options)?.plan;
            let seconds = begin.stop();
            for step in &made.steps {
                settle(&mut after, &step.vm, &step.to);
            }
            ("balance", seconds, made.steps.len(), 0)
        }
        BalanceCase::Drain => {
            for host in &chosen {
                if let Some(host) = snapshot.hosts.get_mut(host) {
                    host.state = HostState::Draining;
                }
            }
            let begin = Clock::start();
            let made = plan(&snapshot, &PlanOptions { causes: Causes::FORCED, ..options })?.plan;
            let seconds = begin.stop();
            for step in &made.steps {
                settle(&mut after, &step.vm, &step.to);
            }
            let left = after.vms.values().filter(|vm| chosen.contains(&vm.host)).count();
            ("drain", seconds, made.steps.len(), left)
        }
        BalanceCase::Loss => {
            let begin = Clock::start();
            let found = ask::restart(&snapshot, &chosen, &options)?;
            let seconds = begin.stop();
            for start in &found.starts {
                settle(&mut after, &start.vm, &start.to);
            }
            ("loss", seconds, found.starts.len(), found.stranded.len())
        }
    };
    let peak_rss_mib = peak_rss_mib();
    if args.case != BalanceCase::Level {
        after.hosts.retain(|id, _| !chosen.contains(id));
        after.vms.retain(|_, vm| !chosen.contains(&vm.host));
    }
    let deviations = yardstick::deviations(&after);
    let compared = args.greedy || !args.no_greedy && args.hosts <= GREEDY_HOSTS_MAX;
    let loops = (args.case == BalanceCase::Level && compared).then(|| {
        let level = ballast_placement::imbalance(&after).get();
        yardstick::greedy(&snapshot, level, options.cpu_ceiling.get())
    });
    let line = Line {
        bench: name,
        hosts: snapshot.hosts.len(),
        vms: snapshot.vms.len(),
        seed: args.seed,
        seconds: seconds.0,
        cpu_seconds: seconds.1,
        moves,
        left,
        stddev_cpu_before: before[0],
        stddev_cpu: deviations[0],
        stddev_memory_before: before[1],
        stddev_memory: deviations[1],
        greedy_moves: loops.filter(|run| run.reached).map(|run| run.moves),
        greedy_stuck: loops
            .filter(|run| !run.reached)
            .map(|run| (run.moves, run.deviations[0], run.deviations[1])),
        peak_rss_mib,
    };
    output::print(&format!("{}\n", output::json_line(&line)?))
}

fn settle(snapshot: &mut ClusterSnapshot, vm: &ballast_model::VmId, to: &HostId) {
    if let Some(vm) = snapshot.vms.get_mut(vm) {
        vm.host = to.clone();
    }
}

/// So many percent of the hosts, evenly over their names.
fn chosen(snapshot: &ClusterSnapshot, percent: u8) -> BTreeSet<HostId> {
    let count = snapshot.hosts.len() * usize::from(percent) / 100;
    let every = snapshot.hosts.len().checked_div(count).unwrap_or(1).max(1);
    snapshot.hosts.keys().step_by(every).take(count).cloned().collect()
}

/// Wall and processor time.
struct Clock {
    begin: Instant,
    on_cpu: Option<f64>,
}

impl Clock {
    fn start() -> Self {
        Self { begin: Instant::now(), on_cpu: on_cpu() }
    }

    fn stop(&self) -> (f64, Option<f64>) {
        let rounded = |seconds: f64| (seconds * 1e4).round() / 1e4;
        let spent = on_cpu().zip(self.on_cpu).map(|(now, then)| rounded(now - then));
        (rounded(self.begin.elapsed().as_secs_f64()), spent)
    }
}

/// Seconds this thread was on a processor, where the kernel says.
fn on_cpu() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanos: u64 = text.split_whitespace().next()?.parse().ok()?;
    Some(nanos as f64 / 1e9)
}

/// As the kernel counts it; nothing where it does not say.
fn peak_rss_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}
