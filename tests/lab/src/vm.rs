//! A VM of a cluster with the Linux guest of [`crate::guest`] in it, and the ways into the guest.
//!
//! Commands reach the guest by its network, from the cluster's first host, or
//! typed at its console by `ballast vm console --attach`.

use std::time::Duration;

use ballast_model::{Refusal, RefusalCode};
use serde::Deserialize;

use crate::cluster::Cluster;
use crate::guest::LinuxGuest;
use crate::host::Host;

/// How long a guest may take to its prompt. It takes about 15 s on a quiet machine.
const PROMPT_LIMIT: Duration = Duration::from_secs(240);
/// The longest a command or a state may take.
const STEP_LIMIT: Duration = Duration::from_secs(180);

/// A VM with a Linux guest.
#[derive(Debug)]
pub struct LinuxVm<'a> {
    cluster: &'a Cluster<'a>,
    name: &'static str,
    address: String,
    /// Further words of the kernel's command line.
    cmdline: &'static str,
}

/// What `ballast vm show` says of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Shown {
    /// The host that has it.
    pub host: String,
    /// `running`, `stopped` and so on.
    pub state: String,
    /// Why it is as it is, where there is something to say.
    pub detail: Option<String>,
    /// The process that runs it.
    pub pid: Option<u32>,
}

impl<'a> LinuxVm<'a> {
    /// A VM, to be created, that has the address of the hosts' network ending in `number`.
    pub fn new(cluster: &'a Cluster<'a>, name: &'static str, number: u8) -> Self {
        Self { cluster, name, address: crate::lab::guest_address(number), cmdline: "" }
    }

    /// The same with further words of the kernel's command line.
    #[must_use]
    pub fn cmdline(self, cmdline: &'static str) -> Self {
        Self { cmdline, ..self }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name
    }

    /// Its address on the hosts' network.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The words of `ballast` that create it with `hardware`, further words.
    pub fn create_words(&self, hardware: &str) -> String {
        let cmdline = LinuxGuest::cmdline(&format!("{}/24", self.address));
        let boot = LinuxGuest::create_args(format!("{cmdline} {}", self.cmdline).trim_end());
        format!("vm create {} {boot} {hardware}", self.name)
    }

    /// Waits until the shell on its console waits for a command.
    ///
    /// # Errors
    /// `Timeout`, with what the console and the daemons said.
    pub fn wait_for_prompt(&self) -> Result<(), Refusal> {
        let prompt = LinuxGuest::PROMPT.trim_end();
        let console = format!("{}; ballast vm console {}", self.cluster.environment(), self.name);
        let seen = format!("{console} >/run/lab/console; grep -q '{prompt}' /run/lab/console");
        self.host().until(&seen, PROMPT_LIMIT).map(drop).map_err(|mut refusal| {
            let console = self.host().sh("tail -n 40 /run/lab/console").unwrap_or_default();
            refusal.reason.push_str(&format!("\n--- console of {}\n{console}", self.name));
            self.cluster.with_logs(refusal)
        })
    }

    /// Runs a command by typing it at the console; what the console showed.
    ///
    /// # Errors
    /// As [`Cluster::ballast`].
    pub fn typed(&self, command: &str) -> Result<String, Refusal> {
        let script = format!(
            "{}; echo {} | ballast vm console {} --attach",
            self.cluster.environment(),
            quoted(command),
            self.name
        );
        self.host().run(&script, STEP_LIMIT)?.ok(self.host(), &script)
    }

    /// Runs a command in the guest by its network; what it printed.
    ///
    /// # Errors
    /// `HostFailure` when the guest does not answer; `Timeout`.
    pub fn sh(&self, command: &str) -> Result<String, Refusal> {
        let script = self.shell(command);
        self.host().run(&script, STEP_LIMIT)?.ok(self.host(), &script)
    }

    /// Repeats a command in the guest until it succeeds.
    ///
    /// # Errors
    /// `Timeout`.
    pub fn until(&self, command: &str) -> Result<(), Refusal> {
        let script =
            format!("{} | grep -qx reached", self.shell(&format!("{command} && echo reached")));
        self.host().until(&script, STEP_LIMIT).map(drop)
    }

    /// Has the guest run a command that it does not come back from, such as `poweroff -f`.
    ///
    /// # Errors
    /// As [`sh`](Self::sh).
    pub fn leave(&self, command: &str) -> Result<(), Refusal> {
        // The connection is closed before the command runs: nobody would close it afterwards.
        let later = format!("(sleep 1; {command}) </dev/null >/dev/null 2>&1 &");
        self.sh(&later).map(drop)
    }

    /// The counter that goes on as long as the guest lives.
    ///
    /// # Errors
    /// As [`sh`](Self::sh).
    pub fn count(&self) -> Result<u64, Refusal> {
        let text = self.sh("cat /run/count")?;
        text.parse().map_err(|_| unexpected("the guest's counter is a number", &text))
    }

    /// What `ballast vm show` says.
    ///
    /// # Errors
    /// As [`Cluster::ballast`].
    pub fn show(&self) -> Result<Shown, Refusal> {
        let text = self.cluster.ballast(&format!("-o json vm show {}", self.name), STEP_LIMIT)?;
        serde_json::from_str(&text).map_err(|_| unexpected("vm show is as documented", &text))
    }

    /// Waits until the guest has ended; why it has.
    ///
    /// # Errors
    /// `Timeout`, with what the daemons said.
    pub fn ended(&self) -> Result<String, Refusal> {
        let stopped = format!(
            "{}; ballast -o json vm show {} | grep -q '\"state\": *\"stopped\"'",
            self.cluster.environment(),
            self.name
        );
        let waited = self.host().until(&stopped, STEP_LIMIT);
        waited.map_err(|refusal| self.cluster.with_logs(refusal))?;
        Ok(self.show()?.detail.unwrap_or_default())
    }

    /// A script for the first host that has the guest's shell run `command`.
    pub fn shell(&self, command: &str) -> String {
        format!("echo {} | nc {} {}", quoted(command), self.address, LinuxGuest::SHELL_PORT)
    }

    fn host(&self) -> &'a Host {
        self.cluster.first()
    }
}

/// One word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

pub(crate) fn unexpected(what: &str, seen: &str) -> Refusal {
    Refusal::new(
        RefusalCode::Internal,
        format!("not so: {what}; seen: {seen}"),
        "report a defect with this output",
    )
}
