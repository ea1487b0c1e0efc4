//! A day of recorded load replayed under the balancer, without a cluster.
//!
//! ```text
//!  traces ──▶ forecast ──▶ snapshot ──▶ plan ──▶ VMs move ──▶ what the hosts carry
//!  (what      of each      of what is   as in               until the next plan
//!  was)       VM's next    known now    life
//!             interval
//! ```
//!
//! The planner sees only what is known at that moment; what its plan is judged by
//! is what the VMs really asked for afterwards. Three runs of the same day stand
//! side by side: nothing moved, planned on the last sample, planned on a
//! [`forecast`]. Pure and deterministic: traces, options and seed make the report.

pub mod forecast;
pub mod trace;

use ballast_model::snapshot::{Mobility, PlacedVm};
use ballast_model::{
    Bytes, BytesPerSec, ClusterSnapshot, Host, HostId, Millicores, Refusal, RefusalCode, Resources,
    Revision, Telemetry, Timestamp, VmId,
};

use crate::core::Rng;
use crate::options::{Causes, PlanOptions};
use forecast::Forecast;
use trace::Trace;

/// Minutes between two samples.
pub const SAMPLE_MINUTES: u64 = 5;
/// Cores and memory of a host.
const HOST_CORES: u64 = 16;
const HOST_GIB: u64 = 256;
/// Cores of a VM: a sample of 100 % is so much.
const VM_CORES: u64 = 2;
/// Memory of VMs in GiB; one is drawn.
const VM_GIB: [u64; 4] = [1, 2, 4, 8];
/// A host that has to carry more than this share of its CPU is overloaded: guests feel it.
const OVERLOAD: f64 = 0.9;

/// How a day is replayed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// VMs for each host, on average.
    pub vms_per_host: usize,
    /// Samples between two plans.
    pub every: usize,
    /// Samples a VM rests after a move.
    pub rest: usize,
    /// How each plan is made.
    pub plan: PlanOptions,
    /// Where the random numbers of the cluster begin.
    pub seed: u64,
}

impl Default for Options {
    /// A plan every quarter of an hour, at most 20 moves each, an hour's rest.
    fn default() -> Self {
        let plan = PlanOptions { steps_max: 20, causes: Causes::ALL, ..PlanOptions::default() };
        Self { vms_per_host: 40, every: 3, rest: 12, plan, seed: 1 }
    }
}

/// What one run of the day came to.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Run {
    /// Minutes in which a host had to carry more than 90 % of its CPU, over all hosts.
    pub overload_minutes: u64,
    /// What was asked for beyond that, in core minutes.
    pub overload_core_minutes: f64,
    /// Moves.
    pub moves: usize,
    /// Bytes they sent.
    pub bytes: u64,
    /// Mean standard deviation of the hosts' CPU.
    pub deviation: f64,
}

/// The same day three times.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Report {
    /// Hosts of the cluster.
    pub hosts: usize,
    /// VMs of the cluster: one a trace.
    pub vms: usize,
    /// Intervals judged: what follows the first plan.
    pub samples: usize,
    /// Nothing is moved.
    pub still: Run,
    /// Planned on the last sample.
    pub last_sample: Run,
    /// Planned on the forecast.
    pub forecast: Run,
}

/// Replays the traces without a balancer, with one that takes the last sample for the future, and with one that
/// forecasts.
///
/// # Errors
/// `InvalidArgument` for no or uneven traces and options out of range; what [`crate::plan`] refuses.
pub fn replay(traces: &[Trace], options: &Options) -> Result<Report, Refusal> {
    let samples = traces.first().map_or(0, |trace| trace.samples.len());
    if samples < 2 || traces.iter().any(|trace| trace.samples.len() != samples) {
        return Err(invalid("the traces have fewer than two samples, or not all as many"));
    }
    if options.vms_per_host == 0 || options.every == 0 {
        return Err(invalid("the VMs of a host or the samples between two plans are zero"));
    }
    let hosts = traces.len().div_ceil(options.vms_per_host).max(2);
    let cluster = cluster(traces, hosts, options.seed)?;
    let run = |forecasts| Day::new(traces, cluster.clone(), forecasts, options).run();
    let planned = |forecast| run(Some(vec![forecast; traces.len()]));
    // The two are independent and take the same time.
    let (last_sample, forecast) = std::thread::scope(|scope| {
        let other = scope.spawn(|| planned(Forecast::last_sample()));
        let forecast = planned(Forecast::robust());
        (other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), forecast)
    });
    Ok(Report {
        hosts,
        vms: traces.len(),
        samples: samples - 1,
        still: run(None)?,
        last_sample: last_sample?,
        forecast: forecast?,
    })
}

