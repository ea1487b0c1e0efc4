//! What a caller may ask of the planner.

use ballast_model::{Ratio, Refusal, RefusalCode};

/// The most steps a plan may have, whatever the options say.
pub const STEPS_MAX: usize = 50_000;

/// Which causes a plan may act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Causes {
    /// Mend broken rules, hard ones and preferences.
    pub rules: bool,
    /// Bring hosts back under their memory capacity.
    pub capacity: bool,
    /// Empty hosts that are draining.
    pub drain: bool,
    /// Level the load.
    pub balance: bool,
}

impl Causes {
    /// Every cause.
    pub const ALL: Self = Self { rules: true, capacity: true, drain: true, balance: true };
    /// Only what must be: no balancing.
    pub const FORCED: Self = Self { balance: false, ..Self::ALL };
}

/// How to plan. The default suits a pool that is looked at every minute or so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlanOptions {
    /// What may move VMs. Default: everything.
    pub causes: Causes,
    /// The seed of random choices. The same snapshot, options and seed give the same plan; with another seed the search
    /// may find another one. Default: 0.
    pub seed: u64,
    /// The most steps in one plan, at most [`STEPS_MAX`]. What is cut off comes with a later plan. Default: 1000.
    pub steps_max: usize,
    /// The least a balance move must be worth, as a share of a host: a move is worth `gain_min` when it levels as much
    /// as bringing one host that is off the mean load by that share back to the mean. It does not depend on the
    /// number of hosts. Default: 3 %.
    pub gain_min: Ratio,
    /// The share of its CPU capacity a target may reach by a move for balance or for a preference. Moves that must be
    /// (a drain, a hard rule, memory) prefer targets below it, then targets below their full capacity, and only then
    /// overload one: a slower guest is better than a host that cannot be emptied. Default: 80 %.
    pub cpu_ceiling: Ratio,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            causes: Causes::ALL,
            seed: 0,
            steps_max: 1000,
            gain_min: Ratio::new(0.03),
            cpu_ceiling: Ratio::new(0.8),
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
        Ok(())
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
    fn out_of_range_options_name_the_field() {
        PlanOptions::default().validate().unwrap();
        let bad = [
            (PlanOptions { steps_max: 0, ..Default::default() }, "steps_max"),
            (PlanOptions { gain_min: Ratio::ZERO, ..Default::default() }, "gain_min"),
            (PlanOptions { cpu_ceiling: Ratio::new(9.0), ..Default::default() }, "cpu_ceiling"),
        ];
        for (options, field) in bad {
            assert!(options.validate().unwrap_err().remedy.contains(field));
        }
    }
}
