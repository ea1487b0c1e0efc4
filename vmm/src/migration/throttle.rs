//! Slowing a guest down so that it writes less: vCPUs that run are kept from
//! running for a share of every period.
//!
//! Which vCPU writes how much KVM does not say without a dirty ring, so time
//! decides: a vCPU that hardly runs is left alone, and with it whatever it
//! serves. Dropping the [`Throttle`] lets all run again.

use std::sync::mpsc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::vcpu::Vcpus;

/// What the share is of. As long as a guest does not notice.
const PERIOD: Duration = Duration::from_millis(20);
/// A vCPU that runs less than this share of the time it is let is left alone, in percent.
const BUSY_PERCENT: u32 = 10;
/// How often it is looked which vCPUs run, in periods.
const LOOK_PERIODS: u32 = 10;

/// The thread that slows a guest down.
#[derive(Debug)]
pub(crate) struct Throttle<'scope> {
    /// The share of time taken; the thread ends when this is dropped.
    percent: Option<mpsc::Sender<u8>>,
    thread: Option<ScopedJoinHandle<'scope, ()>>,
}

impl<'scope> Throttle<'scope> {
    /// Nothing is slowed down yet.
    pub(crate) fn new() -> Self {
        Self { percent: None, thread: None }
    }

    /// Takes this share of the time from now on, in percent.
    pub(crate) fn set<'env>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        vcpus: &'env Vcpus,
        percent: u8,
    ) {
        if self.thread.is_none() {
            let (sender, orders) = mpsc::channel();
            let thread = std::thread::Builder::new().name("throttle".to_owned());
            match thread.spawn_scoped(scope, move || run(vcpus, &orders)) {
                Ok(thread) => (self.percent, self.thread) = (Some(sender), Some(thread)),
                Err(error) => tracing::warn!(%error, "the guest is not slowed down"),
            }
        }
        if let Some(orders) = &self.percent {
            // Its thread ends only after this.
            let _ = orders.send(percent);
        }
    }

    /// Lets all vCPUs run as they like.
    pub(crate) fn end(&mut self) {
        self.percent = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Throttle<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(vcpus: &Vcpus, orders: &mpsc::Receiver<u8>) {
    let mut percent = 0;
    let mut busy = vec![true; vcpus.count()];
    let mut looked = (Instant::now(), vcpus.cpu_times());
    for period in 1u32.. {
        match orders.recv_timeout(PERIOD) {
            Ok(new) => percent = new,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        if period.is_multiple_of(LOOK_PERIODS) {
            let now = (Instant::now(), vcpus.cpu_times());
            let let_run = (now.0 - looked.0) * u32::from(100 - percent.min(99)) / 100;
            busy =
                now.1.iter().zip(&looked.1).map(|(now, then)| ran(*now, *then, let_run)).collect();
            looked = now;
        }
        let nap = PERIOD * u32::from(percent) / 100;
        for (index, _) in busy.iter().enumerate().filter(|(_, busy)| **busy) {
            vcpus.nap(index, nap);
        }
    }
}

/// Whether a vCPU ran more than now and then, of the time it was let.
fn ran(now: Duration, then: Duration, let_run: Duration) -> bool {
    now.saturating_sub(then) * 100 >= let_run * BUSY_PERCENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hardly_runs_is_left_alone() {
        let ms = Duration::from_millis;
        assert!(ran(ms(30), ms(10), ms(200)));
        assert!(!ran(ms(15), ms(10), ms(200)));
        assert!(ran(ms(12), ms(10), ms(2)), "of the little it is let");
    }
}
