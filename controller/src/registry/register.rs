//! A host's arrival: its record, and its VMs against the owner records.
//!
//! | the host has | the record says | then |
//! | --- | --- | --- |
//! | a VM | it is this host's | well |
//! | a VM at an older epoch | it is another host's, and nothing moves | a stale copy: destroyed |
//! | a VM | it is being moved | the migration's driver decides |
//! | a VM | nothing | left alone, with a word in the log |
//! | no VM | one is this host's | missing: a word in the log, never started again by itself |

use std::sync::Arc;

use ballast_model::audit::action;
use ballast_model::offer::{self, OFFERS_MAX};
use ballast_model::{
    BytesPerSec, Epoch, HostId, HostState, ReasonTrail, Refusal, RefusalCode, Resources, VmId,
};
use ballast_proto::convert::field::{host_id, required};
use ballast_proto::convert::hardware::cpu_baselines;
use ballast_proto::convert::vm::labels;
use ballast_proto::v1;

use crate::controller::Controller;
use crate::journal::Act;
use crate::now;
use crate::state::{HostRecord, VmChange, json, unchanged};
use crate::store::{Compare, Transaction, keys};

/// The most VMs one registration may name.
const VMS_MAX: usize = 10_000;
/// The longest endpoint, version or CPU model, in bytes.
const TEXT_BYTES_MAX: usize = 256;
/// The most NUMA nodes of a host (Linux's MAX_NUMNODES on x86).
const NUMA_NODES_MAX: usize = 1_024;

impl Controller {
    /// Takes a host in, or again.
    ///
    /// # Errors
    /// `InvalidArgument`; `Conflict`, `Unavailable`: register again.
    pub async fn register_host(
        self: &Arc<Self>,
        request: v1::RegisterRequest,
    ) -> Result<HostId, Refusal> {
        self.leading()?;
        let description = required(request.host, "host")?;
        let host = checked(&description)?;
        if request.vms.len() > VMS_MAX {
            return Err(Refusal::new(
                RefusalCode::InvalidArgument,
                format!("host {} reports {} VMs", host.id, request.vms.len()),
                format!("run at most {VMS_MAX} on one host"),
            ));
        }
        let id = host.id.clone();
        let capacity = host.capacity;
        self.write_registration(host).await?;
        self.live.registered(&id, capacity);
        self.compare_vms(&id, &request.vms).await?;
        self.wake.notify_one();
        Ok(id)
    }

    async fn write_registration(&self, mut host: HostRecord) -> Result<(), Refusal> {
        let key = keys::host(&host.id);
        let found = self.repository.host(&host.id).await?;
        let compare = match &found {
            Some(found) => {
                host.state = found.value.state;
                host.drain = found.value.drain.clone();
                host.drain_goal = found.value.drain_goal;
                if found.value == host {
                    return Ok(());
                }
                unchanged(key.clone(), found.revision)
            }
            None => Compare::Absent(key.clone()),
        };
        let writes = Transaction::when(compare).put(key, json(&host));
        let capacity = found.map(|found| found.value.capacity);
        if capacity == Some(host.capacity) {
            return self.repository.transact(writes).await.map(drop);
        }
        let why = match capacity {
            None => "it registered for the first time".to_owned(),
            Some(before) => format!("its capacity was {before} and is {} now", host.capacity),
        };
        tracing::info!(host = %host.id, endpoint = %host.endpoint, %why, "a host is taken in");
        let who = format!("agent:{}", host.id);
        let act = Act::new(action::HOST_REGISTER, &host.id, ReasonTrail::new(who, why, now()))
            .with("endpoint", &host.endpoint)
            .with("cpu_millicores", host.capacity.cpu.get())
            .with("memory_bytes", host.capacity.memory.get());
        self.journal.record(&act, writes).await
    }

