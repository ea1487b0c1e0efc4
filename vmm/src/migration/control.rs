//! What a running migration and the rest of the process share: its status, for
//! whoever watches, and its verdict, from whoever decides.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ballast_model::migration::Progress;
use ballast_model::{Epoch, MigrationId, Refusal, RefusalCode, VmId};
use ballast_proto::v1::{MigrationRole as Role, MigrationState as State};
use tokio::sync::watch;

use super::stream::Handle;

/// Where one side of a migration stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Status {
    pub(crate) migration: MigrationId,
    pub(crate) vm: VmId,
    pub(crate) role: Role,
    pub(crate) state: State,
    pub(crate) progress: Progress,
    /// Why, when ABORTED; what is not known, when READY.
    pub(crate) refusal: Option<Refusal>,
}

impl Status {
    /// Whether its verdict has been carried out: it has ended, or the VM runs here while the rest of
    /// its memory is fetched.
    pub(crate) fn is_carried_out(&self) -> bool {
        let runs = self.state == State::Fetching && self.role == Role::Destination;
        self.has_ended() || runs
    }

    /// Whether nothing will change any more.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, State::Finished | State::Aborted)
    }
}

/// What the owner record says, as told from above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Destination: run it, under this epoch.
    Commit(Epoch),
    /// Source: it is another's.
    Superseded,
    /// Source: go on. Destination: discard it.
    Abort,
}

/// One side's migration, seen from outside the thread that carries it out.
#[derive(Debug)]
pub(crate) struct Control {
    status: watch::Sender<Status>,
    verdict: Mutex<Option<Verdict>>,
    decided: Condvar,
    /// To be shut down when a verdict comes while a thread waits for the peer.
    connections: Mutex<Vec<Handle>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    pub(crate) fn new(migration: MigrationId, vm: VmId, role: Role, state: State) -> Self {
        let progress = Progress::default();
        let status = Status { migration, vm, role, state, progress, refusal: None };
        Self {
            status: watch::Sender::new(status),
            verdict: Mutex::new(None),
            decided: Condvar::new(),
            connections: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The status and its changes. Only the newest is kept.
    pub(crate) fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
    }

    /// Ends it: nothing may change afterwards.
    pub(crate) fn end(&self, state: State, refusal: Option<Refusal>) {
        self.update(|status| (status.state, status.refusal) = (state, refusal));
    }

    /// Another connection to interrupt when a verdict comes.
    pub(crate) fn attach(&self, connection: Handle) {
        lock(&self.connections).push(connection);
        // One that came before found nothing to interrupt.
        if self.verdict().is_some_and(|verdict| !matches!(verdict, Verdict::Commit(_))) {
            lock(&self.connections).iter().for_each(Handle::shut_down);
        }
    }

    /// Nobody waits on the connections any more: lets go of them.
    pub(crate) fn detach(&self) {
        lock(&self.connections).clear();
    }

    /// The verdict, once it is known.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        *lock(&self.verdict)
    }

