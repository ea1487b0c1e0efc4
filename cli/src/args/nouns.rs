//! The verbs of each noun.

use std::path::PathBuf;

use ballast_model::rule::Domain;
use ballast_model::vm::Automation;
use ballast_model::{Bytes, HostId, MigrationId, PlanId, RuleId, VmId};
use clap::{Args, Subcommand, ValueEnum};

use super::hardware::HardwareArgs;
use super::value::{self, Duration};

/// Whether and how long a command waits for the end of what it began.
#[derive(Debug, Clone, Copy, Args)]
pub struct WaitArgs {
    /// Wait for the end and tell how it goes
    #[arg(long)]
    pub wait: bool,
    /// With --wait, the longest time to wait
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub wait_timeout: Duration,
}

/// `ballast host`.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List all hosts with their load
    Ls,
    /// Show one host and its VMs
    Show {
        /// The host
        host: HostId,
    },
    /// Move every VM off a host, as for maintenance
    Drain {
        /// The host
        host: HostId,
        /// What matters most until it is empty; what the controller is configured for when not given. A host that drains
        /// already keeps its goal unless another is given
        #[arg(long)]
        goal: Option<DrainGoal>,
        /// Whether to wait until it is empty.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Let a drained host take VMs again
    Uncordon {
        /// The host
        host: HostId,
    },
}

/// `ballast vm`.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Create a VM and start it
    Create(CreateArgs),
    /// List VMs with their load
    Ls {
        /// Only those of this host
        #[arg(long)]
        host: Option<HostId>,
    },
    /// Show one VM
    Show {
        /// The VM
        vm: VmId,
    },
    /// End VMs and remove them
    Rm {
        /// The VMs
        #[arg(required = true)]
        vms: Vec<VmId>,
    },
    /// Move a VM to another host while it runs
    Migrate {
        /// The VM
        vm: VmId,
        /// The destination; the controller chooses when it is not given
        #[arg(long, value_name = "HOST")]
        to: Option<HostId>,
        /// Whether to wait for its end.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Write all of a VM but its disks to a file on its host
    Snapshot {
        /// The VM
        vm: VmId,
        /// An absolute path on the VM's host, of a file that is not there yet
        #[arg(long, value_name = "PATH")]
        to: PathBuf,
        /// End and remove the VM once the file is whole; needed for a VM that writes to a disk
        #[arg(long)]
        stop: bool,
    },
    /// Let a VM that is no longer there go on from a snapshot
    Restore {
        /// The snapshot, an absolute path on the host
        #[arg(long, value_name = "PATH")]
        from: PathBuf,
        /// Where the VM is to run
        #[arg(long)]
        host: HostId,
    },
    /// What happened to a VM, oldest first
    History {
        /// The VM
        vm: VmId,
    },
    /// Print what the VM wrote to its serial port, or attach to it
    Console {
        /// The VM
        vm: VmId,
        /// Print what comes from now on and send what is typed or piped in; Ctrl-] and
        /// then a dot detaches
        #[arg(short, long, conflicts_with = "follow")]
        attach: bool,
        /// Go on printing until interrupted
        #[arg(short, long)]
        follow: bool,
        /// First byte wanted, counted from the VM's first byte ever
        #[arg(long, value_name = "BYTES")]
        offset: Option<u64>,
    },
}

/// `ballast vm create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The VM's name
    pub vm: VmId,
    /// The kernel image, an absolute path that every host resolves to the same file
    #[arg(long, value_name = "PATH")]
    pub kernel: PathBuf,
    /// The initial RAM disk, an absolute path as for the kernel
    #[arg(long, value_name = "PATH")]
    pub initrd: Option<PathBuf>,
    /// What it is built of.
    #[command(flatten)]
    pub hardware: HardwareArgs,
    /// The kernel command line
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub cmdline: String,
    /// A label; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = value::label)]
    pub labels: Vec<(String, String)>,
    /// What the balancer may do with it
    #[arg(long, default_value = "full")]
    pub automation: AutomationLevel,
    /// The longest switchover to plan for when it migrates
    #[arg(long, value_name = "TIME", default_value = "300ms")]
    pub downtime_limit: Duration,
    /// Compare a hash of every page on both sides when it migrates
    #[arg(long)]
    pub verify: bool,
    /// When it writes faster than the link carries, let it run on the destination before all of its
    /// memory is there; if its source dies then, the VM is lost
    #[arg(long)]
    pub post_copy: bool,
    /// Where to start it; the controller chooses when it is not given
    #[arg(long)]
    pub host: Option<HostId>,
}

