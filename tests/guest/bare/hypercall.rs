//! The two things only ring 0 can do, asked for by an exception (see `entry.s`).

unsafe extern "C" {
    fn hypercall(operation: u32, argument: u32);
}

const START_TIMER: u32 = 0;
const SLEEP: u32 = 1;

/// Enables the local APIC in x2APIC mode and its timer. Once, before [`sleep`].
pub fn start_timer() {
    // SAFETY: the ring-0 stub touches the APIC only and returns here.
    unsafe { hypercall(START_TIMER, 0) }
}

/// Halts until the timer fires, `nanos` from now.
pub fn sleep(nanos: u32) {
    // SAFETY: as above; the timer's vector has its handler.
    unsafe { hypercall(SLEEP, nanos) }
}
