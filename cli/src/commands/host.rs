//! `ballast host`.

use ballast_model::{HostId, Refusal};
use ballast_proto::v1;

use super::{Context, vm, wait};
use crate::args::HostCommand;
use crate::output::units::{ago, bytes, cpu, percent, rate};
use crate::output::{self, Align, Table, fields, hardware, view};

pub(super) async fn run(context: &Context, command: HostCommand) -> Result<(), Refusal> {
    match command {
        HostCommand::Ls => list(context).await,
        HostCommand::Show { host } => show(context, &host).await,
        HostCommand::Drain { host, goal, wait } => {
            let actor = context.actor.because("drained by hand");
            let goal = v1::DrainGoal::from(goal.map(Into::into)).into();
            let request = v1::DrainHostRequest { host: host.to_string(), actor, goal };
            let left = context.client.drain_host(request).await?.vms;
            if wait.wait {
                wait::until_empty(&context.client, &host, wait.wait_timeout.0).await?;
            }
            let left = if wait.wait { 0 } else { left };
            report_drain(context, &host, left)
        }
        HostCommand::Uncordon { host } => {
            let actor = context.actor.because("uncordoned by hand");
            let request = v1::UncordonHostRequest { host: host.to_string(), actor };
            context.client.uncordon_host(request).await?;
            if context.json {
                output::print_json(&serde_json::json!({ "host": host, "state": "active" }))
            } else {
                output::print(&format!("host {host} takes VMs again\n"))
            }
        }
    }
}

fn report_drain(context: &Context, host: &HostId, left: u32) -> Result<(), Refusal> {
    if context.json {
        let view = serde_json::json!({ "host": host, "state": "draining", "vms_left": left });
        return output::print_json(&view);
    }
    let line = match left {
        0 => format!("host {host} is drained and empty\n"),
        1 => format!("host {host} drains; 1 VM has to leave\n"),
        left => format!("host {host} drains; {left} VMs have to leave\n"),
    };
    output::print(&line)
}

async fn list(context: &Context) -> Result<(), Refusal> {
    let hosts = context.client.list_hosts(v1::ListHostsRequest {}).await?.hosts;
    if context.json {
        return output::print_json(&hosts.into_iter().map(view::Host::from).collect::<Vec<_>>());
    }
    let mut table = Table::new(&[
        ("HOST", Align::Left),
        ("STATE", Align::Left),
        ("DRIVER", Align::Left),
        ("VMS", Align::Right),
        ("CPU DEMAND", Align::Right),
        ("OF", Align::Right),
        ("CPU%", Align::Right),
        ("MEM DEMAND", Align::Right),
        ("OF", Align::Right),
        ("MEM%", Align::Right),
        ("REPORT", Align::Right),
        ("NOTE", Align::Left),
    ]);
    for host in hosts {
        let description = host.description.clone().unwrap_or_default();
        let capacity = description.capacity.unwrap_or_default();
        let demand = host.demand.unwrap_or_default();
        let note = if host.known { String::new() } else { host.unknown_because.clone() };
        table.row([
            description.host,
            shown_state(&host),
            view::driver(description.driver).to_owned(),
            host.vms.len().to_string(),
            cpu(demand.cpu_millicores),
            cpu(capacity.cpu_millicores),
            percent(demand.cpu_millicores, capacity.cpu_millicores),
            bytes(demand.memory_bytes),
            bytes(capacity.memory_bytes),
            percent(demand.memory_bytes, capacity.memory_bytes),
            ago(host.last_report_unix_millis),
            note,
        ]);
    }
    output::print(&table.render("no hosts; start an agent that names this controller"))
}

/// The state with the goal of a drain, and with `unknown` added where the load is not known.
fn shown_state(host: &v1::HostStatus) -> String {
    let goal = view::drain_goal(host).map_or_else(String::new, |goal| format!(" ({goal})"));
    let known = if host.known { "" } else { ", unknown" };
    format!("{}{goal}{known}", view::host_state(host))
}

async fn show(context: &Context, id: &HostId) -> Result<(), Refusal> {
    let request = v1::GetHostRequest { host: id.to_string() };
    let host = context.client.get_host(request).await?;
    let request = v1::ListVmsRequest { host: id.to_string() };
    let vms = context.client.list_vms(request).await?.vms;
    if context.json {
        return output::print_json(&view::Host::from(host));
    }
    let description = host.description.clone().unwrap_or_default();
    let capacity = description.capacity.unwrap_or_default();
    let demand = host.demand.unwrap_or_default();
    let load = host.load.unwrap_or_default();
    let of = |part: String, whole: String, share: String| format!("{part} of {whole} ({share})");
    let mut labels: Vec<_> =
        description.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    labels.sort();
    let node = |node: &v1::Resources| {
        format!("{} CPU, {} memory", cpu(node.cpu_millicores), bytes(node.memory_bytes))
    };
    let nodes: Vec<_> = description.numa.iter().map(node).collect();
    let head = fields(&[
        ("host", description.host.clone()),
        ("state", shown_state(&host)),
        ("unknown because", host.unknown_because.clone()),
        ("driver", view::driver(description.driver).to_owned()),
        (
            "CPU demand of VMs",
            of(
                cpu(demand.cpu_millicores),
                cpu(capacity.cpu_millicores),
                percent(demand.cpu_millicores, capacity.cpu_millicores),
            ),
        ),
        (
            "memory demand of VMs",
            of(
                bytes(demand.memory_bytes),
                bytes(capacity.memory_bytes),
                percent(demand.memory_bytes, capacity.memory_bytes),
            ),
        ),
        ("CPU used in all", cpu(load.cpu_used_millicores)),
        ("memory used in all", bytes(load.memory_used_bytes)),
        (
            "network in / out",
            format!(
                "{} / {}",
                rate(load.network_receive_bytes_per_sec),
                rate(load.network_send_bytes_per_sec)
            ),
        ),
        ("link", rate(description.link_bytes_per_sec)),
        ("CPU model", description.cpu_model.clone()),
        ("CPU baselines", hardware::cpu_baselines(&description.cpu_baselines).join(", ")),
        ("NUMA nodes", nodes.join("\n")),
        ("offers", description.offers.join(", ")),
        ("labels", labels.join(", ")),
        ("agent", format!("{}, version {}", description.endpoint, description.version)),
        ("last report", ago(host.last_report_unix_millis)),
    ]);
    output::print(&format!("{head}\n{}", vm::table(vms).render("no VMs")))
}
