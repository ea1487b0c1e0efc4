//! A controller and agents as separate processes on this machine.
//!
//! Each agent stands for a host: it has a loopback address and a configured
//! capacity of its own. `ballast demo` and the end-to-end tests stand on this.
//!
//! ```text
//!  this process ──owns──▶ controller, agents, etcd        (children)
//!       │                      agents ──▶ VMM processes   (outlive their agent by design)
//!       └──pipe──▶ guard: when the pipe ends, ends all of the above and removes the directory
//! ```
//!
//! Everything lives in one temporary directory: `bin/` with a symbolic link to
//! the program under the name of each daemon, `config/`, `log/`, `state/`.
//! [`Cluster::stop`] ends everything in order. Dropping a cluster, or any
//! death of this process, leaves the same to the [guard](guard), only harder.

mod config;
pub mod guard;
mod process;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use ballast_controller::store::etcd_process::EtcdProcess;
use ballast_model::{HostId, Refusal, RefusalCode, Resources, Timestamp};
use ballast_proto::v1;
use tempfile::TempDir;

use crate::client::Client;
use guard::Guard;
use process::Process;

pub use config::{DriverKind, StoreKind};

/// How long a process may take to be ready, and how long a call may take.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a process may take to end when asked to.
const END_LIMIT: Duration = Duration::from_secs(8);
/// How often conditions are looked at.
const POLL: Duration = Duration::from_millis(50);
/// The most hosts: one loopback address each, in the last octet.
const HOSTS_MAX: usize = 200;

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The multi-call program, e.g. `ballast` itself.
    pub program: PathBuf,
    /// How many hosts; they are named `host-1`, `host-2`, …
    pub hosts: usize,
    /// What each host offers.
    pub capacity: Resources,
    /// How VMs are run.
    pub driver: DriverKind,
    /// Where the controller keeps its state.
    pub store: StoreKind,
    /// Further keys of the controller's configuration, merged over the ones that are set here.
    pub controller_config: toml::Table,
    /// The `RUST_LOG` of the daemons; their logs are in `log/`.
    pub log_level: String,
    /// Further environment variables of the daemons and their VMs.
    pub env: Vec<(String, String)>,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    url: String,
    controller: Process,
    agents: Vec<Process>,
    etcd: Option<EtcdProcess>,
    guard: Guard,
    dir: TempDir,
}

