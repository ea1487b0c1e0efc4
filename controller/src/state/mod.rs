//! What the controller keeps, as types: the only place that knows keys and JSON.
//!
//! [`records`] says what stands under each key; [`Repository`] reads and writes
//! it. Every transaction goes through [`Repository::transact`], which adds the
//! leader's fence: a controller that lost its leadership changes nothing more.

mod fence;
pub mod records;

use std::collections::BTreeMap;
use std::sync::Arc;

use ballast_model::vm::Automation;
use ballast_model::{
    HostId, MigrationId, Owner, PlanId, Refusal, RefusalCode, Revision, Rule, RuleId, VmId,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::fence::Fence;
pub use self::records::{
    HostRecord, MigrationRecord, PlanRecord, Predicted, Settings, VmChange, VmRecord,
};
use crate::store::keys::{self, VmKey};
use crate::store::{Compare, Entry, Store, Transacted, Transaction};

/// A value with the revision it was last written at.
#[derive(Debug, Clone)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// The revision it was last written at.
    pub revision: Revision,
}

/// Both records of a VM.
#[derive(Debug, Clone)]
pub struct VmEntry {
    /// What was asked for and what is being done to it.
    pub record: Versioned<VmRecord>,
    /// Who may run it.
    pub owner: Versioned<Owner>,
}

/// Hosts, VMs, rules, settings and migrations as of one moment.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// The store's revision before anything of this was read.
    pub revision: Revision,
    /// Hosts by name.
    pub hosts: BTreeMap<HostId, HostRecord>,
    /// VMs by name.
    pub vms: BTreeMap<VmId, VmEntry>,
    /// Rules by name.
    pub rules: BTreeMap<RuleId, Rule>,
    /// Every migration still kept, oldest first.
    pub migrations: Vec<MigrationRecord>,
    /// Cluster-wide settings.
    pub settings: Settings,
}

/// Typed access to the store.
#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn Store>,
    fence: Fence,
}

impl Repository {
    /// A repository on `store`; it writes once `fence` says that this controller leads.
    pub fn new(store: Arc<dyn Store>, fence: Fence) -> Self {
        Self { store, fence }
    }

    /// The store beneath.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The leader's fence.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Does `transaction` if all its compares hold and this controller still leads.
    ///
    /// # Errors
    /// `Conflict` when a compare did not hold, `Unavailable` when it does not lead or the store
    /// does not answer; in the last case it may have happened.
    pub async fn transact(&self, transaction: Transaction) -> Result<Revision, Refusal> {
        let fenced = transaction.and(self.fence.compare()?);
        match self.store.transact(fenced).await? {
            Transacted::Committed(revision) => Ok(revision),
            Transacted::CompareFailed => Err(Refusal::new(
                RefusalCode::Conflict,
                "somebody else changed the same thing first",
                "look at the present state and try again",
            )),
        }
    }

    async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Versioned<T>>, Refusal> {
        self.store.get(key).await?.as_ref().map(parse).transpose()
    }

    async fn list<T: DeserializeOwned>(
        &self,
        prefix: &str,
    ) -> Result<(Revision, Vec<Versioned<T>>), Refusal> {
        let listing = self.store.list(prefix).await?;
        let values = listing.entries.iter().map(parse).collect::<Result<_, _>>()?;
        Ok((listing.revision, values))
    }

    /// Everything the planner needs.
    ///
    /// # Errors
    /// When the store does not answer or holds what this build cannot read.
    pub async fn inventory(&self) -> Result<Inventory, Refusal> {
        let (revision, hosts) = self.list::<HostRecord>(keys::HOSTS).await?;
        // Migrations before VMs: a commit between the two leaves one that looks
        // under way, which only makes the planner more careful.
        let migrations = self.migrations().await?;
        let (_, rules) = self.list::<Rule>(keys::RULES).await?;
        Ok(Inventory {
            revision,
            hosts: hosts.into_iter().map(|host| (host.value.id.clone(), host.value)).collect(),
            migrations: migrations.into_iter().map(|migration| migration.value).collect(),
            rules: rules.into_iter().map(|rule| (rule.value.id.clone(), rule.value)).collect(),
            vms: self.vms().await?,
            settings: self.settings().await?.map(|found| found.value).unwrap_or_default(),
        })
    }

    /// Every VM with its owner.
    ///
    /// # Errors
    /// As [`inventory`](Self::inventory).
    pub async fn vms(&self) -> Result<BTreeMap<VmId, VmEntry>, Refusal> {
        let listing = self.store.list(keys::VMS).await?;
        let mut records = BTreeMap::new();
        let mut owners = BTreeMap::new();
        for entry in &listing.entries {
            match keys::parse_vm(&entry.key) {
                Some((vm, VmKey::Spec)) => drop(records.insert(vm, parse::<VmRecord>(entry)?)),
                Some((vm, VmKey::Owner)) => drop(owners.insert(vm, parse::<Owner>(entry)?)),
                None => tracing::warn!(key = %entry.key, "the store holds an unknown key"),
            }
        }
        let pair = |(vm, record)| {
            let owner = owners.remove(&vm)?;
            Some((vm, VmEntry { record, owner }))
        };
        Ok(records.into_iter().filter_map(pair).collect())
    }

    /// One VM with its owner.
    ///
    /// # Errors
    /// As [`inventory`](Self::inventory).
    pub async fn vm(&self, vm: &VmId) -> Result<Option<VmEntry>, Refusal> {
        let record = self.get(&keys::vm_spec(vm)).await?;
        let owner = self.get(&keys::vm_owner(vm)).await?;
        Ok(record.zip(owner).map(|(record, owner)| VmEntry { record, owner }))
    }

