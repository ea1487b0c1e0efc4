//! Registers this host with the controller and reports its load, for ever.
//!
//! A controller that is down or that ends the stream is tried again, waiting
//! longer each time up to a bound. VMs do not notice any of it.

use std::sync::Arc;
use std::time::Duration;

use ballast_model::Refusal;
use ballast_proto::error::from_status;
use ballast_proto::v1::registry_service_client::RegistryServiceClient;
use ballast_proto::v1::{
    HostDescription, HostLoad, LoadReport, RegisterRequest, RegisterResponse, VmStatus,
};
use ballast_service::http::Readiness;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::READY_REGISTERED;
use crate::backoff::Backoff;
use crate::host::Host;
use crate::load::Observation;
use crate::metrics::Metrics;
use crate::registry::Registry;

/// The shortest and the longest report interval that a controller may ask for.
const INTERVAL_RANGE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));
/// For one attempt to register.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// Reports that may wait for a slow controller; then the newest are dropped.
const REPORTS_WAITING_MAX: usize = 4;

type Client = RegistryServiceClient<Channel>;

/// Registers and reports.
pub struct Reporter {
    /// The host.
    pub host: Arc<Host>,
    /// What it says of itself.
    pub description: HostDescription,
    /// The controller.
    pub registry: Registry,
    /// What the sampler sees.
    pub observations: watch::Receiver<Arc<Observation>>,
    /// Where the interval goes that the controller asks for.
    pub interval: watch::Sender<Duration>,
    /// Told whether it is registered.
    pub readiness: Readiness,
    /// Counts.
    pub metrics: Metrics,
}

impl Reporter {
    /// For ever.
    pub async fn run(mut self) {
        let mut pause = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            let ended = match self.register().await {
                Ok((client, answer)) => {
                    pause.reset();
                    self.registered(&answer);
                    self.report(client).await
                }
                Err(refusal) => refusal,
            };
            self.metrics.registered.set(0);
            self.readiness.unmet(READY_REGISTERED, ended.to_string());
            warn!(refusal = %ended, "not registered; VMs go on, trying again");
            pause.wait().await;
        }
    }

    async fn register(&self) -> Result<(Client, RegisterResponse), Refusal> {
        let mut client = self.registry.session().await?;
        let vms = self.host.vms().iter().map(|(vm, view)| view.status(vm)).collect();
        let message = RegisterRequest { host: Some(self.description.clone()), vms };
        let answer = tokio::time::timeout(REGISTER_TIMEOUT, client.register(message)).await;
        match answer {
            Ok(Ok(answer)) => Ok((client, answer.into_inner())),
            Ok(Err(status)) => Err(from_status(&status, self.registry.name())),
            Err(_) => Err(Refusal::new(
                ballast_model::RefusalCode::Timeout,
                format!("{} did not answer in {REGISTER_TIMEOUT:?}", self.registry.name()),
                "check the controller and the network",
            )),
        }
    }

    fn registered(&self, answer: &RegisterResponse) {
        let (least, most) = INTERVAL_RANGE;
        let interval = Duration::from_millis(answer.report_interval_ms.into()).clamp(least, most);
        self.interval.send_if_modified(|present| std::mem::replace(present, interval) != interval);
        self.metrics.registrations.inc();
        self.metrics.registered.set(1);
        self.readiness.met(READY_REGISTERED);
        info!(controller = self.registry.name(), ?interval, "registered");
    }

    /// Reports each observation until the stream ends. Why it ended.
    async fn report(&mut self, mut client: Client) -> Refusal {
        let (reports, queue) = mpsc::channel(REPORTS_WAITING_MAX);
        let mut stream = std::pin::pin!(client.report_load(ReceiverStream::new(queue)));
        self.observations.mark_changed();
        let mut sequence = 0;
        loop {
            tokio::select! {
                ended = &mut stream => {
                    return match ended {
                        Ok(_) => Refusal::new(
                            ballast_model::RefusalCode::Unavailable,
                            format!("{} ended the stream of reports", self.registry.name()),
                            "nothing to do: the agent registers again",
                        ),
                        Err(status) => from_status(&status, self.registry.name()),
                    };
                }
                Ok(()) = self.observations.changed() => {
                    let observation = self.observations.borrow_and_update().clone();
                    // A host whose load is not known yet says nothing rather than zero.
                    let Some(load) = observation.host else { continue };
                    sequence += 1;
                    match reports.try_send(self.message(sequence, &observation, load)) {
                        Ok(()) => self.metrics.reports.inc(),
                        Err(_) => {
                            sequence -= 1;
                            self.metrics.reports_dropped.inc();
                        }
                    }
                }
            }
        }
    }

    fn message(&self, sequence: u64, observation: &Observation, load: HostLoad) -> LoadReport {
        LoadReport {
            host: self.description.host.clone(),
            sequence,
            at_unix_millis: observation.at.unix_millis(),
            load: Some(load),
            // Specifications went along with the registration.
            vms: statuses(&self.host, observation)
                .into_iter()
                .map(|status| VmStatus { spec: None, ..status })
                .collect(),
        }
    }
}

/// Every VM with its last known load.
pub fn statuses(host: &Host, observation: &Observation) -> Vec<VmStatus> {
    host.vms()
        .iter()
        .map(|(vm, view)| VmStatus { load: observation.vms.get(vm).copied(), ..view.status(vm) })
        .collect()
}
