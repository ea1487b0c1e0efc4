//! What a snapshot must keep to mean something: the format, and that all that is referred to exists.

use std::collections::BTreeSet;

use super::{BalanceWeights, ClusterSnapshot, Mobility, Policy, SNAPSHOT_FORMAT};
use crate::pool::POOL_DEPTH_MAX;
use crate::{HostId, PoolId, Refusal, RefusalCode, VmId};

/// The overcommit ratios that make sense.
const OVERCOMMIT: std::ops::RangeInclusive<f64> = 0.1..=100.0;
/// The most a resource can count for when load is levelled.
const WEIGHT_MAX: u16 = 1000;

impl ClusterSnapshot {
    /// Checks the format number, every bound, and that every host, VM and pool referred to exists.
    ///
    /// # Errors
    /// `InvalidArgument` naming the first thing that does not fit.
    pub fn validate(&self) -> Result<(), Refusal> {
        if self.format != SNAPSHOT_FORMAT {
            return invalid(format!("snapshot format {} is not {SNAPSHOT_FORMAT}", self.format));
        }
        self.validate_vms()?;
        self.validate_rules()?;
        self.validate_migrations()?;
        self.validate_pools()?;
        self.policy.validate()
    }

    fn is_host(&self, host: &HostId) -> bool {
        self.hosts.contains_key(host)
    }

    fn is_vm(&self, vm: &VmId) -> bool {
        self.vms.contains_key(vm)
    }

    fn validate_vms(&self) -> Result<(), Refusal> {
        for vm in self.vms.values() {
            if !self.is_host(&vm.host) {
                return invalid(format!(
                    "VM {} is on host {}, which does not exist",
                    vm.id, vm.host
                ));
            }
            if let Some(pool) = vm.pool.as_ref().filter(|pool| !self.pools.contains_key(*pool)) {
                return invalid(format!("VM {} is in pool {pool}, which does not exist", vm.id));
            }
            if let Some(fault) = vm.claims.fault() {
                return invalid(format!("claims of VM {}: {fault}", vm.id));
            }
            if let Mobility::Fixed { reason, remedy } = &vm.mobility
                && (reason.trim().is_empty() || remedy.trim().is_empty())
            {
                return invalid(format!("VM {} is fixed without a reason and a remedy", vm.id));
            }
        }
        Ok(())
    }

    fn validate_rules(&self) -> Result<(), Refusal> {
        for rule in self.rules.values() {
            rule.validate()?;
            if let Some(vm) = rule.kind.vms_named().find(|vm| !self.is_vm(vm)) {
                return invalid(format!("rule {} names VM {vm}, which does not exist", rule.id));
            }
            if let Some(host) = rule.kind.hosts_named().find(|host| !self.is_host(host)) {
                return invalid(format!(
                    "rule {} names host {host}, which does not exist",
                    rule.id
                ));
            }
        }
        Ok(())
    }

    fn validate_migrations(&self) -> Result<(), Refusal> {
        let mut moving = BTreeSet::new();
        for flight in &self.migrations {
            if !self.is_vm(&flight.vm) || !self.is_host(&flight.from) || !self.is_host(&flight.to) {
                return invalid(format!(
                    "migration {} names a VM or host that does not exist",
                    flight.id
                ));
            }
            if flight.from == flight.to || !moving.insert(&flight.vm) {
                return invalid(format!(
                    "VM {} of migration {} moves twice or to itself",
                    flight.vm, flight.id
                ));
            }
        }
        Ok(())
    }

    fn validate_pools(&self) -> Result<(), Refusal> {
        for pool in self.pools.values() {
            if let Some(fault) = pool.claims.fault() {
                return invalid(format!("claims of pool {}: {fault}", pool.id));
            }
            let mut at: &PoolId = &pool.id;
            let mut depth = 0;
            while let Some(parent) = self.pools.get(at).and_then(|pool| pool.parent.as_ref()) {
                if !self.pools.contains_key(parent) {
                    return invalid(format!("pool {at} is in pool {parent}, which does not exist"));
                }
                depth += 1;
                if depth >= POOL_DEPTH_MAX {
                    return invalid(format!(
                        "pool {} is nested in itself or deeper than {POOL_DEPTH_MAX}",
                        pool.id
                    ));
                }
                at = parent;
            }
        }
        Ok(())
    }
}

impl Policy {
    /// Checks every value against its range.
    ///
    /// # Errors
    /// `InvalidArgument` naming the value.
    pub fn validate(&self) -> Result<(), Refusal> {
        for ratio in [Some(self.memory_overcommit), self.cpu_overcommit].into_iter().flatten() {
            if !OVERCOMMIT.contains(&ratio.get()) {
                return invalid(format!("an overcommit of {} is not in 0.1 to 100", ratio.get()));
            }
        }
        let BalanceWeights { cpu, memory } = self.balance;
        if cpu.max(memory) > WEIGHT_MAX || cpu == 0 && memory == 0 {
            return invalid(format!(
                "balance weights of {cpu} for CPU and {memory} for memory: they are 0 to {WEIGHT_MAX}, one at least 1"
            ));
        }
        Ok(())
    }
}

fn invalid(reason: String) -> Result<(), Refusal> {
    Err(Refusal::new(
        RefusalCode::InvalidArgument,
        reason,
        "correct that place; docs/snapshot.md describes the format",
    ))
}
