//! The demo's story: pile up, level, drain, ask the guests. Straight-line; every wait has a bound.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ballast_model::{Millicores, Planning, Ratio, Refusal, RefusalCode};
use ballast_proto::v1;

use super::load::Load;
use super::summary::{self, Figures, Findings};
use super::view::View;
use super::watch::{Consoles, Look, Tracker, name};
use crate::client::{Actor, Client};
use crate::commands::audit::verify_online;
use crate::output::units;

/// How often the cluster is looked at.
const POLL: Duration = Duration::from_millis(300);
/// How often the consoles are read: far more often than they fill up.
const CONSOLE_EVERY: Duration = Duration::from_secs(1);
/// Bounds on the parts of the story.
const MEASURE_LIMIT: Duration = Duration::from_secs(30);
const LEVEL_LIMIT: Duration = Duration::from_secs(75);
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
const GUESTS_LIMIT: Duration = Duration::from_secs(15);
/// The share of the load the VMs were told to make that must have been measured.
const MEASURED_MIN: Ratio = Ratio::new(0.7);
/// A measured load counts as settled when every look in this time is within this share of their median.
const SETTLED_CHANGE_MAX: f64 = 0.05;
const SETTLED_EVERY: Duration = Duration::from_secs(2);
/// The load is level when this many plans in a row have no step.
const EMPTY_PLANS: u32 = 3;
const PLAN_EVERY: Duration = Duration::from_secs(1);
/// Heartbeats each guest must send after everything is over.
const LAST_HEARTBEATS: u64 = 3;

/// One run of the demo on a cluster that stands.
pub(super) struct Scenario<'a> {
    client: Client,
    actor: Actor,
    view: &'a mut View,
    tracker: Tracker,
    /// `None` where the driver has no guests.
    consoles: Option<Consoles>,
    consoles_last: Instant,
    begun: Instant,
    /// Memory of each VM.
    sizes: BTreeMap<String, u64>,
}

/// What the run was told.
pub(super) struct Setting<'a> {
    pub(super) driver: &'static str,
    pub(super) store: &'static str,
    pub(super) load: &'a Load,
    pub(super) first_host: String,
    pub(super) has_guests: bool,
    /// When the demo began.
    pub(super) begun: Instant,
}

/// Runs the whole story and shows its summary.
///
/// # Errors
/// Whatever went wrong; missed expectations are not an error here but stand in the figures.
pub(super) async fn run(
    client: Client,
    view: &mut View,
    setting: &Setting<'_>,
) -> Result<Figures, Refusal> {
    let vms = setting.load.vms.iter().map(|vm| vm.id.clone());
    let mut scenario = Scenario {
        client,
        actor: Actor::program("demo"),
        view,
        tracker: Tracker::default(),
        consoles: setting.has_guests.then(|| Consoles::new(vms)),
        consoles_last: Instant::now(),
        begun: setting.begun,
        sizes: setting.load.vms.iter().map(|vm| (vm.id.to_string(), vm.memory.get())).collect(),
    };
    scenario.pile_up(setting).await?;
    let before = scenario.measure(setting).await?;
    let after = scenario.level().await?;
    let drained = scenario.drain().await?;
    scenario.conclude(setting, before, after, &drained).await
}