fn invalid(reason: &str) -> Refusal {
    Refusal::new(RefusalCode::InvalidArgument, reason, "see docs/benchmarks.md for an example")
}

/// One VM a trace, put on hosts in turn where memory lets it.
fn cluster(traces: &[Trace], hosts: usize, seed: u64) -> Result<ClusterSnapshot, Refusal> {
    let mut random = Rng::new(seed);
    let mut snapshot = ClusterSnapshot::empty(Revision(1), Timestamp(0));
    let bad_id = |_| invalid("a trace has a name that no VM can have");
    let mut names: Vec<HostId> = Vec::with_capacity(hosts);
    for n in 0..hosts {
        let id: HostId = format!("host-{n:04}").parse().map_err(bad_id)?;
        let size = Resources::new(Millicores::cores(HOST_CORES), Bytes::gib(HOST_GIB));
        let host = Host {
            telemetry: Telemetry::Known { overhead: Resources::new(Millicores(0), Bytes(0)) },
            link: BytesPerSec(1_250_000_000),
            ..Host::new(id.clone(), size)
        };
        snapshot.hosts.insert(id.clone(), host);
        names.push(id);
    }
    let mut free = vec![HOST_GIB; hosts];
    for trace in traces {
        let gib = VM_GIB[random.below(VM_GIB.len())];
        let first = random.below(hosts);
        let at = (first..hosts).chain(0..first).find(|at| free[*at] >= gib);
        let at = at.ok_or_else(|| invalid("the VMs do not fit on so few hosts"))?;
        free[at] -= gib;
        let id: VmId = trace.name.parse().map_err(bad_id)?;
        let size = Resources::new(Millicores::cores(VM_CORES), Bytes::gib(gib));
        snapshot.vms.insert(id.clone(), PlacedVm::new(id, names[at].clone(), size));
    }
    if snapshot.vms.len() != traces.len() {
        return Err(invalid("two traces have the same name"));
    }
    Ok(snapshot)
}

/// Millicores of a sample.
fn asked(percent: u8) -> u64 {
    u64::from(percent) * VM_CORES * 10
}

struct Day<'t> {
    traces: &'t [Trace],
    /// By VM in order of names, its trace.
    order: Vec<usize>,
    snapshot: ClusterSnapshot,
    forecasts: Option<Vec<Forecast>>,
    /// By trace, the sample from which its VM may move again.
    rested: Vec<usize>,
    options: &'t Options,
    run: Run,
}

impl<'t> Day<'t> {
    fn new(
        traces: &'t [Trace],
        snapshot: ClusterSnapshot,
        forecasts: Option<Vec<Forecast>>,
        options: &'t Options,
    ) -> Self {
        let nothing = Run {
            overload_minutes: 0,
            overload_core_minutes: 0.0,
            moves: 0,
            bytes: 0,
            deviation: 0.0,
        };
        let rested = vec![0; traces.len()];
        let mut order: Vec<usize> = (0..traces.len()).collect();
        order.sort_by_key(|n| &traces[*n].name);
        Self { traces, order, snapshot, forecasts, rested, options, run: nothing }
    }

    fn run(mut self) -> Result<Run, Refusal> {
        let samples = self.traces.first().map_or(0, |trace| trace.samples.len());
        for now in 0..samples - 1 {
            for (forecast, trace) in self.forecasts.iter_mut().flatten().zip(self.traces) {
                forecast.see(trace.samples[now]);
            }
            if self.forecasts.is_some() && now % self.options.every == 0 {
                self.balance(now)?;
            }
            self.judge(now + 1);
        }
        self.run.deviation /= (samples - 1).max(1) as f64;
        Ok(self.run)
    }

