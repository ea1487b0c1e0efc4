//! A controller, its store and its hosts, and the questions asked at the end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballast_controller::config::Config;
use ballast_controller::controller::Controller;
use ballast_controller::migration::Order;
use ballast_controller::snapshot::Purpose;
use ballast_controller::state::VmChange;
use ballast_controller::store::embedded::EmbeddedStore;
use ballast_controller::store::leader::{Candidate, Leadership};
use ballast_controller::store::{Store, Transaction, keys};
use ballast_controller::vms::Creation;
use ballast_model::audit::verify::verify_chain;
use ballast_model::{
    Bytes, HostId, Migration, MigrationId, ReasonTrail, Refusal, Timestamp, VmId, VmSpec,
};
use ballast_proto::v1;
use tokio_util::sync::CancellationToken;

use crate::hosts::{MemoryAgents, World};
use crate::store::MortalStore;

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Cluster {
    pub(crate) world: Arc<World>,
    pub(crate) store: Arc<MortalStore>,
    pub(crate) controller: Arc<Controller>,
    inner: Arc<dyn Store>,
    leadership: Option<Leadership>,
    _dir: Option<tempfile::TempDir>,
    /// CPU that a VM reports; 100 for those not named.
    pub(crate) load: BTreeMap<VmId, u64>,
}

pub(crate) fn reasons() -> ReasonTrail {
    ReasonTrail::new("test", "a scenario", Timestamp(1))
}

pub(crate) fn spec(id: &str) -> VmSpec {
    VmSpec::new(id.parse().unwrap(), 1, Bytes::mib(64), "/boot/guest")
}

fn config() -> Config {
    // Rounds are taken by hand; what waits does so for milliseconds.
    toml::from_str(
        "listen = '127.0.0.1:1'\nhttp_listen = '127.0.0.1:2'\nname = 'test'\n\
         [store]\nkind = 'embedded'\npath = '/unused'\n\
         [telemetry]\nsamples_min = 1\nstale_after_ms = 600000\nwindow_ms = 600000\n\
         [balance]\ncooldown_ms = 0\n\
         [migration]\nretry_ms = 2\nresolve_timeout_ms = 20000\n\
         migrations_max = 100\nmigrations_per_host_max = 100\n",
    )
    .unwrap()
}

