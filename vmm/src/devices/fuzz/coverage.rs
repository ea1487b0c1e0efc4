//! What of the program an input has reached.
//!
//! Built with `--cfg fuzzing` and LLVM's `sancov-module` pass, every branch has a
//! counter of one byte, and each compiled module registers its counters before
//! `main`. Built without, there are none, and nothing ever is new.

/// Counters are compared by order of magnitude: one bit each.
fn magnitude(count: u8) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..=7 => 8,
        8..=15 => 16,
        16..=31 => 32,
        32..=127 => 64,
        128.. => 128,
    }
}

/// Everything reached by any input so far.
#[derive(Debug, Default)]
pub(super) struct Reached {
    seen: Vec<u8>,
}

impl Reached {
    /// Adds what was reached since the last call; whether some of it is new.
    pub(super) fn add(&mut self) -> bool {
        let mut new = false;
        let mut place = 0;
        counters(|count| {
            if place == self.seen.len() {
                self.seen.push(0);
            }
            let magnitude = magnitude(std::mem::take(count));
            new |= magnitude & !self.seen[place] != 0;
            self.seen[place] |= magnitude;
            place += 1;
        });
        new
    }

    /// How many branches were reached.
    pub(super) fn branches(&self) -> usize {
        self.seen.iter().filter(|seen| **seen != 0).count()
    }
}

#[cfg(not(fuzzing))]
fn counters(_each: impl FnMut(&mut u8)) {}

#[cfg(fuzzing)]
fn counters(mut each: impl FnMut(&mut u8)) {
    for &(start, end) in registered().iter() {
        let bytes = end - start;
        // SAFETY: a module's counters, registered by the module itself; they live as long as the
        // program. Other threads may count at the same time: a count more or less does no harm.
        let counts = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, bytes) };
        counts.iter_mut().for_each(&mut each);
    }
}

#[cfg(fuzzing)]
static REGISTERED: std::sync::Mutex<Vec<(usize, usize)>> = std::sync::Mutex::new(Vec::new());

#[cfg(fuzzing)]
fn registered() -> std::sync::MutexGuard<'static, Vec<(usize, usize)>> {
    REGISTERED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Called by each instrumented module before `main` (clang's SanitizerCoverage documentation).
// SAFETY: the name is the one the pass calls, and nobody else defines it.
#[cfg(fuzzing)]
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, end: *mut u8) {
    let module = (start as usize, end as usize);
    let mut registered = registered();
    if start != end && !registered.contains(&module) {
        registered.push(module);
    }
}
