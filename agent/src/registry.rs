//! The controller as this agent sees it: one channel, and the two questions
//! that decide who runs a VM.
//!
//! The connection is made when it is needed and made again when it breaks.
//! Nothing here can end a VM because the controller does not answer: only an
//! answer of the controller itself decides.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ballast_model::{Epoch, HostId, MigrationId, Refusal, RefusalCode, VmId};
use ballast_proto::error::from_status;
use ballast_proto::v1::registry_service_client::RegistryServiceClient;
use ballast_proto::v1::{CommitMigrationRequest, MigrationVerdict, QueryMigrationRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tracing::{debug, info, warn};

use crate::backoff::Backoff;

/// For one connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Where an address names no port.
const HTTP_PORT: u16 = 80;
/// For one question.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The source asks calmly: the controller pushes the answer, too.
const QUERY_INTERVAL: Duration = Duration::from_millis(500);

/// A client of the controller's RegistryService.
#[derive(Debug, Clone)]
pub struct Registry {
    endpoint: Endpoint,
    channel: Channel,
    host: HostId,
    controller: String,
}

/// What the owner record says, as far as it concerns one side of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Destination: it is yours under this epoch.
    Granted(Epoch),
    /// Source: it is another's, under this epoch.
    Superseded(Epoch),
    /// It stays where it was, or comes back there: then under a later epoch than before.
    Aborted(Refusal, Epoch),
}

impl Registry {
    /// A client for the controller at `controller` (`http://ip:port`), speaking for `host`.
    ///
    /// # Errors
    /// `InvalidArgument` when that is no address.
    pub fn new(controller: &str, host: HostId) -> Result<Self, Refusal> {
        let endpoint = Endpoint::from_shared(controller.to_owned()).map_err(|error| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("controller {controller:?} is not an address: {error}"),
                "write it as \"http://ip:port\"",
            )
        })?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let channel = endpoint.connect_lazy();
        let controller = format!("controller at {controller}");
        Ok(Self { endpoint, channel, host, controller })
    }

    /// A client for registering and reporting over one connection, which is not made again when it
    /// breaks: who registered with one controller must not report to the next, which does not know it.
    ///
    /// # Errors
    /// `Unavailable` when there is no connection.
    pub async fn session(&self) -> Result<RegistryServiceClient<Channel>, Refusal> {
        let once = Arc::new(AtomicBool::new(true));
        let connector = tower::service_fn(move |address: Uri| {
            let first = once.swap(false, Ordering::Relaxed);
            async move {
                if !first {
                    return Err(io::Error::other("the connection is over"));
                }
                let host = address.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
                let port = address.port_u16().unwrap_or(HTTP_PORT);
                let stream = TcpStream::connect((host, port)).await?;
                stream.set_nodelay(true)?;
                Ok(TokioIo::new(stream))
            }
        });
        let connect = self.endpoint.connect_with_connector(connector);
        let failed = |why: String| {
            Refusal::new(
                RefusalCode::Unavailable,
                format!("cannot connect to the {}: {why}", self.controller),
                "check that it runs and can be reached",
            )
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(channel)) => Ok(RegistryServiceClient::new(channel)),
            Ok(Err(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                Err(failed(cause.unwrap_or_else(|| error.to_string())))
            }
            Err(_) => Err(failed(format!("no answer in {CONNECT_TIMEOUT:?}"))),
        }
    }

    /// A client for single questions.
    fn client(&self) -> RegistryServiceClient<Channel> {
        RegistryServiceClient::new(self.channel.clone())
    }

    /// How refusals name it.
    pub fn name(&self) -> &str {
        &self.controller
    }

    /// Destination at READY: asks until the controller decides.
    pub async fn commit(&self, migration: MigrationId, vm: VmId, source_epoch: Epoch) -> Decision {
        let question = CommitMigrationRequest {
            migration: migration.to_string(),
            vm: vm.to_string(),
            host: self.host.to_string(),
            source_epoch: source_epoch.0,
        };
        let mut pause = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        loop {
            let mut request = tonic::Request::new(question.clone());
            request.set_timeout(REQUEST_TIMEOUT);
            let mut client = self.client();
            let answer = tokio::time::timeout(REQUEST_TIMEOUT, client.commit_migration(request));
            match answer.await {
                Ok(Ok(granted)) => {
                    let epoch = Epoch(granted.into_inner().epoch);
                    if epoch > source_epoch {
                        info!(%migration, %vm, %epoch, "the commit was granted");
                        return Decision::Granted(epoch);
                    }
                    warn!(%migration, %vm, %epoch, "a grant with an epoch that is not later");
                }
                Ok(Err(status)) => {
                    let refusal = from_status(&status, &self.controller);
                    if is_own(&status) && decides(refusal.code) {
                        warn!(%migration, %vm, %refusal, "the commit was refused");
                        return Decision::Aborted(refusal, Epoch(0));
                    }
                    warn!(%migration, %vm, %refusal, "no answer about the commit yet");
                }
                Err(_) => warn!(%migration, %vm, "no answer about the commit in time"),
            }
            pause.wait().await;
        }
    }

    /// Source at READY: asks until the controller decides.
    pub async fn query(&self, migration: MigrationId, vm: VmId, source_epoch: Epoch) -> Decision {
        let question = QueryMigrationRequest {
            migration: migration.to_string(),
            vm: vm.to_string(),
            host: self.host.to_string(),
        };
        loop {
            tokio::time::sleep(QUERY_INTERVAL).await;
            let mut request = tonic::Request::new(question.clone());
            request.set_timeout(REQUEST_TIMEOUT);
            let mut client = self.client();
            let answer = tokio::time::timeout(REQUEST_TIMEOUT, client.query_migration(request));
            match answer.await {
                Ok(Ok(answer)) => {
                    let answer = answer.into_inner();
                    let epoch = Epoch(answer.epoch);
                    match answer.verdict() {
                        MigrationVerdict::Superseded if epoch > source_epoch => {
                            return Decision::Superseded(epoch);
                        }
                        MigrationVerdict::Abort => {
                            return Decision::Aborted(called_off(migration), epoch);
                        }
                        other => debug!(%migration, %vm, ?other, "not decided yet"),
                    }
                }
                Ok(Err(status)) => {
                    let refusal = from_status(&status, &self.controller);
                    warn!(%migration, %vm, %refusal, "the owner record cannot be asked");
                }
                Err(_) => warn!(%migration, %vm, "the owner record cannot be asked in time"),
            }
        }
    }
}

