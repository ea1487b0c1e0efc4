//! Inputs of any content: refused with a reason, or answered.
//!
//! An input is one that is well formed with some values changed for extreme,
//! foreign or missing ones, or with some bytes changed. Whatever it is, reading it
//! and working on it ends, without a panic and without the planner finding fault
//! with its own plan. Every input follows from its number: a failure names it, and
//! `FUZZ_FIRST=number` begins there.
//!
//! The ordinary tests run some hundred inputs of each kind; `make fuzz` runs
//! [`campaign`], all kinds in turn, for `FUZZ_MINUTES` minutes.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a test fails by panicking

mod snapshot;
mod text;

use std::path::Path;
use std::time::{Duration, Instant};

use ballast_placement::core::Rng;

/// How often a campaign says how far it is.
const PROGRESS: Duration = Duration::from_secs(60);

/// What inputs are made of.
struct Seeds {
    snapshots: Vec<serde_json::Value>,
    scenarios: Vec<String>,
}

impl Seeds {
    fn new() -> Self {
        Self { snapshots: snapshot::seeds(), scenarios: scenario_texts() }
    }
}

/// The kinds of inputs.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Snapshot,
    Scenario,
    Instance,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Snapshot, Self::Scenario, Self::Instance];

    fn input(self, seeds: &Seeds, number: u64) -> Vec<u8> {
        let random = &mut Rng::new(number);
        match self {
            Self::Snapshot => snapshot::input(&seeds.snapshots, number),
            Self::Scenario => {
                let texts = &seeds.scenarios;
                let [text, other] = [0; 2].map(|_| &texts[random.below(texts.len())]);
                text::input(text, other, random)
            }
            Self::Instance => text::instance(random),
        }
    }

    /// Whether the input was understood.
    fn run(self, input: &[u8]) -> bool {
        match self {
            Self::Snapshot => snapshot::run(input),
            Self::Scenario => text::run_scenario(input),
            Self::Instance => text::run_instance(input),
        }
    }

    fn run_number(self, seeds: &Seeds, number: u64) -> bool {
        let input = self.input(seeds, number);
        let outcome = std::panic::catch_unwind(|| self.run(&input));
        let Ok(is_understood) = outcome else {
            let path = std::env::temp_dir().join(format!("ballast-fuzz-{self:?}-{number}"));
            std::fs::write(&path, &input).unwrap();
            panic!("{self:?} {number} fails: {}", path.display());
        };
        is_understood
    }

    /// Runs the first inputs; some are understood and some are not.
    fn check(self) {
        const INPUTS: u64 = 300;
        let seeds = Seeds::new();
        let understood = (0..INPUTS).filter(|number| self.run_number(&seeds, *number)).count();
        assert!((30..290).contains(&understood), "{understood} of {INPUTS} were understood");
    }
}

/// The texts of the scenarios.
fn scenario_texts() -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

/// Changes some bytes.
fn scratch(text: &mut Vec<u8>, random: &mut Rng) {
    let at = random.below(text.len().max(1));
    let some = random.below((text.len() - at).clamp(1, 32));
    match random.below(3) {
        0 if at < text.len() => text[at] ^= 1 << random.below(8),
        1 => drop(text.drain(at..at + some)),
        _ => {
            let copy = text[at..at + some].to_vec();
            let to = random.below(text.len().max(1));
            text.splice(to..to, copy);
        }
    }
}

#[test]
fn snapshots_of_any_content_are_refused_or_planned() {
    Kind::Snapshot.check();
}

#[test]
fn scenarios_of_any_content_are_refused_or_answered() {
    Kind::Scenario.check();
}

#[test]
fn instances_of_any_content_are_refused_or_weighed() {
    Kind::Instance.check();
}

#[test]
#[ignore = "runs for FUZZ_MINUTES minutes"]
fn campaign() {
    let seeds = Seeds::new();
    let of = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let time = Duration::from_secs(60 * of("FUZZ_MINUTES").unwrap_or(10));
    let (first, begin) = (of("FUZZ_FIRST").unwrap_or(0_u64), Instant::now());
    let (mut number, mut understood, mut told) = (first, [0_u64; Kind::ALL.len()], Instant::now());
    while begin.elapsed() < time {
        for (kind, understood) in Kind::ALL.into_iter().zip(&mut understood) {
            *understood += u64::from(kind.run_number(&seeds, number));
        }
        number += 1;
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            eprintln!(
                "{} inputs of each of {:?}, understood {understood:?}",
                number - first,
                Kind::ALL
            );
        }
    }
    eprintln!(
        "nothing found with {} inputs of each of {:?}, understood {understood:?}",
        number - first,
        Kind::ALL
    );
}
