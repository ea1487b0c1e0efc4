//! Both ends of a modelled migration.
//!
//! The source's rounds take the time they would take at its rate. Until the
//! switch is stored it goes on by itself on any trouble; from then on it is
//! READY, whatever happens on the connection, because the destination may have
//! received the VM.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballast_model::migration::Progress;
use ballast_model::{Bytes, BytesPerSec, MigrationId, Refusal, RefusalCode, VmId};
use ballast_proto::v1::{MigrationState, VmState};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::machine::{Cell, Inner, SavedMigration};
use super::model::Guest;
use super::wire::{self, Frame, SILENCE_MAX};
use crate::driver::{Outgoing, TOKEN_BYTES};

/// Pre-copy rounds after which a source gives up.
const ROUNDS_MAX: u32 = 30;
/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The receiving end, once it listens.
pub(super) struct Destination {
    pub(super) cell: Arc<Cell>,
    pub(super) listener: TcpListener,
    pub(super) migration: MigrationId,
    pub(super) vm: VmId,
    pub(super) token: [u8; TOKEN_BYTES],
}

impl Destination {
    /// Until READY or the end. Peers that do not show the token are turned away.
    pub(super) async fn run(self) {
        let mut stream = loop {
            let Ok((mut stream, _)) = self.listener.accept().await else { continue };
            if self.greet(&mut stream).await.is_ok() {
                break stream;
            }
        };
        if let Err(error) = self.fill(&mut stream).await {
            let refusal = broken(&self.migration, &error);
            let inner = self.cell.lock();
            self.cell.show(&inner, VmState::Stopped, Some(MigrationState::Aborted), Some(&refusal));
            drop(inner);
            self.cell.end(&refusal.reason);
        }
    }

    async fn greet(&self, stream: &mut TcpStream) -> io::Result<()> {
        match wire::receive(stream).await? {
            Frame::Hello { migration, vm, token }
                if migration == self.migration && vm == self.vm && token == self.token =>
            {
                wire::send(stream, &Frame::Agreed).await
            }
            _ => {
                let why = "no such migration, or a wrong token".to_owned();
                wire::send(stream, &Frame::Refused { why }).await?;
                Err(io::Error::other("a stranger"))
            }
        }
    }

    async fn fill(&self, stream: &mut TcpStream) -> io::Result<()> {
        loop {
            match wire::receive(stream).await? {
                Frame::Progress(progress) => {
                    let mut inner = self.cell.lock();
                    if let Some(record) = inner.migration() {
                        record.progress = progress;
                    }
                    let transferring = Some(MigrationState::Transferring);
                    self.cell.show(&inner, VmState::Incoming, transferring, None);
                }
                Frame::Switch { ran, progress } => {
                    self.store(ran, progress).map_err(io::Error::other)?;
                    // Whether the source hears it or not: both hold the VM now.
                    let _ = wire::send(stream, &Frame::Ready).await;
                    return Ok(());
                }
                _ => return Err(io::Error::other("a frame out of turn")),
            }
        }
    }

    fn store(&self, ran: Duration, progress: Progress) -> Result<(), Refusal> {
        let began = Instant::now();
        let mut inner = self.cell.lock();
        inner.set_ran(ran);
        if let Some(record) = inner.migration() {
            record.ready = true;
            record.progress = progress;
            // The source reports its own parts.
            record.progress.downtime = Default::default();
            record.progress.downtime.load = began.elapsed();
        }
        inner.ready_at = Some(Instant::now());
        self.cell.commit(&inner, VmState::Incoming, Some(MigrationState::Ready), None)
    }
}

