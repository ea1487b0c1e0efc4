//! Where a VM that runs nowhere may start.

use ballast_model::{ClusterSnapshot, HostId, Refusal, RefusalCode, Resources, VmId};

use super::{REMEDY_OF_LOSSES, explain, missing};
use crate::door::losses::{first_to_start, strands};
use crate::door::obstacle::{Obstacle, lacking};
use crate::door::problem::{HostIx, Problem, VmIx};
use crate::door::reach::Coming;
use crate::door::state::State;
use crate::explain::core::Cores;
use crate::options::PlanOptions;

/// The host a new VM should start on.
///
/// Among the hosts with room that rules allow, the new VM is taken to use all
/// its CPU: one where fewer preferences are given up comes first, then one that
/// stays below `options.cpu_ceiling`, then the one that leaves the load most
/// level, then the first by name. A VM that the snapshot has already, wherever,
/// is taken out of it first, so that its needs and the rules that name it
/// count; a VM that it does not have is memory and CPU only.
///
/// # Errors
/// - `InvalidArgument`: the snapshot does not fit together, or an option is out of range
/// - `CapacityExceeded`: it is larger than any host, or no host has room now; the reason says which, with sizes
/// - `RuleViolation`, `Incompatible`: hosts with room exist, but rules forbid them or they lack what it needs
/// - `Unavailable`: no host takes VMs at all
pub fn place(
    snapshot: &ClusterSnapshot,
    vm: &VmId,
    size: Resources,
    options: &PlanOptions,
) -> Result<HostId, Refusal> {
    options.validate()?;
    let problem = Problem::new(snapshot)?;
    let (state, own) = without(&problem, vm);
    let mut fits: Vec<(i64, bool, f64, HostIx)> = Vec::new();
    let mut forbidden = None;
    let mut lacks_cpu = false;
    for host in problem.host_ixs() {
        let info = problem.host(host);
        if !info.counts() || state.memory_free(host) < size.memory {
            continue;
        }
        if own.is_none() && !state.admits_cpu(host, size.cpu.get()) {
            lacks_cpu = true;
            continue;
        }
        if let Some(obstacle) = own.and_then(|vm| state.obstacle_to_start(vm, host)) {
            forbidden.get_or_insert((obstacle, host));
            continue;
        }
        let cpu = state.cpu(host).saturating_add(size.cpu.get()) as f64 / info.cpu as f64;
        let missed = own.map_or(0, |vm| state.preferences_to_start(vm, host));
        fits.push((missed, cpu > options.cpu_ceiling.get(), state.rise(host, size), host));
    }
    fits.sort_by(|a, b| {
        a.0.cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.total_cmp(&b.2)).then(a.3.cmp(&b.3))
    });
    let failures = problem.snapshot.policy.failures_tolerated as usize;
    let first = fits.first().map(|(.., host)| *host);
    let offers = offering(&problem, own);
    let in_order = fits.into_iter().map(|(.., host)| host);
    let best = first_to_start(&state, size.memory.get(), &offers, in_order);
    match (best, forbidden, own) {
        (Some(host), ..) => Ok(problem.host(host).id.clone()),
        _ if first.is_some() => Err(Refusal::new(
            RefusalCode::CapacityExceeded,
            format!("with VM {vm} of {} {}", size.memory, strands(failures)),
            REMEDY_OF_LOSSES,
        )),
        (None, Some((obstacle, host)), Some(own)) => {
            let mut refusal = explain(&state, own, host, obstacle);
            refusal.reason =
                format!("{}, and so or otherwise with every host that has room", refusal.reason);
            refusal.remedy = remedy_anywhere(obstacle).to_owned();
            if let Some(core) = Cores::new(&problem).of(own) {
                refusal.reason = format!("{}; {}", refusal.reason, core.reason);
                refusal.remedy = core.remedy;
            }
            Err(refusal)
        }
        (None, ..) if lacks_cpu => Err(Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "VM {vm} has {} of CPU, and no host with {} of memory free admits so much more",
                size.cpu, size.memory
            ),
            "remove VMs, add a host, or let the policy overcommit more CPU",
        )),
        (None, ..) => Err(no_room(&state, vm, size)),
    }
}

