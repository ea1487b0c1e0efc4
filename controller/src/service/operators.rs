//! `ControllerService`, for operators' tools.

use std::sync::Arc;

use ballast_model::{ReasonTrail, Refusal, Rule, VmSpec};
use ballast_proto::convert::field::{
    absolute_path, drain_goal, host_id, migration_id, optional_host_id, optional_vm_id, plan_id,
    required, required_enum, rule_id, vm_id,
};
use ballast_proto::convert::trail;
use ballast_proto::convert::vm::automation;
use ballast_proto::v1::controller_service_server::ControllerService;
use ballast_proto::v1::{self, Actor};
use tonic::{Request, Response, Status};

use super::answer;
use super::answers::{count, of_host, plan_record};
use crate::agents::Agent;
use crate::controller::Controller;
use crate::migration::Order;
use crate::migration::judge::Settlement;
use crate::now;
use crate::snapshot::Purpose;
use crate::vms::Creation;

/// Migrations of one listing, unless asked for otherwise.
const MIGRATIONS_DEFAULT: usize = 100;
/// The most migrations of one listing.
const MIGRATIONS_MAX: usize = 1_000;
/// The most audit entries of one page.
const AUDIT_PAGE_MAX: usize = 1_000;
/// Pages of the audit searched for one subject in one call.
const AUDIT_PAGES_MAX: usize = 100;

/// The service.
#[derive(Clone)]
pub struct Operators(pub Arc<Controller>);

type Answer<T> = Result<Response<T>, Status>;

fn actor(actor: Option<Actor>) -> Result<ReasonTrail, Refusal> {
    trail::actor(actor, now())
}

impl Operators {
    /// The agent of the host that owns a VM.
    async fn host_of(&self, vm: &str) -> Result<Arc<dyn Agent>, Refusal> {
        self.0.leading()?;
        let vm = vm_id(vm, "vm")?;
        let owner = self.0.repository.known_vm(&vm).await?.owner.value;
        self.0.agent(&owner.host).await
    }
}

#[tonic::async_trait]
impl ControllerService for Operators {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Answer<v1::ClusterStatus> {
        answer(&self.0, self.status().await)
    }

