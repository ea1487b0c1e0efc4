//! One file a noun: ask the controller, print the answer.

mod audit;
mod automation;
mod history;
mod host;
mod migration;
mod plan;
mod rule;
mod vm;
mod wait;

use std::process::ExitCode;

use ballast_model::Refusal;
use clap::CommandFactory;

use crate::args::{AuditCommand, Cli, Command, Global, OutputFormat, PlanCommand};
use crate::client::{Actor, Client};
use crate::output;

/// What every command works with.
struct Context {
    client: Client,
    actor: Actor,
    json: bool,
}

impl Context {
    async fn connect(global: Global) -> Result<Self, Refusal> {
        Ok(Self {
            client: Client::connect(&global.controller, global.timeout.0).await?,
            actor: Actor::operator(global.reason),
            json: global.output == OutputFormat::Json,
        })
    }
}

/// Does what the command line says.
///
/// # Errors
/// The one refusal to report.
pub(crate) async fn run(cli: Cli) -> Result<ExitCode, Refusal> {
    let global = cli.global;
    let json = global.output == OutputFormat::Json;
    // What needs no controller first.
    match cli.command {
        Command::Completion { shell } => completion(shell)?,
        Command::Plan(PlanCommand::Show { snapshot: Some(file), all, .. }) => {
            plan::show_offline(&file, all, json)?;
        }
        Command::Audit(AuditCommand::Verify { file: Some(file) }) => {
            audit::verify_file(&file, json)?;
        }
        Command::Vm(crate::args::VmCommand::Create(args)) => {
            let request = vm::checked_create(args)?;
            vm::create(&Context::connect(global).await?, request).await?;
        }
        Command::Rule(crate::args::RuleCommand::Set(args)) => {
            let rule = rule::checked(args)?;
            rule::set(&Context::connect(global).await?, rule).await?;
        }
        command => online(&Context::connect(global).await?, command).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn online(context: &Context, command: Command) -> Result<(), Refusal> {
    match command {
        Command::Host(command) => host::run(context, command).await,
        Command::Vm(command) => vm::run(context, command).await,
        Command::Rule(command) => rule::run(context, command).await,
        Command::Plan(command) => plan::run(context, command).await,
        Command::Migration(command) => migration::run(context, command).await,
        Command::Audit(command) => audit::run(context, command).await,
        Command::Automation(command) => automation::run(context, command).await,
        Command::Status => automation::status(context).await,
        Command::Completion { shell } => completion(shell),
        Command::Demo(_) => Err(Refusal::new(
            ballast_model::RefusalCode::Unsupported,
            "this build has no demo",
            "use a later one",
        )),
    }
}

fn completion(shell: clap_complete::Shell) -> Result<(), Refusal> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), crate::PROGRAM, &mut script);
    output::print_bytes(&script)
}
