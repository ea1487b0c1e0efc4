//! The options of `ballast bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::nouns::DrainGoal;

/// Verbs of `bench`: the planner's parts on public problems, without a controller. Each prints one line of JSON.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Level, empty in part, or lose hosts of, a made-up cluster
    Balance(BalanceArgs),
    /// Meet all constraints of a BtrPlace instance with few moves
    Btrplace {
        /// The instance in JSON, plain or gzip
        file: PathBuf,
    },
    /// Make room for big VMs with a bounded number of moves
    Fragments {
        /// The cluster in the JSON of the VM rescheduling literature, plain or gzip
        file: PathBuf,
        /// The most migrations
        #[arg(long, default_value_t = 50)]
        moves: usize,
        /// Time in all, with loading
        #[arg(long, default_value_t = 5.0, value_parser = seconds)]
        seconds: f64,
        /// Where the random numbers begin
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Searches at the same time
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
        threads: u16,
        /// What a big VM needs of a NUMA node, in cores
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
        unit: u64,
        /// Write the ordered steps to this file, as JSON
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Machine reassignment (ROADEF/EURO challenge 2012)
    Roadef(RoadefArgs),
    /// Replay recorded load under the balancer: overload and moves, with and without a forecast
    Shadow(ShadowArgs),
}

/// Options of `bench balance`.
#[derive(Debug, Args)]
pub struct BalanceArgs {
    /// Hosts of the cluster
    #[arg(long, default_value_t = 1_000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(2..=20_000))]
    pub hosts: usize,
    /// VMs of the cluster
    #[arg(long, default_value_t = 10_000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=200_000))]
    pub vms: usize,
    /// What is asked of the planner
    #[arg(long, value_enum, default_value_t = BalanceCase::Level)]
    pub case: BalanceCase,
    /// How many percent of the hosts are emptied or lost
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=50))]
    pub percent: u8,
    /// What matters most when hosts are emptied
    #[arg(long, value_enum, default_value_t = DrainGoal::Balanced)]
    pub drain: DrainGoal,
    /// How small a gain is worth a move, 1 to 5
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub aggressiveness: u8,
    /// Where the random numbers begin
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Compare with the greedy loop at any size; otherwise up to 2,000 hosts, beyond which it takes minutes
    #[arg(long)]
    pub greedy: bool,
    /// Leave the comparison out
    #[arg(long, conflicts_with = "greedy")]
    pub no_greedy: bool,
}

/// What `bench balance` asks of the planner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BalanceCase {
    /// Level the load
    Level,
    /// Empty hosts
    Drain,
    /// Start the VMs of lost hosts again
    Loss,
}

/// Options of `bench roadef`.
#[derive(Debug, Args)]
pub struct RoadefArgs {
    /// The model file, `.txt` or `.xz`
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// The file of the initial assignment, `.txt` or `.xz`
    #[arg(long, value_name = "FILE")]
    pub assignment: PathBuf,
    /// Wall time of everything, loading and checking included
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    pub seconds: f64,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads to search with; all the machine has when not given
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub threads: Option<u16>,
    /// The most processes that may be elsewhere than in the initial assignment; any number when not given
    #[arg(long, value_name = "N")]
    pub moves: Option<u32>,
    /// Where to write the new assignment
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// Options of `bench shadow`.
#[derive(Debug, Args)]
pub struct ShadowArgs {
    /// A directory of recordings, or one: `.csv` or `.csv.xz`, a VM a line, its name and CPU percentages every 5 minutes
    pub path: PathBuf,
    /// VMs for each host, on average
    #[arg(long, default_value_t = 40, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000))]
    pub vms_per_host: usize,
    /// Samples between two plans
    #[arg(long, default_value_t = 3, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000))]
    pub every: usize,
    /// The most moves of a plan
    #[arg(long, default_value_t = 20, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub moves: usize,
    /// How small a gain is worth a move, 1 to 5
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub aggressiveness: u8,
    /// Where the random numbers begin
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Seconds of a benchmark: more than none, at most an hour.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 3_600.0 => Ok(seconds),
        _ => Err(format!("{text:?} is not a number of seconds between 0 and 3600")),
    }
}