/// What lets a VM start on any host, where this stands between it and one that has room.
fn remedy_anywhere(obstacle: Obstacle) -> &'static str {
    match obstacle {
        Obstacle::Lacks { .. } => "let a host with room offer it, or do without it",
        Obstacle::Cpu => "remove VMs, add a host, or let the policy overcommit more CPU",
        Obstacle::Disk { .. } => "make room for its disks on a host, or use shared storage",
        Obstacle::Numa => "make room in one NUMA node of a host, or let the VM span nodes",
        Obstacle::Intolerant => REMEDY_OF_LOSSES,
        Obstacle::Broken { .. } | Obstacle::Forbidden { .. } => {
            "change the rule, or make room on a host it allows"
        }
        Obstacle::Here | Obstacle::Closed | Obstacle::Unknown | Obstacle::Memory { .. } => {
            "remove or shrink a VM, uncordon a host, or add one"
        }
    }
}

/// By host, whether it offers what the VM needs; nothing is known of the needs of a VM that the snapshot does not have.
fn offering(problem: &Problem<'_>, vm: Option<VmIx>) -> Vec<bool> {
    let offers =
        |host: HostIx| vm.is_none_or(|vm| lacking(problem, vm, host, Coming::Starting).is_none());
    problem.host_ixs().map(offers).collect()
}

/// Whether a VM that the snapshot has, wherever, may start on `host`: memory, needs, every hard rule and the failures to
/// tolerate.
///
/// # Errors
/// As [`check_step`]; of rules also those that have to hold only when a plan has ended.
pub fn check_start(snapshot: &ClusterSnapshot, vm: &VmId, host: &HostId) -> Result<(), Refusal> {
    let problem = Problem::new(snapshot)?;
    let to = problem.find_host(host).ok_or_else(|| missing("host", host.as_str()))?;
    let (state, own) = without(&problem, vm);
    let own = own.ok_or_else(|| missing("VM", vm.as_str()))?;
    let intolerant = || {
        let offers = offering(&problem, Some(own));
        let kept = first_to_start(&state, problem.vm(own).memory, &offers, [to]);
        kept.is_none().then_some(Obstacle::Intolerant)
    };
    match state.obstacle_to_start(own, to).or_else(intolerant) {
        None => Ok(()),
        Some(obstacle) => Err(explain(&state, own, to, obstacle)),
    }
}

/// The state without this VM, and its number if the snapshot has it.
fn without<'p, 'a>(problem: &'p Problem<'a>, vm: &VmId) -> (State<'p, 'a>, Option<VmIx>) {
    let mut state = State::new(problem);
    let own = problem.find_vm(vm);
    if let Some(own) = own {
        state.lift(own);
    }
    (state, own)
}

/// Why a VM that [`State::lift`] has taken out can start nowhere.
pub(crate) fn no_place(state: &State<'_, '_>, vm: VmIx) -> Refusal {
    let info = state.problem.vm(vm);
    let forbidden = state.problem.host_ixs().find_map(|host| {
        let room = state.memory_free(host).get() >= info.memory;
        let obstacle = state.obstacle_to_start(vm, host)?;
        let closed = matches!(obstacle, Obstacle::Closed | Obstacle::Unknown);
        (room && !closed).then_some((host, obstacle))
    });
    match forbidden {
        Some((host, obstacle)) => explain(state, vm, host, obstacle),
        None => no_room(state, info.id, info.vm.size),
    }
}

fn no_room(state: &State<'_, '_>, vm: &VmId, size: Resources) -> Refusal {
    let problem = state.problem;
    let need = size.memory;
    let largest = problem.hosts.iter().max_by_key(|host| host.memory);
    let Some(largest) = largest else {
        return Refusal::new(
            RefusalCode::Unavailable,
            format!("there is no host for VM {vm}"),
            "start an agent on a host and let it register",
        );
    };
    if need.get() > largest.memory {
        return Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "VM {vm} is larger than any host: it asks for {need} of memory, the largest host, {}, offers {}",
                largest.id, largest.host.capacity.memory
            ),
            "ask for less memory, or add a larger host",
        );
    }
    let usable = problem.host_ixs().filter(|host| problem.host(*host).counts());
    let Some(freest) =
        usable.max_by_key(|host| (state.memory_free(*host), std::cmp::Reverse(*host)))
    else {
        return Refusal::new(
            RefusalCode::Unavailable,
            format!(
                "no host takes VM {vm} now: all {} are draining or their load is unknown",
                problem.hosts.len()
            ),
            "uncordon a host, or check that the agents run and report; see 'ballast host ls'",
        );
    };
    Refusal::new(
        RefusalCode::CapacityExceeded,
        format!(
            "no host has room for VM {vm} now: it asks for {need} of memory, the freest host, {}, has {} free of {}",
            problem.host(freest).id,
            state.memory_free(freest),
            problem.host(freest).host.capacity.memory
        ),
        "remove or shrink a VM, uncordon a host, or add one",
    )
}
