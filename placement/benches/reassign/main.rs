//! Machine reassignment by hand: one line of JSON a run, cost checked by the independent checker.
//!
//! ```text
//! cargo bench -p ballast-placement --bench reassign -- --model M --assignment A [options]
//! cargo bench -p ballast-placement --bench reassign -- --generate MACHINES,PROCESSES,SEED [options]
//!   --seconds S      how long (default 10)      --seed N      (default 1)
//!   --evaluations N  instead of a time          --threads N   (default 1)
//!   --out F          writes the assignment
//! ```
//!
//! Time is processor time divided by the number of threads, so that runs on a
//! busy machine can be compared. Without arguments (`cargo bench`) one small
//! generated instance is solved.

#![allow(clippy::unwrap_used)] // a benchmark fails by panicking
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small positive numbers

mod generate;

use std::collections::HashMap;
use std::time::Instant;

use ballast_placement::core::{Budget, SearchOptions, Term, search};
use ballast_placement::roadef::{self, checker};
use rustix::time::{ClockId, clock_gettime};

fn main() {
    let args = arguments();
    let get = |name: &str| args.get(name).map(String::as_str);
    let number = |name: &str, default: u64| get(name).map_or(default, |v| v.parse().unwrap());
    let (model_text, initial_text) = match (get("model"), get("assignment")) {
        (Some(model), Some(assignment)) => {
            (std::fs::read_to_string(model).unwrap(), std::fs::read_to_string(assignment).unwrap())
        }
        _ => generate::instance(&generate::Size::parse(get("generate").unwrap_or("20,200,1"))),
    };
    let model = roadef::parse_model(&model_text).unwrap();
    let initial = roadef::parse_assignment(&initial_text, &model).unwrap();
    let problem = roadef::problem(&model, &initial).unwrap();
    let threads = number("threads", 1);
    let options = SearchOptions {
        seed: number("seed", 1),
        threads: usize::try_from(threads).unwrap(),
        ..SearchOptions::default()
    };
    let start = processor_seconds();
    let clock = move || (processor_seconds() - start) / threads as f64;
    let seconds: f64 = get("seconds").map_or(10.0, |v| v.parse().unwrap());
    let budget = match get("evaluations") {
        Some(count) => Budget::evaluations(count.parse().unwrap()),
        None => Budget::until(&clock, seconds),
    };
    let wall = Instant::now();
    let found = search(&problem, &options, &budget);
    let searched = clock();
    let out = roadef::write_assignment(&found.assignment);
    let before = checker::check(&model_text, &initial_text, &initial_text).unwrap();
    let cost = checker::check(&model_text, &initial_text, &out).unwrap();
    assert_eq!(cost, i128::from(found.objective.score.soft[0]), "the checker disagrees");
    assert_eq!(found.objective.score.hard, 0);
    if let Some(file) = get("out") {
        std::fs::write(file, &out).unwrap();
    }
    let terms: HashMap<&str, i64> =
        [Term::Safety, Term::Balance, Term::ItemMoves, Term::GroupMoves, Term::HostMoves]
            .iter()
            .map(|term| (term.name(), found.objective.term(*term)))
            .collect();
    println!(
        "{}",
        serde_json::json!({
            "initial": before, "cost": cost, "bound": found.bound.soft[0], "terms": terms,
            "moved": found.moves.len(), "seed": options.seed, "processor_seconds": searched,
            "wall_seconds": wall.elapsed().as_secs_f64(),
            "evaluations_per_second": found.evaluations as f64 / searched / threads as f64,
        })
    );
}

fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn arguments() -> HashMap<String, String> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let mut map = HashMap::new();
    while let Some(name) = args.next() {
        let name = name.strip_prefix("--").unwrap().to_owned();
        map.insert(name, args.next().unwrap());
    }
    map
}
