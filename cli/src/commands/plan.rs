//! `ballast plan`.

use std::collections::BTreeMap;
use std::path::Path;

use ballast_model::plan::{CurvePoint, StepCause, StepTiming, TermChange};
use ballast_model::{ClusterSnapshot, Planning, Ratio, Refusal, RefusalCode, Verdict, VmId};
use ballast_placement::{PlanOptions, ask, scenario};
use ballast_proto::convert::migration::micros;
use ballast_proto::v1;
use serde::Serialize;

use super::Context;
use crate::args::{PlanArgs, PlanCommand, PlanShowArgs};
use crate::output::{self, Align, Table, units};

/// A plan as it is printed in JSON.
#[derive(Debug, Serialize)]
struct View<'a> {
    plan: Option<&'a str>,
    at_unix_millis: Option<u64>,
    snapshot_revision: u64,
    imbalance_before: f64,
    imbalance_after: f64,
    imbalance_bound: f64,
    gap: f64,
    makespan_micros: u64,
    /// `null` when no host is emptied.
    emptied_micros: Option<u64>,
    stages: u32,
    steps: Vec<StepView<'a>>,
    curve: Vec<PointView>,
    verdicts: &'a BTreeMap<VmId, Verdict>,
}

/// One step as it is printed in JSON.
#[derive(Debug, Serialize)]
struct StepView<'a> {
    vm: &'a str,
    from: &'a str,
    to: &'a str,
    cause: &'a StepCause,
    after: &'a [usize],
    gain: f64,
    cost_bytes: u64,
    cost_micros: u64,
    /// These three are `null` in a plan that was written before there was a report.
    stage: Option<u32>,
    start_micros: Option<u64>,
    duration_micros: Option<u64>,
    reason: &'a str,
    terms: &'a [TermChange],
}

/// A point of the trade-off as it is printed in JSON.
#[derive(Debug, Serialize)]
struct PointView {
    moves: usize,
    cost_bytes: u64,
    cost_micros: u64,
    imbalance: f64,
}

/// The verb, `show` when there is none.
pub(super) fn command(args: PlanArgs) -> PlanCommand {
    args.command.unwrap_or(PlanCommand::Show(args.show))
}

pub(super) async fn run(context: &Context, command: PlanCommand) -> Result<(), Refusal> {
    match command {
        PlanCommand::Show(args) if args.snapshot.is_some() => show_offline(&args, context.json),
        PlanCommand::Show(args) => {
            let record = context.client.show_plan(v1::ShowPlanRequest {}).await?;
            if let Some(file) = &args.save {
                ClusterSnapshot::from_json(&record.snapshot_json)?.write_file(file)?;
                eprintln!("snapshot written to {}", file.display());
            }
            let is_as_planned = args.what_if.is_empty()
                && args.drain.is_none()
                && args.aggressiveness.is_none()
                && args.gain_min.is_none()
                && args.moves.is_none()
                && args.bytes.is_none()
                && args.time.is_none();
            if is_as_planned {
                let planning = parse(&record.planning_json)?;
                return answer(&planning, Some(&record), &args, context.json);
            }
            let snapshot = ClusterSnapshot::from_json(&record.snapshot_json)?;
            show_changed(snapshot, PlanOptions::default(), &args, context.json)
        }
        PlanCommand::Apply { plan } => apply(context, plan.map(|plan| plan.to_string())).await,
    }
}

/// Plans on a snapshot file or a text scenario, without a controller.
///
/// # Errors
/// What is wrong with the file, or with a change asked for.
pub(super) fn show_offline(args: &PlanShowArgs, json: bool) -> Result<(), Refusal> {
    let Some(file) = &args.snapshot else { return Ok(()) };
    let (snapshot, options) = read_snapshot(file)?;
    show_changed(snapshot, options, args, json)
}

/// A snapshot file, or the cluster of a text scenario (`*.txt`) with its options.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn read_snapshot(file: &Path) -> Result<(ClusterSnapshot, PlanOptions), Refusal> {
    if file.extension().is_some_and(|extension| extension == "txt") {
        let scenario = scenario::parse(&read_text(file)?).map_err(|mut refusal| {
            refusal.reason = format!("{}: {}", file.display(), refusal.reason);
            refusal
        })?;
        return Ok((scenario.snapshot, scenario.options));
    }
    Ok((ClusterSnapshot::read_file(file)?, PlanOptions::default()))
}

fn read_text(file: &Path) -> Result<String, Refusal> {
    let unreadable = |reason: String| {
        Refusal::new(RefusalCode::NotFound, reason, "check the path of the scenario")
    };
    let shown = file.display();
    let length =
        std::fs::metadata(file).map_err(|e| unreadable(format!("cannot read {shown}: {e}")))?;
    if length.len() > scenario::SCENARIO_BYTES_MAX as u64 {
        return Err(unreadable(format!("{shown} is too long for a scenario")));
    }
    std::fs::read_to_string(file).map_err(|e| unreadable(format!("cannot read {shown}: {e}")))
}