/// Why a migration ended that the controller called off.
pub fn called_off(migration: MigrationId) -> Refusal {
    Refusal::new(
        RefusalCode::Cancelled,
        format!("migration {migration} was called off by the controller"),
        "look at the migration's record for why",
    )
}

/// Whether the controller itself said it, and not something on the way.
fn is_own(status: &tonic::Status) -> bool {
    use tonic_types::StatusExt;
    status.get_details_error_info().is_some_and(|info| info.domain == ballast_proto::error::DOMAIN)
}

/// Whether a refusal of a commit is a decision. What may be a failure after the record was
/// written is none: who discarded then could discard the only copy.
const fn decides(code: RefusalCode) -> bool {
    match code {
        RefusalCode::InvalidArgument
        | RefusalCode::NotFound
        | RefusalCode::AlreadyExists
        | RefusalCode::CapacityExceeded
        | RefusalCode::RuleViolation
        | RefusalCode::WrongState
        | RefusalCode::Conflict
        | RefusalCode::StaleEpoch
        | RefusalCode::Incompatible
        | RefusalCode::Unsupported => true,
        RefusalCode::RateLimited
        | RefusalCode::Unavailable
        | RefusalCode::Timeout
        | RefusalCode::Cancelled
        | RefusalCode::HostFailure
        | RefusalCode::Internal => false,
    }
}

/// The verdict that goes to a machine.
impl Decision {
    /// As the machine hears it: verdict and epoch.
    pub const fn verdict(&self) -> (MigrationVerdict, Epoch) {
        match self {
            Self::Granted(epoch) => (MigrationVerdict::Commit, *epoch),
            Self::Superseded(epoch) => (MigrationVerdict::Superseded, *epoch),
            Self::Aborted(_, epoch) => (MigrationVerdict::Abort, *epoch),
        }
    }
}
