//! Whether one VM may go to one host: the same answer for every workflow.
//!
//! An operator's `migrate`, a drain and a balance step all ask [`check_step`],
//! right before the step starts and of the state as it is then. What depends on
//! the workflow (automation level, CPU ceiling, least gain) is not asked here.

use ballast_model::snapshot::Mobility;
use ballast_model::{
    Bytes, ClusterSnapshot, HostId, Millicores, Refusal, RefusalCode, Resources, Telemetry, VmId,
};

use crate::door::losses::first_to_start;
use crate::door::obstacle::{Obstacle, lacking};
use crate::door::problem::{HostIx, Problem, RuleIx, VmIx};
use crate::door::rules::RuleBody;
use crate::door::state::{Cause, State};
use crate::explain::core::Cores;
use crate::options::PlanOptions;
use crate::solve;
use crate::verdict::why_no_target;

/// What helps where the failures to tolerate forbid something.
pub(crate) const REMEDY_OF_LOSSES: &str = "add a host, remove VMs, or lower policy.failures_tolerated; 'ballast capacity spare' says what fits";

/// Whether `vm` may be migrated to `to` now.
///
/// CPU is not a reason to refuse: too little of it slows guests, it does not
/// stop them, and a drain may need it.
///
/// # Errors
/// - `InvalidArgument`: the snapshot does not fit together
/// - `NotFound`: no such VM or host
/// - `WrongState`: it is there already, it migrates already, it cannot move now, or the target is draining
/// - `Unavailable`: the load of the source or the target is unknown
/// - `CapacityExceeded`: the target has not enough memory free
/// - `RuleViolation`: a hard rule forbids it
pub fn check_step(snapshot: &ClusterSnapshot, vm: &VmId, to: &HostId) -> Result<(), Refusal> {
    let problem = Problem::new(snapshot)?;
    let vm = problem.find_vm(vm).ok_or_else(|| missing("VM", vm.as_str()))?;
    let to = problem.find_host(to).ok_or_else(|| missing("host", to.as_str()))?;
    if let Some(refusal) = why_it_cannot_leave(&problem, vm) {
        return Err(refusal);
    }
    let state = State::new(&problem);
    match state.obstacle(vm, to) {
        None => Ok(()),
        Some(obstacle) => Err(explain(&state, vm, to, obstacle)),
    }
}

/// Whether an operator may send `vm` to `to`: as [`check_step`], and no hard rule may be further from holding afterwards,
/// those included that have to hold only when a plan has ended.
///
/// # Errors
/// Those of [`check_step`].
pub fn check_move(snapshot: &ClusterSnapshot, vm: &VmId, to: &HostId) -> Result<(), Refusal> {
    check_step(snapshot, vm, to)?;
    let problem = Problem::new(snapshot)?;
    let (Some(vm), Some(to)) = (problem.find_vm(vm), problem.find_host(to)) else { return Ok(()) };
    let state = State::new(&problem);
    match state.discrete_broken(vm, to) {
        None => Ok(()),
        Some(rule) => Err(explain(&state, vm, to, Obstacle::Broken { rule })),
    }
}

/// The host to migrate `vm` to when somebody asks for a migration and names no destination.
///
/// The choice is that of a drain: hosts that meet the VM's preferences first, then those that stay below
/// `options.cpu_ceiling`, then the one that leaves the load most level, then the first by name. What it answers passes
/// [`check_step`].
///
/// # Errors
/// Those of [`check_step`] that concern the VM; `InvalidArgument` when an option is out of range; `CapacityExceeded`
/// when no host can take it, with a count of what stands in the way.
pub fn choose_target(
    snapshot: &ClusterSnapshot,
    vm: &VmId,
    options: &PlanOptions,
) -> Result<HostId, Refusal> {
    options.validate()?;
    let problem = Problem::new(snapshot)?;
    let vm = problem.find_vm(vm).ok_or_else(|| missing("VM", vm.as_str()))?;
    if let Some(refusal) = why_it_cannot_leave(&problem, vm) {
        return Err(refusal);
    }
    let state = State::new(&problem);
    match solve::best_target(&state, vm, Cause::Drain, options) {
        Some(host) => Ok(problem.host(host).id.clone()),
        None => {
            let (reason, remedy) = why_no_target(&state, vm, Cause::Drain, options);
            let reason = format!("VM {}: {reason}", problem.vm(vm).id);
            Err(Refusal::new(RefusalCode::CapacityExceeded, reason, remedy))
        }
    }
}