impl Cluster {
    /// Starts everything and waits until every host's load is known.
    ///
    /// # Errors
    /// `InvalidArgument` for impossible options, `HostFailure` with the last
    /// words of the process that did not start, `Timeout`.
    pub async fn start(options: ClusterOptions) -> Result<Self, Refusal> {
        if !(1..=HOSTS_MAX).contains(&options.hosts) {
            return Err(Refusal::new(
                RefusalCode::InvalidArgument,
                format!("a cluster of {} hosts", options.hosts),
                format!("use 1 to {HOSTS_MAX} hosts"),
            ));
        }
        let dir = layout(&options.program).map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot set up the cluster's directory: {error}"),
                "check that TMPDIR is writable and has room",
            )
        })?;
        let guard = Guard::start(dir.path())?;
        let etcd = match options.store {
            StoreKind::Etcd => Some(start_etcd(dir.path().join("state")).await?),
            StoreKind::Embedded => None,
        };
        let grpc = free_address(Ipv4Addr::LOCALHOST)?;
        let url = format!("http://{grpc}");
        let config = config::controller(
            dir.path(),
            grpc,
            free_address(Ipv4Addr::LOCALHOST)?,
            etcd.as_ref().map(EtcdProcess::endpoint).as_deref(),
            &options.controller_config,
        )?;
        let mut controller = Process::new(
            dir.path(),
            "ballast-controller",
            "controller",
            &config,
            &options.log_level,
            &options.env,
        );
        controller.spawn()?;
        let mut agents = Vec::new();
        for index in 0..options.hosts {
            let name = host_name(index);
            let address = host_address(index);
            let places = config::AgentPlaces {
                host: &name,
                grpc: free_address(address)?,
                http: free_address(address)?,
                controller: &url,
            };
            let config = config::agent(dir.path(), &places, options.driver, options.capacity)?;
            let (level, env) = (&options.log_level, &options.env);
            let mut agent = Process::new(dir.path(), "ballast-agent", &name, &config, level, env);
            agent.spawn()?;
            agents.push(agent);
        }
        let mut cluster = Self { url, controller, agents, etcd, guard, dir };
        cluster.wait_ready(Timestamp::default()).await?;
        Ok(cluster)
    }

    /// The controller's address, e.g. for `--controller`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The directory its VMs may write snapshots to.
    pub fn snapshot_dir(&self) -> PathBuf {
        self.dir.path().join(config::SNAPSHOTS)
    }

    /// The directory that a host's local disks are beneath.
    pub fn disk_root(&self, host: &str) -> PathBuf {
        config::disk_root(self.dir.path(), host)
    }

    /// The directory everything is in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The probe guest's image, to be named as the kernel of VMs.
    pub fn kernel(&self) -> PathBuf {
        self.dir.path().join("guest")
    }

    /// The name of host `index`, counted from zero.
    ///
    /// # Errors
    /// `NotFound` when there is no such host.
    pub fn host(&self, index: usize) -> Result<HostId, Refusal> {
        let name = self.agents.get(index).and_then(|agent| agent.name().parse().ok());
        name.ok_or_else(|| no_such_host(index))
    }

    /// How many hosts there are.
    pub fn host_count(&self) -> usize {
        self.agents.len()
    }

    /// A connection to the controller.
    ///
    /// # Errors
    /// `Unavailable` while it does not run.
    pub async fn client(&self) -> Result<Client, Refusal> {
        Client::connect(&self.url, READY_LIMIT).await
    }

    /// The controller's process id, while it runs.
    pub fn controller_pid(&self) -> Option<u32> {
        self.controller.pid()
    }

    /// The process id of agent `index`, while it runs.
    pub fn agent_pid(&self, index: usize) -> Option<u32> {
        self.agents.get(index).and_then(Process::pid)
    }

    /// Ends the controller with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// `HostFailure` when it cannot be ended.
    pub async fn kill_controller(&mut self) -> Result<(), Refusal> {
        self.controller.kill().await
    }

    /// Starts the controller again with the same state and address, and waits until it answers.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart_controller(&mut self) -> Result<(), Refusal> {
        self.controller.spawn()?;
        self.wait_controller().await.map(drop)
    }

    /// Ends agent `index` with SIGKILL and waits until it is gone. Its VMs go on.
    ///
    /// # Errors
    /// `NotFound`, or `HostFailure` when it cannot be ended.
    pub async fn kill_agent(&mut self, index: usize) -> Result<(), Refusal> {
        self.agent(index)?.kill().await
    }

    /// Starts agent `index` again and waits until the controller knows its load.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart_agent(&mut self, index: usize) -> Result<(), Refusal> {
        let since = Timestamp::from(SystemTime::now());
        self.agent(index)?.spawn()?;
        self.wait_ready(since).await
    }

    /// Starts agent `index` again and does not wait for it: the controller may not run.
    ///
    /// # Errors
    /// `NotFound`, or `HostFailure` when it does not start.
    pub fn spawn_agent(&mut self, index: usize) -> Result<(), Refusal> {
        self.agent(index)?.spawn()
    }

    /// The process id of etcd, while it runs; none with the embedded store.
    pub fn store_pid(&self) -> Option<u32> {
        self.etcd.as_ref().map(EtcdProcess::pid)
    }

    /// Ends etcd with SIGKILL, which closes nothing, and starts it again with the same data and
    /// address.
    ///
    /// # Errors
    /// `WrongState` with the embedded store; as [`start`](Self::start).
    pub async fn crash_store(&mut self) -> Result<(), Refusal> {
        let Some(etcd) = self.etcd.take() else {
            return Err(Refusal::new(
                RefusalCode::WrongState,
                "the store is embedded in the controller",
                "kill the controller, or start the cluster with etcd",
            ));
        };
        let (address, pid) = (etcd.address(), i32::try_from(etcd.pid()).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // One that has ended by itself is what is wanted.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let dir = self.dir.path().join("state");
        let again = move || {
            drop(etcd);
            EtcdProcess::start_at(&dir, address)
        };
        let started = tokio::task::spawn_blocking(again).await;
        self.etcd = Some(started.map_err(|error| {
            let reason = format!("starting etcd failed: {error}");
            Refusal::new(RefusalCode::Internal, reason, "report a defect")
        })??);
        Ok(())
    }

    /// Ends everything in order: VMs, agents, controller, etcd; what does not end when asked is
    /// killed. Then removes the directory.
    ///
    /// # Errors
    /// The first thing that could not be ended or removed; the rest is done all the same.
    pub async fn stop(mut self) -> Result<(), Refusal> {
        let deleted = self.delete_vms().await;
        for agent in &mut self.agents {
            agent.ask_to_end();
        }
        let deadline = Instant::now() + END_LIMIT;
        for agent in &mut self.agents {
            agent.end_by(deadline).await;
        }
        self.controller.ask_to_end();
        self.controller.end_by(Instant::now() + END_LIMIT).await;
        drop(self.etcd.take());
        let swept = guard::sweep(self.dir.path());
        self.guard.release();
        let dir = self.dir.path().display().to_string();
        self.dir.close().map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot remove {dir}: {error}"),
                "remove it by hand",
            )
        })?;
        deleted.and(swept)
    }

    /// Leaves everything running for good, and the directory in place. An etcd ends with this process all the same.
    pub fn keep(mut self) -> PathBuf {
        self.guard.release();
        self.agents.iter_mut().for_each(Process::release);
        self.controller.release();
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }

    fn agent(&mut self, index: usize) -> Result<&mut Process, Refusal> {
        self.agents.get_mut(index).ok_or_else(|| no_such_host(index))
    }

    /// Deletes every VM through the controller, as an operator would.
    async fn delete_vms(&self) -> Result<(), Refusal> {
        if self.controller.pid().is_none() {
            return Ok(()); // what it would have ended is swept
        }
        let client = Client::connect(&self.url, END_LIMIT).await?;
        let vms = client.list_vms(v1::ListVmsRequest::default()).await?.vms;
        let delete = |vm: v1::VmRecord| {
            let client = client.clone();
            async move {
                let vm = vm.spec.map(|spec| spec.id).unwrap_or_default();
                let why = "the cluster is being ended".to_owned();
                let actor = Some(v1::Actor { who: "cluster".to_owned(), why });
                client.delete_vm(v1::DeleteVmRequest { vm, actor }).await
            }
        };
        let results = futures::future::join_all(vms.into_iter().map(delete)).await;
        results.into_iter().try_for_each(|result| result.map(drop))
    }

    async fn wait_controller(&mut self) -> Result<Client, Refusal> {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            self.controller.check_alive()?;
            let refusal = match Client::connect(&self.url, READY_LIMIT).await {
                Ok(client) => match client.get_status(v1::GetStatusRequest {}).await {
                    Ok(_) => return Ok(client),
                    Err(refusal) => refusal,
                },
                Err(refusal) => refusal,
            };
            if Instant::now() > deadline {
                return Err(refusal);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the controller knows the load of every host by a report that came after `since`.
    async fn wait_ready(&mut self, since: Timestamp) -> Result<(), Refusal> {
        let client = self.wait_controller().await?;
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            self.controller.check_alive()?;
            for agent in &mut self.agents {
                agent.check_alive()?;
            }
            let hosts = client.list_hosts(v1::ListHostsRequest {}).await?.hosts;
            let fresh = |host: &&v1::HostStatus| {
                host.known && host.last_report_unix_millis > since.unix_millis()
            };
            let known = hosts.iter().filter(fresh).count();
            if known >= self.agents.len() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Refusal::new(
                    RefusalCode::Timeout,
                    format!("only {known} of {} hosts report their load", self.agents.len()),
                    format!("look into the logs in {}", self.dir.path().join("log").display()),
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Starts etcd without holding up the runtime.
async fn start_etcd(dir: PathBuf) -> Result<EtcdProcess, Refusal> {
    let started = tokio::task::spawn_blocking(move || EtcdProcess::start(&dir)).await;
    started.unwrap_or_else(|error| {
        let reason = format!("starting etcd failed: {error}");
        Err(Refusal::new(RefusalCode::Internal, reason, "report a defect"))
    })
}

fn no_such_host(index: usize) -> Refusal {
    let remedy = "use an index below the number of hosts";
    Refusal::new(RefusalCode::NotFound, format!("the cluster has no host {index}"), remedy)
}

fn host_name(index: usize) -> String {
    format!("host-{}", index + 1)
}

fn host_address(index: usize) -> Ipv4Addr {
    // HOSTS_MAX keeps it within an octet.
    Ipv4Addr::new(127, 0, 0, u8::try_from(index + 11).unwrap_or(u8::MAX))
}

/// The directory with its links and the probe guest in it.
fn layout(program: &Path) -> std::io::Result<TempDir> {
    let program = program.canonicalize()?;
    let dir = tempfile::Builder::new().prefix("ballast-").tempdir()?;
    for name in ["bin", "config", "log", "state"] {
        std::fs::create_dir(dir.path().join(name))?;
    }
    for name in ["ballast-controller", "ballast-agent", "ballast-vmm", guard::PROGRAM] {
        std::os::unix::fs::symlink(&program, dir.path().join("bin").join(name))?;
    }
    std::fs::write(dir.path().join("guest"), ballast_guest::IMAGE)?;
    Ok(dir)
}

/// An address with a port that is free now. Another program may take it before it is used; the
/// process that then cannot listen says so.
fn free_address(ip: Ipv4Addr) -> Result<SocketAddr, Refusal> {
    let bound = TcpListener::bind((IpAddr::V4(ip), 0)).and_then(|listener| listener.local_addr());
    bound.map_err(|error| {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot find a free port on {ip}: {error}"),
            "check that the loopback interface is up",
        )
    })
}
