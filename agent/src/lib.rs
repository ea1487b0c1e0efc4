//! `ballast-agent`: one host's load, its VMs, and both ends of their migrations.
//!
//! ```text
//!  controller ──AgentService──▶ service ──▶ host ──▶ vm (one task each) ──▶ driver: kvm | sim
//!      ▲                                                 │ asks who may run a VM
//!      └──────RegistryService── registry, report ◀───────┴──── load (sampler)
//! ```
//!
//! | module | what it does |
//! | --- | --- |
//! | [`config`] | the configuration file |
//! | [`service`] | AgentService: messages in, checked; answers out |
//! | [`host`] | all VMs of the host, and who gets room |
//! | [`vm`] | one VM: the task that owns it, its record on disk, what is accepted when |
//! | [`driver`] | what runs VMs: `kvm` processes, or the `sim` model |
//! | [`migrations`] | the status of migrations, for those who watch |
//! | [`registry`], [`report`] | the controller: who may run a VM; registration and load reports |
//! | [`load`] | readings of `/proc`, `/sys` and of the machines |
//! | [`metrics`] | `/metrics` |
//!
//! The agent decides nothing about who runs a VM: it does what the owner record
//! says, and while it cannot know, a paused side stays paused. A VM outlives its
//! agent; the next agent adopts it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ballast_model::{Refusal, RefusalCode, Resources};
use ballast_proto::v1;
use ballast_proto::v1::agent_service_server::AgentServiceServer;
use ballast_service::http::Readiness;
use ballast_service::program::{self, DaemonArgs, Threads};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tracing::info;

use config::{Config, DriverChoice, LoadScope};
use driver::Driver;
use host::Host;
use load::Observation;
use load::sampler::Sampler;
use metrics::Metrics;
use migrations::Migrations;
use registry::Registry;
use report::Reporter;
use service::Service;
use vm::Context;
use vm::dir::StateDir;

pub mod backoff;
pub mod config;
pub mod driver;
pub mod host;
pub mod load;
pub mod metrics;
pub mod migrations;
pub mod registry;
pub mod report;
pub mod service;
#[cfg(test)]
mod testing;
pub mod vm;

/// Condition of `/readyz`: the controller knows this host.
const READY_REGISTERED: &str = "registered";
/// Condition of `/readyz`: the driver can run VMs.
const READY_DRIVER: &str = "driver";
/// Until a controller says otherwise.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// How long open calls may take to end when the agent ends.
const GRACE: Duration = Duration::from_secs(3);

/// Runs the virtual machines of one host.
#[derive(Debug, Parser)]
#[command(name = "ballast-agent", version)]
struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,
}

/// The program `ballast-agent`, callable from another binary.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let remedy = "see ballast-agent --help";
    program::run("ballast-agent", remedy, args, |args: Args| {
        ballast_service::logging::init(args.daemon.log_format);
        ballast_service::holdpoint::arm();
        run(&args.daemon)
    })
}

fn run(args: &DaemonArgs) -> Result<(), Refusal> {
    let config = Config::load(&args.config)?;
    let failed = |what: &str, error: std::io::Error| {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot {what}: {error}"),
            "check the machine's limits on processes and files",
        )
    };
    program::runtime(Threads::PerCore)?.block_on(async {
        let shutdown = ballast_service::signal::shutdown_token()
            .map_err(|error| failed("install signal handlers", error))?;
        let agent = Agent::start(config, shutdown).await?;
        agent.join().await
    })
}

