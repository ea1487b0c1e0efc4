//! The balancer: a reconciler without input, woken by a timer or a signal.
//!
//! ```text
//!  look ──▶ gate ──▶ plan ──▶ admit ──▶ begin_migration (checks again) ──▶ recommend the rest
//! ```
//!
//! [`admit`] is pure. Nothing is carried from one round to the next but the
//! steps of a plan that an operator applied and that wait for their turn.

pub mod admit;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ballast_model::plan::StepCause;
use ballast_model::{
    ClusterSnapshot, PlanId, Planning, ReasonTrail, Refusal, RefusalCode, Telemetry,
};
use uuid::Uuid;

use self::admit::{Admission, Bounds, Rejected};
use crate::controller::{Approved, Controller};
use crate::migration::Order;
use crate::now;
use crate::snapshot::Purpose;
use crate::state::{Inventory, PlanRecord, Predicted, json};
use crate::store::{Transaction, keys};

/// How long a step of an applied plan waits for its turn at most.
const APPROVAL_LASTS: Duration = Duration::from_secs(1_800);
/// The most plans kept.
const PLANS_KEPT: usize = 50;
/// The most bytes of a kept plan: what a transaction takes, less some room for the rest of it.
const PLAN_BYTES_MAX: usize = Transaction::BYTES_MAX - (64 << 10);
/// The most ended migrations kept.
const MIGRATIONS_KEPT: usize = 1_000;
/// The most old records removed in one round.
const PRUNED_MAX: usize = 64;

impl Controller {
    /// Rounds until the term of leadership ends.
    pub(crate) async fn balance(self: Arc<Self>) {
        let interval = Duration::from_millis(self.config.balance.interval_ms);
        let acting = self.acting();
        loop {
            tokio::select! {
                () = acting.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
                () = self.wake.notified() => {}
            }
            tokio::select! {
                () = acting.cancelled() => return,
                answer = self.round() => {
                    if let Err(refusal) = answer {
                        tracing::warn!(%refusal, "a round was not finished");
                    }
                }
            }
        }
    }

    /// One round.
    ///
    /// # Errors
    /// When the store does not answer or the planner refuses the snapshot.
    pub async fn round(self: &Arc<Self>) -> Result<(), Refusal> {
        self.leading()?;
        self.pick_up_migrations().await?;
        self.repair_vms().await?;
        let (inventory, snapshot) = self.look(Purpose::Balance).await?;
        self.show(&inventory, &snapshot);
        self.live.retain_vms(|vm| inventory.vms.contains_key(vm));
        self.serve_approved().await;
        let started = Instant::now();
        let options = self.config.plan_options();
        // A long computation must not hold up the drivers.
        let input = snapshot.clone();
        let planning =
            tokio::task::spawn_blocking(move || ballast_placement::plan(&input, &options))
                .await
                .map_err(|error| {
                Refusal::new(
                    RefusalCode::Internal,
                    format!("the planner failed: {error}"),
                    "report a defect with the snapshot",
                )
            })??;
        self.metrics.plan_seconds.observe(started.elapsed().as_secs_f64());
        let admission = admit::admit(&snapshot, &planning.plan, &self.bounds(&inventory));
        self.pause(admission.paused.clone());
        for rejected in &admission.rejected {
            self.metrics.step_rejected(rejected.why.name());
        }
        for index in &admission.admitted {
            self.start_step(&planning, *index).await;
        }
        self.recommend(snapshot, planning, &admission).await?;
        let newest = self.journal.audit()?.head().await?.sequence;
        self.metrics.audit_entries.set(i64::try_from(newest).unwrap_or(i64::MAX));
        self.prune(&inventory).await
    }

    fn bounds(&self, inventory: &Inventory) -> Bounds {
        let (balance, migration) = (&self.config.balance, &self.config.migration);
        Bounds {
            automation: inventory.automation(balance.automation),
            moves_per_cycle_max: balance.moves_per_cycle_max,
            migrations_max: migration.migrations_max,
            migrations_per_host_max: migration.migrations_per_host_max,
            hosts_unknown_max: balance.hosts_unknown_max,
            plan_share_max: balance.plan_share_max,
        }
    }

    async fn start_step(self: &Arc<Self>, planning: &Planning, index: usize) {
        let step = &planning.plan.steps[index];
        let why = match step.reason.as_str() {
            "" => "the plan asks for it".to_owned(),
            reason => reason.to_owned(),
        };
        let drain = match step.cause {
            StepCause::Drain => self.repository.host(&step.from).await.ok().flatten(),
            _ => None,
        };
        let mut reasons = drain.map(|host| host.value.drain).unwrap_or_default();
        reasons.push("balancer", why, now());
        let order = Order {
            vm: step.vm.clone(),
            to: Some(step.to.clone()),
            reasons,
            cause: Some(step.cause.clone()),
            predicted: Some(Predicted {
                gain: step.gain,
                bytes: step.cost.bytes,
                duration: step.cost.duration,
            }),
            purpose: Purpose::Balance,
        };
        if let Err(refusal) = self.begin_migration(order).await {
            self.metrics.step_rejected("refused");
            tracing::info!(vm = %step.vm, to = %step.to, %refusal, "a planned step is not taken");
        }
    }

