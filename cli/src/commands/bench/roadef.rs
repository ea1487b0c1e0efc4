//! `ballast bench roadef`.

use std::path::Path;
use std::thread::available_parallelism;
use std::time::Instant;

use ballast_model::{Refusal, RefusalCode};
use ballast_placement::core::{Budget, Found, SearchOptions, search};
use ballast_placement::roadef::{self, checker};
use serde::Serialize;

use super::input;
use crate::args::RoadefArgs;
use crate::output;

/// Time left at the end for what is not measured: writing, printing, ending the process.
const MARGIN_SECONDS: f64 = 0.02;

/// The result, one line of JSON.
#[derive(Debug, Serialize)]
struct Line {
    initial: i64,
    cost: i64,
    seconds: f64,
    seed: u64,
    evaluations_per_second: u64,
    /// Processes that moved, where their number is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    moves: Option<usize>,
}

pub(super) fn run(args: &RoadefArgs) -> Result<(), Refusal> {
    output::print_bytes((to_json(&solved(args)?)? + "\n").as_bytes())
}

fn solved(args: &RoadefArgs) -> Result<Line, Refusal> {
    let start = Instant::now();
    let clock = move || start.elapsed().as_secs_f64();
    let model_text = input::read_text(&args.model)?;
    let initial_text = input::read_text(&args.assignment)?;
    let model = input::in_file(&args.model, roadef::parse_model(&model_text))?;
    let initial =
        input::in_file(&args.assignment, roadef::parse_assignment(&initial_text, &model))?;
    let problem = input::in_file(&args.model, roadef::problem(&model, &initial))?;

    let check_start = clock();
    let initial_cost = checker::check(&model_text, &initial_text, &initial_text)?;
    let searching = clock();
    // The check at the end takes as long as this one did.
    let end = args.seconds - MARGIN_SECONDS - 1.5 * (searching - check_start);
    let found = search(&problem, &options(args), &Budget::until(&clock, end));
    let searched = clock() - searching;

    let assignment = roadef::write_assignment(&found.assignment);
    let cost = checker::check(&model_text, &initial_text, &assignment)?;
    agree(cost, &found)?;
    if let Some(out) = &args.out {
        std::fs::write(out, &assignment).map_err(|error| io(out, &error))?;
    }
    Ok(Line {
        initial: narrow(initial_cost)?,
        cost: narrow(cost)?,
        seconds: (clock() * 1000.0).round() / 1000.0,
        seed: args.seed,
        evaluations_per_second: per_second(found.evaluations, searched),
        moves: args.moves.map(|_| found.moves.len()),
    })
}

fn options(args: &RoadefArgs) -> SearchOptions {
    let threads =
        args.threads.map_or_else(|| available_parallelism().map_or(1, Into::into), usize::from);
    SearchOptions { seed: args.seed, threads, moves_max: args.moves, ..SearchOptions::default() }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rate of evaluations is far below 2^64
fn per_second(evaluations: u64, seconds: f64) -> u64 {
    (evaluations as f64 / seconds.max(1e-9)) as u64
}

/// The solver's own idea of the cost must be the checker's.
fn agree(cost: i128, found: &Found) -> Result<(), Refusal> {
    let own = i128::from(found.objective.score.soft[0]);
    if found.objective.score.hard == 0 && own == cost {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::Internal,
        format!("the solver counts {own}, the checker {cost}"),
        "report the defect with the instance",
    ))
}

fn to_json(line: &Line) -> Result<String, Refusal> {
    serde_json::to_string(line).map_err(|error| {
        Refusal::new(
            RefusalCode::Internal,
            format!("the result is no JSON: {error}"),
            "report the defect",
        )
    })
}

fn narrow(cost: i128) -> Result<i64, Refusal> {
    i64::try_from(cost).map_err(|_| {
        Refusal::new(
            RefusalCode::InvalidArgument,
            format!("the cost {cost} leaves 64 bits"),
            "use smaller weights",
        )
    })
}