    /// A VM that must exist.
    ///
    /// # Errors
    /// `NotFound`, or as [`inventory`](Self::inventory).
    pub async fn known_vm(&self, vm: &VmId) -> Result<VmEntry, Refusal> {
        self.vm(vm).await?.ok_or_else(|| not_found("VM", vm.as_str(), "ballast vm ls"))
    }

    /// Every host.
    ///
    /// # Errors
    /// As [`inventory`](Self::inventory).
    pub async fn hosts(&self) -> Result<Vec<Versioned<HostRecord>>, Refusal> {
        Ok(self.list(keys::HOSTS).await?.1)
    }

    /// One host.
    ///
    /// # Errors
    /// As [`inventory`](Self::inventory).
    pub async fn host(&self, host: &HostId) -> Result<Option<Versioned<HostRecord>>, Refusal> {
        self.get(&keys::host(host)).await
    }

    /// A host that must exist.
    ///
    /// # Errors
    /// `NotFound`, or as [`inventory`](Self::inventory).
    pub async fn known_host(&self, host: &HostId) -> Result<Versioned<HostRecord>, Refusal> {
        self.host(host).await?.ok_or_else(|| not_found("host", host.as_str(), "ballast host ls"))
    }

    /// Every migration still kept, oldest first.
    ///
    /// # Errors
    /// As [`inventory`](Self::inventory).
    pub async fn migrations(&self) -> Result<Vec<Versioned<MigrationRecord>>, Refusal> {
        Ok(self.list(keys::MIGRATIONS).await?.1)
    }

    /// One migration.
    ///
    /// # Errors
    /// As [`inventory`](Self::inventory).
    pub async fn migration(
        &self,
        id: MigrationId,
    ) -> Result<Option<Versioned<MigrationRecord>>, Refusal> {
        self.get(&keys::migration(id)).await
    }

    /// A migration that must exist.
    ///
    /// # Errors
    /// `NotFound`, or as [`inventory`](Self::inventory).
    pub async fn known_migration(
        &self,
        id: MigrationId,
    ) -> Result<Versioned<MigrationRecord>, Refusal> {
        let found = self.migration(id).await?;
        found.ok_or_else(|| not_found("migration", &id.to_string(), "ballast migration ls"))
    }

    /// Every rule.
    ///
    /// # Errors
    /// As [`inventory`](Self::inventory).
    pub async fn rules(&self) -> Result<Vec<Versioned<Rule>>, Refusal> {
        Ok(self.list(keys::RULES).await?.1)
    }

    /// One rule.
    ///
    /// # Errors
    /// As [`inventory`](Self::inventory).
    pub async fn rule(&self, rule: &RuleId) -> Result<Option<Versioned<Rule>>, Refusal> {
        self.get(&keys::rule(rule)).await
    }

    /// Every plan still kept, oldest first.
    ///
    /// # Errors
    /// As [`inventory`](Self::inventory).
    pub async fn plans(&self) -> Result<Vec<Versioned<PlanRecord>>, Refusal> {
        Ok(self.list(keys::PLANS).await?.1)
    }

    /// A plan that must exist.
    ///
    /// # Errors
    /// `NotFound`, or as [`inventory`](Self::inventory).
    pub async fn known_plan(&self, plan: PlanId) -> Result<PlanRecord, Refusal> {
        let found = self.get(&keys::plan(plan)).await?;
        let found = found.map(|plan: Versioned<PlanRecord>| plan.value);
        found.ok_or_else(|| not_found("plan", &plan.to_string(), "ballast plan show"))
    }

    /// Cluster-wide settings, if an operator ever made one.
    ///
    /// # Errors
    /// As [`inventory`](Self::inventory).
    pub async fn settings(&self) -> Result<Option<Versioned<Settings>>, Refusal> {
        self.get(keys::SETTINGS).await
    }
}

impl Inventory {
    /// How much the balancer may do.
    pub fn automation(&self, configured: Automation) -> Automation {
        self.settings.automation.unwrap_or(configured)
    }

    /// Migrations that have not ended.
    pub fn running(&self) -> impl Iterator<Item = &MigrationRecord> {
        self.migrations.iter().filter(|record| !record.migration.phase.is_ended())
    }
}

/// A refusal because there is no such thing.
pub fn not_found(what: &str, id: &str, list: &str) -> Refusal {
    Refusal::new(
        RefusalCode::NotFound,
        format!("there is no {what} {id}"),
        format!("see '{list}' for what there is"),
    )
}

/// The compare that `key` still stands as it was read.
pub fn unchanged(key: String, revision: Revision) -> Compare {
    Compare::ModifiedAt(key, revision)
}

/// The JSON of a record. All records are plain values with string keys, which always serialise.
pub fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn parse<T: DeserializeOwned>(entry: &Entry) -> Result<Versioned<T>, Refusal> {
    let value = serde_json::from_slice(&entry.value).map_err(|error| {
        Refusal::new(
            RefusalCode::Internal,
            format!("the store's record {} cannot be read: {error}", entry.key),
            "run the controller version that wrote it, or restore the store from a backup",
        )
    })?;
    Ok(Versioned { value, revision: entry.modified })
}

impl Versioned<Rule> {
    /// The rule with the revision it was written at.
    pub fn at_its_revision(&self) -> Rule {
        Rule { revision: self.revision, ..self.value.clone() }
    }
}
