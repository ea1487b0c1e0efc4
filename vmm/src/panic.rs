//! A defect in this program ends the VM with its reason, never half of the VM without one.
//!
//! A thread the guest depends on (a vCPU's, a device's) that panics leaves a
//! guest that hangs, and nobody who knows. So its panic is the process's end,
//! with thread, place and message as the last line of the log, where the agent
//! looks for why a VM ended. A migration's thread is another matter: the guest
//! does not need it, and its panic is an ordinary trouble of the migration.

use std::panic::PanicHookInfo;

/// The exit status of a process that panicked, as Rust's own.
const EXIT_STATUS: i32 = 101;

/// Has every panic say in one line what it was.
pub(crate) fn install_hook() {
    std::panic::set_hook(Box::new(|info| eprintln!("{}", line(info))));
}

fn line(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let message = info.payload_as_str().unwrap_or("no message").replace('\n', " ");
    format!("ballast-vmm: thread {name} panicked at {place}: {message}; report a defect")
}

/// While it lives, a panic of the calling thread ends the process.
#[derive(Debug)]
pub(crate) struct EndsProcess;

impl Drop for EndsProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // SAFETY: ends the process without running anything more of it; its reason is out.
            unsafe { libc::_exit(EXIT_STATUS) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::jail::{self, ThreadKind};

    const PART: &str = "BALLAST_TEST_PART";

    /// Run by the test below in a process of its own; else it does nothing.
    #[test]
    fn a_part_that_panics() {
        if std::env::var(PART).is_err() {
            return;
        }
        install_hook();
        let work = || assert!(std::hint::black_box(false), "of\nmany lines");
        let thread = jail::spawn(ThreadKind::Device, "disk0".to_owned(), work).unwrap();
        let _ = thread.join();
        unreachable!("the process has ended");
    }

    #[test]
    fn a_panic_of_a_devices_thread_ends_the_process_with_its_reason() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "panic::tests::a_part_that_panics", "--nocapture"])
            .env(PART, "1")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(EXIT_STATUS));
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("ballast-vmm: thread disk0 panicked at vmm/src/panic.rs"),
            "{said}"
        );
        assert!(last.contains("of many lines"), "{said}");
    }
}