impl Scenario<'_> {
    /// All VMs on the first host, with the balancer's hands tied.
    async fn pile_up(&mut self, setting: &Setting<'_>) -> Result<(), Refusal> {
        self.set_automation(v1::Automation::Manual, "the load is being piled up").await?;
        let count = setting.load.vms.len();
        let host = &setting.first_host;
        self.view.phase(&format!("creating {count} VMs of unequal load, all on {host}"));
        for spec in &setting.load.vms {
            let request = v1::CreateVmRequest {
                spec: Some(spec.into()),
                host: host.clone(),
                actor: self.actor.because("part of the demo's load"),
            };
            self.client.create_vm(request).await?;
        }
        Ok(())
    }

    /// Waits until the load is measured; answers with the imbalance.
    async fn measure(&mut self, setting: &Setting<'_>) -> Result<f64, Refusal> {
        self.view.phase("waiting until their load is measured");
        let deadline = Instant::now() + MEASURE_LIMIT;
        let expected = setting.load.cpu.scaled(MEASURED_MIN);
        let (mut since, mut seen) = (Instant::now(), Vec::new());
        loop {
            let look = self.look().await?;
            let measured = demand(&look);
            seen.push(look.status.imbalance);
            if since.elapsed() >= SETTLED_EVERY {
                let now = median(&mut seen);
                // On a busy machine it never settles quite; at the end of the time, measured must do.
                let settled = seen.iter().all(|one| (one - now).abs() < SETTLED_CHANGE_MAX * now)
                    || Instant::now() + SETTLED_EVERY >= deadline;
                if measured >= expected && settled {
                    self.view.line(&format!("measured: {measured} CPU, imbalance {now:.3}"));
                    return Ok(now);
                }
                (since, seen) = (Instant::now(), Vec::new());
            }
            pause(deadline, || {
                format!("only {measured} of {} CPU were measured", setting.load.cpu)
            })
            .await?;
        }
    }

    /// Lets the balancer work until it has nothing left to do; answers with the imbalance, the
    /// median over the looks since its last move, because one look may catch a load in between.
    async fn level(&mut self) -> Result<f64, Refusal> {
        self.view.phase("the balancer may act: automation full");
        self.set_automation(v1::Automation::Full, "let the balancer level the load").await?;
        let deadline = Instant::now() + LEVEL_LIMIT;
        let (mut empty, mut asked, mut seen) = (0, Instant::now(), Vec::new());
        loop {
            let look = self.look().await?;
            seen.push(look.status.imbalance);
            if look.running().next().is_some() {
                empty = 0;
            } else if asked.elapsed() >= PLAN_EVERY {
                asked = Instant::now();
                empty = if self.plan_is_empty().await? { empty + 1 } else { 0 };
            }
            if empty == 0 {
                seen.clear();
            }
            if empty >= EMPTY_PLANS {
                let now = median(&mut seen);
                self.view.line(&format!("level: nothing left to move, imbalance {now:.3}"));
                return Ok(now);
            }
            if Instant::now() >= deadline {
                // The figures will tell whether it was enough.
                let now = look.status.imbalance;
                self.view.line(&format!("time is up with moves left, imbalance {now:.3}"));
                return Ok(now);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Empties the host with the most VMs, as for maintenance; answers with its name.
    async fn drain(&mut self) -> Result<String, Refusal> {
        let look = self.look().await?;
        // Of several, the last: the first one has just been relieved.
        let fullest = look.hosts.iter().max_by_key(|host| host.vms.len());
        let host = fullest.map(name).unwrap_or_default().to_owned();
        self.view.phase(&format!("draining {host} as for maintenance"));
        let actor = self.actor.because("as for maintenance");
        let goal = v1::DrainGoal::Unspecified.into();
        self.client.drain_host(v1::DrainHostRequest { host: host.clone(), actor, goal }).await?;
        let deadline = Instant::now() + DRAIN_LIMIT;
        loop {
            let look = self.look().await?;
            let left = look.host(&host).map_or(0, |host| host.vms.len());
            let leaves = look.running().any(|migration| migration.from == host);
            if left == 0 && !leaves {
                self.view.line(&format!("{host} is empty"));
                return Ok(host);
            }
            pause(deadline, || format!("{left} VMs are still on {host}")).await?;
        }
    }

    /// Asks guests and audit, and shows the summary.
    async fn conclude(
        &mut self,
        setting: &Setting<'_>,
        imbalance_before: f64,
        imbalance_after: f64,
        drained: &str,
    ) -> Result<Figures, Refusal> {
        self.set_automation(v1::Automation::Manual, "the demo ends").await?;
        self.wait_no_migration().await?;
        let guests_silent = self.hear_guests().await?;
        self.view.phase("verifying the audit trail");
        let audit = verify_online(&self.client).await.map(|verified| verified.entries);
        let look = self.look().await?;
        let findings = Findings {
            driver: setting.driver,
            store: setting.store,
            look: &look,
            vms: setting.load.vms.len(),
            imbalance_before,
            imbalance_after,
            drained,
            guests: self.consoles.as_ref(),
            guests_silent,
            audit,
            seconds: self.begun.elapsed().as_secs_f64(),
        };
        let figures = Figures::from_findings(&findings);
        self.view.text(&summary::text(&findings, &figures));
        Ok(figures)
    }

    /// Waits for moves that had begun before the balancer was told to rest.
    async fn wait_no_migration(&mut self) -> Result<(), Refusal> {
        let deadline = Instant::now() + DRAIN_LIMIT;
        while self.look().await?.running().next().is_some() {
            pause(deadline, || "migrations are still running".to_owned()).await?;
        }
        Ok(())
    }

    /// Waits until every guest has been heard where it is now; answers with how many were not.
    async fn hear_guests(&mut self) -> Result<usize, Refusal> {
        let Some(consoles) = &mut self.consoles else { return Ok(0) };
        self.view.phase("listening to the guests where they are now");
        let deadline = Instant::now() + GUESTS_LIMIT;
        consoles.read(&self.client).await?;
        let number = |report: &ballast_guest::ConsoleReport| report.last_number.unwrap_or(0);
        let first: Vec<u64> = consoles.reports().map(|(_, report)| number(report)).collect();
        loop {
            tokio::time::sleep(POLL).await;
            consoles.read(&self.client).await?;
            let heard = |(index, report)| number(report) >= first[index] + LAST_HEARTBEATS;
            let reports = consoles.reports().map(|(_, report)| report).enumerate();
            let silent = reports.filter(|report| !heard(*report)).count();
            if silent == 0 || Instant::now() > deadline {
                return Ok(silent);
            }
        }
    }

    /// One look: shown, compared with the last one, and the consoles read when it is time.
    async fn look(&mut self) -> Result<Look, Refusal> {
        let look = Look::take(&self.client, &self.sizes).await?;
        for line in self.tracker.changes(&look) {
            self.view.line(&line);
        }
        self.view.update(&look);
        if let Some(consoles) = &mut self.consoles
            && self.consoles_last.elapsed() >= CONSOLE_EVERY
        {
            self.consoles_last = Instant::now();
            // A VM between two hosts cannot be read just now; the last reading must succeed.
            let _ = consoles.read(&self.client).await;
        }
        Ok(look)
    }

    async fn plan_is_empty(&self) -> Result<bool, Refusal> {
        let record = self.client.show_plan(v1::ShowPlanRequest {}).await?;
        let planning = serde_json::from_str::<Planning>(&record.planning_json);
        let planning = planning.map_err(|error| {
            Refusal::new(
                RefusalCode::Internal,
                format!("cannot read the controller's plan: {error}"),
                "report a defect",
            )
        })?;
        Ok(planning.plan.steps.is_empty())
    }

    async fn set_automation(&self, level: v1::Automation, why: &str) -> Result<(), Refusal> {
        let actor = self.actor.because(why);
        let request = v1::SetAutomationRequest { level: level.into(), actor };
        self.client.set_automation(request).await.map(drop)
    }
}

/// The middle value; sorts them. Zero when there is none.
fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// What all VMs together would use.
fn demand(look: &Look) -> Millicores {
    let of = |host: &v1::HostStatus| host.demand.unwrap_or_default().cpu_millicores;
    look.hosts.iter().map(|host| Millicores(of(host))).sum()
}

async fn pause(deadline: Instant, what: impl Fn() -> String) -> Result<(), Refusal> {
    if Instant::now() >= deadline {
        return Err(Refusal::new(
            RefusalCode::Timeout,
            format!("the demo ran out of time: {}", what()),
            "try again on a machine with less other load, or look into its logs with --keep",
        ));
    }
    tokio::time::sleep(POLL).await;
    Ok(())
}

/// How the load is introduced.
pub(super) fn introduce(view: &mut View, setting: &Setting<'_>, hosts: usize) {
    let capacity = setting.load.capacity;
    view.phase(&format!(
        "a controller ({} store) and {hosts} agents ({} driver) are up; each host offers {} CPU, {} memory",
        setting.store,
        setting.driver,
        capacity.cpu,
        units::bytes(capacity.memory.get()),
    ));
}