fn show_changed(
    mut snapshot: ClusterSnapshot,
    mut options: PlanOptions,
    args: &PlanShowArgs,
    json: bool,
) -> Result<(), Refusal> {
    if let Some(level) = args.aggressiveness {
        options = options.aggressive(level)?;
    }
    if let Some(gain_min) = args.gain_min {
        options.gain_min = Ratio::new(gain_min);
    }
    if let Some(moves) = args.moves {
        options.steps_max = moves as usize;
    }
    options.bytes_max = args.bytes.or(options.bytes_max);
    options.time_max = args.time.map(|time| time.0).or(options.time_max);
    for change in &args.what_if {
        let changed = ask::what_if(&snapshot, change, &options)?;
        snapshot = changed.snapshot;
        for note in changed.notes {
            eprintln!("{note}");
        }
    }
    if let Some(goal) = args.drain {
        snapshot.set_drain_goal(goal.into());
    }
    answer(&ballast_placement::plan(&snapshot, &options)?, None, args, json)
}

/// Prints a plan, and writes its graph where that is asked for.
fn answer(
    planning: &Planning,
    record: Option<&v1::PlanRecord>,
    args: &PlanShowArgs,
    json: bool,
) -> Result<(), Refusal> {
    if let Some(file) = &args.graph {
        std::fs::write(file, ballast_placement::dot(planning)).map_err(|error| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("cannot write the graph to {}: {error}", file.display()),
                "name a file that can be written",
            )
        })?;
    }
    print(planning, record, args.all, json)
}

async fn apply(context: &Context, plan: Option<String>) -> Result<(), Refusal> {
    let plan = match plan {
        Some(plan) => plan,
        None => {
            let record = context.client.show_plan(v1::ShowPlanRequest {}).await?;
            let planning = parse(&record.planning_json)?;
            if !context.json {
                print(&planning, Some(&record), false, false)?;
            }
            if planning.plan.steps.is_empty() {
                return started(context, &record.id, &[]);
            }
            record.id
        }
    };
    let actor = context.actor.because("plan applied by hand");
    let request = v1::ApplyPlanRequest { plan: plan.clone(), actor };
    let migrations = context.client.apply_plan(request).await?.migrations;
    started(context, &plan, &migrations)
}

fn started(context: &Context, plan: &str, migrations: &[String]) -> Result<(), Refusal> {
    if context.json {
        let view = serde_json::json!({ "plan": plan, "migrations": migrations });
        return output::print_json(&view);
    }
    let lines = migrations.iter().map(|id| format!("migration {id} begun\n"));
    let text: String = lines.collect();
    output::print(if text.is_empty() { "nothing to do\n" } else { &text })
}

fn parse(json: &str) -> Result<Planning, Refusal> {
    serde_json::from_str(json).map_err(|error| {
        Refusal::new(
            RefusalCode::Unsupported,
            format!("cannot read the controller's plan: {error}"),
            "bring controller and command to the same version",
        )
    })
}

fn print(
    planning: &Planning,
    record: Option<&v1::PlanRecord>,
    all: bool,
    json: bool,
) -> Result<(), Refusal> {
    let plan = &planning.plan;
    if json {
        return output::print_json(&View {
            plan: record.map(|record| record.id.as_str()),
            at_unix_millis: record.map(|record| record.at_unix_millis),
            snapshot_revision: plan.snapshot.0,
            imbalance_before: plan.imbalance_before.get(),
            imbalance_after: plan.imbalance_after.get(),
            imbalance_bound: planning.report.imbalance_bound.get(),
            gap: planning.gap().get(),
            makespan_micros: micros(planning.report.makespan),
            emptied_micros: planning.report.emptied.map(micros),
            stages: planning.report.stages(),
            steps: (0..plan.steps.len()).map(|n| StepView::new(planning, n)).collect(),
            curve: planning.report.curve.iter().map(PointView::from).collect(),
            verdicts: &planning.verdicts,
        });
    }
    let mut text = String::new();
    if let Some(record) = record {
        text += &format!("plan {} on revision {}\n", record.id, plan.snapshot.0);
    }
    text += &format!(
        "imbalance {:.3} → {:.3}\n\n",
        plan.imbalance_before.get(),
        plan.imbalance_after.get()
    );
    text += &steps(planning).render("no step: nothing to move");
    text += &summary(planning);
    text += &curve(planning);
    if all {
        text += &terms(planning);
    }
    text += &verdicts(planning, all);
    output::print(&text)
}

fn steps(planning: &Planning) -> Table {
    let mut table = Table::new(&[
        ("STEP", Align::Right),
        ("STAGE", Align::Right),
        ("VM", Align::Left),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("CAUSE", Align::Left),
        ("AFTER", Align::Left),
        ("GAIN", Align::Right),
        ("BYTES", Align::Right),
        ("TIME", Align::Right),
        ("REASON", Align::Left),
    ]);
    for (index, step) in planning.plan.steps.iter().enumerate() {
        table.row([
            index.to_string(),
            timing(planning, index).map_or_else(String::new, |timing| timing.stage.to_string()),
            step.vm.to_string(),
            step.from.to_string(),
            step.to.to_string(),
            cause(&step.cause),
            units::or_dash(&runs(&step.after)),
            format!("{:+.3}", step.gain),
            units::bytes(step.cost.bytes.get()),
            units::time(step.cost.duration),
            step.reason.clone(),
        ]);
    }
    table
}

