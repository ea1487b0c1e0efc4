//! The probe guest: a bare-metal program for tests, and the host side of its protocol.
//!
//! The program (in `bare/`, built by this package's build script) boots in a
//! VM, keeps a numbered heartbeat on the serial port, makes load as it is told
//! and checks all the time that its memory holds what it wrote. This library
//! has the program ([`IMAGE`]), its command line ([`Params`]), where it keeps
//! what it checks ([`Layout`]), a reader of what it says ([`Console`]), a judge of
//! what it wrote to its disk ([`LogReport`]) and, to run it in, networks of its own
//! ([`net`]) with a client that misses nothing ([`CountClient`]).
//! docs/probe-guest.md describes all of it.
//!
//! ```
//! use ballast_guest::{Console, Params};
//!
//! let cmdline = Params { duty_percent: 30, dirty_mib_per_sec: 4, ..Params::default() }.to_cmdline();
//! assert_eq!(cmdline, "duty=30 dirty_mib_s=4");
//!
//! let mut console = Console::new();
//! console.push(0, b"H 0 1 p0 e0\nH 1 201 p0 e0\nH 2 9");
//! assert_eq!(console.report().heartbeats, 2);
//! assert!(console.report().faults().is_empty());
//! ```

mod client;
mod console;
mod log;
pub mod net;
mod params;

// The guest's own source, so that both sides agree: on defaults, on where memory is, on records.
#[path = "../bare/defaults.rs"]
#[cfg_attr(not(test), allow(dead_code))] // only the guest checks bounds
#[allow(unreachable_pub)]
mod defaults;
#[path = "../bare/layout.rs"]
mod layout;
#[path = "../bare/record.rs"]
#[cfg_attr(not(test), allow(dead_code))] // only the guest writes
#[allow(unreachable_pub)]
mod record;

// More of the guest's own source, for tests only.
#[cfg(test)]
#[path = "../bare/params.rs"]
#[allow(unreachable_pub, missing_docs, dead_code)]
mod bare_params;
#[cfg(test)]
#[path = "../bare/pattern.rs"]
#[allow(unreachable_pub, missing_docs, clippy::cast_possible_truncation)]
mod bare_pattern;
#[cfg(test)]
#[path = "../bare/timeline.rs"]
#[allow(unreachable_pub, missing_docs)]
mod bare_timeline;
#[cfg(test)]
mod tests;

pub use client::{Answered, Asking, CountClient};
pub use console::{Console, ConsoleReport};
pub use layout::{Layout, PAGE_BYTES};
pub use log::LogReport;
pub use params::Params;

/// The program as an ELF file, to be written somewhere and named as a VM's kernel.
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ballast-guest"));
