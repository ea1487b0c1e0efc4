//! What two sim agents say to each other over TCP.
//!
//! ```text
//! source                         destination
//!   Hello{migration, vm, token} ──▶
//!                             ◀── Agreed | Refused{why}
//!   Progress …                  ──▶   (the modelled rounds; no memory goes over the wire)
//!   Switch{ran}                 ──▶   the source has paused and stored it
//!                             ◀── Ready              the destination has stored it
//! ```
//!
//! A frame is a big-endian u32 length and that much JSON.

use std::io;
use std::time::Duration;

use ballast_model::migration::Progress;
use ballast_model::{MigrationId, VmId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::driver::TOKEN_BYTES;

/// The longest frame, in bytes.
const FRAME_BYTES_MAX: u32 = 16 << 10;
/// How long a peer may be silent.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

/// One message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// The source's first words.
    Hello {
        /// The migration.
        migration: MigrationId,
        /// The VM.
        vm: VmId,
        /// What the destination wants to be shown.
        token: [u8; TOKEN_BYTES],
    },
    /// The destination agrees.
    Agreed,
    /// It does not.
    Refused {
        /// Why.
        why: String,
    },
    /// How far the source is.
    Progress(Progress),
    /// The source has paused; this is the VM.
    Switch {
        /// How long the guest ran.
        ran: Duration,
        /// The source's figures.
        progress: Progress,
    },
    /// The destination has it.
    Ready,
}

/// Sends one frame.
///
/// # Errors
/// Of the connection, or when the peer takes nothing for [`SILENCE_MAX`].
pub async fn send(stream: &mut TcpStream, frame: &Frame) -> io::Result<()> {
    let body = serde_json::to_vec(frame)?;
    let length = u32::try_from(body.len()).ok().filter(|&length| length <= FRAME_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::other("frame too long"))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    timeout(SILENCE_MAX, stream.write_all(&bytes)).await?
}

/// Receives one frame.
///
/// # Errors
/// Of the connection, when nothing comes for [`SILENCE_MAX`], or when it is no frame.
pub async fn receive(stream: &mut TcpStream) -> io::Result<Frame> {
    let read = async {
        let length = stream.read_u32().await?;
        if length > FRAME_BYTES_MAX {
            return Err(io::Error::other(format!("a frame of {length} bytes")));
        }
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).await?;
        serde_json::from_slice(&body).map_err(io::Error::other)
    };
    timeout(SILENCE_MAX, read).await?
}
