//! A controller that answers from fixed data and remembers what it was asked to change.

use std::sync::{Arc, Mutex};

use ballast_model::audit::{AuditOutcome, AuditRecord};
use ballast_model::{AuditEntry, AuditHash, ReasonTrail, Refusal, RefusalCode, Timestamp};
use ballast_proto::error::to_status;
use ballast_proto::v1::controller_service_server::{ControllerService, ControllerServiceServer};
use ballast_proto::v1::*;
use tonic::{Request, Response, Status};

/// 2026-11-23T01:04:05.678Z
pub(crate) const NOW: u64 = 1_795_395_845_678;
pub(crate) const MIGRATION: &str = "0190a0b0-0000-7000-8000-000000000001";

type Answer<T> = Result<Response<T>, Status>;

/// What the stub was asked to change, one line each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    fn note(&self, what: &str, actor: Option<Actor>) {
        let actor = actor.unwrap_or_default();
        self.0.lock().unwrap().push(format!("{what} by {}: {}", actor.who, actor.why));
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Stub {
    pub(crate) asked: Asked,
    /// Sequence number of an audit entry that is changed on its way, or 0.
    pub(crate) spoilt: u64,
}

impl Stub {
    /// Serves on a free port until the test's runtime ends; answers with the URL.
    pub(crate) async fn serve(self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let service = ControllerServiceServer::new(self);
        tokio::spawn(
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
        );
        url
    }
}

fn hosts() -> Vec<HostStatus> {
    let host = |name: &str, cpu: u64, vms: &[&str], known: bool| HostStatus {
        description: Some(HostDescription {
            host: name.into(),
            endpoint: "127.0.0.1:7072".into(),
            driver: DriverKind::Kvm.into(),
            capacity: Some(Resources { cpu_millicores: 1000, memory_bytes: 1 << 30 }),
            link_bytes_per_sec: 125_000_000,
            version: "0.1.0".into(),
            cpu_model: "AuthenticAMD-25-1-91f3c0".into(),
            offers: vec!["network:dmz".into(), "storage:san-1".into()],
            cpu_baselines: vec![CpuBaseline::Host.into(), CpuBaseline::X8664V2.into()],
            numa: vec![Resources { cpu_millicores: 500, memory_bytes: 512 << 20 }; 2],
            ..HostDescription::default()
        }),
        state: HostState::Active.into(),
        drain_goal: DrainGoal::Unspecified.into(),
        known,
        unknown_because: if known { String::new() } else { "no report for 9s".into() },
        load: Some(HostLoad::default()),
        demand: Some(Resources {
            cpu_millicores: cpu,
            memory_bytes: vms.len() as u64 * (64 << 20),
        }),
        vms: vms.iter().map(|vm| (*vm).to_owned()).collect(),
        last_report_unix_millis: 0,
    };
    vec![host("host-a", 910, &["web-1", "web-2"], true), host("host-b", 5, &[], false)]
}

fn vm(name: &str) -> VmRecord {
    VmRecord {
        spec: Some(VmSpec {
            id: name.into(),
            vcpus: 1,
            memory_bytes: 64 << 20,
            kernel: "/guest".into(),
            automation: Automation::Full.into(),
            migration: Some(MigrationPolicy {
                downtime_limit_ms: 300,
                verify: false,
                post_copy: false,
            }),
            ..VmSpec::default()
        }),
        host: "host-a".into(),
        epoch: 7,
        status: Some(VmStatus {
            vm: name.into(),
            state: VmState::Running.into(),
            pid: 4242,
            load: Some(VmLoad {
                resident_bytes: 40 << 20,
                dirty_bytes_per_sec: 1 << 20,
                ..VmLoad::default()
            }),
            ..VmStatus::default()
        }),
        demand: Some(Resources { cpu_millicores: 455, memory_bytes: 64 << 20 }),
        immobile: None,
    }
}

fn migration() -> Migration {
    Migration {
        id: MIGRATION.into(),
        vm: "web-1".into(),
        from: "host-b".into(),
        to: "host-a".into(),
        source_epoch: 6,
        reasons: vec![Reason {
            who: "balancer".into(),
            why: "level CPU".into(),
            when_unix_millis: NOW,
        }],
        created_unix_millis: NOW,
        updated_unix_millis: NOW + 900,
        phase: "completed".into(),
        ended: true,
        why: String::new(),
        progress: Some(MigrationProgress {
            rounds: 3,
            bytes_sent: 41 << 20,
            bytes_total: 64 << 20,
            elapsed_micros: 820_000,
            downtime: Some(Downtime {
                last_pass_micros: 5_000,
                resume_micros: 800,
                ..Downtime::default()
            }),
            ..MigrationProgress::default()
        }),
    }
}

