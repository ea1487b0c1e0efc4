//! Slowing a guest down so that it writes less: vCPUs that run are kept from
//! running for a share of every period.
//!
//! Which vCPU writes how much KVM does not say without a dirty ring, so time
//! decides. Every vCPU has an [`Account`]: it may run for its share of the time that has really
//! passed, and what it ran beyond that – this thread is woken late on a busy host, and nothing
//! stops a vCPU meanwhile – it sits out afterwards. A vCPU that hardly runs owes nothing and is
//! left alone, and with it whatever it serves. Dropping the [`Throttle`] lets all run again.

use std::sync::mpsc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::vcpu::Vcpus;

/// What the share is of. As long as a guest does not notice.
const PERIOD: Duration = Duration::from_millis(20);
/// The longest a vCPU sits out at a time: a guest's watchdogs wait longer.
const NAP_MAX: Duration = Duration::from_millis(200);
/// More than this a vCPU never owes, so that one slow moment of the host is not paid for long.
const OWED_MAX: Duration = Duration::from_millis(50);
/// How often it is told what the vCPUs ran, in looks.
const TELL_LOOKS: u32 = 50;

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
    /// How long it still sits out.
    out: Duration,
}

impl Account {
    /// Since the last look `passed`, in which the vCPU ran for `ran`. How long it is to nap, after
    /// the nap it is in if it is in one; it may run for `slice` of each period.
    fn look(&mut self, passed: Duration, ran: Duration, slice: Duration) -> Option<Duration> {
        let share = slice.as_secs_f64() / PERIOD.as_secs_f64();
        let may = passed.mul_f64(share);
        let hardly_runs = self.owed.is_zero() && ran < may / 2;
        self.owed = (self.owed + ran).saturating_sub(may).min(OWED_MAX);
        self.out = self.out.saturating_sub(passed);
        // Until the next look, also when that comes late.
        if self.out >= NAP_MAX / 2 || hardly_runs {
            return None;
        }
        // To sit out what it owes, beyond what the nap it is in pays for; and, from then on, so
        // much that it has its slice until the look after that.
        let unpaid = self.owed.saturating_sub(self.out.mul_f64(share));
        let nap = unpaid.div_f64(share.max(0.01)) + (PERIOD - slice).saturating_sub(self.out);
        let nap = nap.min(NAP_MAX.saturating_sub(self.out));
        self.out += nap;
        (!nap.is_zero()).then_some(nap)
    }
}

fn run(vcpus: &Vcpus, orders: &mpsc::Receiver<u8>) {
    let mut slice = PERIOD;
    let mut accounts = vec![Account::default(); vcpus.count()];
    let (mut before, mut looked) = (vcpus.cpu_times(), Instant::now());
    let (mut told, mut told_at) = (before.clone(), looked);
    for look in 1u32.. {
        match orders.recv_timeout(PERIOD) {
            Ok(percent) => slice = PERIOD * u32::from(100 - percent.min(99)) / 100,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        let (now, at) = (vcpus.cpu_times(), Instant::now());
        let passed = at - looked;
        for (index, account) in accounts.iter_mut().enumerate() {
            let ran = now[index].saturating_sub(before[index]);
            if let Some(nap) = account.look(passed, ran, slice) {
                vcpus.nap(index, nap);
            }
        }
        if look.is_multiple_of(TELL_LOOKS) {
            let ran: Vec<_> = now.iter().zip(&told).map(|it| it.0.saturating_sub(*it.1)).collect();
            tracing::debug!(?ran, of = ?(at - told_at), may = ?slice, in_each = ?PERIOD, "slowed down");
            (told, told_at) = (now.clone(), at);
        }
        (before, looked) = (now, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A vCPU that runs whenever it may, looked at after each of these times; what it ran in all.
    fn run_for(looks: impl IntoIterator<Item = Duration>, percent: u32) -> Duration {
        let slice = PERIOD * (100 - percent) / 100;
        let (mut account, mut napping, mut ran_in_all) =
            (Account::default(), Duration::ZERO, Duration::ZERO);
        for passed in looks {
            let ran = passed.saturating_sub(napping);
            napping = napping.saturating_sub(passed);
            ran_in_all += ran;
            if let Some(nap) = account.look(passed, ran, slice) {
                napping += nap;
                assert!(napping <= NAP_MAX, "{napping:?}");
            }
        }
        ran_in_all
    }

    #[test]
    fn who_hardly_runs_is_left_alone() {
        let mut account = Account::default();
        for _ in 0..100 {
            assert_eq!(account.look(PERIOD, MS / 2, 2 * MS), None);
        }
    }

    #[test]
    fn a_vcpu_has_its_share_and_no_more() {
        for percent in [30, 60, 90, 99] {
            let ran = run_for(std::iter::repeat_n(PERIOD, 5000), percent);
            let may = PERIOD * 5000 * (100 - percent) / 100;
            assert!(
                ran >= may * 8 / 10 && ran <= may * 11 / 10 + OWED_MAX,
                "{percent}: {ran:?} of {may:?}"
            );
        }
    }

    #[test]
    fn looks_that_come_late_let_it_run_no_longer() {
        for (percent, late) in [(60, 7), (84, 23), (99, 13), (99, 31)] {
            // Every look is late, by up to two periods.
            let looks: Vec<_> = (0..5000u32).map(|n| PERIOD + MS * (n * late % 41)).collect();
            let may = looks.iter().sum::<Duration>() * (100 - percent) / 100;
            let ran = run_for(looks, percent);
            assert!(ran <= may * 3 / 2 + OWED_MAX, "{percent}: {ran:?} of {may:?}");
        }
    }
}
