//! `RegistryService`, for agents.

use std::sync::Arc;

use ballast_model::{Epoch, HostId, Refusal};
use ballast_proto::convert::field::{host_id, migration_id, vm_id};
use ballast_proto::error::to_status;
use ballast_proto::v1;
use ballast_proto::v1::registry_service_server::RegistryService;
use tonic::{Request, Response, Status, Streaming};

use super::answer;
use crate::controller::Controller;
use crate::migration::commit::CommitAsked;

/// The service.
#[derive(Clone)]
pub struct Registry(pub Arc<Controller>);

#[tonic::async_trait]
impl RegistryService for Registry {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        let result = self.0.register_host(request.into_inner()).await;
        answer(
            &self.0,
            result.map(|_| v1::RegisterResponse {
                report_interval_ms: self.0.config.telemetry.report_interval_ms,
                controller_version: env!("CARGO_PKG_VERSION").to_owned(),
            }),
        )
    }

    async fn report_load(
        &self,
        request: Request<Streaming<v1::LoadReport>>,
    ) -> Result<Response<v1::ReportLoadResponse>, Status> {
        let mut reports = request.into_inner();
        let acting = self.0.acting();
        let mut accepted = 0;
        let mut of: Option<HostId> = None;
        loop {
            let report = tokio::select! {
                () = acting.cancelled() => break,
                report = reports.message() => report?,
            };
            let Some(report) = report else { break };
            let taken = self.take_report(report, &mut of).map_err(|r| to_status(&r))?;
            accepted += u64::from(taken);
        }
        Ok(Response::new(v1::ReportLoadResponse { accepted }))
    }

    async fn commit_migration(
        &self,
        request: Request<v1::CommitMigrationRequest>,
    ) -> Result<Response<v1::CommitMigrationResponse>, Status> {
        let request = request.into_inner();
        let asked = (|| {
            Ok::<_, Refusal>(CommitAsked {
                migration: migration_id(&request.migration, "migration")?,
                vm: vm_id(&request.vm, "vm")?,
                host: host_id(&request.host, "host")?,
                source_epoch: Epoch(request.source_epoch),
            })
        })();
        let result = match asked {
            Ok(asked) => self.0.commit_migration(&asked).await,
            Err(refusal) => Err(refusal),
        };
        answer(&self.0, result.map(|epoch| v1::CommitMigrationResponse { epoch: epoch.0 }))
    }

    async fn query_migration(
        &self,
        request: Request<v1::QueryMigrationRequest>,
    ) -> Result<Response<v1::QueryMigrationResponse>, Status> {
        let request = request.into_inner();
        let result = async {
            let migration = migration_id(&request.migration, "migration")?;
            let (vm, host) = (vm_id(&request.vm, "vm")?, host_id(&request.host, "host")?);
            let (verdict, epoch) = self.0.query_migration(migration, &vm, &host).await?;
            Ok(v1::QueryMigrationResponse { verdict: verdict.into(), epoch: epoch.0 })
        };
        answer(&self.0, result.await)
    }
}

impl Registry {
    fn take_report(
        &self,
        report: v1::LoadReport,
        of: &mut Option<HostId>,
    ) -> Result<bool, Refusal> {
        self.0.leading()?;
        let host = host_id(&report.host, "host")?;
        match of {
            Some(first) if *first == host => {}
            Some(first) => {
                return Err(Refusal::new(
                    ballast_model::RefusalCode::InvalidArgument,
                    format!("the stream of host {first} holds a report of host {host}"),
                    "open one stream per host",
                ));
            }
            None => {
                self.0.live.stream_begins(&host);
                *of = Some(host.clone());
            }
        }
        let metrics = &self.0.metrics;
        match self.0.live.report(&host, report)? {
            Ok(()) => {
                metrics.reports.inc();
                Ok(true)
            }
            Err(rejected) => {
                tracing::debug!(%host, why = %rejected, "a load report is not believed");
                metrics.report_rejected(rejected.fault.label());
                Ok(false)
            }
        }
    }
}