fn audit() -> Vec<AuditEntry> {
    let mut previous = AuditHash::genesis();
    let records = [
        AuditRecord::Opened,
        AuditRecord::Closed { opened: 1, outcome: AuditOutcome::Succeeded },
        AuditRecord::Opened,
    ];
    let seal = |(index, record): (usize, AuditRecord)| {
        let entry = AuditEntry {
            sequence: index as u64 + 1,
            previous: previous.clone(),
            at: Timestamp(NOW - 1000 + index as u64),
            record,
            action: if index < 2 { "vm.create" } else { "host.drain" }.into(),
            subject: if index < 2 { "web-1" } else { "host-b" }.into(),
            details: [("host".to_owned(), "host-b".to_owned())].into(),
            reasons: ReasonTrail::new("operator:root", "asked", Timestamp(NOW)),
            hash: AuditHash::genesis(),
        }
        .sealed();
        previous = entry.hash.clone();
        entry
    };
    records.into_iter().enumerate().map(seal).collect()
}

fn not_found(what: &str) -> Status {
    to_status(&Refusal::new(
        RefusalCode::NotFound,
        format!("there is no {what}"),
        "see 'ballast vm ls' for those there are",
    ))
}

#[tonic::async_trait]
impl ControllerService for Stub {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Answer<ClusterStatus> {
        Ok(Response::new(ClusterStatus {
            version: "0.1.0".into(),
            store: "embedded".into(),
            revision: 42,
            automation: Automation::Partial.into(),
            imbalance: 0.4523,
            hosts: 2,
            hosts_unknown: 1,
            vms: 2,
            ..ClusterStatus::default()
        }))
    }

    async fn set_automation(
        &self,
        r: Request<SetAutomationRequest>,
    ) -> Answer<SetAutomationResponse> {
        let request = r.into_inner();
        self.asked.note(&format!("automation {}", request.level().as_str_name()), request.actor);
        Ok(Response::new(Default::default()))
    }

    async fn list_hosts(&self, _: Request<ListHostsRequest>) -> Answer<ListHostsResponse> {
        Ok(Response::new(ListHostsResponse { hosts: hosts() }))
    }

    /// Every host is drained and empty but host-a.
    async fn get_host(&self, r: Request<GetHostRequest>) -> Answer<HostStatus> {
        let name = r.into_inner().host;
        let found =
            hosts().into_iter().find(|host| host.description.as_ref().unwrap().host == name);
        found.map(Response::new).ok_or_else(|| not_found(&format!("host {name}")))
    }

    async fn drain_host(&self, r: Request<DrainHostRequest>) -> Answer<DrainHostResponse> {
        let request = r.into_inner();
        let goal = request.goal().as_str_name();
        self.asked.note(&format!("drain {} {goal}", request.host), request.actor);
        Ok(Response::new(DrainHostResponse { vms: 2 }))
    }

    async fn uncordon_host(&self, r: Request<UncordonHostRequest>) -> Answer<UncordonHostResponse> {
        let request = r.into_inner();
        self.asked.note(&format!("uncordon {}", request.host), request.actor);
        Ok(Response::new(Default::default()))
    }

    async fn create_vm(&self, r: Request<CreateVmRequest>) -> Answer<VmRecord> {
        let request = r.into_inner();
        let spec = request.spec.unwrap();
        self.asked.note(&format!("create {} on {:?}", spec.id, request.host), request.actor);
        Ok(Response::new(VmRecord { spec: Some(spec), ..vm("") }))
    }

    async fn list_vms(&self, _: Request<ListVmsRequest>) -> Answer<ListVmsResponse> {
        Ok(Response::new(ListVmsResponse { vms: vec![vm("web-1"), vm("web-2")] }))
    }

    async fn get_vm(&self, r: Request<GetVmRequest>) -> Answer<VmRecord> {
        match r.into_inner().vm {
            name if name.starts_with("web-") => Ok(Response::new(vm(&name))),
            name => Err(not_found(&format!("VM {name}"))),
        }
    }

    async fn delete_vm(&self, r: Request<DeleteVmRequest>) -> Answer<DeleteVmResponse> {
        let request = r.into_inner();
        self.asked.note(&format!("delete {}", request.vm), request.actor);
        Ok(Response::new(Default::default()))
    }

    async fn migrate_vm(&self, r: Request<MigrateVmRequest>) -> Answer<MigrateVmResponse> {
        let request = r.into_inner();
        self.asked.note(&format!("migrate {} to {:?}", request.vm, request.to), request.actor);
        Ok(Response::new(MigrateVmResponse { migration: MIGRATION.into() }))
    }

    async fn snapshot_vm(&self, r: Request<SnapshotVmRequest>) -> Answer<SnapshotVmResponse> {
        let request = r.into_inner();
        let said = format!("snapshot {} to {}, stop {}", request.vm, request.path, request.stop);
        self.asked.note(&said, request.actor);
        let host = "host-a".to_owned();
        Ok(Response::new(SnapshotVmResponse { host, bytes: 3 << 20, paused_micros: 4_200 }))
    }

    async fn restore_vm(&self, r: Request<RestoreVmRequest>) -> Answer<VmRecord> {
        let request = r.into_inner();
        let said = format!("restore {} on {}", request.path, request.host);
        self.asked.note(&said, request.actor);
        Ok(Response::new(vm("web-1")))
    }

