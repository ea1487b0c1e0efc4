//! The wire between the lab and the agent in a host.
//!
//! Frames over a virtio-console port: kind (1 byte), length (4 bytes, little
//! endian), payload. The lab asks one thing at a time; the agent answers it to
//! its end. Both sides are one program of one build, so there are no versions.
//!
//! ```text
//!   lab                                agent
//!    │ ◀──────────────────────── HELLO  it is up
//!    │ RUN {script, timeout} ─────────▶
//!    │ ◀── STDOUT* STDERR* EXIT {code}
//!    │ PUSH {path, mode}, DATA*, END ─▶
//!    │ ◀────────────── DONE | FAILED why
//!    │ PULL {path} ───────────────────▶
//!    │ ◀─────── DATA* (END | FAILED why)
//!    │ POWER_OFF ─────────────────────▶
//! ```

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Name of the port, as the host's kernel shows it.
pub(crate) const PORT: &str = "ballast.lab";
/// Largest payload of a frame.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 10;

pub(crate) const HELLO: u8 = 1;
pub(crate) const RUN: u8 = 2;
pub(crate) const STDOUT: u8 = 3;
pub(crate) const STDERR: u8 = 4;
pub(crate) const EXIT: u8 = 5;
pub(crate) const PUSH: u8 = 6;
pub(crate) const PULL: u8 = 7;
pub(crate) const DATA: u8 = 8;
pub(crate) const END: u8 = 9;
pub(crate) const DONE: u8 = 10;
pub(crate) const FAILED: u8 = 11;
pub(crate) const POWER_OFF: u8 = 12;

/// Payload of [`RUN`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RunRequest {
    /// What the shell is to run.
    pub(crate) script: String,
    /// When it is ended.
    pub(crate) timeout_ms: u64,
}

/// Payload of [`EXIT`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RunEnd {
    /// The shell's exit code; 128 + the number of the signal that ended it.
    pub(crate) code: i32,
    /// Whether it was ended because it took too long.
    pub(crate) timed_out: bool,
}

/// Payload of [`PUSH`] and [`PULL`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FileRequest {
    /// Absolute path in the host.
    pub(crate) path: String,
    /// Permission bits of a file that is written.
    pub(crate) mode: u32,
}

/// What came: its kind and its payload.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; 5];
        from.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length) as usize;
        if length > PAYLOAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that is too long"));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Ok(Self { kind, payload })
    }

    /// The payload as what the kind promises.
    pub(crate) fn value<T: DeserializeOwned>(&self) -> io::Result<T> {
        Ok(serde_json::from_slice(&self.payload)?)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

/// Writes one frame.
pub(crate) fn send(to: &mut impl Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "a frame that is too long");
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} bytes do not fit a frame", payload.len()),
        ));
    }
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&u32::try_from(payload.len()).map_err(too_long)?.to_le_bytes());
    bytes.extend_from_slice(payload);
    to.write_all(&bytes)
}

/// Writes one frame with a value.
pub(crate) fn send_value(to: &mut impl Write, kind: u8, value: &impl Serialize) -> io::Result<()> {
    send(to, kind, &serde_json::to_vec(value)?)
}

/// Writes all of `from` as frames of `kind`; how many bytes.
pub(crate) fn send_all(to: &mut impl Write, kind: u8, mut from: impl Read) -> io::Result<u64> {
    let mut piece = vec![0; PAYLOAD_BYTES_MAX];
    let mut total = 0;
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(total),
            length => {
                send(to, kind, &piece[..length])?;
                total += length as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_was_sent() {
        let mut wire = Vec::new();
        let request = RunRequest { script: "true".into(), timeout_ms: 5 };
        send_value(&mut wire, RUN, &request).unwrap();
        send_all(&mut wire, DATA, [7; PAYLOAD_BYTES_MAX + 1].as_slice()).unwrap();
        let mut wire = wire.as_slice();
        let frame = Frame::read(&mut wire).unwrap();
        assert_eq!((frame.kind, frame.value::<RunRequest>().unwrap().timeout_ms), (RUN, 5));
        assert_eq!(Frame::read(&mut wire).unwrap().payload.len(), PAYLOAD_BYTES_MAX);
        assert_eq!(Frame::read(&mut wire).unwrap().payload, [7]);
        assert!(wire.is_empty());
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused() {
        assert!(send(&mut Vec::new(), DATA, &[0; PAYLOAD_BYTES_MAX + 1]).is_err());
        let wire = [DATA, 0xff, 0xff, 0xff, 0xff];
        let error = Frame::read(&mut wire.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
