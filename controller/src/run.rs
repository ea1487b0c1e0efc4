//! The program: from the command line to the end of the process.
//!
//! ```text
//!  read configuration ▶ bind ports ▶ open store ▶ serve ─┬─▶ stand for leadership ▶ pick up ▶ act ─┐
//!                                                        │        ▲──────── leadership lost ◀──────┘
//!                                                        └─▶ SIGINT, SIGTERM: end in order
//! ```
//!
//! Nothing is written before the ports are bound, so a start that fails leaves nothing behind.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ballast_model::audit::action;
use ballast_model::{Refusal, RefusalCode};
use ballast_proto::v1::controller_service_server::ControllerServiceServer;
use ballast_proto::v1::registry_service_server::RegistryServiceServer;
use ballast_service::http::Readiness;
use ballast_service::program::{DaemonArgs, Threads};
use ballast_service::{http, logging, net, program, signal};
use clap::Parser;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use crate::agents::GrpcAgents;
use crate::audit::Audit;
use crate::config::Config;
use crate::controller::Controller;
use crate::service::REQUEST_BYTES_MAX;
use crate::service::operators::Operators;
use crate::service::registry::Registry;
use crate::store::leader::{Candidate, Leadership};

const PROGRAM: &str = "ballast-controller";
/// How long what is under way gets at the end of a term or of the process.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause after picking up what a predecessor left has failed.
const RECOVERY_RETRY: Duration = Duration::from_millis(500);
/// How long a record stays open with nothing running behind it before it is closed as `timeout`.
const AUDIT_OPEN_MAX: Duration = Duration::from_secs(3_600);
/// How often such records are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(300);

/// Keeps a pool of KVM hosts level: observe, decide, act.
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version)]
struct Args {
    #[command(flatten)]
    daemon: DaemonArgs,
}

/// The program `ballast-controller`, callable from another binary.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    program::run(PROGRAM, "see ballast-controller --help", args, |args: Args| {
        logging::init(args.daemon.log_format);
        ballast_service::holdpoint::arm();
        start(&args.daemon)
    })
}

fn start(args: &DaemonArgs) -> Result<(), Refusal> {
    let config: Config = ballast_service::config::load(&args.config)?;
    config.validate()?;
    program::runtime(Threads::PerCore)?.block_on(run(config))
}

async fn run(config: Config) -> Result<(), Refusal> {
    let shutdown = signal::shutdown_token().map_err(|error| {
        Refusal::new(
            RefusalCode::HostFailure,
            format!("cannot handle signals: {error}"),
            "check the limits of the process",
        )
    })?;
    let grpc = net::bind(config.listen, "gRPC").await?;
    let side = net::bind(config.http_listen, "HTTP").await?;
    let store = crate::store::open(&config.store).await?;
    tracing::info!(listen = %config.listen, store = store.kind(), "the controller starts");
    let readiness = Readiness::waiting_for(&["store", "leader", "recovered"]);
    readiness.met("store");
    let controller = Controller::new(config, store, Arc::new(GrpcAgents::default()));
    let (registry, ready) = (controller.metrics.registry.clone(), readiness.clone());
    let doors = tokio::spawn(http::serve(side, registry, ready, shutdown.clone()));
    let server = tokio::spawn(serve(Arc::clone(&controller), grpc, shutdown.clone()));
    lead(&controller, &readiness, &shutdown).await;
    shutdown.cancel();
    // Load reports are streams without end: they get a moment, then the connections close.
    let _ = tokio::time::timeout(PATIENCE, server).await;
    let _ = tokio::time::timeout(PATIENCE, doors).await;
    tracing::info!("the controller ends");
    Ok(())
}

/// Serves both services until `shutdown`.
pub async fn serve(
    controller: Arc<Controller>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Refusal> {
    let operators = ControllerServiceServer::new(Operators(Arc::clone(&controller)))
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    let registry = RegistryServiceServer::new(Registry(controller))
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(operators)
        .add_service(registry)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown.cancelled_owned())
        .await
        .map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot serve gRPC: {error}"),
                "look at the log",
            )
        })
}