/// A running agent.
pub struct Agent {
    /// Where AgentService is served.
    pub listen: SocketAddr,
    /// Where `/metrics` is served.
    pub http_listen: SocketAddr,
    serving: JoinSet<Result<(), Refusal>>,
    following: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Agent {
    /// Checks everything, adopts the VMs that are there, and serves until `shutdown` is cancelled.
    ///
    /// # Errors
    /// Whatever keeps it from working: the driver, the state directory, the addresses.
    pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Self, Refusal> {
        let capacity = capacity(&config)?;
        let driver = make_driver(&config).await?;
        let readiness = Readiness::waiting_for(&[READY_REGISTERED, READY_DRIVER]);
        let metrics = Metrics::new(config.vm_metrics)?;
        let state = StateDir::open(&config.state_dir)?;
        let listener = ballast_service::net::bind(config.listen, "gRPC").await?;
        let http_listener = ballast_service::net::bind(config.http_listen, "HTTP").await?;
        let (listen, http_listen) = (address(&listener)?, address(&http_listener)?);
        let registry = Registry::new(&config.controller, config.host.clone())?;
        let description = describe(&config, capacity, driver.as_ref(), listen);
        let migrations = Migrations::default();
        for aborted in state.aborted()? {
            migrations.publish(aborted.migration, &aborted.status());
            migrations.keep(aborted.migration);
        }
        let context = Arc::new(Context {
            driver,
            state,
            registry: registry.clone(),
            migrations,
            migration_address: config.migration_address,
            link: config.link,
            disks: config.local_disks(),
        });
        let host = Host::adopt(context, capacity).await?;
        readiness.met(READY_DRIVER);
        info!(host = %config.host, %listen, vms = host.vms().len(), %capacity, "agent started");

        let (interval, interval_seen) = watch::channel(SAMPLE_INTERVAL);
        let (observer, observations) = watch::channel(Arc::new(Observation::default()));
        let mut following = JoinSet::new();
        let sampler = Sampler::new(host.clone(), config.scope());
        following.spawn(sampler.run(interval_seen, observer));
        following.spawn(metrics.clone().follow(host.clone(), observations.clone()));
        let reporter = Reporter {
            host: host.clone(),
            description: description.clone(),
            registry,
            observations: observations.clone(),
            interval,
            readiness: readiness.clone(),
            metrics: metrics.clone(),
        };
        following.spawn(reporter.run());
        let mut serving = JoinSet::new();
        let http = (http_listener, metrics.registry.clone(), readiness, shutdown.clone());
        serving.spawn(serve_http(http));
        let service = Service { host, description, observations, metrics };
        serving.spawn(serve_grpc(listener, service, shutdown.clone()));
        Ok(Self { listen, http_listen, serving, following, shutdown })
    }

    /// Until it was asked to end and has ended. Its VMs go on.
    ///
    /// # Errors
    /// When a server failed.
    pub async fn join(mut self) -> Result<(), Refusal> {
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            ended = self.serving.join_next() => {
                self.shutdown.cancel();
                if let Some(Ok(Err(refusal))) = ended {
                    return Err(refusal);
                }
            }
        }
        self.following.shutdown().await;
        let rest = async { while self.serving.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, rest).await.is_err() {
            info!("open calls were cut off");
            self.serving.shutdown().await;
        }
        info!("agent ended; its VMs go on");
        Ok(())
    }
}

fn capacity(config: &Config) -> Result<Resources, Refusal> {
    let machine = load::sampler::machine_capacity().ok_or_else(|| {
        Refusal::new(
            RefusalCode::HostFailure,
            "/proc/meminfo cannot be understood",
            "mount /proc, or set capacity in the configuration",
        )
    });
    match (config.capacity.cpu, config.capacity.memory) {
        (Some(cpu), Some(memory)) => Ok(Resources::new(cpu, memory)),
        (cpu, memory) => {
            let machine = machine?;
            Ok(Resources::new(cpu.unwrap_or(machine.cpu), memory.unwrap_or(machine.memory)))
        }
    }
}

async fn make_driver(config: &Config) -> Result<Arc<dyn Driver>, Refusal> {
    Ok(match config.driver {
        DriverChoice::Sim => Arc::new(driver::sim::SimDriver::new(config.link)),
        DriverChoice::Kvm => Arc::new(driver::kvm::KvmDriver::new(config.vmm.clone()).await?),
    })
}

fn describe(
    config: &Config,
    capacity: Resources,
    driver: &dyn Driver,
    listen: SocketAddr,
) -> v1::HostDescription {
    let baselines = driver.cpu_baselines().into_iter().map(v1::CpuBaseline::from);
    v1::HostDescription {
        host: config.host.to_string(),
        endpoint: config.advertise.unwrap_or(listen).to_string(),
        driver: driver.kind().into(),
        capacity: Some(capacity.into()),
        link_bytes_per_sec: config.link.get(),
        labels: config.labels.clone().into_iter().collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu_model: driver.cpu_model(),
        offers: config.offers.iter().cloned().collect(),
        cpu_baselines: baselines.map(i32::from).collect(),
        numa: numa_nodes(config, capacity).into_iter().map(Into::into).collect(),
    }
}

/// What each NUMA node has for VMs. A share of a machine is on none in particular, nor are VMs that are only modelled.
fn numa_nodes(config: &Config, capacity: Resources) -> Vec<Resources> {
    if config.driver != DriverChoice::Kvm || config.scope() == LoadScope::Share {
        return Vec::new();
    }
    load::numa::parts(&load::numa::nodes(Path::new(load::numa::NODES)), capacity)
}

fn address(listener: &TcpListener) -> Result<SocketAddr, Refusal> {
    listener.local_addr().map_err(|error| {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("a listener has no address: {error}"),
            "try again",
        )
    })
}

async fn serve_http(
    (listener, registry, readiness, shutdown): (
        TcpListener,
        prometheus::Registry,
        Readiness,
        CancellationToken,
    ),
) -> Result<(), Refusal> {
    let served = ballast_service::http::serve(listener, registry, readiness, shutdown).await;
    served.map_err(|error| server_failed("HTTP", &error))
}

async fn serve_grpc(
    listener: TcpListener,
    service: Service,
    shutdown: CancellationToken,
) -> Result<(), Refusal> {
    let incoming = TcpListenerStream::new(listener);
    tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .concurrency_limit_per_connection(64)
        .add_service(AgentServiceServer::new(service))
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
        .await
        .map_err(|error| server_failed("gRPC", &error))
}

fn server_failed(what: &str, error: &dyn std::error::Error) -> Refusal {
    Refusal::new(
        RefusalCode::HostFailure,
        format!("the {what} server failed: {error}"),
        "check the machine's limits on files and start the agent again",
    )
}