fn missing(what: &str, id: &str) -> Refusal {
    let list = what.to_lowercase();
    Refusal::new(
        RefusalCode::NotFound,
        format!("there is no {what} {id}"),
        format!("see 'ballast {list} ls' for what there is"),
    )
}

/// Why the VM cannot leave its host, wherever to.
pub(crate) fn why_it_cannot_leave(problem: &Problem<'_>, vm: VmIx) -> Option<Refusal> {
    let info = problem.vm(vm);
    if let Some(bound_for) = info.bound_for {
        let flight = problem.snapshot.migrations.iter().find(|flight| flight.vm == *info.id);
        let id = flight.map(|flight| flight.id.to_string()).unwrap_or_default();
        let other = problem.host(bound_for).id;
        return Some(Refusal::new(
            RefusalCode::WrongState,
            format!(
                "VM {} is being migrated already, from {} to {other}",
                info.id,
                problem.host(info.host).id
            ),
            format!("wait for migration {id} to end, or cancel it"),
        ));
    }
    let host = problem.host(info.host);
    if let Telemetry::Unknown { why } = &host.host.telemetry {
        return Some(Refusal::new(
            RefusalCode::Unavailable,
            format!("the load of host {}, where VM {} is, is unknown: {why}", host.id, info.id),
            format!("check that the agent on {} runs and reports", host.id),
        ));
    }
    match &info.vm.mobility {
        Mobility::Movable => None,
        Mobility::Fixed { reason, remedy } => Some(Refusal::new(
            RefusalCode::WrongState,
            format!("VM {} cannot move for now: {reason}", info.id),
            remedy.clone(),
        )),
    }
}

/// An obstacle in words.
pub(crate) fn explain(state: &State<'_, '_>, vm: VmIx, to: HostIx, obstacle: Obstacle) -> Refusal {
    let problem = state.problem;
    let (info, host) = (problem.vm(vm), problem.host(to));
    let (vm_id, to_id) = (info.id, host.id);
    match obstacle {
        Obstacle::Here => Refusal::new(
            RefusalCode::WrongState,
            format!("VM {vm_id} is on host {to_id} already"),
            "name another host",
        ),
        Obstacle::Closed if host.quarantined() => Refusal::new(
            RefusalCode::WrongState,
            format!("host {to_id} is quarantined and takes no VMs"),
            format!("choose another host, or run 'ballast host uncordon {to_id}'"),
        ),
        Obstacle::Closed => Refusal::new(
            RefusalCode::WrongState,
            format!("host {to_id} is being emptied and takes no VMs"),
            format!("choose another host, or run 'ballast host uncordon {to_id}'"),
        ),
        Obstacle::Unknown => {
            let why = match &host.host.telemetry {
                Telemetry::Unknown { why } => why.as_str(),
                Telemetry::Known { .. } => "it reports no capacity",
            };
            Refusal::new(
                RefusalCode::Unavailable,
                format!("the load of host {to_id} is unknown: {why}"),
                format!("choose another host, or check that the agent on {to_id} runs and reports"),
            )
        }
        Obstacle::Memory { free } => Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "VM {vm_id} needs {} of memory and host {to_id} has {free} free of {}",
                Bytes(info.memory),
                host.host.capacity.memory
            ),
            format!("choose another host, or move a VM off {to_id} first"),
        ),
        Obstacle::Cpu => Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "VM {vm_id} has {} of CPU, and host {to_id} admits {} for all its VMs, {} of them taken",
                Millicores(info.cpu_size),
                Millicores(host.cpu_admitted.unwrap_or_default()),
                Millicores(state.cpu_sizes(to))
            ),
            "choose another host, or let the policy overcommit more CPU",
        ),
        Obstacle::Lacks => {
            let missing: Vec<&str> =
                info.vm.needs.difference(&host.host.offers).map(String::as_str).collect();
            Refusal::new(
                RefusalCode::Incompatible,
                format!(
                    "VM {vm_id} needs {}, which host {to_id} does not offer",
                    missing.join(", ")
                ),
                "choose a host that offers it",
            )
        }
        Obstacle::Disk { room } => Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "VM {vm_id} takes {} of local disks along, and host {to_id} has {room} free for them",
                info.vm.local_disks
            ),
            "choose another host, make room there, or move the disks to shared storage",
        ),
        Obstacle::Numa => Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "VM {vm_id} must fit one NUMA node, and host {to_id} has none with room for it"
            ),
            "choose another host, or let the VM span nodes",
        ),
        Obstacle::Intolerant => Refusal::new(
            RefusalCode::CapacityExceeded,
            format!(
                "with VM {vm_id} on host {to_id} the loss of {} hosts would leave VMs without a place",
                problem.snapshot.policy.failures_tolerated
            ),
            REMEDY_OF_LOSSES,
        ),
        Obstacle::Broken { rule } => Refusal::new(
            RefusalCode::RuleViolation,
            broken(state, vm, rule, to),
            "choose another host, or change the rule",
        ),
        Obstacle::Forbidden { rule } => Refusal::new(
            RefusalCode::RuleViolation,
            format!("rule {} does not let VM {vm_id} run on host {to_id}", problem.rule(rule).id),
            format!("choose one of the rule's hosts: {}", allowed_hosts(problem, rule)),
        ),
    }
}