/// Connects, agrees with the destination, and leaves the rest to a task of its own.
pub(super) async fn start(
    cell: &Arc<Cell>,
    outgoing: &Outgoing,
    rate: BytesPerSec,
) -> Result<(), Refusal> {
    let (guest, vm) = {
        let inner = cell.lock();
        match (&inner.guest, &inner.saved) {
            (Some(guest), Some(saved)) if inner.running() => (guest.clone(), saved.spec.id.clone()),
            _ => return Err(not_running(&outgoing.migration)),
        }
    };
    let refused = |error: io::Error| broken(&outgoing.migration, &error);
    let connect = timeout(SILENCE_MAX, TcpStream::connect(&outgoing.address));
    let mut stream = connect.await.map_err(|late| refused(late.into()))?.map_err(refused)?;
    let token = <[u8; TOKEN_BYTES]>::try_from(outgoing.token.as_slice()).map_err(|_| {
        Refusal::new(
            RefusalCode::InvalidArgument,
            format!("field token: is {} bytes long", outgoing.token.len()),
            "pass the token that PrepareMigration answered",
        )
    })?;
    let hello = Frame::Hello { migration: outgoing.migration, vm, token };
    wire::send(&mut stream, &hello).await.map_err(refused)?;
    match wire::receive(&mut stream).await.map_err(refused)? {
        Frame::Agreed => {}
        Frame::Refused { why } => return Err(refused(io::Error::other(why))),
        _ => return Err(refused(io::Error::other("a frame out of turn"))),
    }
    let cancel = {
        let mut inner = cell.lock();
        let Some(saved) = &mut inner.saved else { return Err(not_running(&outgoing.migration)) };
        let total = Progress { bytes_total: saved.spec.memory, ..Progress::default() };
        saved.migration = Some(SavedMigration {
            id: outgoing.migration,
            source: true,
            ready: false,
            progress: total,
        });
        inner.transfer = CancellationToken::new();
        cell.commit(&inner, VmState::Running, Some(MigrationState::Transferring), None)?;
        inner.transfer.clone()
    };
    let source = Source {
        cell: cell.clone(),
        guest,
        rate,
        migration: outgoing.migration,
        downtime_limit: outgoing.policy.downtime_limit(),
        cancel: cancel.clone(),
        began: Instant::now(),
    };
    tokio::spawn(async move {
        cancel.run_until_cancelled_owned(source.run(stream)).await;
    });
    Ok(())
}

struct Source {
    cell: Arc<Cell>,
    guest: Guest,
    rate: BytesPerSec,
    migration: MigrationId,
    downtime_limit: Duration,
    cancel: CancellationToken,
    began: Instant,
}

impl Source {
    async fn run(self, mut stream: TcpStream) {
        if let Err(refusal) = self.pre_copy(&mut stream).await {
            let mut inner = self.cell.lock();
            if !self.cancel.is_cancelled() && forget(&self.cell, &mut inner, &refusal).is_err() {
                tracing::error!(migration = %self.migration, "cannot store that a migration ended");
            }
            return;
        }
        // From here on the VM is READY or as good as that; what is left is figures.
        let sent = Instant::now();
        let progress = self.progress();
        let (ran, progress) = (self.cell.lock().ran(), progress);
        let answer = match wire::send(&mut stream, &Frame::Switch { ran, progress }).await {
            Ok(()) => wire::receive(&mut stream).await,
            Err(error) => Err(error),
        };
        if let Err(error) = answer {
            tracing::warn!(migration = %self.migration, %error, "no answer to the last frame");
        }
        let mut inner = self.cell.lock();
        if self.cancel.is_cancelled() {
            return;
        }
        if let Some(record) = inner.migration() {
            record.progress.downtime.send = sent.elapsed();
            record.progress.elapsed = self.began.elapsed();
        }
        if let Err(refusal) =
            self.cell.commit(&inner, VmState::Paused, Some(MigrationState::Ready), None)
        {
            tracing::error!(migration = %self.migration, %refusal, "cannot store that a VM is ready");
            self.cell.show(&inner, VmState::Paused, Some(MigrationState::Ready), None);
        }
    }