    async fn read_console(&self, r: Request<ReadConsoleRequest>) -> Answer<ReadConsoleResponse> {
        let (text, offset) = (b"B 1 web-1\nH 0 1 p0 e0\n", r.into_inner().offset);
        if offset == u64::MAX {
            return Ok(Response::new(ReadConsoleResponse { offset: 10, data: Vec::new() }));
        }
        let rest = text.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        Ok(Response::new(ReadConsoleResponse { offset, data: rest.to_vec() }))
    }

    /// Takes at most three bytes at a time, as a slow guest does.
    async fn write_console(&self, r: Request<WriteConsoleRequest>) -> Answer<WriteConsoleResponse> {
        let data = r.into_inner().data;
        let taken = &data[..data.len().min(3)];
        self.asked.note(&format!("type {:?}", String::from_utf8_lossy(taken)), None);
        Ok(Response::new(WriteConsoleResponse { accepted: taken.len().try_into().unwrap() }))
    }

    async fn list_rules(&self, _: Request<ListRulesRequest>) -> Answer<ListRulesResponse> {
        let vms = vec!["web-1".to_owned(), "web-2".to_owned()];
        let kind = Some(rule::Kind::AntiAffinity(AntiAffinity { vms, per_host_max: 1 }));
        let apart = Rule { id: "apart".into(), revision: 9, kind, ..Rule::default() };
        Ok(Response::new(ListRulesResponse { rules: vec![apart] }))
    }

    async fn set_rule(&self, r: Request<SetRuleRequest>) -> Answer<Rule> {
        let request = r.into_inner();
        let rule = request.rule.unwrap();
        self.asked.note(&format!("rule {}", rule.id), request.actor);
        Ok(Response::new(Rule { revision: 10, ..rule }))
    }

    async fn delete_rule(&self, r: Request<DeleteRuleRequest>) -> Answer<DeleteRuleResponse> {
        let request = r.into_inner();
        self.asked.note(&format!("delete rule {}", request.rule), request.actor);
        Ok(Response::new(Default::default()))
    }

    async fn show_plan(&self, _: Request<ShowPlanRequest>) -> Answer<PlanRecord> {
        let snapshot = include_str!("snapshot.json");
        let parsed = ballast_model::ClusterSnapshot::from_json(snapshot).unwrap();
        let options = ballast_placement::PlanOptions::default();
        let planning = ballast_placement::plan(&parsed, &options).unwrap();
        Ok(Response::new(PlanRecord {
            id: MIGRATION.into(),
            at_unix_millis: NOW,
            planning_json: serde_json::to_string(&planning).unwrap(),
            snapshot_json: snapshot.into(),
        }))
    }

    async fn apply_plan(&self, r: Request<ApplyPlanRequest>) -> Answer<ApplyPlanResponse> {
        let request = r.into_inner();
        self.asked.note(&format!("apply {}", request.plan), request.actor);
        Ok(Response::new(ApplyPlanResponse { migrations: vec![MIGRATION.into()] }))
    }

    async fn list_migrations(
        &self,
        _: Request<ListMigrationsRequest>,
    ) -> Answer<ListMigrationsResponse> {
        Ok(Response::new(ListMigrationsResponse { migrations: vec![migration()] }))
    }

    async fn get_migration(&self, _: Request<GetMigrationRequest>) -> Answer<Migration> {
        Ok(Response::new(migration()))
    }

    async fn cancel_migration(
        &self,
        r: Request<CancelMigrationRequest>,
    ) -> Answer<CancelMigrationResponse> {
        let request = r.into_inner();
        self.asked.note(&format!("cancel {}", request.migration), request.actor);
        Ok(Response::new(Default::default()))
    }

    async fn settle_migration(
        &self,
        r: Request<SettleMigrationRequest>,
    ) -> Answer<SettleMigrationResponse> {
        let request = r.into_inner();
        let what = format!("settle {} {:?}", request.migration, request.settlement());
        self.asked.note(&format!("{what}, {} is fenced", request.fenced_host), request.actor);
        Ok(Response::new(Default::default()))
    }

    async fn list_audit(&self, r: Request<ListAuditRequest>) -> Answer<ListAuditResponse> {
        let request = r.into_inner();
        let entries = audit();
        let head = entries.last().unwrap().clone();
        let wanted = |entry: &AuditEntry| {
            entry.sequence >= request.from
                && (request.subject.is_empty() || entry.subject == request.subject)
        };
        let item = |mut entry: AuditEntry| {
            if entry.sequence == self.spoilt {
                entry.subject = "web-9".into();
            }
            AuditItem {
                key: format!("/ballast/v1/audit/{:020}", entry.sequence),
                json: serde_json::to_string(&entry).unwrap(),
            }
        };
        Ok(Response::new(ListAuditResponse {
            entries: entries.into_iter().filter(wanted).map(item).collect(),
            head_sequence: head.sequence,
            head_hash: head.hash.as_str().to_owned(),
        }))
    }
}
