//! Moves and starts, weighed by what the cluster tolerates before and after.

use super::super::problem::{HostIx, Problem, VmIx};
use super::super::state::State;
use super::{Inquiry, Newcomers, Occupancy};

/// What the worst loss comes to before anything is done.
#[derive(Debug, Clone, Copy)]
enum Standing {
    /// Every VM finds a place.
    Tolerant,
    /// Some find none, and so many bytes are missing in all.
    Short(u64),
}

impl Standing {
    fn of(inquiry: &Inquiry<'_, '_, '_>) -> Self {
        match inquiry.fatal(|_| true) {
            None => Self::Tolerant,
            Some(_) => Self::Short(inquiry.shortfall()),
        }
    }

    /// The hosts whose loss is worse than it was; none when it is not, nor any other.
    fn worse(self, inquiry: &Inquiry<'_, '_, '_>) -> Option<Vec<HostIx>> {
        match self {
            Self::Short(before) if inquiry.shortfall() <= before => None,
            _ => inquiry.fatal(|_| true),
        }
    }
}

/// Whether moves of one VM keep what the cluster tolerates, target by target.
pub(crate) struct Survey<'s, 'p, 'a> {
    state: &'s State<'p, 'a>,
    vm: VmIx,
    detail: Option<Detail>,
}

/// What is worked out when a count does not answer.
struct Detail {
    occupancy: Occupancy,
    before: Standing,
    /// The hosts that one target failed by; mostly the next one does too.
    fatal: Vec<HostIx>,
}

impl<'s, 'p, 'a> Survey<'s, 'p, 'a> {
    pub(crate) fn new(state: &'s State<'p, 'a>, vm: VmIx) -> Self {
        Self { state, vm, detail: None }
    }

    /// Whether the cluster tolerates what it did while the VM goes to `to`, and when it has gone there.
    pub(crate) fn keeps(&mut self, to: HostIx) -> bool {
        let (state, problem) = (self.state, self.state.problem);
        if problem.losses.failures == 0 || is_roomy(state, self.vm, to) {
            return true;
        }
        let detail = self.detail.get_or_insert_with(|| {
            let occupancy = Occupancy::new(state);
            let before = Standing::of(&inquiry(problem, &occupancy));
            Detail { occupancy, before, fatal: Vec::new() }
        });
        detail.occupancy.arrive(problem, self.vm, state.at(self.vm), to);
        let inquiry = inquiry(problem, &detail.occupancy);
        let is_tolerant = matches!(detail.before, Standing::Tolerant);
        let keeps = !(is_tolerant && inquiry.strands(&detail.fatal)) && {
            let worse = detail.before.worse(&inquiry);
            let keeps = worse.is_none();
            detail.fatal = worse.unwrap_or_default();
            keeps
        };
        detail.occupancy.depart(problem, self.vm, to);
        keeps
    }
}

fn inquiry<'q, 'p, 'a>(problem: &'p Problem<'a>, occupancy: &'q Occupancy) -> Inquiry<'q, 'p, 'a>
where
    'p: 'q,
{
    Inquiry { problem, losses: &problem.losses, occupancy, newcomers: None }
}

/// Whether so many hosts have room for the largest VM that each lost one finds a host of its own, with the VM on its way
/// to `to`. Costs one look at each host.
fn is_roomy(state: &State<'_, '_>, vm: VmIx, to: HostIx) -> bool {
    let (problem, losses) = (state.problem, &state.problem.losses);
    if !losses.all_plain {
        return false;
    }
    let (mut roomy, mut fullest) = (0, vec![0; losses.failures]);
    for host in problem.host_ixs() {
        let here = if host == to { problem.vm(vm).memory } else { 0 };
        let taken = state.memory_taken(host).saturating_add(here);
        let free = problem.host(host).memory.saturating_sub(taken);
        roomy += usize::from(problem.host(host).counts() && free >= losses.largest);
        let count = state.vms_on(host).len() + usize::from(host == to);
        if let Some(least) = fullest.last_mut().filter(|least| **least < count) {
            *least = count;
            fullest.sort_unstable_by(|a, b| b.cmp(a));
        }
    }
    let flights = problem.snapshot.migrations.len();
    fullest.iter().sum::<usize>() + flights + losses.failures <= roomy
}

/// The first of the hosts where a VM that is on none can start so that the cluster tolerates what it does now. `fits`
/// says of every host whether it offers what the VM needs.
pub(crate) fn first_to_start(
    state: &State<'_, '_>,
    memory: u64,
    fits: &[bool],
    hosts: impl IntoIterator<Item = HostIx>,
) -> Option<HostIx> {
    let problem = state.problem;
    let mut hosts = hosts.into_iter();
    if problem.losses.failures == 0 || memory == 0 {
        return hosts.next();
    }
    let occupancy = Occupancy::new(state);
    let now = inquiry(problem, &occupancy);
    let before = Standing::of(&now);
    let mut by_host = vec![0; problem.hosts.len()];
    hosts.find(|host| {
        by_host[host.0] = 1;
        let newcomers = Some(&Newcomers { memory, by_host: &by_host, fits });
        let keeps = before.worse(&Inquiry { newcomers, ..now }).is_none();
        by_host[host.0] = 0;
        keeps
    })
}

/// Whether the cluster tolerates in one state what it does in the other.
pub(crate) fn is_kept(start: &State<'_, '_>, reached: &State<'_, '_>) -> bool {
    let problem = start.problem;
    if problem.losses.failures == 0 {
        return true;
    }
    let before = Standing::of(&inquiry(problem, &Occupancy::new(start)));
    before.worse(&inquiry(problem, &Occupancy::new(reached))).is_none()
}

/// Steps that may run at the same time, weighed together.
pub(crate) struct Underway<'p, 'a> {
    problem: &'p Problem<'a>,
    /// With every step noted on its way.
    occupancy: Occupancy,
    /// Before the first step.
    before: Standing,
}

impl<'p, 'a> Underway<'p, 'a> {
    /// `None` when nothing may be lost: then nothing has to be noted.
    pub(crate) fn new(start: &State<'p, 'a>) -> Option<Self> {
        let problem = start.problem;
        (problem.losses.failures > 0).then(|| {
            let occupancy = Occupancy::new(start);
            let before = Standing::of(&inquiry(problem, &occupancy));
            Self { problem, occupancy, before }
        })
    }

    /// A further step may be under way.
    pub(crate) fn note(&mut self, vm: VmIx, from: HostIx, to: HostIx) {
        self.occupancy.arrive(self.problem, vm, from, to);
    }

    /// Whether the cluster tolerates what it did before the first step while all steps noted are under way but those that
    /// have `ended`, each a VM and the host it has left.
    pub(crate) fn keeps(&self, ended: impl IntoIterator<Item = (VmIx, HostIx)>) -> bool {
        let mut occupancy = self.occupancy.clone();
        ended.into_iter().for_each(|(vm, from)| occupancy.depart(self.problem, vm, from));
        self.before.worse(&inquiry(self.problem, &occupancy)).is_none()
    }
}
