//! No VM at all: a model of load, dirtying and transfer time.
//!
//! Load follows from the command line ([`model`]), a migration takes the time
//! it would take over the host's link, and the VM itself, which is the time its
//! guest ran, goes from agent to agent over TCP ([`wire`]) so that it is in one
//! place at a time, as with a real one.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ballast_model::{
    BytesPerSec, CpuBaseline, Epoch, MigrationId, Refusal, RefusalCode, VmId, VmSpec,
};
use ballast_proto::convert::migration::micros;
use ballast_proto::v1::{self, MigrationState, MigrationVerdict, VmState};
use tokio::net::TcpListener;
use tokio::sync::watch;

use self::machine::{Cell, SavedMigration};
use super::{
    Driver, Incoming, Machine, MachineView, Outgoing, ProcessId, Received, Save, SnapshotHead,
};
use crate::vm::dir::VmDir;

mod machine;
pub mod model;
mod transfer;
pub mod wire;

/// The driver of modelled VMs.
#[derive(Debug)]
pub struct SimDriver {
    link: BytesPerSec,
}

impl SimDriver {
    /// A driver whose migrations take at most this rate.
    pub const fn new(link: BytesPerSec) -> Self {
        Self { link }
    }

    fn machine(&self, cell: Cell) -> Arc<dyn Machine> {
        Arc::new(SimMachine { cell: Arc::new(cell), link: self.link })
    }
}

#[async_trait]
impl Driver for SimDriver {
    fn kind(&self) -> v1::DriverKind {
        v1::DriverKind::Sim
    }

    fn cpu_model(&self) -> String {
        String::new()
    }

    fn cpu_baselines(&self) -> Vec<CpuBaseline> {
        Vec::new()
    }

    async fn describe_snapshot(&self, _: &Path) -> Result<SnapshotHead, Refusal> {
        Err(no_snapshots())
    }

    async fn spawn(
        &self,
        _: &VmSpec,
        _: Option<&Path>,
        dir: &VmDir,
    ) -> Result<Arc<dyn Machine>, Refusal> {
        Ok(self.machine(Cell::empty(dir.clone())))
    }

    async fn adopt(
        &self,
        _vm: &VmId,
        dir: &VmDir,
        _process: Option<ProcessId>,
    ) -> Result<Option<Arc<dyn Machine>>, Refusal> {
        Ok(Cell::load(dir.clone())?.map(|cell| self.machine(cell)))
    }
}

struct SimMachine {
    cell: Arc<Cell>,
    link: BytesPerSec,
}

fn no_snapshots() -> Refusal {
    Refusal::new(
        RefusalCode::Unsupported,
        "simulated VMs have no memory that could go to a file",
        "use a host with the kvm driver",
    )
}

#[async_trait]
impl Machine for SimMachine {
    fn process(&self) -> Option<ProcessId> {
        None
    }

    fn never_ran(&self) -> bool {
        false
    }

    fn view(&self) -> watch::Receiver<MachineView> {
        self.cell.watch()
    }

    async fn boot(
        &self,
        spec: &VmSpec,
        _epoch: Epoch,
        restore_from: Option<&Path>,
    ) -> Result<(), Refusal> {
        if restore_from.is_some() {
            return Err(no_snapshots());
        }
        let mut inner = self.cell.lock();
        inner.fill(spec)?;
        inner.resume();
        self.cell.commit(&inner, VmState::Running, None, None)
    }

    async fn save(&self, _: &Save) -> Result<v1::SaveSnapshotResponse, Refusal> {
        Err(no_snapshots())
    }

    async fn receive(&self, incoming: &Incoming) -> Result<Received, Refusal> {
        let address = SocketAddr::new(incoming.listen, 0);
        let listener = TcpListener::bind(address).await;
        let bound = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = bound.map_err(|error| {
            Refusal::new(
                RefusalCode::HostFailure,
                format!("cannot listen on {} for a migration: {error}", incoming.listen),
                "set migration_address to an address of this host",
            )
        })?;
        let mut inner = self.cell.lock();
        inner.fill(&incoming.spec)?;
        if let Some(saved) = &mut inner.saved {
            saved.migration = Some(SavedMigration {
                id: incoming.migration,
                source: false,
                ready: false,
                progress: Default::default(),
            });
        }
        let listening = Some(MigrationState::Listening);
        self.cell.commit(&inner, VmState::Incoming, listening, None)?;
        let token = inner.transfer.clone();
        let destination = transfer::Destination {
            cell: self.cell.clone(),
            listener,
            migration: incoming.migration,
            vm: incoming.spec.id.clone(),
            token: incoming.token,
        };
        tokio::spawn(async move {
            token.run_until_cancelled_owned(destination.run()).await;
        });
        // There is nothing to hide.
        Ok(Received { address: address.to_string(), public_key: vec![] })
    }

