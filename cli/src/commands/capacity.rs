//! `ballast capacity`: what there is room for, and what the cluster could do without.
//!
//! Every answer is worked out here, from the cluster's snapshot: the
//! controller's, or one in a file.

use ballast_model::{ClusterSnapshot, HostId, Refusal};
use ballast_placement::PlanOptions;
use ballast_placement::ask::{self, Shape};
use ballast_proto::v1;

use super::Context;
use crate::args::{CapacityCommand, ShapeArgs};
use crate::output::units::bytes;
use crate::output::{self, Align, Table};

/// Answers from the controller's snapshot.
///
/// # Errors
/// What is wrong with the question, or that the controller does not answer.
pub(super) async fn run(context: &Context, question: CapacityCommand) -> Result<(), Refusal> {
    let record = context.client.show_plan(v1::ShowPlanRequest {}).await?;
    let snapshot = ClusterSnapshot::from_json(&record.snapshot_json)?;
    answer(&(snapshot, PlanOptions::default()), question, context.json)
}

/// Answers from a snapshot.
///
/// # Errors
/// What is wrong with the question.
pub(super) fn answer(
    (snapshot, options): &(ClusterSnapshot, PlanOptions),
    question: CapacityCommand,
    json: bool,
) -> Result<(), Refusal> {
    match question {
        CapacityCommand::Spare { shape, failures } => {
            let failures = failures.unwrap_or(snapshot.policy.failures_tolerated) as usize;
            spare(snapshot, &shape.into(), failures, options, json)
        }
        CapacityCommand::Room { shape } => room(snapshot, &shape.into(), options, json),
        CapacityCommand::Restart { hosts } => restart(snapshot, hosts, options, json),
        CapacityCommand::RebootGroups { group_max } => groups(snapshot, group_max, options, json),
        CapacityCommand::Consolidate { hosts_min } => {
            consolidate(snapshot, hosts_min, options, json)
        }
    }
}

impl From<ShapeArgs> for Shape {
    fn from(args: ShapeArgs) -> Self {
        Self {
            size: ballast_model::Resources::new(args.cpu, args.memory),
            demand: args.demand.unwrap_or(args.cpu),
            needs: args.needs.into_iter().collect(),
        }
    }
}

fn spare(
    snapshot: &ClusterSnapshot,
    shape: &Shape,
    failures: usize,
    options: &PlanOptions,
    json: bool,
) -> Result<(), Refusal> {
    let spare = ask::spare(snapshot, shape, failures, options)?;
    if json {
        return output::print_json(&spare);
    }
    let mut table = Table::new(&[("HOST", Align::Left), ("VMS", Align::Right)]);
    for (host, vms) in &spare.by_host {
        table.row([host.to_string(), vms.to_string()]);
    }
    let kept = match failures {
        0 => String::new(),
        _ => format!(" with {failures} hosts to lose ({} without)", spare.vms_without_failures),
    };
    output::print(&table.render("no host has room"))?;
    output::print(&format!("room for {} more{kept}; limited by: {}\n", spare.vms, spare.limit))
}

fn room(
    snapshot: &ClusterSnapshot,
    shape: &Shape,
    options: &PlanOptions,
    json: bool,
) -> Result<(), Refusal> {
    let room = ask::room(snapshot, shape, options)?;
    if json {
        return output::print_json(&room);
    }
    if room.moves.is_empty() {
        return output::print(&format!("it fits on host {} as it is\n", room.host));
    }
    let mut table = Table::new(&[("VM", Align::Left), ("TO", Align::Left)]);
    for (vm, to) in &room.moves {
        table.row([vm.to_string(), to.to_string()]);
    }
    output::print(&table.render(""))?;
    output::print(&format!(
        "then it fits on host {}; {} to move\n",
        room.host,
        bytes(room.bytes.get())
    ))
}

fn restart(
    snapshot: &ClusterSnapshot,
    hosts: Vec<HostId>,
    options: &PlanOptions,
    json: bool,
) -> Result<(), Refusal> {
    let restart = ask::restart(snapshot, &hosts.into_iter().collect(), options)?;
    if json {
        return output::print_json(&restart);
    }
    let mut table =
        Table::new(&[("VM", Align::Left), ("FROM", Align::Left), ("STARTS ON", Align::Left)]);
    for start in &restart.starts {
        table.row([start.vm.to_string(), start.from.to_string(), start.to.to_string()]);
    }
    for (vm, why) in &restart.stranded {
        table.row([vm.to_string(), String::new(), format!("nowhere: {}", why.reason)]);
    }
    output::print(&table.render("no VM runs there"))?;
    output::print(&format!(
        "{} VMs start again, {} find no place\n",
        restart.starts.len(),
        restart.stranded.len()
    ))
}

fn groups(
    snapshot: &ClusterSnapshot,
    group_max: usize,
    options: &PlanOptions,
    json: bool,
) -> Result<(), Refusal> {
    let found = ask::reboot_groups(snapshot, group_max, options)?;
    if json {
        return output::print_json(&found);
    }
    let mut table = Table::new(&[("ROUND", Align::Right), ("HOSTS", Align::Left)]);
    for (round, hosts) in (1..).zip(&found.groups) {
        table.row([format!("{round}"), names(hosts)]);
    }
    output::print(&table.render("no host can be emptied"))?;
    if found.stuck.is_empty() {
        return Ok(());
    }
    output::print(&format!(
        "not to be emptied: {}; 'ballast plan --what-if \"drain HOST\"' tells why\n",
        names(&found.stuck)
    ))
}

fn consolidate(
    snapshot: &ClusterSnapshot,
    hosts_min: usize,
    options: &PlanOptions,
    json: bool,
) -> Result<(), Refusal> {
    let found = ask::consolidate(snapshot, hosts_min, options)?;
    if json {
        return output::print_json(&found);
    }
    let mut table = Table::new(&[("HOST", Align::Left), ("NOW", Align::Left)]);
    for host in &found.empty {
        table.row([host.to_string(), "empty".to_owned()]);
    }
    for host in &found.emptied {
        table.row([host.to_string(), "could be emptied".to_owned()]);
    }
    output::print(&table.render("every host is needed"))?;
    output::print(&format!(
        "{} hosts could be off; {} VMs would move, {}\n",
        found.empty.len() + found.emptied.len(),
        found.moves,
        bytes(found.bytes.get())
    ))
}

fn names(hosts: &[HostId]) -> String {
    hosts.iter().map(HostId::as_str).collect::<Vec<_>>().join(", ")
}
