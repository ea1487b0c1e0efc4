//! Levelling by groups: VMs that a hard rule holds together, none of which may go alone.
//!
//! ```text
//!  home      a group whose move does not pay any more goes back
//!  send      all of a group on a: a ─▶ b
//!  spread    a group of a rack, or of a group of hosts, goes to another one, each VM to where it does best
//!  exchange  all of a group a ─▶ b, one VM or another group b ─▶ a
//! ```
//!
//! All of a group moves or none of it, and what is gained has to pay for each of its VMs. Nothing here is tried before
//! single moves and exchanges find nothing any more, so a cluster without such rules is levelled as if there were none.

use crate::door::groups::{Groups, hard_faults, is_as_whole, is_tied, may_spread, weight_missed};
use crate::door::obstacle::Obstacle;
use crate::door::problem::{HostIx, Problem, VmIx};
use crate::door::state::{Cause, State};
use crate::options::PlanOptions;
use crate::score::{CPU, Load, MEMORY};
use crate::solve::Solver;
use crate::solve::balance::{Best, NOISE};
use crate::solve::scan::Scan;
use crate::solve::swaps::{SWAP_PARTNERS_MAX, SWAP_TRIES_MAX, from_most_loaded, swap_bound};
use crate::solve::together::{PLACED_MAX, move_all};

/// Passes over all hosts in one sweep, at most.
const PASSES_MAX: usize = 8;
/// The best targets of a group that are tried before it is left alone.
const TARGETS_MAX: usize = 8;
/// The largest group that is spread.
const SPREAD_MAX: usize = 16;
/// Places weighed for groups that are spread, in one sweep.
const SPREAD_WEIGHED_MAX: usize = 2_000_000;

/// VMs on one host that leave it as one.
struct Parcel {
    from: HostIx,
    vms: Vec<VmIx>,
    load: Load,
    /// What has to be gained for all of them, in times what has to be for an ordinary VM.
    price: f64,
}

impl Parcel {
    fn new(problem: &Problem<'_>, from: HostIx, vms: Vec<VmIx>) -> Self {
        let infos = || vms.iter().map(|vm| problem.vm(*vm));
        let add = |sum: Load, more: Load| {
            [CPU, MEMORY].map(|metric| sum[metric].saturating_add(more[metric]))
        };
        let load = infos().map(|info| info.load()).fold(Load::default(), add);
        let price = infos().map(|info| info.price).sum();
        Self { from, vms, load, price }
    }

    /// What brings all of it to that host.
    fn moves_to(&self, to: HostIx) -> Vec<(VmIx, HostIx)> {
        self.vms.iter().map(|vm| (*vm, to)).collect()
    }
}

/// Moves groups until none is worth it; whether any was.
pub(super) fn move_groups(solver: &mut Solver<'_, '_, '_>, home: &[HostIx], floor: f64) -> bool {
    let problem = solver.state.problem;
    if !problem.vm_ixs().any(|vm| is_tied(problem, vm)) {
        return false;
    }
    let mut scan = Scan::new(solver.state);
    let hosts = from_most_loaded(solver.state);
    let mut moved = false;
    for _ in 0..PASSES_MAX {
        let made = solver.moves.len();
        for host in &hosts {
            for parcel in groups_on(solver.state, *host) {
                let is_back = take_home(solver, &mut scan, home, &parcel, floor);
                moved |= is_back || send(solver, &mut scan, &parcel, floor);
            }
        }
        if solver.moves.len() == made {
            break;
        }
    }
    moved |= spread(solver, &mut scan, floor);
    if !moved {
        for host in &hosts {
            moved |= exchange(solver, *host, &hosts, floor);
        }
    }
    moved
}

/// The groups of VMs of a host that go only together, as far as rules are concerned, if all of each may move.
fn groups_on(state: &State<'_, '_>, host: HostIx) -> Vec<Parcel> {
    let problem = state.problem;
    let tied: Vec<VmIx> =
        state.vms_on(host).iter().copied().filter(|vm| is_tied(problem, *vm)).collect();
    let groups = Groups::new(problem, &tied);
    let whole = groups.iter().filter(|group| group.len() > 1 && all_may_move(problem, group));
    whole.map(|group| Parcel::new(problem, host, group.to_vec())).collect()
}