impl Cluster {
    /// Three hosts over an embedded store in a directory of its own.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl Fn(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        let mut cluster = Self::over(store, change).await;
        cluster._dir = Some(dir);
        cluster
    }

    /// Three hosts over this store.
    pub(crate) async fn over(inner: Arc<dyn Store>, change: impl Fn(&mut Config)) -> Self {
        let world = World::new(&["h1", "h2", "h3"]);
        let store = MortalStore::over(Arc::clone(&inner));
        let mut config = config();
        change(&mut config);
        let agents = Arc::new(MemoryAgents(Arc::clone(&world)));
        let controller = Controller::new(config, Arc::clone(&store) as Arc<dyn Store>, agents);
        let load = BTreeMap::new();
        let mut cluster =
            Self { world, store, controller, inner, leadership: None, _dir: None, load };
        cluster.lead().await;
        cluster
    }

    async fn lead(&mut self) {
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        let candidate = Candidate::new(store, "test", Duration::from_secs(60));
        let leadership = candidate.acquire(&CancellationToken::new(), |_| {}).await.unwrap();
        self.controller.begin_term(&leadership);
        self.leadership = Some(leadership);
        self.controller.recover().await.unwrap();
        self.world.set_controller(Some(Arc::clone(&self.controller)));
        for host in self.world.hosts() {
            self.register(&host).await.unwrap();
        }
        self.report();
    }

    /// A host registers and begins to report.
    pub(crate) async fn register(&self, host: &HostId) -> Result<(), Refusal> {
        self.register_telling(host, |_| {}).await
    }

    /// The same with more to say of itself.
    pub(crate) async fn register_telling(
        &self,
        host: &HostId,
        tell: impl FnOnce(&mut v1::HostDescription),
    ) -> Result<(), Refusal> {
        let capacity = v1::Resources { cpu_millicores: 4_000, memory_bytes: 8 << 30 };
        let mut description = v1::HostDescription {
            host: host.to_string(),
            endpoint: "127.0.0.1:9".into(),
            capacity: Some(capacity),
            link_bytes_per_sec: 1 << 30,
            ..Default::default()
        };
        tell(&mut description);
        let vms = self.world.statuses(host);
        let request = v1::RegisterRequest { host: Some(description), vms };
        self.controller.register_host(request).await?;
        self.world.stream_begins(host);
        self.controller.live.stream_begins(host);
        Ok(())
    }

    /// Every host reports once.
    pub(crate) fn report(&self) {
        for host in self.world.hosts() {
            let load = |vm: &VmId| self.load.get(vm).copied().unwrap_or(100);
            let report = self.world.report(&host, load);
            self.controller.live.report(&host, report).unwrap().unwrap();
        }
    }

    /// The controller is gone from one moment to the next, and another one starts on the same store.
    pub(crate) async fn crash(&mut self) {
        self.world.set_controller(None);
        self.controller.end_term().await;
        drop(self.leadership.take());
        // The lease would run out in time.
        let gone = Transaction::default().delete(keys::LEADER);
        self.inner.transact(gone).await.unwrap();
        self.store = MortalStore::over(Arc::clone(&self.inner));
        let agents = Arc::new(MemoryAgents(Arc::clone(&self.world)));
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        self.controller = Controller::new(self.controller.config.clone(), store, agents);
        self.lead().await;
    }

    /// Creates a VM on a host and has it reported.
    pub(crate) async fn create(&self, vm: &str, host: &str) {
        let host = Some(host.parse().unwrap());
        self.controller.create_vm(Creation::boot(spec(vm), host), reasons()).await.unwrap();
        self.report();
    }

    pub(crate) async fn migrate(&self, vm: &str, to: &str) -> Result<MigrationId, Refusal> {
        self.controller.begin_migration(order(vm, to)).await
    }

    pub(crate) async fn migration(&self, id: MigrationId) -> Migration {
        self.controller.repository.known_migration(id).await.unwrap().value.migration
    }

    /// Waits until the migration has ended, whichever way.
    pub(crate) async fn ended(&self, id: MigrationId) -> Migration {
        eventually("the migration ends", || async { self.migration(id).await.phase.is_ended() })
            .await;
        self.migration(id).await
    }

    /// Waits until nothing is under way, then asks all questions. Answers with each VM's host.
    pub(crate) async fn settled(&self) -> BTreeMap<String, String> {
        eventually("everything ends", || async {
            // What a background task is late to repair, a round does again.
            let _ = self.controller.recover().await;
            let inventory = self.controller.repository.inventory().await.unwrap();
            let open = self.controller.journal.audit().unwrap().open_records().await.unwrap();
            let changing =
                inventory.vms.values().any(|vm| vm.record.value.change != VmChange::Settled);
            inventory.running().count() == 0 && !changing && open.is_empty()
        })
        .await;
        let vms = self.controller.repository.vms().await.unwrap();
        for (vm, entry) in &vms {
            let owner = &entry.owner.value;
            let here = vec![(owner.host.clone(), owner.epoch)];
            eventually("the VM runs exactly where the record says", || async {
                self.world.runs(vm) == here && self.world.holds(vm) == [owner.host.clone()]
            })
            .await;
        }
        assert_eq!(self.world.violations(), Vec::<String>::new());
        self.verify_audit().await;
        vms.iter().map(|(vm, e)| (vm.to_string(), e.owner.value.host.to_string())).collect()
    }

    async fn verify_audit(&self) {
        let audit = self.controller.journal.audit().unwrap();
        let page = audit.page(1, 1_000).await.unwrap();
        let verified = verify_chain(page.entries, Some(&page.head)).unwrap();
        assert_eq!(verified.open, Vec::<u64>::new(), "every record is closed");
    }
}

pub(crate) fn order(vm: &str, to: &str) -> Order {
    Order {
        vm: vm.parse().unwrap(),
        to: (!to.is_empty()).then(|| to.parse().unwrap()),
        reasons: reasons(),
        cause: None,
        predicted: None,
        purpose: Purpose::Order,
    }
}

async fn open(dir: &Path) -> Arc<dyn Store> {
    Arc::new(EmbeddedStore::open(&dir.join("store.redb")).await.unwrap())
}

/// Waits for a condition; a bound far beyond what it takes ends a test that hangs.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
