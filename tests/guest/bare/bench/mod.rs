//! Measures the machine's devices, as fast as one CPU drives them.
//!
//! The guest polls: no interrupt is asked for, and a device is notified when it
//! asks for it. So what is measured is the way of a request from one ring to
//! the other. After a warm-up one line says what was done in the time given:
//!
//! ```text
//! R <operations> <bytes> <microseconds>
//! ```
//!
//! | module | what it measures |
//! | --- | --- |
//! | `disk` | reads, writes, and writes with a flush |
//! | `frames` | Ethernet frames of one length |
//! | `tcp` | one connection |

mod disk;
mod frames;
mod tcp;

use core::fmt::Write;

use crate::clock::Clock;
use crate::console::Line;
use crate::hypercall;
use crate::layout::Layout;
use crate::params::{Bench, Params, What};
use crate::timeline::Nanos;
use crate::virtio::mmio::Window;

const NANOS_PER_MS: Nanos = 1_000_000;
/// Caches fill, threads wake.
const WARM_UP: Nanos = 500 * NANOS_PER_MS;

/// Operations done, and their bytes.
#[derive(Clone, Copy, Default)]
struct Done {
    operations: u64,
    bytes: u64,
}

/// Something that can be measured.
trait Load {
    /// A few microseconds of it; what has been done in all.
    fn step(&mut self, now: Nanos) -> Result<Done, &'static str>;
}

/// Measures and stays idle; returns only when it cannot measure, with the reason.
pub fn run(task: Bench, params: &Params<'_>, layout: &Layout, clock: &mut Clock) -> &'static str {
    let window = Window { base: params.virtio_base, stride: params.virtio_stride };
    let outcome = match task.what {
        What::Disk { write, flush, in_order } => {
            let kind = disk::Kind { write, flush, in_order };
            disk::Disk::start(kind, &task, window, layout)
                .and_then(|mut it| measure(&mut it, &task, clock))
        }
        What::Frames { send } => frames::start(&task, window).and_then(|mut frames| match send {
            true => measure(&mut frames::Sending(&mut frames), &task, clock),
            false => measure(&mut frames::Receiving(&mut frames), &task, clock),
        }),
        What::Tcp { send } => tcp::Tcp::start(send, params, window, layout, clock.tick())
            .and_then(|mut it| measure(&mut it, &task, clock)),
    };
    match outcome {
        Err(why) => why,
        Ok(()) => loop {
            hypercall::sleep(u32::MAX);
        },
    }
}

/// From the first operation on: the warm-up, the time to measure, the line.
fn measure(load: &mut impl Load, task: &Bench, clock: &mut Clock) -> Result<(), &'static str> {
    Line::ready().send(clock);
    let mut now = clock.tick();
    while load.step(now)?.operations == 0 {
        now = clock.tick();
    }
    let begin = now + WARM_UP;
    let mut before = Done::default();
    while now < begin {
        before = load.step(now)?;
        now = clock.tick();
    }
    let (begin, end) = (now, now + Nanos::from(task.ms) * NANOS_PER_MS);
    let mut after = before;
    while now < end {
        after = load.step(now)?;
        now = clock.tick();
    }
    let (operations, bytes) = (after.operations - before.operations, after.bytes - before.bytes);
    let mut line = Line::new();
    // A line takes what fits and never fails.
    let _ = write!(line, "R {operations} {bytes} {}", (now - begin) / 1_000);
    line.send(clock);
    Ok(())
}

impl Line {
    /// What it says before it measures: whoever is at the other end may begin.
    fn ready() -> Self {
        let mut line = Self::new();
        let _ = line.write_str("R ready");
        line
    }
}