    /// Waits for the verdict, however long it takes.
    pub(crate) fn wait_verdict(&self) -> Verdict {
        let mut verdict = lock(&self.verdict);
        loop {
            if let Some(verdict) = *verdict {
                return verdict;
            }
            verdict = self.decided.wait(verdict).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for `time`, or less when a verdict comes.
    pub(crate) fn sleep(&self, time: Duration) {
        let verdict = lock(&self.verdict);
        let waited = self.decided.wait_timeout_while(verdict, time, |verdict| verdict.is_none());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes a verdict. The same one again changes nothing.
    ///
    /// # Errors
    /// `InvalidArgument` when it is not for this role, `WrongState` when it
    /// contradicts what is decided or comes before its time.
    pub(crate) fn resolve(&self, new: Verdict) -> Result<(), Refusal> {
        let mut verdict = lock(&self.verdict);
        let status = self.status();
        if check(new, *verdict, &status)? {
            *verdict = Some(new);
            self.decided.notify_all();
            // Wakes who waits for a change, though none of the fields has.
            self.status.send_modify(|_| {});
            // Ends a read or write that waits for the peer. Not on COMMIT: READY may still be
            // on its way to the source.
            if !matches!(new, Verdict::Commit(_)) {
                lock(&self.connections).iter().for_each(Handle::shut_down);
            }
        }
        Ok(())
    }
}

/// Whether `new` is to be stored.
fn check(new: Verdict, old: Option<Verdict>, status: &Status) -> Result<bool, Refusal> {
    let refuse = |code, reason: String, remedy: &str| Err(Refusal::new(code, reason, remedy));
    let id = status.migration;
    match (status.role, new) {
        (Role::Source, Verdict::Commit(_)) | (Role::Destination, Verdict::Superseded) => {
            return refuse(
                RefusalCode::InvalidArgument,
                format!("{new:?} is not for the {:?} of migration {id}", status.role),
                "send COMMIT to the destination, SUPERSEDED to the source",
            );
        }
        _ => {}
    }
    match old {
        Some(old) if old == new => return Ok(false),
        Some(old) => {
            return refuse(
                RefusalCode::WrongState,
                format!("migration {id} is decided as {old:?}, not {new:?}"),
                "ask the owner record again",
            );
        }
        None => {}
    }
    match (status.state, new) {
        // It had ended by itself, in the way the verdict wants.
        (State::Aborted, Verdict::Abort) => Ok(false),
        (State::Aborted | State::Finished, _) => refuse(
            RefusalCode::WrongState,
            format!("migration {id} has ended as {:?} and cannot take {new:?}", status.state),
            "ask the owner record again; shut the VM down here if it is another's",
        ),
        (State::Ready, _) | (_, Verdict::Abort | Verdict::Superseded) => Ok(true),
        (state, Verdict::Commit(_)) => refuse(
            RefusalCode::WrongState,
            format!("migration {id} is {state:?}, and only a READY one can be committed"),
            "wait until the destination is READY",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(role: Role, state: State) -> Control {
        let id = "018f0000-0000-7000-8000-000000000001".parse().unwrap();
        Control::new(id, "vm".parse().unwrap(), role, state)
    }

    fn check_code(control: &Control, verdict: Verdict, expected: Option<RefusalCode>) {
        let code = control.resolve(verdict).err().map(|refusal| refusal.code);
        assert_eq!(code, expected, "{verdict:?}");
    }

    #[test]
    fn a_verdict_is_idempotent_and_final() {
        let destination = control(Role::Destination, State::Ready);
        check_code(&destination, Verdict::Commit(Epoch(2)), None);
        check_code(&destination, Verdict::Commit(Epoch(2)), None);
        check_code(&destination, Verdict::Commit(Epoch(3)), Some(RefusalCode::WrongState));
        check_code(&destination, Verdict::Abort, Some(RefusalCode::WrongState));
        assert_eq!(destination.wait_verdict(), Verdict::Commit(Epoch(2)));
    }

    #[test]
    fn a_commit_needs_a_ready_destination() {
        let early = control(Role::Destination, State::Transferring);
        check_code(&early, Verdict::Commit(Epoch(2)), Some(RefusalCode::WrongState));
        check_code(&early, Verdict::Superseded, Some(RefusalCode::InvalidArgument));
        check_code(&early, Verdict::Abort, None);
        let source = control(Role::Source, State::Ready);
        check_code(&source, Verdict::Commit(Epoch(2)), Some(RefusalCode::InvalidArgument));
    }

    #[test]
    fn an_abort_of_what_ended_so_is_no_error() {
        let source = control(Role::Source, State::Aborted);
        check_code(&source, Verdict::Abort, None);
        check_code(&source, Verdict::Superseded, Some(RefusalCode::WrongState));
        assert_eq!(source.verdict(), None);
    }
}
