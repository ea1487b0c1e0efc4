//! The command line. What can be checked without the controller is checked
//! here, by the types of `ballast-model`, before anything is called.

mod bench;
mod capacity;
mod demo;
mod hardware;
mod nouns;
mod value;

use clap::{Parser, Subcommand, ValueEnum};

pub use bench::{BalanceArgs, BalanceCase, BenchCommand, RoadefArgs, ShadowArgs};
pub use capacity::{CapacityArgs, CapacityCommand, ShapeArgs};
pub use demo::{DemoArgs, DemoDriver, DemoStore};
pub use hardware::{Disk, HardwareArgs, Network};
pub use nouns::{
    AuditCommand, AutomationCommand, AutomationLevel, CreateArgs, DrainGoal, HostCommand,
    MigrationCommand, PlanArgs, PlanCommand, PlanShowArgs, RuleCommand, RuleHold, RuleKindName,
    RuleSetArgs, RuleStrength, VmCommand, WaitArgs,
};
pub use value::Duration;

/// Keeps a pool of KVM hosts level by live migration.
#[derive(Debug, Parser)]
#[command(name = "ballast", version, max_term_width = 100, disable_help_subcommand = false)]
pub struct Cli {
    /// What every command understands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// The controller to talk to
    #[arg(
        long,
        global = true,
        env = "BALLAST_CONTROLLER",
        value_name = "URL",
        default_value = "http://127.0.0.1:7070",
        value_parser = value::controller_url
    )]
    pub controller: String,
    /// Print a table for people or JSON for programs
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    pub output: OutputFormat,
    /// Why you do it; stands in the audit
    #[arg(long, global = true, value_name = "TEXT", value_parser = value::reason)]
    pub reason: Option<String>,
    /// The longest time to wait for one answer of the controller
    #[arg(long, global = true, value_name = "TIME", default_value = "30s")]
    pub timeout: Duration,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Aligned columns, human units.
    Table,
    /// JSON, base units.
    Json,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Machines that run VMs
    #[command(subcommand)]
    Host(HostCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Rules that bind the placement of VMs
    #[command(subcommand)]
    Rule(RuleCommand),
    /// What the balancer would do
    Plan(PlanArgs),
    /// What there is room for, and what the cluster could do without
    Capacity(CapacityArgs),
    /// Moves of VMs between hosts
    #[command(subcommand)]
    Migration(MigrationCommand),
    /// The tamper-evident trail of all that was done
    #[command(subcommand)]
    Audit(AuditCommand),
    /// The cluster in a few lines
    Status,
    /// How much the balancer may do on its own
    #[command(subcommand)]
    Automation(AutomationCommand),
    /// Start a cluster on this machine and watch it being balanced
    Demo(DemoArgs),
    /// Measure the planner on public problems, without a controller
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print the completion script of a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
