//! `ballast capacity`.

use std::path::PathBuf;

use ballast_model::{Bytes, HostId, Millicores};
use clap::{Args, Subcommand};

/// `ballast capacity`.
#[derive(Debug, Args)]
pub struct CapacityArgs {
    /// Answer from a snapshot file, or from a text scenario (*.txt), without a controller
    #[arg(long, value_name = "FILE", global = true)]
    pub snapshot: Option<PathBuf>,
    /// The question.
    #[command(subcommand)]
    pub command: CapacityCommand,
}

/// What a VM to come is like.
#[derive(Debug, Args)]
pub struct ShapeArgs {
    /// CPU it can use at most, e.g. 2 or 500m
    #[arg(long)]
    pub cpu: Millicores,
    /// Its memory, e.g. 4GiB
    #[arg(long)]
    pub memory: Bytes,
    /// CPU it uses, typically; all it can use when not given
    #[arg(long)]
    pub demand: Option<Millicores>,
    /// What it must find on a host, e.g. storage:san-1; may be repeated
    #[arg(long = "need", visible_alias = "needs", value_name = "OFFER")]
    pub needs: Vec<String>,
}

/// The questions.
#[derive(Debug, Subcommand)]
pub enum CapacityCommand {
    /// How many more VMs of a shape there is room for
    Spare {
        /// The VMs.
        #[command(flatten)]
        shape: ShapeArgs,
        /// Keep room for the VMs of so many hosts that may be lost; the policy's number when not given
        #[arg(long, value_name = "HOSTS")]
        failures: Option<u32>,
    },
    /// Which moves make room for a VM that fits nowhere
    Room {
        /// The VM.
        #[command(flatten)]
        shape: ShapeArgs,
    },
    /// Where the VMs of lost hosts start again
    Restart {
        /// The lost hosts
        #[arg(required = true)]
        hosts: Vec<HostId>,
    },
    /// Which hosts can be emptied together, in how few rounds
    RebootGroups {
        /// The most hosts of one round
        #[arg(long, value_name = "HOSTS", default_value_t = 1000)]
        group_max: usize,
    },
    /// Which hosts the cluster could do without
    Consolidate {
        /// Hosts that stay on at least
        #[arg(long, value_name = "HOSTS", default_value_t = 1)]
        hosts_min: usize,
    },
}
