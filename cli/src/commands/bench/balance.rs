//! `ballast bench balance`: a made-up cluster is levelled, emptied in part, or
//! loses hosts, at any size.
//!
//! Levelling is set beside the loop that makes the best single move again and
//! again until it has the planner's level. The simulator replays the steps by
//! their names, and what they lead to is measured again from those.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ballast_model::{ClusterSnapshot, HostId, HostState, Refusal, RuleKind, Step, Telemetry, VmId};
use ballast_placement::simulate::{Act, Guest, Law, World};
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
    /// How long the planner expects it to take until the hosts are empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    emptied_seconds: Option<f64>,
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
    output::print(&format!("{}\n", output::json_line(&measured(args)?)?))
}

fn measured(args: &BalanceArgs) -> Result<Line, Refusal> {
    let mut snapshot = yardstick::cluster(args.hosts, args.vms, args.seed);
    let chosen = chosen(&snapshot, args.percent);
    let options = PlanOptions { steps_max: STEPS_MAX, ..PlanOptions::default() };
    let options = PlanOptions { drain: args.drain.into(), ..options };
    let options = options.aggressive(args.aggressiveness)?;
    let before = yardstick::deviations(&snapshot);
    let mut after = snapshot.clone();
    let mut emptied = None;
    let (name, seconds, steps, left) = match args.case {
        BalanceCase::Level => {
            let begin = Clock::start();
            let made = plan(&snapshot, &options)?.plan;
            ("balance", begin.stop(), made.steps.iter().map(Leg::of_step).collect(), 0)
        }
        BalanceCase::Drain => {
            for host in &chosen {
                if let Some(host) = snapshot.hosts.get_mut(host) {
                    host.state = HostState::Draining;
                }
            }
            let begin = Clock::start();
            let planning = plan(&snapshot, &PlanOptions { causes: Causes::FORCED, ..options })?;
            let seconds = begin.stop();
            emptied = planning.report.emptied;
            let made = planning.plan;
            let gone: BTreeSet<&VmId> = made.steps.iter().map(|step| &step.vm).collect();
            let stays = |vm: &VmId| !gone.contains(vm);
            let on = snapshot.vms.values().filter(|vm| chosen.contains(&vm.host));
            let left = on.filter(|vm| stays(&vm.id)).count();
            ("drain", seconds, made.steps.iter().map(Leg::of_step).collect(), left)
        }
        BalanceCase::Loss => {
            let begin = Clock::start();
            let found = ask::restart(&snapshot, &chosen, &options)?;
            let seconds = begin.stop();
            let start = |start: &ask::Start| Leg {
                vm: start.vm.clone(),
                from: None,
                to: start.to.clone(),
                after: Vec::new(),
            };
            let steps: Vec<Leg> = found.starts.iter().map(start).collect();
            ("loss", seconds, steps, found.stranded.len())
        }
    };
    let peak_rss_mib = peak_rss_mib();
    let lost = if args.case == BalanceCase::Loss { chosen.clone() } else { BTreeSet::new() };
    let (world, acts) = simulated(&snapshot, &lost, &steps);
    super::replay(&world, &acts, args.seed)?;
    for step in &steps {
        settle(&mut after, &step.vm, &step.to);
    }
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
    Ok(Line {
        bench: name,
        hosts: snapshot.hosts.len(),
        vms: snapshot.vms.len(),
        seed: args.seed,
        seconds: seconds.0,
        cpu_seconds: seconds.1,
        moves: steps.len(),
        left,
        emptied_seconds: emptied.map(|emptied| emptied.as_secs_f64()),
        stddev_cpu_before: before[0],
        stddev_cpu: deviations[0],
        stddev_memory_before: before[1],
        stddev_memory: deviations[1],
        greedy_moves: loops.filter(|run| run.reached).map(|run| run.moves),
        greedy_stuck: loops
            .filter(|run| !run.reached)
            .map(|run| (run.moves, run.deviations[0], run.deviations[1])),
        peak_rss_mib,
    })
}

fn settle(snapshot: &mut ClusterSnapshot, vm: &VmId, to: &HostId) {
    if let Some(vm) = snapshot.vms.get_mut(vm) {
        vm.host = to.clone();
    }
}