    async fn compare_vms(
        self: &Arc<Self>,
        host: &HostId,
        found: &[v1::VmStatus],
    ) -> Result<(), Refusal> {
        let records = self.repository.vms().await?;
        for status in found {
            let Ok(vm) = status.vm.parse::<VmId>() else {
                tracing::warn!(%host, vm = %status.vm, "a host reports a VM whose name is no name");
                continue;
            };
            let Some(record) = records.get(&vm) else {
                tracing::warn!(%host, %vm, "a host runs a VM that nobody knows; it is left alone");
                continue;
            };
            let owner = &record.owner.value;
            let moves = matches!(record.record.value.change, VmChange::Moving { .. });
            if owner.host == *host || moves {
                continue;
            }
            if status.epoch < owner.epoch.0 {
                tracing::warn!(%host, %vm, owner = %owner.host, "a stale copy of a VM is destroyed");
                self.destroy_stale(host.clone(), vm, Epoch(status.epoch));
            } else {
                tracing::error!(
                    %host, %vm, epoch = status.epoch, owner = %owner.host,
                    "a host claims a VM under an epoch that it was never given"
                );
            }
        }
        for (vm, record) in &records {
            let settled = record.record.value.change == VmChange::Settled;
            let here = record.owner.value.host == *host;
            if here && settled && !found.iter().any(|status| status.vm == vm.as_str()) {
                tracing::error!(%host, %vm, "a VM is missing on the host that owns it");
            }
        }
        Ok(())
    }

    /// On a task of its own: the agent that registers may not serve yet.
    fn destroy_stale(self: &Arc<Self>, host: HostId, vm: VmId, epoch: Epoch) {
        let (this, acting) = (Arc::clone(self), self.acting());
        let destroy = async move {
            match this.agent(&host).await {
                Ok(agent) => agent.destroy_vm(&vm, epoch).await,
                Err(refusal) => Err(refusal),
            }
            .unwrap_or_else(|refusal| {
                tracing::warn!(%host, %vm, %refusal, "a stale copy was not destroyed; the next registration tries again");
            });
        };
        self.tasks.spawn(async move {
            tokio::select! {
                () = acting.cancelled() => {}
                () = destroy => {}
            }
        });
    }
}

fn checked(description: &v1::HostDescription) -> Result<HostRecord, Refusal> {
    let invalid = |reason: String, remedy: &str| {
        Err(Refusal::new(RefusalCode::InvalidArgument, reason, remedy))
    };
    let id = host_id(&description.host, "host.host")?;
    let endpoint = description.endpoint.clone();
    if endpoint.parse::<std::net::SocketAddr>().is_err() {
        return invalid(
            format!("host {id} names {endpoint:?} as its address"),
            "configure the agent to serve at ip:port",
        );
    }
    let texts = [&description.version, &description.cpu_model];
    if texts.into_iter().any(|text| text.len() > TEXT_BYTES_MAX) {
        return invalid(
            format!("host {id} has a version or CPU model that is too long"),
            "shorten it",
        );
    }
    let capacity = Resources::from(required(description.capacity, "host.capacity")?);
    if capacity.cpu.get() == 0 || capacity.memory.get() == 0 {
        return invalid(
            format!("host {id} offers {capacity}"),
            "configure the agent to offer some CPU and some memory",
        );
    }
    if description.numa.len() > NUMA_NODES_MAX {
        return invalid(
            format!("host {id} has {} NUMA nodes", description.numa.len()),
            "report a defect of its agent",
        );
    }
    let offers = description.offers.iter().cloned().collect();
    offer::validate(&format!("host {id} offers"), &offers, OFFERS_MAX)?;
    Ok(HostRecord {
        id,
        endpoint,
        driver: description.driver,
        capacity,
        link: BytesPerSec(description.link_bytes_per_sec),
        labels: labels(description.labels.clone(), "host.labels")?,
        version: description.version.clone(),
        cpu_model: description.cpu_model.clone(),
        offers,
        cpu_baselines: cpu_baselines(&description.cpu_baselines),
        numa: description.numa.iter().copied().map(Resources::from).collect(),
        state: HostState::Active,
        drain: ReasonTrail::default(),
        drain_goal: None,
    })
}