fn all_may_move(problem: &Problem<'_>, vms: &[VmIx]) -> bool {
    vms.iter().all(|vm| problem.may_move(*vm, Cause::Balance))
}

/// Makes these moves one after the other, if each is possible then and in the end no rule is further from holding and no
/// preference is given up; none of them otherwise.
fn make_all(solver: &mut Solver<'_, '_, '_>, moves: &[(VmIx, HostIx)]) -> bool {
    let vms: Vec<VmIx> = moves.iter().map(|(vm, _)| *vm).collect();
    let faults = hard_faults(solver.state, &vms);
    let missed = weight_missed(solver.state, &vms);
    let made = solver.moves.len();
    let is_possible = moves.iter().all(|&(vm, to)| {
        let state = &*solver.state;
        let can = state.obstacle(vm, to).is_none()
            && state.cpu_allows(vm, to, Cause::Balance, solver.options);
        if can {
            solver.make(vm, to, Cause::Balance);
        }
        can
    });
    let state = &*solver.state;
    if is_possible && is_as_whole(state, &faults) && weight_missed(state, &vms) <= missed {
        return true;
    }
    solver.take_back_to(made);
    false
}

/// Sends a group home whose move does not pay any more.
fn take_home(
    solver: &mut Solver<'_, '_, '_>,
    scan: &mut Scan,
    home: &[HostIx],
    parcel: &Parcel,
    floor: f64,
) -> bool {
    let state = &*solver.state;
    let back = home[parcel.vms[0].0];
    let is_home_of_all = parcel.vms.iter().all(|vm| home[vm.0] == back);
    if back == parcel.from || !is_home_of_all || !state.problem.host(back).counts() {
        return false;
    }
    let gain = state.gain_of(parcel.from, parcel.load, back);
    let goes = gain > NOISE - floor * parcel.price && make_all(solver, &parcel.moves_to(back));
    if goes {
        scan.note(solver.state, [parcel.from, back]);
    }
    goes
}

/// Makes the best move of all of a group to one host, if any is worth it.
fn send(solver: &mut Solver<'_, '_, '_>, scan: &mut Scan, parcel: &Parcel, floor: f64) -> bool {
    let mut refused: Vec<HostIx> = Vec::new();
    while refused.len() < TARGETS_MAX {
        let state = &*solver.state;
        let suits = |to: HostIx| {
            !refused.contains(&to) && obstacle_to_all(state, parcel, to, solver.options).is_none()
        };
        let leaving = (parcel.from, parcel.load);
        let Some(best) = scan.best_of(state, leaving, floor * parcel.price, suits) else {
            return false;
        };
        if make_all(solver, &parcel.moves_to(best.to)) {
            scan.note(solver.state, [parcel.from, best.to]);
            return true;
        }
        refused.push(best.to);
    }
    false
}

/// Moves groups whose rules let them be on several hosts to where their rules want them as well.
fn spread(solver: &mut Solver<'_, '_, '_>, scan: &mut Scan, floor: f64) -> bool {
    let problem = solver.state.problem;
    let tied: Vec<VmIx> = problem.vm_ixs().filter(|vm| is_tied(problem, *vm)).collect();
    let mut weighed = 0;
    let mut moved = false;
    let groups = Groups::new(problem, &tied);
    for group in groups.iter() {
        let may_go = (2..=SPREAD_MAX).contains(&group.len())
            && all_may_move(problem, group)
            && group.iter().all(|vm| problem.host(solver.state.at(*vm)).counts())
            && may_spread(problem, group);
        if !may_go || !is_hopeful(solver.state, scan, group, floor) {
            continue;
        }
        weighed += PLACED_MAX * problem.counted.len();
        if weighed > SPREAD_WEIGHED_MAX {
            break;
        }
        let made = solver.moves.len();
        moved |= spread_one(solver, group, floor);
        for step in &solver.moves[made..] {
            scan.note(solver.state, [step.from, step.to]);
        }
    }
    moved
}