/// A step by its names; a start comes from nowhere.
struct Leg {
    vm: VmId,
    from: Option<HostId>,
    to: HostId,
    after: Vec<usize>,
}

impl Leg {
    fn of_step(step: &Step) -> Self {
        let Step { vm, from, to, after, .. } = step;
        Self { vm: vm.clone(), from: Some(from.clone()), to: to.clone(), after: after.clone() }
    }
}

/// The cluster for the simulator: memory is what a host has room for, VMs of lost hosts run nowhere, and anti-affinity
/// holds at every moment.
fn simulated(
    snapshot: &ClusterSnapshot,
    lost: &BTreeSet<HostId>,
    steps: &[Leg],
) -> (World, Vec<Act>) {
    let room: BTreeMap<&HostId, usize> = snapshot.hosts.keys().zip(0..).collect();
    let guest: BTreeMap<&VmId, usize> = snapshot.vms.keys().zip(0..).collect();
    let rooms = snapshot.hosts.values().map(|host| {
        let used = match &host.telemetry {
            Telemetry::Known { overhead } => overhead.memory,
            Telemetry::Unknown { .. } => host.capacity.memory,
        };
        vec![host.capacity.memory.saturating_sub(used).get()]
    });
    let guests = snapshot.vms.values().map(|vm| {
        let runs = !lost.contains(&vm.host);
        let rooms = room.get(&vm.host).filter(|_| runs).copied();
        Guest { rooms: rooms.into_iter().collect(), need: vec![vm.size.memory.get()] }
    });
    let own: Vec<usize> = (0..snapshot.hosts.len()).collect();
    let laws = snapshot.rules.values().filter_map(|rule| match &rule.kind {
        RuleKind::AntiAffinity { vms, per_host_max } => {
            let guests = vms.iter().filter_map(|vm| guest.get(vm).copied()).collect();
            Some(Law::Crowd { guests, scopes: own.clone(), most: *per_host_max as usize })
        }
        _ => None,
    });
    let act = |step: &Leg| Act {
        guest: guest[&step.vm],
        from: step.from.iter().map(|host| room[host]).collect(),
        to: vec![room[&step.to]],
        after: step.after.clone(),
    };
    let acts = steps.iter().map(act).collect();
    (World { rooms: rooms.collect(), guests: guests.collect(), laws: laws.collect() }, acts)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::DrainGoal;

    fn args(case: BalanceCase) -> BalanceArgs {
        BalanceArgs {
            hosts: 8,
            vms: 60,
            case,
            percent: 25,
            drain: DrainGoal::Balanced,
            aggressiveness: 5,
            seed: 1,
            greedy: false,
            no_greedy: false,
        }
    }

    #[test]
    fn each_case_is_planned_replayed_and_measured() {
        let level = measured(&args(BalanceCase::Level)).unwrap();
        assert!(level.stddev_cpu < level.stddev_cpu_before / 2.0, "{level:?}");
        assert!(level.moves > 0 && level.greedy_moves.is_some() != level.greedy_stuck.is_some());
        let drain = measured(&args(BalanceCase::Drain)).unwrap();
        assert!(drain.moves > 0 && drain.left == 0, "{drain:?}");
        let soon = BalanceArgs { drain: DrainGoal::Fastest, ..args(BalanceCase::Drain) };
        let soon = measured(&soon).unwrap();
        assert!(soon.left == 0 && soon.emptied_seconds <= drain.emptied_seconds, "{soon:?}");
        let loss = measured(&args(BalanceCase::Loss)).unwrap();
        assert!(loss.moves >= drain.moves && loss.left == 0, "{loss:?}");
    }

    #[test]
    fn the_simulator_refuses_what_breaks_memory_or_a_rule() {
        let snapshot = yardstick::cluster(4, 40, 1);
        let rule = snapshot.rules.values().next().unwrap();
        let mut members = rule.kind.vms().iter();
        let (one, other) = (members.next().unwrap(), members.next().unwrap());
        let leg = Leg {
            vm: one.clone(),
            from: Some(snapshot.vms[one].host.clone()),
            to: snapshot.vms[other].host.clone(),
            after: Vec::new(),
        };
        let (world, acts) = simulated(&snapshot, &BTreeSet::new(), &[leg]);
        assert!(super::super::replay(&world, &acts, 1).is_err());
    }
}
