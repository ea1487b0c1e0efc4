//! The thread that starts and stops devices for the vCPUs.
//!
//! A driver starts and resets its device with a write to a register, and so in
//! the middle of a vCPU's thread. That thread's jail has no room for what it
//! takes: threads, file descriptors, and whatever a device needs to begin. So
//! such a write is carried out here, while the vCPU waits, as it would for
//! slow hardware.

use std::sync::mpsc::{self, Sender, SyncSender};
use std::thread::JoinHandle;

use ballast_model::{Refusal, RefusalCode};

/// Something to be done, and whom to tell.
type Job = (Box<dyn FnOnce() + Send>, Sender<()>);

/// The thread. Dropping it waits for what it is doing.
#[derive(Debug)]
pub(crate) struct Steward {
    /// None once the thread shall end.
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Steward {
    /// # Errors
    /// `HostFailure` when the process may have no more threads.
    pub(crate) fn start() -> Result<Self, Refusal> {
        // A vCPU waits for its job: there are never more than there are vCPUs.
        let (jobs, todo) = mpsc::sync_channel::<Job>(0);
        let thread = std::thread::Builder::new()
            .name("steward".to_owned())
            .spawn(move || {
                while let Ok((job, done)) = todo.recv() {
                    job();
                    let _ = done.send(());
                }
            })
            .map_err(|error| {
                Refusal::new(
                    RefusalCode::HostFailure,
                    format!("no thread to start devices: {error}"),
                    "raise the limit on tasks of this service",
                )
            })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Does it, and returns when it is done.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let (done, wait) = mpsc::channel();
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send((Box::new(job), done)).is_ok());
        if !sent || wait.recv().is_err() {
            tracing::error!("the thread that starts devices is gone: a device stays as it was");
        }
    }
}

impl Drop for Steward {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that starts devices had panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn what_is_asked_is_done_elsewhere_before_it_goes_on() {
        let steward = Steward::start().unwrap();
        let threads = Arc::new(Mutex::new(Vec::new()));
        for _ in 0..2 {
            let seen = Arc::clone(&threads);
            steward.run(move || seen.lock().unwrap().push(std::thread::current().id()));
        }
        let threads = threads.lock().unwrap();
        assert!(threads.len() == 2 && threads[0] == threads[1], "{threads:?}");
        assert_ne!(threads[0], std::thread::current().id());
    }
}
