//! Operators' orders that change the store alone: hosts, rules, settings.

use ballast_model::audit::action;
use ballast_model::vm::Automation;
use ballast_model::{
    DrainGoal, HostId, HostState, ReasonTrail, Refusal, RefusalCode, Revision, Rule, RuleId,
};

use crate::controller::Controller;
use crate::journal::Act;
use crate::snapshot::Purpose;
use crate::state::{HostRecord, Settings, Versioned, json, not_found, unchanged};
use crate::store::{Compare, Transaction, keys};

impl Controller {
    /// Has a host emptied and kept empty, with a goal of its own or, without one, that of the configuration. Answers with
    /// the number of VMs that have to leave. Where it drains already it keeps its goal, unless another is given.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Unavailable`.
    pub async fn drain_host(
        &self,
        id: &HostId,
        goal: Option<DrainGoal>,
        reasons: ReasonTrail,
    ) -> Result<usize, Refusal> {
        let host = self.repository.known_host(id).await?;
        let drains = host.value.state == HostState::Draining;
        let kept = host.value.drain_goal.filter(|_| drains);
        // Written down, so that a saved snapshot alone tells how the host is emptied.
        let goal = goal.or(kept).unwrap_or(self.config.balance.drain);
        if !drains || kept != Some(goal) {
            let drained = HostRecord {
                state: HostState::Draining,
                drain: reasons.clone(),
                drain_goal: Some(goal),
                ..host.value.clone()
            };
            let act = Act::new(action::HOST_DRAIN, id, reasons).with("goal", goal);
            self.write_host(&host, drained, &act).await?;
            tracing::info!(host = %id, %goal, "a host drains");
        }
        self.wake.notify_one();
        let vms = self.repository.vms().await?;
        Ok(vms.values().filter(|vm| vm.owner.value.host == *id).count())
    }

    /// Lets a host take VMs again.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Unavailable`.
    pub async fn uncordon_host(&self, id: &HostId, reasons: ReasonTrail) -> Result<(), Refusal> {
        let host = self.repository.known_host(id).await?;
        if host.value.state != HostState::Active {
            let active = HostRecord {
                state: HostState::Active,
                drain: ReasonTrail::default(),
                drain_goal: None,
                ..host.value.clone()
            };
            self.write_host(&host, active, &Act::new(action::HOST_UNCORDON, id, reasons)).await?;
            tracing::info!(host = %id, "a host takes VMs again");
        }
        self.wake.notify_one();
        Ok(())
    }

    async fn write_host(
        &self,
        read: &Versioned<HostRecord>,
        host: HostRecord,
        act: &Act,
    ) -> Result<(), Refusal> {
        // Not between a look at the cluster and the decision based on it.
        let _turn = self.deciding.lock().await;
        let key = keys::host(&host.id);
        let writes = Transaction::when(unchanged(key.clone(), read.revision)).put(key, json(&host));
        self.journal.record(act, writes).await
    }

    /// Writes a rule. A rule with a revision other than zero replaces exactly that one.
    ///
    /// # Errors
    /// `NotFound` when it names a VM or host that does not exist; `Conflict` when the rule changed since;
    /// `RuleViolation`, unless it is to be written anyway, when nothing can keep it and the other hard rules at once.
    pub async fn set_rule(
        &self,
        mut rule: Rule,
        anyway: bool,
        reasons: ReasonTrail,
    ) -> Result<Rule, Refusal> {
        self.check_members(&rule).await?;
        if !anyway {
            let (_, snapshot) = self.look(Purpose::Order).await?;
            let checked = rule.clone();
            let check = move || ballast_placement::explain::check_rule(&snapshot, &checked);
            tokio::task::spawn_blocking(check).await.map_err(|error| {
                Refusal::new(
                    RefusalCode::Internal,
                    format!("the check of rule {} broke off: {error}", rule.id),
                    "report this defect, or write the rule with --force",
                )
            })??;
        }
        let key = keys::rule(&rule.id);
        let found = self.repository.rule(&rule.id).await?;
        let asked = std::mem::take(&mut rule.revision);
        let compare = match &found {
            Some(found) if asked == Revision(0) || asked == found.revision => {
                unchanged(key.clone(), found.revision)
            }
            None if asked == Revision(0) => Compare::Absent(key.clone()),
            _ => {
                return Err(Refusal::new(
                    RefusalCode::Conflict,
                    format!("rule {} is no longer at revision {asked}", rule.id),
                    "look at the rule as it is now, then set it again",
                ));
            }
        };
        let act = Act::new(action::RULE_SET, &rule.id, reasons)
            .with("kind", rule.kind.name())
            .with("strength", if rule.strength.is_must() { "must" } else { "should" });
        let _turn = self.deciding.lock().await;
        self.journal.record(&act, Transaction::when(compare).put(key, json(&rule))).await?;
        self.wake.notify_one();
        if let Some(written) = self.repository.rule(&rule.id).await? {
            rule.revision = written.revision;
        }
        Ok(rule)
    }

    async fn check_members(&self, rule: &Rule) -> Result<(), Refusal> {
        let known = self.repository.vms().await?;
        if let Some(vm) = rule.kind.vms_named().find(|vm| !known.contains_key(*vm)) {
            return Err(not_found("VM", vm.as_str(), "ballast vm ls"));
        }
        for host in rule.kind.hosts_named() {
            self.repository.known_host(host).await?;
        }
        Ok(())
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Unavailable`.
    pub async fn delete_rule(&self, id: &RuleId, reasons: ReasonTrail) -> Result<(), Refusal> {
        let found = self.repository.rule(id).await?;
        let found = found.ok_or_else(|| not_found("rule", id.as_str(), "ballast rule ls"))?;
        let key = keys::rule(id);
        let writes = Transaction::when(unchanged(key.clone(), found.revision)).delete(key);
        self.journal.record(&Act::new(action::RULE_REMOVE, id, reasons), writes).await?;
        self.wake.notify_one();
        Ok(())
    }

    /// Sets how much the balancer may do on its own.
    ///
    /// # Errors
    /// `Conflict`, `Unavailable`.
    pub async fn set_automation(
        &self,
        level: Automation,
        reasons: ReasonTrail,
    ) -> Result<(), Refusal> {
        let key = keys::SETTINGS.to_owned();
        let compare = match self.repository.settings().await? {
            Some(found) => unchanged(key.clone(), found.revision),
            None => Compare::Absent(key.clone()),
        };
        let settings = Settings { automation: Some(level) };
        let name = format!("{level:?}").to_lowercase();
        let act = Act::new(action::AUTOMATION_SET, "cluster", reasons).with("level", name);
        let writes = Transaction::when(compare).put(key, json(&settings));
        self.journal.record(&act, writes).await?;
        self.wake.notify_one();
        Ok(())
    }
}
