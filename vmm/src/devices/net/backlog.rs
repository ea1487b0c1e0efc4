//! Frames that came for a guest that stands still, and go where it goes on.
//!
//! A client's request that reaches the source's port after the pause would be lost
//! with the port: TCP sends it again after 200 ms at the earliest, many times the
//! downtime. So the source takes what has come, last thing before its state
//! goes over, into the device's state.

use std::collections::VecDeque;

use super::tap::{HEADER_BYTES, Tap};
use super::{FRAME_BYTES_MAX, SAVED_WHAT};
use crate::codec::{Decoder, Encoder, Malformed};

/// The most of them, in bytes with their headers: at 100 Mb/s they take 10 ms. Later ones are lost, as on a port whose
/// queue is full.
const BYTES_MAX: usize = 128 << 10;
/// The most of them.
const FRAMES_MAX: usize = 1024;

/// Frames in the order they came, each with its virtio header.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// What guest and device had agreed on: their headers may ask for it.
    features: u64,
    frames: VecDeque<Vec<u8>>,
}

impl Backlog {
    pub(super) fn new(features: u64, frames: VecDeque<Vec<u8>>) -> Self {
        Self { features, frames }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// All of them for a guest of these features; none when they were for another one.
    pub(super) fn take(&mut self, features: u64) -> VecDeque<Vec<u8>> {
        let frames = std::mem::take(&mut self.frames);
        if self.features == features { frames } else { VecDeque::new() }
    }

    /// Takes what has come at the tap, up to the bounds.
    pub(super) fn collect(&mut self, tap: &Tap) {
        let mut room = BYTES_MAX.saturating_sub(self.frames.iter().map(Vec::len).sum());
        // One byte more than any frame: what fills it is too long.
        let mut frame = vec![0; FRAME_BYTES_MAX + 1];
        while self.frames.len() < FRAMES_MAX {
            match rustix::io::read(tap, &mut frame) {
                Ok(bytes) if bytes > room => return,
                Ok(bytes) if bytes > HEADER_BYTES && bytes <= FRAME_BYTES_MAX => {
                    room -= bytes;
                    self.frames.push_back(frame[..bytes].to_vec());
                }
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    pub(super) fn encode(&self, to: &mut Encoder) {
        to.u64(self.features).count(self.frames.len());
        for frame in &self.frames {
            to.bytes(frame);
        }
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let features = from.u64(SAVED_WHAT)?;
        let count = from.count(FRAMES_MAX, SAVED_WHAT)?;
        let (mut frames, mut room) = (VecDeque::with_capacity(count), BYTES_MAX);
        for _ in 0..count {
            let frame = from.bytes(FRAME_BYTES_MAX, SAVED_WHAT)?;
            room = room.checked_sub(frame.len()).ok_or(Malformed(SAVED_WHAT))?;
            if frame.len() <= HEADER_BYTES {
                return Err(Malformed(SAVED_WHAT));
            }
            frames.push_back(frame.to_vec());
        }
        Ok(Self { features, frames })
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{SendFlags, send};

    use super::*;
    use crate::devices::net::tests::{cable, frame};

    fn decode(bytes: &[u8]) -> Result<Backlog, Malformed> {
        let mut from = Decoder::new(bytes);
        let backlog = Backlog::decode(&mut from)?;
        from.finish(SAVED_WHAT)?;
        Ok(backlog)
    }

    #[test]
    fn what_a_backlog_cannot_hold_is_lost_and_no_lie_about_it_is_believed() {
        let (tap, host) = cable();
        let mut sent = 0;
        while send(&host, &frame(16_000), SendFlags::DONTWAIT).is_ok() {
            sent += 1;
        }
        let mut backlog = Backlog::new(7, VecDeque::new());
        backlog.collect(&Tap::of_socket(tap));
        let held = backlog.frames.len();
        assert!(held < sent && held == BYTES_MAX / 16_000, "{held} of {sent}");
        let mut encoder = Encoder::default();
        backlog.encode(&mut encoder);
        let bytes = encoder.finish();
        let mut decoded = decode(&bytes).unwrap();
        assert_eq!(decoded.take(7).len(), held);
        assert_eq!(decode(&bytes).unwrap().take(8).len(), 0, "another guest's");

        let count = 8;
        for lie in [u8::try_from(held - 1).unwrap(), 0xff] {
            let mut lying = bytes.clone();
            lying[count] = lie;
            assert!(decode(&lying).is_err());
        }
        let first_length = count + 4;
        for lie in [0_u32, 12, 1 << 20] {
            let mut lying = bytes.clone();
            lying[first_length..first_length + 4].copy_from_slice(&lie.to_le_bytes());
            assert!(decode(&lying).is_err(), "{lie}");
        }
    }

    #[test]
    fn more_than_a_backlog_holds_is_not_taken_in() {
        let frames = std::iter::repeat_n(vec![1; FRAME_BYTES_MAX], 3).collect();
        let mut encoder = Encoder::default();
        Backlog::new(0, frames).encode(&mut encoder);
        assert!(decode(&encoder.finish()).is_err());
    }
}
