//! One planning run: number, solve, schedule, again from where that leads ([`route`](crate::route)), write down, check.

use std::collections::{BTreeMap, BTreeSet};

use ballast_model::plan::StepCause;
use ballast_model::{ClusterSnapshot, Plan, Planning, Ratio, Refusal, Step, Verdict, VmId};

use crate::cost;
use crate::door::problem::{Problem, VmIx};
use crate::door::state::{Cause, Move, State};
use crate::explain::terms::Terms;
use crate::objective::Quality;
use crate::options::PlanOptions;
use crate::solve::exact;
use crate::solve::joint::{self, Candidate};
use crate::{check, drain, rank, report, schedule, solve, verdict};

/// How often a dearer move is tried where a plan may not hold all that is found: by pairs of VM and host, since each
/// try is a run.
const BUDGET_TRIES: [(usize, usize); 2] = [(5_000, 5), (50_000, 1)];
/// Pairs up to which what is found is brought down to what a plan may hold, rather than cut.
const FITTED_PAIRS_MAX: usize = 500_000;

/// Fewer steps than this are the first of all that is found: what is worth most comes first.
const BUDGET_MIN: usize = 4;

/// Works out what to move, in which order and why; for every VM of the snapshot, why it moves or stays.
///
/// The plan is safe in every order and concurrency its dependencies allow, and
/// settled: planning on the state it leads to, with the same options, yields no
/// steps (unless its budget cut it short). No hard rule and no memory capacity
/// is broken that was not broken before, at any moment.
///
/// A VM has one step, or, where room is so tight that the way leads over a
/// third host, several, each waiting for the one before; its verdict then names the last.
///
/// # Errors
/// - `InvalidArgument`: the snapshot does not fit together, or an option is out of range
/// - `Internal`: the plan failed the check on the way out; nothing is to be done then
pub fn plan(snapshot: &ClusterSnapshot, options: &PlanOptions) -> Result<Planning, Refusal> {
    options.validate()?;
    let problem = Problem::new(snapshot)?;
    let (leg, options) = drain::plan(&problem, options)?;
    let Leg { moves, after, found, .. } = leg;
    let written = write_down(&problem, &moves, after, &options);
    check::check(&problem, &written.plan, &options)?;
    Ok(finish(written, &moves, &found, &options))
}

/// What one run of descent and search finds: as many of its moves as a plan may hold, in order.
#[derive(Default)]
pub(crate) struct Leg {
    pub(crate) moves: Vec<Move>,
    /// By move, the earlier ones it waits for.
    pub(crate) after: Vec<Vec<usize>>,
    /// All it found.
    pub(crate) found: Vec<Move>,
    /// Whether that is more than the plan holds.
    pub(crate) is_cut: bool,
}

/// The first run. Where it finds more than a plan may hold, the beginning of what it found is one choice; what is found
/// when a move must be worth more is another, made for so many moves from the outset.
pub(crate) fn within(problem: &Problem<'_>, options: &PlanOptions) -> Result<Leg, Refusal> {
    let first = leg(problem, options)?;
    if !first.is_cut || !options.causes.balance || options.steps_max < BUDGET_MIN {
        return Ok(first);
    }
    let pairs = problem.vms.len().saturating_mul(problem.hosts.len());
    let tries = BUDGET_TRIES.iter().find(|(most, _)| pairs <= *most).map_or(0, |(_, tries)| *tries);
    let start = State::new(problem);
    let quality = |moves: &[Move]| {
        let reached = start.after(moves);
        Quality::of(&start, &reached, options)
    };
    let (mut low, mut high) = (options.gain_min.get(), 1.0);
    let mut best = (quality(&first.moves), first.moves.clone(), first.after.clone());
    let brought_down =
        if pairs <= FITTED_PAIRS_MAX { fitted(problem, &first, options) } else { None };
    if let Some((moves, after)) = brought_down {
        let reached = quality(&moves);
        if reached.is_better_than(&best.0) {
            best = (reached, moves, after);
        }
    }
    for _ in 0..tries {
        let middle = (low * high).sqrt();
        let dearer = PlanOptions { gain_min: Ratio::new(middle), ..*options };
        let tried = leg(problem, &dearer)?;
        if tried.is_cut {
            low = middle;
        } else {
            high = middle;
        }
        for (moves, after) in
            fitted(problem, &tried, options).into_iter().chain([(tried.moves, tried.after)])
        {
            let reached = quality(&moves);
            if reached.is_better_than(&best.0) {
                best = (reached, moves, after);
            }
        }
    }
    let (_, moves, after) = best;
    Ok(Leg { moves, after, found: first.found, is_cut: true })
}