/// What the balancer may do on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AutomationLevel {
    /// Moves for balance and for maintenance.
    Full,
    /// Moves for maintenance; moves for balance are recommended only.
    Partial,
    /// No moves; all are recommended only.
    Manual,
}

impl From<AutomationLevel> for Automation {
    fn from(level: AutomationLevel) -> Self {
        match level {
            AutomationLevel::Full => Self::Full,
            AutomationLevel::Partial => Self::Partial,
            AutomationLevel::Manual => Self::Manual,
        }
    }
}

/// `ballast rule`.
#[derive(Debug, Subcommand)]
pub enum RuleCommand {
    /// List all rules
    Ls,
    /// Write a rule, new or in place of the one of this name
    Set(RuleSetArgs),
    /// Remove a rule
    Rm {
        /// The rule
        rule: RuleId,
    },
}

/// `ballast rule set`.
#[derive(Debug, Args)]
pub struct RuleSetArgs {
    /// The rule's name
    pub rule: RuleId,
    /// What it demands
    #[arg(long)]
    pub kind: RuleKindName,
    /// The VMs it binds, separated by commas
    #[arg(long, value_name = "VM,…", value_delimiter = ',', required = true)]
    pub vms: Vec<VmId>,
    /// With vm-host, vm-not-host and host-cap, the hosts, separated by commas
    #[arg(long, value_name = "HOST,…", value_delimiter = ',',
          required_if_eq_any([("kind", "vm-host"), ("kind", "vm-not-host"), ("kind", "host-cap")]))]
    pub hosts: Vec<HostId>,
    /// With anti-affinity, the most of the VMs on one host (default 1); with spread, in one domain
    #[arg(long, value_name = "COUNT")]
    pub at_most: Option<u32>,
    /// With spread, the fewest domains that have one of the VMs
    #[arg(long, value_name = "COUNT")]
    pub domains_min: Option<u32>,
    /// With affinity, spread and near, the domain: 'host', or labels from the outermost on, e.g. room/rack
    #[arg(long, value_name = "LABEL/…", required_if_eq("kind", "spread"))]
    pub domain: Option<Domain>,
    /// With near, the VMs that are needed nearby, separated by commas
    #[arg(long, value_name = "VM,…", value_delimiter = ',', required_if_eq("kind", "near"))]
    pub needs: Vec<VmId>,
    /// With host-cap, the most of the hosts that may run one of the VMs
    #[arg(long, value_name = "COUNT", required_if_eq("kind", "host-cap"))]
    pub hosts_max: Option<u32>,
    /// With among, one of the groups of hosts, separated by commas; may be given several times
    #[arg(long, value_name = "HOST,…", required_if_eq("kind", "among"))]
    pub group: Vec<value::HostGroup>,
    /// Whether it may be broken when nothing else fits
    #[arg(long, default_value = "must")]
    pub strength: RuleStrength,
    /// With should, how much it counts against other preferences, 1 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub weight: Option<u32>,
    /// When it has to hold; by default at every moment, but affinity, near and among when a plan has ended
    #[arg(long)]
    pub hold: Option<RuleHold>,
    /// Write it even if nothing can satisfy it and the other rules at once
    #[arg(long)]
    pub force: bool,
}

/// The kinds of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuleKindName {
    /// At most so many of the VMs on one host.
    AntiAffinity,
    /// All the VMs on one host, or in one domain.
    Affinity,
    /// The VMs only on these hosts.
    VmHost,
    /// The VMs on none of these hosts.
    VmNotHost,
    /// The VMs over several failure domains.
    Spread,
    /// The VMs in a domain with one of those they need.
    Near,
    /// The VMs on at most so many of these hosts, e.g. for a licence.
    HostCap,
    /// The VMs all in one of these groups of hosts.
    Among,
}

/// When a rule has to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuleHold {
    /// When a plan has ended.
    Discrete,
    /// At every moment.
    Continuous,
}

/// Whether a rule may be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuleStrength {
    /// Never.
    Must,
    /// When nothing else fits.
    Should,
}

/// What matters most when hosts are emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DrainGoal {
    /// The cluster as it is afterwards: level load.
    Balanced,
    /// The time until the hosts are empty; what can wait begins then.
    Fastest,
    /// The VMs of other hosts: none moves that could stay.
    LeastDisturbing,
}

impl From<DrainGoal> for ballast_model::DrainGoal {
    fn from(goal: DrainGoal) -> Self {
        match goal {
            DrainGoal::Balanced => Self::Balanced,
            DrainGoal::Fastest => Self::Fastest,
            DrainGoal::LeastDisturbing => Self::LeastDisturbing,
        }
    }
}

