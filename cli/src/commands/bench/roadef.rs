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
}

pub(super) fn run(args: &RoadefArgs) -> Result<(), Refusal> {
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
    let line = Line {
        initial: narrow(initial_cost)?,
        cost: narrow(cost)?,
        seconds: (clock() * 1000.0).round() / 1000.0,
        seed: args.seed,
        evaluations_per_second: per_second(found.evaluations, searched),
    };
    output::print_bytes((to_json(&line)? + "\n").as_bytes())
}

fn options(args: &RoadefArgs) -> SearchOptions {
    let threads =
        args.threads.map_or_else(|| available_parallelism().map_or(1, Into::into), usize::from);
    SearchOptions { seed: args.seed, threads, ..SearchOptions::default() }
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