    /// Steps of an applied plan whose turn has come. Those that no longer hold are dropped with a word.
    async fn serve_approved(self: &Arc<Self>) {
        let waiting: Vec<Approved> = self.said().approved.drain(..).collect();
        for approved in waiting {
            let order = order_of(&approved);
            match self.begin_migration(order).await {
                Ok(_) => {}
                Err(refusal) if admit::is_passing(&refusal) && now() < approved.until => {
                    self.said().approved.push_back(approved);
                }
                Err(refusal) => tracing::warn!(
                    vm = %approved.step.vm, to = %approved.step.to, %refusal,
                    "a step of an applied plan is dropped"
                ),
            }
        }
    }

    fn pause(&self, why: Option<String>) {
        let mut said = self.said();
        if said.paused != why {
            match &why {
                Some(why) => tracing::warn!(%why, "the balancer pauses itself"),
                None => tracing::info!("the balancer goes on"),
            }
        }
        self.metrics.balancer_paused.set(i64::from(why.is_some()));
        said.paused = why;
    }

    /// Keeps what was planned and not admitted for want of automation, so that an operator can apply it.
    async fn recommend(
        &self,
        snapshot: ClusterSnapshot,
        planning: Planning,
        admission: &Admission,
    ) -> Result<(), Refusal> {
        let for_operators = |r: &&Rejected| r.why.is_for_operators();
        let steps: Vec<_> = admission
            .rejected
            .iter()
            .filter(for_operators)
            .map(|r| &planning.plan.steps[r.step])
            .map(|step| (step.vm.clone(), step.to.clone()))
            .collect();
        if steps.is_empty() || self.said().recommended == steps {
            return Ok(());
        }
        let record = self.keep_plan(snapshot, planning).await?;
        tracing::info!(plan = %record.id, steps = steps.len(), "a plan is recommended");
        self.said().recommended = steps;
        Ok(())
    }

    /// Plans on the present state, for an operator, and keeps the plan.
    ///
    /// # Errors
    /// As [`round`](Self::round).
    pub async fn show_plan(&self) -> Result<PlanRecord, Refusal> {
        let (_, snapshot) = self.look(Purpose::Balance).await?;
        let options = self.config.plan_options();
        let planning = ballast_placement::plan(&snapshot, &options)?;
        self.keep_plan(snapshot, planning).await
    }

    async fn keep_plan(
        &self,
        snapshot: ClusterSnapshot,
        planning: Planning,
    ) -> Result<PlanRecord, Refusal> {
        let record = PlanRecord { id: PlanId::new(Uuid::now_v7()), at: now(), planning, snapshot };
        let mut transaction = Transaction::default().put(keys::plan(record.id), storable(&record));
        let kept = self.repository.plans().await?;
        let surplus = (kept.len() + 1).saturating_sub(PLANS_KEPT).min(PRUNED_MAX);
        for old in &kept[..surplus] {
            transaction = transaction.delete(keys::plan(old.value.id));
        }
        self.repository.transact(transaction).await?;
        Ok(record)
    }

    /// Has the steps of a kept plan taken, as an operator's order.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when a VM is no longer where the plan found it; the first step's
    /// refusal when that one does not hold any more.
    pub async fn apply_plan(
        self: &Arc<Self>,
        plan: PlanId,
        reasons: ReasonTrail,
    ) -> Result<Vec<ballast_model::MigrationId>, Refusal> {
        let record = self.repository.known_plan(plan).await?;
        let (_, snapshot) = self.look(Purpose::Order).await?;
        admit::still_holds(&snapshot, &record.planning.plan)?;
        let act = crate::journal::Act::new(
            ballast_model::audit::action::PLAN_APPLY,
            plan,
            reasons.clone(),
        )
        .with("steps", record.planning.plan.steps.len());
        let opened = self.journal.open(&act, Transaction::default()).await?;
        let mut started = Vec::new();
        for step in record.planning.plan.steps {
            let approved =
                Approved { step, reasons: reasons.clone(), until: now().plus(APPROVAL_LASTS) };
            let waits = !approved.step.after.is_empty();
            let begun =
                if waits { None } else { Some(self.begin_migration(order_of(&approved)).await) };
            match begun {
                Some(Ok(id)) => started.push(id),
                Some(Err(refusal)) if !admit::is_passing(&refusal) => tracing::warn!(
                    vm = %approved.step.vm, %refusal, "a step of an applied plan is dropped"
                ),
                _ => self.said().approved.push_back(approved),
            }
        }
        self.journal.close(opened, ballast_model::audit::AuditOutcome::Succeeded).await;
        Ok(started)
    }

