//! The options of `ballast demo`.

use clap::{Args, ValueEnum};

/// Options of `ballast demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Where the controller keeps its state: a file of its own, or an etcd started for the demo
    #[arg(long, default_value = "embedded")]
    pub store: DemoStore,
    /// End with one JSON object as the last line on standard output; all else goes to standard error
    #[arg(long)]
    pub json: bool,
    /// How many VMs to pile on the first host
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(10..=24))]
    pub vms: u32,
    /// How VMs are run; `auto` takes KVM where it is usable
    #[arg(long, default_value = "auto")]
    pub driver: DemoDriver,
    /// Leave the cluster running at the end; says how to reach and how to end it
    #[arg(long)]
    pub keep: bool,
}

/// Where the demo's controller keeps its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DemoStore {
    /// A file.
    Embedded,
    /// A real etcd.
    Etcd,
}

/// How the demo's VMs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DemoDriver {
    /// KVM where it is usable, else simulated.
    Auto,
    /// Real VMs.
    Kvm,
    /// Simulated VMs.
    Sim,
}
