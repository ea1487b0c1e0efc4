//! Ballast on the hosts of a lab: a controller on the first, an agent on each.

use std::time::Duration;

use ballast_model::Refusal;

use crate::host::{Host, Task};
use crate::lab::Lab;

/// How long until all hosts are known. Programs start slowly where the processor is emulated.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How long an agent may be silent: emulated hosts under load are.
const STALE_AFTER_MS: u32 = 60_000;
/// The longest there is, for the same reason.
const LEADER_LEASE_MS: u32 = 60_000;
const CONTROLLER_PORT: u16 = 7070;
/// Addresses of a lab without a network.
const LOOPBACK: &str = "127.0.0.1";

/// Controller and agents that run.
#[derive(Debug)]
pub struct Cluster<'a> {
    lab: &'a Lab,
    controller: Task,
    agents: Vec<Task>,
}

impl<'a> Cluster<'a> {
    /// Starts them and waits until the controller knows all hosts.
    ///
    /// It moves nothing on its own: automation is manual.
    ///
    /// # Errors
    /// What a host says when something does not start, with its log.
    pub fn start(lab: &'a Lab) -> Result<Self, Refusal> {
        Self::start_with(lab, "")
    }

    /// As [`start`](Self::start), with further lines for the table `[vmm]` of the agents' configuration.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(lab: &'a Lab, vmm: &str) -> Result<Self, Refusal> {
        let first = lab.host(0);
        let endpoint = format!("{}:{CONTROLLER_PORT}", address(first));
        write_config(first, "controller", &controller_config(&endpoint))?;
        let controller = first
            .spawn("controller", "ballast-controller --config /etc/ballast/controller.toml")?;
        let mut agents = Vec::new();
        for host in lab.hosts() {
            write_config(host, "agent", &agent_config(host, &endpoint, vmm))?;
            agents.push(host.spawn("agent", "ballast-agent --config /etc/ballast/agent.toml")?);
        }
        let cluster = Self { lab, controller, agents };
        cluster.wait_for_hosts()?;
        Ok(cluster)
    }

    /// Runs `ballast` with `args`, words of a shell, on the first host; what it printed.
    ///
    /// # Errors
    /// `Timeout` after `limit`; `HostFailure` when it fails, with what it and the daemons said.
    pub fn ballast(&self, args: &str, limit: Duration) -> Result<String, Refusal> {
        let host = self.lab.host(0);
        let script = format!("{}; ballast {args}", self.environment());
        let outcome = host.run(&script, limit).and_then(|output| output.ok(host, &script));
        outcome.map_err(|refusal| self.with_logs(refusal))
    }

    /// What a script on the first host says first, so that `ballast` finds its controller.
    pub fn environment(&self) -> String {
        let host = address(self.lab.host(0));
        format!("export BALLAST_CONTROLLER=http://{host}:{CONTROLLER_PORT}")
    }

    /// Waits until the load of every host is known: only such a host is given a VM.
    ///
    /// # Errors
    /// `Timeout`, with what the daemons said.
    pub fn wait_for_hosts(&self) -> Result<(), Refusal> {
        let known =
            self.lab.hosts().iter().map(|host| {
                format!("ballast host ls | grep -w {} | grep -qvw unknown", host.name())
            });
        let script = [self.environment()].into_iter().chain(known).collect::<Vec<_>>().join(" && ");
        let known = self.lab.host(0).until(&script, START_LIMIT);
        known.map(drop).map_err(|refusal| self.with_logs(refusal))
    }

    /// The host that `ballast` is run on.
    pub(crate) fn first(&self) -> &'a Host {
        self.lab.host(0)
    }

    /// The refusal, and what the daemons said last.
    pub(crate) fn with_logs(&self, mut refusal: Refusal) -> Refusal {
        let first = [(self.lab.host(0), &self.controller)].into_iter();
        for (host, task) in first.chain(self.lab.hosts().iter().zip(&self.agents)) {
            let log = host.sh(&format!("tail -n 20 {}", task.log)).unwrap_or_default();
            refusal.reason.push_str(&format!("\n--- {}:{}\n{log}", host.name(), task.log));
        }
        refusal
    }
}

fn address(host: &Host) -> &str {
    host.address().unwrap_or(LOOPBACK)
}

fn write_config(host: &Host, name: &str, text: &str) -> Result<(), Refusal> {
    let dir = "/etc/ballast";
    host.sh(&format!("mkdir -p {dir}; cat >{dir}/{name}.toml <<'END'\n{text}\nEND")).map(drop)
}

fn controller_config(endpoint: &str) -> String {
    format!(
        r#"listen = "{endpoint}"
http_listen = "127.0.0.1:7071"
leader_lease_ms = {LEADER_LEASE_MS}
[store]
kind = "embedded"
path = "/var/lib/controller.redb"
[telemetry]
stale_after_ms = {STALE_AFTER_MS}
window_ms = {STALE_AFTER_MS}
[balance]
automation = "manual""#
    )
}

fn agent_config(host: &Host, controller: &str, vmm: &str) -> String {
    let (name, address) = (host.name(), address(host));
    format!(
        r#"host = "{name}"
listen = "{address}:7072"
http_listen = "127.0.0.1:7073"
controller = "http://{controller}"
state_dir = "/var/lib/ballast"
driver = "kvm"
migration_address = "{address}"
link = "1Gbit/s"
[vmm]
binary = "/bin/ballast-vmm"
{vmm}"#
    )
}