/// All that a run found, brought down to as many steps as a plan may hold.
fn fitted(
    problem: &Problem<'_>,
    leg: &Leg,
    options: &PlanOptions,
) -> Option<(Vec<Move>, Vec<Vec<usize>>)> {
    let start = State::new(problem);
    let mut state = start.after(&leg.found);
    solve::fit(&mut state, options);
    let Candidate { moves, after } = joint::ranked(&start, &state, options)?;
    let fits = is_afforded(problem, &moves, options);
    let candidate = Candidate { moves, after };
    (fits && is_legal(problem, &candidate, options)).then_some((candidate.moves, candidate.after))
}

/// One run of descent and search.
pub(crate) fn leg(problem: &Problem<'_>, options: &PlanOptions) -> Result<Leg, Refusal> {
    let mut solved = State::new(problem);
    let found = solve::solve(&mut solved, options);
    let start = State::new(problem);
    let asked = !found.is_empty()
        || Quality::of(&start, &start, options).is_wrong()
        || exact::is_small(problem.hosts.len(), problem.vms.len());
    let candidates = if asked { joint::improve(problem, &solved, options)? } else { Vec::new() };
    let descended = Quality::of(&start, &solved, options);
    let (fitting, long): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|found| is_afforded(problem, &found.moves, options));
    let legal = fitting
        .into_iter()
        .filter_map(|found| without_waste(problem, found, &descended, options))
        .find(|found| is_legal(problem, found, options));
    if let Some(candidate) = legal {
        let Candidate { moves, after } = candidate;
        return Ok(Leg { found: moves.clone(), moves, after, is_cut: false });
    }
    let mut ways = schedule::ways(problem, &found, options);
    // The last is a way in any case.
    let mut taken = ways.pop().unwrap_or_default();
    for way in ways.into_iter().rev() {
        let moves = schedule::shorten(problem, way.clone(), options);
        let after = schedule::dependencies(problem, &moves, options);
        if is_legal(problem, &Candidate { moves, after }, options) {
            taken = way;
        }
    }
    let is_cut = !is_afforded(problem, &taken, options);
    let moves = schedule::shorten(problem, taken, options);
    if let Some(long) = long.into_iter().next().filter(|_| moves.is_empty()) {
        return Ok(Leg { moves, after: Vec::new(), found: long.moves, is_cut: true });
    }
    let after = schedule::dependencies(problem, &moves, options);
    let Candidate { moves, after } = legal_part(problem, Candidate { moves, after }, options);
    Ok(Leg { moves, after, found, is_cut })
}

/// The candidate up to where its steps are worth most, if that is still better than what the descent found: one that
/// goes by way of third hosts has more steps than the search paid for.
fn without_waste(
    problem: &Problem<'_>,
    found: Candidate,
    descended: &Quality,
    options: &PlanOptions,
) -> Option<Candidate> {
    let vms: BTreeSet<VmIx> = found.moves.iter().map(|step| step.vm).collect();
    if vms.len() == found.moves.len() {
        return Some(found);
    }
    let (moves, mut after) = (schedule::shorten(problem, found.moves, options), found.after);
    let start = State::new(problem);
    let reached = start.after(&moves);
    let quality = Quality::after_steps(&start, &reached, &moves, options);
    after.truncate(moves.len());
    quality.is_better_than(descended).then_some(Candidate { moves, after })
}

/// Whether the budget of the plan is enough for all of the moves.
pub(crate) fn is_afforded(problem: &Problem<'_>, moves: &[Move], options: &PlanOptions) -> bool {
    options.affords(moves.len(), cost::of_steps(problem, moves))
}

