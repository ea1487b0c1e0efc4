//! `ballast bench shadow`: recorded days replayed under the balancer.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ballast_model::{Refusal, RefusalCode};
use ballast_placement::PlanOptions;
use ballast_placement::shadow::{self, Options, Report, trace};
use serde::Serialize;

use super::input;
use crate::args::ShadowArgs;
use crate::output;

/// The most recordings of a directory.
const RECORDINGS_MAX: usize = 1_000;

/// One recording, one line of JSON.
#[derive(Debug, Serialize)]
struct Line<'a> {
    bench: &'static str,
    recording: &'a str,
    seconds: f64,
    #[serde(flatten)]
    report: Report,
}

pub(super) fn run(args: &ShadowArgs) -> Result<(), Refusal> {
    let plan = PlanOptions { steps_max: args.moves, ..PlanOptions::default() };
    let options = Options {
        vms_per_host: args.vms_per_host,
        every: args.every,
        plan: plan.aggressive(args.aggressiveness)?,
        seed: args.seed,
        ..Options::default()
    };
    for path in recordings(&args.path)? {
        let text = input::read_text(&path)?;
        let traces = input::in_file(&path, trace::parse(&text))?;
        let begin = Instant::now();
        let report = input::in_file(&path, shadow::replay(&traces, &options))?;
        let seconds = (begin.elapsed().as_secs_f64() * 100.0).round() / 100.0;
        let recording = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let line = Line { bench: "shadow", recording, seconds, report };
        output::print(&format!("{}\n", output::json_line(&line)?))?;
    }
    Ok(())
}

/// The file, or the recordings of the directory in order of names.
fn recordings(path: &Path) -> Result<Vec<PathBuf>, Refusal> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let cannot = |error: std::io::Error| input::invalid(path, &error.to_string());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(cannot)? {
        let file = entry.map_err(cannot)?.path();
        let name = file.to_string_lossy();
        if name.ends_with(".csv") || name.ends_with(".csv.xz") {
            found.push(file);
        }
    }
    if found.is_empty() || found.len() > RECORDINGS_MAX {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("{} holds {} recordings", path.display(), found.len()),
            "name a directory with 1 to 1000 files .csv or .csv.xz",
        ));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(path: &Path) -> ShadowArgs {
        ShadowArgs {
            path: path.to_owned(),
            vms_per_host: 2,
            every: 3,
            moves: 20,
            aggressiveness: 3,
            seed: 1,
        }
    }

    #[test]
    fn recordings_of_a_directory_are_replayed_in_order_of_names() {
        let dir = tempfile::tempdir().unwrap();
        let day = |first: u32| -> String {
            let line = |vm: u32| {
                let percent = (0..24).map(|n| ((first + vm * 13 + n * 7) % 100).to_string());
                format!("vm{vm},{}\n", percent.collect::<Vec<_>>().join(","))
            };
            (0..6).map(line).collect()
        };
        for (name, text) in [("b.csv", day(5)), ("a.csv", day(40)), ("notes.txt", "x".to_owned())] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let found = recordings(dir.path()).unwrap();
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()).collect();
        assert_eq!(names, ["a.csv", "b.csv"]);
        run(&args(dir.path())).unwrap();
    }

    #[test]
    fn a_recording_that_cannot_be_read_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        assert!(recordings(dir.path()).unwrap_err().reason.contains("holds 0 recordings"));
        let path = dir.path().join("a.csv");
        std::fs::write(&path, "vm0,1,2,3\nvm1,1,two,3\n").unwrap();
        let reason = run(&args(&path)).unwrap_err().reason;
        assert!(reason.contains("a.csv: line 2"), "{reason}");
    }
}
