//! `ballast status` and `ballast automation`.

use ballast_model::Refusal;
use ballast_model::vm::Automation;
use ballast_proto::v1;

use super::Context;
use crate::args::AutomationCommand;
use crate::output::{self, fields, view};

pub(super) async fn status(context: &Context) -> Result<(), Refusal> {
    let status = context.client.get_status(v1::GetStatusRequest {}).await?;
    if context.json {
        return output::print_json(&view::Status::from(status));
    }
    let hosts = match status.hosts_unknown {
        0 => status.hosts.to_string(),
        unknown => format!("{} ({unknown} unknown)", status.hosts),
    };
    output::print(&fields(&[
        ("hosts", hosts),
        ("VMs", status.vms.to_string()),
        ("migrations running", status.migrations_running.to_string()),
        ("imbalance", format!("{:.3}", status.imbalance)),
        ("automation", view::automation(status.automation).to_owned()),
        ("paused because", status.paused_because),
        ("store", format!("{} at revision {}", status.store, status.revision)),
        ("version", status.version),
    ]))
}

pub(super) async fn run(context: &Context, command: AutomationCommand) -> Result<(), Refusal> {
    match command {
        AutomationCommand::Show => {
            let status = context.client.get_status(v1::GetStatusRequest {}).await?;
            print_level(context, view::automation(status.automation))
        }
        AutomationCommand::Set { level } => {
            let level = v1::Automation::from(Automation::from(level));
            let actor = context.actor.because("automation level set by hand");
            let request = v1::SetAutomationRequest { level: level.into(), actor };
            context.client.set_automation(request).await?;
            print_level(context, view::automation(level.into()))
        }
    }
}

fn print_level(context: &Context, level: &str) -> Result<(), Refusal> {
    if context.json {
        output::print_json(&serde_json::json!({ "automation": level }))
    } else {
        output::print(&format!("automation  {level}\n"))
    }
}
