//! The controller: what all its parts share.
//!
//! ```text
//!  service/   gRPC: operators and agents         ┐
//!  round/     the balancer: plan, admit, start    ├──▶ Controller ──▶ state (store), journal (audit)
//!  migration/ one driver task per migration       │         └───────▶ agents
//!  vms, hosts, rules: operators' orders           ┘
//! ```
//!
//! Truth is in the store. Memory holds load windows, which migrations have a
//! driver, and what the balancer said last; all of it may be lost at any time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ballast_model::migration::Progress;
use ballast_model::plan::Step;
use ballast_model::{HostId, MigrationId, ReasonTrail, Refusal, RefusalCode, Timestamp, VmId};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agents::{Agent, Agents};
use crate::config::Config;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::registry::Live;
use crate::snapshot::{self, Purpose};
use crate::state::{Fence, Inventory, Repository};
use crate::store::Store;

/// All of one controller. Its methods are spread over the modules that own the matter.
pub struct Controller {
    /// How it is configured.
    pub config: Config,
    /// The store, typed.
    pub repository: Repository,
    /// The audit trail.
    pub journal: Journal,
    /// Load as last heard.
    pub live: Live,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    agents: Arc<dyn Agents>,
    /// Held from looking at the cluster until the decision based on it is in the store, so that
    /// two decisions never use the same room.
    pub(crate) deciding: tokio::sync::Mutex<()>,
    /// Wakes the balancer before its time.
    pub(crate) wake: Notify,
    drivers: Mutex<BTreeMap<MigrationId, Arc<Driver>>>,
    busy: Mutex<BTreeSet<VmId>>,
    said: Mutex<Said>,
    recovered: AtomicBool,
    pub(crate) tasks: TaskTracker,
    /// Ends everything that acts in this term of leadership.
    acting: Mutex<CancellationToken>,
}

/// What the balancer said last, and what it was ordered to do.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// Why it paused itself.
    pub paused: Option<String>,
    /// The imbalance it saw.
    pub imbalance: f64,
    /// Steps of an applied plan that wait for their turn.
    pub approved: VecDeque<Approved>,
    /// The steps of the last plan that was kept as a recommendation.
    pub recommended: Vec<(VmId, HostId)>,
}

/// A step an operator approved.
#[derive(Debug, Clone)]
pub(crate) struct Approved {
    pub step: Step,
    pub reasons: ReasonTrail,
    /// When waiting for its turn ends.
    pub until: Timestamp,
}

/// What the driver of a migration shares with those who ask.
#[derive(Debug, Default)]
pub(crate) struct Driver {
    /// The record changed: look again.
    pub changed: Notify,
    /// The last figures heard.
    pub progress: Mutex<Progress>,
}

impl Driver {
    /// The last figures heard.
    pub(crate) fn progress(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds a VM while something is done to it in this process, so that the repair leaves it alone.
pub(crate) struct Busy<'a> {
    controller: &'a Controller,
    vm: VmId,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        lock(&self.controller.busy).remove(&self.vm);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controller {
    /// A controller on `store` that calls hosts through `agents`; it acts once it leads.
    pub fn new(config: Config, store: Arc<dyn Store>, agents: Arc<dyn Agents>) -> Arc<Self> {
        let repository = Repository::new(store, Fence::default());
        Arc::new(Self {
            journal: Journal::default(),
            live: Live::new(&config.telemetry),
            metrics: Metrics::default(),
            repository,
            config,
            agents,
            deciding: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            drivers: Mutex::default(),
            busy: Mutex::default(),
            said: Mutex::default(),
            recovered: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            acting: Mutex::default(),
        })
    }

    /// The agent of a registered host.
    pub(crate) async fn agent(&self, host: &HostId) -> Result<Arc<dyn Agent>, Refusal> {
        let record = self.repository.known_host(host).await?.value;
        self.agents.agent(host, &record.endpoint)
    }

    /// Refuses unless this controller leads and has picked up what its predecessor left.
    pub fn leading(&self) -> Result<(), Refusal> {
        if self.repository.fence().leads() && self.recovered.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalCode::Unavailable,
            "this controller does not lead, or is still starting",
            "ask the leading controller, or try again in a few seconds",
        ))
    }

    /// Ends with the present term of leadership.
    pub(crate) fn acting(&self) -> CancellationToken {
        lock(&self.acting).clone()
    }

    pub(crate) fn set_acting(&self, acting: CancellationToken) {
        *lock(&self.acting) = acting;
    }

    pub(crate) fn set_recovered(&self, recovered: bool) {
        self.recovered.store(recovered, Ordering::Release);
    }

    /// Everything as the planner sees it now.
    pub(crate) async fn look(
        &self,
        purpose: Purpose,
    ) -> Result<(Inventory, ballast_model::ClusterSnapshot), Refusal> {
        let inventory = self.repository.inventory().await?;
        let snapshot = self.snapshot_of(&inventory, purpose, None);
        Ok((inventory, snapshot))
    }

    /// The planner's input from an inventory, with a VM that is about to be created.
    pub(crate) fn snapshot_of(
        &self,
        inventory: &Inventory,
        purpose: Purpose,
        newcomer: Option<&ballast_model::VmSpec>,
    ) -> ballast_model::ClusterSnapshot {
        let terms = (self.config.policy, self.config.balance.cooldown());
        snapshot::build(inventory, &self.live, purpose, terms, crate::now(), newcomer)
    }

    pub(crate) fn said(&self) -> MutexGuard<'_, Said> {
        lock(&self.said)
    }

    /// Marks a VM as being worked on; `None` when it is already.
    pub(crate) fn hold(&self, vm: &VmId) -> Option<Busy<'_>> {
        let taken = lock(&self.busy).insert(vm.clone());
        taken.then(|| Busy { controller: self, vm: vm.clone() })
    }

    pub(crate) fn driver(&self, id: MigrationId) -> Option<Arc<Driver>> {
        lock(&self.drivers).get(&id).cloned()
    }

    /// Registers a driver; `None` when the migration has one already.
    pub(crate) fn add_driver(&self, id: MigrationId) -> Option<Arc<Driver>> {
        let mut drivers = lock(&self.drivers);
        if drivers.contains_key(&id) {
            return None;
        }
        let driver = Arc::new(Driver::default());
        drivers.insert(id, Arc::clone(&driver));
        Some(driver)
    }

    pub(crate) fn remove_driver(&self, id: MigrationId) {
        lock(&self.drivers).remove(&id);
    }

    /// Tells a migration's driver that its record changed.
    pub(crate) fn notify_driver(&self, id: MigrationId) {
        if let Some(driver) = self.driver(id) {
            driver.changed.notify_one();
        }
    }
}
