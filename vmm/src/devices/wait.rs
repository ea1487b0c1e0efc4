//! How the threads of simple devices wait: for the end, for the guest, for a while.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

/// Waits for any of `events`, at most `patience`, and takes what has come.
/// False when `stop` has been told: that is left as it is.
pub(super) fn wait(stop: &EventFd, events: &[&EventFd], patience: Option<Duration>) -> bool {
    let borrowed = [stop].into_iter().chain(events.iter().copied()).map(|event| {
        // SAFETY: the descriptor is open as long as the event, which outlives this call.
        unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
    });
    let borrowed: Vec<_> = borrowed.collect();
    let mut polled: Vec<_> =
        borrowed.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = patience.and_then(|time| Timespec::try_from(time).ok());
    loop {
        match poll(&mut polled, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "a device's thread cannot wait");
                return false;
            }
            Ok(_) => break,
        }
    }
    for event in events {
        // Nothing to read is nothing to take.
        let _ = event.read();
    }
    polled.first().is_some_and(|stop| stop.revents().is_empty())
}
