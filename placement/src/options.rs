//! What a caller may ask of the planner.

use std::time::Duration;

use ballast_model::plan::StepCost;
use ballast_model::{Bytes, DrainGoal, Ratio, Refusal, RefusalCode};

/// The most steps a plan may have, whatever the options say.
pub const STEPS_MAX: usize = 50_000;

/// Which causes a plan may act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Causes {
    /// Mend broken hard rules, and bring VMs to hosts that offer what they need.
    pub rules: bool,
    /// Bring VMs to where preferences (`should` rules) want them.
    pub preferences: bool,
    /// Bring hosts back under their memory capacity.
    pub capacity: bool,
    /// Empty hosts that are draining.
    pub drain: bool,
    /// Level the load.
    pub balance: bool,
}

impl Causes {
    /// Every cause.
    pub const ALL: Self =
        Self { rules: true, preferences: true, capacity: true, drain: true, balance: true };
    /// Only what must be: no balancing.
    pub const FORCED: Self = Self { balance: false, ..Self::ALL };

    /// These without what can wait until hosts are empty: preferences and balance.
    pub(crate) const fn urgent(self) -> Self {
        Self { preferences: false, balance: false, ..self }
    }
}

/// How to plan. The default suits a pool that is looked at every minute or so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlanOptions {
    /// What may move VMs. Default: everything.
    pub causes: Causes,
    /// What matters most when hosts are emptied that have no goal of their own
    /// ([`Host::drain_goal`](ballast_model::Host::drain_goal)). Default: the cluster as it is afterwards.
    pub drain: DrainGoal,
    /// The seed of random choices. The same snapshot, options and seed give the same plan; with another seed the search
    /// may find another one. Default: 0.
    pub seed: u64,
    /// The most steps in one plan, at most [`STEPS_MAX`]. What is cut off comes with a later plan. Default: 1000.
    pub steps_max: usize,
    /// The most bytes all steps together may send, dirty pages sent again included; more than zero. What must be done
    /// comes first; of the rest, what levels most for what it takes of the budget. Default: any number.
    pub bytes_max: Option<Bytes>,
    /// The longest time all steps together may take, each alone on its links and one after the other; more than zero. It
    /// is spent as [`bytes_max`](Self::bytes_max) is. Default: any time.
    pub time_max: Option<Duration>,
    /// The least a balance move must be worth, as a share of a host: a move is worth `gain_min` when it levels as much
    /// as bringing one host that is off the mean load by that share back to the mean. It does not depend on the
    /// number of hosts. A VM whose migration takes longer than five minutes at the link of its host, or that was moved not
    /// long ago, has to be worth as many times that as it takes five minutes, and once more for each recent move
    /// (`moves_recent`). Default: 3 %.
    pub gain_min: Ratio,
    /// The share of its CPU capacity a target may reach by a move for balance or for a preference. Moves that must be
    /// (a drain, a hard rule, memory) prefer targets below it, then targets below their full capacity, and only then
    /// overload one: a slower guest is better than a host that cannot be emptied. Default: 80 %.
    pub cpu_ceiling: Ratio,
    /// How many migrations a host is expected to take part in at a time, each way, for the estimate of when steps run
    /// and how long the plan takes. At least 1. Default: 2.
    pub host_moves_max: u32,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            causes: Causes::ALL,
            drain: DrainGoal::Balanced,
            seed: 0,
            steps_max: 1000,
            bytes_max: None,
            time_max: None,
            gain_min: Ratio::new(0.03),
            cpu_ceiling: Ratio::new(0.8),
            host_moves_max: 2,
        }
    }
}

/// By level of aggressiveness: the least gain, and the CPU ceiling.
const AGGRESSIVENESS: [(f64, f64); 5] =
    [(1.0, 0.95), (0.10, 0.9), (0.03, 0.8), (0.02, 0.75), (0.01, 0.7)];