fn io(path: &Path, error: &std::io::Error) -> Refusal {
    Refusal::new(
        RefusalCode::InvalidArgument,
        format!("{}: {error}", path.display()),
        "name a file that can be read and written",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two machines with 100 of one resource, 50 of it safe; two processes of 40 on the first.
    const MODEL: &str =
        "1\n0 10\n2\n0 0 100 50 0 1\n0 1 100 50 1 0\n2\n0 0\n0 0\n2\n0 40 3\n1 40 2\n0\n1 1 1\n";

    fn run_on(model: (&str, &[u8]), assignment: &str) -> Result<(Line, String), Refusal> {
        run_with(model, assignment, None)
    }

    fn run_with(
        model: (&str, &[u8]),
        assignment: &str,
        moves: Option<u32>,
    ) -> Result<(Line, String), Refusal> {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.txt");
        let args = RoadefArgs {
            model: dir.path().join(model.0),
            assignment: dir.path().join("initial.txt"),
            seconds: 0.2,
            seed: 1,
            threads: Some(1),
            moves,
            out: Some(out.clone()),
        };
        std::fs::write(&args.model, model.1).unwrap();
        std::fs::write(&args.assignment, assignment).unwrap();
        let line = solved(&args)?;
        Ok((line, std::fs::read_to_string(out).unwrap()))
    }

    fn check(line: &Line, written: &str) {
        // 30 beyond what is safe at 10 each; the cheaper process moves for 2 + 1 (service) + 1 (machine).
        assert_eq!((line.initial, line.cost), (300, 4));
        assert_eq!(written, "0 1\n");
    }

    #[test]
    fn a_small_instance_is_solved_and_written() {
        let (line, written) = run_on(("model.txt", MODEL.as_bytes()), "0 0\n").unwrap();
        check(&line, &written);
    }

    #[test]
    fn no_more_processes_move_than_may() {
        // Three of 40 pile up; one more away is worth 10 · 40.
        let crowded = MODEL
            .replace("0 0 100 50 0 1\n0 1 100 50 1 0", "0 0 200 50 0 1\n0 1 200 50 1 0")
            .replace(
                "2\n0 0\n0 0\n2\n0 40 3\n1 40 2",
                "3\n0 0\n0 0\n0 0\n3\n0 40 3\n1 40 2\n2 40 2",
            );
        let model = ("model.txt", crowded.as_bytes());
        let (free, _) = run_with(model, "0 0 0\n", None).unwrap();
        let (none, written) = run_with(model, "0 0 0\n", Some(0)).unwrap();
        let (one, _) = run_with(model, "0 0 0\n", Some(1)).unwrap();
        assert_eq!((none.cost, none.moves, written.as_str()), (none.initial, Some(0), "0 0 0\n"));
        assert_eq!((one.cost, one.moves), (304, Some(1)));
        assert_eq!((free.cost, free.moves), (one.cost, None));
    }

    #[test]
    fn files_may_be_compressed() {
        let mut packed = Vec::new();
        lzma_rs::xz_compress(&mut MODEL.as_bytes(), &mut packed).unwrap();
        let (line, written) = run_on(("model.xz", &packed), "0 0\n").unwrap();
        check(&line, &written);
        let reason = run_on(("model.xz", &packed[..20]), "0 0").unwrap_err().reason;
        assert!(reason.contains("model.xz: it does not decompress"), "{reason}");
    }

    #[test]
    fn what_is_wrong_is_named_with_file_and_line() {
        let refused = |model: &str, assignment: &str, expected: &str| {
            let reason = run_on(("model.txt", model.as_bytes()), assignment).unwrap_err().reason;
            assert!(reason.contains(expected), "{reason}");
        };
        refused("1\n2 10", "0", "model.txt: line 2: the transient flag is 2");
        refused(MODEL, "0 7", "initial.txt: line 1: the machine of a process is 7");
        refused(MODEL, "0", "initial.txt: line 1: the text ends");
        let full = MODEL.replace("1 40 2", "1 70 2");
        refused(&full, "0 0", "machine 0 holds 110 of resource 0 and has 100");
    }
}
