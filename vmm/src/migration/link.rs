//! What the link between two hosts is like, and how many connections it takes.

use std::time::Duration;

use ballast_model::BytesPerSec;

/// From here on a link is a long one: a single connection's window does not fill it.
const LONG_ROUND_TRIP: Duration = Duration::from_millis(5);
/// Connections over a long link. Linux lets each have some 6 MiB under way.
const STREAMS_LONG: u16 = 8;
/// The most connections a fast link gets without being asked to.
const STREAMS_AUTO_MAX: u16 = 8;
/// A limit that one connection reaches anywhere.
const ONE_STREAM_RATE: BytesPerSec = BytesPerSec(200 << 20);

/// This machine's CPUs.
pub(super) fn cpus() -> u16 {
    std::thread::available_parallelism().map_or(1, |cpus| u16::try_from(cpus.get()).unwrap_or(1))
}

/// How many connections to use. On a short link a second one pays when there is a CPU for it
/// beside those of the first one's two ends.
pub(super) fn streams(round_trip: Option<Duration>, cpus: u16, limit: Option<BytesPerSec>) -> u16 {
    if limit.is_some_and(|limit| limit <= ONE_STREAM_RATE) {
        1
    } else if round_trip.is_some_and(|time| time >= LONG_ROUND_TRIP) {
        STREAMS_LONG
    } else {
        (cpus / 2).clamp(1, STREAMS_AUTO_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_follow_from_link_and_cpus() {
        let near = Some(Duration::from_micros(80));
        let far = Some(Duration::from_millis(150));
        let slow = Some(BytesPerSec(50 << 20));
        assert_eq!([1, 2, 4, 64].map(|cpus| streams(near, cpus, None)), [1, 1, 2, 8]);
        assert_eq!(streams(far, 2, None), 8);
        assert_eq!(streams(far, 64, slow), 1);
        assert_eq!(streams(None, 8, None), 4);
    }
}
