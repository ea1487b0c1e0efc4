//! Tiny clusters as snapshot files, each with the rendered plan beside it.
//!
//! `tests/data/<name>.json` is a snapshot, `<name>.txt` what is expected: a
//! first line that says what the case shows, then the plan and every verdict.
//! `UPDATE=1 cargo test -p ballast-placement --test golden` rewrites all but the first line.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by panicking

use std::fmt::Write;
use std::path::{Path, PathBuf};

use ballast_model::plan::StepCause;
use ballast_model::{ClusterSnapshot, Planning, Verdict};
use ballast_placement::{PlanOptions, plan};

fn render(planning: &Planning) -> String {
    let mut text = String::new();
    let plan = &planning.plan;
    writeln!(text, "imbalance {} -> {}", plan.imbalance_before, plan.imbalance_after).unwrap();
    for (n, step) in plan.steps.iter().enumerate() {
        let cause = match &step.cause {
            StepCause::Drain => "drain".to_owned(),
            StepCause::Rule { rule } => format!("rule {rule}"),
            StepCause::Needs => "needs".to_owned(),
            StepCause::Capacity => "capacity".to_owned(),
            StepCause::Balance => "balance".to_owned(),
        };
        writeln!(
            text,
            "step {n}: {} {} -> {} ({cause}), after {:?}, gain {:.4}, {} in {:?}",
            step.vm, step.from, step.to, step.after, step.gain, step.cost.bytes, step.cost.duration
        )
        .unwrap();
    }
    for (vm, verdict) in &planning.verdicts {
        match verdict {
            Verdict::Moves { step, reason } => {
                writeln!(text, "{vm} moves in step {step}: {reason}")
            }
            Verdict::Stays { reason, .. } => writeln!(text, "{vm} stays: {reason}"),
            Verdict::Stuck { reason, remedy, .. } => {
                writeln!(text, "{vm} is stuck: {reason}\n    remedy: {remedy}")
            }
        }
        .unwrap();
    }
    text
}

fn cases() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    cases.sort();
    cases
}

#[test]
fn plans_for_tiny_clusters_read_as_expected() {
    let cases = cases();
    assert!(cases.len() >= 8, "the cases are missing");
    let mut wrong = Vec::new();
    for snapshot_file in cases {
        let expected_file = snapshot_file.with_extension("txt");
        let snapshot = ClusterSnapshot::read_file(&snapshot_file).unwrap();
        let rendered = render(&plan(&snapshot, &PlanOptions::default()).unwrap());
        let expected = std::fs::read_to_string(&expected_file).unwrap();
        let (title, body) = expected.split_once('\n').unwrap();
        assert!(!title.is_empty(), "{} has no first line", expected_file.display());
        if body == rendered {
            continue;
        }
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&expected_file, format!("{title}\n{rendered}")).unwrap();
        } else {
            wrong.push(format!("{} ({title}): got\n{rendered}", expected_file.display()));
        }
    }
    assert!(wrong.is_empty(), "set UPDATE=1 to accept:\n{}", wrong.join("\n"));
}