/// One term of leadership after the other, until `shutdown`.
async fn lead(controller: &Arc<Controller>, readiness: &Readiness, shutdown: &CancellationToken) {
    let store = Arc::clone(controller.repository.store());
    let ttl = Duration::from_millis(controller.config.leader_lease_ms);
    let candidate = Candidate::new(store, controller.config.leader_name(), ttl);
    loop {
        let standing_by = |holder: &str| {
            tracing::info!(leader = holder, "another controller leads; this one stands by");
            readiness.unmet("leader", format!("{holder} leads"));
        };
        let Ok(leadership) = candidate.acquire(shutdown, standing_by).await else { return };
        readiness.met("leader");
        let lost = leadership.lost();
        controller.begin_term(&leadership);
        let ended = tokio::select! {
            () = shutdown.cancelled() => true,
            () = lost.cancelled() => false,
            () = act(controller, readiness) => false,
        };
        readiness.unmet("recovered", "not leading");
        readiness.unmet("leader", "leadership is lost");
        controller.end_term().await;
        if ended {
            leadership.resign().await;
            return;
        }
    }
}

/// Picks up what a predecessor left, then balances until the term ends.
async fn act(controller: &Arc<Controller>, readiness: &Readiness) {
    while let Err(refusal) = controller.recover().await {
        tracing::warn!(%refusal, "cannot pick up what was left; trying again");
        readiness.unmet("store", refusal.to_string());
        tokio::time::sleep(RECOVERY_RETRY).await;
    }
    readiness.met("store");
    readiness.met("recovered");
    tracing::info!("this controller leads");
    tokio::join!(Arc::clone(controller).balance(), sweep(controller));
}

/// Closes audit records that nobody will close any more.
async fn sweep(controller: &Arc<Controller>) {
    let acting = controller.acting();
    loop {
        if let Err(refusal) = controller.sweep_audit(AUDIT_OPEN_MAX).await {
            tracing::warn!(%refusal, "open audit records were not looked at");
        }
        tokio::select! {
            () = acting.cancelled() => return,
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
    }
}

impl Controller {
    /// This controller leads from now on, and refuses all but its own recovery until that is done.
    pub fn begin_term(&self, leadership: &Leadership) {
        self.repository.fence().raise(leadership.fence());
        let store = Arc::clone(self.repository.store());
        self.journal.begin_term(Audit::new(store, vec![leadership.fence()]));
        self.set_acting(CancellationToken::new());
        self.metrics.leader.set(1);
    }

    /// Takes up every migration, creation and removal that a predecessor left unfinished. Requests
    /// are served from then on.
    ///
    /// # Errors
    /// When the store does not answer; to be tried again.
    pub async fn recover(self: &Arc<Self>) -> Result<(), Refusal> {
        self.pick_up_migrations().await?;
        self.repair_vms().await?;
        self.set_recovered(true);
        Ok(())
    }

    /// It leads no more: everything that acts ends where it is; the next leader goes on from there.
    pub async fn end_term(&self) {
        self.set_recovered(false);
        self.metrics.leader.set(0);
        self.acting().cancel();
        self.tasks.close();
        if tokio::time::timeout(PATIENCE, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                "orders under way did not end in time; they can change nothing any more"
            );
        }
        self.tasks.reopen();
        self.journal.end_term(PATIENCE).await;
        self.repository.fence().drop_leadership();
    }

    /// Closes as `timeout` the records whose action neither runs nor will be taken up again.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn sweep_audit(&self, bound: Duration) -> Result<usize, Refusal> {
        let inventory = self.repository.inventory().await?;
        let audit = self.journal.audit()?;
        let closed = audit.sweep(bound, |record| match record.action.as_str() {
            action::MIGRATION => {
                inventory.running().any(|m| m.migration.id.to_string() == record.subject)
            }
            action::VM_CREATE | action::VM_REMOVE => inventory.vms.values().any(|vm| {
                vm.owner.value.vm.as_str() == record.subject
                    && vm.record.value.change != crate::state::VmChange::Settled
            }),
            _ => false,
        });
        closed.await
    }
}
