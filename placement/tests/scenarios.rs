//! The text scenarios of `placement/scenarios`: each file says what it shows, and what the planner answers.
//! `UPDATE=1 cargo nextest run -p ballast-placement --test scenarios` rewrites what they expect.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::path::{Path, PathBuf};

use ballast_placement::scenario::{answer, parse};

/// Fewer files than this means that the directory was not found whole.
const SCENARIOS_MIN: usize = 60;

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    files
}

#[test]
fn every_scenario_is_answered_as_it_expects() {
    let files = files();
    assert!(files.len() >= SCENARIOS_MIN, "{} scenarios", files.len());
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let scenario = match parse(&text) {
            Ok(scenario) => scenario,
            Err(refusal) => {
                wrong.push(format!("{name}: {refusal}"));
                continue;
            }
        };
        if scenario.title.is_empty() {
            wrong.push(format!("{name} does not say what it shows"));
        }
        let answer = answer(&scenario);
        if answer == scenario.expected {
            continue;
        }
        if update {
            std::fs::write(&file, scenario.with_answer(&answer)).unwrap();
        } else {
            wrong.push(format!("{name} ({}): got\n{answer}", scenario.title));
        }
    }
    assert!(wrong.is_empty(), "set UPDATE=1 to accept:\n{}", wrong.join("\n"));
}
