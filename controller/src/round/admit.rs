//! Which steps of a plan are taken now. Pure: everything it weighs is passed in.

use std::collections::BTreeMap;

use ballast_model::plan::StepCause;
use ballast_model::vm::Automation;
use ballast_model::{ClusterSnapshot, HostId, Plan, Ratio, Refusal, RefusalCode, Telemetry};

/// What limits a round.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How much the balancer may do on its own.
    pub automation: Automation,
    /// The most balance moves in one round.
    pub moves_per_cycle_max: usize,
    /// Migrations at a time.
    pub migrations_max: usize,
    /// Migrations at a time that a host takes part in.
    pub migrations_per_host_max: usize,
    /// Past this share of unknown hosts nothing moves for balance.
    pub hosts_unknown_max: Ratio,
    /// Past this share of VMs that a plan wants to move for balance, none is.
    pub plan_share_max: Ratio,
}

/// What became of a plan's steps.
#[derive(Debug, Default, PartialEq)]
pub struct Admission {
    /// Indices of steps to start now.
    pub admitted: Vec<usize>,
    /// The others.
    pub rejected: Vec<Rejected>,
    /// Why the balancer pauses itself, if it does.
    pub paused: Option<String>,
}

/// A step not taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejected {
    /// Its index.
    pub step: usize,
    /// Why.
    pub why: Why,
}

/// Why a step is not taken now: a closed set, fit for a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The automation level leaves it to an operator.
    Automation,
    /// The balancer has paused itself.
    Paused,
    /// Another step must end first.
    Dependency,
    /// The cap of this round is reached.
    CycleCap,
    /// The cap of migrations at a time is reached, in the cluster or on a host.
    MigrationCap,
}

impl Why {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Automation => "automation",
            Self::Paused => "paused",
            Self::Dependency => "dependency",
            Self::CycleCap => "cycle_cap",
            Self::MigrationCap => "migration_cap",
        }
    }

    /// Whether an operator has to decide; the others pass by themselves.
    pub const fn is_for_operators(self) -> bool {
        matches!(self, Self::Automation | Self::Paused)
    }
}

/// Sorts a plan's steps. A drain is an operator's order and served at every level of automation.
pub fn admit(snapshot: &ClusterSnapshot, plan: &Plan, bounds: &Bounds) -> Admission {
    let mut admission =
        Admission { paused: why_to_pause(snapshot, plan, bounds), ..Default::default() };
    let mut running = snapshot.migrations.len();
    let mut busy: BTreeMap<&HostId, usize> = BTreeMap::new();
    for flight in &snapshot.migrations {
        *busy.entry(&flight.from).or_default() += 1;
        *busy.entry(&flight.to).or_default() += 1;
    }
    let mut moves = 0;
    for (index, step) in plan.steps.iter().enumerate() {
        let ordered = step.cause == StepCause::Drain;
        let balance = step.cause == StepCause::Balance;
        let full = |host: &HostId| {
            busy.get(host).copied().unwrap_or_default() >= bounds.migrations_per_host_max
        };
        let why = if !ordered && !allows(bounds.automation, &step.cause) {
            Some(Why::Automation)
        } else if !ordered && admission.paused.is_some() {
            Some(Why::Paused)
        } else if !step.after.is_empty() {
            Some(Why::Dependency)
        } else if balance && moves >= bounds.moves_per_cycle_max {
            Some(Why::CycleCap)
        } else if running >= bounds.migrations_max || full(&step.from) || full(&step.to) {
            Some(Why::MigrationCap)
        } else {
            None
        };
        if let Some(why) = why {
            admission.rejected.push(Rejected { step: index, why });
            continue;
        }
        admission.admitted.push(index);
        running += 1;
        moves += usize::from(balance);
        *busy.entry(&step.from).or_default() += 1;
        *busy.entry(&step.to).or_default() += 1;
    }
    admission
}

const fn allows(automation: Automation, cause: &StepCause) -> bool {
    match (automation, cause) {
        (Automation::Full, _) | (_, StepCause::Drain) => true,
        (Automation::Partial, StepCause::Rule { .. } | StepCause::Needs | StepCause::Capacity) => {
            true
        }
        (Automation::Partial, StepCause::Balance) | (Automation::Manual, _) => false,
    }
}

/// Bad telemetry must not move the cluster about.
fn why_to_pause(snapshot: &ClusterSnapshot, plan: &Plan, bounds: &Bounds) -> Option<String> {
    let hosts = snapshot.hosts.len();
    let is_unknown =
        |host: &&ballast_model::Host| matches!(host.telemetry, Telemetry::Unknown { .. });
    let unknown = snapshot.hosts.values().filter(is_unknown).count();
    if hosts > 0 && unknown as f64 / hosts as f64 > bounds.hosts_unknown_max.get() {
        return Some(format!("the load of {unknown} of {hosts} hosts is unknown"));
    }
    let vms = snapshot.vms.len();
    let wanted = plan.steps.iter().filter(|step| step.cause == StepCause::Balance).count();
    if vms > 0
        && wanted > bounds.moves_per_cycle_max
        && wanted as f64 / vms as f64 > bounds.plan_share_max.get()
    {
        return Some(format!("the plan wants to move {wanted} of {vms} VMs"));
    }
    None
}

/// Whether every step of a kept plan still starts where the plan found it, and the first ones could start now.
///
/// # Errors
/// `Conflict` when a VM is elsewhere or gone; else what `check_step` refuses.
pub fn still_holds(snapshot: &ClusterSnapshot, plan: &Plan) -> Result<(), Refusal> {
    let mut moved = std::collections::BTreeSet::new();
    for step in &plan.steps {
        let again = !moved.insert(&step.vm);
        let there = snapshot.vms.get(&step.vm).is_some_and(|vm| vm.host == step.from);
        if !again && !there {
            return Err(Refusal::new(
                RefusalCode::Conflict,
                format!("VM {} is no longer on host {}", step.vm, step.from),
                "show a new plan and apply that",
            ));
        }
        if step.after.is_empty() && !again {
            ballast_placement::check_step(snapshot, &step.vm, &step.to)?;
        }
    }
    Ok(())
}