    async fn set_automation(
        &self,
        request: Request<v1::SetAutomationRequest>,
    ) -> Answer<v1::SetAutomationResponse> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let level = automation(request.level, "level")?;
            self.0.set_automation(level, actor(request.actor)?).await?;
            Ok(v1::SetAutomationResponse {})
        };
        answer(&self.0, result.await)
    }

    async fn list_hosts(&self, _: Request<v1::ListHostsRequest>) -> Answer<v1::ListHostsResponse> {
        let result = async {
            self.0.leading()?;
            let inventory = self.0.repository.inventory().await?;
            let status = |host| self.0.host_status(host, &inventory);
            Ok(v1::ListHostsResponse { hosts: inventory.hosts.values().map(status).collect() })
        };
        answer(&self.0, result.await)
    }

    async fn get_host(&self, request: Request<v1::GetHostRequest>) -> Answer<v1::HostStatus> {
        let result = async {
            self.0.leading()?;
            let host = host_id(&request.into_inner().host, "host")?;
            let record = self.0.repository.known_host(&host).await?.value;
            let inventory = self.0.repository.inventory().await?;
            Ok(self.0.host_status(&record, &inventory))
        };
        answer(&self.0, result.await)
    }

    async fn drain_host(
        &self,
        request: Request<v1::DrainHostRequest>,
    ) -> Answer<v1::DrainHostResponse> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let host = host_id(&request.host, "host")?;
            let goal = drain_goal(request.goal, "goal")?;
            let vms = self.0.drain_host(&host, goal, actor(request.actor)?).await?;
            Ok(v1::DrainHostResponse { vms: count(vms) })
        };
        answer(&self.0, result.await)
    }

    async fn uncordon_host(
        &self,
        request: Request<v1::UncordonHostRequest>,
    ) -> Answer<v1::UncordonHostResponse> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let host = host_id(&request.host, "host")?;
            self.0.uncordon_host(&host, actor(request.actor)?).await?;
            Ok(v1::UncordonHostResponse {})
        };
        answer(&self.0, result.await)
    }

    async fn create_vm(&self, request: Request<v1::CreateVmRequest>) -> Answer<v1::VmRecord> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let spec = VmSpec::try_from(required(request.spec, "spec")?)?;
            let host = optional_host_id(&request.host, "host")?;
            let reasons = actor(request.actor)?;
            // A task of its own: a caller who hangs up does not leave it half-done.
            let controller = Arc::clone(&self.0);
            let creation = Creation::boot(spec, host);
            let create = async move { controller.create_vm(creation, reasons).await };
            let id = finish(&self.0, create).await?;
            Ok(self.0.vm_record(&self.0.repository.known_vm(&id).await?))
        };
        answer(&self.0, result.await)
    }

    async fn snapshot_vm(
        &self,
        request: Request<v1::SnapshotVmRequest>,
    ) -> Answer<v1::SnapshotVmResponse> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let (vm, reasons) = (vm_id(&request.vm, "vm")?, actor(request.actor)?);
            let path = absolute_path(request.path, "path")?;
            let controller = Arc::clone(&self.0);
            let save =
                async move { controller.snapshot_vm(&vm, path, request.stop, reasons).await };
            finish(&self.0, save).await
        };
        answer(&self.0, result.await)
    }

    async fn restore_vm(&self, request: Request<v1::RestoreVmRequest>) -> Answer<v1::VmRecord> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let path = absolute_path(request.path, "path")?;
            let (host, reasons) = (host_id(&request.host, "host")?, actor(request.actor)?);
            let controller = Arc::clone(&self.0);
            let restore = async move { controller.restore_vm(path, host, reasons).await };
            let id = finish(&self.0, restore).await?;
            Ok(self.0.vm_record(&self.0.repository.known_vm(&id).await?))
        };
        answer(&self.0, result.await)
    }

    async fn list_vms(&self, request: Request<v1::ListVmsRequest>) -> Answer<v1::ListVmsResponse> {
        let result = async {
            self.0.leading()?;
            let host = optional_host_id(&request.into_inner().host, "host")?;
            let vms = self.0.repository.vms().await?;
            let vms = vms.values().filter(|vm| of_host(vm, host.as_ref()));
            Ok(v1::ListVmsResponse { vms: vms.map(|vm| self.0.vm_record(vm)).collect() })
        };
        answer(&self.0, result.await)
    }

    async fn get_vm(&self, request: Request<v1::GetVmRequest>) -> Answer<v1::VmRecord> {
        let result = async {
            self.0.leading()?;
            let vm = vm_id(&request.into_inner().vm, "vm")?;
            Ok(self.0.vm_record(&self.0.repository.known_vm(&vm).await?))
        };
        answer(&self.0, result.await)
    }

    async fn delete_vm(
        &self,
        request: Request<v1::DeleteVmRequest>,
    ) -> Answer<v1::DeleteVmResponse> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let (vm, reasons) = (vm_id(&request.vm, "vm")?, actor(request.actor)?);
            let controller = Arc::clone(&self.0);
            finish(&self.0, async move { controller.delete_vm(&vm, reasons).await }).await?;
            Ok(v1::DeleteVmResponse {})
        };
        answer(&self.0, result.await)
    }

    async fn migrate_vm(
        &self,
        request: Request<v1::MigrateVmRequest>,
    ) -> Answer<v1::MigrateVmResponse> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let order = Order {
                vm: vm_id(&request.vm, "vm")?,
                to: optional_host_id(&request.to, "to")?,
                reasons: actor(request.actor)?,
                cause: None,
                predicted: None,
                purpose: Purpose::Order,
            };
            let controller = Arc::clone(&self.0);
            let begin = async move { controller.begin_migration(order).await };
            let migration = finish(&self.0, begin).await?.to_string();
            Ok(v1::MigrateVmResponse { migration })
        };
        answer(&self.0, result.await)
    }

    async fn read_console(
        &self,
        request: Request<v1::ReadConsoleRequest>,
    ) -> Answer<v1::ReadConsoleResponse> {
        let request = request.into_inner();
        let result = async {
            let agent = self.host_of(&request.vm).await?;
            agent.read_console(request).await
        };
        answer(&self.0, result.await)
    }

    async fn write_console(
        &self,
        request: Request<v1::WriteConsoleRequest>,
    ) -> Answer<v1::WriteConsoleResponse> {
        let request = request.into_inner();
        let result = async {
            let agent = self.host_of(&request.vm).await?;
            agent.write_console(request).await
        };
        answer(&self.0, result.await)
    }

    async fn list_rules(&self, _: Request<v1::ListRulesRequest>) -> Answer<v1::ListRulesResponse> {
        let result = async {
            self.0.leading()?;
            let rules = self.0.repository.rules().await?;
            let rules = rules.iter().map(|rule| (&rule.at_its_revision()).into()).collect();
            Ok(v1::ListRulesResponse { rules })
        };
        answer(&self.0, result.await)
    }

    async fn set_rule(&self, request: Request<v1::SetRuleRequest>) -> Answer<v1::Rule> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let rule = Rule::try_from(required(request.rule, "rule")?)?;
            Ok((&self.0.set_rule(rule, request.force, actor(request.actor)?).await?).into())
        };
        answer(&self.0, result.await)
    }

    async fn delete_rule(
        &self,
        request: Request<v1::DeleteRuleRequest>,
    ) -> Answer<v1::DeleteRuleResponse> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let rule = rule_id(&request.rule, "rule")?;
            self.0.delete_rule(&rule, actor(request.actor)?).await?;
            Ok(v1::DeleteRuleResponse {})
        };
        answer(&self.0, result.await)
    }

    async fn show_plan(&self, _: Request<v1::ShowPlanRequest>) -> Answer<v1::PlanRecord> {
        let result = async {
            self.0.leading()?;
            plan_record(&self.0.show_plan().await?)
        };
        answer(&self.0, result.await)
    }

    async fn apply_plan(
        &self,
        request: Request<v1::ApplyPlanRequest>,
    ) -> Answer<v1::ApplyPlanResponse> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let (plan, reasons) = (plan_id(&request.plan, "plan")?, actor(request.actor)?);
            let controller = Arc::clone(&self.0);
            let apply = async move { controller.apply_plan(plan, reasons).await };
            let started = finish(&self.0, apply).await?;
            let migrations = started.iter().map(ToString::to_string).collect();
            Ok(v1::ApplyPlanResponse { migrations })
        };
        answer(&self.0, result.await)
    }

    async fn list_migrations(
        &self,
        request: Request<v1::ListMigrationsRequest>,
    ) -> Answer<v1::ListMigrationsResponse> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let vm = optional_vm_id(&request.vm, "vm")?;
            let limit = match request.limit {
                0 => MIGRATIONS_DEFAULT,
                limit => (limit as usize).min(MIGRATIONS_MAX),
            };
            let records = self.0.repository.migrations().await?;
            let wanted = records.iter().rev().map(|record| &record.value).filter(|record| {
                let migration = &record.migration;
                vm.as_ref().is_none_or(|vm| migration.vm == *vm)
                    && !(request.running && migration.phase.is_ended())
            });
            let migrations = wanted.take(limit).map(|record| self.0.migration(record)).collect();
            Ok(v1::ListMigrationsResponse { migrations })
        };
        answer(&self.0, result.await)
    }

    async fn get_migration(
        &self,
        request: Request<v1::GetMigrationRequest>,
    ) -> Answer<v1::Migration> {
        let result = async {
            self.0.leading()?;
            let id = migration_id(&request.into_inner().migration, "migration")?;
            Ok(self.0.migration(&self.0.repository.known_migration(id).await?.value))
        };
        answer(&self.0, result.await)
    }

    async fn cancel_migration(
        &self,
        request: Request<v1::CancelMigrationRequest>,
    ) -> Answer<v1::CancelMigrationResponse> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let id = migration_id(&request.migration, "migration")?;
            let reasons = actor(request.actor)?;
            let controller = Arc::clone(&self.0);
            finish(&self.0, async move { controller.cancel_migration(id, reasons).await }).await?;
            Ok(v1::CancelMigrationResponse {})
        };
        answer(&self.0, result.await)
    }

    async fn settle_migration(
        &self,
        request: Request<v1::SettleMigrationRequest>,
    ) -> Answer<v1::SettleMigrationResponse> {
        let request = request.into_inner();
        let result = async {
            self.0.leading()?;
            let id = migration_id(&request.migration, "migration")?;
            let fenced = host_id(&request.fenced_host, "fenced_host")?;
            let settlement = match required_enum(request.settlement, "settlement")? {
                v1::Settlement::Lost => Settlement::Lost,
                _ => Settlement::GiveBack,
            };
            let reasons = actor(request.actor)?;
            let controller = Arc::clone(&self.0);
            let settle =
                async move { controller.settle_migration(id, &fenced, settlement, reasons).await };
            finish(&self.0, settle).await?;
            Ok(v1::SettleMigrationResponse {})
        };
        answer(&self.0, result.await)
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Answer<v1::ListAuditResponse> {
        answer(&self.0, self.audit_page(request.into_inner()).await)
    }
}