pub(crate) fn is_legal(
    problem: &Problem<'_>,
    candidate: &Candidate,
    options: &PlanOptions,
) -> bool {
    let Candidate { moves, after } = candidate;
    let written = write_down(problem, moves, after.clone(), options);
    check::check(problem, &written.plan, options).is_ok()
}

/// The steps up to the first that would break something, or fewer where those would end in the middle of what goes
/// together. The descent weighs a move where it stands; that lost VMs find a place is shown by packing them, which may
/// fail for the steps together.
fn legal_part(problem: &Problem<'_>, candidate: Candidate, options: &PlanOptions) -> Candidate {
    let Candidate { mut moves, mut after } = candidate;
    let written = write_down(problem, &moves, after.clone(), options);
    let legal = check::legal_steps(problem, &written.plan, options);
    if legal < moves.len() {
        moves.truncate(legal);
        moves = rank::cut(problem, &moves, options);
        after.truncate(moves.len());
    }
    Candidate { moves, after }
}

/// A plan, the verdicts on the VMs it moves, and the state it leads to.
struct Written<'p, 'a> {
    plan: Plan,
    verdicts: BTreeMap<VmId, Verdict>,
    end: State<'p, 'a>,
}

/// Adds the verdicts on the VMs that stay and what it all comes to; `found` may be more than the plan holds.
fn finish(
    written: Written<'_, '_>,
    moves: &[Move],
    found: &[Move],
    options: &PlanOptions,
) -> Planning {
    let Written { plan, mut verdicts, end } = written;
    verdict::of_the_rest(&end, found, options, &mut verdicts);
    let report = report::of(&plan, moves, &end, options);
    Planning { plan, verdicts, report }
}

fn write_down<'p, 'a>(
    problem: &'p Problem<'a>,
    moves: &[Move],
    after: Vec<Vec<usize>>,
    options: &PlanOptions,
) -> Written<'p, 'a> {
    let mut state = State::new(problem);
    let imbalance_before = state.sums().imbalance();
    let (mut verdicts, mut steps) = (BTreeMap::new(), Vec::with_capacity(moves.len()));
    let purposes = verdict::purposes(&state, moves, &after);
    for (n, (step, after)) in moves.iter().zip(after).enumerate() {
        let (vm, from, to) = (problem.vm(step.vm), problem.host(step.from), problem.host(step.to));
        let before = state.sums().imbalance();
        let shares = verdict::Shares::new(&state, step);
        let terms = Terms::of(&state, step.vm, [step.from, step.to], options);
        state.shift(step.vm, step.to);
        let terms = terms.changed(&Terms::of(&state, step.vm, [step.from, step.to], options));
        let gain = before.get() - state.sums().imbalance().get();
        let reason = verdict::of_move(&state, step, purposes[n], &shares, gain, options);
        let moves = Verdict::Moves { step: n, reason: reason.clone() };
        verdicts.insert(vm.id.clone(), moves);
        steps.push(Step {
            vm: vm.id.clone(),
            from: from.id.clone(),
            to: to.id.clone(),
            cause: step_cause(problem, step.cause),
            after,
            gain,
            cost: cost::of_move(vm.vm, from.host, to.host),
            reason,
            terms,
        });
    }
    let imbalance_after = state.sums().imbalance();
    let snapshot = problem.snapshot.revision;
    let plan = Plan { snapshot, steps, imbalance_before, imbalance_after };
    Written { plan, verdicts, end: state }
}

fn step_cause(problem: &Problem<'_>, cause: Cause) -> StepCause {
    match cause {
        Cause::Rule(rule) | Cause::Preference(rule) => {
            StepCause::Rule { rule: problem.rule(rule).id.clone() }
        }
        Cause::Needs => StepCause::Needs,
        Cause::Capacity => StepCause::Capacity,
        Cause::Drain | Cause::Quarantine => StepCause::Drain,
        Cause::Balance => StepCause::Balance,
    }
}