/// What a rule that holds at every moment has against the move.
fn broken(state: &State<'_, '_>, vm: VmIx, rule: RuleIx, to: HostIx) -> String {
    let problem = state.problem;
    let (info, vm_id, to_id) = (problem.rule(rule), problem.vm(vm).id, problem.host(to).id);
    let id = info.id;
    match &info.body {
        RuleBody::Apart { most: 1 } => {
            let there = |host: HostIx| info.domain[host.0] == info.domain[to.0];
            let is_near = |other: &&VmIx| {
                let flies_from = problem.vm(**other).bound_for.is_some();
                **other != vm
                    && (there(state.at(**other)) || flies_from && there(problem.vm(**other).host))
            };
            let other = info.vms.iter().find(is_near);
            let other = other.map_or("others", |other| problem.vm(*other).id.as_str());
            format!("rule {id} keeps VM {vm_id} apart from VM {other} on host {to_id}")
        }
        RuleBody::Apart { most } => {
            format!("rule {id} allows {most} of its VMs where host {to_id} is, and they are there")
        }
        RuleBody::Distinct { least } => format!(
            "rule {id} wants its VMs in {least} domains, fewer would be left with VM {vm_id} on {to_id}"
        ),
        RuleBody::Within { most } => format!(
            "rule {id} allows its VMs in {most} places at once, VM {vm_id} on {to_id} would be one more"
        ),
        RuleBody::Near => {
            format!(
                "rule {id} wants VM {vm_id} and what needs it, or what it needs, near each other"
            )
        }
        RuleBody::Hosts { .. } | RuleBody::Among { .. } => {
            format!("rule {id} wants its VMs in one group of hosts, {to_id} is outside")
        }
    }
}

