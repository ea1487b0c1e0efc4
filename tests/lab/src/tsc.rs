//! How fast this machine's time stamp counter runs.
//!
//! A host's counter is this machine's own. Its kernel would measure the
//! frequency against an emulated timer, and on a busy machine be wrong by any
//! factor, its clock with it. So it is told.

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

/// How far apart the two moments are between which ticks are counted.
const SPAN: Duration = Duration::from_millis(100);
/// How often a moment is looked at: the look that took least was not interrupted.
const LOOKS: usize = 100;

/// The frequency in kHz, good to about 1 in 10 000.
pub(crate) fn khz() -> u64 {
    let first = moment();
    std::thread::sleep(SPAN);
    let last = moment();
    let nanos = last.time.duration_since(first.time).as_nanos().max(1);
    let ticks = u128::from(last.ticks.saturating_sub(first.ticks));
    u64::try_from(ticks * 1_000_000 / nanos).unwrap_or(u64::MAX)
}

struct Moment {
    time: Instant,
    ticks: u64,
}

/// One moment by both clocks.
fn moment() -> Moment {
    let look = |_| {
        let before = ticks();
        let time = Instant::now();
        let took = ticks().saturating_sub(before);
        (took, Moment { time, ticks: before + took / 2 })
    };
    let looks = (1..LOOKS).map(look);
    looks.fold(look(0), |best, look| if look.0 < best.0 { look } else { best }).1
}

fn ticks() -> u64 {
    // SAFETY: the instruction reads a counter; every x86-64 processor has it.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_frequency_is_one_a_processor_can_have() {
        assert!((500_000..10_000_000).contains(&super::khz()));
    }
}
