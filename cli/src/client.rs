//! One connection to the controller.
//!
//! Every call has a bound and ends in a value or a [`Refusal`] that names the
//! controller's address where the controller itself said nothing.

use std::time::Duration;

use ballast_model::{Refusal, RefusalCode};
use ballast_proto::error;
use ballast_proto::v1;
use ballast_proto::v1::controller_service_client::ControllerServiceClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// The largest answer that is read: a plan with the snapshot of a large pool.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Who acts and why; goes with every call that changes something.
#[derive(Debug, Clone)]
pub struct Actor {
    who: String,
    why: Option<String>,
}

impl Actor {
    /// The person at the terminal; `why` as given with `--reason`.
    pub fn operator(why: Option<String>) -> Self {
        let name = ["SUDO_USER", "USER", "LOGNAME"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
            .unwrap_or_else(|| user_name(rustix::process::getuid().as_raw()));
        Self { who: format!("operator:{name}"), why }
    }

    /// A named program.
    pub fn program(name: &str) -> Self {
        Self { who: name.to_owned(), why: None }
    }

    /// For one call; `otherwise` stands where no reason was given.
    pub fn because(&self, otherwise: &str) -> Option<v1::Actor> {
        let why = self.why.clone().unwrap_or_else(|| otherwise.to_owned());
        Some(v1::Actor { who: self.who.clone(), why })
    }
}

/// The controller, as operators see it. Clones share one connection.
#[derive(Debug, Clone)]
pub struct Client {
    service: ControllerServiceClient<Channel>,
    peer: String,
    timeout: Duration,
}

/// Defines one method a call: same name, same request, checked answer.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $answer:ident;)*) => {
        impl Client {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// What the controller refused, or that it does not answer.
                pub async fn $name(&self, request: v1::$request) -> Result<v1::$answer, Refusal> {
                    let mut service = self.service.clone();
                    self.bounded(service.$name(request)).await
                }
            )*
        }
    };
}

calls! {
    /// The cluster in a few figures.
    get_status(GetStatusRequest) -> ClusterStatus;
    /// How much the balancer may do on its own.
    set_automation(SetAutomationRequest) -> SetAutomationResponse;
    /// All hosts.
    list_hosts(ListHostsRequest) -> ListHostsResponse;
    /// One host.
    get_host(GetHostRequest) -> HostStatus;
    /// Begins to empty a host.
    drain_host(DrainHostRequest) -> DrainHostResponse;
    /// Lets a host take VMs again.
    uncordon_host(UncordonHostRequest) -> UncordonHostResponse;
    /// Creates and starts a VM.
    create_vm(CreateVmRequest) -> VmRecord;
    /// All VMs, or those of one host.
    list_vms(ListVmsRequest) -> ListVmsResponse;
    /// One VM.
    get_vm(GetVmRequest) -> VmRecord;
    /// Ends and removes a VM.
    delete_vm(DeleteVmRequest) -> DeleteVmResponse;
    /// Writes a VM to a file on its host.
    snapshot_vm(SnapshotVmRequest) -> SnapshotVmResponse;
    /// Lets a VM go on from a file.
    restore_vm(RestoreVmRequest) -> VmRecord;
    /// Begins to move a VM.
    migrate_vm(MigrateVmRequest) -> MigrateVmResponse;
    /// A piece of a VM's console.
    read_console(ReadConsoleRequest) -> ReadConsoleResponse;
    /// Types at a VM's console.
    write_console(WriteConsoleRequest) -> WriteConsoleResponse;
    /// All rules.
    list_rules(ListRulesRequest) -> ListRulesResponse;
    /// Writes a rule.
    set_rule(SetRuleRequest) -> Rule;
    /// Removes a rule.
    delete_rule(DeleteRuleRequest) -> DeleteRuleResponse;
    /// Plans, moves nothing.
    show_plan(ShowPlanRequest) -> PlanRecord;
    /// Carries a plan out.
    apply_plan(ApplyPlanRequest) -> ApplyPlanResponse;
    /// Migrations, newest first.
    list_migrations(ListMigrationsRequest) -> ListMigrationsResponse;
    /// One migration.
    get_migration(GetMigrationRequest) -> Migration;
    /// Cancels a migration.
    cancel_migration(CancelMigrationRequest) -> CancelMigrationResponse;
    /// Settles a migration whose destination is gone for good.
    settle_migration(SettleMigrationRequest) -> SettleMigrationResponse;
    /// A page of the audit trail.
    list_audit(ListAuditRequest) -> ListAuditResponse;
}

impl Client {
    /// Connects to `url`; each call, and the connection, may take `timeout`.
    ///
    /// # Errors
    /// `InvalidArgument` for a URL that is none, `Unavailable` when nobody answers there.
    pub async fn connect(url: &str, timeout: Duration) -> Result<Self, Refusal> {
        let peer = format!("controller at {url}");
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| {
            Refusal::new(
                RefusalCode::InvalidArgument,
                format!("{url:?} is not an address: {error}"),
                "write for example http://127.0.0.1:7070",
            )
        })?;
        let channel = endpoint.connect_timeout(timeout).connect().await.map_err(|error| {
            Refusal::new(
                RefusalCode::Unavailable,
                format!("{peer} cannot be reached: {}", root_cause(&error)),
                "check that it runs and that --controller or BALLAST_CONTROLLER names it",
            )
        })?;
        let service =
            ControllerServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Self { service, peer, timeout })
    }

    /// The same connection for a call that takes as long as there is data.
    #[must_use]
    pub fn patient(&self, at_least: Duration) -> Self {
        Self { timeout: self.timeout.max(at_least), ..self.clone() }
    }

    async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Refusal> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(error::from_status(&status, &self.peer)),
            Err(_) => Err(Refusal::new(
                RefusalCode::Timeout,
                format!("{} did not answer within {:?}", self.peer, self.timeout),
                "look at its log and its load, or give it more time with --timeout",
            )),
        }
    }
}

/// The user's name by /etc/passwd, else the number.
fn user_name(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("uid-{uid}"))
}

/// The innermost cause, which says most.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names_where_the_machine_knows_them() {
        assert_eq!(user_name(0), "root");
        assert_eq!(user_name(u32::MAX - 7), format!("uid-{}", u32::MAX - 7));
    }
}
