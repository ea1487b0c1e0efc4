//! Slowing a guest down so that it writes less: vCPUs that run are kept from
//! running for a share of every period.
//!
//! Which vCPU writes how much KVM does not say without a dirty ring, so time
//! decides. Every vCPU has an [`Account`]: it may run for so much of a period, and what it ran
//! beyond that – this thread is woken late on a busy host – it sits out in the
//! periods that follow. A vCPU that hardly runs owes nothing and is left alone, and with it
//! whatever it serves. Dropping the [`Throttle`] lets all run again.

use std::sync::mpsc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::vcpu::Vcpus;

/// What the share is of. As long as a guest does not notice.
const PERIOD: Duration = Duration::from_millis(20);
/// A vCPU that owes much sits out so many periods at a time: a guest's watchdogs wait longer.
const PERIODS_MAX: u32 = 10;
/// More than this a vCPU never owes, so that one slow moment of the host is not paid for long.
const OWED_MAX: Duration = Duration::from_millis(50);
/// How often it is told what the vCPUs ran, in periods.
const TELL_PERIODS: u32 = 50;

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

/// How one vCPU stands.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    /// What it ran beyond what it was let.
    owed: Duration,
    /// Periods it still sits out.
    out: u32,
}

impl Account {
    /// A period has passed in which the vCPU ran for `ran`. How long it is to nap from now on,
    /// if at all; it may run for `slice` in each period.
    fn period(&mut self, ran: Duration, slice: Duration) -> Option<Duration> {
        self.owed = (self.owed + ran).saturating_sub(slice).min(OWED_MAX);
        self.out = self.out.saturating_sub(1);
        if self.out > 0 || ran + self.owed < slice / 2 {
            return None;
        }
        // Each further period without running pays for one slice.
        let further = self.owed.as_micros().div_ceil(slice.as_micros().max(1));
        self.out = 1 + u32::try_from(further).unwrap_or(PERIODS_MAX).min(PERIODS_MAX - 1);
        Some((PERIOD * self.out).saturating_sub(slice))
    }
}

fn run(vcpus: &Vcpus, orders: &mpsc::Receiver<u8>) {
    let mut slice = PERIOD;
    let mut accounts = vec![Account::default(); vcpus.count()];
    let (mut before, mut looked) = (vcpus.cpu_times(), Instant::now());
    let mut told = before.clone();
    for period in 1u32.. {
        match orders.recv_timeout(PERIOD) {
            Ok(percent) => slice = PERIOD * u32::from(100 - percent.min(99)) / 100,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        let now = vcpus.cpu_times();
        // A period that was longer than it should be let the vCPUs run no longer.
        for (index, account) in accounts.iter_mut().enumerate() {
            let ran = now[index].saturating_sub(before[index]);
            if let Some(nap) = account.period(ran, slice) {
                vcpus.nap(index, nap);
            }
        }
        if period.is_multiple_of(TELL_PERIODS) {
            let ran: Vec<_> = now.iter().zip(&told).map(|it| it.0.saturating_sub(*it.1)).collect();
            tracing::debug!(?ran, of = ?looked.elapsed(), may = ?(slice * TELL_PERIODS), "slowed down");
            (told, looked) = (now.clone(), Instant::now());
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn who_hardly_runs_is_left_alone() {
        let mut account = Account::default();
        for _ in 0..100 {
            assert_eq!(account.period(MS / 2, 2 * MS), None);
        }
    }

    #[test]
    fn who_keeps_to_its_share_naps_for_the_rest_of_each_period() {
        let mut account = Account::default();
        for _ in 0..100 {
            assert_eq!(account.period(8 * MS, 8 * MS), Some(12 * MS));
        }
    }

    #[test]
    fn what_a_vcpu_ran_too_long_it_sits_out() {
        for (too_long, percent) in [(MS, 90), (3 * MS, 99), (20 * MS, 60), (200 * MS, 95)] {
            let slice = PERIOD * (100 - percent) / 100;
            let mut account = Account::default();
            let (mut ran, mut may) = (Duration::ZERO, Duration::ZERO);
            // In each period in which it is not out it runs for its slice, and once too long.
            for period in 0..2000 {
                let extra = if period == 0 { too_long } else { Duration::ZERO };
                let runs = if account.out > 1 { Duration::ZERO } else { slice + extra };
                (ran, may) = (ran + runs, may + slice);
                if let Some(nap) = account.period(runs, slice) {
                    assert!(nap <= PERIOD * PERIODS_MAX);
                }
            }
            assert!(ran <= may + too_long.saturating_sub(OWED_MAX) + slice, "{ran:?} of {may:?}");
            assert!(ran * 10 >= may * 9, "{ran:?} of {may:?}");
        }
    }
}
