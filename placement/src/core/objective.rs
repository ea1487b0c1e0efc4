//! What is better: hard violations first, then levels in priority order, each a
//! weighted sum of terms. The table of terms is here and nowhere else.
//!
//! Scores are integers, so that a score kept up to date move by move equals the
//! one computed from scratch. The builder proves that no level can leave `i64`.

use std::fmt;

/// Levels a problem may use below the hard one.
pub const LEVELS_MAX: usize = 6;

/// What utilisation 1.0 is in the fixed-point numbers of the imbalance term.
pub const UTILISATION_ONE: i64 = 1 << 16;

/// A deviation of utilisation is cut off here: 64 times the capacity of a host.
pub(crate) const DEVIATION_MAX: i64 = UTILISATION_ONE * 64;

/// What one broken hard rule counts in [`Score::hard`].
pub const HARD_UNIT: i64 = 1 << 10;

/// What an item without a host counts in [`Score::hard`].
pub const HARD_UNPLACED: i64 = HARD_UNIT << 6;

/// The most one host over capacity counts in [`Score::hard`], per resource.
pub(crate) const HARD_OVERLOAD_MAX: i64 = HARD_UNIT << 10;

/// A term of the objective. The order is that of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Term {
    /// Soft rules over groups and preferred hosts: weight of the rule times how far it is broken.
    SoftRules,
    /// Demand above the capacity of a host, per resource: nobody gets this.
    Unmet,
    /// Use above the safety level of a host, per resource.
    Safety,
    /// `max(0, target · free(r1) − free(r2))` per host.
    Balance,
    /// Squared deviation of a host's utilisation from that of the cluster, per resource; the unit is
    /// [`UTILISATION_ONE`] squared.
    Imbalance,
    /// What is free on a host modulo the unit of the resource: too small to be of use.
    Fragments,
    /// Hosts that hold at least one item, weighted by host.
    HostsInUse,
    /// Cost of moving each item that is not at home.
    ItemMoves,
    /// The largest number of moved items in any one move group.
    GroupMoves,
    /// Cost of the way from home to where the item is.
    HostMoves,
}

impl Term {
    /// Every term in the order of the table.
    pub const ALL: [Self; 10] = [
        Self::SoftRules,
        Self::Unmet,
        Self::Safety,
        Self::Balance,
        Self::Imbalance,
        Self::Fragments,
        Self::HostsInUse,
        Self::ItemMoves,
        Self::GroupMoves,
        Self::HostMoves,
    ];

    /// The name for tables, in snake case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SoftRules => "soft_rules",
            Self::Unmet => "unmet",
            Self::Safety => "safety",
            Self::Balance => "balance",
            Self::Imbalance => "imbalance",
            Self::Fragments => "fragments",
            Self::HostsInUse => "hosts_in_use",
            Self::ItemMoves => "item_moves",
            Self::GroupMoves => "group_moves",
            Self::HostMoves => "host_moves",
        }
    }

    const fn ix(self) -> usize {
        self as usize
    }
}

/// Level and weight of every term: level 0 comes first, and a lower level is
/// only looked at where all before it are equal. A weight of 0 switches a term off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectiveTable {
    rows: [(u8, i64); Term::ALL.len()],
}

impl ObjectiveTable {
    /// The priorities of a cluster: soft rules, unmet demand, load over safety, then level load
    /// against the cost of moves as one sum.
    pub fn cluster() -> Self {
        Self::off()
            .with(Term::SoftRules, 0, 1)
            .with(Term::Unmet, 1, 1)
            .with(Term::Safety, 2, 1)
            .with(Term::Balance, 3, 1)
            .with(Term::Imbalance, 3, 1)
            .with(Term::Fragments, 3, 1)
            .with(Term::ItemMoves, 3, 1)
            .with(Term::GroupMoves, 3, 1)
            .with(Term::HostMoves, 3, 1)
    }

    /// As [`cluster`](Self::cluster), with as few hosts in use as possible before level load.
    pub fn consolidate() -> Self {
        Self::cluster()
            .with(Term::HostsInUse, 3, 1)
            .with(Term::Balance, 4, 1)
            .with(Term::Imbalance, 4, 1)
            .with(Term::Fragments, 4, 1)
            .with(Term::ItemMoves, 4, 1)
            .with(Term::GroupMoves, 4, 1)
            .with(Term::HostMoves, 4, 1)
    }

