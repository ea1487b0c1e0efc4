//! Tells every bridge on the way where a guest's address is now.
//!
//! A RARP request with the guest's address, written to its tap as if the guest
//! had sent it: bridges learn from any frame, and nobody answers this one. It
//! is repeated, because the first may meet a port that is not forwarding yet.

use std::time::{Duration, Instant};

use ballast_model::MacAddress;

use super::tap::HEADER_BYTES;

/// When the rounds are due after the guest has gone on.
const ROUNDS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(1000),
    Duration::from_millis(3000),
];
/// The shortest Ethernet frame, without its checksum.
const FRAME_BYTES: usize = 60;

/// The rounds still to come.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    began: Option<Instant>,
    done: usize,
}

impl Rounds {
    pub(super) fn begin(now: Instant) -> Self {
        Self { began: Some(now), done: 0 }
    }

    /// When the next round is due; none when there is none.
    pub(super) fn next(&self) -> Option<Instant> {
        Some(self.began? + *ROUNDS.get(self.done)?)
    }

    /// Whether a round is due now; it counts as done.
    pub(super) fn due(&mut self, now: Instant) -> bool {
        let due = self.next().is_some_and(|at| at <= now);
        self.done += usize::from(due);
        due
    }
}

/// The frame with its (empty) virtio header, as a tap takes it.
pub(super) fn frame(mac: MacAddress) -> [u8; HEADER_BYTES + FRAME_BYTES] {
    let mut bytes = [0; HEADER_BYTES + FRAME_BYTES];
    let parts: [&[u8]; 9] = [
        &[0; HEADER_BYTES],
        &[0xff; 6],
        &mac.0,
        &[0x80, 0x35],             // Ethernet type RARP (RFC 903)
        &[0, 1, 8, 0, 6, 4, 0, 3], // Ethernet, IPv4, lengths of their addresses, "who am I?"
        &mac.0,
        &[0; 4],
        &mac.0,
        &[0; 4],
    ];
    let mut at = 0;
    for part in parts {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_carries_the_address_where_bridges_look() {
        let mac = MacAddress([2, 1, 2, 3, 4, 5]);
        let frame = &frame(mac)[HEADER_BYTES..];
        assert_eq!(frame.len(), FRAME_BYTES);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], mac.0);
        assert_eq!(frame[12..14], [0x80, 0x35]);
        assert_eq!(frame[22..28], mac.0);
    }

    #[test]
    fn every_round_is_due_once() {
        let now = Instant::now();
        let mut rounds = Rounds::begin(now);
        assert!(rounds.due(now));
        assert!(!rounds.due(now));
        let mut count = 1;
        while let Some(at) = rounds.next() {
            assert!(rounds.due(at));
            count += 1;
        }
        assert_eq!(count, ROUNDS.len());
        assert!(!Rounds::default().due(now));
    }
}