/// Numbers in rising order, those that follow one another as a run: `0,2-5`.
fn runs(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|one, next| one + 1 == *next);
    let shown = runs.map(|run| match run {
        [first, .., last] if run.len() > 2 => format!("{first}-{last}"),
        _ => run.iter().map(usize::to_string).collect::<Vec<_>>().join(","),
    });
    shown.collect::<Vec<_>>().join(",")
}

fn timing(planning: &Planning, step: usize) -> Option<&StepTiming> {
    planning.report.timings.get(step)
}

/// How long the plan takes, and how much more level the load could be.
fn summary(planning: &Planning) -> String {
    let report = &planning.report;
    let mut text = String::new();
    if !report.timings.is_empty() {
        let (makespan, stages) = (units::time(report.makespan), report.stages());
        let emptied = report.emptied.map_or_else(String::new, |emptied| {
            format!(
                "about {} until the last VM has left a host that drains, ",
                units::time(emptied)
            )
        });
        text += &format!("\n{emptied}about {makespan} in all, stages: {stages}\n");
    }
    if !report.curve.is_empty() {
        text += &format!(
            "\nno placement of these VMs is below {:.3}: the gap is at most {:.3}\n",
            report.imbalance_bound.get(),
            planning.gap().get()
        );
    }
    text
}

/// What each further move is worth: the imbalance after the first 1, 2, 4, 8, … steps.
fn curve(planning: &Planning) -> String {
    let curve = &planning.report.curve;
    let steps = curve.len().saturating_sub(1);
    if steps < 2 {
        return String::new();
    }
    let mut table = Table::new(&[
        ("MOVES", Align::Right),
        ("BYTES", Align::Right),
        ("TIME", Align::Right),
        ("IMBALANCE", Align::Right),
    ]);
    for point in curve.iter().filter(|point| point.moves.is_power_of_two() || point.moves == steps)
    {
        table.row([
            point.moves.to_string(),
            units::bytes(point.cost.bytes.get()),
            units::time(point.cost.duration),
            format!("{:.3}", point.imbalance.get()),
        ]);
    }
    format!("\n{}", table.render(""))
}

/// What of the objective each step changes.
fn terms(planning: &Planning) -> String {
    let mut table = Table::new(&[("STEP", Align::Right), ("CHANGES", Align::Left)]);
    for (index, step) in planning.plan.steps.iter().enumerate() {
        let changes: Vec<String> = step.terms.iter().map(TermChange::to_string).collect();
        table.row([index.to_string(), units::or_dash(&changes.join(", "))]);
    }
    if planning.plan.steps.is_empty() { String::new() } else { format!("\n{}", table.render("")) }
}

/// Those that ought to move and cannot; with `all`, every VM.
fn verdicts(planning: &Planning, all: bool) -> String {
    let mut table =
        Table::new(&[("VM", Align::Left), ("VERDICT", Align::Left), ("WHY", Align::Left)]);
    let mut shown = false;
    for (vm, verdict) in &planning.verdicts {
        let (name, why) = match verdict {
            Verdict::Stuck { reason, remedy, .. } => ("stuck", format!("{reason}; {remedy}")),
            Verdict::Moves { reason, .. } if all => ("moves", reason.clone()),
            Verdict::Stays { reason, .. } if all => ("stays", reason.clone()),
            Verdict::Moves { .. } | Verdict::Stays { .. } => continue,
        };
        shown = true;
        table.row([vm.to_string(), name.to_owned(), why]);
    }
    if shown { format!("\n{}", table.render("")) } else { String::new() }
}

fn cause(cause: &StepCause) -> String {
    match cause {
        StepCause::Drain => "drain".to_owned(),
        StepCause::Rule { rule } => format!("rule {rule}"),
        StepCause::Needs => "needs".to_owned(),
        StepCause::Capacity => "capacity".to_owned(),
        StepCause::Balance => "balance".to_owned(),
    }
}

impl<'a> StepView<'a> {
    fn new(planning: &'a Planning, n: usize) -> Self {
        let (step, timing) = (&planning.plan.steps[n], timing(planning, n));
        Self {
            vm: step.vm.as_str(),
            from: step.from.as_str(),
            to: step.to.as_str(),
            cause: &step.cause,
            after: &step.after,
            gain: step.gain,
            cost_bytes: step.cost.bytes.get(),
            cost_micros: micros(step.cost.duration),
            stage: timing.map(|timing| timing.stage),
            start_micros: timing.map(|timing| micros(timing.start)),
            duration_micros: timing.map(|timing| micros(timing.duration)),
            reason: &step.reason,
            terms: &step.terms,
        }
    }
}

impl From<&CurvePoint> for PointView {
    fn from(point: &CurvePoint) -> Self {
        Self {
            moves: point.moves,
            cost_bytes: point.cost.bytes.get(),
            cost_micros: micros(point.cost.duration),
            imbalance: point.imbalance.get(),
        }
    }
}
