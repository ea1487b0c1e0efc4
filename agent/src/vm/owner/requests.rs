//! What others ask of the VM's task.

use std::path::Path;

use ballast_model::{Epoch, MigrationId, Refusal, RefusalCode, VmSpec};
use ballast_proto::v1::{MigrationRole, MigrationState, MigrationVerdict};
use ballast_service::holdpoint::hold;
use rand::RngCore;
use tokio::time::Instant;
use tracing::info;

use super::Owner;
use crate::driver::{Incoming, Outgoing, Received, TOKEN_BYTES, Terms};
use crate::registry::{Decision, called_off};
use crate::vm::Listening;
use crate::vm::accept::{Accept, Phase};
use crate::vm::record::{IncomingRecord, Record};

impl Owner {
    pub(super) async fn create(
        &mut self,
        spec: VmSpec,
        epoch: Epoch,
        restore_from: Option<&Path>,
    ) -> Result<(), Refusal> {
        let same = self.record.as_ref().is_some_and(|record| record.spec == spec);
        if self.standing().create(epoch, same)? == Accept::Done {
            return Ok(());
        }
        let made = self.make(Record::new(spec.clone(), epoch, None), restore_from).await;
        let booted = match made {
            Ok(machine) => machine.boot(&spec, epoch, restore_from).await,
            Err(refusal) => Err(refusal),
        };
        self.or_discard(booted).await?;
        info!(vm = %self.vm, %epoch, "created");
        self.phase = Phase::Running;
        self.publish();
        Ok(())
    }

    pub(super) async fn prepare(
        &mut self,
        migration: MigrationId,
        spec: VmSpec,
        source_epoch: Epoch,
        terms: Terms,
    ) -> Result<Listening, Refusal> {
        let known = self.context.migrations.get(migration);
        let ended = known.is_some_and(|status| status.state().is_ended());
        if self.standing().prepare(migration, source_epoch, ended)? == Accept::Act {
            let mut token = [0; TOKEN_BYTES];
            rand::rng().fill_bytes(&mut token);
            let incoming = IncomingRecord {
                migration,
                source_epoch,
                address: String::new(),
                token,
                public_key: vec![],
            };
            let record = Record::new(spec.clone(), source_epoch, Some(incoming));
            let made = self.make(record, None).await;
            let listen = self.context.migration_address;
            let incoming = Incoming { migration, listen, token, spec, source_epoch, terms };
            let listening = match made {
                Ok(machine) => machine.receive(&incoming).await,
                Err(refusal) => Err(refusal),
            };
            let Received { address, public_key } = self.or_discard(listening).await?;
            let stored = self.change_record(|record| {
                if let Some(incoming) = &mut record.incoming {
                    (incoming.address, incoming.public_key) = (address, public_key);
                }
            });
            self.or_discard(stored).await?;
            info!(vm = %self.vm, %migration, "ready to receive");
            self.phase = Phase::Incoming(migration);
            self.progress_at = Instant::now();
            self.publish();
        }
        let incoming = self.record.as_ref().and_then(|record| record.incoming.as_ref());
        let incoming = incoming.ok_or_else(|| self.without_record())?;
        Ok(Listening {
            address: incoming.address.clone(),
            token: incoming.token.to_vec(),
            public_key: incoming.public_key.clone(),
        })
    }

    pub(super) async fn destroy(&mut self, epoch: Epoch) -> Result<(), Refusal> {
        if self.standing().destroy(epoch)? == Accept::Act {
            let why = Refusal::new(
                RefusalCode::Cancelled,
                format!("VM {} was destroyed", self.vm),
                "look at the audit trail for why",
            );
            self.end_migration(MigrationState::Aborted, Some(&why));
            self.discard().await?;
            info!(vm = %self.vm, %epoch, "destroyed");
        }
        Ok(())
    }

    pub(super) async fn send(&mut self, outgoing: Outgoing, epoch: Epoch) -> Result<(), Refusal> {
        let known = self.context.migrations.get(outgoing.migration);
        if known.is_some_and(|status| status.role() == MigrationRole::Source) {
            return Ok(());
        }
        let Accept::Act = self.standing().start(outgoing.migration, epoch)? else { return Ok(()) };
        let machine = self.machine.clone().ok_or_else(|| self.without_record())?;
        machine.send(&outgoing).await?;
        info!(vm = %self.vm, migration = %outgoing.migration, to = outgoing.address, "sending");
        self.phase = Phase::Outgoing(outgoing.migration);
        self.publish();
        self.machine_changed().await;
        Ok(())
    }

    pub(super) async fn resolve(
        &mut self,
        migration: MigrationId,
        verdict: MigrationVerdict,
        epoch: Epoch,
    ) -> Result<(), Refusal> {
        if self.standing().resolve(migration, verdict, epoch)? == Accept::Done {
            return Ok(());
        }
        let decision = match verdict {
            MigrationVerdict::Commit => Decision::Granted(epoch),
            MigrationVerdict::Superseded => Decision::Superseded(epoch),
            _ => Decision::Aborted(called_off(migration), epoch),
        };
        self.carry_out(migration, &decision).await
    }

    /// Does what the owner record says. A failure leaves the VM as it is, to be asked for again.
    pub(super) async fn carry_out(
        &mut self,
        migration: MigrationId,
        decision: &Decision,
    ) -> Result<(), Refusal> {
        let (verdict, epoch) = decision.verdict();
        let machine = self.machine.clone().ok_or_else(|| self.without_record());
        match (decision, self.phase) {
            (Decision::Granted(epoch), _) => {
                let machine = machine?;
                let told_before = self.proof().granted;
                // The epoch is on disk before the guest runs under it.
                if let Err(refusal) = self.change_record(|record| record.epoch = *epoch) {
                    return if told_before { Err(refusal) } else { self.give_back(&refusal).await };
                }
                hold("agent.granted", &self.vm);
                machine.resolve(migration, verdict, *epoch).await?;
                self.settled()?;
                info!(vm = %self.vm, %migration, %epoch, "the VM runs here now");
            }
            (Decision::Superseded(_), _) => {
                if self.phase == Phase::Outgoing(migration) {
                    let machine = machine?;
                    machine.resolve(migration, verdict, epoch).await?;
                }
                self.publish();
                self.end_migration(MigrationState::Finished, None);
                self.end_machine().await?;
                self.remove_disks().await;
                self.discard().await?;
                info!(vm = %self.vm, %migration, "the VM runs elsewhere now");
            }
            (Decision::Aborted(why, _), Phase::Incoming(_)) => {
                self.end_migration(MigrationState::Aborted, Some(why));
                self.discard().await?;
                info!(vm = %self.vm, %migration, %why, "called off");
            }
            (Decision::Aborted(why, returned), _) => {
                let machine = machine?;
                if *returned > self.standing().epoch {
                    self.change_record(|record| record.epoch = *returned)?;
                }
                machine.resolve(migration, verdict, epoch).await?;
                self.phase = Phase::Running;
                self.publish();
                self.end_migration(MigrationState::Aborted, Some(why));
                info!(vm = %self.vm, %migration, %why, "called off; the VM goes on here");
            }
        }
        self.drop_question();
        Ok(())
    }
}