    /// The rounds, the pause, and the last pass. When it returns, the VM is paused and that is stored.
    async fn pre_copy(&self, stream: &mut TcpStream) -> Result<(), Refusal> {
        let mut remaining = self.guest.resident();
        for round in 1..=ROUNDS_MAX {
            let time = self.send(stream, round, remaining).await?;
            remaining = self.guest.dirtied_in(time);
            if remaining.time_at(self.rate).is_some_and(|time| time <= self.downtime_limit) {
                return self.switch(stream, round + 1, remaining).await;
            }
        }
        Err(Refusal::new(
            RefusalCode::Timeout,
            format!(
                "migration {} does not converge: {ROUNDS_MAX} rounds left {remaining} at {}",
                self.migration, self.rate
            ),
            "allow a longer downtime, a faster link, or move the VM when it is less busy",
        ))
    }

    /// Sends `amount` in modelled time, telling progress on the way.
    async fn send(
        &self,
        stream: &mut TcpStream,
        round: u32,
        amount: Bytes,
    ) -> Result<Duration, Refusal> {
        let began = Instant::now();
        let sent_before = self.progress().bytes_sent;
        let takes = amount.time_at(self.rate).unwrap_or_default();
        loop {
            let elapsed = began.elapsed().min(takes);
            let share =
                if takes.is_zero() { 1.0 } else { elapsed.as_secs_f64() / takes.as_secs_f64() };
            let sent = amount.scaled(ballast_model::Ratio::new(share));
            let progress = {
                let mut inner = self.cell.lock();
                let Some(record) = inner.migration() else { return Ok(takes) };
                record.progress.rounds = round;
                record.progress.bytes_sent = sent_before + sent;
                record.progress.bytes_remaining = amount - sent;
                record.progress.elapsed = self.began.elapsed();
                let progress = record.progress;
                let state = if inner.running() { VmState::Running } else { VmState::Paused };
                self.cell.show(&inner, state, Some(MigrationState::Transferring), None);
                progress
            };
            wire::send(stream, &Frame::Progress(progress))
                .await
                .map_err(|error| broken(&self.migration, &error))?;
            if elapsed == takes {
                return Ok(takes);
            }
            sleep(PROGRESS_INTERVAL.min(takes - elapsed)).await;
        }
    }

    async fn switch(
        &self,
        stream: &mut TcpStream,
        round: u32,
        remaining: Bytes,
    ) -> Result<(), Refusal> {
        let paused = Instant::now();
        {
            // Under the lock an abort is either seen here or undoes this.
            let mut inner = self.cell.lock();
            if self.cancel.is_cancelled() {
                return Err(not_running(&self.migration));
            }
            inner.pause();
        }
        let sent = self.send(stream, round, remaining).await;
        let mut inner = self.cell.lock();
        if self.cancel.is_cancelled() {
            return Err(not_running(&self.migration));
        }
        if let Err(refusal) = sent {
            inner.resume();
            return Err(refusal);
        }
        if let Some(record) = inner.migration() {
            record.ready = true;
            record.progress.downtime.last_pass = paused.elapsed();
        }
        let stored =
            self.cell.commit(&inner, VmState::Paused, Some(MigrationState::Transferring), None);
        if stored.is_err() {
            inner.resume();
        }
        stored
    }

    fn progress(&self) -> Progress {
        self.cell.lock().migration().map_or_else(Progress::default, |record| record.progress)
    }
}

/// The source goes on; the migration is history.
pub(super) fn forget(cell: &Cell, inner: &mut Inner, why: &Refusal) -> Result<(), Refusal> {
    if let Some(record) = inner.migration() {
        record.ready = false;
    }
    inner.resume();
    cell.show(inner, VmState::Running, Some(MigrationState::Aborted), Some(why));
    if let Some(saved) = &mut inner.saved {
        saved.migration = None;
    }
    cell.commit(inner, VmState::Running, None, None)
}

fn broken(migration: &MigrationId, error: &io::Error) -> Refusal {
    Refusal::new(
        RefusalCode::Unavailable,
        format!("the connection of migration {migration} failed: {error}"),
        "check the other host and the network between them, then start the migration again",
    )
}

fn not_running(migration: &MigrationId) -> Refusal {
    Refusal::new(
        RefusalCode::WrongState,
        format!("the VM of migration {migration} does not run"),
        "wait until it runs",
    )
}
