//! Live pre-copy migration from one VMM process to another.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`framing`] | the frames of the stream, encoded and decoded without IO |
//! | [`stream`] | frames and pages over one connection |
//! | [`integrity`] | checksums of all that is not encrypted |
//! | [`wire`], [`tls`] | its bytes, plain or encrypted; who the destination is |
//! | [`link`] | what the link is like, and how many connections it takes |
//! | [`lobby`] | the destination's door: who may come in |
//! | [`negotiation`] | which version is spoken, whether the two hosts fit |
//! | [`dirty`] | sets of pages, and KVM's dirty log |
//! | [`round`] | one round's pages, handed out chunk by chunk |
//! | [`sender`], [`crew`] | one connection's sender; all of them at work on one round |
//! | [`packing`] | compressed pages, and whether they pay |
//! | [`convergence`] | when to stop copying and switch over, slow the guest down, or give up |
//! | [`throttle`] | slowing the guest down |
//! | [`source`], [`switchover`] | the phases of the source, straight down, with one place for failure |
//! | [`filling`] | what arrives, into guest memory |
//! | [`storage`] | disks that go along |
//! | [`postcopy`] | a guest that runs before all of its memory is there |
//! | [`destination`] | the phases of the destination |
//! | [`verify`] | hashes of all pages, compared before the destination may run |
//! | [`control`] | status for whoever watches, verdicts from whoever decides |
//!
//! # The stream
//!
//! ```text
//!  source                                                destination
//!    │ Hello: id, token, versions ───────────────────────▶ wrong token: dropped
//!    │ ◀──────────────────────────── Welcome: version, or Failed
//!    │ Proposal: memory layout, CPU, TSC, verify ────────▶
//!    │ ◀──────────────────────────── AcceptStreams, or Failed: what differs
//!    │ Join: number, key ════════════════════════════════▶ each other connection
//!    │ Present ──────────────────────────────────────────▶ takes memory ahead of the pages
//!    │ Runs*, Zero*, Round ══════════════════════════════▶ into guest memory, over all connections
//!    │ ◀──────────────────────────── RoundDone              … round after round
//!    │ (guest paused) Runs*, Zero*, Hashes*, State* ─────▶
//!    │ End ──────────────────────────────────────────────▶ loads, verifies
//!    │ ◀──────────────────────────── Ready, or Failed
//! ```
//!
//! A round trip is spent on each of the greeting, the proposal and the end of
//! each round, none on a page. From the pause to READY there is one.
//!
//! # Who may run when
//!
//! The destination becomes READY only after it has the whole of the End frame.
//! So the source is *unsealed* until it begins to send End, and *sealed* from
//! there on:
//!
//! - Unsealed, any trouble at all makes the source go on by itself.
//! - Sealed, it goes on by itself only when the destination said Failed, which
//!   it says only if it never was READY. Otherwise it stays paused, says READY,
//!   and does what [`control::Verdict`] says, however long that takes.
//! - The destination runs only when told COMMIT, and ends on any trouble before READY.
//!
//! # Disks
//!
//! The destination opens the disks before anything is sent, and refuses what it
//! cannot open. Their locks go over in between: the source gives them up before
//! it seals, with everything written out; the destination takes them after
//! COMMIT, before it runs. A source that goes on takes them back first. Who
//! does not get them does not run: a destination gives the VM back as one that
//! never ran here, a source stays paused and says who has the disk.
//!
//! # Versions
//!
//! Hello never changes. It carries the range of versions its sender speaks; the
//! highest both speak is used. A release speaks its own version and the one
//! before ([`framing::VERSIONS`]). To a peer of version 1 there is one connection;
//! version 3 has checksums where nothing is encrypted, and compressed pages.

pub(crate) mod control;
pub(crate) mod convergence;
pub(crate) mod crew;
pub(crate) mod destination;
pub(crate) mod dirty;
pub(crate) mod filling;
pub(crate) mod framing;
pub(crate) mod integrity;
pub(crate) mod link;
pub(crate) mod lobby;
pub(crate) mod negotiation;
pub(crate) mod packing;
pub(crate) mod postcopy;
pub(crate) mod round;
pub(crate) mod sender;
pub(crate) mod source;
pub(crate) mod storage;
pub(crate) mod stream;
pub(crate) mod switchover;
pub(crate) mod throttle;
pub(crate) mod tls;
pub(crate) mod verify;
pub(crate) mod wire;

use ballast_model::{Refusal, RefusalCode};

use crate::codec::Malformed;

/// Why a phase did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The connection.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
    /// The peer sent what it must not send.
    #[error("the peer broke the protocol: {0}")]
    Protocol(#[from] Malformed),
    /// The peer said no. A destination that says so never was READY.
    #[error("{0}")]
    PeerFailed(Refusal),
    /// Something here.
    #[error("{0}")]
    Here(#[from] Refusal),
    /// A verdict came.
    #[error("a verdict ended it")]
    Interrupted,
}

impl Trouble {
    /// The same as a refusal, for the migration's status.
    pub(crate) fn into_refusal(self) -> Refusal {
        match self {
            Self::PeerFailed(refusal) | Self::Here(refusal) => refusal,
            Self::Interrupted => {
                Refusal::new(RefusalCode::Cancelled, "the migration was cancelled", "try again")
            }
            Self::Protocol(_) => Refusal::new(
                RefusalCode::Internal,
                self.to_string(),
                "bring both hosts to the same version, and report a defect",
            ),
            Self::Io { ref error, .. } => {
                let late = matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
                let code = if late { RefusalCode::Timeout } else { RefusalCode::Unavailable };
                Refusal::new(
                    code,
                    format!("the connection to the other host failed while {self}"),
                    "check the other host and the network between the two, then try again",
                )
            }
        }
    }
}
