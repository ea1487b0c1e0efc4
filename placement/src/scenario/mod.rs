//! Text scenarios: a small cluster readable at a glance, a question, and the expected answer.
//!
//! ```text
//! # The smallest VM that relieves a full host moves.
//! host a  8 16G : v-4 0.1 4G, v-6 0.1 6G, v-8 0.1 8G
//! host b  8 16G rack=r2
//! rule apart (should 3): v-4 v-6 apart
//! option no-balance
//! ask plan
//!
//! expect
//! …
//! ```
//!
//! The language is described in `docs/scenarios.md`. [`parse`] reads it, naming
//! the line of what it cannot read; [`answer`] puts the question to the planner
//! and writes the answer the way `expect` has it. Every bug report about a plan
//! can be such a file.

mod answers;
mod parse;
mod question;
mod render;
mod rules;
mod words;

use ballast_model::{ClusterSnapshot, Refusal};

use crate::PlanOptions;

pub use parse::parse;
pub use question::Question;

/// The longest scenario that is read, in bytes.
pub const SCENARIO_BYTES_MAX: usize = 1 << 20;

/// A cluster, how to plan for it, a question, and the expected answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// What it shows, from the comment it begins with.
    pub title: String,
    /// The cluster.
    pub snapshot: ClusterSnapshot,
    /// How to plan.
    pub options: PlanOptions,
    /// What is asked, in order; a plan when the file asks nothing.
    pub questions: Vec<Question>,
    /// The text after `expect`.
    pub expected: String,
    /// The text before it, for rewriting the file.
    pub source: String,
}

/// Asks the planner what the scenario asks, and writes the answers.
pub fn answer(scenario: &Scenario) -> String {
    let answers = scenario.questions.iter().map(|question| answers::answer(scenario, question));
    answers.collect::<Vec<String>>().join("\n")
}

impl Scenario {
    /// The file with `answer` as what it expects.
    pub fn with_answer(&self, answer: &str) -> String {
        format!("{}expect\n{answer}", self.source)
    }
}

/// Reads a scenario.
///
/// # Errors
/// `InvalidArgument` naming the line and what is wrong there.
impl std::str::FromStr for Scenario {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        parse(text)
    }
}