impl Operators {
    async fn status(&self) -> Result<v1::ClusterStatus, Refusal> {
        self.0.leading()?;
        let (inventory, snapshot) = self.0.look(Purpose::Order).await?;
        Ok(self.0.status(&inventory, &snapshot))
    }

    /// One page, or with a subject as many pages as it takes to find `limit` entries, within a bound.
    async fn audit_page(
        &self,
        request: v1::ListAuditRequest,
    ) -> Result<v1::ListAuditResponse, Refusal> {
        self.0.leading()?;
        let audit = self.0.journal.audit()?;
        let limit = match request.limit {
            0 => AUDIT_PAGE_MAX,
            limit => (limit as usize).min(AUDIT_PAGE_MAX),
        };
        let mut from = request.from.max(1);
        let mut entries = Vec::new();
        for _ in 0..AUDIT_PAGES_MAX {
            let wanted = if request.subject.is_empty() { limit } else { AUDIT_PAGE_MAX };
            let page = audit.page(from, wanted).await?;
            let full = page.entries.len() == wanted;
            from += page.entries.len() as u64;
            for (key, json) in page.entries {
                if entries.len() < limit && concerns(&json, &request.subject) {
                    entries.push(v1::AuditItem { key, json });
                }
            }
            if request.subject.is_empty() || !full || entries.len() >= limit {
                let (head_sequence, head_hash) = (page.head.sequence, page.head.hash.to_string());
                return Ok(v1::ListAuditResponse { entries, head_sequence, head_hash });
            }
        }
        let head = audit.head().await?;
        Ok(v1::ListAuditResponse {
            entries,
            head_sequence: head.sequence,
            head_hash: head.hash.to_string(),
        })
    }
}

/// Whether an entry's subject, or the VM it names, is this; entries that cannot be read always are.
fn concerns(json: &str, subject: &str) -> bool {
    if subject.is_empty() {
        return true;
    }
    serde_json::from_str::<ballast_model::AuditEntry>(json).map_or(true, |entry| {
        entry.subject == subject || entry.details.get("vm").is_some_and(|vm| vm == subject)
    })
}

/// Runs an order to its end even when its caller goes away.
async fn finish<T: Send + 'static>(
    controller: &Controller,
    order: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    controller.tasks.spawn(order).await.unwrap_or_else(|error| {
        Err(Refusal::new(
            ballast_model::RefusalCode::Internal,
            format!("the order ended unexpectedly: {error}"),
            "look at the present state, and report a defect",
        ))
    })
}