fn allowed_hosts(problem: &Problem<'_>, rule: RuleIx) -> String {
    const SHOWN_MAX: usize = 8;
    let mut names: Vec<String> = problem
        .host_ixs()
        .filter(|host| problem.rule_allows(rule, *host))
        .map(|host| problem.host(host).id.to_string())
        .collect();
    if names.len() > SHOWN_MAX {
        let more = names.len() - SHOWN_MAX;
        names.truncate(SHOWN_MAX);
        names.push(format!("{more} more"));
    }
    names.join(", ")
}

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
            format!(
                "with VM {vm} of {} the loss of {failures} hosts would leave VMs without a place",
                size.memory
            ),
            REMEDY_OF_LOSSES,
        )),
        (None, Some((obstacle, host)), Some(own)) => {
            let mut refusal = explain(&state, own, host, obstacle);
            refusal.reason =
                format!("{}, and so or otherwise with every host that has room", refusal.reason);
            refusal.remedy = "change the rule, or make room on a host it allows".to_owned();
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

/// By host, whether it offers what the VM needs; nothing is known of the needs of a VM that the snapshot does not have.
fn offering(problem: &Problem<'_>, vm: Option<VmIx>) -> Vec<bool> {
    let offers = |host: HostIx| {
        vm.is_none_or(|vm| lacking(problem.vm(vm).vm, problem.host(host).host).is_none())
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Cluster, gib, keep_apart};
    use RefusalCode::{CapacityExceeded, NotFound, RuleViolation, Unavailable, WrongState};
    use ballast_model::snapshot::MoveInFlight;
    use ballast_model::{Millicores, Rule, RuleKind};

    fn cluster() -> Cluster {
        Cluster::new(3, 4, 16).vm("a", "h0", 100, 8).vm("b", "h1", 100, 10).draining("h2")
    }

    fn unknown(mut snapshot: ClusterSnapshot, host: &str) -> ClusterSnapshot {
        let host = snapshot.hosts.get_mut(&host.parse().unwrap()).unwrap();
        host.telemetry = Telemetry::Unknown { why: "no report for 30 s".into() };
        snapshot
    }

    fn refused(snapshot: &ClusterSnapshot, vm: &str, to: &str, code: RefusalCode, words: &str) {
        let refusal = check_step(snapshot, &vm.parse().unwrap(), &to.parse().unwrap()).unwrap_err();
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.reason.contains(words), "{refusal}");
        assert!(!refusal.remedy.is_empty());
    }

    #[test]
    fn a_vm_goes_where_its_local_disks_have_room() {
        let mut snapshot = Cluster::new(4, 4, 16).vm("a", "h0", 100, 1).0;
        snapshot.vms.values_mut().for_each(|vm| vm.local_disks = gib(20));
        // h3 does not say.
        for (host, room) in [("h0", 0), ("h1", 19), ("h2", 20)] {
            let host = snapshot.hosts.get_mut(&host.parse().unwrap()).unwrap();
            host.local_disk_room = Some(gib(room));
        }
        refused(&snapshot, "a", "h1", CapacityExceeded, "takes 20.0 GiB of local disks along");
        for host in ["h2", "h3"] {
            check_step(&snapshot, &"a".parse().unwrap(), &host.parse().unwrap()).unwrap();
        }
        let chosen = choose_target(&snapshot, &"a".parse().unwrap(), &PlanOptions::default());
        assert_eq!(chosen.unwrap().as_str(), "h2");
    }

    #[test]
    fn a_vm_may_go_where_there_is_room_even_if_the_cpu_gets_tight() {
        let snapshot = Cluster::new(2, 4, 16).vm("a", "h0", 9000, 8).vm("b", "h1", 9000, 8).0;
        check_step(&snapshot, &"a".parse().unwrap(), &"h1".parse().unwrap()).unwrap();
    }

    #[test]
    fn each_no_names_its_cause() {
        let plain = cluster().0;
        refused(&plain, "zz", "h1", NotFound, "no VM zz");
        refused(&plain, "a", "zz", NotFound, "no host zz");
        refused(&plain, "a", "h0", WrongState, "on host h0 already");
        refused(&plain, "a", "h2", WrongState, "being emptied");
        refused(
            &plain,
            "a",
            "h1",
            CapacityExceeded,
            "needs 8.0 GiB of memory and host h1 has 6.0 GiB",
        );
        refused(&unknown(cluster().0, "h1"), "a", "h1", Unavailable, "no report for 30 s");
        refused(&unknown(cluster().0, "h0"), "a", "h1", Unavailable, "where VM a is");
    }

    #[test]
    fn rules_are_named() {
        let small = || Cluster::new(3, 4, 16).vm("a", "h0", 100, 1).vm("b", "h1", 100, 1).0;
        let apart = keep_apart(small(), &["a", "b"]);
        refused(&apart, "a", "h1", RuleViolation, "rule apart keeps VM a apart from VM b");
        let mut bound = small();
        let kind = RuleKind::VmHost {
            vms: ["a".parse().unwrap()].into(),
            hosts: ["h2".parse().unwrap()].into(),
        };
        let rule = Rule::must("licence".parse().unwrap(), kind);
        bound.rules.insert(rule.id.clone(), rule);
        refused(&bound, "a", "h1", RuleViolation, "rule licence does not let VM a run on host h1");
        check_step(&bound, &"a".parse().unwrap(), &"h2".parse().unwrap()).unwrap();
    }

    #[test]
    fn a_vm_in_flight_stays_and_holds_memory_on_both_hosts() {
        let mut snapshot = Cluster::new(3, 4, 16).vm("a", "h0", 100, 10).vm("b", "h2", 100, 10).0;
        snapshot.migrations.push(MoveInFlight {
            id: "01900000-0000-7000-8000-000000000001".parse().unwrap(),
            vm: "a".parse().unwrap(),
            from: "h0".parse().unwrap(),
            to: "h1".parse().unwrap(),
        });
        refused(&snapshot, "a", "h2", WrongState, "being migrated already");
        refused(&snapshot, "b", "h0", CapacityExceeded, "6.0 GiB free");
        refused(&snapshot, "b", "h1", CapacityExceeded, "6.0 GiB free");
    }

    #[test]
    fn after_the_commit_a_vm_in_flight_counts_as_before() {
        let mut snapshot = Cluster::new(3, 4, 16).vm("a", "h0", 100, 10).0;
        snapshot.migrations.push(MoveInFlight {
            id: "01900000-0000-7000-8000-000000000001".parse().unwrap(),
            vm: "a".parse().unwrap(),
            from: "h0".parse().unwrap(),
            to: "h1".parse().unwrap(),
        });
        let before = crate::usage(&snapshot).unwrap();
        snapshot.vms.values_mut().next().unwrap().host = "h1".parse().unwrap();
        assert_eq!(crate::usage(&snapshot).unwrap(), before);
        assert_eq!(before[&"h1".parse().unwrap()].memory_vms, gib(10));
        assert_eq!(before[&"h0".parse().unwrap()].memory_moving, gib(10));
    }

    #[test]
    fn a_target_is_chosen_by_room_and_level_or_refused_with_a_count() {
        let options = PlanOptions::default();
        let vm = "a".parse().unwrap();
        let level = Cluster::new(3, 4, 16).vm("a", "h0", 100, 8).vm("b", "h1", 100, 1).0;
        assert_eq!(choose_target(&level, &vm, &options).unwrap().as_str(), "h2");
        let refusal = choose_target(&cluster().0, &vm, &options).unwrap_err();
        assert_eq!(refusal.code, CapacityExceeded);
        assert!(refusal.reason.contains("1 lack memory (it needs 8.0 GiB"), "{refusal}");
        assert!(refusal.reason.contains("1 drain or are unknown"), "{refusal}");
    }

    fn placed(snapshot: &ClusterSnapshot, memory_gib: u64) -> Result<HostId, Refusal> {
        let size = Resources::new(Millicores::cores(1), gib(memory_gib));
        place(snapshot, &"new".parse().unwrap(), size, &PlanOptions::default())
    }

    #[test]
    fn a_new_vm_starts_on_the_host_that_leaves_the_load_most_level() {
        assert_eq!(placed(&cluster().0, 4).unwrap().as_str(), "h0");
        assert_eq!(placed(&Cluster::new(2, 4, 16).0, 4).unwrap().as_str(), "h0");
    }

    #[test]
    fn too_large_for_any_host_and_no_room_now_are_told_apart() {
        let never = placed(&cluster().0, 17).unwrap_err();
        assert!(never.reason.contains("larger than any host"), "{never}");
        assert!(never.reason.contains("17.0 GiB") && never.reason.contains("16.0 GiB"), "{never}");
        let not_now = placed(&cluster().0, 9).unwrap_err();
        assert!(not_now.reason.contains("no host has room"), "{not_now}");
        assert!(not_now.reason.contains("h0, has 8.0 GiB free"), "{not_now}");
        assert_eq!(never.code, CapacityExceeded);
        let closed = placed(&Cluster::new(1, 4, 16).draining("h0").0, 1).unwrap_err();
        assert_eq!(closed.code, Unavailable);
        assert_eq!(placed(&Cluster::new(0, 4, 16).0, 1).unwrap_err().code, Unavailable);
    }
}