impl PlanOptions {
    /// As eager to level the load as `level` says: 1 makes no move for balance, 3 is the default, 5 takes small gains
    /// and keeps hosts at most 70 % busy.
    ///
    /// # Errors
    /// `InvalidArgument` when the level is not 1 to 5.
    pub fn aggressive(mut self, level: u8) -> Result<Self, Refusal> {
        let row = usize::from(level).checked_sub(1).and_then(|n| AGGRESSIVENESS.get(n));
        let Some((gain_min, cpu_ceiling)) = row else {
            return Err(Refusal::new(
                RefusalCode::InvalidArgument,
                format!("the aggressiveness is {level}"),
                "use an aggressiveness of 1 to 5",
            ));
        };
        self.gain_min = Ratio::new(*gain_min);
        self.cpu_ceiling = Ratio::new(*cpu_ceiling);
        self.causes.balance &= level > 1;
        Ok(self)
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field.
    pub fn validate(&self) -> Result<(), Refusal> {
        let invalid = |reason: String, remedy: &str| {
            Err(Refusal::new(RefusalCode::InvalidArgument, reason, remedy))
        };
        if !(1..=STEPS_MAX).contains(&self.steps_max) {
            return invalid(
                format!("a plan of at most {} steps is asked for", self.steps_max),
                "use a steps_max of 1 to 50000",
            );
        }
        if self.bytes_max == Some(Bytes::ZERO) {
            return invalid(
                "a plan that sends no bytes is asked for".to_owned(),
                "use a bytes_max of more than zero, or none",
            );
        }
        if self.time_max == Some(Duration::ZERO) {
            return invalid(
                "a plan that takes no time is asked for".to_owned(),
                "use a time_max of more than zero, or none",
            );
        }
        if !(0.001..=1.0).contains(&self.gain_min.get()) {
            return invalid(
                format!("the least gain is {}", self.gain_min.get()),
                "use a gain_min of 0.001 to 1.0",
            );
        }
        if !(0.05..=4.0).contains(&self.cpu_ceiling.get()) {
            return invalid(
                format!("the CPU ceiling is {}", self.cpu_ceiling.get()),
                "use a cpu_ceiling of 0.05 to 4.0 of a host's capacity",
            );
        }
        if self.host_moves_max == 0 {
            return invalid(
                "a host is to take part in no migration at a time".to_owned(),
                "use a host_moves_max of at least 1",
            );
        }
        Ok(())
    }

    /// Whether a plan may have so many steps that cost so much.
    pub(crate) fn affords(&self, steps: usize, cost: StepCost) -> bool {
        steps <= self.steps_max
            && self.bytes_max.is_none_or(|most| cost.bytes <= most)
            && self.time_max.is_none_or(|most| cost.duration <= most)
    }

    /// The share of the budget that a step takes: steps, bytes and time, each as a share of what there is of it.
    pub(crate) fn budget_share(&self, cost: StepCost) -> f64 {
        let bytes = self.bytes_max.map_or(0.0, |most| cost.bytes.get() as f64 / most.get() as f64);
        let time =
            self.time_max.map_or(0.0, |most| cost.duration.as_secs_f64() / most.as_secs_f64());
        1.0 / self.steps_max as f64 + bytes + time
    }

    /// The budget in words, e.g. `1000 steps` or `1000 steps, 64.0 GiB`.
    pub(crate) fn budget(&self) -> String {
        let plural = if self.steps_max == 1 { "" } else { "s" };
        let steps = Some(format!("{} step{plural}", self.steps_max));
        let bytes = self.bytes_max.map(|most| most.to_string());
        let time = self.time_max.map(|most| format!("{} s", most.as_secs_f64()));
        [steps, bytes, time].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// The least fall of the sum of squared deviations that makes a balance move worth it.
    pub(crate) fn gain_floor(&self) -> f64 {
        self.gain_min.get() * self.gain_min.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_aggressiveness_is_the_default() {
        let default = PlanOptions::default();
        assert_eq!(default.aggressive(3).unwrap(), default);
        assert!(!default.aggressive(1).unwrap().causes.balance);
        assert!(default.aggressive(6).is_err());
        for level in 1..=5 {
            default.aggressive(level).unwrap().validate().unwrap();
        }
    }

    #[test]
    fn a_step_takes_its_share_of_everything_that_is_bounded() {
        let cost = StepCost { bytes: Bytes::gib(2), duration: Duration::from_secs(30) };
        let steps = PlanOptions { steps_max: 4, ..PlanOptions::default() };
        assert_eq!((steps.budget_share(cost), steps.budget()), (0.25, "4 steps".to_owned()));
        let time_max = Some(Duration::from_secs(60));
        let all = PlanOptions { bytes_max: Some(Bytes::gib(8)), time_max, ..steps };
        assert_eq!(all.budget_share(cost), 1.0);
        assert!(all.affords(2, cost + cost) && !all.affords(2, cost + cost + cost));
        assert!(!all.affords(5, cost));
    }

    #[test]
    fn out_of_range_options_name_the_field() {
        PlanOptions::default().validate().unwrap();
        let bad = [
            (PlanOptions { steps_max: 0, ..Default::default() }, "steps_max"),
            (PlanOptions { bytes_max: Some(Bytes(0)), ..Default::default() }, "bytes_max"),
            (PlanOptions { time_max: Some(Duration::ZERO), ..Default::default() }, "time_max"),
            (PlanOptions { gain_min: Ratio::ZERO, ..Default::default() }, "gain_min"),
            (PlanOptions { cpu_ceiling: Ratio::new(9.0), ..Default::default() }, "cpu_ceiling"),
            (PlanOptions { host_moves_max: 0, ..Default::default() }, "host_moves_max"),
        ];
        for (options, field) in bad {
            assert!(options.validate().unwrap_err().remedy.contains(field));
        }
    }
}