/// How unequal the hosts' load is: see [`crate::score`] for the formula.
///
/// Hosts that drain or whose load is unknown do not count; a VM in flight counts as arrived. A snapshot that does not
/// fit together has an imbalance of zero: [`plan`] says what is wrong with it.
pub fn imbalance(snapshot: &ClusterSnapshot) -> Ratio {
    Problem::new(snapshot).map_or(Ratio::ZERO, |problem| State::new(&problem).sums().imbalance())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cluster;
    use ballast_model::Verdict;
    use std::time::Duration;

    fn piled() -> Cluster {
        (0..12).fold(Cluster::new(4, 8, 64), |cluster, n| {
            cluster.vm(&format!("vm-{n:02}"), "h0", 200 + 50 * n, 2)
        })
    }

    #[test]
    fn twelve_vms_piled_on_one_host_of_four_are_levelled() {
        let planning = plan(&piled().0, &PlanOptions::default()).unwrap();
        let (before, after) =
            (planning.plan.imbalance_before.get(), planning.plan.imbalance_after.get());
        assert!(after < before / 3.0, "{before} -> {after}");
        assert!((7..=10).contains(&planning.plan.steps.len()), "{:?}", planning.plan.steps);
        assert_eq!(planning.verdicts.len(), 12);
    }

    #[test]
    fn the_report_tells_what_the_steps_come_to() {
        let planning = plan(&piled().0, &PlanOptions::default()).unwrap();
        let (plan, report) = (&planning.plan, &planning.report);
        let (first, last) = (report.curve[0], report.curve[plan.steps.len()]);
        assert_eq!((first.moves, first.imbalance), (0, plan.imbalance_before));
        assert_eq!(last.moves, plan.steps.len());
        assert!((last.imbalance.get() - plan.imbalance_after.get()).abs() < 1e-9);
        // Two at a time leave the one host, on one link: no faster than one after the other.
        assert_eq!(report.stages() as usize, plan.steps.len().div_ceil(2));
        assert!(report.makespan >= last.cost.duration - Duration::from_millis(10), "{report:?}");
        assert!(report.makespan < 2 * last.cost.duration, "{report:?}");
        assert!(report.imbalance_bound <= plan.imbalance_after);
        assert!(planning.gap() <= plan.imbalance_after);
    }

    #[test]
    fn what_goes_together_is_not_cut_in_the_middle() {
        let cluster = Cluster::new(3, 8, 16)
            .vm("single", "h0", 100, 1)
            .vm("v1", "h0", 100, 6)
            .vm("v2", "h0", 100, 8)
            .vm("w", "h1", 100, 4)
            .draining("h0");
        let mut snapshot = cluster.0;
        let kind = ballast_model::RuleKind::Affinity {
            vms: ["v1", "v2"].map(|vm| vm.parse().unwrap()).into(),
            domain: Default::default(),
        };
        let rule = ballast_model::Rule::must("pack".parse().unwrap(), kind);
        snapshot.rules.insert(rule.id.clone(), rule);
        let problem = Problem::new(&snapshot).unwrap();
        let [h0, h1, h2] = ["h0", "h1", "h2"].map(|host| problem.find_host(&host.parse().unwrap()));
        // There is no room on h1 for v2 besides v1.
        let step = |vm: &str, to: Option<_>| Move {
            vm: problem.find_vm(&vm.parse().unwrap()).unwrap(),
            from: h0.unwrap(),
            to: to.unwrap(),
            cause: Cause::Drain,
        };
        let moves = vec![step("single", h2), step("v1", h1), step("v2", h1)];
        let after = vec![Vec::new(); moves.len()];
        let candidate = Candidate { moves: moves.clone(), after };
        let kept = legal_part(&problem, candidate, &PlanOptions::default());
        assert_eq!(kept.moves, moves[..1]);
        assert_eq!(kept.after.len(), 1);
    }

    #[test]
    fn a_draining_host_is_emptied_and_does_not_count() {
        let cluster = piled().draining("h0");
        let planning = plan(&cluster.0, &PlanOptions::default()).unwrap();
        assert_eq!(planning.plan.steps.len(), 12);
        assert_eq!(planning.plan.imbalance_before, Ratio::ZERO);
        assert!(planning.plan.imbalance_after.get() < 0.02, "{}", planning.plan.imbalance_after);
        assert!(planning.plan.steps.iter().all(|step| step.cause == StepCause::Drain));
        assert!(planning.verdicts.values().all(|v| matches!(v, Verdict::Moves { .. })));
    }
}
