//! One file a noun: ask the controller, print the answer.

pub(crate) mod audit;
mod automation;
mod bench;
mod capacity;
mod console;
mod history;
mod host;
pub(crate) mod migration;
mod plan;
mod rule;
mod vm;
mod wait;

use ballast_model::Refusal;
use clap::CommandFactory;

use crate::args::{
    AuditCommand, Cli, Command, Global, OutputFormat, PlanCommand, RuleCommand, VmCommand,
};
use crate::client::{Actor, Client};
use crate::{demo, output};

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
pub(crate) async fn run(cli: Cli) -> Result<(), Refusal> {
    let global = cli.global;
    let json = global.output == OutputFormat::Json;
    // Connects when awaited: what needs no controller, or is not yet checked, comes before.
    let context = Context::connect(global);
    match cli.command {
        Command::Completion { shell } => completion(shell)?,
        Command::Bench(command) => bench::run(command)?,
        Command::Demo(args) => Box::pin(demo::run(args)).await?,
        Command::Plan(args) => match plan::command(args) {
            PlanCommand::Show(args) if args.snapshot.is_some() => plan::show_offline(&args, json)?,
            command => plan::run(&context.await?, command).await?,
        },
        Command::Capacity(args) => match &args.snapshot {
            Some(file) => capacity::answer(&plan::read_snapshot(file)?, args.command, json)?,
            None => capacity::run(&context.await?, args.command).await?,
        },
        Command::Audit(AuditCommand::Verify { file: Some(file) }) => {
            audit::verify_file(&file, json)?;
        }
        Command::Vm(VmCommand::Create(args)) => {
            let request = vm::checked_create(args)?;
            vm::create(&context.await?, request).await?;
        }
        Command::Rule(RuleCommand::Set(args)) => {
            let request = rule::checked(args)?;
            rule::set(&context.await?, request).await?;
        }
        Command::Host(command) => host::run(&context.await?, command).await?,
        Command::Vm(command) => vm::run(&context.await?, command).await?,
        Command::Rule(command) => rule::run(&context.await?, command).await?,
        Command::Migration(command) => migration::run(&context.await?, command).await?,
        Command::Audit(command) => audit::run(&context.await?, command).await?,
        Command::Automation(command) => automation::run(&context.await?, command).await?,
        Command::Status => automation::status(&context.await?).await?,
    }
    Ok(())
}

fn completion(shell: clap_complete::Shell) -> Result<(), Refusal> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), crate::PROGRAM, &mut script);
    output::print_bytes(&script)
}