fn spread_one(solver: &mut Solver<'_, '_, '_>, group: &[VmIx], floor: f64) -> bool {
    let problem = solver.state.problem;
    let mut group = group.to_vec();
    group.sort_by_key(|vm| (u64::MAX - problem.vm(*vm).memory, *vm));
    let (first, price) = (group[0], price_of(problem, &group));
    let (spread, missed) = (solver.state.sums().spread(), weight_missed(solver.state, &group));
    // Where the first can go alone, it need not take the others along.
    let leads = |state: &State<'_, '_>, vm: VmIx, to: HostIx| {
        vm != first || state.discrete_broken(vm, to).is_some()
    };
    move_all(solver, &group, Cause::Balance, leads, |state| {
        spread - state.sums().spread() >= floor * price && weight_missed(state, &group) <= missed
    })
}

fn price_of(problem: &Problem<'_>, vms: &[VmIx]) -> f64 {
    vms.iter().map(|vm| problem.vm(*vm).price).sum()
}

/// Whether a group could be worth its price. All of it hardly ever gains more than its VMs would gain one by one, each
/// being the first to move.
fn is_hopeful(state: &State<'_, '_>, scan: &Scan, group: &[VmIx], floor: f64) -> bool {
    let best = |vm: &VmIx| scan.best(state, *vm, 0.0, |_| true).map_or(0.0, |best| best.gain);
    group.iter().map(best).sum::<f64>() >= floor * price_of(state.problem, group)
}