    /// Plans on what is expected, and moves.
    fn balance(&mut self, now: usize) -> Result<(), Refusal> {
        let Some(forecasts) = &self.forecasts else { return Ok(()) };
        for (vm, trace) in self.snapshot.vms.values_mut().zip(&self.order) {
            let (forecast, rested) = (&forecasts[*trace], &self.rested[*trace]);
            vm.demand = Resources::new(Millicores(asked(forecast.next())), vm.size.memory);
            vm.mobility = match *rested > now {
                true => Mobility::Fixed {
                    reason: "it moved a moment ago".to_owned(),
                    remedy: "wait".to_owned(),
                },
                false => Mobility::Movable,
            };
        }
        let plan = crate::plan(&self.snapshot, &self.options.plan)?.plan;
        for step in &plan.steps {
            self.snapshot.relocate(&step.vm, &step.to);
            let found = self.order.iter().find(|n| self.traces[**n].name == step.vm.as_str());
            if let Some(trace) = found {
                self.rested[*trace] = now + self.options.rest;
            }
            self.run.moves += 1;
            self.run.bytes = self.run.bytes.saturating_add(step.cost.bytes.get());
        }
        Ok(())
    }

    /// What the hosts really have to carry.
    fn judge(&mut self, now: usize) {
        let mut load: std::collections::BTreeMap<&HostId, u64> =
            self.snapshot.hosts.keys().map(|host| (host, 0)).collect();
        for (vm, trace) in self.snapshot.vms.values().zip(&self.order) {
            if let Some(load) = load.get_mut(&vm.host) {
                *load += asked(self.traces[*trace].samples[now]);
            }
        }
        let capacity = Millicores::cores(HOST_CORES).get() as f64;
        let shares: Vec<f64> = load.values().map(|load| *load as f64 / capacity).collect();
        for over in shares.iter().map(|share| share - OVERLOAD).filter(|over| *over > 0.0) {
            self.run.overload_minutes += SAMPLE_MINUTES;
            self.run.overload_core_minutes += over * HOST_CORES as f64 * SAMPLE_MINUTES as f64;
        }
        let hosts = shares.len().max(1) as f64;
        let mean = shares.iter().sum::<f64>() / hosts;
        let squares: f64 = shares.iter().map(|share| (share - mean).powi(2)).sum();
        self.run.deviation += (squares / hosts).sqrt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXCERPT: &str = include_str!("../../tests/data/planetlab-excerpt.csv");

    fn options() -> Options {
        Options { vms_per_host: 14, ..Options::default() }
    }

    #[test]
    fn a_recorded_morning_has_less_overload_when_it_is_balanced() {
        let traces = trace::parse(EXCERPT).unwrap();
        let report = replay(&traces, &options()).unwrap();
        assert_eq!((report.vms, report.samples), (64, 47));
        assert_eq!((report.still.moves, report.still.bytes), (0, 0));
        assert!(report.still.overload_minutes > 0, "{report:?}");
        for run in [report.last_sample, report.forecast] {
            assert!(run.moves > 0);
            assert!(run.overload_core_minutes < report.still.overload_core_minutes, "{report:?}");
            assert!(run.deviation < report.still.deviation, "{report:?}");
        }
        assert!(report.forecast.moves <= report.last_sample.moves, "{report:?}");
        assert_eq!(replay(&traces, &options()).unwrap(), report);
    }

    #[test]
    fn what_cannot_be_replayed_is_refused() {
        let traces = trace::parse("a,1,2\nb,3,4\n").unwrap();
        assert!(replay(&[], &options()).is_err());
        let uneven = trace::parse("a,1,2\nb,3,4,5\n").unwrap();
        assert!(replay(&uneven, &options()).is_err());
        assert!(replay(&traces, &Options { every: 0, ..options() }).is_err());
        let twice = [traces[0].clone(), traces[0].clone()];
        assert!(replay(&twice, &options()).unwrap_err().reason.contains("same name"));
    }
}