/// `ballast plan`; without a verb, `ballast plan show`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct PlanArgs {
    /// The verb.
    #[command(subcommand)]
    pub command: Option<PlanCommand>,
    /// What to show when there is no verb.
    #[command(flatten)]
    pub show: PlanShowArgs,
}

/// `ballast plan show`.
#[derive(Debug, Args)]
pub struct PlanShowArgs {
    /// Write the snapshot the plan was made from to a file
    #[arg(long, value_name = "FILE", conflicts_with = "snapshot")]
    pub save: Option<PathBuf>,
    /// Plan on a snapshot file, or on a text scenario (*.txt), without a controller
    #[arg(long, value_name = "FILE")]
    pub snapshot: Option<PathBuf>,
    /// Say for every VM why it moves or stays
    #[arg(short, long, visible_alias = "explain")]
    pub all: bool,
    /// Plan as if the cluster were changed: 'drain HOST [GOAL]', 'fail HOST', 'quarantine HOST', 'add host like HOST',
    /// 'add COUNT vms like VM', 'without rule RULE', 'without vm VM'; may be given several times
    #[arg(long, value_name = "CHANGE")]
    pub what_if: Vec<String>,
    /// What matters most when hosts are emptied, whatever goals their drains have
    #[arg(long, value_name = "GOAL")]
    pub drain: Option<DrainGoal>,
    /// How eagerly to level the load, from 1, only what is worth much, to 5, every small gain
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub aggressiveness: Option<u8>,
    /// The least a move for balance must be worth: as much as bringing one host that is off the mean load by this share of
    /// its capacity back to the mean
    #[arg(long, value_name = "SHARE")]
    pub gain_min: Option<f64>,
    /// The most moves: the plan is the best that so few can do
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub moves: Option<u32>,
    /// The most bytes that all moves together may send, e.g. 64GiB: the plan is the best that so much can do
    #[arg(long, value_name = "SIZE")]
    pub bytes: Option<Bytes>,
    /// The longest time that all moves together may take, one after the other, e.g. 30m: the plan is the best that can be
    /// done in it
    #[arg(long, value_name = "DURATION")]
    pub time: Option<Duration>,
    /// Write which step waits for which to a file, to be drawn by Graphviz ('dot -Tsvg FILE')
    #[arg(long, value_name = "FILE")]
    pub graph: Option<PathBuf>,
}

/// The verbs of `ballast plan`.
#[derive(Debug, Subcommand)]
pub enum PlanCommand {
    /// Show what the balancer would do now; moves nothing
    Show(PlanShowArgs),
    /// Carry out a plan
    Apply {
        /// A plan shown before; without it, plan now and carry that out
        plan: Option<PlanId>,
    },
}

/// `ballast migration`.
#[derive(Debug, Subcommand)]
pub enum MigrationCommand {
    /// List migrations, newest first
    Ls {
        /// Only those of this VM
        #[arg(long)]
        vm: Option<VmId>,
        /// Only those that have not ended
        #[arg(long)]
        running: bool,
        /// At most this many
        #[arg(long, value_name = "COUNT", default_value_t = 100,
              value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show one migration with the parts of its downtime
    Show {
        /// The migration
        migration: MigrationId,
    },
    /// Cancel a migration; its VM goes on where it was
    Cancel {
        /// The migration
        migration: MigrationId,
    },
    /// Settle a migration that stays committed because its destination is gone for good
    #[command(group = clap::ArgGroup::new("settlement").required(true))]
    Settle {
        /// The migration
        migration: MigrationId,
        /// Its destination, which you have fenced: switched off, or cut from disks and networks
        #[arg(long, value_name = "HOST")]
        fenced: HostId,
        /// The copy on the source goes on, as if the VM had never left
        #[arg(long, group = "settlement")]
        give_back: bool,
        /// The VM is lost with the host; the source discards its copy
        #[arg(long, group = "settlement")]
        lost: bool,
    },
}

/// `ballast audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List entries, oldest first; with -o json one object a line
    Ls {
        /// First sequence number wanted
        #[arg(long, value_name = "SEQUENCE", default_value_t = 1)]
        from: u64,
        /// At most this many
        #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
        /// Only entries about this VM, host, rule or migration
        #[arg(long, value_name = "NAME")]
        subject: Option<String>,
    },
    /// Check the whole chain here and name the first entry that breaks it
    Verify {
        /// Check a file written by `audit ls -o json` instead
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// `ballast automation`.
#[derive(Debug, Subcommand)]
pub enum AutomationCommand {
    /// Show the level
    Show,
    /// Set the level for the whole cluster
    Set {
        /// The level
        level: AutomationLevel,
    },
}
