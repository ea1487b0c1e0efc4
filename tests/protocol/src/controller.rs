//! What a controller does: the steps of `controller/src/migration`, each decision by its own code.

use ballast_controller::migration::commit::CommitAsked;
use ballast_controller::migration::judge::{self, Arrival, Commit, Destination, Guest};
use ballast_model::Epoch;
use ballast_proto::v1::{MigrationState, VmState};

use crate::world::{Attempt, Controller, Message, Record, Side, Stage, Told, World, Write, id, vm};

/// A step of the controller's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// A migration is written.
    Begin,
    /// The destination is asked to prepare.
    Prepare,
    /// The source is told to start.
    Start,
    /// What has not committed is aborted: a deadline, a side that gave up, an operator's word.
    Abort,
    /// It looks at the destination of a committed migration, and does what follows.
    Look,
    /// The source of a VM that was seen running is told that it is superseded.
    Supersede,
    /// Both sides of an aborted migration are told.
    TellAbort,
    /// The end is written.
    End,
    /// The end of an aborted migration is written though not everybody was told.
    EndImpatiently,
    /// The destination of a committed migration is fenced; an operator has the VM given back.
    GiveBack,
    /// The same, and declares the VM lost.
    DeclareLost,
    /// A host that came back with a stale copy is told to destroy it.
    DestroyStale(Side),
}

impl World {
    /// Carries out a step; whether anything has changed.
    pub(crate) fn control(&mut self, step: Step, attempts_max: Attempt) -> Option<()> {
        let leader = self.controller.as_ref()?.leader;
        match step {
            Step::Begin => self.begin(attempts_max),
            Step::DestroyStale(side) => self.destroy_stale(side),
            _ => {
                let record = self.store.open()?;
                self.drive(step, record, leader)
            }
        }
    }

    fn begin(&mut self, attempts_max: Attempt) -> Option<()> {
        let attempt = Attempt::try_from(self.store.records.len()).ok()? + 1;
        if self.store.open().is_some() || attempt > attempts_max {
            return None;
        }
        self.store.records.push(Record {
            attempt,
            from: self.store.owner,
            source_epoch: self.store.epoch,
            stage: Stage::Preparing,
            revision: 1,
        });
        Some(())
    }

    fn drive(&mut self, step: Step, record: Record, leader: u8) -> Option<()> {
        let Record { attempt, from, source_epoch, stage, revision } = record;
        let write = |hands_to, stage| Write {
            leader,
            attempt,
            revision,
            hands_to,
            stage,
            by_word: matches!(step, Step::GiveBack | Step::DeclareLost),
        };
        match (step, stage) {
            (Step::Prepare, Stage::Preparing) => {
                self.send(Message::Prepare { attempt, to: from.other(), source_epoch });
            }
            (Step::Start, Stage::Transferring) => {
                self.controller.as_mut()?.prepared.take_if(|prepared| *prepared == attempt)?;
                self.send(Message::Start { attempt, to: from, source_epoch });
            }
            (Step::Abort, Stage::Preparing | Stage::Transferring) => {
                self.writes.insert(write(None, Stage::Aborting));
            }
            (Step::Look, Stage::Committed) => {
                match self.arrival(record)? {
                    Arrival::Runs | Arrival::Lost | Arrival::Fetches | Arrival::Unknown => {
                        return None;
                    }
                    Arrival::NeverRan(_) => {
                        let hands_to = Some((self.store.epoch, from));
                        self.writes.insert(write(hands_to, Stage::Aborting));
                    }
                    Arrival::Waits => {
                        let (to, epoch) = (from.other(), source_epoch + 1);
                        self.send(Message::Resolve { attempt, to, verdict: Told::Commit, epoch });
                    }
                };
            }
            (Step::GiveBack, Stage::Committed) if self.is_fenced(from.other()) => {
                let hands_to = Some((self.store.epoch, from));
                self.writes.insert(write(hands_to, Stage::Aborting));
            }
            (Step::DeclareLost, Stage::Committed) if self.is_fenced(from.other()) => {
                self.writes.insert(write(None, Stage::Failed));
            }
            (Step::Supersede, Stage::Committed)
                if matches!(self.arrival(record)?, Arrival::Runs | Arrival::Lost) =>
            {
                let (verdict, epoch) = (Told::Superseded, source_epoch + 1);
                self.send(Message::Resolve { attempt, to: from, verdict, epoch });
            }
            (Step::TellAbort, Stage::Aborting) => {
                let epoch = self.store.epoch;
                for to in Side::ALL {
                    self.send(Message::Resolve { attempt, to, verdict: Told::Abort, epoch });
                }
            }
            (Step::End, Stage::Committed) => {
                let told = &self.controller.as_ref()?.told;
                told.get(&(attempt, from, Told::Superseded))?;
                let lost = self.arrival(record) == Some(Arrival::Lost);
                self.writes
                    .insert(write(None, if lost { Stage::Failed } else { Stage::Completed }));
            }
            (Step::End, Stage::Aborting) => {
                let told = &self.controller.as_ref()?.told;
                Side::ALL
                    .iter()
                    .try_for_each(|side| told.get(&(attempt, *side, Told::Abort)).map(drop))?;
                let source = self.host(from);
                let seen = source.agent.is_some() && source.machine.is_some();
                let begun = self.runs_on(from) || source.disk.is_some() && source.machine.is_none();
                (seen && begun).then_some(())?;
                self.writes.insert(write(None, Stage::Failed));
            }
            (Step::EndImpatiently, Stage::Aborting) => {
                self.writes.insert(write(None, Stage::Failed));
            }
            _ => return None,
        }
        Some(())
    }