    fn show(&self, inventory: &Inventory, snapshot: &ClusterSnapshot) {
        let imbalance = ballast_placement::imbalance(snapshot).get();
        self.said().imbalance = imbalance;
        let metrics = &self.metrics;
        metrics.imbalance.set(imbalance);
        metrics.vms.set(count(inventory.vms.len()));
        for state in ["active", "draining", "unknown"] {
            let named = |host: &&ballast_model::Host| host_state(host) == state;
            let hosts = snapshot.hosts.values().filter(named).count();
            metrics.hosts.with_label_values(&[state]).set(count(hosts));
        }
        for phase in ["preparing", "transferring", "committed", "aborting"] {
            let running = inventory.running().filter(|r| r.migration.phase.name() == phase).count();
            metrics.migrations.with_label_values(&[phase]).set(count(running));
        }
    }

    /// Removes the oldest ended migrations beyond what is kept.
    async fn prune(&self, inventory: &Inventory) -> Result<(), Refusal> {
        let ended: Vec<_> =
            inventory.migrations.iter().filter(|r| r.migration.phase.is_ended()).collect();
        let surplus = ended.len().saturating_sub(MIGRATIONS_KEPT).min(PRUNED_MAX);
        if surplus == 0 {
            return Ok(());
        }
        let delete = |transaction: Transaction, record: &&crate::state::MigrationRecord| {
            transaction.delete(keys::migration(record.migration.id))
        };
        let transaction = ended[..surplus].iter().fold(Transaction::default(), delete);
        self.repository.transact(transaction).await.map(drop)
    }
}

/// A plan as it is kept. One of a very large cluster is kept without what only explains it: its
/// steps are what an operator applies.
fn storable(record: &PlanRecord) -> Vec<u8> {
    let whole = json(record);
    if whole.len() <= PLAN_BYTES_MAX {
        return whole;
    }
    let snapshot = ClusterSnapshot::empty(record.snapshot.revision, record.snapshot.taken_at);
    let mut short = PlanRecord { snapshot, ..record.clone() };
    let steps = json(&short);
    if steps.len() <= PLAN_BYTES_MAX {
        return steps;
    }
    short.planning.verdicts.clear();
    json(&short)
}

fn order_of(approved: &Approved) -> Order {
    let step = &approved.step;
    Order {
        vm: step.vm.clone(),
        to: Some(step.to.clone()),
        reasons: approved.reasons.clone(),
        cause: Some(step.cause.clone()),
        predicted: Some(Predicted {
            gain: step.gain,
            bytes: step.cost.bytes,
            duration: step.cost.duration,
        }),
        purpose: Purpose::Order,
    }
}

fn host_state(host: &ballast_model::Host) -> &'static str {
    match (&host.telemetry, host.state) {
        (Telemetry::Unknown { .. }, _) => "unknown",
        (_, ballast_model::HostState::Draining) => "draining",
        (_, ballast_model::HostState::Quarantined) => "quarantined",
        (_, ballast_model::HostState::Active) => "active",
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ballast_model::plan::PlanReport;
    use ballast_model::{Plan, Ratio, Revision, Timestamp, Verdict};

    #[test]
    fn a_plan_of_any_size_can_be_kept() {
        for vms in [1_u32, 5_000, 100_000] {
            let stays = |n: u32| {
                let reason = "the load is level as it is".to_owned();
                let verdict = Verdict::Stays { reason, alternative: None };
                (format!("vm-{n}").parse().unwrap(), verdict)
            };
            let plan = Plan {
                snapshot: Revision(1),
                steps: Vec::new(),
                imbalance_before: Ratio::ZERO,
                imbalance_after: Ratio::ZERO,
            };
            let record = PlanRecord {
                id: PlanId::new(Uuid::now_v7()),
                at: Timestamp(1),
                planning: Planning {
                    plan,
                    verdicts: (0..vms).map(stays).collect(),
                    report: PlanReport::default(),
                },
                snapshot: ClusterSnapshot::empty(Revision(1), Timestamp(1)),
            };
            let kept = storable(&record);
            assert!(kept.len() <= PLAN_BYTES_MAX, "{vms} VMs");
            let read: PlanRecord = serde_json::from_slice(&kept).unwrap();
            assert_eq!(read.planning.plan, record.planning.plan);
        }
    }
}