    async fn send(&self, outgoing: &Outgoing) -> Result<(), Refusal> {
        let rate = match outgoing.bandwidth {
            BytesPerSec::ZERO => self.link,
            limit => limit.min(self.link),
        };
        transfer::start(&self.cell, outgoing, rate).await
    }

    async fn resolve(
        &self,
        migration: MigrationId,
        verdict: MigrationVerdict,
        _epoch: Epoch,
    ) -> Result<(), Refusal> {
        let began = Instant::now();
        let mut inner = self.cell.lock();
        let known = inner.migration().filter(|record| record.id == migration);
        let Some(record) = known else { return Ok(()) };
        let (source, ready) = (record.source, record.ready);
        match (verdict, source) {
            (MigrationVerdict::Commit, false) if ready => {
                let commit = inner.ready_at.map_or(Duration::ZERO, |at| at.elapsed());
                if !inner.running() {
                    inner.resume();
                    if let Some(record) = inner.migration() {
                        record.progress.downtime.commit = commit;
                        record.progress.downtime.resume = began.elapsed();
                    }
                    self.cell.commit(
                        &inner,
                        VmState::Running,
                        Some(MigrationState::Finished),
                        None,
                    )?;
                }
                Ok(())
            }
            (MigrationVerdict::Superseded, true) => {
                inner.pause();
                let finished = Some(MigrationState::Finished);
                self.cell.commit(&inner, VmState::Stopped, finished, None)?;
                drop(inner);
                self.cell.end("the VM runs on another host");
                Ok(())
            }
            (MigrationVerdict::Abort, true) => {
                inner.transfer.cancel();
                inner.resume();
                transfer::forget(&self.cell, &mut inner, &cancelled())
            }
            (MigrationVerdict::Abort, false) if !inner.running() => {
                let aborted = Some(MigrationState::Aborted);
                self.cell.show(&inner, VmState::Stopped, aborted, Some(&cancelled()));
                drop(inner);
                self.cell.end("the migration was called off");
                Ok(())
            }
            _ => Err(Refusal::new(
                RefusalCode::WrongState,
                format!("migration {migration} is not at a point for this verdict"),
                "look at the migration's status",
            )),
        }
    }

    async fn sample(&self) -> Result<v1::VmLoad, Refusal> {
        let inner = self.cell.lock();
        let Some(guest) = &inner.guest else { return Ok(v1::VmLoad::default()) };
        let running = inner.running();
        let of_running = |value: u64| if running { value } else { 0 };
        Ok(v1::VmLoad {
            cpu_millicores: of_running(guest.cpu().get()),
            resident_bytes: guest.resident().get(),
            dirty_bytes_per_sec: of_running(guest.dirty().get()),
            cpu_time_nanos: micros(guest.cpu_time(inner.ran())).saturating_mul(1000),
            local_disk_bytes: 0,
        })
    }

    async fn read_console(
        &self,
        request: v1::ReadConsoleRequest,
    ) -> Result<v1::ReadConsoleResponse, Refusal> {
        let offset = request.offset;
        let inner = self.cell.lock();
        let Some(guest) = inner.guest.as_ref().filter(|_| inner.ran() > Duration::ZERO) else {
            return Ok(v1::ReadConsoleResponse { offset, data: Vec::new() });
        };
        let (offset, data) = guest.console(offset, inner.ran());
        Ok(v1::ReadConsoleResponse { offset, data })
    }

    async fn write_console(
        &self,
        request: v1::WriteConsoleRequest,
    ) -> Result<v1::WriteConsoleResponse, Refusal> {
        Err(Refusal::new(
            RefusalCode::Unsupported,
            format!("VM {} is a model: nobody reads its console", request.vm),
            "use a host with the kvm driver",
        ))
    }

    async fn shutdown(&self) -> Result<(), Refusal> {
        self.cell.end("destroyed");
        Ok(())
    }
}

fn cancelled() -> Refusal {
    Refusal::new(
        RefusalCode::Cancelled,
        "the migration was called off",
        "look at the migration's reasons, then start it again",
    )
}