/// Whether waiting may help: a cap, a VM or host that is busy, room that another step has yet to make.
pub const fn is_passing(refusal: &Refusal) -> bool {
    use RefusalCode as Code;
    matches!(
        refusal.code,
        Code::RateLimited
            | Code::Unavailable
            | Code::Timeout
            | Code::CapacityExceeded
            | Code::RuleViolation
            | Code::WrongState
            | Code::Conflict
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_model::plan::StepCost;
    use ballast_model::snapshot::PlacedVm;
    use ballast_model::{Bytes, Host, Millicores, Resources, Revision, Step, Timestamp};
    use std::time::Duration;

    fn bounds() -> Bounds {
        Bounds {
            automation: Automation::Full,
            moves_per_cycle_max: 2,
            migrations_max: 3,
            migrations_per_host_max: 3,
            hosts_unknown_max: Ratio::new(0.34),
            plan_share_max: Ratio::new(0.9),
        }
    }

    fn snapshot(unknown: usize) -> ClusterSnapshot {
        let mut snapshot = ClusterSnapshot::empty(Revision(1), Timestamp(1));
        for n in 0..4 {
            let telemetry = if n < unknown {
                Telemetry::Unknown { why: "silent".into() }
            } else {
                Telemetry::Known { overhead: Resources::default() }
            };
            let capacity = Resources::new(Millicores(4000), Bytes::gib(8));
            let host = Host { telemetry, ..Host::new(format!("h{n}").parse().unwrap(), capacity) };
            snapshot.hosts.insert(host.id.clone(), host);
        }
        for n in 0..10 {
            let (id, host) = (format!("v{n}").parse().unwrap(), "h3".parse().unwrap());
            let vm = PlacedVm::new(id, host, Resources::default());
            snapshot.vms.insert(vm.id.clone(), vm);
        }
        snapshot
    }

    fn plan(causes: &[StepCause]) -> Plan {
        let step = |(n, cause): (usize, &StepCause)| Step {
            vm: format!("v{n}").parse().unwrap(),
            from: "h3".parse().unwrap(),
            to: "h2".parse().unwrap(),
            cause: cause.clone(),
            after: Vec::new(),
            gain: 0.1,
            cost: StepCost { bytes: Bytes(1), duration: Duration::from_secs(1) },
            reason: String::new(),
            terms: Vec::new(),
        };
        Plan {
            snapshot: Revision(1),
            steps: causes.iter().enumerate().map(step).collect(),
            imbalance_before: Ratio::ZERO,
            imbalance_after: Ratio::ZERO,
        }
    }

    fn check(unknown: usize, bounds: &Bounds, causes: &[StepCause], expected: &[Option<Why>]) {
        let admission = admit(&snapshot(unknown), &plan(causes), bounds);
        for (step, expected) in expected.iter().enumerate() {
            let why = admission.rejected.iter().find(|r| r.step == step).map(|r| r.why);
            assert_eq!(why, *expected, "step {step} of {admission:?}");
            assert_eq!(why.is_none(), admission.admitted.contains(&step));
        }
    }

    #[test]
    fn levels_of_automation() {
        use StepCause::{Balance, Capacity, Drain, Needs};
        let causes = [Drain, Capacity, Balance];
        let no = Some(Why::Automation);
        check(0, &bounds(), &causes, &[None, None, None]);
        let partial = Bounds { automation: Automation::Partial, ..bounds() };
        check(0, &partial, &causes, &[None, None, no]);
        check(0, &partial, &[Needs], &[None]);
        let manual = Bounds { automation: Automation::Manual, ..bounds() };
        check(0, &manual, &causes, &[None, no, no]);
        check(0, &manual, &[Needs], &[no]);
    }

    #[test]
    fn caps_of_the_round_the_cluster_and_the_host() {
        use StepCause::{Balance, Drain};
        let (cycle, cap) = (Some(Why::CycleCap), Some(Why::MigrationCap));
        check(
            0,
            &bounds(),
            &[Balance, Balance, Balance, Drain, Drain],
            &[None, None, cycle, None, cap],
        );
        let host = Bounds { migrations_per_host_max: 1, ..bounds() };
        check(0, &host, &[Drain, Drain], &[None, cap]);
    }

    #[test]
    fn unknown_hosts_pause_balance_and_not_a_drain() {
        use StepCause::{Balance, Drain};
        check(2, &bounds(), &[Balance, Drain], &[Some(Why::Paused), None]);
        check(1, &bounds(), &[Balance, Drain], &[None, None]);
    }

    #[test]
    fn a_plan_that_moves_nearly_all_pauses_the_balancer() {
        let all = vec![StepCause::Balance; 10];
        let admission = admit(&snapshot(0), &plan(&all), &bounds());
        assert!(admission.admitted.is_empty() && admission.paused.is_some(), "{admission:?}");
    }

    #[test]
    fn a_plan_holds_while_its_vms_are_where_it_found_them() {
        let plan = plan(&[StepCause::Balance]);
        let mut snapshot = snapshot(0);
        still_holds(&snapshot, &plan).unwrap();
        let vm = snapshot.vms.get_mut(&plan.steps[0].vm).unwrap();
        vm.host = "h1".parse().unwrap();
        assert_eq!(still_holds(&snapshot, &plan).unwrap_err().code, RefusalCode::Conflict);
    }
}