/// Makes the best exchange of a group on `host` with a VM or a group on a less loaded host, if any is worth it.
fn exchange(solver: &mut Solver<'_, '_, '_>, host: HostIx, order: &[HostIx], floor: f64) -> bool {
    let state = &*solver.state;
    let ours = groups_on(state, host);
    if ours.is_empty() {
        return false;
    }
    // Three VMs at least have to pay.
    let is_partner =
        |other: &&HostIx| **other != host && swap_bound(state, host, **other) >= 3.0 * floor;
    let partners = order.iter().rev().take(SWAP_PARTNERS_MAX).filter(is_partner);
    let theirs: Vec<Parcel> = partners.flat_map(|partner| parcels_on(state, *partner)).collect();
    let mut pairs = Vec::new();
    for one in &ours {
        for other in &theirs {
            let gain = state.exchange_gain((host, one.load), (other.from, other.load));
            if gain >= floor * (one.price + other.price) {
                pairs.push((gain, one, other));
            }
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then((&a.1.vms, &a.2.vms).cmp(&(&b.1.vms, &b.2.vms))));
    pairs.into_iter().take(SWAP_TRIES_MAX).any(|(_, one, other)| {
        let (go, come) = (one.moves_to(other.from), other.moves_to(host));
        make_all(solver, &[&go[..], &come].concat()) || make_all(solver, &[come, go].concat())
    })
}

/// What can leave a host as one: its groups, and each VM besides.
fn parcels_on(state: &State<'_, '_>, host: HostIx) -> Vec<Parcel> {
    let problem = state.problem;
    let mut parcels = groups_on(state, host);
    let grouped: Vec<VmIx> = parcels.iter().flat_map(|group| group.vms.clone()).collect();
    let is_single = |vm: &VmIx| !grouped.contains(vm) && problem.may_move(*vm, Cause::Balance);
    let singles = state.vms_on(host).iter().copied().filter(is_single);
    parcels.extend(singles.map(|vm| Parcel::new(problem, host, vec![vm])));
    parcels
}

/// What keeps a group as a whole from a host.
pub(crate) enum Against {
    /// One of its VMs may not go there, whatever the others do.
    One(VmIx, Obstacle),
    /// There is not enough memory for all of it: bytes needed.
    Memory(u64),
    /// All of it would take the host beyond the CPU ceiling, to this share of its capacity.
    Ceiling(f64),
}

/// What is sure to keep all of a group from a host.
fn obstacle_to_all(
    state: &State<'_, '_>,
    parcel: &Parcel,
    to: HostIx,
    options: &PlanOptions,
) -> Option<Against> {
    if parcel.load[MEMORY] > state.memory_free(to).get() {
        return Some(Against::Memory(parcel.load[MEMORY]));
    }
    let capacity = state.problem.host(to).cpu.max(1);
    let share = state.cpu(to).saturating_add(parcel.load[CPU]) as f64 / capacity as f64;
    if share > options.cpu_ceiling.get() {
        return Some(Against::Ceiling(share));
    }
    let against = |vm: &VmIx| Some(Against::One(*vm, state.obstacle_but_losses(*vm, to)?));
    parcel.vms.iter().find_map(against)
}

/// Why a group stays.
pub(crate) enum Held {
    /// This one of it may not move for balance.
    Fixed(VmIx),
    /// Its best move is not worth what it costs.
    Outweighed(Best),
    /// Where it would do best it cannot go.
    Kept(HostIx, Against),
    /// Rules or failures to tolerate do not let it go where it would do best.
    Refused(HostIx),
}

/// The VMs on the host of this one that would have to go with it, and what keeps all of them there; `None` when there
/// are none, or nowhere to go.
pub(crate) fn held(
    state: &State<'_, '_>,
    scan: &Scan,
    vm: VmIx,
    options: &PlanOptions,
) -> Option<(Vec<VmIx>, Held)> {
    let (problem, from) = (state.problem, state.at(vm));
    let here: Vec<VmIx> = state.vms_on(from).iter().copied().collect();
    let groups = Groups::new(problem, &here);
    let group = groups.with(vm);
    let others: Vec<VmIx> = group.iter().copied().filter(|other| *other != vm).collect();
    if others.is_empty() {
        return None;
    }
    if let Some(fixed) = others.iter().find(|other| !problem.may_move(**other, Cause::Balance)) {
        let held = Held::Fixed(*fixed);
        return Some((others, held));
    }
    let parcel = Parcel::new(problem, from, group.to_vec());
    let best = scan.best_of(state, (from, parcel.load), f64::NEG_INFINITY, |_| true)?;
    let held = if best.gain < options.gain_floor() * parcel.price {
        Held::Outweighed(best)
    } else {
        match obstacle_to_all(state, &parcel, best.to, options) {
            Some(against) => Held::Kept(best.to, against),
            None => Held::Refused(best.to),
        }
    };
    Some((others, held))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use ballast_model::rule::Domain;
    use ballast_model::{ClusterSnapshot, HostId, Rule, RuleKind, VmId};

    use crate::options::PlanOptions;
    use crate::{plan, yardstick};

    /// An uneven cluster in which nearly every VM belongs together with another one on its host.
    fn paired(hosts: usize, vms: usize, seed: u64) -> ClusterSnapshot {
        let mut snapshot = yardstick::cluster(hosts, vms, seed);
        let mut on: BTreeMap<HostId, Vec<VmId>> = BTreeMap::new();
        for vm in snapshot.vms.values() {
            on.entry(vm.host.clone()).or_default().push(vm.id.clone());
        }
        snapshot.rules.clear();
        for (n, pair) in on.values().flat_map(|vms| vms.chunks_exact(2)).enumerate() {
            let vms = pair.iter().cloned().collect();
            let kind = RuleKind::Affinity { vms, domain: Domain::default() };
            let rule = Rule::must(format!("pair-{n}").parse().unwrap(), kind);
            snapshot.rules.insert(rule.id.clone(), rule);
        }
        snapshot
    }

    #[test]
    fn pairs_are_levelled_though_no_vm_of_them_may_go_alone() {
        let snapshot = paired(20, 200, 1);
        let plan = plan(&snapshot, &PlanOptions::default()).unwrap().plan;
        assert!(plan.imbalance_after.get() < plan.imbalance_before.get() / 3.0, "{plan:?}");
        let mut end = snapshot.clone();
        plan.steps.iter().for_each(|step| end.relocate(&step.vm, &step.to));
        let hosts = |kind: &RuleKind| -> BTreeSet<HostId> {
            kind.vms().iter().map(|vm| end.vms[vm].host.clone()).collect()
        };
        assert!(end.rules.values().all(|rule| hosts(&rule.kind).len() == 1));
        let moved: BTreeSet<&VmId> = plan.steps.iter().map(|step| &step.vm).collect();
        let of_pairs =
            end.rules.values().filter(|rule| !moved.is_disjoint(&rule.kind.vms().iter().collect()));
        assert!(of_pairs.count() > 10, "{plan:?}");
    }
}
