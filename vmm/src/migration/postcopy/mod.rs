//! Post-copy: the guest runs on the destination before all of its memory is there.
//!
//! ```text
//!  source                                                destination
//!    │ ◀───────── PostCopy: the key to come back with ───── with its answer to the proposal
//!    │                 … rounds, as ever …
//!    │ (guest paused) Missing*, Hashes*, State*, End ─────▶ drops those pages, watches over them
//!    │ ◀──────────────────────── Ready … Running (committed) loads, says READY, runs when told to
//!    │ ◀──────────────────────────────────────────── Fetch* somebody waits for these
//!    │ Runs*, Zero* ─────────────────────────────────────▶ each missing page, once
//!    │ ◀───────────────────────────────────────────── Whole all are there
//!    ╳ the link breaks: both keep what they have
//!    │ Back: key ════════════════════════════════════════▶ a new connection
//!    │ ◀────────────────── PostCopy: the next key, Missing* … and on it goes
//! ```
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`serving`] | the source: pages that are asked for first, all others in turn |
//! | [`fetching`], [`fetcher`] | the destination: faults, pages as they come, the end |
//! | [`door`] | the key with which a source comes back whose connection broke |
//! | [`remaining`] | pages that have still to go, or to come |
//!
//! # Who may run when
//!
//! As without: End seals the source, COMMIT alone lets the destination run. The
//! source sends from End on and does not wait for COMMIT: it is paused, nothing
//! can change. So a destination has a part of memory already when it runs, and
//! sometimes all of it. What differs is how long the source is needed: until the
//! destination has said that it is whole ([`State::Finished`]). In between both
//! are [`State::Fetching`], and whoever discards the source then loses the VM.
//!
//! A destination that runs and whose source stays away ends after a time, by
//! ending its process: a guest that goes on with pages of zeroes would write
//! them to its disks.
//!
//! [`State::Finished`]: ballast_proto::v1::MigrationState::Finished
//! [`State::Fetching`]: ballast_proto::v1::MigrationState::Fetching

pub(crate) mod door;
mod fetcher;
pub(crate) mod fetching;
pub(crate) mod remaining;
pub(crate) mod serving;

use std::time::Duration;

/// A fault asks for its page and those around it: so many, aligned. Sixteen take little longer
/// than one, and are a dozen times as many a second.
pub(crate) const WINDOW_PAGES: u64 = 16;
/// How long either side hears nothing, while something should come, before it gives the connection up.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a destination that runs waits for a source that does not come back, when it is not told.
pub(crate) const PATIENCE_DEFAULT: Duration = Duration::from_secs(300);
/// The longest it can be told to wait.
pub(crate) const PATIENCE_MAX: Duration = Duration::from_secs(3600);
