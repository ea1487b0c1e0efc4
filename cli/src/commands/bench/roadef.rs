//! `ballast bench roadef`.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::thread::available_parallelism;
use std::time::Instant;

use ballast_model::{Refusal, RefusalCode};
use ballast_placement::core::{Budget, Found, SearchOptions, search};
use ballast_placement::roadef::{self, checker};
use serde::Serialize;

use crate::args::RoadefArgs;
use crate::output;

/// The largest file read, decompressed.
const FILE_MAX_BYTES: u64 = 1 << 30;

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
    let model_text = read(&args.model)?;
    let initial_text = read(&args.assignment)?;
    let model = in_file(&args.model, roadef::parse_model(&model_text))?;
    let initial = in_file(&args.assignment, roadef::parse_assignment(&initial_text, &model))?;
    let problem = in_file(&args.model, roadef::problem(&model, &initial))?;

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

/// A file's text, decompressed if its name ends in `.xz`.
fn read(path: &Path) -> Result<String, Refusal> {
    let file = File::open(path).map_err(|error| io(path, &error))?;
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|extension| extension == "xz") {
        let mut reader = BufReader::new(file.take(FILE_MAX_BYTES));
        let mut bounded = Bounded { bytes: &mut bytes };
        lzma_rs::xz_decompress(&mut reader, &mut bounded)
            .map_err(|error| malformed(path, &format!("it does not decompress: {error:?}")))?;
    } else {
        let most = FILE_MAX_BYTES + 1;
        file.take(most).read_to_end(&mut bytes).map_err(|error| io(path, &error))?;
        if bytes.len() as u64 == most {
            return Err(malformed(path, "it is larger than a gigabyte"));
        }
    }
    String::from_utf8(bytes).map_err(|_| malformed(path, "it is not text"))
}

/// Takes what is decompressed, up to [`FILE_MAX_BYTES`].
struct Bounded<'a> {
    bytes: &'a mut Vec<u8>,
}

impl std::io::Write for Bounded<'_> {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        if (self.bytes.len() + part.len()) as u64 > FILE_MAX_BYTES {
            return Err(std::io::Error::other("more than a gigabyte"));
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn in_file<T>(path: &Path, result: Result<T, Refusal>) -> Result<T, Refusal> {
    result.map_err(|refusal| Refusal {
        reason: format!("{}: {}", path.display(), refusal.reason),
        ..refusal
    })
}

fn io(path: &Path, error: &std::io::Error) -> Refusal {
    Refusal::new(
        RefusalCode::InvalidArgument,
        format!("{}: {error}", path.display()),
        "name a file that can be read and written",
    )
}

fn malformed(path: &Path, what: &str) -> Refusal {
    Refusal::new(
        RefusalCode::InvalidArgument,
        format!("{}: {what}", path.display()),
        "use a file of the challenge as it is",
    )
}