    /// Nothing runs there, and nobody answers. An agent may still come back.
    fn is_fenced(&self, side: Side) -> bool {
        self.host(side).agent.is_none() && self.host(side).machine.is_none()
    }

    /// What the destination says of itself, judged. None while its agent does not answer.
    fn arrival(&self, record: Record) -> Option<Arrival> {
        let host = self.host(record.from.other());
        let agent = host.agent.as_ref()?;
        let guest = match host.machine {
            Some(_) if self.fetches_on(record.from.other()) => Guest::Fetches,
            Some(machine) if machine.guest != VmState::Running => Guest::Waits,
            None if matches!(host.ended_in, Some((_, _, MigrationState::Fetching))) => Guest::Died,
            _ => Guest::Runs,
        };
        let never_ran = agent.aborted.contains(&record.attempt).then(String::new);
        // An agent that has not seen the end of its machine says what it saw last.
        let guest = if host.ended.is_none() { guest } else { Guest::Waits };
        let vm = host.disk.map(|disk| (Epoch(disk.epoch), guest));
        let epoch = Epoch(record.source_epoch).next();
        Some(judge::arrival(Destination { never_ran, vm }, epoch))
    }

    fn destroy_stale(&mut self, side: Side) -> Option<()> {
        let settled = self.store.open().is_none();
        let disk = self.host(side).disk?;
        self.host(side).agent.as_ref()?;
        let stale = self.store.owner != side && disk.epoch < self.store.epoch;
        (settled && stale).then_some(())?;
        self.send(Message::Destroy { to: side, epoch: disk.epoch });
        Some(())
    }

    /// A message to the controller.
    pub(crate) fn controller_hears(&mut self, message: Message) -> Option<()> {
        let leader = self.controller.as_ref()?.leader;
        match message {
            Message::Prepared { attempt } => {
                let record = self.store.open().filter(|record| {
                    record.attempt == attempt && record.stage == Stage::Preparing
                })?;
                self.controller.as_mut()?.prepared = Some(attempt);
                self.writes.insert(Write {
                    leader,
                    attempt,
                    revision: record.revision,
                    hands_to: None,
                    stage: Stage::Transferring,
                    by_word: false,
                });
            }
            Message::Resolved { attempt, by, verdict } => {
                self.controller.as_mut()?.told.insert((attempt, by, verdict)).then_some(())?;
            }
            Message::Commit { attempt, by, source_epoch } => {
                let record = self.store.record(attempt)?;
                let migration = self.store.migration(attempt)?;
                let asked = CommitAsked {
                    migration: id(attempt),
                    vm: vm(),
                    host: by.host(),
                    source_epoch: Epoch(source_epoch),
                };
                match judge::commit(&migration, &self.store.owner(), &asked) {
                    Ok(Commit::Granted(epoch)) => {
                        self.send(Message::Granted { attempt, to: by, epoch: epoch.0 });
                    }
                    Ok(Commit::HandOver(_)) => {
                        self.writes.insert(Write {
                            leader,
                            attempt,
                            revision: record.revision,
                            hands_to: Some((self.store.epoch, by)),
                            stage: Stage::Committed,
                            by_word: false,
                        });
                    }
                    Err(_) => self.send(Message::Refused { attempt, to: by }),
                }
            }
            Message::Query { attempt, by } => {
                let migration = self.store.migration(attempt);
                let owner = self.store.owner();
                let (verdict, epoch) = judge::verdict(migration.as_ref(), Some(&owner), &by.host());
                let (verdict, epoch) = (Told::from(verdict), epoch.0);
                self.send(Message::Answer { attempt, to: by, verdict, epoch });
            }
            _ => return None,
        }
        Some(())
    }

    /// A transaction reaches the store.
    pub(crate) fn apply(&mut self, write: Write) {
        self.writes.remove(&write);
        let Some(record) = self.store.record(write.attempt) else { return };
        let owner_as_read = write.hands_to.is_none_or(|(epoch, _)| epoch == self.store.epoch);
        let fits = write.leader == self.store.leader && record.revision == write.revision;
        if !fits || !owner_as_read {
            return;
        }
        if let Some(found) = self.store.records.iter_mut().find(|r| r.attempt == write.attempt) {
            found.stage = write.stage;
            found.revision += 1;
        }
        let Some((_, to)) = write.hands_to else {
            self.lost |= write.by_word;
            return;
        };
        if let Some(copy) = self.host_mut(to).machine.as_mut().filter(|_| write.by_word) {
            copy.overtaken = false;
        }
        let owner = self.store.owner().handed_to(to.host());
        (self.store.owner, self.store.epoch) = (to, owner.epoch.0);
        if write.stage == Stage::Committed && self.controller.is_some() {
            self.send(Message::Granted { attempt: write.attempt, to, epoch: owner.epoch.0 });
        }
    }

    /// Another controller leads from now on.
    pub(crate) fn elect(&mut self) {
        self.store.leader += 1;
        self.controller = Some(Controller::new(self.store.leader));
    }

    pub(crate) fn send(&mut self, message: Message) {
        self.network.insert(message);
    }
}
