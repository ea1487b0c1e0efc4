//! The door for the public machine reassignment instances (ROADEF/EURO challenge 2012).
//!
//! [`parse_model`] and [`parse_assignment`] read the challenge's text files,
//! [`problem`] turns them into the solver's numbers without loss, and
//! [`check`](checker::check) computes the cost of an assignment straight from the
//! text, sharing nothing with the solver.

pub mod checker;
mod parse;
#[cfg(test)]
mod tests;

use ballast_model::Refusal;

pub use parse::{
    Balance, Machine, Model, Process, ResourceKind, Service, parse_assignment, parse_model,
};

use crate::core::{
    Assignment, Host, HostSpec, Item, ItemSpec, ObjectiveTable, Place, Problem, ProblemBuilder,
    Resource, ResourceSpec, RuleKind, RuleSpec, Strength, Term,
};

/// The problem of improving `initial`, one machine number a process.
///
/// # Errors
/// `InvalidArgument` when numbers are so large that the cost could leave 64 bits.
pub fn problem(model: &Model, initial: &[u32]) -> Result<Problem, Refusal> {
    let [process_weight, service_weight, machine_weight] = model.move_weights;
    let table = ObjectiveTable::one_sum()
        .with(Term::ItemMoves, 0, process_weight)
        .with(Term::GroupMoves, 0, service_weight)
        .with(Term::HostMoves, 0, machine_weight);
    let mut b = ProblemBuilder::new(table);
    for resource in &model.resources {
        b.resource(ResourceSpec {
            transient: resource.transient,
            safety_weight: resource.weight,
            ..ResourceSpec::allocation()
        });
    }
    for balance in &model.balances {
        b.balance(
            Resource(balance.first),
            Resource(balance.second),
            balance.target,
            balance.weight,
        );
    }
    for machine in &model.machines {
        b.host(HostSpec {
            capacity: machine.capacity.clone(),
            safety: machine.safety.clone(),
            ..HostSpec::default()
        });
    }
    if model.move_costs.iter().any(|cost| *cost > 0) {
        b.way_costs(model.move_costs.clone());
    }
    for (process, machine) in model.processes.iter().zip(initial) {
        b.item(ItemSpec {
            shapes: vec![process.need.clone()],
            home: Some(Place::on(Host(*machine))),
            move_cost: process.move_cost,
            ..ItemSpec::default()
        });
    }
    add_services(&mut b, model);
    b.build()
}

fn add_services(b: &mut ProblemBuilder, model: &Model) {
    let mut members = vec![Vec::new(); model.services.len()];
    for (ix, process) in model.processes.iter().enumerate() {
        members[process.service as usize].push(Item::from(ix));
    }
    let sizes: Vec<usize> = members.iter().map(Vec::len).collect();
    let groups: Vec<_> = members.into_iter().map(|items| b.group(items)).collect();
    let hosts = b.host_partition();
    let locations = b.partition(model.machines.iter().map(|m| Some(m.location)).collect());
    let neighbourhoods =
        b.partition(model.machines.iter().map(|m| Some(m.neighbourhood)).collect());
    for (ix, service) in model.services.iter().enumerate() {
        let group = groups[ix];
        b.move_group(group);
        let mut hard = |partition, kind| {
            b.rule(RuleSpec { group, partition, kind, strength: Strength::Hard });
        };
        if sizes[ix] > 1 {
            hard(hosts, RuleKind::AtMostPerDomain(1));
        }
        if service.spread_min > 1 {
            hard(locations, RuleKind::MinDomains(service.spread_min));
        }
        for other in &service.depends_on {
            hard(neighbourhoods, RuleKind::Requires(groups[*other as usize]));
        }
    }
}

/// The machine of each process, as the challenge writes it: one line.
pub fn write_assignment(assignment: &Assignment) -> String {
    let machines: Vec<String> = assignment
        .iter()
        .map(|(_, place)| place.map_or_else(|| "-1".into(), |place| place.host.0.to_string()))
        .collect();
    machines.join(" ") + "\n"
}