    /// One weighted sum of everything, as in the machine reassignment problem.
    pub fn one_sum() -> Self {
        Term::ALL.into_iter().fold(Self::off(), |table, term| table.with(term, 0, 1))
    }

    /// Every term off.
    pub fn off() -> Self {
        Self { rows: [(0, 0); Term::ALL.len()] }
    }

    /// The table with another level and weight for one term.
    #[must_use]
    pub fn with(mut self, term: Term, level: u8, weight: i64) -> Self {
        self.rows[term.ix()] = (level, weight);
        self
    }

    /// The level of a term, 0 first.
    pub fn level(&self, term: Term) -> u8 {
        self.rows[term.ix()].0
    }

    /// The weight of a term.
    pub fn weight(&self, term: Term) -> i64 {
        self.rows[term.ix()].1
    }
}

/// How good an assignment is. Smaller is better; compared field by field, so
/// that no soft gain ever pays for a hard violation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Score<const L: usize = LEVELS_MAX> {
    /// Hard violations: [`HARD_UNPLACED`] an unplaced item, [`HARD_UNIT`] a broken rule, and for
    /// a host over capacity [`HARD_UNIT`] times the excess relative to it.
    pub hard: i64,
    /// The levels in priority order.
    pub soft: [i64; L],
}

impl<const L: usize> fmt::Debug for Score<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:?}", self.hard, self.soft)
    }
}

impl<const L: usize> Default for Score<L> {
    fn default() -> Self {
        Self::ZERO
    }
}

impl<const L: usize> Score<L> {
    /// Nothing to pay.
    pub const ZERO: Self = Self { hard: 0, soft: [0; L] };

    /// Adds to one level. With one level in use, every term is in it.
    #[inline]
    pub(crate) fn add(&mut self, level: u8, amount: i64) {
        if L == 1 {
            self.soft[0] += amount;
        } else {
            self.soft[level as usize % L] += amount;
        }
    }

    /// Whether it is a gain, as a difference.
    #[inline]
    pub fn is_gain(&self) -> bool {
        *self < Self::ZERO
    }

    /// The same score in the form every problem shares.
    pub fn widen(&self) -> Score {
        let mut soft = [0; LEVELS_MAX];
        soft[..L].copy_from_slice(&self.soft);
        Score { hard: self.hard, soft }
    }

    /// The first difference in priority order: its level (`None`: hard) and amount.
    #[inline]
    pub fn leading(&self) -> (Option<usize>, i64) {
        if self.hard != 0 {
            return (None, self.hard);
        }
        let level = self.soft.iter().position(|amount| *amount != 0).unwrap_or(L - 1);
        (Some(level), self.soft[level])
    }
}

impl<const L: usize> std::ops::AddAssign for Score<L> {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        self.hard += other.hard;
        for (mine, theirs) in self.soft.iter_mut().zip(other.soft) {
            *mine += theirs;
        }
    }
}

impl<const L: usize> std::ops::SubAssign for Score<L> {
    #[inline]
    fn sub_assign(&mut self, other: Self) {
        self.hard -= other.hard;
        for (mine, theirs) in self.soft.iter_mut().zip(other.soft) {
            *mine -= theirs;
        }
    }
}

impl<const L: usize> std::ops::Add for Score<L> {
    type Output = Self;
    #[inline]
    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl<const L: usize> std::ops::Sub for Score<L> {
    type Output = Self;
    #[inline]
    fn sub(mut self, other: Self) -> Self {
        self -= other;
        self
    }
}

impl<const L: usize> std::ops::Neg for Score<L> {
    type Output = Self;
    #[inline]
    fn neg(self) -> Self {
        Self::ZERO - self
    }
}

/// A score with what makes it up, for people and reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objective {
    /// The score.
    pub score: Score,
    /// Each term's part, weighted, in the order of [`Term::ALL`].
    pub terms: [i64; Term::ALL.len()],
    /// Items without a host.
    pub unplaced: u32,
    /// Items not at home.
    pub moved: u32,
    /// Bytes the moved items carry.
    pub moved_bytes: u64,
}

impl Objective {
    /// One term's part, weighted.
    pub fn term(&self, term: Term) -> i64 {
        self.terms[term.ix()]
    }

    pub(crate) fn add(&mut self, term: Term, level: u8, amount: i64) {
        self.terms[term.ix()] += amount;
        self.score.add(level, amount);
    }
}
